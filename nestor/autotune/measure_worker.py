"""The process that runs candidates: ``python -m nestor.autotune.measure_worker``.

It reads commands from standard input and answers on standard output, in the frames of ``_worker``:
a command's text is its name, its body a pickled dictionary of arguments (from the parent's own
pipe); an answer's text is ``ok``, ``running`` (native code is about to run), ``idle`` (it has),
``failed`` (the candidate's fault) or ``error`` (ours), its body JSON; and ``fault`` comes from the
handler of ``measure_native``. What a candidate may have spoilt is never unpickled by the parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import gc
import json
import math
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np

from nestor._worker import read_message, write_message
from nestor.autotune.kernel_inputs import Array, Draw
from nestor.autotune.measure_bench import (
    BadCall,
    Bench,
    DeviceFault,
    OverMemory,
    mapped_bytes,
)
from nestor.autotune.measure_compare import (
    PERTURBED_RUNS,
    Judgement,
    compare_results,
    make_judgement,
    perturb_inputs,
    reduction_terms,
    worst_error,
)
from nestor.autotune.measure_native import NativeHelper
from nestor.errors import IndexOutOfRange, NestorError
from nestor.ir.types import DType
from nestor.runtime.threads import openmp

if TYPE_CHECKING:
    from nestor.autotune.gpu_bench import GpuBench

_MAX_NAN_SHARE = 0.1
_SPANS = (1.0, 0.5, 0.25, 0.1, 0.0)
_LONG_NS = 1e8
_ALARM_SECONDS = 2.0
_SIDES: tuple[Literal["start", "end"], ...] = ("end", "start")


class Failed(Exception):
    """A candidate did what it may not; ``status`` is that of a ``Measurement``."""

    def __init__(self, status: str, text: str):
        super().__init__(text)
        self.status = status


class Session:
    """Commands by name; each returns what JSON can hold."""

    def __init__(self, pipe: int, sink: IO[bytes]):
        self._pipe, self._sink = pipe, sink
        self._bench: Bench | GpuBench | None = None
        self._judgement: Judgement | None = None
        self._calls_ns: dict[str, float] = {}

    def start(
        self, *, helper: bytes, threads: int, memory_bytes: int, run_seconds: float, device: str
    ) -> Any:
        """Load the helper, and start the threads before memory is limited."""
        self._threads, self._memory_bytes = threads, memory_bytes
        self._run_seconds, self._device = run_seconds, device
        if device != "cpu":
            return {"pid": os.getpid()}
        self._helper = NativeHelper(helper)
        self._helper.report_faults(self._pipe)
        if threads > 1 and (found := openmp()).parallel:
            region = ctypes.CFUNCTYPE(
                None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
            )(found.parallel)
            region(self._helper.nothing, None, threads, 0)
        return {"pid": os.getpid()}

    def open(self, *, program: Any, sizes: dict[str, int]) -> Any:
        """Take a kernel and values of its symbols."""
        self._judgement = None
        self._bench = None
        gc.collect()
        if self._device == "cpu":
            self._bench = Bench(
                program,
                sizes,
                helper=self._helper,
                threads=self._threads,
                memory_bytes=self._memory_bytes,
                watcher=self,
            )
        else:
            from nestor.autotune.gpu_bench import GpuBench

            self._bench = GpuBench(
                program,
                sizes,
                device=self._device,
                memory_bytes=self._memory_bytes,
                watcher=self,
            )
        return {}

    def load(self, *, name: str, code: bytes, function: str, tensors: Any) -> Any:
        """Load an object."""
        self.bench.load(name, code, function, tensors)
        return {}

    def drop(self, *, name: str) -> Any:
        """Forget one."""
        self.bench.drop(name)
        return {}

    @property
    def bench(self) -> Bench | GpuBench:
        """The kernel at hand."""
        assert self._bench is not None, "no kernel is open"
        return self._bench

    # ------------------------------------------------------------------------------ results

    def judge(self, *, name: str, file: str, seed: int, interpret: bool, given: str) -> Any:
        """Draw inputs and find what results should be, or read both from an earlier ``file``.

        Args: name: the reference. interpret: ask the interpreter, against which the reference is
            checked too; else the reference's own results count. given: see ``Draw``.
        """
        found = _load(Path(file))
        if found is None:
            found = self._find_judgement(name, seed, interpret, given)
            # Without room it is found again by the next process, should this one die.
            with contextlib.suppress(OSError):
                _save(Path(file), *found)
        draw, self._judgement = found
        self.bench.set_inputs(draw)
        return {"draw": dataclasses.asdict(draw), "terms": self._terms()}

    def _terms(self) -> int:
        return reduction_terms(self.bench.program, self.bench.sizes)

    def _find_judgement(
        self, name: str, seed: int, interpret: bool, given: str
    ) -> tuple[Draw, Judgement]:
        bench = self.bench
        draw, plain = self._take(name, seed, given) if given else self._find_draw(name, seed)
        terms = self._terms()
        perturbed = []
        for k in range(PERTURBED_RUNS):
            moved = perturb_inputs(bench.program, bench.inputs, terms, seed + k)
            with contextlib.suppress(BadCall):
                perturbed.append(_copied(bench.run_fenced(name, "end", moved)[0]))
        expected = self._interpret() if interpret else plain
        judgement = make_judgement(bench.results, expected, plain, perturbed)
        for side in _SIDES:
            results, damage = bench.run_fenced(name, side)
            if wrong := damage or compare_results(judgement, results):
                raise Failed("wrong", f"the reference itself: {wrong}")
        return draw, judgement

    def _take(self, name: str, seed: int, given: str) -> tuple[Draw, dict[str, Array]]:
        """Inputs from a file."""
        draw = Draw(seed=seed, given=given)
        self.bench.set_inputs(draw)
        return draw, _copied(self.bench.run_fenced(name, "end")[0])

    def _find_draw(self, name: str, seed: int) -> tuple[Draw, dict[str, Array]]:
        """Inputs that the reference accepts and whose results are mostly numbers."""
        found: list[tuple[float, Draw, dict[str, Array]]] = []
        for positive in (False, True):
            for span in _SPANS:
                draw = Draw(seed=seed, positive=positive, span=span)
                self.bench.set_inputs(draw)
                try:
                    results, _ = self.bench.run_fenced(name, "end")
                except BadCall:
                    continue
                found.append((_nan_share(results), draw, _copied(results)))
                break
            if found and found[-1][0] <= _MAX_NAN_SHARE:
                break
        if not found:
            raise Failed("wrong", "the reference finds every drawn index out of range")
        _, draw, results = min(found, key=lambda f: f[0])
        self.bench.set_inputs(draw)
        return draw, results

    def _interpret(self) -> dict[str, Array]:
        from nestor.ir.interpreter import run_program

        bench = self.bench
        given = {n: v.copy() for n, v in bench.inputs.items()}
        try:
            found = run_program(bench.program, given, bench.sizes)
        except IndexOutOfRange as error:
            raise Failed("wrong", f"the reference misses an index out of range: {error}") from None
        dtypes = {t.name: t.dtype for t in bench.program.tensors}
        return {n: a.astype(np.uint8) if dtypes[n] is DType.bool else a for n, a in found.items()}

    def check(self, *, name: str, sides: int) -> Any:
        """Run a candidate once against each of so many fences and compare its results."""
        assert self._judgement is not None
        worst, fastest_ns = 0.0, math.inf
        for side in _SIDES[:sides]:
            results, damage = self.bench.run_fenced(name, side)
            if damage:
                raise Failed("wrong", f"wrote outside of its arrays: {damage}")
            if wrong := compare_results(self._judgement, results):
                raise Failed("wrong", wrong)
            worst = max(worst, worst_error(self._judgement, results))
            fastest_ns = min(fastest_ns, self.bench.fenced_ns)
        return {"worst": worst, "call_ns": fastest_ns}

    def limit(self, *, run_seconds: float) -> Any:
        """How long native code may run from now on."""
        self._run_seconds = run_seconds
        return {}

    # ------------------------------------------------------------------------------ times

    def prepare(self, *, name: str, sample_ns: float, cold_bytes: int, call_ns: float = 0.0) -> Any:
        """Lay out arrays, choose the calls of a sample, and compare the last call's results: a
        race need not show at the first.

        Args: call_ns: see ``Bench.prepare``.
        """
        is_known = call_ns > 0
        call_ns = self.bench.prepare(
            name, sample_ns=sample_ns, cold_bytes=cold_bytes, call_ns=call_ns
        )
        self._calls_ns[name] = call_ns
        results = None if is_known else self.bench.last_results(name)
        if results is not None and self._judgement is not None:
            if wrong := compare_results(self._judgement, results):
                raise Failed("wrong", f"called repeatedly: {wrong}")
        one = self.bench.loaded[name]
        return {"call_ns": call_ns, "times": one.times}

    def pairs(self, *, name: str, reference: str, count: int, first: int) -> Any:
        """Samples of two prepared variants in turns; who begins alternates, so that drift cancels.

        Args: first: how many pairs there were before.
        """
        own_ns, other_ns = self._calls_ns[name], self._calls_ns[reference]
        pairs: list[tuple[float, float]] = []
        for k in range(first, first + count):
            # The parent's clock starts anew for long calls only: waking it disturbs short ones.
            if k == first or own_ns + other_ns > _LONG_NS:
                self.begin([])
            if k % 2:
                other = self.bench.sample(reference)
                pairs.append((self.bench.sample(name), other))
            else:
                own = self.bench.sample(name)
                pairs.append((own, self.bench.sample(reference)))
        return {"pairs": pairs}

    def begin(self, arrays: Any) -> None:
        """Tell the parent that its clock for native code starts, and how much memory there is."""
        # The signal's default action ends this process, whatever the code is doing.
        signal.setitimer(signal.ITIMER_REAL, self._run_seconds + _ALARM_SECONDS)
        body = json.dumps({"bytes": mapped_bytes(), "arrays": list(arrays)}).encode()
        write_message(self._sink, "running", body)

    def end(self) -> None:
        """Tell the parent that what follows is no native code."""
        _calm()
        write_message(self._sink, "idle", b"")

    def answer(self, command: str, body: bytes) -> tuple[str, bytes]:
        """Run one command."""
        try:
            return "ok", json.dumps(getattr(self, command)(**pickle.loads(body))).encode()
        except Failed as error:
            failure = (error.status, str(error))
        except BadCall as error:
            failure = ("wrong", str(error))
        except DeviceFault as error:
            failure = ("crashed", str(error))
        except (OverMemory, MemoryError) as error:
            failure = ("memory", str(error) or "no memory is left")
        except NestorError as error:
            return "error", json.dumps(f"{type(error).__name__}: {error}").encode()
        except Exception as error:
            return "error", json.dumps("".join(traceback.format_exception(error))).encode()
        finally:
            _calm()
        return "failed", json.dumps(failure).encode()


def _end_with_parent(lifeline: int) -> None:
    """End by SIGIO at once when the parent does, whatever the code is doing.

    Args: lifeline: reading end of a pipe into which nobody writes. (Of the pipe that brings
        commands the kernel may tell late, while the command is already running.)
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _calm() -> None:
    """No alarm from here on."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _copied(results: Mapping[str, Array]) -> dict[str, Array]:
    """Results that the next run does not overwrite."""
    return {name: values.copy() for name, values in results.items()}


def _nan_share(results: dict[str, Array]) -> float:
    """The largest part of NaN in a float result."""
    shares = [
        float(np.mean(np.isnan(r))) for r in results.values() if r.size and r.dtype.kind == "f"
    ]
    return max(shares, default=0.0)


def _save(file: Path, draw: Draw, judgement: Judgement) -> None:
    """Written for the process that follows after a crash."""
    arrays: dict[str, Any] = {f"expected {n}": a for n, a in judgement.expected.items()}
    arrays |= {f"allowed {n}": a for n, a in judgement.allowed.items()}
    head = json.dumps({"draw": dataclasses.asdict(draw), "strays": judgement.strays})
    part = file.with_name(f"{file.name}.{os.getpid()}.part.npz")
    try:
        np.savez(part, head=np.array(head), **arrays)
        part.rename(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _load(file: Path) -> tuple[Draw, Judgement] | None:
    """What ``_save`` wrote; None if there is no such file."""
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as data:
        head = json.loads(str(data["head"]))
        names = [n for n in data.files if n != "head"]
        arrays = {n: data[n] for n in names}
    return Draw(**head["draw"]), Judgement(
        expected={n[9:]: a for n, a in arrays.items() if n.startswith("expected ")},
        allowed={n[8:]: a for n, a in arrays.items() if n.startswith("allowed ")},
        strays=head["strays"],
    )


def serve(source: IO[bytes], sink: IO[bytes], pipe: int) -> None:
    """Answer commands until ``source`` ends."""
    session = Session(pipe, sink)
    while (message := read_message(source)) is not None:
        write_message(sink, *session.answer(*message))


def main() -> None:
    """Entry point of ``python -m nestor.autotune.measure_worker``."""
    # What a library prints must not get between the messages.
    pipe = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGALRM, signal.SIGIO):
        signal.signal(number, signal.SIG_DFL)
    _end_with_parent(int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, cast("IO[bytes]", os.fdopen(pipe, "wb", closefd=False)), pipe)


if __name__ == "__main__":
    main()
