"""How an access moves through memory when one index advances: a derived analysis for heuristics.

Symbols get a typical value (``TYPICAL_SYMBOL``): strides guide profit, never legality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nestor.ir.affine import Affine, FloorDiv, Mod, variable
from nestor.ir.expr import IndexExpr
from nestor.ir.program import Tensor

TYPICAL_SYMBOL = 8
"""Value assumed for a shape symbol where a heuristic needs a number."""


def typical(value: Affine) -> int:
    """``value`` with every variable at ``TYPICAL_SYMBOL``."""
    if value.is_const:
        return value.const
    return int(value.evaluate(dict.fromkeys(value.variables(), TYPICAL_SYMBOL)))


def physical_indices(tensor: Tensor, indices: Sequence[Affine]) -> tuple[Affine, ...]:
    """Logical indices through the tensor's layout (row-major: themselves)."""
    if tensor.layout is None:
        return tuple(indices)
    mapping = {f"d{d}": index for d, index in enumerate(indices)}
    return tuple(p.substitute(mapping) for p in tensor.layout.physical)


def element_strides(tensor: Tensor) -> tuple[int, ...]:
    """Row-major strides of the physical shape [elements], symbols at their typical value."""
    shape = tensor.shape if tensor.layout is None else tensor.layout.shape
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(1, typical(extent))
    return tuple(reversed(strides))


def plain_indices(indices: Sequence[IndexExpr]) -> tuple[list[Affine], set[str]]:
    """An access with 0 in place of what is gathered, and the indices that decide that."""
    from nestor.ir.expr import Index as IndexValue
    from nestor.ir.expr import Load, walk

    irregular: set[str] = set()
    plain: list[Affine] = []
    for index in indices:
        if isinstance(index, Affine):
            plain.append(index)
            continue
        plain.append(Affine())
        for node in walk(index):
            if isinstance(node, IndexValue):
                irregular |= node.value.variables()
            elif isinstance(node, Load):
                for i in node.indices:
                    irregular |= i.variables() if isinstance(i, Affine) else set()
    return plain, irregular


def access_strides(
    tensor: Tensor, indices: Sequence[IndexExpr], names: Sequence[str]
) -> dict[str, int | None]:
    """Stride [elements] of an access along each index of ``names``; 0 where it does not move.

    None: the access moves irregularly along the index (``//``, ``%``, or a gather). In a blocked
    layout it is the stride inside a block: tiles are blocks.
    """
    plain, irregular = plain_indices(indices)
    out: dict[str, int | None] = {name: None if name in irregular else 0 for name in names}
    for index, stride in zip(_inside_blocks(tensor, plain), element_strides(tensor)):
        for atom, c in index.terms:
            if isinstance(atom, str):
                known = out.get(atom, 0)
                if atom in out and known is not None:
                    out[atom] = known + c * stride
            else:
                for name in atom.num.variables():
                    if name in out:
                        out[name] = None
    return out


def _inside_blocks(tensor: Tensor, indices: Sequence[Affine]) -> tuple[Affine, ...]:
    """Physical indices without the blocks of a layout: ``d // b`` is 0, ``d % b`` is ``d``."""
    if tensor.layout is None:
        return tuple(indices)
    local: list[Affine] = []
    for p in tensor.layout.physical:
        atom = p.terms[0][0] if len(p.terms) == 1 and p.terms[0][1] == 1 and not p.const else None
        if isinstance(atom, FloorDiv):
            local.append(Affine())
        else:
            local.append(atom.num if isinstance(atom, Mod) else p)
    mapping = {f"d{d}": index for d, index in enumerate(indices)}
    return tuple(p.substitute(mapping) for p in local)


def extents(domain_ranges: Mapping[str, Affine]) -> dict[str, int]:
    """Typical extents of domain ranges."""
    return {name: typical(extent) for name, extent in domain_ranges.items()}


__all__ = [
    "TYPICAL_SYMBOL",
    "access_strides",
    "element_strides",
    "extents",
    "physical_indices",
    "typical",
    "variable",
]
