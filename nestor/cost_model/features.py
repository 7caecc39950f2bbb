"""Features of a scheduled kernel: what the cost model looks at in place of running it.

``extract_features`` takes well under a millisecond once the kernel's facts are known, since nothing
is built or proved: loops come from the steps alone (``loop_structure``).

Source: Adams et al., Learning to Optimize Halide with Tree Search and Random Programs, SIGGRAPH
2019; Chen et al., Learning to Optimize Tensor Programs, NeurIPS 2018; Zheng et al., Ansor, OSDI
2020 (which describe loops in similar terms; the set here is our own).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2, prod

import numpy as np
from numpy.typing import NDArray

from nestor.cost_model.feature_table import FEATURE_NAMES, FEATURES, FEATURES_VERSION, Feature
from nestor.cost_model.kernel_facts import KernelFacts, kernel_facts
from nestor.cost_model.loop_structure import LoopStructure, loop_structure
from nestor.cost_model.op_counts import KINDS
from nestor.cost_model.roofline import (
    Roofline,
    compulsory_bytes,
    level_ns,
    roofline,
    slot_ns,
)
from nestor.cost_model.sharing import thread_share
from nestor.cost_model.statement_features import log2p, statement_features
from nestor.cost_model.statement_profile import (
    StatementProfile,
    profile_statement,
    set_sizes,
    thrashing_bytes,
    traffic_bytes,
    working_sets,
)
from nestor.cost_model.tile_parts import tile_parts
from nestor.ir.loopnest import LoopNest
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.target.cpu import CpuTarget

__all__ = [
    "FEATURES",
    "FEATURES_VERSION",
    "Feature",
    "KernelFeatures",
    "extract_features",
]

REGION_NS = 500.0
"""Threads starting, or meeting once, while they are awake [ns]."""

ITERATION_CYCLES = 0.5
"""What counting and branching, once a run of a body, add to its own instructions [cycles]."""


OVERLAP = 3.0
"""Things that a core does at once take the power mean, of this order, of their times: the longest
hides most of the others, and not all. This and the constants below rank the schedules of the
training records best."""

THRASHED = 0.5
"""Part of the loads whose lines push each other out that wait for the second level."""

L2_SHARE = 0.57
"""What loads among other work get of the second level's best rate."""

WINDOW = 100.0
"""Instructions that a core looks ahead past a chain of dependent updates: so short a chain hides in
the next one's."""


def extract_features(
    kernel: Program,
    schedule: Schedule,
    target: CpuTarget,
    threads: int,
    *,
    nest: LoopNest | None = None,
    facts: KernelFacts | None = None,
) -> NDArray[np.float32]:
    """The vector of ``FEATURES`` of one schedule, shape (len(FEATURES),).

    Args:
        nest: what the schedule makes, if at hand: it is read for schedules that start with
            ``Arrange`` alone, and built where it is then missing.
        facts: of the kernel, to be worked out only once for many schedules; ``KernelFeatures``
            keeps them.
    Raises: ``UserError`` for a step that does not fit the kernel.
    """
    return KernelFeatures(kernel, target, threads, facts=facts).extract(schedule, nest=nest)


class KernelFeatures:
    """Extracts features of many schedules of one kernel.

    Args: kernel, target, threads: what is scheduled, for what. facts: of the kernel, if known.
    """

    def __init__(
        self,
        kernel: Program,
        target: CpuTarget,
        threads: int,
        *,
        facts: KernelFacts | None = None,
    ):
        self.facts = facts or kernel_facts(kernel)
        self.target = target
        self.workers = max(1, min(threads, target.cores))
        self.roofline: Roofline = roofline(self.facts, target, threads)
        self.compulsory = compulsory_bytes(self.facts, target.line_bytes)
        self._fixed = {**self._target_values(), **self._kernel_values()}

    def extract(self, schedule: Schedule, *, nest: LoopNest | None = None) -> NDArray[np.float32]:
        """The vector of one schedule; see ``extract_features``."""
        values = self.describe(schedule, nest=nest)
        return np.array([values[name] for name in FEATURE_NAMES], dtype=np.float32)

    def describe(self, schedule: Schedule, *, nest: LoopNest | None = None) -> dict[str, float]:
        """The same by name."""
        structure = loop_structure(self.facts, schedule, nest)
        return {**self._fixed, **_Scheduled(self, structure).values()}

    def _target_values(self) -> dict[str, float]:
        t = self.target
        return {
            "threads": float(self.workers),
            "vector_bits": float(t.vector_bits),
            "vector_registers": float(t.vector_registers),
            "fma_bits": float(t.fma_bits_per_cycle),
            "l1d": log2p(t.l1d_bytes),
            "l2": log2p(t.l2_bytes),
            "l3": log2p(t.l3_bytes),
        }

    def _kernel_values(self) -> dict[str, float]:
        facts, ops = self.facts, self.facts.ops
        main = max(facts.statements.values(), key=lambda s: s.total_ops.slots + s.instances)
        balance = max(self.roofline.compute_ns, 0.1) / max(self.roofline.memory_ns, 0.1)
        return {
            "statements": float(len(facts.statements)),
            "instances": log2p(sum(s.instances for s in facts.statements.values())),
            **{f"op_{kind}": log2p(getattr(ops, kind)) for kind in KINDS},
            "element": float(main.size),
            "compulsory": log2p(self.compulsory),
            "input_bytes": log2p(facts.role_bytes("input", "inout", "state")),
            "parameter_bytes": log2p(facts.role_bytes("parameter", "constant")),
            "output_bytes": log2p(facts.role_bytes("output")),
            "intensity": log2p(ops.flops / max(1.0, self.compulsory)),
            "roofline": log2(self.roofline.ns),
            "roofline_balance": log2(balance),
        }


