"""Features of a kernel that is scheduled for a GPU, and an estimate of its time from them.

Nothing is built or compiled: loops come from the steps (``loop_structure``). The estimate is a
roofline whose parts know the schedule: products by the sides of their tiles, memory by what
programs that run at the same time read together, processors by how evenly programs fill them and by
what they have under way. No GPU has confirmed its constants yet; a search takes it for a first
opinion, and learns from its trials how far to trust it.

Source: Williams, Waterman, Patterson, Roofline, CACM 2009; Hong, Kim, An analytical model for a GPU
architecture, ISCA 2009 (what waits for what); Volkov, Understanding latency hiding on GPUs, 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2, prod

import numpy as np
from numpy.typing import NDArray

from nestor.cost_model.feature_table import Feature, table
from nestor.cost_model.footprint import lines_touched, loop_moves
from nestor.cost_model.kernel_facts import Access, KernelFacts, StatementFacts, kernel_facts
from nestor.cost_model.loop_structure import Level, StatementLoops, loop_structure
from nestor.cost_model.roofline import compulsory_bytes, gpu_roofline
from nestor.cost_model.statement_features import log2p
from nestor.ir.program import Program
from nestor.ir.schedule import PredicatedTile, Schedule, Warps
from nestor.passes.analysis import contraction_roles
from nestor.passes.online_attention import is_online
from nestor.target.gpu import GpuTarget

GPU_FEATURES_VERSION = 1

SECTOR = 32
"""What a GPU reads at least [bytes]."""

LATENCY_NS = 700.0
"""From a load of memory to its value [ns]."""

LAUNCH_NS = 2000.0
"""A kernel's beginning and end [ns]."""

L2_SPEEDUP = 2.0
"""How much faster the last cache delivers than memory."""

THREADS = 2048
"""Of a processor; with no more than ``PROGRAMS`` programs."""

PROGRAMS = 32

TENSOR_SIDE = 24.0
"""Rows, or columns, of a product's tile whose operands take as long to come from shared memory as
their products take."""

OWN_REGISTERS = 40
"""Of a thread, for addresses and counters."""

OVERLAP = 4.0
"""Things that a processor does at once take the power mean, of this order, of their times."""

GPU_FEATURES: tuple[Feature, ...] = table(
    """
    capability     | number       | of the chip
    processors     | count        | multiprocessors of the chip
    roofline       | log2 ns      | the least time of any schedule
    balance        | log2 ratio   | arithmetic of the roofline over its memory
    programs       | log2 count   | of the grid
    turns          | log2 count   | iterations of a program's loops, of the longest statement
    tile           | log2 count   | elements of the largest tile
    results        | log2 count   | results of the largest tile
    warps          | count        | of a program
    stages         | count        | iterations whose loads are under way
    group          | log2 count   | programs of neighbouring rows that start together
    persistent     | count        | programs a processor that take tile after tile
    descriptors    | flag         | operands are copied as boxes
    specialize     | flag         | warps have different work
    padding        | log2 ratio   | elements of tiles over instances
    registers      | log2 count   | of a thread, as estimated
    spilled        | log2 ratio   | registers that a thread has too many
    shared         | log2 bytes   | of shared memory, as estimated
    resident       | log2 count   | programs that a processor runs at once
    fill           | log2 ratio   | what an even share of the programs is of the busiest processor's
    flight         | log2 bytes   | of loads and stores that a processor has under way
    tensor_share   | ratio        | of the arithmetic that tensor cores do
    l2_bytes       | log2 bytes   | that programs read and write
    memory_bytes   | log2 bytes   | that cross to memory
    reuse          | log2 ratio   | of those over what crosses at least
    compute        | log2 ratio   | time of arithmetic over the roofline
    l2_time        | log2 ratio   | time of the last cache over the roofline
    memory_time    | log2 ratio   | time of memory over the roofline
    waiting        | log2 ratio   | time of loads that wait for each other over the roofline
    estimate       | log2 ratio   | the estimated time over the roofline
    """
)
"""Names, units, meanings; in the vector's order."""


