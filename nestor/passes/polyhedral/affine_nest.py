"""A schedule tree becomes a loop nest: isl scans the instances in their new order.

A statement with a register tile (inner loops that are unrolled or vectorised) runs tile by tile.
Where all instances of a tile are in the domain, the tile runs whole, without a condition. The other
tiles run instance by instance along the unrolled loops, under a mask in the vector loop. Splitting
the loops around keeps the two apart, so that whole tiles meet no condition on the way either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

# isl's types are opaque to the type checker.
from typing import Any, Protocol

import islpy as isl

from nestor.errors import Unsupported
from nestor.ir.affine import ZERO, Affine, Interval, affine, variable
from nestor.ir.expr import Expr, Index, Load, map_expr
from nestor.ir.loopnest import Block, Compute, Guard, Loop, LoopKind, LoopNest, Node, Store
from nestor.ir.names import Names
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import Schedule
from nestor.passes.index_set_splitting import split_index_sets
from nestor.passes.lane_sums import Lanes, sum_lanes
from nestor.passes.polyhedral.isl_ast import AstConverter, LoopMeaning
from nestor.passes.polyhedral.isl_util import (
    Points,
    affine_text,
    context,
    operations_limited,
    union_of,
)
from nestor.passes.polyhedral.model import domain_points
from nestor.passes.polyhedral.order_tree import loop_names
from nestor.passes.polyhedral.pruning import drop_idle
from nestor.passes.polyhedral.statement_times import (
    StatementTime,
    TileLoop,
    TimeLoop,
    statement_times,
)
from nestor.passes.polyhedral.tree_steps import Arranged, apply_tree_steps

SCAN_OPERATIONS = 2_000_000
"""isl's budget for one scan."""


def build_affine_nest(kernel: Program, schedule: Schedule) -> LoopNest:
    """Apply ``schedule`` to the kernel's schedule tree and scan it.

    Raises: ``UserError`` for a step that cannot be applied as written; ``LegalityUnknown`` where
        isl's AST has no form in the IR; ``Unsupported`` for statements that only the other nest
        builder knows. Whether the nest computes the kernel is for ``check_nest`` to say.
    """
    from nestor.passes.promotion import promote

    arranged = apply_tree_steps(kernel, schedule)
    with operations_limited(SCAN_OPERATIONS, f"scanning kernel '{kernel.name}'"):
        scan = _Scan(kernel, arranged)
        nest = drop_idle(kernel, scan.nest())
    for lanes in scan.lanes():
        nest = replace(nest, body=sum_lanes(nest.body, lanes))
    for step in arranged.promotions:
        nest = promote(nest, kernel, step.tensor, step.loop, step.scope)
    return nest