class _Scheduled:
    """One schedule's values: statements' profiles, and what follows from them together."""

    def __init__(self, kernel: KernelFeatures, structure: LoopStructure):
        self.kernel, self.structure = kernel, structure
        self.facts, self.target = kernel.facts, kernel.target
        line = self.target.line_bytes
        self.profiles = [
            profile_statement(self.facts, structure, loops, self.target)
            for loops in structure.statements
        ]
        self.sizes = set_sizes(working_sets(self.profiles), line)
        caches = (self.target.l1d_bytes, self.target.l2_bytes, self.target.l3_bytes)
        self.traffic = [
            tuple(traffic_bytes(p, self.sizes, c, line) for c in caches) for p in self.profiles
        ]
        self.loads = [p.instructions_loaded() for p in self.profiles]
        self.work = [max(p.slots, n, 1.0) for p, n in zip(self.profiles, self.loads)]

    def values(self) -> dict[str, float]:
        order = sorted(range(len(self.work)), key=lambda k: -self.work[k])
        out = self._times(self.profiles[order[0]])
        for prefix, position in (("main_", 0), ("second_", 1)):
            if position < len(order):
                for name, value in self._statement(order[position]).items():
                    out[prefix + name] = value
        for name in FEATURE_NAMES:
            if name.startswith("second_"):
                out.setdefault(name, 0.0)
        return {**out, **self._storage()}

    def _statement(self, k: int) -> dict[str, float]:
        first, second, last = self.traffic[k]
        share = self.work[k] / sum(self.work)
        return statement_features(
            self.profiles[k], self.sizes, (first, second, last), share, self.target
        )

    def _times(self, main: StatementProfile) -> dict[str, float]:
        """Times by resource relative to the roofline, and how threads share them."""
        target, least = self.target, self.kernel.roofline.ns
        slot = slot_ns(target)
        l2, l3, memory = (sum(t[k] for t in self.traffic) for k in range(3))
        l1 = sum(self.loads) * target.vector_bits / 8
        _, l2_ns, l3_ns, memory_ns = level_ns(target, 1)
        l2_ns /= L2_SHARE
        compute = sum(p.slots for p in self.profiles) * slot
        latency = sum(p.latency_slots() for p in self.profiles) / target.ghz
        l1_time = sum(self.loads) * slot
        bodies = sum(p.bodies for p in self.profiles)
        overhead = bodies * ITERATION_CYCLES / target.ghz
        parallel, regions, even = _parallelism(main, self.kernel.workers)
        serial = self._serial_share()
        core = sum(self._core_ns(part, slot) for p in self.profiles for part in tile_parts(p))
        thrashed = sum(thrashing_bytes(p, target) for p in self.profiles)
        crossing = (l2 + THRASHED * thrashed) * l2_ns
        own = _overlapped((core + overhead, crossing, l3 * l3_ns))
        shared = serial + (1 - serial) / even
        total = _overlapped((own * shared, self._memory_time(memory, memory_ns)))
        total += (1 + regions) * REGION_NS if self.kernel.workers > 1 and parallel > 1 else 0.0

        def ratio(ns: float) -> float:
            return log2(max(ns, 1e-3 * least) / least)

        return {
            "estimate": ratio(total),
            "core": ratio(core * shared),
            "thrash": ratio(thrashed * l2_ns * shared),
            "compute": ratio(compute * shared),
            "latency": ratio(latency * shared),
            "l1_time": ratio(l1_time * shared),
            "l2_time": ratio(l2 * l2_ns * shared),
            "l3_time": ratio(l3 * l3_ns * shared),
            "memory_time": ratio(self._memory_time(memory, memory_ns)),
            "overhead": ratio(overhead * shared),
            "l1_bytes": log2p(l1),
            "l2_bytes": log2p(l2),
            "l3_bytes": log2p(l3),
            "memory_bytes": log2p(memory),
            "l2_reuse": self._over_compulsory(l2),
            "l3_reuse": self._over_compulsory(l3),
            "memory_reuse": self._over_compulsory(memory),
            "inner_iterations": log2p(bodies),
            "parallel": log2p(parallel),
            "imbalance": self.kernel.workers / even,
            "grain": log2p(own / max(1.0, parallel * regions)),
            "regions": log2p(regions),
            "serial_share": serial,
            **self._sharing(main),
        }

    def _core_ns(self, part: StatementProfile, slot: float) -> float:
        """Time of instructions alone [ns]: what limits them overlaps, but not perfectly."""
        waiting = part.latency_slots() / self.target.ghz
        waiting /= 1 + WINDOW / max(1.0, part.chain_instructions())
        return _overlapped((part.slots * slot, waiting, part.instructions_loaded() * slot))

    def _sharing(self, main: StatementProfile) -> dict[str, float]:
        target = self.target
        share = thread_share(self.profiles, main, self.kernel.workers, target.line_bytes)
        return {
            "thread_bytes": log2p(share.touched),
            "thread_in_l2": log2(max(1.0, share.touched) / target.l2_bytes),
            "overlap": share.overlap,
            "write_run": log2p(share.write_run),
        }

    def _memory_time(self, moved: float, memory_ns: float) -> float:
        """Nothing, where the last cache holds all tensors from call to call."""
        everything = self.sizes.get((), 0.0)
        return 0.0 if everything <= self.target.l3_bytes else moved * memory_ns

    def _over_compulsory(self, moved: float) -> float:
        return log2(max(moved, 1.0) / max(self.kernel.compulsory, 1.0))

    def _serial_share(self) -> float:
        serial = sum(
            w
            for p, w in zip(self.profiles, self.work)
            if all(x.kind != "parallel" for x in p.levels)
        )
        return serial / sum(self.work)

    def _storage(self) -> dict[str, float]:
        """Temporaries by where they live, and packed parameters."""
        facts, kept = self.facts, self.structure.kept
        by_scope = {"register": 0.0, "local": 0.0}
        for k in kept.values():
            by_scope["register" if k.scope == "register" else "local"] += k.bytes
        temps = sum(
            facts.tensor_bytes[t.name]
            for t in facts.kernel.tensors
            if t.role == "temp" and t.alias_of is None and t.name not in kept
        )
        packed = padded = 0.0
        for name, layout in self.structure.layouts.items():
            tensor = facts.tensors[name]
            packed += prod(facts.value(e) for e in tensor.shape) * tensor.dtype.bytes
            padded += prod(facts.value(e) for e in layout.shape) * tensor.dtype.bytes
        names = {x.name for s in self.structure.statements for x in s.levels}
        return {
            "loops": float(len(names)),
            "kept_registers": log2p(by_scope["register"]),
            "kept_local": log2p(by_scope["local"]),
            "memory_temps": log2p(temps),
            "packed": log2p(packed),
            "padding": 1.0 - packed / padded if padded else 0.0,
        }


def _overlapped(times: Sequence[float]) -> float:
    """The time of several things that run at once [ns]."""
    most = max(times)
    return most * sum((x / most) ** OVERLAP for x in times) ** (1 / OVERLAP) if most else 0.0


def _parallelism(p: StatementProfile, workers: int) -> tuple[float, float, float]:
    """Parallel iterations, parallel regions, and how many threads' work is done at a time."""
    first = next((k for k, x in enumerate(p.levels) if x.kind == "parallel"), None)
    if first is None:
        return 1.0, 0.0, 1.0
    last = first
    while last < len(p.levels) and p.levels[last].kind == "parallel":
        last += 1
    iterations = prod(max(1, x.trips) for x in p.levels[first:last])
    # A last tile may hold less than the others: the busiest thread has whole ones.
    work = prod(x.count for x in p.levels[first:last])
    regions = prod(x.count for x in p.levels[:first])
    return float(iterations), regions, max(1.0, work / ceil(iterations / workers))
