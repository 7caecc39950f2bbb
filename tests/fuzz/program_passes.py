"""Program passes under fuzzing: those that keep every operation keep every allowed result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nestor.ir import run_program, verify_program
from nestor.ir.program import Program
from nestor.passes.common_subexpressions import merge_common_subexpressions
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.delinearize import delinearize_indices
from nestor.passes.inline import inline_producers
from nestor.passes.pipeline import run_pipeline
from nestor.passes.read_parts import read_parts
from nestor.passes.redirect import redirect_writes
from nestor.passes.simplify import simplify_program
from tests.fuzz.enclosure_program import Memory, Mismatch, find_mismatch
from tests.fuzz.generate_inputs import READ_ROLES

Arrays = dict[str, np.ndarray]
Pass = Callable[[Program, PassContext], Program]

EXACT: tuple[Pass, ...] = (
    simplify_program,
    remove_dead_code,
    merge_common_subexpressions,
    delinearize_indices,
    redirect_writes,
    read_parts,
    inline_producers,
)
"""Passes without algebra beyond the order of sums: the results they allow are results that the
Program allows."""

ALGEBRA = 1e-4
"""Rounding that algebraic rules (a scale folded into weights) may add, of a tensor's largest."""


def find_pass_fault(
    program: Program,
    inputs: Arrays,
    symbols: dict[str, int],
    memory: dict[str, Memory],
) -> str | None:
    """Run the passes one after the other, twice; the first wrong result, or None."""
    current = program
    for run in (*EXACT, *EXACT):
        changed = run(current, PassContext())
        if changed is current:
            continue
        current = changed
        verify_program(current)
        wrong = find_wrong_result(program, _run(current, inputs, symbols), memory, 0.0)
        if wrong is not None:
            return f"{run.__name__}: {wrong}"
    return None


def find_pipeline_fault(
    program: Program,
    inputs: Arrays,
    symbols: dict[str, int],
    memory: dict[str, Memory],
) -> str | None:
    """Run the whole pipeline, algebraic rules and weights computed beforehand included."""
    main, given = optimized(program, inputs, symbols)
    wrong = find_wrong_result(program, _run(main, given, symbols), memory, ALGEBRA)
    return None if wrong is None else f"pipeline: {wrong}"


def optimized(program: Program, inputs: Arrays, symbols: dict[str, int]) -> tuple[Program, Arrays]:
    """What the pipeline makes of a Program, and its inputs with the weights made beforehand."""
    result = run_pipeline(program, PassContext())
    given = dict(inputs)
    if result.weight_program.statements:
        given.update(_run(result.weight_program, inputs, symbols))
    return result.main, given


def _run(program: Program, inputs: Arrays, symbols: dict[str, int]) -> Arrays:
    needed = {t.name for t in program.tensors if t.role in READ_ROLES}
    used = {n: v for n, v in symbols.items() if any(s.name == n for s in program.symbols)}
    return run_program(program, {n: a for n, a in inputs.items() if n in needed}, used)


def find_wrong_result(
    program: Program, results: Arrays, memory: dict[str, Memory], tolerance: float
) -> Mismatch | None:
    """The first cell that is neither allowed nor, if finite, within ``tolerance`` of that."""
    for t in program.tensors:
        if t.role not in ("output", "inout", "state"):
            continue
        kept, got = memory[t.name], results[t.name]
        if tolerance and t.dtype.is_float:
            cells = kept.cells.copy()
            size = np.abs(np.where(np.isfinite(cells.lo), cells.lo, 0)).max(initial=1.0)
            cells.lo, cells.hi = cells.lo - tolerance * size, cells.hi + tolerance * size
            kept = Memory(cells, kept.defined)
        wrong = find_mismatch(t.name, kept, got)
        if wrong is not None:
            return wrong
    return None
