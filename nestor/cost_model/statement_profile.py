"""How one statement runs under a schedule: vectors, registers, lines and bytes, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, gcd, prod

from nestor.cost_model.footprint import (
    ANYWHERE,
    INSIDE,
    Move,
    Stream,
    lines_touched,
    loop_moves,
    offset_moves,
    stream_traffic,
)
from nestor.cost_model.kernel_facts import Access, KernelFacts, StatementFacts
from nestor.cost_model.loop_structure import Level, LoopStructure, StatementLoops
from nestor.target.cpu import CpuTarget

FMA_LATENCY_CYCLES = 4.0
"""From operands to result of a multiply-add or an addition, on current x86-64 cores [cycles]."""

LOOP_INSTRUCTIONS = 2.0
"""Counting and branching, once a run of a body."""

STORE_SLOTS = 2.0
"""Loads that start in the time of one store: cores have twice the ports for them."""

PAGE_BYTES = 4096
"""Lines this far apart share a set of a first-level cache (64 sets of 64 bytes)."""

WorkingSets = dict[tuple[str, ...], dict[str, float]]
"""Lines touched by one iteration of the loops named, by tensor."""


@dataclass(slots=True)
class StatementProfile:
    """A statement's loops, streams and instruction counts.

    Attributes:
        body: position of the first level of the innermost run of vector and unrolled loops.
        vector: position of the vector loop; None without one.
        lanes: elements of a vector register.
        vectors: registers that one iteration of the vector loop takes.
        efficiency: share of lanes that do useful work.
        body_ops: vector operations of one element's work in the body: how far it is unrolled.
        bodies: how often the body runs.
        registers: vector registers that there are.
    """

    facts: StatementFacts
    loops: StatementLoops
    streams: tuple[Stream, ...]
    body: int
    vector: int | None
    lanes: int
    vectors: int
    efficiency: float
    body_ops: float
    bodies: float
    registers: int

    @property
    def levels(self) -> tuple[Level, ...]:
        """Its loops, outermost first."""
        return self.loops.levels

    @property
    def counts(self) -> tuple[float, ...]:
        """Mean iterations of each loop."""
        return tuple(x.count for x in self.loops.levels)

    @property
    def slots(self) -> float:
        """Instruction slots of all its arithmetic, as vectorised [slots of one register]."""
        final = self.facts.final_ops.slots * self.facts.results / self.lanes
        return self.facts.ops.slots * self.bodies * self.body_ops * self.facts.density + final

    @property
    def accumulators(self) -> float:
        """Registers that hold the state of its reduction."""
        first = self.loops.first_reduced
        if self.facts.statement.reduction is None:
            return 0.0
        components = len(self.facts.statement.reduction.monoid.identity)
        kept = [x for x in self.levels[first:] if not x.reduced]
        return components * prod(self._registers(x) for x in kept)

    @property
    def operand_registers(self) -> float:
        """Registers for the operands that the body uses more than once.

        The smallest of them stays while the others pass by, one register at a time.
        """
        reused = [n for s, n in self.body_loads() if not s.is_write and n < self.body_ops]
        return min(reused) + len(reused) - 1 if reused else 0.0

    def _registers(self, level: Level) -> float:
        if level.kind == "vector":
            return self.vectors
        return float(level.trips) if level.kind == "unroll" else level.count

    def body_loads(self) -> list[tuple[Stream, float]]:
        """Loads (or stores) that each stream takes in one run of the body [instructions]."""
        out: list[tuple[Stream, float]] = []
        for s in self.streams:
            if s.per_result or s.where == "register":
                continue
            loads = float(s.members)
            for position in range(self.body, len(self.levels)):
                level = self.levels[position]
                stride = stride_at(s, position)
                if level.kind != "vector":
                    loads *= level.trips if stride else 1
                elif stride == 1:
                    loads *= self.vectors
                elif stride:
                    # Lanes a few elements apart come from contiguous loads that are shuffled.
                    loads *= min(self.vectors * stride, level.trips)
            out.append((s, loads))
        return out

    def latency_slots(self) -> float:
        """Cycles that a chain of dependent updates takes; 0 where nothing waits [cycles]."""
        state = self.accumulators
        if not state:
            return 0.0
        inner = self.levels[max(0, self.body - 1) :]
        if not any(x.reduced for x in inner):
            return 0.0
        return FMA_LATENCY_CYCLES * self.bodies * self.body_ops / state

    def chain_instructions(self) -> float:
        """Instructions of one chain of dependent updates, and of what runs beside it."""
        loads = sum(n for _, n in self.body_loads())
        body = self.body_ops * max(1.0, self.facts.ops.slots) + loads + LOOP_INSTRUCTIONS
        inside = self.levels[self.loops.first_reduced : self.body]
        return body * prod(x.count for x in inside if x.reduced)

    @property
    def spilled(self) -> float:
        """Share of its reduction's state that does not stay in registers."""
        state = self.accumulators
        if not state:
            return 0.0
        kept = [x for x in self.levels[self.loops.first_reduced : self.body] if not x.reduced]
        if any(x.kind != "unroll" for x in kept):
            return 1.0  # indexed by a loop, so it is an array
        return max(0.0, 1.0 - (self.registers - 2) / state)

    def instructions_loaded(self) -> float:
        """Slots of all bodies' loads and stores, as ``STORE_SLOTS`` has them; operands that the
        loop around does not move are kept."""
        total = (1 + STORE_SLOTS) * self.spilled * self.bodies * self.body_ops
        for s, loads in self.body_loads():
            around = self.body - 1
            times = self.bodies
            if around >= 0 and not s.is_write and not s.moved_by(around):
                times /= max(1.0, self.levels[around].count)
            total += loads * times * (STORE_SLOTS if s.is_write else 1)
        for s in self.streams:
            if s.per_result and s.where != "register":
                total += self.facts.results * s.members / self.lanes
        return total


