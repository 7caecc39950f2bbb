"""Write the loop nest that a ``ScheduleState`` describes: one recursive walk over shared loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from nestor.errors import UserError
from nestor.ir.affine import ONE, ZERO, Affine, Interval, affine, variable
from nestor.ir.expr import Expr, Load, map_expr, substitute_vars
from nestor.ir.expr import Index as IndexValue
from nestor.ir.loopnest import (
    Alloc,
    Block,
    Buffer,
    Compute,
    Guard,
    Loop,
    LoopNest,
    Node,
    Phase,
    Store,
)
from nestor.ir.program import Reduction
from nestor.passes.nest import LoopInfo, ScheduleState, StatementState, nest_tensors
from nestor.passes.nest_constraints import Bound, Constraints
from nestor.passes.temp_buffers import TempBuffer, place_temps

MAX_TAILS = 16
"""Largest unrolled tile whose symbolic tail is written once for each extent: code grows with the
square of the tile."""


@dataclass(frozen=True, slots=True)
class Item:
    """A phase of a statement with the loops that are still to be opened around it."""

    user: StatementState
    phase: Phase | str
    loops: tuple[str, ...]
    accumulator: tuple[Buffer, ...] = ()
    partial: tuple[Buffer, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What is known on the way down: loop values, and the inner extents of tiles entered."""

    path: tuple[str, ...] = ()
    values: tuple[tuple[str, Affine], ...] = ()
    inner: tuple[tuple[str, Affine], ...] = ()
    held: frozenset[tuple[str, Affine]] = frozenset()
    """Constraints of statements that loop bounds or guards around ensure."""

    def enter(self, loop: str, value: Affine | None, inner: tuple[str, Affine] | None) -> Context:
        """The context inside ``loop``; ``value`` is set where a tail fixes the loop's index."""
        values = self.values if value is None else (*self.values, (loop, value))
        inner_extents = self.inner if inner is None else (*self.inner, inner)
        return Context((*self.path, loop), values, inner_extents, self.held)

    def inner_extent(self, parent: str) -> Affine | None:
        """Extent of the inner half of tile ``parent``, once its outer half was entered."""
        return next((e for p, e in reversed(self.inner) if p == parent), None)


def build_nest(state: ScheduleState) -> LoopNest:
    """The nest that ``state`` describes. Raises: ``UserError`` where it cannot be written."""
    return _Builder(state).build()


