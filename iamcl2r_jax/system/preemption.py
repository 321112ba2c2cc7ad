"""Being asked to stop: SIGTERM, as a cluster sends it before it takes the machine away."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from iamcl2r_jax.system import distributed
from iamcl2r_jax.system.errors import PreemptedError

EXIT_STATUS = PreemptedError.exit_status
_GRACE_SECONDS = 8.0  # to finish a call of the compiled program and save


class Preemption:
    """Whether the run was asked to stop.

    Attributes:
      requested: true once this process was asked.
    """

    def __init__(self):
        self.requested = False

    def agreed(self) -> bool:
        """Whether any process of the job was asked to stop; they must all call this together."""
        return distributed.any_process(self.requested)

    def check(self) -> None:
        """Raises `PreemptedError` if asked to stop; for places where nothing needs to be saved."""
        if self.agreed():
            raise PreemptedError


@contextmanager
def on_sigterm(extra_seconds: float = 0.0) -> Iterator[Preemption]:
    """Turns SIGTERM into a request, inside the block; only in the main thread.

    Where the request is not met in time, as while XLA compiles, the process ends all the same:
    what is on disk is at every moment good to continue from.

    Args:
      extra_seconds: for processes of its own to end before, on top of the usual time.
    """
    preemption = Preemption()
    # Python runs a signal's handler between two of its instructions, which a compilation may keep
    # away for long. The byte in this socket comes at once, and wakes the thread.
    receive, send = socket.socketpair()
    send.setblocking(False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup_before = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
    done = threading.Event()

    def watch():
        while data := receive.recv(1):
            if data[0] == signal.SIGTERM:
                preemption.requested = True
                if not done.wait(_GRACE_SECONDS + extra_seconds):
                    # print would want a lock that the main thread may hold.
                    os.write(2, f"error: {PreemptedError()}\n".encode())
                    os._exit(EXIT_STATUS)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield preemption
    finally:
        done.set()
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(signal.SIGTERM, before)
        send.close()
        watcher.join()
        receive.close()