def stride_at(stream: Stream, position: int) -> int:
    """Stride [elements] of a stream along the loop at ``position``; 0 where it does not move."""
    return next((m.stride for m in stream.moves if m.level == position), 0)


def profile_statement(
    facts: KernelFacts, structure: LoopStructure, loops: StatementLoops, target: CpuTarget
) -> StatementProfile:
    """The profile of one statement."""
    own = facts.statements[loops.name]
    levels = loops.levels
    body = len(levels)
    while body and levels[body - 1].kind in ("vector", "unroll"):
        body -= 1
    vector = next((p for p, x in enumerate(levels) if x.kind == "vector"), None)
    lanes = max(1, target.lanes(8 * max(own.size, 1)))
    vectors, efficiency = 1, 1.0 / lanes
    if vector is not None:
        vectors = max(1, ceil(levels[vector].trips / lanes))
        efficiency = levels[vector].count / (vectors * lanes)
    ops = float(vectors)
    for x in levels[body:]:
        if x.kind == "unroll":
            ops *= x.count
    return StatementProfile(
        facts=own,
        loops=loops,
        streams=tuple(_streams(facts, structure, loops, own, target.line_bytes)),
        body=body,
        vector=vector,
        lanes=lanes,
        vectors=vectors,
        efficiency=efficiency,
        body_ops=ops,
        bodies=prod(x.count for x in levels[:body]),
        registers=target.vector_registers,
    )


