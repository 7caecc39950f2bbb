"""One helper process for isl's work, so that isl never holds up the caller.

isl's calls know no clock and hold the interpreter while they run: neither a timer nor Ctrl-C would
get through. The helper is a compile worker (``workers``) that is killed when its time is up, and by
an alarm of its own should the caller be gone by then.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading

from nestor import _worker
from nestor.workers import LimitedWorker, WorkerCrash

START_SECONDS = 20.0
"""Time for the helper to start and load isl; not part of the limit of a kernel [s]."""

IDLE_SECONDS = 60.0
MEMORY_BYTES = 4 << 30


class Unanswered(Exception):
    """The helper crashed, or was ended at its limit."""


class Helper:
    """At most one worker, started when asked, ended when idle. Callers hold ``lock``."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._worker: LimitedWorker | None = None
        self._timer: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id, if there is one."""
        return self._worker.pid if self._worker is not None else None

    def is_alive(self) -> bool:
        """Whether there is a worker."""
        return self._worker is not None and self._worker.is_alive()

    def start(self) -> bool:
        """Have a worker that has loaded isl; False if none can be started."""
        if self.is_alive():
            return True
        self.close()
        with contextlib.suppress(OSError, Unanswered):
            self._worker = LimitedWorker(MEMORY_BYTES)
            self.ask("isl-warm", b"", START_SECONDS)
            return True
        self.close()
        return False

    def ask(self, kind: str, payload: bytes, limit_seconds: float) -> bytes:
        """Run one job.

        Raises: ``Unanswered``, the worker being gone then; what the job raised, by its class.
        """
        assert self._worker is not None
        done = False
        try:
            status, body = self._worker.run(kind, payload, limit_seconds)
            done = True
        except WorkerCrash as crash:
            raise Unanswered(str(crash)) from None
        finally:
            # Also after Ctrl-C: half an answer may be on its way.
            if not done:
                self.close()
        self._expect_idleness()
        if status != "ok":
            raise _worker.decode_error(body)
        return body

    def _expect_idleness(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(IDLE_SECONDS, self._end_if_idle)
        self._timer.daemon = True
        self._timer.start()

    def _end_if_idle(self) -> None:
        if self.lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                self.lock.release()

    def close(self) -> None:
        """End the worker."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


_helper = Helper()


def shared_helper() -> Helper:
    """The helper of this process."""
    return _helper


def _forget() -> None:
    """In a forked child: the helper and its pipes are the parent's."""
    global _helper
    _helper = Helper()


atexit.register(lambda: _helper.close())
os.register_at_fork(after_in_child=_forget)
