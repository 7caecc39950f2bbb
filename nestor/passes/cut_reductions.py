"""Long reductions with few results, in parts that cores take at once and that are combined."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Load, Var
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
from nestor.passes.analysis import contraction_roles, is_functional
from nestor.passes.context import PassContext
from nestor.passes.rewriting import (
    Names,
    in_order,
    map_statement_affines,
    names_of,
    renumber,
    replace_statements,
)
from nestor.passes.statement_facts import few_rows

_NAME = "cut_reductions"

_PART_TERMS = 1 << 15
"""Fewest terms of a part, over all results: some microseconds, several times what it costs to hand
work to threads."""

_LEAST_DEPTH = 64
"""Fewest terms of each result in a part, so that the partial results weigh little."""

_TILE_ROWS, _TILE_BYTES = 8, 256
"""About what a register tile of a contraction holds: rows, and bytes of each row."""

_FEW_TILE_ROWS = 4
"""Tiles of fewer rows are twice as wide."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """``parts`` parts of ``size`` values of ``index``, and ``rest`` values that are left."""

    index: str
    parts: int
    size: int
    rest: int

    @property
    def count(self) -> int:
        """Partial results of each result."""
        return self.parts + (self.rest > 0)


def cut_reductions(program: Program, ctx: PassContext) -> Program:
    """Cut reductions into parts where their results alone do not feed the target's cores.

    Rewrite: ``R[f] = final(⊕_k e[f,k])`` → ``P[b,f] = ⊕_u e[f, b*size + u]``, then
        ``R[f] = final(⊕_b P[b,f])``; what ``size`` does not divide is one more part.
    Legal when: the monoid commutes. It reassociates, as the cores that the target has demand: what
        a compiled model computes does not depend on the number of threads that run it.
    """
    cores = getattr(ctx.target, "cores", 1)
    if cores < 2:
        return program
    return cut_where(program, ctx, lambda s, work: _parts_for_cores(s, work, cores))


@dataclass(frozen=True, slots=True)
class Work:
    """What a reduction does: its ``results``, the ``terms`` of each, and all ``extents``."""

    results: int
    terms: int
    extents: dict[str, int]


def cut_where(
    program: Program, ctx: PassContext, parts_of: Callable[[Statement, Work], int]
) -> Program:
    """Cut reductions into as many parts as ``parts_of`` says; 1 leaves one whole."""
    names = names_of(program)
    tensors = {t.name: t for t in program.tensors}
    out: list[AnyStatement] = []
    for statement in in_order(program.statements):
        cut = _cut(statement, parts_of) if isinstance(statement, Statement) else None
        if cut is None or not isinstance(statement, Statement):
            out.append(statement)
            continue
        out += _split(statement, cut, names, tensors)
        ctx.changed(_NAME, statement.name, f"{cut.count} parts along '{cut.index}'")
    if len(out) == len(program.statements):
        return program
    return replace_statements(program, renumber(out), tensors.values())


def _cut(s: Statement, parts_of: Callable[[Statement, Work], int]) -> _Cut | None:
    """Where to cut ``s``; None if it is to stay whole."""
    r = s.reduction
    if r is None or r.scan or r.into or r.state_indices or not r.monoid.commutative:
        return None
    if not is_functional(s) or s.domain.constraints:
        return None
    if not all(isinstance(i, Affine) for w in s.writes for i in w.indices):
        return None
    if not all(x.upper.is_const and x.lower == affine(0) for x in s.domain.ranges):
        return None
    extents = {x.name: x.upper.const for x in s.domain.ranges}
    results = math.prod(e for n, e in extents.items() if n not in r.indices)
    terms = math.prod(extents[n] for n in r.indices)
    parts = parts_of(s, Work(results, terms, extents))
    return _along(r.indices, extents, parts) if parts > 1 else None


def _parts_for_cores(s: Statement, work: Work, cores: int) -> int:
    """Parts that give every core of a CPU something to do."""
    shares = _shares(s, work.extents, work.results, cores)
    parts = -(-cores // max(1, shares))
    return min(parts, work.results * work.terms // _PART_TERMS, work.terms // _LEAST_DEPTH)


def _shares(s: Statement, extents: dict[str, int], results: int, cores: int) -> int:
    """About how many equal shares of the work threads can take as it is."""
    assert s.reduction is not None
    if contraction_roles(s) is None:
        # Fewer results are not spread over threads; of more, each may be a row.
        return 1 if results < few_rows(cores) else cores
    free = [n for n in s.domain.names if n not in s.reduction.indices]
    columns = extents[free[-1]] if free else 1
    rows = results // max(1, columns)
    width = _TILE_BYTES * (2 if rows < _FEW_TILE_ROWS else 1)
    width = max(1, width // s.reduction.monoid.dtypes[0].bytes)
    return -(-columns // width) * -(-rows // _TILE_ROWS)


def _along(reduced: tuple[str, ...], extents: dict[str, int], parts: int) -> _Cut | None:
    """The outermost reduced index that has ``parts`` parts, in equal ones if possible."""
    index = next((n for n in reduced if extents[n] >= parts), None)
    if index is None:
        return None
    extent = extents[index]
    for count in range(parts, 2 * parts):
        if extent % count == 0:
            return _Cut(index, count, extent // count, 0)
    return _Cut(index, parts, extent // parts, extent % parts)


def _split(s: Statement, cut: _Cut, names: Names, tensors: dict[str, Tensor]) -> list[AnyStatement]:
    """The statements of the parts, and the one that combines them."""
    r = s.reduction
    assert r is not None
    free = [x for x in s.domain.ranges if x.name not in r.indices]
    made = tuple(
        Tensor(
            name=names.fresh(f"{s.writes[0].tensor}_part"),
            shape=(affine(cut.count), *(x.upper for x in free)),
            dtype=dtype,
            role="temp",
        )
        for dtype in r.monoid.dtypes
    )
    tensors.update({t.name: t for t in made})
    b = Names(list(s.domain.names)).fresh("b")
    parts = [_part(s, cut, names.fresh(f"{s.name}_part"), b, made)]
    if cut.rest:
        parts.append(_part(s, cut, names.fresh(f"{s.name}_rest"), None, made))
    indices = (variable(b), *(variable(x.name) for x in free))
    whole = replace(
        s,
        domain=Domain(ranges=(*free, IndexRange(name=b, lower=affine(0), upper=affine(cut.count)))),
        elements=tuple(Load(tensor=t.name, indices=indices, dtype=t.dtype) for t in made),
        reduction=replace(r, indices=(b,)),
    )
    return [*parts, whole]


def _part(s: Statement, cut: _Cut, name: str, b: str | None, made: tuple[Tensor, ...]) -> Statement:
    """The parts of ``cut.size`` values, one for each ``b``; without ``b`` the one that is left."""
    r = s.reduction
    assert r is not None
    first = affine(cut.parts) if b is None else variable(b)
    size = cut.rest if b is None else cut.size
    place = first * cut.size + variable(cut.index)

    def move(a: Affine) -> Affine:
        return a.substitute({cut.index: place})

    free = tuple(x for x in s.domain.ranges if x.name not in r.indices)
    reduced = tuple(
        replace(x, upper=affine(size)) if x.name == cut.index else x
        for x in s.domain.ranges
        if x.name in r.indices
    )
    own = () if b is None else (IndexRange(name=b, lower=affine(0), upper=affine(cut.parts)),)
    state = tuple(Var(name=f"s{k}", dtype=t.dtype) for k, t in enumerate(made))
    indices = (first, *(variable(x.name) for x in free))
    # Ordering: elements move before the writes are replaced, whose places hold ``b`` already.
    moved = map_statement_affines(s, move)
    return replace(
        moved,
        name=name,
        domain=Domain(ranges=(*own, *free, *reduced)),
        writes=tuple(Write(tensor=t.name, indices=indices) for t in made),
        reduction=Reduction(indices=r.indices, monoid=r.monoid, final=state),
    )
