"""Reshapes of symbolic tensors: regroup components, split them, or linearise as the last resort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nestor.frontends.torch.sizes import ONE_SIZE, Size, product, size_of
from nestor.frontends.torch.value import (
    UNIT,
    Dim,
    Value,
    components,
    horner,
    remap,
    unravel,
)
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import const

_ZERO = affine(0)


@dataclass(slots=True)
class _Block:
    """Source components and target dimensions of equal total size."""

    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Match:
    """How one block's source indices follow from its target components.

    Attributes:
        dims: components of each target dimension of the block.
        pieces: for each source component the (target dimension, component) pairs that form it,
            outermost first; None: by linearising the whole block.
    """

    dims: dict[int, list[Affine]]
    pieces: dict[int, list[tuple[int, int]]] | None


def reshape(value: Value, sizes: Sequence[Size]) -> Value | None:
    """View ``value`` with other dimensions of the same elements in row-major order.

    Returns: None when the indices would not be affine; then the value must lie in memory.
    """
    if any(s.is_zero for s in sizes) or value.is_empty():
        return Value(tuple(_dim_of(s) for s in sizes), const(0, value.dtype))
    source = list(components(value.dims))
    blocks = _blocks([size_of(e) for e in source], list(sizes))
    if blocks is None:
        return None
    matches = []
    for block in blocks:
        match = _match_factors(block, source, sizes) or _match_linear(block, source, sizes)
        if match is None:
            return None
        matches.append((block, match))
    dims: list[Dim] = [UNIT] * len(sizes)
    for _, match in matches:
        for j, parts in match.dims.items():
            dims[j] = tuple(parts) or UNIT
    return remap(value, dims, lambda p: _regroup(value, _source_indices(source, dims, matches, p)))


def _dim_of(size: Size) -> Dim:
    extent = size.as_affine()
    if extent is not None:
        return (extent,)
    head = () if size.coefficient == 1 else (affine(size.coefficient),)
    return (*head, *size.factors)


def _blocks(source: list[Size], target: list[Size]) -> list[_Block] | None:
    """Cut both sides at every prefix product that they share; None if the totals differ."""
    ends: dict[Size, int] = {}
    total = ONE_SIZE
    for k, size in enumerate(source):
        total = total * size
        ends[total] = k + 1
    blocks, current = [], _Block()
    total, start = ONE_SIZE, 0
    for j, size in enumerate(target):
        total = total * size
        current.target.append(j)
        end = ends.get(total)
        if end is not None and end >= start and not size.is_one:
            current.source = list(range(start, end))
            blocks.append(current)
            start, current = end, _Block()
    current.source = list(range(start, len(source)))
    if not all(source[k].is_one for k in current.source):
        return None
    if not all(target[j].is_one for j in current.target):
        return None
    return blocks


def _match_factors(block: _Block, source: list[Affine], sizes: Sequence[Size]) -> _Match | None:
    """Match factors of both sides from the outermost, splitting components where they divide."""
    dims: dict[int, list[Affine]] = {j: [] for j in block.target}
    pieces: dict[int, list[tuple[int, int]]] = {k: [] for k in block.source}
    left = [(k, size_of(source[k])) for k in reversed(block.source)]
    right = [(j, sizes[j]) for j in reversed(block.target)]
    left = [(k, s) for k, s in left if not s.is_one]
    right = [(j, s) for j, s in right if not s.is_one]
    while left and right:
        (k, a), (j, b) = left.pop(), right.pop()
        if a == b:
            piece = a
        elif (rest := a.divide(b)) is not None:
            piece = b
            left.append((k, rest))
        elif (rest := b.divide(a)) is not None:
            piece = a
            right.append((j, rest))
        else:
            return None
        extent = piece.as_affine()
        if extent is None:
            return None
        pieces[k].append((j, len(dims[j])))
        dims[j].append(extent)
    if left or right:
        return None
    for parts in pieces.values():
        if any(size_of(dims[j][c]).constant is None for j, c in parts[1:]):
            return None
    return _Match(dims, pieces)


def _match_linear(block: _Block, source: list[Affine], sizes: Sequence[Size]) -> _Match | None:
    """Go through the row-major index; inner extents of both sides must be constants."""
    dims: dict[int, list[Affine]] = {}
    for j in block.target:
        extent = sizes[j].as_affine()
        if extent is None:
            return None
        dims[j] = [] if sizes[j].is_one else [extent]
    inner = [size_of(source[k]) for k in block.source[1:]]
    inner += [size_of(e) for j in block.target for e in dims[j]][1:]
    return None if any(s.constant is None for s in inner) else _Match(dims, None)


def _source_indices(
    source: list[Affine],
    dims: Sequence[Dim],
    matches: list[tuple[_Block, _Match]],
    where: tuple[tuple[Affine, ...], ...],
) -> list[Affine]:
    """The source components' indices at the target index ``where``."""
    out = [_ZERO] * len(source)
    for block, match in matches:
        if match.pieces is None:
            extents = [e for j in block.target for e in dims[j]]
            index = horner(extents, [i for j in block.target for i in where[j]])
            parts = None if index is None else unravel([source[k] for k in block.source], index)
            if parts is None:
                raise ValueError("a linearised reshape with symbolic inner extents")
            for k, part in zip(block.source, parts):
                out[k] = part
            continue
        for k, found in match.pieces.items():
            index = horner([dims[j][c] for j, c in found], [where[j][c] for j, c in found])
            if index is None:
                raise ValueError("a split component with symbolic inner extents")
            out[k] = index
    return out


def _regroup(value: Value, flat: list[Affine]) -> list[list[Affine]]:
    out, k = [], 0
    for dim in value.dims:
        out.append(flat[k : k + len(dim)])
        k += len(dim)
    return out


def merge_dims(value: Value, first: int, count: int) -> Value:
    """Merge ``count`` adjacent dimensions into one product dimension; always possible."""
    merged = tuple(
        e for d in value.dims[first : first + count] for e in d if size_of(e) != ONE_SIZE
    )
    dims = (*value.dims[:first], merged or UNIT, *value.dims[first + count :])
    old = value.dims[first : first + count]

    def where(p: tuple[tuple[Affine, ...], ...]) -> list[Sequence[Affine]]:
        parts = iter(p[first] if merged else ())
        groups = [
            tuple(_ZERO if size_of(e) == ONE_SIZE else next(parts) for e in dim) for dim in old
        ]
        return [*p[:first], *groups, *p[first + 1 :]]

    return remap(value, dims, where)


def split_dim(value: Value, dim: int, sizes: Sequence[Size]) -> Value | None:
    """Split dimension ``dim`` into dimensions of ``sizes``."""
    before = [value.size(d) for d in range(dim)]
    after = [value.size(d) for d in range(dim + 1, value.rank)]
    return reshape(value, [*before, *sizes, *after])


def total_size(value: Value) -> Size:
    """The number of elements."""
    return product(components(value.dims))
