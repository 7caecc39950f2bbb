"""The process that searches schedules for a model which another process is running.

``python -m nestor.autotune.background_worker`` reads an ``Assignment`` from its standard input and
answers on its standard output with messages as ``nestor._worker`` has them: ``progress`` (JSON),
``found`` (a compiled program with better kernels, pickled), and at last ``end`` or ``failed``. The
end of standard input means that the other process is gone, or wants no more: this one ends too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nestor._worker import encode_error, read_message, write_message
from nestor.config import Config
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.passes.knobs import Choices, Value
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.autotune.tuner import Progress, Tuning

CONFIRM_SECONDS = 5.0
"""Winners are confirmed, and so may be used, after so long for the first time [s]."""

COMPILE_SECONDS, RUN_SECONDS = 120.0, 60.0
"""Limits of a candidate [s]. They are wall-clock time, of which a process of low priority gets
little on a busy machine: the usual ones would call good candidates too slow."""

_GRACE_SECONDS = 5.0
"""For ending in order: processes and folders of candidates [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A model's program, and how to search.

    Attributes:
        program: as the frontend made it. target, config: to compile it with.
        has_updates: after it runs, results are copied to states or to inputs.
        seconds: for everything [s].
        schedules: what the model's kernels run with now.
        point: what its passes decide otherwise than by default.
        sizes: of the program's symbols in the example that it was compiled for.
        niceness: how far the process steps back behind others (0–19).
    """

    program: Program
    target: CpuTarget
    config: Config
    has_updates: bool
    seconds: float
    schedules: dict[Program, Schedule]
    point: tuple[tuple[str, Value], ...] = ()
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    niceness: int = 19


Send = Callable[[str, bytes], None]


def search(assignment: Assignment, send: Send) -> str:
    """Search, and send a compiled program whenever there are better kernels; why it ended."""
    from nestor.autotune.choosing import chosen_schedules, tune_kernels
    from nestor.autotune.measuring import Limits
    from nestor.autotune.options import TuneOptions
    from nestor.compiler import compile_prepared, prepare_program, prepared_kernels

    # One process of low priority; whatever it may start has its own.
    config = dataclasses.replace(assignment.config, workers=1)
    prepared = prepare_program(
        assignment.program,
        assignment.target,
        config,
        has_updates=assignment.has_updates,
        choices=Choices(dict(assignment.point)),
    )
    kernels = prepared_kernels(prepared, config, assignment.sizes)
    current = assignment.schedules
    seen: dict[Program, Schedule] | None = None

    def offer(tuning: Tuning | None = None) -> None:
        nonlocal current, seen
        chosen = chosen_schedules(lambda: kernels, config, tuning)
        if chosen == seen:
            return
        seen = chosen
        compiled = compile_prepared(prepared, config, choose=lambda f: chosen.get(f.kernel))
        if compiled.schedules() != current:
            current = compiled.schedules()
            send("found", pickle.dumps(compiled))

    offer()  # what other processes found meanwhile
    tuning = tune_kernels(
        kernels,
        config,
        TuneOptions(seconds=assignment.seconds, confirm_every=CONFIRM_SECONDS),
        lambda progress: send("progress", _progress(progress)),
        found=offer,
        limits=Limits(compile_seconds=COMPILE_SECONDS, run_seconds=RUN_SECONDS),
        compile_workers=1,
    )
    return tuning.reason


def _progress(progress: Progress) -> bytes:
    names = ("phase", "trials", "default_ns", "best_ns", "expected_ns", "remembered")
    return json.dumps({name: getattr(progress, name) for name in names}).encode()


def _end_with_the_parent() -> None:
    """Wait until standard input ends, then end this process in order, or else at once."""
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 16):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _stop(number: int, frame: Any) -> None:
    del number, frame
    raise SystemExit(0)


def main() -> None:
    """Entry point of the process."""
    # What a library prints must not get between the messages.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # The keyboard's Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    message = read_message(sys.stdin.buffer)
    if message is None:
        return
    assignment = pickle.loads(message[1])
    with contextlib.suppress(OSError):
        os.nice(assignment.niceness)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        try:
            reason = search(assignment, lambda text, body: write_message(sink, text, body))
            write_message(sink, "end", reason.encode())
        except Exception as error:
            write_message(sink, "failed", encode_error(error))


if __name__ == "__main__":
    main()
