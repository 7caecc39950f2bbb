"""Flow, anti and output dependences of a Program, exact where the accesses are affine.

The Program's own order decides which of two accesses comes first; instances that it leaves
unordered do not depend on each other. A read or write through a data-dependent index meets
everything in its data-dependent dimensions, an alias every element. Accesses and dependences are
isl maps between statement instances; ``DependenceAnalysis.dependences`` is their plain summary.
Source: Feautrier, Dataflow Analysis of Array and Scalar References, IJPP 1991.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import islpy as isl

from nestor.errors import LegalityUnknown
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import IndexExpr, loads
from nestor.ir.program import Extern, Order, Program, Statement
from nestor.passes.affine_facts import Dependence, DependenceKind, Witness
from nestor.passes.polyhedral.isl_util import IN, OUT, Points, conflict, coordinates, union_of

SHARED_READ_DIMENSIONS = 2
"""Only tensors of as many dimensions are worth reading once for several statements."""

MAX_VALUE_BASED_PIECES = 24
"""Value-based flow is computed only while no relation falls into more basic maps than this."""

VALUE_BASED_SECONDS = 0.25
"""Time for all value-based flow of a program: a help to heuristics, and never needed [s]."""

_DIRECTIONS = {
    (True, False, False): ">",
    (False, True, False): "=",
    (False, False, True): "<",
    (True, True, False): ">=",
    (False, True, True): "<=",
    (True, False, True): "!=",
    (True, True, True): "*",
}


@dataclass(slots=True, eq=False)
class StatementModel:
    """A statement, its place in the Program and its instances.

    ``binding_order``: the order that its own updates of an accumulator must keep.
    """

    statement: Statement
    position: int
    points: Points
    order: Order
    binding_order: Order

    @property
    def tuple_name(self) -> str:
        """What isl calls its instances; statements' own names may hold anything."""
        return f"S{self.position}"

    def instances(self) -> Any:
        """The domain as a named isl set."""
        return self.points.domain().set_tuple_name(self.tuple_name)


@dataclass(slots=True, eq=False)
class Access:
    """One access of a statement.

    ``known``: per dimension the affine index, None where it is data. ``is_state``: the running
    value of a reduction that is kept in its target.
    """

    model: StatementModel
    tensor: str
    known: tuple[Affine | None, ...]
    is_write: bool
    predicate: tuple[Affine, ...] = ()
    is_state: bool = False

    @property
    def exact(self) -> bool:
        """True if every index is affine."""
        return all(k is not None for k in self.known)


@dataclass(slots=True, eq=False)
class Relation:
    """A dependence as an isl map from source to target instances (unnamed tuples).

    ``access``: the target's. ``values``: for flow, the part that is not overwritten in between;
    None where it was not computed.
    """

    source: StatementModel
    target: StatementModel
    tensor: str
    kind: DependenceKind
    map: Any
    exact: bool
    is_reduction: bool
    access: Access | None = None
    values: Any | None = None

    def named(self, *, values: bool = False) -> Any:
        """The map with the statements' tuple names, for unions of maps."""
        chosen = self.values if values and self.values is not None else self.map
        named = chosen.set_tuple_name(IN, self.source.tuple_name)
        return named.set_tuple_name(OUT, self.target.tuple_name)


@dataclass(slots=True, eq=False)
class DependenceAnalysis:
    """The statements of a Program and every dependence among them."""

    program: Program
    statements: dict[str, StatementModel]
    relations: list[Relation]

    def dependences(self, *, limit_seconds: float | None = None) -> tuple[Dependence, ...]:
        """One plain summary for each relation, in the same order.

        Args: limit_seconds: past it [s], directions are ``*`` and there are no witnesses.
        """
        deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        return tuple(_summary(r, deadline) for r in self.relations)

    def domain(self) -> Any:
        """All instances as an isl union set."""
        total = isl.UnionSet.empty(_parameter_space(self))
        for model in self.statements.values():
            total = total.union(isl.UnionSet.from_set(model.instances()))
        return total

    def validity(self) -> Any:
        """Union map of what every order must keep; updates of one accumulator are left out."""
        return self._union([r for r in self.relations if not r.is_reduction])

    def coincidence(self) -> Any:
        """Union map of what a parallel loop must not cross."""
        return self._union(self.relations)

    def proximity(self) -> Any:
        """Union map of what should run close together: values and the reads of them."""
        return self._union([r for r in self.relations if r.kind == "flow"], values=True)

    def shared_reads(self) -> Any:
        """Union map between instances of different statements that read the same element."""
        total = isl.UnionMap.empty(_parameter_space(self))
        reads = [a for m in self.statements.values() for a in _accesses(m) if not a.is_write]
        for k, a in enumerate(reads):
            for b in reads[k + 1 :]:
                is_large = len(a.known) >= SHARED_READ_DIMENSIONS
                if a.model is b.model or a.tensor != b.tensor or not (a.exact and b.exact):
                    continue
                if is_large:
                    pairs = _meeting(a, b).set_tuple_name(IN, a.model.tuple_name)
                    pairs = pairs.set_tuple_name(OUT, b.model.tuple_name)
                    total = total.union(isl.UnionMap.from_map(pairs))
        return total

    def _union(self, relations: list[Relation], *, values: bool = False) -> Any:
        total = isl.UnionMap.empty(_parameter_space(self))
        for r in relations:
            total = total.union(isl.UnionMap.from_map(r.named(values=values)))
        return total