class _Scan:
    """One scan of a kernel's instances."""

    def __init__(self, kernel: Program, arranged: Arranged):
        self.kernel = kernel
        self.kinds = arranged.kinds
        self.promotions = arranged.promotions
        self.times = statement_times(kernel, arranged)
        self.ranges: dict[str, Interval] = dict(kernel.symbol_ranges())
        self.bodies: dict[str, _Body] = {}
        names = loop_names(arranged.names())
        for number, time in enumerate(self.times):
            _refuse_unknown(kernel, time.statement)
            body = _body(kernel, time, number, names)
            self.bodies[body.name] = body
        self.depth = max((len(t.entries) for t in self.times), default=0)

    def nest(self) -> LoopNest:
        """The whole nest."""
        maps = [isl.UnionMap.from_map(b.schedule(self.depth)) for b in self.bodies.values()]
        tree: Node = Block(body=())
        if maps:
            tree = self._scan(union_of(maps))
        return LoopNest(
            name=self.kernel.name,
            symbols=self.kernel.symbols,
            tensors=self.kernel.tensors,
            body=tree,
        )

    def lanes(self) -> list[Lanes]:
        """The vector loops whose lanes sum apart."""
        return [
            Lanes(statement=time.statement, lane=t.name, outer=t.outer, size=t.size)
            for time in self.times
            for t in time.tile
            if t.is_lane and time.statement.reduction is not None
        ]

    def _scan(self, schedule: Any) -> Node:
        build = isl.AstBuild.from_context(_symbol_values(self.kernel))
        iterators = isl.IdList.alloc(context(), self.depth)
        for d in range(self.depth):
            iterators = iterators.add(isl.Id.read_from_str(context(), f"c{d}"))
        build = build.set_iterators(iterators).set_options(self._options())
        symbols = {f"p{k}": s.name for k, s in enumerate(self.kernel.symbols)}
        converter = AstConverter(symbols, self._meaning, self._leaf)
        return split_index_sets(converter.convert(build.node_from_schedule_map(schedule)))

    def _options(self) -> Any:
        """Where something is promoted, register tiles meet no others in their innermost loop."""
        times = [b.time for b in self.bodies.values() if b.time.tile and b.time.innermost >= 0]
        around = {p.loop for p in self.promotions}
        dims = sorted({t.innermost for t in times if t.loops[-1].name in around})
        names = ", ".join(f"c{d}" for d in range(self.depth))
        choices = "; ".join(f"[{names}] -> separate[{d}]" for d in dims)
        return isl.UnionMap.read_from_str(context(), f"{{ {choices} }}")

    def _meaning(self, domain: str, depth: int) -> LoopMeaning:
        entry = self.bodies[domain].time.entries[depth]
        assert isinstance(entry, TimeLoop), "isl made a loop of a sequence"
        return LoopMeaning(name=entry.name, kind=self.kinds.get(entry.name, "serial"))

    def _leaf(self, domain: str, arguments: tuple[Affine, ...]) -> Node | None:
        return self.bodies[domain].node(arguments, self.ranges)


class _Body(Protocol):
    """What isl scans as one point: an instance of a statement, or a register tile of them."""

    name: str
    time: StatementTime

    def schedule(self, depth: int) -> Any:
        """isl's map from the points to time, of ``depth`` dimensions."""

    def node(self, arguments: tuple[Affine, ...], ranges: Mapping[str, Interval]) -> Node:
        """The computes of the point with these coordinates."""


class _Instance:
    """A statement without a register tile: the points are its instances."""

    def __init__(self, time: StatementTime, points: Points, number: int, names: Names):
        self.name = f"S{number}"
        self.time = time
        self.points = points
        rows = tuple(x.row for x in time.loops)
        if not (time.tells_instances_apart() or points.relation(rows).is_injective()):
            # Instances that the tree leaves unordered run in loops of their own.
            time.entries += [
                TimeLoop(name=names.fresh(n), row=variable(n))
                for n in time.statement.domain.names
                if variable(n) not in rows
            ]

    def schedule(self, depth: int) -> Any:
        """See ``_Body``."""
        rows = [e.row if isinstance(e, TimeLoop) else affine(e) for e in self.time.entries]
        rows += [ZERO] * (depth - len(rows))
        return self.points.relation(tuple(rows)).set_tuple_name(isl.dim_type.in_, self.name)

    def node(self, arguments: tuple[Affine, ...], ranges: Mapping[str, Interval]) -> Node:
        """See ``_Body``."""
        instance = dict(zip(self.time.statement.domain.names, arguments))
        return make_compute(self.time.statement, instance, ranges)


