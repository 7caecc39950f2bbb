"""Means and variances of a known number of elements as two plain sums."""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import (
    Cast,
    Expr,
    Index,
    Load,
    Var,
    binary,
    const,
    substitute_vars,
    walk,
)
from nestor.ir.monoid import sum_of
from nestor.ir.program import (
    AnyStatement,
    Program,
    Reduction,
    Statement,
    Tensor,
    Write,
)
from nestor.ir.types import DType
from nestor.passes.context import PassContext
from nestor.passes.rewriting import (
    Names,
    extent_of,
    in_order,
    is_sequential,
    names_of,
    renumber,
    replace_statements,
)

_NAME = "split_moments"


def split_moments(program: Program, ctx: PassContext) -> Program:
    """Replace a Welford reduction by a sum for the mean and a sum of squared deviations.

    Welford's update divides at every element; two sums add and multiply, are as accurate (the
    deviations are taken from the finished mean), and read the row again while it is near.

    Rewrite: ``(m, M2, n) = welford(x)`` → ``m = Σx / n; M2 = Σ(x - m)²``, with ``n`` the number of
        elements.
    Legal when: the elements are ``(x, 0, 1)``, the reduction runs over a box, is no scan and starts
        from nothing. An empty reduction keeps Welford's identity: it is left alone, and so is one
        whose extent may be 0.
    Source: the two-pass algorithm; Chan, Golub, LeVeque, "Algorithms for computing the sample
        variance", 1983.
    """
    names = names_of(program)
    tensors = {t.name: t for t in program.tensors}
    symbols = program.symbol_ranges()
    out: list[AnyStatement] = []
    for statement in in_order(program.statements):
        count = _count(statement, symbols)
        if count is None or not isinstance(statement, Statement):
            out.append(statement)
            continue
        out += _split(statement, count, names, tensors)
        ctx.changed(_NAME, statement.name, "a mean and a sum of squared deviations")
    if all(a is b for a, b in zip(out, in_order(program.statements))):
        return program
    return replace_statements(program, renumber(out), tensors.values())


def _count(
    statement: AnyStatement, symbols: dict[str, tuple[int | None, int | None]]
) -> Expr | None:
    """The number of elements that each result combines, or None if the rule does not apply."""
    if not isinstance(statement, Statement) or statement.reduction is None:
        return None
    reduction = statement.reduction
    if reduction.monoid.name != "welford" or reduction.scan or reduction.into:
        return None
    if is_sequential(statement) or statement.domain.constraints or reduction.state_indices:
        return None
    if statement.scatter or not all(
        isinstance(i, Affine) for w in statement.writes for i in w.indices
    ):
        return None
    dtype = reduction.monoid.dtypes[0]
    if statement.elements[1:] != (const(0, dtype), const(1, dtype)):
        return None
    extents: list[Affine] = []
    for name in reduction.indices:
        extent = extent_of(statement.domain.range_of(name))
        low, _ = extent.bounds(symbols)
        if extent.variables() - set(symbols) or low is None or low < 1:
            return None
        extents.append(extent)
    return _product(extents, dtype)


def _product(extents: list[Affine], dtype: DType) -> Expr:
    constant = 1
    result: Expr | None = None
    for extent in extents:
        if extent.is_const:
            constant *= extent.const
            continue
        factor = Cast(x=Index(value=extent), dtype=dtype)
        result = factor if result is None else binary("mul", result, factor)
    if result is None:
        return const(constant, dtype)
    return result if constant == 1 else binary("mul", result, const(constant, dtype))


def _split(
    statement: Statement, count: Expr, names: Names, tensors: dict[str, Tensor]
) -> list[Statement]:
    """A sum for the mean and what follows from it alone, and one for what needs the deviations."""
    assert statement.reduction is not None
    reduction = statement.reduction
    dtype = reduction.monoid.dtypes[0]
    s0 = Var(name="s0", dtype=dtype)
    outputs = list(zip(statement.writes, reduction.final))
    early = [(w, f) for w, f in outputs if not _mentions(f, "s1")]
    late = [(w, f) for w, f in outputs if _mentions(f, "s1")]
    place = next((w for w, f in early if f == s0 and tensors[w.tensor].dtype is dtype), None)
    if place is None and late:
        place = _new_mean(statement, names, tensors)
        early.append((place, s0))
    mean_of: dict[str, Expr] = {"s0": binary("div", s0, count), "s2": count}
    out = [
        _sum(
            statement, names.fresh(f"{statement.name}_mean"), statement.elements[0], early, mean_of
        )
    ]
    if late:
        assert place is not None
        mean = Load(tensor=place.tensor, indices=place.indices, dtype=dtype)
        deviation = binary("sub", statement.elements[0], mean)
        values: dict[str, Expr] = {"s0": mean, "s1": s0, "s2": count}
        square = binary("mul", deviation, deviation)
        out.append(_sum(statement, statement.name, square, late, values))
    return out


def _mentions(node: Expr, name: str) -> bool:
    return any(isinstance(n, Var) and n.name == name for n in walk(node))


def _new_mean(statement: Statement, names: Names, tensors: dict[str, Tensor]) -> Write:
    """A temp for the mean alone, over the indices that are not reduced."""
    assert statement.reduction is not None
    kept = [r for r in statement.domain.ranges if r.name not in statement.reduction.indices]
    name = names.fresh(f"{statement.writes[0].tensor}_mean")
    tensors[name] = Tensor(
        name=name,
        shape=tuple(extent_of(r) for r in kept),
        dtype=statement.reduction.monoid.dtypes[0],
        role="temp",
    )
    return Write(tensor=name, indices=tuple(variable(r.name) - r.lower for r in kept))


def _sum(
    statement: Statement,
    name: str,
    element: Expr,
    outputs: list[tuple[Write, Expr]],
    values: dict[str, Expr],
) -> Statement:
    """``statement`` with a plain sum of ``element`` and the final maps of ``outputs``."""
    assert statement.reduction is not None
    reduction = Reduction(
        indices=statement.reduction.indices,
        monoid=sum_of(element.dtype),
        final=tuple(substitute_vars(f, values) for _, f in outputs),
    )
    return replace(
        statement,
        name=name,
        writes=tuple(w for w, _ in outputs),
        elements=(element,),
        reduction=reduction,
    )
