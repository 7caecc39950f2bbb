"""Views that change indices but no element: permute, expand, slice, select, …"""

from __future__ import annotations

from collections.abc import Sequence

from nestor.frontends.torch.value import (
    UNIT,
    Dim,
    Point,
    Value,
    flatten_dim,
    remap,
    unravel,
)
from nestor.ir.affine import Affine, affine

_ZERO = affine(0)


def normal_dim(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dim + rank if dim < 0 else dim


def permute(value: Value, order: Sequence[int]) -> Value:
    """Dimension ``k`` of the result is dimension ``order[k]`` of ``value``."""
    order = [normal_dim(d, value.rank) for d in order]
    inverse = [order.index(d) for d in range(value.rank)]
    dims = tuple(value.dims[d] for d in order)
    return remap(value, dims, lambda p: [p[k] for k in inverse])


def transpose(value: Value, a: int, b: int) -> Value:
    """Swap two dimensions."""
    order = list(range(value.rank))
    if value.rank:
        a, b = normal_dim(a, value.rank), normal_dim(b, value.rank)
        order[a], order[b] = order[b], order[a]
    return permute(value, order)


def expand(value: Value, dims: Sequence[Dim]) -> Value:
    """Broadcast to ``dims``; dimensions that are not broadcast keep their own components."""
    offset = len(dims) - value.rank
    new: list[Dim] = list(dims)
    for k, old in enumerate(value.dims):
        if old != UNIT:
            new[offset + k] = old

    def where(p: Point) -> Point:
        return tuple((_ZERO,) if old == UNIT else p[offset + k] for k, old in enumerate(value.dims))

    return remap(value, new, where)


def unsqueeze(value: Value, dim: int) -> Value:
    """Insert a dimension of size 1."""
    dim = normal_dim(dim, value.rank + 1)
    dims = (*value.dims[:dim], UNIT, *value.dims[dim:])
    return remap(value, dims, lambda p: (*p[:dim], *p[dim + 1 :]))


def squeeze(value: Value, which: Sequence[int]) -> Value:
    """Drop those dimensions of ``which`` that have size 1."""
    gone = {d for d in (normal_dim(d, value.rank) for d in which) if value.dims[d] == UNIT}
    dims = [d for k, d in enumerate(value.dims) if k not in gone]

    def where(p: Point) -> Point:
        rest = iter(p)
        return tuple((_ZERO,) if k in gone else next(rest) for k in range(value.rank))

    return remap(value, dims, where)


def narrow(value: Value, dim: int, start: Affine, step: int, length: Affine) -> Value | None:
    """Elements ``start + step * i`` of a dimension, 0 ≤ i < length; None if not affine."""
    if start == _ZERO and step == 1 and value.size(dim).as_affine() == length:
        return value
    flat = flatten_dim(value, dim)
    if flat is None:
        return None
    dims = (*flat.dims[:dim], (length,), *flat.dims[dim + 1 :])
    return remap(flat, dims, lambda p: (*p[:dim], (start + p[dim][0] * step,), *p[dim + 1 :]))


def select(value: Value, dim: int, index: Affine) -> Value | None:
    """Drop dimension ``dim`` at ``index``; None if its components would not be affine."""
    parts = unravel(value.dims[dim], index)
    if parts is None:
        return None
    found = parts
    dims = (*value.dims[:dim], *value.dims[dim + 1 :])
    return remap(value, dims, lambda p: (*p[:dim], found, *p[dim:]))


def flip(value: Value, which: Sequence[int]) -> Value:
    """Reverse dimensions; works component by component."""
    reversed_dims = {normal_dim(d, value.rank) for d in which}

    def where(p: Point) -> Point:
        return tuple(
            tuple(e - 1 - i for e, i in zip(value.dims[k], group)) if k in reversed_dims else group
            for k, group in enumerate(p)
        )

    return remap(value, value.dims, where)
