"""Drop statements that store what is there: ``A[i, j] = A[i, j]``.

They are what is left of scalars that were folded into the array, and would tie loops together.
"""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.affine import Affine
from nestor.ir.expr import Load
from nestor.ir.program import AnyStatement, Program, Statement


def drop_self_copies(program: Program) -> Program:
    """``program`` without statements that write each element's own value to it.

    Rewrite: ``for i: x[i] = x[i]`` → nothing. Always legal: not a bit changes.
    """
    kept = tuple(s for s in program.statements if not _is_self_copy(s))
    return program if len(kept) == len(program.statements) else replace(program, statements=kept)


def _is_self_copy(s: AnyStatement) -> bool:
    if not isinstance(s, Statement) or s.reduction is not None or s.scatter is not None:
        return False
    return all(
        isinstance(element, Load)
        and element.tensor == write.tensor
        and element.indices == write.indices
        and not element.predicate
        and all(isinstance(i, Affine) for i in write.indices)
        for write, element in zip(s.writes, s.elements, strict=True)
    )
