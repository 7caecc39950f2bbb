"""Structured nodes → a ``Program``: pointwise statements in the order of the Python code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nestor.frontends.python.conditions import Conjunction, reduce_conjunction
from nestor.frontends.python.scalars import Life, is_written_by
from nestor.frontends.python.tree import Assign, Branch, Loop, Node, assigns, rewrite
from nestor.ir.affine import Affine, Interval, affine
from nestor.ir.expr import Expr, IndexExpr, Load, Var, map_expr
from nestor.ir.program import Domain, IndexRange, Order, Origin, Statement, Tensor, Write
from nestor.ir.type_rules import extreme

MAX_ORIGIN = 60
"""Characters of a source line kept in a statement's origin."""

# ---------------------------------------------------------------------------------- temporaries


@dataclass(frozen=True, slots=True)
class _Cell:
    """Where a scalar lives: a temporary, and one index for each loop that it is expanded over."""

    tensor: Tensor
    indices: tuple[Affine, ...]


def store_scalars(nodes: list[Node], lives: list[Life], names: Mapping[str, str]) -> list[Tensor]:
    """Replace the scalars that are left by temporaries; returns those.

    A temporary has a dimension for each loop around the scalar's life whose index some array is
    written by there (others would cost memory and gain nothing), as far as its extent is known.

    Args: names: the tensor's name for each life.
    """
    cells: dict[str, _Cell] = {}
    for life in lives:
        loops = [loop for loop in life.loops if is_written_by(loop)]
        dims = [(i, e) for loop in loops if (e := _extent(life.loops, loop)) for i in (loop.index,)]
        shape = tuple(extent for _, (_, extent) in dims)
        tensor = Tensor(name=names[life.name], shape=shape, dtype=life.dtype, role="temp")
        indices = tuple(affine(index) - low for index, (low, _) in dims)
        cells[life.name] = _Cell(tensor, indices)

    def load(e: Expr) -> Expr:
        if not isinstance(e, Var):
            return e
        cell = cells[e.name]
        return Load(tensor=cell.tensor.name, indices=cell.indices, dtype=cell.tensor.dtype)

    for node in assigns(nodes):
        rewrite(node, load)
        if node.is_scalar:
            cell = cells[node.target]
            node.target, node.indices = cell.tensor.name, cell.indices
    return [c.tensor for c in cells.values()]


def _extent(around: tuple[Loop, ...], loop: Loop) -> tuple[int, Affine] | None:
    """A constant that is at most the loop's index, and how many cells hold all its values.

    The number of cells is an affine of symbols that is never negative. None if there is none.
    """
    ranges: dict[str, tuple[Affine, Affine]] = {}
    for outer in around:
        if outer is loop:
            break
        low, high = primary_bounds(outer)
        ranges[outer.index] = (low, high - 1)
    lows = [_least(low, ranges) for low in loop.lowers]
    known = [low for low in lows if low is not None]
    if not known:
        return None
    start = min(0, max(known))
    for upper in loop.uppers:
        highest = extreme(upper, ranges, largest=True)
        if highest is None:
            continue
        cells = highest - start
        if any(not isinstance(a, str) for a, _ in cells.terms):
            continue
        # Symbols are never negative, so what lowers the bound may be left out.
        rising = Affine(tuple((a, c) for a, c in cells.terms if c > 0), max(cells.const, 0))
        return start, rising
    return None


def _least(value: Affine, ranges: Mapping[str, tuple[Affine, Affine]]) -> int | None:
    least = extreme(value, ranges, largest=False)
    if least is None or any(c < 0 or not isinstance(a, str) for a, c in least.terms):
        return None
    return least.const


# ---------------------------------------------------------------------------------- statements


