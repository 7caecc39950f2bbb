"""A peer's process: reads one command a line, answers one line of JSON.

Run by ``turns.Peer`` as ``python -m nestor.benchmarking.worker``; not meant for people.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from nestor.benchmarking.peers import Prepared, resolve
from nestor.errors import NestorError


def status_bytes(field: str) -> int | None:
    """A field of this process's memory status, e.g. ``VmHWM`` [bytes]; None if there is none."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _start_high_water_mark() -> int | None:
    """Give free memory back, begin a new high-water mark; the memory in use [bytes], or None."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed pages would hide what a call takes
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM (proc(5))
    except (OSError, AttributeError):
        return None
    return status_bytes("VmRSS")


def measure_call_memory(call: Any) -> tuple[Any, int | None]:
    """Call, and tell how far memory rose above what was in use before [bytes]."""
    before = _start_high_water_mark()
    result = call()
    peak = status_bytes("VmHWM")
    return result, None if before is None or peak is None else max(0, peak - before)


class Session:
    """What one peer's process holds: the model, prepared."""

    def __init__(self) -> None:
        self.prepared: Prepared | None = None
        self.inputs: Sequence[Any] = ()
        self.outputs: Any = None

    def prepare(self, loader: str, arguments: dict[str, Any], maker: str, threads: int) -> Any:
        """Load the model, prepare it, call it; compile time and peak memory.

        Memory has one rule for every peer: the process is fresh, and the first call is measured,
        with all that wakes up in it or is kept after it (an arena, a library's buffers). Where the
        first call compiles, it is the next one, for a compiler's own memory is not the model's.
        """
        model, inputs = resolve(loader)(**arguments)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        prepared: Prepared = resolve(maker)(model, inputs, threads)
        compile_seconds = prepared.compile_seconds
        if prepared.compiles_at_first_call:
            start = time.perf_counter()
            prepared.call()
            compile_seconds += time.perf_counter() - start
        self.outputs, peak = measure_call_memory(prepared.call)
        self.prepared, self.inputs = prepared, inputs
        return {
            "compile_seconds": compile_seconds,
            "peak_bytes": peak,
            "note": prepared.note,
            "externs": prepared.externs,
        }

    def save_outputs(self, file: str) -> Any:
        """Write the last outputs, flattened, as ``.npz``; gives how many there are."""
        from nestor.benchmarking.outputs import arrays

        found = arrays(self.outputs)
        np.savez(file, *found)
        return {"count": len(found)}

    def save_others(self, file: str, loader: str, others: Sequence[dict[str, Any]]) -> Any:
        """Call with other inputs, of the same shapes; write the outputs, flattened, as ``.npz``.

        Args: loader: ``module:function`` that returns the inputs for each dict of ``others``.
        """
        from nestor.benchmarking.outputs import arrays

        assert self.prepared is not None, "save_others before prepare"
        # The prepared call holds on to its inputs, so the others are written over them.
        kept = [x.clone() if hasattr(x, "clone") else np.array(x) for x in self.inputs]
        found: list[Any] = []
        for arguments in others:
            _overwrite(self.inputs, resolve(loader)(**arguments))
            found += [np.array(a) for a in arrays(self.prepared.call())]
        _overwrite(self.inputs, kept)
        np.savez(file, *found)
        return {"count": len(found)}

    def turn(self, seconds: float, least: int) -> Any:
        """Call for about ``seconds``, at least ``least`` times; each call's time [ns]."""
        assert self.prepared is not None, "turn before prepare"
        call = self.prepared.call
        call()  # wakes threads and caches up; not counted
        times: list[int] = []
        end = time.perf_counter_ns() + int(seconds * 1e9)
        while len(times) < least or time.perf_counter_ns() < end:
            start = time.perf_counter_ns()
            call()
            times.append(time.perf_counter_ns() - start)
        return {"times_ns": times}


def _overwrite(inputs: Sequence[Any], values: Sequence[Any]) -> None:
    """Write ``values`` into tensors or arrays of the same shapes, in place."""
    for old, new in zip(inputs, values, strict=True):
        old[...] = new


def serve(commands: TextIO, answers: TextIO) -> None:
    """Answer commands until they end."""
    session = Session()
    for line in commands:
        request = json.loads(line)
        try:
            answer = getattr(session, request["do"])(*request["arguments"])
            reply = {"ok": answer}
        except NestorError as error:
            reply = {"error": str(error), "kind": type(error).__name__}
        except Exception as error:
            import traceback

            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}", "kind": "crash"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def main() -> None:
    """Serve on standard input and output; what models print goes to standard error instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
