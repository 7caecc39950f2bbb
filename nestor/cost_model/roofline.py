"""The least time that a kernel takes however it is scheduled: what measured times relate to."""

from __future__ import annotations

from dataclasses import dataclass

from nestor.cost_model.footprint import lines_touched, loop_moves
from nestor.cost_model.kernel_facts import KernelFacts
from nestor.cost_model.loop_structure import Level
from nestor.ir.program import Program, Statement
from nestor.passes.analysis import contraction_roles
from nestor.target.cpu import CpuTarget
from nestor.target.gpu import GpuTarget

L2_BYTES_PER_CYCLE = 56.0
L3_BYTES_PER_CYCLE = 28.0
"""What one core takes from a cache [bytes per cycle], as current server cores do at best."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """The parts of the roofline [ns]."""

    compute_ns: float
    memory_ns: float

    @property
    def ns(self) -> float:
        """The least time [ns]; at least one, so that it divides."""
        return max(self.compute_ns, self.memory_ns, 1.0)


def level_ns(target: CpuTarget, workers: int) -> tuple[float, float, float, float]:
    """Time of a byte [ns] from the first, second, last cache and from memory, ``workers`` busy.

    A core loads from the first level as wide as it multiplies.
    """
    per_cycle = target.ghz * workers
    return (
        8 / (target.fma_bits_per_cycle * per_cycle),
        1 / (L2_BYTES_PER_CYCLE * per_cycle),
        1 / (L3_BYTES_PER_CYCLE * per_cycle),
        1 / target.memory_gbps,
    )


def slot_ns(target: CpuTarget) -> float:
    """Time of one vector instruction's slot on one core [ns]."""
    return target.vector_bits / target.fma_bits_per_cycle / target.ghz


def roofline(facts: KernelFacts, target: CpuTarget, threads: int) -> Roofline:
    """Arithmetic in full vectors on all threads, and every byte moved once.

    Bytes come from the nearest cache that holds them all: kernels are timed warm, as in a model's
    loop.
    """
    workers = max(1, min(threads, target.cores))
    slots = sum(
        s.total_ops.slots / max(1, target.lanes(8 * max(s.size, 1)))
        for s in facts.statements.values()
    )
    moved = compulsory_bytes(facts, target.line_bytes)
    capacities = (target.l1d_bytes * workers, target.l2_bytes * workers, target.l3_bytes)
    level = sum(moved > c for c in capacities)
    return Roofline(slots * slot_ns(target) / workers, moved * level_ns(target, workers)[level])


def gpu_roofline(kernel: Program, facts: KernelFacts, target: GpuTarget) -> Roofline:
    """Arithmetic at the peak of what makes it, and every byte from memory once: caches are cold.

    Products of 16-bit and 8-bit operands, and of f32 rounded to TF32, are made by tensor cores.
    """
    slots = sum(s.total_ops.slots for s in facts.statements.values())
    sizes = {t.dtype.bytes for t in kernel.tensors if t.dtype.is_float and t.role != "temp"}
    has_products = any(
        isinstance(s, Statement) and contraction_roles(s) is not None for s in kernel.statements
    )
    is_narrow = bool(sizes) and max(sizes) <= 4 and (min(sizes) < 4 or target.tf32 != "none")
    tflops = target.tensor_tflops if has_products and is_narrow else target.tflops
    # A slot is a multiplication and an addition.
    compute_ns = 2 * slots / (tflops * 1e3)
    return Roofline(compute_ns, compulsory_bytes(facts) / target.memory_gbps)


def compulsory_bytes(facts: KernelFacts, line: int = 64) -> float:
    """Bytes of the tensors that the kernel shares with others, once: the lines that it touches."""
    used: dict[str, float] = {}
    for s in facts.statements.values():
        levels = [
            Level(name=n, kind="serial", count=e, trips=int(e), advance=((n, 1),))
            for n, e in s.extents.items()
        ]
        for a in s.accesses:
            if facts.tensors[a.root].role != "temp":
                moves = loop_moves(facts.address(a, None), levels)
                most = facts.tensor_bytes[a.root] / line
                lines = lines_touched(moves, 0, a.size, line, most)
                used[a.root] = max(used.get(a.root, 0.0), lines)
    return sum(used.values()) * line