class _Builder:
    def __init__(self, state: ScheduleState):
        self.state = state
        self.symbol_ranges = state.kernel.symbol_ranges()
        self.ranges: dict[str, Interval] = dict(self.symbol_ranges)
        for name, info in state.loops.items():
            if not info.tiled:
                upper = self.extent(info, Context()).bounds(self.ranges)[1]
                self.ranges[name] = (0, None if upper is None else max(0, upper - 1))
        self.temps = place_temps(state, self.ranges)
        self.constraints = Constraints(self.ranges, frozenset(self.symbol_ranges))

    def build(self) -> LoopNest:
        items = []
        for user in self.state.statements.values():
            items.append(Item(user, self._first_phase(user), tuple(user.loops)))
        kernel = self.state.kernel
        return LoopNest(
            name=kernel.name,
            symbols=kernel.symbols,
            tensors=nest_tensors(self.state),
            body=_block(self.generate(items, Context())),
        )

    def _first_phase(self, user: StatementState) -> str:
        """Updates go straight to their target where a reduction scatters, or where it adds to
        its target and an accumulator would have a symbolic size."""
        reduction = user.statement.reduction
        if reduction is None:
            return "point"
        if _scatters(user):
            return "update"
        first = next((k for k, n in enumerate(user.loops) if n in user.reduced), len(user.loops))
        is_symbolic = any(self.ranges[n][1] is None for n in self._kept(user, user.loops[first:]))
        return "update" if reduction.into and is_symbolic else "reduce"

    def generate(self, items: Sequence[Item], ctx: Context) -> list[Node]:
        """Nodes for ``items``, in order; neighbours that open the same loop share it."""
        nodes: list[Node] = []
        for _, group in groupby(enumerate(items), key=_run_key):
            run = [item for _, item in group]
            nodes += self.run(run, ctx) if run[0].loops else [self.leaf(run[0], ctx)]
        buffers = self._temps_to_allocate(items, ctx)
        return [Alloc(buffers=buffers, body=_block(nodes))] if buffers else nodes

    def _temps_to_allocate(self, items: Sequence[Item], ctx: Context) -> tuple[Buffer, ...]:
        names = {i.user.statement.name for i in items if i.phase in ("reduce", "point", "update")}
        return tuple(
            t.buffer for t in self.temps.values() if t.path == ctx.path and t.writer in names
        )

    def run(self, run: list[Item], ctx: Context) -> list[Node]:
        """One shared loop, with accumulators around it where reductions open."""
        loop = run[0].loops[0]
        before: list[Item] = []
        inside: list[Item] = []
        after: list[Item] = []
        buffers: list[Buffer] = []
        for item in run:
            rest = item.loops[1:]
            if item.phase != "reduce" or loop not in item.user.reduced:
                inside.append(replace(item, loops=rest))
                continue
            opened = self.open_reduction(item)
            buffers += [*opened.accumulator, *opened.partial]
            b, i, a = _phases(opened, self._kept(item.user, rest), self._lanes(item.user, rest))
            before, inside, after = before + b, inside + i, after + a
        core = self.loop(loop, inside, ctx)
        if not buffers:
            return core
        nodes = self.generate(before, ctx) + core + self.generate(after, ctx)
        return [Alloc(buffers=tuple(buffers), body=_block(nodes))]

    def inside(self, loop: str, items: list[Item], ctx: Context) -> list[Node]:
        """The body of ``loop``, where all items ask for the same conditions under one guard."""
        conditions, ctx = self.constraints.guards(items, ctx)
        nodes = self.blocks(loop, items, ctx)
        return [Guard(conditions=conditions, body=_block(nodes))] if conditions else nodes

    def blocks(self, loop: str, items: list[Item], ctx: Context) -> list[Node]:
        """The body of ``loop``; where it sums in blocks, each update has a partial state there."""
        if not self.state.loops[loop].blocks:
            return self.generate(items, ctx)
        blocks: list[Item] = []
        buffers: list[Buffer] = []
        for item in items:
            if item.phase != "update" or loop not in item.user.reduced:
                blocks.append(item)
                continue
            kept = self._kept(item.user, item.loops)
            if item.partial or self._lanes(item.user, item.loops):
                raise UserError(
                    f"statement '{item.user.statement.name}': a reduction is summed in blocks or "
                    "in lanes, not both"
                )
            partial = self._state_buffers(item.user, _reduction(item.user), kept, "part")
            buffers += partial
            blocks.append(replace(item, phase="init", loops=kept, partial=partial))
            blocks.append(replace(item, partial=partial))
            blocks.append(replace(item, phase="merge", loops=kept, partial=partial))
        body = _block(self.generate(blocks, ctx))
        return [Alloc(buffers=tuple(buffers), body=body)] if buffers else [body]

    def open_reduction(self, item: Item) -> Item:
        """Make the accumulators of a reduction whose first reduced loop opens here."""
        user, rest = item.user, item.loops[1:]
        reduction = _reduction(user)
        if any(self.state.loops[n].lanes for n in user.loops if n not in item.loops):
            raise UserError(
                f"statement '{user.statement.name}': the lanes of a split reduction lie outside "
                f"its reduced loop '{item.loops[0]}'"
            )
        kept, lanes = self._kept(user, rest), self._lanes(user, rest)
        accumulator = self._state_buffers(user, reduction, kept, "acc")
        partial = self._state_buffers(user, reduction, kept + lanes, "part") if lanes else ()
        return replace(item, loops=rest, accumulator=accumulator, partial=partial)

    def _state_buffers(
        self, user: StatementState, reduction: Reduction, loops: tuple[str, ...], tag: str
    ) -> tuple[Buffer, ...]:
        shape = tuple(self._static_extent(name, user) for name in loops)
        name = user.statement.name
        return tuple(
            Buffer(
                name=f"{name}.{tag}{c}",
                dtype=dtype,
                shape=shape,
                scope="register" if user.scope == "register" else "local",
                holds=f"{name}#{c}",
            )
            for c, dtype in enumerate(reduction.monoid.dtypes)
        )

    def _static_extent(self, loop: str, user: StatementState) -> Affine:
        high = self.ranges[loop][1]
        if high is None:
            raise UserError(
                f"statement '{user.statement.name}': its accumulator would have the symbolic size "
                f"of loop '{loop}'; move that loop outside the reduced ones"
            )
        return affine(high + 1)

    def _kept(self, user: StatementState, loops: Iterable[str]) -> tuple[str, ...]:
        return tuple(n for n in loops if n not in user.reduced and not self.state.loops[n].lanes)

    def _lanes(self, user: StatementState, loops: Iterable[str]) -> tuple[str, ...]:
        return tuple(n for n in loops if n not in user.reduced and self.state.loops[n].lanes)

    # Loops

    def extent(self, info: LoopInfo, ctx: Context) -> Affine:
        """Number of iterations of a loop (virtual ones too) in this context."""
        if info.parent is None:
            assert info.extent is not None
            return info.extent.substitute(dict(ctx.values))
        parent = self.state.loops[info.parent]
        if info.half == "o":
            return (self.extent(parent, ctx) + (info.size - 1)) // info.size
        return ctx.inner_extent(info.parent) or affine(info.size)

    def loop(self, name: str, items: list[Item], ctx: Context) -> list[Node]:
        """Open a loop: the outer half of a tile also decides how its tail runs."""
        info = self.state.loops[name]
        if info.half != "o" or info.parent is None:
            return self._plain_loop(info, self.extent(info, ctx), items, ctx, None)
        total = self.extent(self.state.loops[info.parent], ctx)
        full, rest = total // info.size, total % info.size
        whole = (info.parent, affine(info.size))
        if rest == ZERO:
            return self._plain_loop(info, full, items, ctx, whole)
        if f"{info.parent}.i" in ctx.path:
            return self._guarded_loop(info, total, items, ctx)
        if info.predicated:
            count = (total + (info.size - 1)) // info.size
            return self._plain_loop(info, count, items, ctx, whole)
        if full == ZERO:
            return self._tail(info, ZERO, rest, items, ctx)
        tail = self._tail(info, full, rest, items, ctx)
        if info.kind in ("parallel", "grid"):
            main = self.inside(name, items, ctx.enter(name, None, whole))
            choice = Guard(
                conditions=(full - 1 - variable(name),), body=_block(main), orelse=_block(tail)
            )
            return [_loop(name, (total + (info.size - 1)) // info.size, info.kind, choice)]
        return self._plain_loop(info, full, items, ctx, whole) + tail

    def _tail(
        self, info: LoopInfo, at: Affine, rest: Affine, items: list[Item], ctx: Context
    ) -> list[Node]:
        """The last tile, of ``rest`` iterations, at index ``at`` of its outer half.

        An unrolled inner half of symbolic extent is written once for each extent it may have, up to
        ``MAX_TAILS``, so that the accumulators of the one reduction inside stay in registers; a
        decision tree chooses.
        """
        assert info.parent is not None
        inner = self.state.loops[f"{info.parent}.i"]
        reductions = sum(item.user.statement.reduction is not None for item in items)
        few = info.size <= MAX_TAILS and reductions == 1
        if rest.is_const or inner.kind != "unroll" or not few:
            return self.inside(info.name, items, ctx.enter(info.name, at, (info.parent, rest)))

        def choose(low: int, high: int) -> list[Node]:
            """Nodes for an extent from ``low`` to ``high``, inclusive."""
            if low == high:
                extent = (info.parent or "", affine(low))
                return self.inside(info.name, items, ctx.enter(info.name, at, extent))
            middle = (low + high + 1) // 2
            less, more = choose(low, middle - 1), choose(middle, high)
            return [Guard(conditions=(rest - middle,), body=_block(more), orelse=_block(less))]

        nodes = choose(1, info.size - 1)
        if at != ZERO and info.kind in ("parallel", "grid"):  # entered only where there is a tail
            return nodes
        return [Guard(conditions=(rest - 1,), body=_block(nodes))]

    def _guarded_loop(
        self, info: LoopInfo, total: Affine, items: list[Item], ctx: Context
    ) -> list[Node]:
        """The outer half inside the inner one: no tail can be split off, so test each index."""
        index = variable(info.name) * info.size + variable(f"{info.parent}.i")
        inner = self.inside(info.name, items, ctx.enter(info.name, None, None))
        guarded = Guard(conditions=(total - 1 - index,), body=_block(inner))
        count = (total + (info.size - 1)) // info.size
        kind = info.kind if count.is_const or info.kind == "parallel" else "serial"
        return [_loop(info.name, count, kind, guarded)]

    def _plain_loop(
        self,
        info: LoopInfo,
        count: Affine,
        items: list[Item],
        ctx: Context,
        inner: tuple[str, Affine] | None,
    ) -> list[Node]:
        if count == ONE:
            return self.inside(info.name, items, ctx.enter(info.name, ZERO, inner))
        if count.is_const and count.const <= 0:
            return []
        kind = info.kind
        conditions: tuple[Affine, ...] = ()
        if not count.is_const and kind in ("vector", "unroll"):
            if kind == "vector" and info.half == "i":
                conditions = (count - 1 - variable(info.name),)
                count = affine(info.size)
            else:
                kind = "serial"
        elif info.predicated and info.half == "i":
            conditions = self._inside_range(info, ctx)
        bounds: tuple[Bound, ...] = ()
        if kind in ("serial", "parallel"):
            bounds, ctx = self.constraints.bounds(info.name, items, ctx)
        nodes = _block(self.inside(info.name, items, ctx.enter(info.name, None, inner)))
        if conditions:
            nodes = Guard(conditions=conditions, body=nodes)
        return [_loop(info.name, count, kind, nodes, bounds)]

    def _inside_range(self, inner: LoopInfo, ctx: Context) -> tuple[Affine, ...]:
        """That the index which ``inner`` and its outer half make is in the range that was tiled."""
        assert inner.parent is not None
        total = self.extent(self.state.loops[inner.parent], ctx)
        if f"{inner.parent}.o" not in ctx.path or total % inner.size == ZERO:
            return ()
        index = variable(f"{inner.parent}.o") * inner.size + variable(inner.name)
        return (total - 1 - index.substitute(dict(ctx.values)),)

    # Computes

    def leaf(self, item: Item, ctx: Context) -> Node:
        """The ``Compute`` of an item whose loops are all open, guarded by its domain."""
        values = dict(ctx.values)
        user = item.user
        statement, reduction = user.statement, user.statement.reduction
        indices = {n: self._value(a, values) for n, a in user.index_map.items()}
        names = statement.domain.names
        if reduction and item.phase in ("init", "merge", "final"):
            if item.phase == "init" or not reduction.scan:
                names = tuple(n for n in names if n not in reduction.indices)
        stores, exprs = self._stores_and_values(item, indices, values)
        node: Node = Compute(
            statement=statement.name,
            phase=item.phase,  # type: ignore[arg-type]
            instance=tuple((n, indices[n]) for n in names),
            stores=stores,
            values=exprs,
            monoid=reduction.monoid if reduction and item.phase in ("update", "merge") else None,
        )
        conditions = self.constraints.left(item, names, ctx)
        return Guard(conditions=conditions, body=node) if conditions else node

    def _value(self, index: Affine, values: dict[str, Affine]) -> Affine:
        return index.substitute(values).simplify(self.ranges)

    def _stores_and_values(
        self, item: Item, indices: dict[str, Affine], values: dict[str, Affine]
    ) -> tuple[tuple[Store, ...], tuple[Expr, ...]]:
        statement, reduction = item.user.statement, item.user.statement.reduction
        elements = tuple(self._rewrite(e, item.user, indices, values) for e in statement.elements)
        writes = tuple(
            self._target(w.tensor, w.indices, item.user, indices, values) for w in statement.writes
        )
        if reduction is None:
            return writes, elements
        accumulators = self._state_stores(item.user, item.accumulator, values)
        partials = self._state_stores(item.user, item.partial, values)
        identity: tuple[Expr, ...] = reduction.monoid.identity
        if item.phase == "update":
            return partials or accumulators or writes, elements
        if item.phase == "init_partial":
            return partials, identity
        if item.phase == "init":
            if reduction.into:
                dtypes = reduction.monoid.dtypes
                identity = tuple(_load(w, d) for w, d in zip(writes, dtypes))
            return (partials if item.partial else accumulators), identity
        reads = tuple(
            _load(s, d)
            for s, d in zip(
                partials if item.phase == "merge" else accumulators, reduction.monoid.dtypes
            )
        )
        if item.phase == "merge":
            return accumulators, reads
        state: dict[str, Expr] = {f"s{c}": read for c, read in enumerate(reads)}
        finals = (self._rewrite(f, item.user, indices, values) for f in reduction.final)
        return writes, tuple(substitute_vars(f, state) for f in finals)

    def _state_stores(
        self, user: StatementState, buffers: tuple[Buffer, ...], values: dict[str, Affine]
    ) -> tuple[Store, ...]:
        if not buffers:
            return ()
        loops = [n for n in user.loops if n not in user.reduced]
        loops = loops[len(loops) - len(buffers[0].shape) :] if ".part" in buffers[0].name else loops
        if ".acc" in buffers[0].name:
            loops = [n for n in loops if not self.state.loops[n].lanes]
            loops = loops[len(loops) - len(buffers[0].shape) :]
        else:
            kept = [n for n in loops if not self.state.loops[n].lanes]
            lanes = [n for n in loops if self.state.loops[n].lanes]
            loops = kept + lanes
        index = tuple(values.get(n, variable(n)) for n in loops)
        return tuple(Store(target=b.name, indices=index) for b in buffers)

    def _target(
        self,
        tensor: str,
        index: tuple[Affine | Expr, ...],
        user: StatementState,
        indices: dict[str, Affine],
        values: dict[str, Affine],
    ) -> Store:
        mapped = tuple(
            self._value(i, indices)
            if isinstance(i, Affine)
            else self._rewrite(i, user, indices, values)
            for i in index
        )
        temp = self.temps.get(tensor)
        if temp is None:
            return Store(target=tensor, indices=mapped)
        return Store(target=temp.buffer.name, indices=self._relative(temp, mapped, values))

    def _rewrite(
        self,
        expr: Expr,
        user: StatementState,
        indices: dict[str, Affine],
        values: dict[str, Affine],
    ) -> Expr:
        """An element over loops: indices replaced, loads of buffered temps redirected."""

        def visit(node: Expr) -> Expr:
            if isinstance(node, IndexValue):
                return IndexValue(value=self._value(node.value, indices), dtype=node.dtype)
            if not isinstance(node, Load):
                return node
            index = tuple(
                self._value(i, indices) if isinstance(i, Affine) else i for i in node.indices
            )
            predicate = tuple(self._value(p, indices) for p in node.predicate)
            temp = self.temps.get(node.tensor)
            tensor = node.tensor
            if temp is not None:
                tensor, index = temp.buffer.name, self._relative(temp, index, values)
            return replace(node, tensor=tensor, indices=index, predicate=predicate)

        return map_expr(expr, visit)

    def _relative(
        self,
        temp: TempBuffer,
        index: tuple[Affine | Expr, ...],
        values: dict[str, Affine],
    ) -> tuple[Affine | Expr, ...]:
        out: list[Affine | Expr] = []
        for i, base in zip(index, temp.base):
            origin = self._value(base, values)
            if isinstance(i, Affine):
                out.append((i - origin).simplify(self.ranges))
            elif origin == ZERO:
                out.append(i)
            else:
                raise UserError(
                    f"temp '{temp.buffer.holds}' is gathered from, so it cannot be kept in a tile"
                )
        return tuple(out)


def _scatters(user: StatementState) -> bool:
    """Whether each element of a reduction has a target of its own."""
    reduction = user.statement.reduction
    assert reduction is not None
    indices = [i for w in user.statement.writes for i in w.indices]
    return reduction.into and any(
        not isinstance(i, Affine) or not i.variables().isdisjoint(reduction.indices)
        for i in indices
    )


def _phases(
    item: Item, kept: tuple[str, ...], lanes: tuple[str, ...]
) -> tuple[list[Item], list[Item], list[Item]]:
    """Split an opened reduction into what runs before, inside and after its reduced loop."""
    before = [replace(item, phase="init", loops=kept, partial=())]
    inside = [replace(item, phase="update")]
    final = replace(item, phase="final", loops=kept, partial=())
    if _reduction(item.user).scan:
        return before, [*inside, replace(final, loops=item.loops)], []
    after = [final]
    if item.partial:
        before.append(replace(item, phase="init", loops=kept + lanes))
        after.insert(0, replace(item, phase="merge", loops=kept + lanes))
    return before, inside, after


def _reduction(user: StatementState) -> Reduction:
    reduction = user.statement.reduction
    assert reduction is not None
    return reduction


def _run_key(entry: tuple[int, Item]) -> object:
    position, item = entry
    return item.loops[0] if item.loops else position


def _load(store: Store, dtype: object) -> Load:
    return Load(tensor=store.target, indices=store.indices, dtype=dtype)  # type: ignore[arg-type]


def _loop(index: str, extent: Affine, kind: str, body: Node, bounds: Iterable[Bound] = ()) -> Loop:
    lower = (ZERO, *(b.value for b in bounds if not b.is_upper))
    upper = (extent, *(b.value for b in bounds if b.is_upper))
    return Loop(index=index, lower=lower, upper=upper, kind=kind, body=body)  # type: ignore[arg-type]


def _block(nodes: list[Node]) -> Node:
    return nodes[0] if len(nodes) == 1 else Block(body=tuple(nodes))
