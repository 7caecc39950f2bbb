"""Loops of a copy into panels: whole panels in parallel, vectors along what memory has together.

``relayout_operands`` asks for such copies; the layout of the tensor that is written says how wide a
panel is.
"""

from __future__ import annotations

from nestor.ir.affine import Mod, variable
from nestor.ir.expr import Load
from nestor.ir.program import Statement, Tensor
from nestor.ir.schedule import Parallel, Reorder, Tile, Unroll, Vectorize
from nestor.passes.schedule_rules import Rules
from nestor.passes.statement_facts import extent_of
from nestor.passes.strides import access_strides


def panel_width(tensor: Tensor) -> tuple[int, int] | None:
    """(dimension, block) if ``tensor`` is stored in panels: blocks of one dimension innermost."""
    if tensor.layout is None or not tensor.layout.physical:
        return None
    last = tensor.layout.physical[-1]
    if last.const or len(last.terms) != 1 or last.terms[0][1] != 1:
        return None
    atom = last.terms[0][0]
    if not isinstance(atom, Mod):
        return None
    names = [f"d{d}" for d in range(len(tensor.shape))]
    dims = [d for d, name in enumerate(names) if atom.num == variable(name)]
    return (dims[0], atom.den) if dims else None


def panel_loops(rules: Rules, s: Statement) -> bool:
    """Schedule ``s`` if it is a copy into panels; says whether it did.

    Where the source has the panel's own dimension together in memory, vectors run along it.
    Where it has another one, that one is cut into vectors, and the tile is transposed in registers.
    """
    found = _panel_index(rules, s)
    if found is None:
        return False
    index, block = found
    load = s.elements[0]
    assert isinstance(load, Load)
    lanes = rules.unit.lanes(max(load.dtype.bytes, 4))
    strides = access_strides(rules.tensors[load.tensor], load.indices, s.domain.names)
    others = [n for n in s.domain.names if n != index]
    along = next((n for n in others if strides[n] == 1), None)
    transposed = strides[index] != 1 and along is not None and extent_of(s, along) > lanes
    panel, name = f"{s.name}.{index}", s.name
    rules.out.append(Tile(loop=panel, size=block))
    inner = [f"{panel}.i"]
    if block > lanes:
        rules.out.append(Tile(loop=inner[0], size=lanes))
        inner = [f"{panel}.i.o", f"{panel}.i.i"]
    outer = [f"{panel}.o", *(f"{name}.{n}" for n in others)]
    if transposed:
        rules.out.append(Tile(loop=f"{name}.{along}", size=lanes))
        outer[outer.index(f"{name}.{along}")] = f"{name}.{along}.o"
        inner.append(f"{name}.{along}.i")
    rules.out.append(Reorder(statement=name, loops=(*outer, *inner)))
    rules.out += [Parallel(loop=loop) for loop in outer]
    rules.out += [Unroll(loop=loop) for loop in inner[:-1]]
    rules.out.append(Vectorize(loop=inner[-1]))
    return True


def _panel_index(rules: Rules, s: Statement) -> tuple[str, int] | None:
    """The index that runs along the panels that ``s`` copies into, and their width."""
    if s.reduction is not None or len(s.writes) != 1 or not isinstance(s.elements[0], Load):
        return None
    width = panel_width(rules.tensors[s.writes[0].tensor])
    if width is None or s.scatter is not None:
        return None
    place = s.writes[0].indices[width[0]]
    names = [n for n in s.domain.names if place == variable(n)]
    return (names[0], width[1]) if names else None
