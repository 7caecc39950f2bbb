"""Sum the lanes of a vector apart: ``for k.o: vector k.i: s += x`` → ``p = 0; for k.o: vector k.i:
p[k.i] += x; s += p[0] + p[1] + …``.

The meaning of ``SplitReduction`` on a nest that was scanned from a schedule tree. Where whole
register tiles run, the partial states live around the loop ``k.o``, in registers; elsewhere (masked
tiles) around the vector loop alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nestor.errors import UserError
from nestor.ir.affine import ONE, ZERO, Affine, affine, variable
from nestor.ir.expr import Load
from nestor.ir.loopnest import Alloc, Block, Buffer, Compute, Guard, Loop, Node, Scope, Store
from nestor.ir.program import Reduction, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """Which vector loop of a statement sums in lanes: ``lane``, within ``outer``."""

    statement: Statement
    lane: str
    outer: str
    size: int


def sum_lanes(node: Node, lanes: Lanes) -> Node:
    """``node`` with partial states for the updates of ``lanes.statement``.

    Raises: ``UserError`` if the lanes do not belong to one result.
    """
    match node:
        case Compute():
            return node
        case Block():
            return Block(body=tuple(_sum_runs(node.body, lanes)))
        case Alloc():
            return replace(node, body=sum_lanes(node.body, lanes))
        case Guard():
            orelse = sum_lanes(node.orelse, lanes) if node.orelse is not None else None
            return replace(node, body=sum_lanes(node.body, lanes), orelse=orelse)
        case Loop():
            if node.index == lanes.outer and node.kind == "serial":
                tile, update = _whole_tile(node.body, lanes)
                if update is not None:
                    return _around(node, tile, update, lanes)
            if node.index == lanes.lane and node.kind == "vector":
                update = _update(node.body, lanes)
                return node if update is None else _around(node, [], update, lanes)
            return replace(node, body=sum_lanes(node.body, lanes))


def _sum_runs(nodes: Sequence[Node], lanes: Lanes) -> Iterator[Node]:
    """Whole tiles and the masked ones after them share their partial states, where they are rows
    of one element: it is then added up once."""
    for is_run, group in itertools.groupby(nodes, lambda n: _is_row(n, lanes)):
        run = list(group)
        if not is_run or len(run) == 1:
            yield from (sum_lanes(n, lanes) for n in run)
            continue
        updates = [_row_update(n, lanes) for n in run]
        first, last = run[0], run[-1]
        assert isinstance(first, Loop) and isinstance(last, Loop) and updates[0] is not None
        if any(u is None or u.stores != updates[0].stores for u in updates):
            yield from (sum_lanes(n, lanes) for n in run)
            continue
        bounds = replace(first, upper=last.upper)
        yield _around(bounds, [], updates[0], lanes, run)


def _is_row(node: Node, lanes: Lanes) -> bool:
    return _row_update(node, lanes) is not None


def _row_update(node: Node, lanes: Lanes) -> Compute | None:
    """The update of a loop over vectors with nothing in between."""
    if not isinstance(node, Loop) or node.index != lanes.outer or node.kind != "serial":
        return None
    inside = node.body
    if isinstance(inside, Loop) and inside.index == lanes.lane and inside.kind == "vector":
        return _update(inside.body, lanes)
    return None


def _whole_tile(node: Node, lanes: Lanes) -> tuple[list[Loop], Compute | None]:
    """The unrolled loops of a register tile and its update; no update if this is none."""
    tile: list[Loop] = []
    while isinstance(node, Loop) and node.kind == "unroll":
        tile.append(node)
        node = node.body
    if isinstance(node, Loop) and node.index == lanes.lane and isinstance(node.body, Compute):
        return tile, _update(node.body, lanes)
    return tile, None


def _update(node: Node, lanes: Lanes) -> Compute | None:
    """The update under guards."""
    while isinstance(node, Guard) and node.orelse is None:
        node = node.body
    is_update = isinstance(node, Compute) and node.phase == "update"
    if is_update and node.statement == lanes.statement.name:  # type: ignore[union-attr]
        return node  # type: ignore[return-value]
    return None


def _around(
    loop: Loop, tile: list[Loop], update: Compute, lanes: Lanes, run: Sequence[Node] = ()
) -> Node:
    """``loop`` (or the loops of ``run``, between its bounds) with its partial states started before
    and merged after."""
    reduction = lanes.statement.reduction
    assert isinstance(reduction, Reduction)
    scope: Scope = "register"
    shape = (*(t.upper[0] for t in tile), affine(lanes.size))
    buffers = tuple(
        Buffer(
            name=f"{lanes.statement.name}.{'tile' if tile else 'lanes'}{c}",
            dtype=dtype,
            shape=shape,
            scope=scope,
            holds=f"{lanes.statement.name}#{c}",
        )
        for c, dtype in enumerate(reduction.monoid.dtypes)
    )
    cell = (*(variable(t.index) for t in tile), variable(lanes.lane))
    parts = tuple(Store(target=b.name, indices=cell) for b in buffers)
    instance = tuple(x for x in update.instance if x[0] not in reduction.indices)
    if any(lanes.lane in value.variables() for _, value in instance):
        raise UserError(
            f"SplitReduction: the lanes of '{lanes.lane}' belong to different results of "
            f"'{lanes.statement.name}'; split a loop over one reduced index"
        )
    init = Compute(
        statement=update.statement,
        phase="init",
        instance=instance,
        stores=parts,
        values=reduction.monoid.identity,
    )
    merge = Compute(
        statement=update.statement,
        phase="merge",
        instance=instance,
        stores=update.stores,
        values=tuple(
            Load(tensor=p.target, indices=p.indices, dtype=b.dtype) for p, b in zip(parts, buffers)
        ),
        monoid=update.monoid,
    )
    body = Block(
        body=(
            _nest(tile, lanes, init),
            *(_replace_stores(n, parts) for n in run or (loop,)),
            _nest(tile, lanes, merge),
        )
    )
    node: Node = Alloc(buffers=buffers, body=body)
    if loop.index == lanes.outer:
        # Without an iteration there may be no such element to add to.
        runs = tuple(u - lo - ONE for u in loop.upper for lo in loop.lower)
        node = Guard(conditions=tuple(dict.fromkeys(runs)), body=node)
    return node


def _nest(tile: list[Loop], lanes: Lanes, compute: Compute) -> Node:
    bounds: tuple[tuple[Affine, ...], tuple[Affine, ...]] = ((ZERO,), (affine(lanes.size),))
    node: Node = Loop(
        index=lanes.lane, lower=bounds[0], upper=bounds[1], kind="vector", body=compute
    )
    for t in reversed(tile):
        node = replace(t, body=node)
    return node


def _replace_stores(node: Node, stores: tuple[Store, ...]) -> Node:
    """The loop with its one update going to ``stores``."""
    match node:
        case Compute():
            return replace(node, stores=stores)
        case Loop() | Guard():
            return replace(node, body=_replace_stores(node.body, stores))
        case _:
            raise TypeError(f"a {type(node).__name__} in a register tile")
