"""Derive the shape of a contraction from a statement: what is vector, what is row, what is reduced.

A contraction is a sum over a product of two factors: matmul, batched matmul, convolution, and
anything else of that form. Nothing here is stored in the IR; it is recomputed where needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nestor.ir.affine import Affine
from nestor.ir.expr import Binary, Expr, Load, loads
from nestor.ir.program import Role, Statement, Tensor
from nestor.ir.types import DType
from nestor.passes.strides import access_strides, typical


@dataclass(frozen=True, slots=True)
class Contraction:
    """Roles of a contraction's indices.

    Attributes:
        vector: the output index to vectorise; its factor is the *vector operand*.
        rows: output indices that the other factor alone depends on, nearest memory first: they
            reuse a loaded vector of the vector operand.
        row_strides: distance of the other factor's elements along each of ``rows`` [bytes]; None
            where it is irregular.
        spread: output indices that the vector operand alone moves with, nearest memory first.
        spread_strides: distance of the vector operand's elements along each of ``spread`` [bytes].
        row_moves: the other factor moves with ``vector`` too, as in a depthwise convolution.
        reduced: reduced indices, outermost first as the row factor's memory suggests.
        reduced_strides: as ``row_strides``, along each of ``reduced``.
        vector_strides: as ``spread_strides``, along each of ``reduced``.
        vector_operand: the load to be read as vectors; None if that factor is not one plain load.
        vector_operand_bytes: its footprint for one instance of the other output indices [bytes].
        is_packable: the vector operand is a parameter that a schedule may store in any layout.
    """

    statement: Statement
    vector: str
    rows: tuple[str, ...]
    row_strides: tuple[int | None, ...]
    spread: tuple[str, ...]
    spread_strides: tuple[int | None, ...]
    row_moves: bool
    reduced: tuple[str, ...]
    reduced_strides: tuple[int | None, ...]
    vector_strides: tuple[int | None, ...]
    vector_operand: Load | None
    vector_operand_bytes: int
    vector_operand_role: Role
    is_packable: bool


def contraction_of(
    statement: object, tensors: Mapping[str, Tensor], *, takes_bytes: bool = False
) -> Contraction | None:
    """The contraction that ``statement`` is, or None.

    Args: takes_bytes: sums of products of int8 count, too.
    """
    if not isinstance(statement, Statement):
        return None
    factors = _factors(statement, takes_bytes)
    if factors is None or len(statement.writes) != 1:
        return None
    assert statement.reduction is not None
    names = statement.domain.names
    free = [n for n in names if n not in statement.reduction.indices]
    write = statement.writes[0]
    out = access_strides(tensors[write.tensor], write.indices, names)
    strides = [_factor_strides(f, tensors, names) for f in factors]
    if all((strides[0][n] == 0) == (strides[1][n] == 0) for n in free):
        return None  # as a sum of squares: no operand is used by more than one result
    best = max(
        ((v, b) for v in free for b in (0, 1) if strides[b].get(v) != 0),
        key=lambda choice: _score(statement, choice, factors, strides, out, tensors),
        default=None,
    )
    if best is None:
        return None
    vector, b = best
    row_strides, vector_strides = strides[1 - b], strides[b]
    rows = [
        n for n in free if n != vector and vector_strides.get(n) == 0 and row_strides.get(n) != 0
    ]
    rows.sort(key=lambda n: _magnitude(row_strides[n]))
    spread = [
        n for n in free if n != vector and vector_strides.get(n) != 0 and row_strides.get(n) == 0
    ]
    spread.sort(key=lambda n: _magnitude(vector_strides[n]))
    reduced = sorted(statement.reduction.indices, key=lambda n: -_magnitude(row_strides.get(n, 0)))
    operand = _plain_load(factors[b])
    footprint = 1
    for n in (*statement.reduction.indices, vector):
        if vector_strides.get(n) != 0:
            footprint *= _extent(statement, n)
    role: Role = "temp" if operand is None else tensors[operand.tensor].role
    return Contraction(
        statement=statement,
        vector=vector,
        rows=tuple(rows),
        row_strides=tuple(_bytes(row_strides[n], factors[1 - b]) for n in rows),
        spread=tuple(spread),
        spread_strides=tuple(_bytes(vector_strides[n], factors[b]) for n in spread),
        row_moves=row_strides.get(vector) != 0,
        reduced=tuple(reduced),
        reduced_strides=tuple(_bytes(row_strides.get(n, 0), factors[1 - b]) for n in reduced),
        vector_strides=tuple(_bytes(vector_strides.get(n, 0), factors[b]) for n in reduced),
        vector_operand=operand,
        vector_operand_bytes=footprint * factors[b].dtype.bytes,
        vector_operand_role=role,
        is_packable=_is_packable(operand, tensors),
    )


def _factors(statement: Statement, takes_bytes: bool) -> tuple[Expr, Expr] | None:
    reduction = statement.reduction
    if reduction is None or reduction.scan or reduction.monoid.name != "sum":
        return None
    if len(statement.elements) != 1:
        return None
    element = statement.elements[0]
    if not isinstance(element, Binary) or element.op != "mul":
        return None
    if not element.dtype.is_float:
        if not takes_bytes or any(x.dtype is not DType.i8 for x in loads(element)):
            return None
    if not any(loads(element.a)) or not any(loads(element.b)):
        return None
    return element.a, element.b


def _plain_load(factor: Expr) -> Load | None:
    found = list(loads(factor))
    if len(found) != 1 or not all(isinstance(i, Affine) for i in found[0].indices):
        return None
    return found[0]


def _is_packable(operand: Load | None, tensors: Mapping[str, Tensor]) -> bool:
    return (
        operand is not None
        and tensors[operand.tensor].role in ("parameter", "constant")
        and tensors[operand.tensor].alias_of is None
        and not operand.predicate
        and all(isinstance(i, Affine) and len(i.terms) <= 1 for i in operand.indices)
    )


def _factor_strides(
    factor: Expr, tensors: Mapping[str, Tensor], names: tuple[str, ...]
) -> dict[str, int | None]:
    """Stride per index over all loads of a factor: the largest; None if irregular in any."""
    total: dict[str, int | None] = dict.fromkeys(names, 0)
    for load in loads(factor):
        for n, s in access_strides(tensors[load.tensor], load.indices, names).items():
            known = total[n]
            total[n] = None if s is None or known is None else max(known, s, key=abs)
    return total


def _score(
    statement: Statement,
    choice: tuple[str, int],
    factors: tuple[Expr, Expr],
    strides: list[dict[str, int | None]],
    out: dict[str, int | None],
    tensors: Mapping[str, Tensor],
) -> tuple[float, ...]:
    """Prefer unit-stride (or packable) vector operands, then unit-stride output, then extent."""
    v, b = choice
    operand = _plain_load(factors[b])
    packable = _is_packable(operand, tensors)
    unit = strides[b].get(v) == 1
    other = strides[1 - b].get(v)
    extent = min(_extent(statement, v), 16)
    good = 4.0 if unit or packable else 0.0
    good += 2.0 if out.get(v) == 1 else 0.0
    good += 1.0 if other in (0, 1) else -2.0
    return (good * extent, float(_extent(statement, v)), float(packable))


def _extent(statement: Statement, name: str) -> int:
    r = statement.domain.range_of(name)
    return max(1, typical(r.upper - r.lower))


def _bytes(stride: int | None, factor: Expr) -> int | None:
    return None if stride is None else stride * factor.dtype.bytes


def _magnitude(stride: int | None) -> int:
    return 1 << 40 if stride is None else abs(stride)
