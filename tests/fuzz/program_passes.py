"""Program passes under fuzzing: those that keep every operation keep every allowed result."""

from __future__ import annotations

from collections.abc import Callable

from nestor.ir import run_program, verify_program
from nestor.ir.program import Program
from nestor.passes.common_subexpressions import merge_common_subexpressions
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.delinearize import delinearize_indices
from nestor.passes.inline import inline_producers
from nestor.passes.redirect import redirect_writes
from nestor.passes.simplify import simplify_program
from tests.fuzz.enclosure_program import Memory, find_mismatch
from tests.fuzz.generate_inputs import READ_ROLES

Pass = Callable[[Program, PassContext], Program]

EXACT: tuple[Pass, ...] = (
    simplify_program,
    remove_dead_code,
    merge_common_subexpressions,
    delinearize_indices,
    redirect_writes,
    inline_producers,
)
"""Passes without algebra: the results they allow are results that the Program allows."""


def find_pass_fault(
    program: Program,
    inputs: dict[str, object],
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
        needed = {t.name for t in current.tensors if t.role in READ_ROLES}
        given = {n: a for n, a in inputs.items() if n in needed}
        results = run_program(current, given, symbols)  # type: ignore[arg-type]
        for t in program.tensors:
            if t.role in ("output", "inout", "state"):
                wrong = find_mismatch(t.name, memory[t.name], results[t.name])
                if wrong is not None:
                    return f"{run.__name__}: {wrong}"
    return None
