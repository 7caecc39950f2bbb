"""The loops of a scheduled kernel as numbers: trip counts, kinds, and what each loop moves.

Read off the ``ScheduleState`` that the steps leave behind (``passes.nest``), which takes about a
tenth of the time that building the nest does. Schedules of loop kernels, whose loops follow from a
schedule tree, have no such state: theirs are read off the nest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from nestor.cost_model.kernel_facts import KernelFacts
from nestor.ir.affine import Affine, Mod
from nestor.ir.loopnest import Alloc, Buffer, Compute, Loop, LoopKind, LoopNest, Node, node_children
from nestor.ir.program import Layout
from nestor.ir.schedule import Schedule
from nestor.passes.nest import (
    LoopInfo,
    ScheduleState,
    StatementState,
    apply_schedule,
    apply_step,
    initial_state,
    is_arranged,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One loop around a statement.

    Attributes:
        name: the loop's; statements that share it have the same.
        count: mean iterations each time it is entered; their product over a statement's levels is
            the number of its instances.
        trips: iterations of a whole tile, of which the last may leave some out.
        advance: how far one iteration moves each of the statement's indices.
        reduced: whether it runs over a reduced index; ``lanes``: of a split reduction; ``blocks``:
            each iteration sums apart.
    """

    name: str
    kind: LoopKind
    count: float
    trips: int
    advance: tuple[tuple[str, int], ...]
    reduced: bool = False
    lanes: bool = False
    blocks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementLoops:
    """A statement's loops, outermost first, and the scope of its accumulator (if it reduces)."""

    name: str
    levels: tuple[Level, ...]
    scope: str

    @property
    def first_reduced(self) -> int:
        """Position of the outermost reduced level; past the end if there is none."""
        return next((p for p, x in enumerate(self.levels) if x.reduced), len(self.levels))


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor kept in a buffer of ``scope``, allocated inside the loops ``path``."""

    scope: str
    path: tuple[str, ...]
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStructure:
    """All statements' loops, in running order.

    Attributes:
        layouts: of the tensors that the schedule packs.
        kept: tensors in buffers; of a promoted one, what lives outside is still accessed.
        promoted: names among ``kept`` that also exist in memory.
    """

    statements: tuple[StatementLoops, ...]
    layouts: Mapping[str, Layout]
    kept: Mapping[str, Kept]
    promoted: frozenset[str] = frozenset()


def loop_structure(
    facts: KernelFacts, schedule: Schedule, nest: LoopNest | None = None
) -> LoopStructure:
    """The loops of a kernel under ``schedule``.

    Args: nest: what the schedule makes; read only where the schedule starts with ``Arrange``, and
        built here if it is then missing (which asks isl).
    Raises: ``UserError`` for a step that does not fit.
    """
    if is_arranged(schedule):
        return _NestReader(facts).read(nest or apply_schedule(facts.kernel, schedule))
    state = initial_state(facts.kernel)
    for step in schedule:
        apply_step(state, step)
    return _StateReader(facts, state).read()


class _StateReader:
    def __init__(self, facts: KernelFacts, state: ScheduleState):
        self.facts = facts
        self.state = state
        self._trips: dict[str, tuple[float, int]] = {}

    def read(self) -> LoopStructure:
        statements = tuple(self._statement(u) for u in self.state.statements.values())
        kept = {t: self._kept(t, scope) for t, scope in self.state.compute_at.items()}
        return LoopStructure(statements=statements, layouts=self.state.layouts, kept=kept)

    def _statement(self, user: StatementState) -> StatementLoops:
        levels = []
        for name in user.loops:
            info = self.state.loops[name]
            count, trips = self._extent(info)
            if trips == 1:
                continue  # no loop is written for one iteration
            advance = tuple(
                (index, c) for index, a in user.index_map.items() if (c := _moved(a, name))
            )
            levels.append(
                Level(
                    name=name,
                    kind=info.kind,
                    count=count,
                    trips=trips,
                    advance=advance,
                    reduced=name in user.reduced,
                    lanes=info.lanes,
                    blocks=info.blocks,
                )
            )
        return StatementLoops(name=user.statement.name, levels=tuple(levels), scope=user.scope)

    def _extent(self, info: LoopInfo) -> tuple[float, int]:
        """Mean and greatest number of iterations of a loop."""
        known = self._trips.get(info.name)
        if known is not None:
            return known
        if info.parent is None:
            assert info.extent is not None
            count = self._root_extent(info.extent)
            known = (count, int(-(-count // 1)))
        else:
            mean, whole = self._extent(self.state.loops[info.parent])
            inner = min(info.size, whole) or 1
            if info.half == "i":
                known = (min(float(inner), mean), inner)
            else:
                known = (max(1.0, mean / inner) if mean else 0.0, -(-whole // inner))
        self._trips[info.name] = known
        return known

    def _root_extent(self, extent: Affine) -> float:
        """An extent with the loops around it in the middle of their ranges."""
        if extent.is_const:
            return float(max(0, extent.const))
        env = dict(self.facts.sizes)
        for name in extent.variables() - env.keys():
            env[name] = max(0, self._extent(self.state.loops[name])[1] - 1) // 2
        return float(max(0, extent.evaluate(env)))

    def _kept(self, tensor: str, scope: str) -> Kept:
        """The buffer of a temp: as large as what one iteration of its users' shared loops needs."""
        users = [
            self.state.statements[s.statement.name]
            for s in self.facts.statements.values()
            if any(a.tensor == tensor for a in s.accesses)
        ]
        path: list[str] = []
        for names in zip(*(u.loops for u in users)):
            shared = names[0]
            if len(set(names)) > 1 or self.state.loops[shared].kind == "vector":
                break
            if any(shared in u.reduced for u in users):
                break
            path.append(shared)
        size = float(self.facts.tensor_bytes[tensor])
        for user in users:
            for a in self.facts.statements[user.statement.name].accesses:
                if a.tensor == tensor and a.is_write:
                    moved = {i.variables() for i in a.indices if isinstance(i, Affine)}
                    used = frozenset().union(*moved)
                    for name in path:
                        if any(user.index_map[n].coefficient(name) for n in used):
                            size /= max(1.0, self._extent(self.state.loops[name])[0])
        return Kept(scope, tuple(path), size)