@dataclass(frozen=True, slots=True)
class _Statement:
    """A statement's loops, and the sizes of its tile's: ``tile`` by name, whole ones."""

    facts: StatementFacts
    loops: StatementLoops
    tile: dict[str, int]

    @property
    def elements(self) -> int:
        """Of a tile."""
        return prod(self.tile.values())

    def count(self, *kinds: str) -> float:
        """Iterations of the loops of some kinds."""
        return prod(x.count for x in self.loops.levels if x.kind in kinds)

    @property
    def reduced(self) -> int:
        """Terms of a tile for each of its results."""
        own = {x.name for x in self.loops.levels if x.reduced}
        return prod(size for name, size in self.tile.items() if name in own)

    @property
    def is_product(self) -> bool:
        """Whether tensor cores may do it."""
        s = self.facts.statement
        return contraction_roles(s) is not None or is_online(s)


class GpuFeatures:
    """Features of many schedules of one kernel.

    Args: kernel, target: what is scheduled, for what. facts: of the kernel, if known.
    """

    def __init__(self, kernel: Program, target: GpuTarget, *, facts: KernelFacts | None = None):
        self.facts = facts or kernel_facts(kernel)
        self.target = target
        self.roofline = gpu_roofline(kernel, self.facts, target)
        self.compulsory = compulsory_bytes(self.facts, SECTOR)

    def extract(self, schedule: Schedule) -> NDArray[np.float32]:
        """The vector of ``GPU_FEATURES`` of one schedule."""
        values = self.describe(schedule)
        return np.array([values[f.name] for f in GPU_FEATURES], dtype=np.float32)

    def estimate_ns(self, schedule: Schedule) -> float:
        """The estimated time [ns]."""
        return float(self.roofline.ns * 2.0 ** self.describe(schedule)["estimate"])

    def describe(self, schedule: Schedule) -> dict[str, float]:
        """Features by name. Raises: ``UserError`` for a step that does not fit the kernel."""
        return _Scheduled(self, schedule).values()


def rank_gpu_schedules(
    kernel: Program, target: GpuTarget, *, sizes: Mapping[str, int] | None = None
) -> Callable[[Sequence[Schedule]], NDArray[np.float64]]:
    """A function that gives schedules of a kernel their expected speed, up to a common factor.

    Args: sizes: of the kernel's symbols; those left out get a typical one.
    """
    features = GpuFeatures(kernel, target, facts=kernel_facts(kernel, sizes))
    return lambda schedules: np.array([1.0 / features.estimate_ns(s) for s in schedules])


