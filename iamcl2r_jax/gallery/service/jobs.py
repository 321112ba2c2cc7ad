"""Work that takes long: one piece at a time, which a request starts and another may look at."""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from iamcl2r_jax.gallery.errors import Refused
from iamcl2r_jax.gallery.service.answers import STATUS, WorkError, status_of
from iamcl2r_jax.system.errors import one_line

# Does a verb with its options until the event is set; `work.do` or `work.in_process`.
Work = Callable[[str, Mapping[str, Any], threading.Event], dict[str, Any]]


@dataclasses.dataclass
class Job:
    """A piece of work.

    Attributes:
      verb: "gate" or "backfill".
      started, ended: in seconds since 1970; `ended` is None while it runs.
      result: what a gate gave.
      error: one line and the status of the answer, if it failed.
    """

    verb: str
    started: float
    ended: float | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    status: int | None = None

    def described(self) -> dict[str, Any]:
        """As JSON values, without the result, which the gallery's status has."""
        return {
            "verb": self.verb,
            "running": self.ended is None,
            "started": self.started,
            "ended": self.ended,
            "error": self.error,
        }


class Jobs:
    """Starts work in a thread, whatever it does there."""

    def __init__(self, work: Work):
        self._work, self._lock = work, threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.latest: Job | None = None

    def start(self, verb: str, options: Mapping[str, Any]) -> Job:
        """Begins a piece of work; `Refused` while another one runs."""
        with self._lock:
            if self.latest is not None and self.latest.ended is None:
                raise Refused(f"{verb}: a {self.latest.verb} runs already; wait until it ends")
            job = self.latest = Job(verb, time.time())
            self._thread = threading.Thread(
                target=self._run, args=(job, dict(options)), name=verb, daemon=True
            )
            self._thread.start()
            return job

    def _run(self, job: Job, options: dict[str, Any]) -> None:
        try:
            job.result = self._work(job.verb, options, self._stop)
        except (*STATUS, WorkError) as error:
            job.error, job.status = one_line(error), status_of(error)
        except Exception as error:
            job.error, job.status = f"{job.verb} failed ({type(error).__name__})", 500
            raise  # the traceback goes to the log
        finally:
            job.ended = time.time()

    def close(self) -> None:
        """Stops what runs, and waits for its end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