def primary_bounds(loop: Loop) -> tuple[Affine, Affine]:
    """The bounds that become the index's range; the others become constraints."""

    def weight(value: Affine) -> tuple[int, int]:
        return len(value.variables()), sum(not isinstance(a, str) for a, _ in value.terms)

    return min(loop.lowers, key=weight), min(loop.uppers, key=weight)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a statement stands: loops around, conditions, order so far."""

    ranges: tuple[IndexRange, ...] = ()
    constraints: Conjunction = ()
    order: Order = ()


def make_statements(nodes: list[Node], shapes: Mapping[str, tuple[Affine, ...]]) -> list[Statement]:
    """One statement for each assignment (one for each case of the conditions around it).

    Args: shapes: of all tensors, for loads whose guard turns out not to be needed.
    """
    out: list[Statement] = []
    _emit(nodes, _Place(), out, shapes, 0)
    return out


def _emit(
    nodes: list[Node],
    place: _Place,
    out: list[Statement],
    shapes: Mapping[str, tuple[Affine, ...]],
    position: int,
) -> int:
    """Append the statements of ``nodes``; returns the next free position."""
    for node in nodes:
        match node:
            case Assign():
                here = replace(place, order=(*place.order, position))
                out.append(_statement(node, here, len(out), shapes))
                position += 1
            case Loop():
                inner = _enter(place, node, position)
                if inner is not None:
                    _emit(node.body, inner, out, shapes, 0)
                    position += 1
            case Branch():
                for cases, block in ((node.condition, node.then), (node.negation, node.otherwise)):
                    for case in cases:
                        merged = reduce_conjunction((*place.constraints, *case))
                        if merged is not None:
                            inside = replace(place, constraints=merged)
                            position = _emit(block, inside, out, shapes, position)
    return position


def _enter(place: _Place, loop: Loop, position: int) -> _Place | None:
    """Inside ``loop``; None if it never runs."""
    low, high = primary_bounds(loop)
    index = affine(loop.index)
    further = [index - c for c in loop.lowers if c != low]
    further += [c - 1 - index for c in loop.uppers if c != high]
    constraints = reduce_conjunction((*place.constraints, *further))
    if constraints is None or ((high - low).is_const and (high - low).const <= 0):
        return None
    return _Place(
        ranges=(*place.ranges, IndexRange(name=loop.index, lower=low, upper=high)),
        constraints=constraints,
        order=(*place.order, position, loop.index),
    )


def _statement(
    node: Assign, place: _Place, number: int, shapes: Mapping[str, tuple[Affine, ...]]
) -> Statement:
    assert node.indices is not None
    ranges = {r.name: (r.lower, r.upper - 1) for r in place.ranges}
    value = map_expr(node.value, lambda e: _drop_guard(e, ranges, shapes))
    is_affine = all(isinstance(i, Affine) for i in node.indices)
    return Statement(
        name=f"S{number}",
        domain=Domain(ranges=place.ranges, constraints=place.constraints),
        order=place.order,
        writes=(Write(tensor=node.target, indices=node.indices),),
        elements=(value,),
        scatter=None if is_affine else "last",
        origin=_origin(node),
    )


def _drop_guard(
    node: Expr,
    ranges: Mapping[str, tuple[Affine, Affine]],
    shapes: Mapping[str, tuple[Affine, ...]],
) -> Expr:
    """A guarded load without its guard, where it is plainly inside its array anyway.

    The value where the guard fails is not used: it is on the other side of a ``Select``.
    """
    if not isinstance(node, Load) or not node.predicate:
        return node
    for index, size in zip(node.indices, shapes[node.tensor]):
        if not _is_inside(index, size, ranges):
            return node
    return Load(tensor=node.tensor, indices=node.indices, dtype=node.dtype)


def _is_inside(index: IndexExpr, size: Affine, ranges: Mapping[str, tuple[Affine, Affine]]) -> bool:
    if not isinstance(index, Affine):
        return False
    low = extreme(index, ranges, largest=False)
    room = extreme(size - 1 - index, ranges, largest=False)
    return low is not None and room is not None and is_never_negative(low, room)


def is_never_negative(*affines: Affine) -> bool:
    """Whether affines of symbols are at least 0, as symbols are."""
    for value in affines:
        ranges: dict[str, Interval] = dict.fromkeys(value.variables(), (0, None))
        low = value.bounds(ranges)[0]
        if low is None or low < 0:
            return False
    return True


def _origin(node: Assign) -> Origin:
    source = node.source
    line = source.line_of(node.at)
    text = source.lines[line - source.first_line].strip()
    if len(text) > MAX_ORIGIN:
        text = text[: MAX_ORIGIN - 1] + "…"
    return Origin(op=text, file=Path(source.file).name, line=line)