class _Scheduled:
    """One schedule's values."""

    def __init__(self, kernel: GpuFeatures, schedule: Schedule):
        self.kernel, self.target, self.facts = kernel, kernel.target, kernel.facts
        found = (s for s in schedule if isinstance(s, Warps))
        self.warps = next(found, Warps(count=4, stages=3))
        structure = loop_structure(self.facts, schedule)
        tiles = [s for s in schedule if isinstance(s, PredicatedTile)]
        self.statements = []
        for loops in structure.statements:
            own = {f"{t.loop}.i": t.size for t in tiles if t.loop.startswith(f"{loops.name}.")}
            # Loops of a tile that nothing was made of by tiling run whole.
            for x in loops.levels:
                if x.kind in ("vector", "unroll"):
                    own.setdefault(x.name, 1 << (x.trips - 1).bit_length())
            self.statements.append(_Statement(self.facts.statements[loops.name], loops, own))
        self.kept = frozenset(structure.kept)
        self.programs = max(1.0, max(s.count("grid") for s in self.statements))

    def values(self) -> dict[str, float]:
        target, warps = self.target, self.warps
        least = self.kernel.roofline.ns
        largest = max(self.statements, key=lambda s: s.elements)
        turns = max(1.0, max(s.count("serial") for s in self.statements))
        registers, shared = self._registers(), self._shared()
        resident = self._resident(registers, shared)
        fill = self._fill(resident)
        flight = self._flight(resident, turns)
        spilled = max(1.0, registers / 255)
        compute, tensor_share, padding = self._compute()
        l2 = sum(self._traffic(s) for s in self.statements)
        memory = self._memory(resident)
        gbps = target.memory_gbps
        needed = gbps * LATENCY_NS / target.processors
        speed = gbps * min(1.0, flight / needed)
        times = {
            "compute": compute / fill * spilled,
            "l2_time": l2 / (gbps * L2_SPEEDUP) / fill,
            "memory_time": memory / speed,
            "waiting": self._waiting(turns, resident),
        }
        total = LAUNCH_NS + _overlapped(list(times.values()))
        own = self.kernel.roofline
        return {
            "capability": float(target.capability),
            "processors": float(target.processors),
            "roofline": log2(least),
            "balance": log2(max(own.compute_ns, 0.1) / max(own.memory_ns, 0.1)),
            "programs": log2p(self.programs),
            "turns": log2p(turns),
            "tile": log2p(largest.elements),
            "results": log2p(largest.elements / largest.reduced),
            "warps": float(warps.count),
            "stages": float(warps.stages),
            "group": log2p(warps.group),
            "persistent": float(warps.persistent),
            "descriptors": float(warps.descriptors),
            "specialize": float(warps.specialize),
            "padding": log2(padding),
            "registers": log2p(registers),
            "spilled": log2(spilled),
            "shared": log2p(shared),
            "resident": log2p(resident),
            "fill": log2(fill),
            "flight": log2p(flight),
            "tensor_share": tensor_share,
            "l2_bytes": log2p(l2),
            "memory_bytes": log2p(memory),
            "reuse": log2(max(memory, 1.0) / max(self.kernel.compulsory, 1.0)),
            **{name: log2(max(ns, 1e-3 * least) / least) for name, ns in times.items()},
            "estimate": log2(total / least),
        }

    # ------------------------------------------------------------------------ processors

    def _registers(self) -> float:
        """Of a thread: what its share of the largest tile takes, and states between turns."""
        threads = 32 * self.warps.count
        most = 0.0
        for s in self.statements:
            if s.is_product:
                held = s.elements / s.reduced  # operands stay in shared memory
            else:
                held = s.elements * max(1, len({a.tensor for a in s.facts.accesses}))
            most = max(most, held * max(4, s.facts.size) / 4)
        return OWN_REGISTERS + most / threads

    def _shared(self) -> float:
        """Of a program [bytes]: operands of products, for each iteration that is under way."""
        total = 0.0
        for s in (s for s in self.statements if s.is_product):
            for a in self._reads(s):
                own = self._block(s, a)
                total += own * a.size * max(1, self.warps.stages - 1)
        return total

    def _resident(self, registers: float, shared: float) -> int:
        """Programs that a processor runs at once."""
        threads = 32 * self.warps.count
        most = min(
            PROGRAMS,
            THREADS // threads,
            int(self.target.registers // (min(registers, 255.0) * threads)),
        )
        if shared:
            most = min(most, int(self.target.shared_bytes // shared))
        return max(1, most)

    def _fill(self, resident: int) -> float:
        """An even share of the programs over that of the busiest processor, in (0, 1]."""
        processors = self.target.processors
        if self.warps.persistent:
            resident = min(resident, self.warps.persistent)
        share = self.programs / processors
        # Programs of one processor share it, so only the last turn of each place is uneven.
        places = processors * resident
        rounds = ceil(self.programs / places)
        busiest = min((rounds - 1) * resident + ceil(self._last_round(places) / processors), 1e18)
        return min(1.0, share / max(1.0, busiest))

    def _last_round(self, places: int) -> float:
        return self.programs - (ceil(self.programs / places) - 1) * places

    def _flight(self, resident: int, turns: float) -> float:
        """Bytes of loads and stores that a processor has under way."""
        ahead = max(1, self.warps.stages - 1) if turns > 1 else 1
        own = max(
            sum(self._block(s, a) * a.size for a in s.facts.accesses if a.tensor not in self.kept)
            for s in self.statements
        )
        busy = min(resident, max(1, ceil(self.programs / self.target.processors)))
        return max(float(SECTOR), own * ahead * busy)

    def _waiting(self, turns: float, resident: int) -> float:
        """Time of the loads of one program after the other [ns]."""
        rounds = ceil(self.programs / (self.target.processors * resident))
        ahead = max(1, self.warps.stages - 1)
        return rounds * (LATENCY_NS + (turns - 1) * LATENCY_NS / ahead)

    # ------------------------------------------------------------------------ arithmetic

    def _compute(self) -> tuple[float, float, float]:
        """Time on all processors [ns], the share of tensor cores, and padded over real elements."""
        by_tensor = by_core = 0.0
        padded = real = 0.0
        for s in self.statements:
            run = s.count("grid", "serial") * s.elements
            padded += run
            real += max(1.0, s.facts.instances)
            slots = run * max(1.0, s.facts.ops.slots)
            if s.is_product and self._has_tensor_cores(s):
                by_tensor += 2 * run / (self.target.tensor_tflops * 1e3 * self._tensor_part(s))
            else:
                by_core += 2 * slots / (self.target.tflops * 1e3)
        total = by_tensor + by_core
        return total, by_tensor / total if total else 0.0, max(1.0, padded / real)

    def _has_tensor_cores(self, s: _Statement) -> bool:
        reads = [a.size for a in self._reads(s)]
        return min(reads, default=4) < 4 or self.target.tf32 != "none"

    def _tensor_part(self, s: _Statement) -> float:
        """What operands from shared memory leave of the peak."""
        reduced = {x.name for x in s.loops.levels if x.reduced}
        sides = [n for name, n in s.tile.items() if name not in reduced] or [1]
        slow = 1.0 + sum(TENSOR_SIDE / n for n in sorted(sides)[-2:])
        narrow = 1.0 if self.target.capability < 90 or self.warps.count >= 4 else 0.6
        return narrow / slow

    # ------------------------------------------------------------------------ memory

    def _reads(self, s: _Statement) -> list[Access]:
        """What a statement reads from memory, once an instance."""
        return [
            a
            for a in s.facts.accesses
            if not a.is_write and not a.per_result and a.tensor not in self.kept
        ]

    def _block(self, s: _Statement, a: Access) -> float:
        """Elements of an access in one tile."""
        moved = _moving(self.facts, s, a)
        return float(prod(n for name, n in s.tile.items() if name in moved))

    def _lines(self, s: _Statement, a: Access, levels: Sequence[Level]) -> float:
        most = self.facts.tensor_bytes[a.root] / SECTOR
        moves = loop_moves(self.facts.address(a, None), levels)
        return lines_touched(moves, 0, a.size, SECTOR, max(1.0, most))

    def _traffic(self, s: _Statement) -> float:
        """Bytes between programs and the last cache."""
        levels = s.loops.levels
        tile = [x for x in levels if x.kind in ("vector", "unroll")]
        outer = [x for x in levels if x.kind in ("grid", "serial")]
        total = 0.0
        for a in s.facts.accesses:
            if a.tensor in self.kept:
                continue
            moved = _moving(self.facts, s, a)
            used = [x for x in outer if not (a.per_result and x.reduced)]
            while used and used[-1].kind == "serial" and used[-1].name not in moved:
                used.pop()  # the same block stays for all its iterations
            total += prod(x.count for x in used) * self._lines(s, a, tile) * SECTOR
        return total

    def _memory(self, resident: int) -> float:
        """Bytes between the last cache and memory: what programs that run at the same time read
        together comes once for all of them."""
        everything = sum(
            {a.root: self.facts.tensor_bytes[a.root] for a in self._outside()}.values()
        )
        if everything <= self.target.l2_bytes / 2:
            return self.kernel.compulsory
        places = self.target.processors * resident
        rounds = max(1.0, self.programs / places)
        total: dict[str, float] = {}
        for s in self.statements:
            levels = self._one_round(s, places)
            for a in s.facts.accesses:
                if a.tensor in self.kept:
                    continue
                moved = rounds * self._lines(s, a, levels) * SECTOR
                whole = self._lines(s, a, s.loops.levels) * SECTOR
                total[a.root] = max(total.get(a.root, 0.0), moved, whole)
        return max(self.kernel.compulsory, sum(total.values()))

    def _outside(self) -> list[Access]:
        return [a for s in self.statements for a in s.facts.accesses if a.tensor not in self.kept]

    def _one_round(self, s: _Statement, places: int) -> list[Level]:
        """The loops of programs that run at the same time."""
        grid = [x for x in s.loops.levels if x.kind == "grid"]
        left = float(places)
        counts: dict[str, float] = {}
        order = list(reversed(grid))
        if self.warps.group > 1 and len(order) > 1:
            counts[order[1].name] = min(float(self.warps.group), order[1].count)
            left = max(1.0, left / counts[order[1].name])
        for x in order:
            if x.name not in counts:
                counts[x.name] = min(left, x.count)
                left = max(1.0, left / x.count)
        return [_with_count(x, counts.get(x.name, x.count)) for x in s.loops.levels]


def _with_count(level: Level, count: float) -> Level:
    return Level(
        name=level.name,
        kind=level.kind,
        count=count,
        trips=level.trips,
        advance=level.advance,
        reduced=level.reduced,
    )


def _moving(facts: KernelFacts, s: _Statement, a: Access) -> frozenset[str]:
    """Names of the loops along which an access moves."""
    levels = s.loops.levels
    return frozenset(levels[m.level].name for m in loop_moves(facts.address(a, None), levels))


def _overlapped(times: Sequence[float]) -> float:
    most = max(times)
    return most * sum((x / most) ** OVERLAP for x in times) ** (1 / OVERLAP) if most else 0.0
