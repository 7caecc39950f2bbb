"""Small facts about a statement that the scheduling rules ask for: derived, never stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nestor.ir.affine import Affine, FloorDiv, variable
from nestor.ir.expr import loads
from nestor.ir.program import Statement, Tensor
from nestor.passes.contraction import Contraction
from nestor.passes.strides import access_strides, typical

MIN_TILE_EXTENT = 4
"""Along fewer elements there is no tile that is worth transposing."""

SYMBOLIC_REUSE = 64
"""Extent assumed for a symbolic row or column index of a contraction; it is always tiled."""


def few_rows(cores: int) -> int:
    """Below so many rows that statements share, a target of ``cores`` cores has too few of them to
    run in parallel."""
    return max(8, cores)


def loop_parts(loop: str, statement: str) -> list[str]:
    """``S.i.o.i`` → ``[S, i, o, i]``; statement names may hold dots."""
    return [statement, *loop[len(statement) + 1 :].split(".")]


def without_sequential(c: Contraction, sequential: list[str]) -> Contraction | None:
    """``c`` without the sequential indices in rows and spread; None if it needs one elsewhere."""
    if c.vector in sequential or any(n in sequential for n in c.reduced):
        return None
    kept = [(n, stride) for n, stride in zip(c.rows, c.row_strides) if n not in sequential]
    spread = [(n, stride) for n, stride in zip(c.spread, c.spread_strides) if n not in sequential]
    return replace(
        c,
        rows=tuple(n for n, _ in kept),
        row_strides=tuple(stride for _, stride in kept),
        spread=tuple(n for n, _ in spread),
        spread_strides=tuple(stride for _, stride in spread),
    )


def in_reduction_order(s: Statement, names: list[str]) -> list[str]:
    """``names`` with the reduced ones in the order in which a scan must combine them."""
    r = s.reduction
    if r is None or (r.monoid.commutative and not r.scan):
        return names
    reduced = iter([n for n in r.indices if n in names])
    return [next(reduced) if n in r.indices else n for n in names]


def bounding_indices(s: Statement) -> set[str]:
    """Indices that the ranges of others mention."""
    used: set[str] = set()
    for r in s.domain.ranges:
        used |= r.lower.variables() | r.upper.variables()
    return used & set(s.domain.names)


def in_scope(s: Statement, order: list[str]) -> tuple[str, ...]:
    """``order`` with loops moved outward until each stands inside those that bound it."""
    needs = {r.name: r.lower.variables() | r.upper.variables() for r in s.domain.ranges}
    if not any(needs.values()):
        return tuple(order)
    own = [loop for loop in order if loop.startswith(f"{s.name}.")]  # shared ones are outermost
    index = {loop: loop_parts(loop, s.name)[1] if loop in own else "" for loop in order}
    left, placed = list(order), list[str]()
    while left:
        open_names = {index[loop] for loop in left}
        ready = (k for k in left if not needs.get(index[k], frozenset()) & open_names - {index[k]})
        loop = next(ready, left[0])
        left.remove(loop)
        placed.append(loop)
    return tuple(placed)


def free_indices(s: Statement) -> list[str]:
    reduced = reduced_indices(s)
    return [n for n in s.domain.names if n not in reduced]


def reduced_indices(s: Statement) -> set[str]:
    return set(s.reduction.indices) if s.reduction else set()


def extent_of(s: Statement, name: str) -> int:
    r = s.domain.range_of(name)
    return max(1, typical(r.upper - r.lower))


def reuse_extent(s: Statement, name: str) -> int:
    """Extent for choosing a register tile: a symbolic one is taken to be long."""
    return extent_of(s, name) if is_constant(s, name) else SYMBOLIC_REUSE


def constant_extent(s: Statement, name: str) -> int | None:
    """Extent of an index; None if it is symbolic or depends on other indices."""
    r = s.domain.range_of(name)
    extent = r.upper - r.lower
    return extent.const if extent.is_const else None


def is_constant(s: Statement, name: str) -> bool:
    r = s.domain.range_of(name)
    return (r.upper - r.lower).is_const


def widest_bytes(s: Statement) -> int:
    """Bytes of the widest type that the statement loads or computes, at least 4.

    Indices that a load reads from another tensor do not count: its elements decide.
    """
    widths = [4, *(e.dtype.bytes for e in s.elements)]
    found = [x for e in s.elements for x in loads(e)]
    nested = [i for x in found for a in x.indices if not isinstance(a, Affine) for i in loads(a)]
    widths += [x.dtype.bytes for x in found if not any(x is i for i in nested)]
    return max(widths)


def magnitude(stride: int | None) -> int:
    return 1 << 40 if stride is None else abs(stride)


def block_of(s: Statement, index: str) -> int | None:
    """The size of the blocks of ``index`` in which the domain's constraints count, if they do:
    64 for ``64*(i//64) ≤ n``. A tile of that size stands or falls as a whole."""
    for c in s.domain.constraints:
        for atom, _ in c.terms:
            if isinstance(atom, FloorDiv) and atom.num == variable(index):
                return atom.den
    return None


def transposed_pair(tensors: Mapping[str, Tensor], s: Statement) -> tuple[str, str] | None:
    """(the index that ``s`` writes along, the one that it reads along), if these are two and its
    tiles may be transposed in registers."""
    if s.reduction is not None or s.scatter is not None or len(s.writes) != 1:
        return None
    if bounding_indices(s) or tensors[s.writes[0].tensor].dtype.bytes not in (4, 8):
        return None
    names = s.domain.names
    write = s.writes[0]
    written = access_strides(tensors[write.tensor], write.indices, names)
    reads = [
        access_strides(tensors[x.tensor], x.indices, names) for e in s.elements for x in loads(e)
    ]
    across = [n for n in names if written[n] == 1]
    if len(across) != 1 or not reads or any(None in r.values() for r in reads):
        return None
    for along in names:
        if (
            along != across[0]
            and min(extent_of(s, along), extent_of(s, across[0])) >= MIN_TILE_EXTENT
            and is_constant(s, along)
            and is_constant(s, across[0])
            and magnitude(written[along]) > 1
            and any(r[along] == 1 for r in reads)
            and all(r[along] in (0, 1) for r in reads)
            and not any(r[across[0]] == 1 for r in reads)
        ):
            return across[0], along
    return None
