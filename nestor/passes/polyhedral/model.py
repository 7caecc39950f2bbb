"""What the checker sees of a nest: every ``Compute`` with its loops, guards, buffers and place.

A ``Site`` is one ``Compute`` at one position of the tree. Loops are told apart by position, not by
name: the copies that a tail makes use the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nestor.errors import IRError, LegalityUnknown
from nestor.ir.affine import Affine, Interval, affine
from nestor.ir.expr import Load
from nestor.ir.loopnest import Alloc, Block, Buffer, Compute, Guard, Loop, LoopNest, Node
from nestor.ir.program import Domain, Extern, Order, Program, Statement, Tensor
from nestor.ir.types import DType
from nestor.passes.polyhedral.isl_util import Points

TRANSFERS = ("copy", "writeback")
"""Phases that move a value and belong to no statement."""

CONCURRENT = ("parallel", "vector", "grid")


@dataclass(frozen=True, slots=True)
class LoopVar:
    """A loop around a site; ``uid`` is its position in a walk of the tree."""

    uid: int
    index: str
    kind: str


@dataclass(frozen=True, slots=True)
class Place:
    """Memory: a kernel tensor, or a buffer of one ``Alloc``.

    ``depth``: how many loops stand outside the ``Alloc``; iterations of those have copies of their
    own. ``uid`` is −1 for tensors.
    """

    name: str
    uid: int
    dtype: DType
    shape: tuple[Affine, ...]
    depth: int
    holds: str

    @property
    def is_buffer(self) -> bool:
        """True if a schedule made it."""
        return self.uid >= 0


@dataclass(slots=True, eq=False)
class Site:
    """One ``Compute`` of the tree. ``trail``: loops and positions from the root down to it."""

    uid: int
    compute: Compute
    loops: tuple[LoopVar, ...]
    trail: tuple[tuple[str, int], ...]
    buffers: Mapping[str, Place]
    points: Points

    @property
    def instance(self) -> dict[str, Affine]:
        """The statement's indices over loops."""
        return dict(self.compute.instance)


AccessRole = Literal["read", "write"]


@dataclass(slots=True, eq=False)
class Access:
    """A read or write of a kernel tensor's element, wherever it is kept.

    ``cell``: where in ``place``; ``element``: which element of ``tensor``; both over loops and the
    free variables of data-dependent indices, whose extents are ``free``. ``predicate``: nothing is
    touched where it fails. ``is_state``: a reduction that keeps its running state here.
    """

    site: Site
    role: AccessRole
    place: Place
    cell: tuple[Affine, ...]
    tensor: str
    element: tuple[Affine, ...]
    predicate: tuple[Affine, ...] = ()
    free: tuple[Affine, ...] = ()
    is_state: bool = False

    @property
    def is_write(self) -> bool:
        """True for a store."""
        return self.role == "write"


StateRole = Literal["init", "init_into", "update", "merge", "partial", "final"]


@dataclass(slots=True, eq=False)
class StateUse:
    """One use of one component of a reduction's state.

    ``point``: the output point; ``step``: the reduced indices (update, and final of a scan).
    ``partial`` is the source of a merge, ``merge`` its target.
    """

    site: Site
    role: StateRole
    component: int
    place: Place
    cell: tuple[Affine, ...]
    point: tuple[Affine, ...]
    step: tuple[Affine, ...] = ()


@dataclass(slots=True, eq=False)
class StatementInfo:
    """A statement and what the checker derives from it once."""

    statement: Statement
    position: int
    points: Points
    outputs: Points
    output_names: tuple[str, ...]
    order: Order
    sites: list[Site] = field(default_factory=list)

    @property
    def reduced(self) -> tuple[str, ...]:
        """Names of the reduced indices."""
        return self.statement.reduction.indices if self.statement.reduction else ()

    @property
    def is_scan(self) -> bool:
        """True for a running reduction."""
        return self.statement.reduction is not None and self.statement.reduction.scan

    @property
    def is_scattering(self) -> bool:
        """True where each element combines into a target of its own (``index_add``)."""
        s = self.statement
        if s.reduction is None or not s.reduction.into:
            return False
        known = {*self.output_names, *(x.name for x in self.points.symbols)}
        indices = [i for w in s.writes for i in w.indices]
        return not all(isinstance(i, Affine) and i.variables() <= known for i in indices)

    @property
    def sequence(self) -> tuple[int | str, ...]:
        """The order; with those indices added in whose order a scatter must run."""
        s = self.statement
        is_ordered = s.scatter == "last" or (
            self.is_scattering and s.reduction is not None and not s.reduction.monoid.commutative
        )
        if not is_ordered:
            return self.order
        rest = [n for n in s.domain.names if n not in s.order]
        return (*s.order, *(x for n in rest for x in (n, 0)))