def _streams(
    facts: KernelFacts,
    structure: LoopStructure,
    loops: StatementLoops,
    own: StatementFacts,
    line: int,
) -> list[Stream]:
    """The statement's accesses, those that move alike as one stream."""
    grouped: dict[tuple[object, ...], list[Access]] = {}
    moves_of: dict[tuple[object, ...], list[Move]] = {}
    offsets: dict[tuple[object, ...], list[int]] = {}
    for access in own.accesses:
        address = facts.address(access, structure.layouts.get(access.tensor))
        moving = (address.linear, address.parts, address.irregular)
        key: tuple[object, ...] = (access.root, access.is_write, access.per_result, moving)
        offsets.setdefault(key, []).append(address.offset)
        if key not in grouped:
            moves_of[key] = loop_moves(address, loops.levels)
        grouped.setdefault(key, []).append(access)
    out: list[Stream] = []
    for key, accesses in grouped.items():
        first = accesses[0]
        moves, where = moves_of[key], "memory"
        if len(accesses) > 1:
            apart = offset_moves(offsets[key], moves)
            moves = sorted([*moves, *apart], key=lambda m: m.stride)
        depth = loops.first_reduced if first.per_result else len(loops.levels)
        most = facts.tensor_bytes[first.tensor] / line
        kept = structure.kept.get(first.tensor)
        if kept is not None and first.tensor in structure.promoted:
            depth = min(depth, len(kept.path))
        elif kept is not None:
            where = kept.scope
            path = set(kept.path)
            names = [x.name for x in loops.levels]
            moves = [m for m in moves if m.level == INSIDE or names[m.level] not in path]
            most = max(1.0, kept.bytes / line)
        lines = [
            lines_touched(moves, min(p, depth), first.size, line, most)
            for p in range(len(loops.levels) + 1)
        ]
        out.append(
            Stream(
                tensor=first.root,
                size=first.size,
                moves=tuple(moves),
                lines=tuple(lines),
                depth=depth,
                members=len(accesses),
                is_write=first.is_write,
                is_masked=any(a.is_masked for a in accesses),
                per_result=first.per_result,
                where=where,
            )
        )
    return out


def working_sets(profiles: Sequence[StatementProfile]) -> WorkingSets:
    """Lines that one iteration of each prefix of loops touches, over all statements in it."""
    sets: WorkingSets = {}
    for p in profiles:
        names = tuple(x.name for x in p.levels)
        for position in range(len(names) + 1):
            lines = sets.setdefault(names[:position], {})
            for s in p.streams:
                if s.where != "register":
                    lines[s.tensor] = max(lines.get(s.tensor, 0.0), s.lines[position])
    return sets


def set_sizes(sets: WorkingSets, line: int) -> dict[tuple[str, ...], float]:
    """Bytes of each working set."""
    return {prefix: sum(lines.values()) * line for prefix, lines in sets.items()}


def fitting_level(
    profile: StatementProfile, sizes: Mapping[tuple[str, ...], float], capacity: float
) -> int:
    """The outermost position whose loops' working set fits into ``capacity`` [bytes]."""
    names = tuple(x.name for x in profile.levels)
    for position in range(len(names) + 1):
        if sizes[names[:position]] <= capacity:
            return position
    return len(names)


def traffic_bytes(
    profile: StatementProfile,
    sizes: Mapping[tuple[str, ...], float],
    capacity: float,
    line: int,
) -> float:
    """Bytes that cross into a cache of ``capacity`` [bytes]; what is written crosses twice."""
    fits = fitting_level(profile, sizes, capacity)
    counts = profile.counts
    total = 0.0
    for s in profile.streams:
        if s.where == "memory":
            total += stream_traffic(s, counts, fits) * (2 if s.is_write else 1)
    return total * line


def thrashing_bytes(profile: StatementProfile, target: CpuTarget) -> float:
    """Bytes loaded again and again into the first level, since a body takes more lines of a stream
    from one of its sets than it has places for."""
    line = target.line_bytes
    places = target.l1d_bytes / PAGE_BYTES
    total = 0.0
    for s, loads in profile.body_loads():
        lines = 1.0
        for m in s.moves:
            step = m.stride * s.size
            if profile.body <= m.level < INSIDE and m.stride != ANYWHERE and step >= line:
                sets = PAGE_BYTES // max(line, gcd(step, PAGE_BYTES))
                lines *= max(1.0, m.count / sets)
        if s.where == "memory" and lines > places:
            total += loads * profile.bodies * line
    return total


def conflicting_lines(profile: StatementProfile) -> float:
    """Most lines of one stream that the innermost loops place into one set of the first level."""
    worst = 1.0
    for s in profile.streams:
        same = 1.0
        for m in s.moves:
            step = m.stride * s.size
            inside = INSIDE > m.level >= profile.body - 1 and m.stride != ANYWHERE
            if inside and step >= PAGE_BYTES and step % PAGE_BYTES == 0:
                same *= m.count
        worst = max(worst, same)
    return worst
