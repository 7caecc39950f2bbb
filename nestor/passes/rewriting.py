"""Small tools shared by Program → Program passes: ranges, positions, renaming, rebuilding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from nestor.errors import InternalError
from nestor.ir.affine import Affine, AffineLike, Interval, variable
from nestor.ir.expr import Binary, Const, Expr, Index, IndexExpr, Load, map_affines, map_expr
from nestor.ir.names import Names as Names
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Program,
    Reduction,
    Statement,
    Tensor,
    Write,
)
from nestor.ir.types import DType


def index_ranges(domain: Domain, symbols: Mapping[str, Interval]) -> dict[str, Interval]:
    """Inclusive bounds of the symbols and of each index of ``domain``."""
    ranges: dict[str, Interval] = dict(symbols)
    for r in domain.ranges:
        lo, _ = r.lower.bounds(ranges)
        _, hi = r.upper.bounds(ranges)
        ranges[r.name] = (lo, None if hi is None else hi - 1)
    return ranges


def extent_of(r: IndexRange) -> Affine:
    """Number of values of an index (where its bounds hold other indices, still over those)."""
    return r.upper - r.lower


def first_position(statement: AnyStatement) -> int:
    """Place among the top-level statements; those of one ``seq`` region share theirs."""
    return int(statement.order[0])


def is_sequential(statement: AnyStatement) -> bool:
    """Whether the statement stands in a ``seq`` region."""
    return len(statement.order) > 1


def in_order(statements: Iterable[AnyStatement]) -> list[AnyStatement]:
    """Statements sorted by the constants of their order."""
    return sorted(statements, key=lambda s: tuple(p for p in s.order if isinstance(p, int)))


def alias_roots(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each tensor the one whose bytes it names (itself without ``alias_of``)."""
    roots: dict[str, str] = {}
    for name, tensor in tensors.items():
        while tensor.alias_of is not None:
            tensor = tensors[tensor.alias_of]
        roots[name] = tensor.name
    return roots


def map_index(index: IndexExpr, f: Callable[[Affine], Affine]) -> IndexExpr:
    """Apply ``f`` to the affines of one index, a gather's too."""
    return f(index) if isinstance(index, Affine) else map_affines(index, f)


def map_write(write: Write, f: Callable[[Affine], Affine]) -> Write:
    """Apply ``f`` to the affines of a write's indices; the same object when nothing changed."""
    indices = tuple(map_index(i, f) for i in write.indices)
    return write if indices == write.indices else replace(write, indices=indices)


def map_expressions(statement: Statement, f: Callable[[Expr], Expr]) -> Statement:
    """Apply ``f`` to elements, finals and gather indices; the same object when nothing changed."""
    elements = tuple(f(e) for e in statement.elements)
    writes = []
    for write in statement.writes:
        indices = tuple(i if isinstance(i, Affine) else f(i) for i in write.indices)
        same = all(a is b for a, b in zip(indices, write.indices))
        writes.append(write if same else replace(write, indices=indices))
    reduction: Reduction | None = statement.reduction
    if reduction is not None:
        final = tuple(f(e) for e in reduction.final)
        if any(a is not b for a, b in zip(final, reduction.final)):
            reduction = replace(reduction, final=final)
    if (
        reduction is statement.reduction
        and all(a is b for a, b in zip(elements, statement.elements))
        and all(a is b for a, b in zip(writes, statement.writes))
    ):
        return statement
    return replace(statement, elements=elements, writes=tuple(writes), reduction=reduction)


def map_statement_affines(statement: Statement, f: Callable[[Affine], Affine]) -> Statement:
    """Apply ``f`` to every affine in elements, finals and writes (not to the domain)."""
    statement = map_expressions(statement, lambda e: map_affines(e, f))
    writes = tuple(map_write(w, f) for w in statement.writes)
    if all(a is b for a, b in zip(writes, statement.writes)):
        return statement
    return replace(statement, writes=writes)


def rename_indices(statement: Statement, names: Mapping[str, str]) -> Statement:
    """Rename domain indices everywhere in a statement, its order too."""
    mapping: dict[str, AffineLike] = {old: variable(new) for old, new in names.items()}

    def f(a: Affine) -> Affine:
        return a.substitute(mapping)

    ranges = tuple(
        IndexRange(name=names.get(r.name, r.name), lower=f(r.lower), upper=f(r.upper))
        for r in statement.domain.ranges
    )
    reduction = statement.reduction
    if reduction is not None:
        components = reduction.state_indices
        reduction = replace(
            reduction,
            indices=tuple(names.get(n, n) for n in reduction.indices),
            state_indices=None
            if components is None
            else tuple(
                None if c is None else tuple(names.get(n, n) for n in c) for c in components
            ),
        )
    renamed = replace(
        statement,
        domain=Domain(ranges=ranges, constraints=tuple(f(c) for c in statement.domain.constraints)),
        reduction=reduction,
        order=tuple(names.get(p, p) if isinstance(p, str) else p for p in statement.order),
    )
    return map_statement_affines(renamed, f)