@dataclass(slots=True, eq=False)
class Model:
    """A kernel and a nest, taken apart.

    ``promoted``: buffers whose elements are written back to the tensor that they hold.
    """

    kernel: Program
    nest: LoopNest
    tensors: dict[str, Tensor]
    places: dict[str, Place]
    statements: dict[str, StatementInfo]
    sites: list[Site]
    promoted: frozenset[Place] = frozenset()
    accesses: list[Access] = field(default_factory=list)
    uses: dict[tuple[str, int], list[StateUse]] = field(default_factory=dict)

    def alias_root(self, tensor: str) -> str:
        """The tensor whose bytes ``tensor`` shares (itself if it is no alias)."""
        seen = {tensor}
        while (base := self.tensors[tensor].alias_of) is not None and base not in seen:
            seen.add(base)
            tensor = base
        return tensor


def build_model(kernel: Program, nest: LoopNest) -> Model:
    """Take kernel and nest apart. Raises: ``IRError`` if the nest is malformed."""
    tensors = {t.name: t for t in kernel.tensors}
    places: dict[str, Place] = {}
    for t in nest.tensors:
        known = tensors.get(t.name)
        if known is None or known.shape != t.shape or known.dtype != t.dtype:
            raise IRError(f"nest '{nest.name}': tensor '{t.name}' is not the kernel's")
        places[t.name] = Place(t.name, -1, t.dtype, t.shape, 0, t.name)
    if nest.symbols != kernel.symbols:
        raise IRError(f"nest '{nest.name}': its symbols are not the kernel's")
    walker = _Walker(kernel, nest)
    statements = {}
    for position, s in enumerate(kernel.statements):
        if isinstance(s, Extern):
            raise LegalityUnknown(f"kernel '{kernel.name}' calls the extern '{s.name}'")
        statements[s.name] = _statement_info(kernel, s, position)
    promoted = frozenset(p for site in walker.sites for p in _written_back(site))
    # What never runs is harmless; questions about pairs of sites are many.
    sites = [s for s in walker.sites if not s.points.domain().is_empty()]
    model = Model(kernel, nest, tensors, places, statements, sites, promoted)
    for site in sites:
        info = statements.get(site.compute.statement)
        if info is not None:
            info.sites.append(site)
    return model


def _written_back(site: Site) -> Iterator[Place]:
    """The buffers that a writeback reads."""
    if site.compute.phase == "writeback":
        for value in site.compute.values:
            if isinstance(value, Load) and value.tensor in site.buffers:
                yield site.buffers[value.tensor]


def is_inside(site: Site, place: Place) -> bool:
    """True if ``site`` stands within the ``Alloc`` of the buffer ``place``."""
    return place in site.buffers.values()


def nest_sites(kernel: Program, nest: LoopNest) -> list[Site]:
    """Every ``Compute`` of the nest with its iterations, in the order of the text.

    Raises: ``IRError`` if the nest is malformed.
    """
    return _Walker(kernel, nest).sites


def shared_loops(a: Site, b: Site) -> tuple[int, int]:
    """How many loops two sites share, and the static order inside: −1 if ``a`` comes first."""
    shared = 0
    for x, y in zip(a.trail, b.trail):
        if x != y:
            return shared, -1 if x[1] < y[1] else 1
        shared += x[0] == "loop"
    return shared, 0


def _statement_info(kernel: Program, s: Statement, position: int) -> StatementInfo:
    reduced = set(s.reduction.indices) if s.reduction else set()
    names = tuple(n for n in s.domain.names if n not in reduced)
    return StatementInfo(
        statement=s,
        position=position,
        points=domain_points(kernel, s.domain, s.domain.names),
        outputs=domain_points(kernel, s.domain, names),
        output_names=names,
        order=_binding_order(kernel, s),
    )


def _binding_order(kernel: Program, s: Statement) -> Order:
    """The order that others can tell: adding to a target step by step is one reduction.

    ``seq t { u[i] += x[t, i] }`` combines in any order, where the monoid commutes and no other
    statement runs between two steps. (That the elements do not read ``u`` is asked elsewhere.)
    """
    r = s.reduction
    if r is None or not r.into or not r.monoid.commutative:
        return s.order
    first = next((k for k, x in enumerate(s.order) if x in r.indices), None)
    if first is None:
        return s.order
    others = (x for x in kernel.statements if x is not s)
    if any(x.order[:first] == s.order[:first] for x in others):
        return s.order
    return s.order[:first]


def domain_points(kernel: Program, domain: Domain, names: tuple[str, ...]) -> Points:
    """The domain's points in the indices ``names``; what mentions other indices is left out."""
    ranges: dict[str, Interval] = dict(kernel.symbol_ranges())
    known = {*names, *ranges}
    constraints: list[Affine] = []
    for r in domain.ranges:
        if r.name not in names:
            continue
        index = affine(r.name)
        bounds = (index - r.lower, r.upper - 1 - index)
        if not all(b.variables() <= known for b in bounds):
            raise LegalityUnknown(f"the range of '{r.name}' depends on a reduced index")
        constraints += bounds
        ranges[r.name] = (r.lower.bounds(ranges)[0], (r.upper - 1).bounds(ranges)[1])
    constraints += [c for c in domain.constraints if c.variables() <= known]
    return Points(names, kernel.symbols, tuple(constraints), (), ranges)


