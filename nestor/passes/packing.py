"""Store an array in a ``Layout``: the NumPy side of packed weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nestor.errors import InternalError
from nestor.ir.affine import Affine, FloorDiv, Mod
from nestor.ir.program import Layout


def pack_array(array: NDArray[np.generic], layout: Layout) -> NDArray[np.generic]:
    """Lay ``array`` (logical indices) out physically; cells that nothing maps to are zero.

    Args: array: shape as the tensor's, constant. layout: each physical index is a dimension, a
        dimension divided by a block, or a dimension modulo the same block.
    Returns: a contiguous array of the layout's physical shape.
    """
    blocks = [1] * array.ndim
    parts = [_part(p) for p in layout.physical]
    for dim, kind, block in parts:
        if kind != "whole":
            blocks[dim] = block
    padding = [(0, -extent % block) for extent, block in zip(array.shape, blocks)]
    if any(p for _, p in padding):
        array = np.pad(array, padding)
    split: list[int] = []
    axis: dict[tuple[int, str], int] = {}
    for dim, (extent, block) in enumerate(zip(array.shape, blocks)):
        axis[dim, "outer"] = len(split)
        if block == 1:
            split.append(extent)
        else:
            axis[dim, "inner"] = len(split) + 1
            split += [extent // block, block]
    order = [axis[dim, "inner" if kind == "mod" else "outer"] for dim, kind, _ in parts]
    if sorted(order) != list(range(len(split))):
        raise InternalError(f"layout {layout} is not a permutation of blocked dimensions")
    return np.ascontiguousarray(array.reshape(split).transpose(order))


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
