"""Store an array in a ``Layout``: the NumPy side of packed weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nestor.errors import InternalError
from nestor.ir.affine import Affine, FloorDiv, Mod
from nestor.ir.program import Layout

Allocate = Callable[[tuple[int, ...], np.dtype[np.generic]], NDArray[np.generic]]
"""Gives a zeroed, contiguous array of a shape and a type."""


def pack_array(
    array: NDArray[np.generic], layout: Layout, allocate: Allocate = np.zeros
) -> NDArray[np.generic]:
    """Lay ``array`` (logical indices) out physically; cells that nothing maps to are zero.

    Args: array: shape as the tensor's, constant. layout: each physical index is a dimension, a
        dimension divided by a block, or a dimension modulo the same block. allocate: the memory.
    Returns: a contiguous array of the layout's physical shape.
    """
    blocks = [1] * array.ndim
    parts = [_part(p) for p in layout.physical]
    for dim, kind, block in parts:
        if kind != "whole":
            blocks[dim] = block
    axis: dict[tuple[int, str], int] = {}
    for position, (dim, kind, _) in enumerate(parts):
        axis[dim, "inner" if kind == "mod" else "outer"] = position
    order = [
        axis[key]
        for dim in range(array.ndim)
        for key in ((dim, "outer"), (dim, "inner"))
        if key[1] == "outer" or blocks[dim] > 1
    ]
    if sorted(order) != list(range(len(parts))):
        raise InternalError(f"layout {layout} is not a permutation of blocked dimensions")
    packed = allocate(tuple(e.const for e in layout.shape), array.dtype)
    _fill(packed.transpose(order), array, blocks)
    return packed


def _fill(split: NDArray[np.generic], array: NDArray[np.generic], blocks: list[int]) -> None:
    """Copy ``array`` into ``split``, where a blocked dimension is two: full blocks, then tails."""
    pieces: list[list[tuple[slice, tuple[slice, ...], tuple[int, ...]]]] = []
    for extent, block in zip(array.shape, blocks):
        if block == 1:
            pieces.append([(slice(None), (slice(None),), (extent,))])
            continue
        full, rest = divmod(extent, block)
        ways: list[tuple[slice, tuple[slice, ...], tuple[int, ...]]] = [
            (slice(0, full * block), (slice(0, full), slice(None)), (full, block))
        ]
        if rest:
            tail = (slice(full, full + 1), slice(0, rest))
            ways.append((slice(full * block, extent), tail, (1, rest)))
        pieces.append(ways)
    for choice in itertools.product(*pieces):
        source = array[tuple(c[0] for c in choice)]
        target = split[tuple(s for c in choice for s in c[1])]
        _copy(target, source.reshape(tuple(n for c in choice for n in c[2])))


_STAGED_BYTES = 1 << 20
"""From so much on a copy that turns rows into columns goes through a buffer [bytes]."""

_ROWS = 64
_GAP_BYTES = 64


def _copy(target: NDArray[np.generic], source: NDArray[np.generic]) -> None:
    """Copy an array into one with other strides.

    What lies beside each other in the target may lie a power of two apart in the source, where all
    of it shares a set of the cache. Some rows at a time are then copied to where they are not.
    """
    along = _nearest(target)
    if source.nbytes < _STAGED_BYTES or along == _nearest(source):
        target[...] = source
        return
    outer = [a for a in range(source.ndim) if a not in (along, _nearest(source))]
    width = source.shape[_nearest(source)]
    gap = _GAP_BYTES // source.itemsize
    buffer = np.empty((_ROWS, width + gap), source.dtype)[:, :width]
    order = (*outer, along, _nearest(source))
    rows, columns = source.transpose(order), target.transpose(order)
    for place in np.ndindex(*rows.shape[:-2]):
        given, wanted = rows[place], columns[place]
        for first in range(0, len(given), _ROWS):
            part = buffer[: len(given[first : first + _ROWS])]
            part[...] = given[first : first + _ROWS]
            wanted[first : first + _ROWS] = part


def _nearest(array: NDArray[np.generic]) -> int:
    """The dimension along which elements lie nearest to each other."""
    sizes = zip(array.strides, array.shape)
    apart = [abs(stride) if extent > 1 else 1 << 62 for stride, extent in sizes]
    return apart.index(min(apart))


def _part(index: Affine) -> tuple[int, str, int]:
    """(dimension, 'whole' | 'div' | 'mod', block) of one physical index."""
    if index.const == 0 and len(index.terms) == 1 and index.terms[0][1] == 1:
        atom = index.terms[0][0]
        if isinstance(atom, str):
            return int(atom[1:]), "whole", 1
        inner = atom.num
        if inner.const == 0 and len(inner.terms) == 1 and inner.terms[0][1] == 1:
            name = inner.terms[0][0]
            if isinstance(name, str):
                kind = "div" if isinstance(atom, FloorDiv) else "mod"
                assert isinstance(atom, FloorDiv | Mod)
                return int(name[1:]), kind, atom.den
    raise InternalError(f"cannot pack along the physical index {index}")
