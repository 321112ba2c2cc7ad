"""Collects concurrent queries, so that the device embeds many at once."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from iamcl2r_jax.gallery.service.answers import Unavailable

Query = TypeVar("Query")
Answer = TypeVar("Answer")


class Batcher(Generic[Query, Answer]):
    """Answers queries in batches, one batch at a time.

    While a batch is worked on, the next one gathers. An idle batcher waits a little, but only if
    more queries are on their way: one alone is answered at once.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Query]], Sequence[Answer | Exception]],
        *,
        size: int,
        wait: float,
        waiting: int,
        observe: Callable[[int], None] = lambda size: None,
    ):
        """Args:
        answer: answers a batch, each query by a value or the error to raise; called in a thread.
        size: queries in a batch at most.
        wait: seconds that the first query of a batch waits for others.
        waiting: queries that wait at most.
        observe: called with the size of each batch.
        """
        self._answer, self._size, self._wait, self._observe = answer, size, wait, observe
        self._queue: asyncio.Queue[tuple[Query, asyncio.Future]] = asyncio.Queue(waiting)
        self._task: asyncio.Task | None = None
        self._coming = 0

    @contextmanager
    def coming(self) -> Iterator[None]:
        """A query is on its way inside the block, until it is answered."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def start(self) -> None:
        """Begins to answer, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends once everything that was asked is answered."""
        await self._queue.join()
        self._task.cancel()
        await asyncio.wait([self._task])

    async def ask(self, query: Query) -> Answer:
        """The answer to one query, which is `coming`.

        Raises:
          Unavailable: if too many wait already.
          Exception: what `answer` gave for this query.
        """
        future = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((query, future))
        except asyncio.QueueFull:
            raise Unavailable("too many queries wait already; try again later") from None
        return await future

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            end = asyncio.get_running_loop().time() + self._wait
            while len(batch) < min(self._size, self._coming):
                if not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                    continue
                try:
                    async with asyncio.timeout_at(end):
                        batch.append(await self._queue.get())
                except TimeoutError:
                    break
            await self._settle([(q, f) for q, f in batch if not f.done()])
            for _ in batch:
                self._queue.task_done()

    async def _settle(self, batch: list[tuple[Query, asyncio.Future]]) -> None:
        """Answers those that nobody has given up."""
        if not batch:
            return
        self._observe(len(batch))
        try:
            answers = await run_in_threadpool(self._answer, [query for query, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        for (_, future), found in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)