def analyse_dependences(
    program: Program, *, limit_seconds: float | None = None, value_based: bool = True
) -> DependenceAnalysis:
    """All dependences of ``program``.

    Args:
        limit_seconds: asked between isl's operations; None: no limit.
        value_based: also compute which flow carries the value itself, where that is cheap.
    Raises: ``LegalityUnknown`` past the limit, or if the program calls an extern.
    """
    deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
    models = {m.statement.name: m for m in statement_models(program)}
    roots = {t.name: t.alias_of or t.name for t in program.tensors}
    by_root: dict[str, list[Access]] = {}
    for model in models.values():
        for access in _accesses(model):
            by_root.setdefault(_root(roots, access.tensor), []).append(access)
    relations: list[Relation] = []
    for accesses in by_root.values():
        for k, a in enumerate(accesses):
            for b in accesses[k:]:
                if a.is_write or b.is_write:
                    _check_time(deadline)
                    relations += _relations(a, b)
    for model in models.values():
        relations += _scan_relations(model)
    analysis = DependenceAnalysis(program, models, relations)
    if value_based:
        until = time.monotonic() + VALUE_BASED_SECONDS
        _find_values(analysis, until if deadline is None else min(until, deadline))
    return analysis


def _check_time(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise LegalityUnknown("the dependence analysis ran out of time")


def statement_models(program: Program) -> list[StatementModel]:
    """The statements with their instances. Raises: ``LegalityUnknown`` for an extern."""
    out = []
    for position, s in enumerate(program.statements):
        if isinstance(s, Extern):
            raise LegalityUnknown(f"'{program.name}' calls the extern '{s.name}'")
        points, order = _points(program, s), _ordered(s)
        out.append(StatementModel(s, position, points, order, _binding_order(program, s, order)))
    return out


def _points(program: Program, s: Statement) -> Points:
    ranges = dict(program.symbol_ranges())
    constraints: list[Affine] = []
    for r in s.domain.ranges:
        index = affine(r.name)
        constraints += [index - r.lower, r.upper - 1 - index]
        ranges[r.name] = (r.lower.bounds(ranges)[0], (r.upper - 1).bounds(ranges)[1])
    constraints += s.domain.constraints
    return Points(s.domain.names, program.symbols, tuple(constraints), (), ranges)


def _ordered(s: Statement) -> Order:
    """The statement's order; a scatter that runs in order names the rest of its indices."""
    if s.scatter != "last":
        return s.order
    rest = [n for n in s.domain.names if n not in s.order]
    return (*s.order, *(x for n in rest for x in (n, 0)))


def _binding_order(program: Program, s: Statement, order: Order) -> Order:
    """Updates ``seq k { u[i] += x[k, i] }`` may run in any order of k, if they run by themselves.

    With another statement in the loop over k, that one can tell.
    """
    reduced = s.reduction.indices if s.reduction else ()
    first = next((k for k, x in enumerate(order) if x in reduced), None)
    if first is None or any(
        other is not s and other.order[:first] == order[:first] for other in program.statements
    ):
        return order
    return order[:first]


def _root(roots: dict[str, str], tensor: str) -> str:
    seen = {tensor}
    while (base := roots[tensor]) not in seen:
        seen.add(base)
        tensor = base
    return tensor


def _accesses(model: StatementModel) -> Iterator[Access]:
    """Reads and writes of a statement, each distinct one once."""
    s = model.statement
    seen = set()

    def access(
        tensor: str,
        indices: tuple[IndexExpr, ...],
        *,
        is_write: bool,
        predicate: tuple[Affine, ...] = (),
        is_state: bool = False,
    ) -> Iterator[Access]:
        known = tuple(i if isinstance(i, Affine) else None for i in indices)
        key = (tensor, known, is_write, predicate, is_state)
        if key not in seen:
            seen.add(key)
            yield Access(model, tensor, known, is_write, predicate, is_state)

    reduction = s.reduction
    is_state = reduction is not None and not reduction.scan
    for w in s.writes:
        yield from access(w.tensor, w.indices, is_write=True, is_state=is_state)
        for i in w.indices:
            if not isinstance(i, Affine):
                for load in loads(i):
                    yield from access(load.tensor, load.indices, is_write=False)
        if reduction is not None and reduction.into:
            yield from access(w.tensor, w.indices, is_write=False, is_state=is_state)
    for expression in (*s.elements, *(reduction.final if reduction else ())):
        for load in loads(expression):
            predicate = load.predicate
            yield from access(load.tensor, load.indices, is_write=False, predicate=predicate)


def _relations(a: Access, b: Access) -> Iterator[Relation]:
    """The dependences between two accesses, in both directions."""
    pairs = _meeting(a, b)
    if pairs.is_empty():
        return
    directions = [(a, b, pairs)]
    if a is not b:
        directions.append((b, a, pairs.reverse()))
    exact = a.exact and b.exact and a.tensor == b.tensor
    is_reordered = _is_reordered(a, b)
    for source, target, meeting in directions:
        first, second = source.model, target.model
        kind: DependenceKind = "flow"
        if target.is_write:
            kind = "output" if source.is_write else "anti"
        orders = (first.order, second.order)
        if is_reordered:
            orders = (first.binding_order, first.binding_order)
        earlier, unordered = _before(first, second, meeting, orders)
        for part, is_reduction in ((earlier, False), (unordered, True)):
            # Instances of one statement that are not ordered, and are no steps of a reduction,
            # do not depend on each other: a Program where they do has no meaning.
            if part is not None and (is_reordered or not is_reduction):
                tensor = source.tensor
                yield Relation(first, second, tensor, kind, part, exact, is_reduction, target)


def _is_reordered(a: Access, b: Access) -> bool:
    """Two updates of one commutative accumulator may run in any order."""
    reduction = a.model.statement.reduction
    if a.model is not b.model or not (a.is_state and b.is_state) or reduction is None:
        return False
    return reduction.monoid.commutative


def _meeting(a: Access, b: Access) -> Any:
    """Pairs of instances that may touch one element."""
    if a.tensor != b.tensor:
        return conflict(
            a.model.points.relation((), a.predicate), b.model.points.relation((), b.predicate)
        )
    left: list[Affine] = []
    right: list[Affine] = []
    for x, y in zip(a.known, b.known):
        if x is not None and y is not None:
            left.append(x)
            right.append(y)
    return conflict(
        a.model.points.relation(tuple(left), a.predicate),
        b.model.points.relation(tuple(right), b.predicate),
    )


def _before(
    a: StatementModel, b: StatementModel, pairs: Any, orders: tuple[Order, Order]
) -> tuple[Any | None, Any | None]:
    """The part of ``pairs`` in which the Program runs ``a`` first; None if it is empty.

    The second one: pairs of one statement that the orders do not tell apart, each once.
    """
    found: list[Any] = []
    ended = False
    for x, y in zip(*orders):
        if isinstance(x, str) and isinstance(y, str):
            i, o = a.points.names.index(x), b.points.names.index(y)
            found.append(pairs.order_lt(IN, i, OUT, o))
            pairs = pairs.equate(IN, i, OUT, o)
        elif x != y:
            if isinstance(x, int) and isinstance(y, int) and x < y:
                found.append(pairs)
            ended = True
            break
    if not ended and a is not b and a.position < b.position:
        found.append(pairs)
    unordered = None if ended or a is not b else _ascending(pairs, range(len(a.points.names)))
    return _joined(found), unordered


def _ascending(pairs: Any, at: Iterable[int]) -> Any | None:
    """Pairs of one statement that ascend in the dimensions ``at``; None if there are none."""
    found: list[Any] = []
    for k in at:
        found.append(pairs.order_lt(IN, k, OUT, k))
        pairs = pairs.equate(IN, k, OUT, k)
    return _joined(found)


def _joined(parts: list[Any]) -> Any | None:
    parts = [p for p in parts if not p.is_empty()]
    return union_of(parts).coalesce() if parts else None


def _scan_relations(model: StatementModel) -> Iterator[Relation]:
    """A scan hands its state from each index to the next; so does a monoid of fixed order."""
    reduction = model.statement.reduction
    if reduction is None or (reduction.monoid.commutative and not reduction.scan):
        return
    fixed = tuple(affine(n) for n in model.points.names if n not in reduction.indices)
    own = model.points.relation(fixed)
    at = [model.points.names.index(n) for n in reduction.indices]
    found = _ascending(conflict(own, own), at)
    if found is not None:
        tensor = model.statement.writes[0].tensor
        yield Relation(model, model, tensor, "flow", found, True, False)


# Which flow carries the value


def _find_values(analysis: DependenceAnalysis, deadline: float) -> None:
    """Set ``values`` of flow relations: less what is written again between write and read.

    ``flow − output ∘ flow``: a pair (s, t) falls out if some w with s → w (both write) → t exists.
    """
    relations = [r for r in analysis.relations if not r.is_reduction]
    flows = [r for r in relations if r.kind == "flow" and r.access is not None]
    outputs = [r for r in relations if r.kind == "output" and _overwrites(r.target.statement)]
    for flow in flows:
        values, is_done = flow.map, True
        for output in outputs:
            if output.source is not flow.source or output.tensor != flow.tensor:
                continue
            for last in flows:
                if last.source is output.target and last.access is flow.access:
                    if time.monotonic() > deadline:
                        return
                    if _pieces(values) > MAX_VALUE_BASED_PIECES:
                        continue
                    if not (output.exact and last.exact):
                        is_done = False
                        continue
                    later = output.map.apply_range(last.map).coalesce()
                    # Subtraction is exponential in the pieces of what is taken away, and divisions
                    # make it dear beyond any limit that is asked for between operations.
                    large = _pieces(later) > MAX_VALUE_BASED_PIECES // 4 or not _is_plain(later)
                    values = values if large else values.subtract(later).coalesce()
                    is_done = is_done and not large
        if is_done and flow.exact and _pieces(values) <= MAX_VALUE_BASED_PIECES:
            flow.values = values


def _overwrites(s: Statement) -> bool:
    """Each instance certainly writes: not so for a reduction that writes when it is done."""
    return s.reduction is None or s.reduction.into or s.reduction.scan


def _is_plain(value: Any) -> bool:
    """No integer divisions."""
    parts: list[Any] = []
    value.foreach_basic_map(parts.append)
    return all(part.dim(isl.dim_type.div) == 0 for part in parts)


def _pieces(value: Any) -> int:
    return int(value.n_basic_map())


# Summaries


def _summary(r: Relation, deadline: float | None) -> Dependence:
    chosen = r.map
    is_value_based = False
    if r.values is not None and not r.values.is_empty():
        chosen, is_value_based = r.values, True
    loops = shared_loops(r.source, r.target)
    in_time = deadline is None or time.monotonic() < deadline
    places = [(r.source.points.names.index(x), r.target.points.names.index(y)) for x, y in loops]
    steps = [_direction(chosen, i, o) if in_time else ("*", None) for i, o in places]
    return Dependence(
        source=r.source.statement.name,
        target=r.target.statement.name,
        tensor=r.tensor,
        kind=r.kind,
        loops=loops,
        directions=tuple(direction for direction, _ in steps),
        distances=tuple(distance for _, distance in steps),
        exact=r.exact,
        is_reduction=r.is_reduction,
        is_value_based=is_value_based,
        witness=_witness(r, chosen) if in_time else None,
    )


def _direction(pairs: Any, i: int, o: int) -> tuple[str, int | None]:
    """The sign of ``out[o] − in[i]``, and its value if that is one number."""
    backward = not pairs.order_gt(IN, i, OUT, o).is_empty()
    level = not pairs.equate(IN, i, OUT, o).is_empty()
    forward = not pairs.order_lt(IN, i, OUT, o).is_empty()
    direction = _DIRECTIONS[backward, level, forward]
    return direction, 0 if direction == "=" else _constant_distance(pairs, i, o)


def shared_loops(a: StatementModel, b: StatementModel) -> tuple[tuple[str, str], ...]:
    """Loops that two statements share in the Program's order, by each one's name."""
    out: list[tuple[str, str]] = []
    for x, y in zip(a.order, b.order):
        if isinstance(x, str) and isinstance(y, str):
            out.append((x, y))
        elif x != y:
            break
    if a is b:
        named = {x for x, _ in out}
        out += [(n, n) for n in a.points.names if n not in named]
    return tuple(out)


def _constant_distance(pairs: Any, i: int, o: int) -> int | None:
    """``out[o] − in[i]`` if it is one number."""
    local = isl.LocalSpace.from_space(pairs.get_space().wrap())
    step = isl.Aff.zero_on_domain(local).add_coefficient_val(IN, pairs.dim(IN) + o, 1)
    step = step.add_coefficient_val(IN, i, -1)
    image = pairs.wrap().apply(isl.Map.from_aff(step))
    low, high = image.dim_min_val(0), image.dim_max_val(0)
    return int(low.to_python()) if low.is_int() and low.eq(high) else None


def _witness(r: Relation, pairs: Any) -> Witness | None:
    found = coordinates(pairs)
    if found is None:
        return None
    symbols, both = found
    split = len(r.source.points.names)
    return Witness(
        symbols=tuple(zip((s.name for s in r.source.points.symbols), symbols)),
        source=tuple(zip(r.source.points.names, both[:split])),
        target=tuple(zip(r.target.points.names, both[split:])),
    )


def _parameter_space(analysis: DependenceAnalysis) -> Any:
    first = next(iter(analysis.statements.values()))
    return first.points.domain().get_space().params()