def rename_loads(statement: Statement, names: Mapping[str, str]) -> Statement:
    """Read other tensors of the same shape: ``Load(old) → Load(new)``."""

    def visit(node: Expr) -> Expr:
        if isinstance(node, Load) and node.tensor in names:
            return replace(node, tensor=names[node.tensor])
        return node

    return map_expressions(statement, lambda e: map_expr(e, visit))


def condition_of(predicate: Iterable[Affine]) -> Expr | None:
    """A predicate as a bool expression; None for the empty conjunction."""
    result: Expr | None = None
    zero = Const(value=0, dtype=DType.i64)
    for constraint in predicate:
        term = Binary(op="ge", a=Index(value=constraint), b=zero)
        result = term if result is None else Binary(op="and", a=result, b=term)
    return result


def replace_statements(
    program: Program,
    statements: Iterable[AnyStatement],
    tensors: Iterable[Tensor] | None = None,
) -> Program:
    """``program`` with other statements (renumbered only where positions clash) and tensors."""
    new = tuple(statements)
    kept = program.tensors if tensors is None else tuple(tensors)
    if kept == program.tensors and len(new) == len(program.statements):
        if all(a is b for a, b in zip(new, program.statements)):
            return program
    return replace(program, statements=new, tensors=kept)


def renumber(statements: Iterable[AnyStatement]) -> list[AnyStatement]:
    """Give statements, in the order they come, top-level positions 0, 1, …

    The statements of a ``seq`` region keep one position. What stands between them, such as the
    expression of weights that a pass took out of one, runs before the region.
    Raises: ``InternalError`` if it needs what the region computes.
    """
    groups: list[list[AnyStatement]] = []
    region_of: dict[int, list[AnyStatement]] = {}
    for statement in statements:
        region = region_of.get(first_position(statement)) if is_sequential(statement) else None
        if region is None:
            groups.append([statement])
            if is_sequential(statement):
                region_of[first_position(statement)] = groups[-1]
            continue
        if region is not groups[-1]:
            at = next(n for n, g in enumerate(groups) if g is region)
            between = groups[at + 1 :]
            _check_independent([s for g in between for s in g], region)
            groups[at:] = [*between, region]
        region.append(statement)
    return [
        s if s.order[0] == position else replace(s, order=(position, *s.order[1:]))
        for position, group in enumerate(groups)
        for s in group
    ]


def _check_independent(moved: list[AnyStatement], region: list[AnyStatement]) -> None:
    read, written = touched(moved)
    region_read, region_written = touched(region)
    if shared := (read & region_written) | (written & (region_read | region_written)):
        names = " and ".join(s.name for s in moved)
        raise InternalError(
            f"{names} stand among statements that run step by step, and share "
            f"{', '.join(sorted(shared))} with them"
        )


def touched(statements: list[AnyStatement]) -> tuple[set[str], set[str]]:
    """Tensors that are read, and those that are written."""
    read: set[str] = set()
    written: set[str] = set()
    for s in statements:
        if isinstance(s, Statement):
            read |= {x.tensor for x in s.loads}
            written |= {w.tensor for w in s.writes}
        else:
            read |= set(s.inputs)
            written |= set(s.outputs)
    return read, written


def names_of(program: Program) -> Names:
    """Names in use by tensors and statements."""
    return Names([t.name for t in program.tensors] + [s.name for s in program.statements])


def same_volume(a: Iterable[Affine], b: Iterable[Affine]) -> bool:
    """Whether two boxes provably hold the same number of points, symbols included."""
    return _volume_key(a) == _volume_key(b)


def _volume_key(extents: Iterable[Affine]) -> tuple[int, tuple[str, ...]]:
    constant, symbolic = 1, []
    for extent in extents:
        if extent.is_const:
            constant *= extent.const
            continue
        common = _content(extent)
        constant *= common
        symbolic.append(
            str(Affine(tuple((a, c // common) for a, c in extent.terms), extent.const // common))
        )
    return constant, tuple(sorted(symbolic))


def _content(a: Affine) -> int:
    return math.gcd(abs(a.const), *(abs(c) for _, c in a.terms)) or 1
