"""The rule-based schedule of a kernel: parallel outside, vectors inside, products in registers.

Rules read only the derived structure (strides, reduced and shared indices, contraction roles), so
they hold for any statement. Whatever they propose, the checker judges.
"""

from __future__ import annotations

from nestor.ir.schedule import (
    Schedule,
)
from nestor.passes.contraction_schedule import schedule_alone, schedule_epilogue
from nestor.passes.fusion import FusedKernel
from nestor.passes.knobs import Choices
from nestor.passes.register_tile import VectorUnit
from nestor.passes.rows_schedule import schedule_rows
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import (
    free_indices,
)


def default_schedule(
    fused: FusedKernel, unit: VectorUnit, choices: Choices | None = None
) -> Schedule:
    """A good legal schedule for any kernel, without search.

    Args: fused: kernel and shared indices of its statements. unit: the target's vectors.
        choices: decisions of a search, and on return every knob that the rules asked for.
    """
    rules = Rules(fused, unit, choices)
    statements = rules.statements
    if any(len(s.order) > 1 for s in statements):
        for s in statements:
            schedule_alone(rules, s, sequential=[p for p in s.order if isinstance(p, str)])
    elif len(statements) == 1:
        schedule_alone(rules, statements[0], sequential=[])
    elif _is_epilogue(rules):
        schedule_epilogue(rules, statements[0])
    else:
        schedule_rows(rules)
    return tuple(rules.out)


def _is_epilogue(rules: Rules) -> bool:
    """Whether the kernel is a contraction and pointwise statements over its whole result."""
    first, *rest = rules.statements
    shared_all = all(
        len(rules.fused.shared[s.name]) == len(free_indices(s)) for s in rules.statements
    )
    return (
        rules.contraction(first) is not None
        and shared_all
        and all(s.reduction is None for s in rest)
    )