class _Tile:
    """Register tiles of a statement: the points are the values of the loops around them."""

    def __init__(self, kernel: Program, time: StatementTime, points: Points, number: int):
        self.name = f"T{number}"
        self.time = time
        self.kernel = kernel
        self.indices = time.indices_from_loops()
        loops = tuple(x.row for x in time.loops)
        self.domain = points.relation(loops).range().coalesce()
        inside: dict[str, Interval] = {t.name: (0, t.size - 1) for t in time.tile}
        values = [
            *((x.row, variable(x.name)) for x in time.loops),
            *((t.row, time.value_at(t.name)) for t in time.tile),
        ]
        gaps = [row.substitute(self.indices).simplify(inside) - value for row, value in values]
        # A loop whose value the tile decides: each instance runs at its own iteration.
        self.moments = [g for g in gaps if not inside.keys().isdisjoint(g.variables())]
        self.rounds = False
        self.conditions = self._conditions()

    def schedule(self, depth: int) -> Any:
        """See ``_Body``."""
        names = [f"i{k}" for k in range(len(self.time.loops))]
        fresh = iter(names)
        row = [next(fresh) if isinstance(e, TimeLoop) else str(e) for e in self.time.entries]
        row += ["0"] * (depth - len(row))
        text = f"{{ [{', '.join(names)}] -> [{', '.join(row)}] }}"
        found = isl.Map.read_from_str(context(), text).intersect_domain(self.domain)
        return found.set_tuple_name(isl.dim_type.in_, self.name)

    def node(self, arguments: tuple[Affine, ...], ranges: Mapping[str, Interval]) -> Node:
        """See ``_Body``."""
        around = dict(zip((x.name for x in self.time.loops), arguments))
        ranges = {**ranges, **{t.name: (0, t.size - 1) for t in self.time.tile}}
        conditions = [c.substitute(around) for c in self.conditions]
        if self.moments:
            return self._at_moments(around, conditions, ranges)
        indices = self.indices.items()
        instance = {n: value.substitute(around).simplify(ranges) for n, value in indices}
        compute = make_compute(self.time.statement, instance, ranges)
        whole = self._tile(compute, [], is_whole=True)
        if not conditions:
            return whole
        exact = [c.simplify(ranges) for c in conditions]
        if self.rounds:
            return self._tile(compute, exact, is_whole=False)
        least = tuple(dict.fromkeys(self._least(c).simplify(ranges) for c in conditions))
        return Guard(
            conditions=least, body=whole, orelse=self._tile(compute, exact, is_whole=False)
        )

    def _at_moments(
        self,
        around: Mapping[str, Affine],
        conditions: list[Affine],
        ranges: Mapping[str, Interval],
    ) -> Node:
        """The instances of the tile that run at this very iteration of the loops around.

        A loop of the tile that the iteration decides is no loop: its index has that one value.
        """
        values: dict[str, Affine] = {}
        for moment in self.moments:
            gap = moment.substitute(around).substitute(values).simplify(ranges)
            decided = next((t for t in self.time.tile if _is_decided(gap, t.name, values)), None)
            if decided is None:
                conditions += [gap, -gap]
                continue
            factor = gap.coefficient(decided.name)
            value = (variable(decided.name) * factor - gap) * factor
            values = {n: v.substitute({decided.name: value}) for n, v in values.items()}
            values[decided.name] = value
            conditions += [value, decided.size - 1 - value]
        indices = self.indices.items()
        instance = {n: v.substitute(around).substitute(values).simplify(ranges) for n, v in indices}
        exact = [c.substitute(values).simplify(ranges) for c in conditions]
        exact = [c for c in exact if (c.bounds(ranges)[0] or 0) < 0 or c.bounds(ranges)[0] is None]
        compute = make_compute(self.time.statement, instance, ranges)
        loops = [t for t in self.time.tile if t.name not in values]
        return self._tile(compute, list(dict.fromkeys(exact)), is_whole=False, loops=loops)

    def _tile(
        self,
        node: Node,
        conditions: list[Affine],
        *,
        is_whole: bool,
        loops: list[TileLoop] | None = None,
    ) -> Node:
        """The loops of the tile; each condition stands as far out as it can."""
        for t in reversed(self.time.tile if loops is None else loops):
            here = tuple(c for c in conditions if t.name in c.variables())
            conditions = [c for c in conditions if c not in here]
            if here:
                node = Guard(conditions=here, body=node)
            kind: LoopKind = t.kind if is_whole or t.kind == "vector" else "serial"
            node = Loop(index=t.name, lower=(ZERO,), upper=(affine(t.size),), kind=kind, body=node)
        return Guard(conditions=tuple(conditions), body=node) if conditions else node

    def _least(self, condition: Affine) -> Affine:
        """The smallest value of ``condition`` within a tile, over the loops around it."""
        for t in self.time.tile:
            coefficient = condition.coefficient(t.name)
            at = variable(t.name) * coefficient
            condition = condition - at + min(0, coefficient * (t.size - 1))
        return condition

    def _conditions(self) -> list[Affine]:
        """The bounds of the domain that some tile does not keep as a whole.

        Sets ``rounds`` if one rounds, so that whole tiles cannot be told from partial ones.
        """
        domain = self.time.statement.domain
        bounds = [variable(r.name) - r.lower for r in domain.ranges]
        bounds += [r.upper - 1 - variable(r.name) for r in domain.ranges]
        found = []
        for bound in (*bounds, *domain.constraints):
            value = bound.substitute(self.indices)
            inner = {t.name for t in self.time.tile}
            rounding = any(
                not isinstance(a, str) and not inner.isdisjoint(a.num.variables())
                for a, _ in value.terms
            )
            self.rounds = self.rounds or rounding
            if rounding or self._can_fail(value):
                found.append(value)
        return list(dict.fromkeys(found))

    def _can_fail(self, value: Affine) -> bool:
        """Whether ``value`` is negative in some tile."""
        names = {x.name: f"i{k}" for k, x in enumerate(self.time.loops)}
        names.update((s.name, f"p{k}") for k, s in enumerate(self.kernel.symbols))
        dims = ", ".join(f"i{k}" for k in range(len(self.time.loops)))
        parameters = ", ".join(f"p{k}" for k in range(len(self.kernel.symbols)))
        least = affine_text(self._least(value), names)
        text = f"[{parameters}] -> {{ [{dims}] : {least} < 0 }}"
        return not bool(self.domain.intersect(isl.Set.read_from_str(context(), text)).is_empty())


