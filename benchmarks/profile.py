"""``python -m benchmarks.profile MODEL``: where a model's time goes, kernel by kernel.

Kernels are called one by one through the executable's table, so each time holds the start of its
threads, and what the kernel before left in the caches is there as in a whole run. The floor of a
kernel is the longer of its contractions over the machine's peak and its arrays over the bandwidth
of memory (``benchmarks.roofline``); a kernel whose arrays stay in a cache may beat the second.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.c_library import CLANG, find_command
from benchmarks.roofline import Machine, measure_machine
from nestor.cli import run_guarded
from nestor.errors import UserError
from nestor.tables import Table, print_tables


@dataclass(slots=True, kw_only=True)
class KernelTime:
    """All calls of one kernel in a run of a model.

    Attributes:
        statements: what the first call computes.
        extents: of the first statement's loops.
        calls: how often it runs.
        seconds: of all calls together, the least of several runs each [s].
        operations: of its contractions, two a multiply-add.
        moved_bytes: of the arrays that it is given, each once [B].
    """

    statements: tuple[str, ...]
    extents: tuple[int, ...]
    calls: int = 0
    seconds: float = 0.0
    operations: float = 0.0
    moved_bytes: float = 0.0


def profile_kernels(compiled: Any, inputs: Sequence[Any], repeats: int) -> list[KernelTime]:
    """Times of a compiled model's kernels, the longest first; equal kernels are one entry.

    Args: compiled: of ``nestor.compile``; inputs: one call's arguments; repeats: runs of the model.
    """
    built = compiled._current()
    executable, program = built.executable, built._compiled
    flat = executable._flatten(tuple(inputs), {})
    times = executable.profile(flat, repeats=repeats)
    plan, _ = executable._plan_for(flat)
    kernels = {key: kernel for kernel, key in program.key_of.items()}
    found: dict[str, KernelTime] = {}
    for call, native, (name, seconds) in zip(
        program.calls, executable.manifest.calls, times, strict=True
    ):
        kernel = kernels.get(getattr(call, "key", ""))
        if kernel is None:
            entry = found.setdefault(name, KernelTime(statements=(name,), extents=()))
        else:
            sizes = dict(zip((s.name for s in kernel.symbols), map(plan.symbols.get, call.symbols)))
            first = found.get(call.key)
            entry = first or KernelTime(
                statements=call.statements, extents=_extents(kernel.statements[0], sizes)
            )
            found[call.key] = entry
            entry.operations += sum(_operations(s, kernel, sizes) for s in kernel.statements)
            entry.moved_bytes += sum(plan.sizes[slot] for slot in set(native.tensors))
        entry.calls += 1
        entry.seconds += seconds
    return sorted(found.values(), key=lambda entry: -entry.seconds)


def _extents(statement: Any, sizes: dict[str, Any]) -> tuple[int, ...]:
    """Iterations of each loop, those around it at their first one."""
    values = {**sizes, **dict.fromkeys(statement.domain.names, 0)}
    return tuple(int((r.upper - r.lower).evaluate(values)) for r in statement.domain.ranges)


def _operations(statement: Any, kernel: Any, sizes: dict[str, Any]) -> float:
    from nestor.passes.contraction import contraction_of

    if contraction_of(statement, {t.name: t for t in kernel.tensors}) is None:
        return 0.0
    product = 2.0
    for extent in _extents(statement, sizes):
        product *= max(0, extent)
    return product


def make_table(
    model: str, kernels: Sequence[KernelTime], machine: Machine | None, top: int
) -> Table:
    """One row for each of the ``top`` longest; shares of the floor need the machine's peaks."""
    total = sum(k.seconds for k in kernels)
    least = sum(_floor(k, machine) for k in kernels)
    caption = f"all kernels: {total * 1e3:.3f} ms"
    if machine is not None and total:
        caption += f", their floors: {least * 1e3:.3f} ms ({least / total:.0%})"
    columns = (
        *(">calls", ">ms", ">of all", ">GFLOP/s", ">GB/s", ">of floor", ">lost ms"),
        *("extents", "statements"),
    )
    return Table(
        title=model,
        columns=columns,
        rows=tuple(_row(k, total, machine) for k in kernels[:top]),
        caption=caption,
    )


def _floor(kernel: KernelTime, machine: Machine | None) -> float:
    if machine is None:
        return 0.0
    return machine.floor_seconds(kernel.operations, kernel.moved_bytes)


def _row(k: KernelTime, total: float, machine: Machine | None) -> tuple[str, ...]:
    floor, seconds = _floor(k, machine), max(k.seconds, 1e-9)
    return (
        str(k.calls),
        f"{k.seconds * 1e3:.3f}",
        f"{k.seconds / total:.1%}" if total else "",
        f"{k.operations / seconds / 1e9:.1f}" if k.operations else "",
        f"{k.moved_bytes / seconds / 1e9:.1f}",
        f"{floor / seconds:.0%}" if machine else "",
        f"{max(0.0, k.seconds - floor) * 1e3:.3f}" if machine else "",
        "×".join(map(str, k.extents)),
        ", ".join(k.statements),
    )


def run(given: argparse.Namespace) -> int:
    """Compile, run and print. Raises: ``UserError`` for an unknown model."""
    import torch

    import nestor
    from benchmarks import models

    torch.set_num_threads(given.threads)
    try:
        model, make_inputs = models.build(given.model)
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    inputs = make_inputs(given.seed, given.batch)
    compiled = nestor.compile(model.eval(), tuple(inputs), threads=given.threads)
    compiled(*inputs)
    command = find_command(CLANG)
    machine = None
    if command is not None:
        with tempfile.TemporaryDirectory() as folder:
            machine = measure_machine(command, Path(folder), threads=given.threads, dtype="float32")
    kernels = profile_kernels(compiled, inputs, given.repeats)
    if given.json:
        print(json.dumps([asdict(k) for k in kernels], indent=1))
    else:
        print_tables(make_table(given.model, kernels, machine, given.top))
    return 0


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description="Time a model's kernels one by one."
    )
    parser.add_argument("model", help="a model of benchmarks.models")
    parser.add_argument("--top", type=int, default=40, help="rows to show, the longest first")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7, help="runs; the least time counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Entry point; errors of the user are told in one line."""
    arguments = _arguments(given)
    return run_guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
