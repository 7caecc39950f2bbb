"""Put a producer's element in place of a load of what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, Interval, variable
from nestor.ir.expr import (
    Const,
    Expr,
    Index,
    IndexExpr,
    Load,
    Select,
    loads,
    map_affines,
    map_children,
    map_expr,
    walk,
)
from nestor.ir.program import Domain
from nestor.ir.types import DType
from nestor.passes.analysis import zero_of
from nestor.passes.index_maps import extremes, invert_map, is_at_least, is_within
from nestor.passes.rewriting import condition_of
from nestor.passes.simplify_expr import Shapes, simplify_expr


@dataclass(frozen=True, slots=True)
class Piece:
    """What one statement puts into a tensor: ``tensor[indices(i)] = element(i)`` for i in domain.

    ``box``: inclusive corners of what it writes; None where it writes the whole tensor or the
    corners are unknown (then it must be the only piece).
    """

    statement: str
    domain: Domain
    indices: tuple[Affine, ...]
    element: Expr
    box: tuple[tuple[Affine, Affine], ...] | None


def write_box(
    domain: Domain, indices: tuple[Affine, ...]
) -> tuple[tuple[Affine, Affine], ...] | None:
    """Inclusive corners of the elements that a dense box-shaped write covers; None if not dense."""
    corners: list[tuple[Affine, Affine]] = []
    if domain.constraints:
        return None
    for index in indices:
        if any(not isinstance(a, str) for a, _ in index.terms):
            return None
        inside = [c for a, c in index.terms if a in domain.names]
        if len(inside) > 1 or any(abs(c) != 1 for c in inside):
            return None
        pair = extremes(index, domain)
        if pair is None:
            return None
        corners.append(pair)
    return tuple(corners)


def inline_load(
    load: Load,
    pieces: list[Piece],
    domain: Domain,
    ranges: Mapping[str, Interval],
    shapes: Shapes,
) -> Expr | None:
    """The value of ``load`` in terms of what the piece's element reads; None if not possible.

    Args:
        load: a load of the tensor that ``pieces`` write.
        pieces: every statement that writes the tensor.
        domain, ranges: the reader's indices, and their bounds and those of symbols.
    Where the load's predicate fails, the result is its ``other`` and nothing is read.
    """
    piece = _piece_of(load, pieces, domain, ranges)
    if piece is None:
        return None
    values, gathers = _split_gathers(load, piece)
    if values is None:
        return None
    mapping = invert_map(piece.indices, piece.domain, values)
    if mapping is None:
        return None
    element: Expr | None
    element = map_affines(piece.element, lambda a: a.substitute(mapping))
    if gathers:
        extents = {f"?{d}": e for d, e in enumerate(shapes[load.tensor])}
        element = _place_gathers(element, gathers, extents, shapes)
        if element is None:
            return None
    if load.predicate:
        assert load.other is not None
        element = guard_value(element, load.predicate, load.other, ranges, shapes)
    return simplify_expr(element, ranges, shapes)


def _piece_of(
    load: Load, pieces: list[Piece], domain: Domain, ranges: Mapping[str, Interval]
) -> Piece | None:
    """The only piece, or the one that provably holds all that the load reads."""
    if len(pieces) == 1:
        return pieces[0]
    if load.predicate:
        return None
    indices = [i for i in load.indices if isinstance(i, Affine)]
    if len(indices) != len(load.indices):
        return None
    found: Piece | None = None
    for piece in pieces:
        if piece.box is None:
            return None
        corners = list(zip(indices, piece.box))
        if all(is_within(i, low, high, domain, ranges) for i, (low, high) in corners):
            found = piece
        elif not any(
            is_at_least(low - i, domain, ranges, 1) or is_at_least(i - high, domain, ranges, 1)
            for i, (low, high) in corners
        ):
            return None
    return found


def _split_gathers(load: Load, piece: Piece) -> tuple[list[Affine] | None, dict[str, Expr]]:
    """Affine values per dimension; a gather becomes a fresh variable ``?d`` with its expression.

    A gather is possible only where the producer wrote that dimension at a plain index of its own.
    """
    values: list[Affine] = []
    gathers: dict[str, Expr] = {}
    for d, (index, written) in enumerate(zip(load.indices, piece.indices)):
        if isinstance(index, Affine):
            values.append(index)
            continue
        if len(written.terms) != 1 or written.const or written.terms[0][1] != 1:
            return None, {}
        name = f"?{d}"
        gathers[name] = index
        values.append(variable(name))
    return values, gathers


def _place_gathers(
    element: Expr,
    gathers: Mapping[str, Expr],
    extents: Mapping[str, Affine],
    shapes: Shapes,
) -> Expr | None:
    """Put gathers for their variables. Each may only be a load's index by itself, in a dimension of
    the extent that it indexed before: then the run-time check of its range says the same."""
    used: set[str] = set()
    failed = False

    def visit(node: Expr) -> Expr:
        nonlocal failed
        if isinstance(node, Index) and node.value.variables() & set(gathers):
            failed = True
        if not isinstance(node, Load):
            return node
        failed = failed or any(p.variables() & set(gathers) for p in node.predicate)
        indices: list[IndexExpr] = []
        for d, index in enumerate(node.indices):
            name = _gathered(index, gathers)
            if name is None:
                indices.append(index)
                continue
            if index != variable(name) or shapes[node.tensor][d] != extents[name]:
                failed = True
            used.add(name)
            indices.append(gathers[name])
        return replace(node, indices=tuple(indices))

    element = map_expr(element, visit)
    return None if failed or used != set(gathers) else element


def _gathered(index: IndexExpr, gathers: Mapping[str, Expr]) -> str | None:
    if not isinstance(index, Affine):
        return None
    return next((name for name in index.variables() if name in gathers), None)


def guard_value(
    element: Expr,
    predicate: tuple[Affine, ...],
    other: Expr,
    ranges: Mapping[str, Interval],
    shapes: Shapes,
) -> Expr:
    """``element`` where ``predicate`` holds, else ``other``; nothing outside it is read.

    A load without a predicate of its own, or with the same ``other``, takes the predicate in. A
    larger element whose value is already ``other`` when its loads give 0 (``relu`` under zero
    padding) needs no ``Select``.
    """
    if isinstance(element, Load) and (element.other is None or element.other == other):
        if not any(True for i in element.indices if not isinstance(i, Affine)):
            return replace(element, predicate=(*element.predicate, *predicate), other=other)
    if not any(True for n in walk(element) if isinstance(n, (Load, Index))):
        condition = condition_of(predicate)
        return element if condition is None else Select(condition=condition, a=element, b=other)
    guarded = _guard_loads(element, predicate)
    if _value_of_zeros(element, ranges, shapes) == other:
        return guarded
    condition = condition_of(predicate)
    assert condition is not None
    return Select(condition=condition, a=guarded, b=other)


def _guard_loads(node: Expr, predicate: tuple[Affine, ...]) -> Expr:
    """Add the predicate to every load; those without ``other`` give 0 outside."""

    def visit(n: Expr) -> Expr:
        if not isinstance(n, Load):
            return n
        other = zero_of(n.dtype) if n.other is None else n.other
        return replace(n, predicate=(*n.predicate, *predicate), other=other)

    return map_expr(node, visit)


def _value_of_zeros(element: Expr, ranges: Mapping[str, Interval], shapes: Shapes) -> Const | None:
    """What ``element`` gives when every load gives 0, if that is a constant and decidable."""
    if any(x.predicate for x in loads(element)) or any(isinstance(n, Index) for n in walk(element)):
        return None

    def zeros(n: Expr) -> Expr:
        if isinstance(n, Load):
            return zero_of(n.dtype)
        return map_children(n, zeros)

    value = simplify_expr(zeros(element), ranges, shapes)
    return value if isinstance(value, Const) else None


def has_gather(element: Expr) -> bool:
    """Whether a load's index is not affine."""
    return any(not isinstance(i, Affine) for x in loads(element) for i in x.indices)


def is_view(element: Expr, dtype: DType | None = None) -> bool:
    """A single load, perhaps predicated with a constant ``other``, with affine indices: no work."""
    if not isinstance(element, Load) or has_gather(element):
        return False
    return element.other is None or isinstance(element.other, Const)
