"""Temps that are larger than what they are made of: better kept near than written to memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nestor.ir.program import Statement, Tensor
from nestor.passes.analysis import element_count, is_pointwise

_LEAST_GROWTH = 1.5


def is_expansion(statement: Statement, tensors: Mapping[str, Tensor]) -> bool:
    """A pointwise statement that makes several elements at each instance (so its readers cannot
    compute them in place) and, in all, half again as many as it reads."""
    targets = {w.tensor for w in statement.writes}
    if len(statement.writes) == len(targets) or not is_pointwise(statement):
        return False
    made = sum(element_count(tensors[n]) for n in targets)
    read = sum(element_count(tensors[n]) for n in {x.tensor for x in statement.loads})
    return 0 < _LEAST_GROWTH * read <= made


def reads_expansion(
    statement: Statement, others: Iterable[Statement], tensors: Mapping[str, Tensor]
) -> bool:
    """Whether ``statement`` reads what one of ``others`` expands."""
    read = {x.tensor for x in statement.loads}
    return any(
        read & {w.tensor for w in other.writes} and is_expansion(other, tensors)
        for other in others
        if other is not statement
    )