def _is_decided(gap: Affine, name: str, values: Mapping[str, Affine]) -> bool:
    """Whether ``gap = 0`` says what the index ``name``, which is not known yet, is."""
    factor = gap.coefficient(name)
    return (
        abs(factor) == 1
        and name not in values
        and name not in (gap - variable(name) * factor).variables()
    )


def _body(kernel: Program, time: StatementTime, number: int, names: Names) -> _Body:
    """What is scanned for one statement."""
    domain = time.statement.domain
    points = domain_points(kernel, domain, domain.names)
    if time.tile:
        return _Tile(kernel, time, points, number)
    return _Instance(time, points, number, names)


def make_compute(
    statement: Statement, instance: Mapping[str, Affine], ranges: Mapping[str, Interval]
) -> Compute:
    """The compute of one instance: a point, or one step of a reduction in its target."""

    def over_loops(value: Affine) -> Affine:
        return value.substitute(dict(instance)).simplify(ranges)

    def visit(node: Expr) -> Expr:
        if isinstance(node, Index):
            return Index(value=over_loops(node.value), dtype=node.dtype)
        if isinstance(node, Load):
            index = tuple(over_loops(i) if isinstance(i, Affine) else i for i in node.indices)
            predicate = tuple(over_loops(p) for p in node.predicate)
            return replace(node, indices=index, predicate=predicate)
        return node

    stores = tuple(
        Store(
            target=w.tensor,
            indices=tuple(
                over_loops(i) if isinstance(i, Affine) else map_expr(i, visit) for i in w.indices
            ),
        )
        for w in statement.writes
    )
    reduction = statement.reduction
    return Compute(
        statement=statement.name,
        phase="update" if reduction else "point",
        instance=tuple((n, instance[n]) for n in statement.domain.names),
        stores=stores,
        values=tuple(map_expr(e, visit) for e in statement.elements),
        monoid=reduction.monoid if reduction else None,
    )


def _refuse_unknown(kernel: Program, statement: Statement) -> None:
    reduction = statement.reduction
    if reduction and (reduction.scan or not reduction.into):
        raise Unsupported(
            f"kernel '{kernel.name}': statement '{statement.name}' keeps a state of its own while "
            "it reduces; schedule trees know pointwise statements and sums into a tensor"
        )


def _symbol_values(kernel: Program) -> Any:
    """What the symbols may be."""
    names = [f"p{k}" for k in range(len(kernel.symbols))]
    where = []
    for name, symbol in zip(names, kernel.symbols):
        where.append(f"{name} >= {symbol.lower}")
        if symbol.upper is not None:
            where.append(f"{name} <= {symbol.upper}")
    condition = " and ".join(where)
    return isl.Set.read_from_str(context(), f"[{', '.join(names)}] -> {{ : {condition} }}")
