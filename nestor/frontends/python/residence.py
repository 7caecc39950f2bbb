"""Scalars that are computed only to be stored: they live in the array element from the start.

Rewrite: ``w = b[i]; for j: w -= A[i, j] * y[j]; y[i] = w`` →
    ``y[i] = b[i]; for j: y[i] -= A[i, j] * y[j]``, without a temporary.
Legal when: the life of the scalar begins and ends in one block, its last mention is the store, and
    nothing between reads or writes that element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nestor.frontends.python.program import is_never_negative, primary_bounds
from nestor.frontends.python.scalars import Life, is_written_by, mentions_scalar
from nestor.frontends.python.tree import Assign, Branch, Loop, Node, read_exprs, rewrite
from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, IndexExpr, Load, Var, distinct_nodes
from nestor.ir.type_rules import extreme
from nestor.ir.types import DType

Ranges = dict[str, tuple[Affine, Affine]]


def settle_scalars(nodes: list[Node], lives: list[Life], dtypes: Mapping[str, DType]) -> list[Life]:
    """Rewrite ``nodes``; the lives that are left. ``dtypes``: of the arrays."""
    return [life for life in lives if not _settle(nodes, life, dtypes)]


def _settle(nodes: list[Node], life: Life, dtypes: Mapping[str, DType]) -> bool:
    found = _block_of(nodes, life.name, {})
    if found is None:
        return False
    block, ranges = found
    at = [k for k, node in enumerate(block) if mentions_scalar(node, life.name)]
    first, last = block[at[0]], block[at[-1]]
    if not isinstance(first, Assign) or first.target != life.name:
        return False
    if not isinstance(last, Assign) or last.indices is None or at[0] == at[-1]:
        return False
    if dtypes[last.target] is not life.dtype or not all(
        isinstance(i, Affine) for i in last.indices
    ):
        return False
    element = Load(tensor=last.target, indices=last.indices, dtype=life.dtype)
    if not _names_every_loop(life, element):
        return False
    region = block[at[0] + 1 : at[-1]]
    if not _is_untouched(region, element, ranges) or not _reads_apart([last], element, ranges):
        return False
    _replace(block[at[0] : at[-1] + 1], life.name, element)
    if first.value == element:
        del block[at[0]]
    return True


def _block_of(nodes: list[Node], scalar: str, ranges: Ranges) -> tuple[list[Node], Ranges] | None:
    """The innermost block with all mentions of ``scalar``, and the loops around it."""
    holders = [node for node in nodes if mentions_scalar(node, scalar)]
    if not holders:
        return None
    if len(holders) > 1 or isinstance(holders[0], Assign):
        return nodes, ranges
    holder = holders[0]
    if isinstance(holder, Loop):
        return _block_of(holder.body, scalar, _inside(holder, ranges))
    sides = [s for s in (holder.then, holder.otherwise) if any(
        mentions_scalar(n, scalar) for n in s
    )]  # fmt: skip
    return _block_of(sides[0], scalar, ranges) if len(sides) == 1 else None


def _inside(loop: Loop, ranges: Ranges) -> Ranges:
    low, high = primary_bounds(loop)
    return {**ranges, loop.index: (low, high - 1)}


def _names_every_loop(life: Life, element: Load) -> bool:
    """A temporary would tell the iterations of these loops apart; the element has to as well."""
    used = frozenset[str]().union(
        *(i.variables() for i in element.indices if isinstance(i, Affine))
    )
    return all(loop.index in used for loop in life.loops if is_written_by(loop))


def _walk(nodes: Sequence[Node], ranges: Ranges) -> Iterator[tuple[Assign, Ranges]]:
    for node in nodes:
        match node:
            case Assign():
                yield node, ranges
            case Loop():
                yield from _walk(node.body, _inside(node, ranges))
            case Branch():
                yield from _walk(node.then, ranges)
                yield from _walk(node.otherwise, ranges)


def _is_untouched(region: Sequence[Node], element: Load, ranges: Ranges) -> bool:
    for node, around in _walk(region, ranges):
        if node.target == element.tensor and node.indices is not None:
            if not _differ(node.indices, element.indices, around):
                return False
    return _reads_apart(region, element, ranges)


def _reads_apart(region: Sequence[Node], element: Load, ranges: Ranges) -> bool:
    return all(
        _differ(load.indices, element.indices, around)
        for node, around in _walk(region, ranges)
        for e in read_exprs(node)
        for load in distinct_nodes(e)
        if isinstance(load, Load) and load.tensor == element.tensor
    )


def _differ(a: tuple[IndexExpr, ...], b: tuple[IndexExpr, ...], ranges: Ranges) -> bool:
    """Whether some dimension's indices are surely different."""
    for x, y in zip(a, b):
        if not isinstance(x, Affine) or not isinstance(y, Affine):
            continue
        for distance in (x - y - 1, y - x - 1):
            least = extreme(distance, ranges, largest=False)
            if least is not None and is_never_negative(least):
                return True
    return False


def _replace(nodes: Sequence[Node], scalar: str, element: Load) -> None:
    def change(e: Expr) -> Expr:
        return element if isinstance(e, Var) and e.name == scalar else e

    for node, _ in _walk(nodes, {}):
        rewrite(node, change)
        if node.is_scalar and node.target == scalar:
            node.target, node.indices = element.tensor, element.indices