class _Walker:
    """Collects the sites of a nest."""

    def __init__(self, kernel: Program, nest: LoopNest):
        self.symbols = kernel.symbols
        self.sites: list[Site] = []
        self.count = 0
        self.visit(nest.body, (), (), {}, (), (), dict(kernel.symbol_ranges()))

    def visit(
        self,
        node: Node,
        loops: tuple[LoopVar, ...],
        trail: tuple[tuple[str, int], ...],
        buffers: Mapping[str, Place],
        constraints: tuple[Affine, ...],
        choices: tuple[tuple[tuple[Affine, ...], ...], ...],
        ranges: dict[str, Interval],
    ) -> None:
        """Walk down; what is known grows on the way."""
        self.count += 1
        match node:
            case Compute():
                names = tuple(v.index for v in loops)
                points = Points(names, self.symbols, constraints, choices, ranges)
                self.sites.append(Site(self.count, node, loops, trail, buffers, points))
            case Block():
                for k, child in enumerate(node.body):
                    step = (*trail, ("at", k))
                    self.visit(child, loops, step, buffers, constraints, choices, ranges)
            case Alloc():
                for b in node.buffers:
                    self._check_scope(b.shape, loops)
                places = {b.name: _buffer_place(b, self.count, len(loops)) for b in node.buffers}
                # Hidden by a buffer of the same name, but still around: under a name of no use.
                hidden = {f"\0{p.uid}": p for n, p in buffers.items() if n in places}
                inner = {**buffers, **places, **hidden}
                self.visit(node.body, loops, trail, inner, constraints, choices, ranges)
            case Guard():
                self._visit_guard(node, loops, trail, buffers, constraints, choices, ranges)
            case Loop():
                self._check_loop(node, loops)
                var = LoopVar(self.count, node.index, node.kind)
                index = affine(node.index)
                bounds = [index - b for b in node.lower] + [b - 1 - index for b in node.upper]
                inside = {**ranges, node.index: _loop_range(node, ranges)}
                trail = (*trail, ("loop", self.count))
                more = (*constraints, *bounds)
                self.visit(node.body, (*loops, var), trail, buffers, more, choices, inside)

    def _visit_guard(
        self,
        node: Guard,
        loops: tuple[LoopVar, ...],
        trail: tuple[tuple[str, int], ...],
        buffers: Mapping[str, Place],
        constraints: tuple[Affine, ...],
        choices: tuple[tuple[tuple[Affine, ...], ...], ...],
        ranges: dict[str, Interval],
    ) -> None:
        self._check_scope(node.conditions, loops)
        inside = (*constraints, *node.conditions)
        self.visit(node.body, loops, (*trail, ("at", 0)), buffers, inside, choices, ranges)
        if node.orelse is None:
            return
        step = (*trail, ("at", 1))
        options = tuple((-c - 1, *node.conditions[:k]) for k, c in enumerate(node.conditions))
        if len(options) == 1:
            constraints = (*constraints, *options[0])
        else:
            choices = (*choices, options)
        if options:
            self.visit(node.orelse, loops, step, buffers, constraints, choices, ranges)

    def _check_scope(self, values: tuple[Affine, ...], loops: tuple[LoopVar, ...]) -> None:
        known = {v.index for v in loops} | {s.name for s in self.symbols}
        for value in values:
            if not value.variables() <= known:
                raise IRError(f"'{value}' mentions what is neither a loop around it nor a symbol")

    def _check_loop(self, node: Loop, loops: tuple[LoopVar, ...]) -> None:
        if any(v.index == node.index for v in loops) or any(
            s.name == node.index for s in self.symbols
        ):
            raise IRError(f"loop '{node.index}' stands inside another of that name")
        self._check_scope((*node.lower, *node.upper), loops)
        if not node.lower or not node.upper:
            raise IRError(f"loop '{node.index}' has no bounds")
        if node.kind in ("vector", "unroll"):
            lower, upper = node.lower, node.upper
            if len(upper) > 1 or lower != (affine(0),) or not upper[0].is_const:
                raise IRError(f"{node.kind} loop '{node.index}' must run from 0 to a constant")


def _buffer_place(buffer: Buffer, uid: int, depth: int) -> Place:
    return Place(buffer.name, uid, buffer.dtype, buffer.shape, depth, buffer.holds)


def _loop_range(node: Loop, ranges: Mapping[str, Interval]) -> Interval:
    lows = [b for b in (a.bounds(ranges)[0] for a in node.lower) if b is not None]
    highs = [b - 1 for b in (a.bounds(ranges)[1] for a in node.upper) if b is not None]
    return max(lows, default=None), min(highs, default=None)
