"""Ask for schedule proposals in a helper process, so that isl never holds up the caller.

isl's scheduler has no limit of its own and holds the interpreter while it runs: neither a timer nor
Ctrl-C would get through. The helper is a compile worker (``workers``) that is killed when its time
is up; what it had finished by then is kept.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
from typing import Any

from nestor import _worker
from nestor.ir.printer import print_program
from nestor.ir.program import Program
from nestor.passes.affine_facts import AffineFacts, dependence_from_json, proposal_from_json
from nestor.workers import LimitedWorker, WorkerCrash, default_worker_count

LIMIT_SECONDS = 3.0
START_SECONDS = 20.0
"""Time for the helper to start and load isl; not part of the limit of a kernel [s]."""

RESTART_SECONDS = 1.0
"""With less time left, a helper that was ended is not started again."""

STRATEGY_SHARE = 0.6
"""Of the time that is left, how much one strategy may use."""

IDLE_SECONDS = 60.0
MEMORY_BYTES = 4 << 30


def propose(program: Program, *, limit_seconds: float = LIMIT_SECONDS) -> AffineFacts:
    """Dependences of an affine kernel and the orders that isl proposes for it.

    Args: limit_seconds: for all of isl's work together [s]; past it, what is finished is returned.
    Returns: the nest as written is always the first proposal. ``unfinished`` says what is missing.
    Raises: ``UserError`` for a program that has no loops of its own (an extern).
    """
    from nestor.passes.polyhedral.proposals import (
        DEPENDENCES,
        ORIGINAL,
        STRATEGIES,
        Collector,
        propose_here,
    )

    if default_worker_count() == 0:
        return propose_here(program, limit_seconds=limit_seconds)
    collected = Collector(program, limit_seconds)
    text = print_program(program)
    with _helper.lock:
        if not _helper.start():
            return propose_here(program, limit_seconds=limit_seconds)
        deadline = time.monotonic() + limit_seconds
        for strategy in (ORIGINAL, DEPENDENCES, *STRATEGIES):
            left = deadline - time.monotonic()
            may_start = left > RESTART_SECONDS
            if left <= 0 or not (_helper.is_alive() or (may_start and _helper.start())):
                collected.give_up(strategy)
                continue
            # Later strategies shall have a chance; the nest as written takes what it needs.
            share = left if strategy == ORIGINAL else left * STRATEGY_SHARE
            job = {"program": text, "strategy": strategy, "seconds": share * STRATEGY_SHARE}
            try:
                answer = _helper.ask(job, share)
            except _Unanswered as error:
                collected.give_up(strategy, error)
                continue
            if strategy == DEPENDENCES:
                collected.dependences = tuple(map(dependence_from_json, answer))
            else:
                collected.add(proposal_from_json(answer))
    return collected.facts()


class _Unanswered(Exception):
    """The helper gave up, crashed, or was ended at its limit."""


class _Helper:
    """At most one worker, started when asked, ended when idle."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._worker: LimitedWorker | None = None
        self._timer: threading.Timer | None = None

    def is_alive(self) -> bool:
        """Whether there is a worker."""
        return self._worker is not None and self._worker.is_alive()

    def start(self) -> bool:
        """Have a worker that has loaded isl; False if none can be started."""
        if self.is_alive():
            return True
        self.close()
        with contextlib.suppress(OSError, _Unanswered):
            self._worker = LimitedWorker(MEMORY_BYTES)
            self.ask({"strategy": "warm"}, START_SECONDS)
            return True
        self.close()
        return False

    def ask(self, job: dict[str, Any], limit_seconds: float) -> Any:
        """Run one job. Raises: ``_Unanswered``; the worker is gone then, unless it said so."""
        assert self._worker is not None
        payload = json.dumps(job).encode()
        done = False
        try:
            status, body = self._worker.run("polyhedral", payload, limit_seconds)
            done = True
        except WorkerCrash as crash:
            raise _Unanswered(str(crash)) from None
        finally:
            # Also after Ctrl-C: half an answer may be on its way.
            if not done:
                self.close()
        self._expect_idleness()
        if status != "ok":
            raise _Unanswered(str(_worker.decode_error(body)))
        return json.loads(body)

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


_helper = _Helper()


def _forget() -> None:
    """In a forked child: the helper and its pipes are the parent's."""
    global _helper
    _helper = _Helper()


atexit.register(lambda: _helper.close())
os.register_at_fork(after_in_child=_forget)
