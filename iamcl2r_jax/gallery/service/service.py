"""The parts of a running service, and what it does beside answering requests."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.concurrency import run_in_threadpool

from iamcl2r_jax.gallery import Gallery, Model, transitions
from iamcl2r_jax.gallery.embedder import Embedders
from iamcl2r_jax.gallery.service import queries, uploads
from iamcl2r_jax.gallery.service.answers import STATUS
from iamcl2r_jax.gallery.service.batching import Batcher
from iamcl2r_jax.gallery.service.jobs import Jobs, Work
from iamcl2r_jax.gallery.service.metrics import History, Metrics, snapshot
from iamcl2r_jax.gallery.service.queries import Found, Query, Searcher
from iamcl2r_jax.gallery.service.settings import Settings

_LOOK = 1.0  # seconds between looks at the gallery
_EVENTS = 20  # that the state shows
_DECODERS = 4  # pictures decoded at once; each may take the memory of `max_pixels`
# In these the new model may be asked soon.
_WARM = transitions.BOTH | {transitions.GATED}


class Service:
    """One gallery, its embedders, and what the endpoints share.

    Attributes:
      images: the files of uploaded images.
      jobs: the gate and the backfill.
      history: of the backfill.
      batcher: answers queries.
      decoders: threads that decode pictures, while the service is running.
      trouble: why the service is not ready, one line; None once it is.
    """

    def __init__(self, gallery: Gallery, embedders: Embedders, settings: Settings, work: Work):
        self.gallery, self.embedders, self.settings = gallery, embedders, settings
        self.images = uploads.Files(gallery)
        self.jobs = Jobs(work)
        self.history = History()
        self.metrics = Metrics(gallery)
        self.trouble: str | None = "the model is being loaded"
        self.batcher: Batcher[Query, Found] = Batcher(
            Searcher(gallery, embedders).answer,
            size=settings.batch,
            wait=settings.wait,
            waiting=settings.waiting,
            observe=self.metrics.batches.observe,
        )
        self._warm: set[str] = set()  # digests

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers queries and looks after the gallery inside the block."""
        with ThreadPoolExecutor(_DECODERS, "decoder") as self.decoders:
            self.batcher.start()
            stopping = asyncio.Event()
            watch = asyncio.create_task(self._watch(stopping))
            try:
                yield
            finally:
                # Not cancelled: its thread would go on, and read a gallery that is closed.
                stopping.set()
                await asyncio.wait([watch])  # raises nothing, so that all else is closed too
                await self.batcher.close()
                await run_in_threadpool(self.jobs.close)

    def prepare(self, model: Model) -> None:
        """Loads and compiles a model unless that is done; `Unavailable` if it cannot be loaded."""
        if model.info.digest not in self._warm:
            queries.warm(self.embedders, model, self.settings.batch)
            self._warm.add(model.info.digest)

    def look(self) -> None:
        """Takes a sample of the backfill, loads the models that serve, and feeds the engine."""
        view = self.gallery.feed()
        _, upgrade, end = snapshot(self.gallery)
        self.history.note(upgrade, end, time.time())
        self.prepare(view.models[view.serving])
        if view.upgrade is not None and view.upgrade.state in _WARM:
            self.prepare(view.models[view.upgrade.old_model])
            self.prepare(view.models[view.upgrade.new_model])

    def described(self) -> dict[str, Any]:
        """The state as JSON values: the gallery, its upgrade, the work that runs, latest events."""
        job = self.jobs.latest
        return {
            **self.gallery.status(),
            "progress": self.history.described(),
            "work": None if job is None else job.described(),
            "ready": self.trouble is None,
            "trouble": self.trouble,
            "events": self.gallery.events(_EVENTS),
        }

    async def _watch(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            try:
                await run_in_threadpool(self.look)
                self.trouble = None
            except (*STATUS, OSError) as error:  # told by /readyz, and tried again
                self.trouble = " ".join(str(error).split())
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _LOOK)
