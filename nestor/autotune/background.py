"""Tuning while a model serves: another process searches, better kernels take over between calls.

The search (``background_worker``) never runs in this process: measurement and proofs would hold the
interpreter, and calls would wait for it. Here a thread waits on a pipe. What comes is a compiled
program; the thread links it beside the present one, with the same weights, times both, and swaps.
A call under way ends on the kernels that it began with. Nothing that fails here reaches a call.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from nestor._worker import decode_error, read_message, write_message
from nestor.autotune.choosing import time_ratio
from nestor.report import TuningReport
from nestor.workers import child_environment, end_process

if TYPE_CHECKING:
    from nestor.building import BuiltModel

CHECK_SECONDS = 1.0
"""How long a model with other kernels is timed beside the present one [s], at the least some pairs
of calls."""

NICENESS = 19
"""Of the search: it takes what others leave."""

_EXIT_SECONDS = 10.0
_POLL_SECONDS = 0.2

# The thread here keeps its priority: under the interpreter's lock, one that steps back would make
# calls wait for whatever it waits for.

_turn = threading.Semaphore(1)
"""One search at a time in a process: two would measure each other."""

_linking = threading.RLock()
"""Held while a model is linked and swapped. A fork waits for it: the child then finds no lock of
the compiler's, of the model's or of its weights taken by a thread that it does not have."""

_alive: weakref.WeakSet[BackgroundTuning] = weakref.WeakSet()


class Owner(Protocol):
    """Who serves calls, with the model as built last."""

    def swap(self, old: BuiltModel, new: BuiltModel) -> bool:
        """Serve calls with ``new`` from now on; False if ``old`` serves none any more."""


class BackgroundTuning:
    """A search beside a model that is in use.

    It ends when its time is spent or nothing more is expected, with ``stop``, and when the model or
    the process goes.

    Args: owner: is given what is found. built: the model as it is. args, kwargs: of a call, to time
        the whole model with; nobody else may change them. seconds: for the search [s].
    """

    def __init__(
        self,
        owner: Owner,
        built: BuiltModel,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seconds: float,
    ):
        self._owner, self._built = weakref.ref(owner), weakref.ref(built)
        self._example: tuple[tuple[Any, ...], dict[str, Any]] | None = (args, kwargs)
        self._pid = os.getpid()
        self._began = time.monotonic()
        self._report = TuningReport(state="waiting")
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping, self._ended = threading.Event(), threading.Event()
        payload = pickle.dumps(replace(built.assignment(seconds), niceness=NICENESS))
        weakref.finalize(owner, _end, weakref.ref(self)).atexit = False
        _alive.add(self)
        self._thread = threading.Thread(
            target=self._run, args=(payload,), name="nestor-tuning", daemon=True
        )
        self._thread.start()

    # ------------------------------------------------------------------------------ for users

    @property
    def state(self) -> str:
        """See ``TuningReport``."""
        return self._report.state

    def report(self) -> TuningReport:
        """How it stands."""
        report = self._report
        if self._ended.is_set():
            return report
        return replace(report, seconds=time.monotonic() - self._began)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the search has ended; whether it has within ``timeout`` [s]."""
        return self._ended.wait(timeout)

    def stop(self) -> None:
        """End the search; what was found stays. Returns when the process is gone."""
        self.end()
        if self._pid == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join(_EXIT_SECONDS)

    # ------------------------------------------------------------------------------ the thread

    def end(self) -> None:
        """Ask the search to end, without waiting. A forked child leaves its parent's alone."""
        if self._pid != os.getpid():
            return
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()

    def forget(self) -> None:
        """In a forked child: the search, its pipes and its thread are the parent's."""
        process = self._process
        nothing = os.open(os.devnull, os.O_RDWR)
        for pipe in () if process is None else (process.stdin, process.stdout):
            # Or the search would not see its parent's end. The file, not the object: a lock within
            # that may be the lost thread's.
            with contextlib.suppress(OSError, ValueError):
                if pipe is not None:
                    os.dup2(nothing, pipe.fileno(), inheritable=False)
        os.close(nothing)
        self._stopping, self._ended = threading.Event(), threading.Event()
        self._ended.set()
        self._report = replace(
            self._report, state="stopped", reason="this process was forked: its parent searches"
        )

    def _run(self, payload: bytes) -> None:
        try:
            while not _turn.acquire(timeout=_POLL_SECONDS):
                if self._stopping.is_set():
                    return
            try:
                self._search(payload)
            finally:
                _turn.release()
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            if self._stopping.is_set() and self.state != "failed":
                self._report = replace(self._report, state="stopped", reason="stopped")
            self._report = replace(self._report, seconds=time.monotonic() - self._began)
            self._example = None
            self._ended.set()

    def _fail(self, warning: str) -> None:
        self._report = replace(self._report, state="failed", warning=warning)

    def _search(self, payload: bytes) -> None:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nestor.autotune.background_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
        )
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        self._report = replace(self._report, state="searching")
        try:
            with contextlib.suppress(BrokenPipeError):
                write_message(process.stdin, "search", payload)
            while not self._stopping.is_set():
                message = read_message(process.stdout)
                if message is None:
                    self._lose(process)
                    return
                if self._take(*message):
                    return
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()  # it ends in order
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_SECONDS)
            end_process(process)

    def _lose(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_SECONDS)
        code = process.poll()
        if not self._stopping.is_set():
            how = f"killed by signal {-code}" if code and code < 0 else f"exit status {code}"
            self._fail(f"the tuning process ended ({how}); what it had found stays")

    def _take(self, kind: str, body: bytes) -> bool:
        """Act on a message; whether it was the last one."""
        if kind == "progress":
            known = json.loads(body)
            self._report = replace(
                self._report,
                trials=known["trials"],
                expected_gain=known["expected_ns"] / known["best_ns"] if known["best_ns"] else 0.0,
            )
        elif kind == "found":
            try:
                self._try(pickle.loads(body))
            except Exception as error:
                self._report = replace(
                    self._report,
                    warning=f"kernels that were found: {type(error).__name__}: {error}",
                )
            if not self._stopping.is_set():
                self._report = replace(self._report, state="searching")
        elif kind == "failed":
            self._fail(str(decode_error(body)))
            return True
        else:
            self._report = replace(self._report, state="finished", reason=body.decode())
            return True
        return False

    def _try(self, compiled: Any) -> None:
        """Link a program with other kernels, and swap it in if the whole model is faster with it.

        No reference to the owner is held meanwhile: it goes when nobody uses it.
        """
        old = self._built()
        if old is None or self._example is None:
            return
        self._report = replace(self._report, state="checking")
        with _linking:
            new = old.with_kernels(compiled)
        args, kwargs = self._example
        ratio = self._time(new, old, args, kwargs)
        owner = self._owner()
        if owner is None or self._stopping.is_set():
            return
        if ratio > 1:
            self._report = replace(self._report, refused=self._report.refused + 1)
            return
        with _linking:
            if not owner.swap(old, new):
                self._stopping.set()
                return
            self._built = weakref.ref(new)
            report = self._report
            self._report = replace(report, swaps=report.swaps + 1, gain=report.gain / ratio)

    def _time(
        self, new: BuiltModel, old: BuiltModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> float:
        """Time of ``new`` over ``old``, the whole model."""
        with _linking:
            first, second = new.rehearsal(), old.rehearsal()
        return time_ratio(
            lambda: first(*args, **kwargs),
            lambda: second(*args, **kwargs),
            CHECK_SECONDS,
            self._stopping.is_set,
        )


def _end(tuning: weakref.ref[BackgroundTuning]) -> None:
    found = tuning()
    if found is not None:
        found.end()


def _after_fork() -> None:
    global _turn, _linking
    _turn, _linking = threading.Semaphore(1), threading.RLock()
    for tuning in list(_alive):
        tuning.forget()
    _alive.clear()


def _at_exit() -> None:
    for tuning in list(_alive):
        tuning.stop()


atexit.register(_at_exit)
os.register_at_fork(
    before=lambda: _linking.acquire(),
    after_in_parent=lambda: _linking.release(),
    after_in_child=_after_fork,
)