@dataclass(slots=True)
class _Found:
    """The most frequent instance of a statement in a nest, and the loops around it."""

    instances: float
    loops: tuple[tuple[Loop, float], ...]
    compute: Compute


@dataclass(slots=True)
class _NestReader:
    """Reads loops off a nest: of each statement, those around most of its instances."""

    facts: KernelFacts
    found: dict[str, _Found] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)

    def read(self, nest: LoopNest) -> LoopStructure:
        self._walk(nest.body, (), dict(self.facts.sizes))
        statements = tuple(self._statement(n, f) for n, f in self.found.items())
        temps = {t.name for t in self.facts.kernel.tensors} - {t.name for t in nest.tensors}
        layouts = {
            t.name: t.layout
            for t in nest.tensors
            if t.layout is not None and t.layout != self.facts.tensors[t.name].layout
        }
        promoted = frozenset(self.kept) - temps
        return LoopStructure(
            statements=statements, layouts=layouts, kept=self.kept, promoted=promoted
        )

    def _walk(
        self, node: Node, loops: tuple[tuple[Loop, float], ...], middle: dict[str, int]
    ) -> None:
        if isinstance(node, Loop):
            low = max(int(a.evaluate(middle)) for a in node.lower)
            high = min(int(a.evaluate(middle)) for a in node.upper)
            loops = (*loops, (node, float(max(0, high - low))))
            middle = {**middle, node.index: (low + max(low, high - 1)) // 2}
        elif isinstance(node, Alloc):
            for buffer in node.buffers:
                self._buffer(buffer, tuple(x.index for x, _ in loops))
        elif isinstance(node, Compute) and node.phase in ("point", "update"):
            instances = prod(count for _, count in loops)
            known = self.found.get(node.statement)
            if known is None or instances > known.instances:
                self.found[node.statement] = _Found(instances, loops, node)
        for child in node_children(node):
            self._walk(child, loops, middle)

    def _buffer(self, buffer: Buffer, path: tuple[str, ...]) -> None:
        if buffer.holds in self.facts.tensors:
            size = prod(max(0, self.facts.value(e)) for e in buffer.shape) * buffer.dtype.bytes
            self.kept[buffer.holds] = Kept(buffer.scope, path, float(size))

    def _statement(self, name: str, found: _Found) -> StatementLoops:
        """Its levels; counts are scaled so that all instances are in them, tails too."""
        facts = self.facts.statements[name]
        reduction = facts.statement.reduction
        reduced = set(reduction.indices) if reduction else set()
        factor = facts.instances / found.instances if found.instances else 0.0
        levels = []
        for loop, count in found.loops:
            advance = tuple(
                (i, c) for i, a in found.compute.instance if (c := _step(a, loop.index))
            )
            if count == 1.0 and loop.kind != "vector":
                continue
            scale, factor = (factor, 1.0) if loop.kind in ("serial", "parallel") else (1.0, factor)
            levels.append(
                Level(
                    name=loop.index,
                    kind=loop.kind,
                    count=count * scale,
                    trips=max(1, int(count)),
                    advance=advance,
                    reduced=bool(advance) and {i for i, _ in advance} <= reduced,
                )
            )
        return StatementLoops(name=name, levels=tuple(levels), scope="register")


def _moved(a: Affine, loop: str) -> int:
    """How far one iteration of ``loop`` moves ``a``; of several indices in one loop, it moves the
    innermost, until that starts again."""
    total = a.coefficient(loop)
    for atom, c in a.terms:
        if not isinstance(atom, str):
            step = atom.num.coefficient(loop)
            total += c * (step % atom.den if isinstance(atom, Mod) else step // atom.den)
    return total


def _step(a: Affine, loop: str) -> int:
    """How far one iteration of ``loop`` moves ``a``, also inside a division."""
    total = a.coefficient(loop)
    for atom, c in a.terms:
        if not isinstance(atom, str):
            total += c * atom.num.coefficient(loop) // atom.den
    return total


def iterations(levels: tuple[Level, ...] | list[Level]) -> float:
    """How often the body of ``levels`` runs."""
    return prod(x.count for x in levels)
