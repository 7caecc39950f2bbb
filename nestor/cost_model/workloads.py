"""Kernels to measure for training: drawn Programs, taken through the pipeline as models are.

Nothing comes from a frontend: a family's text (``workload_texts``) is parsed, and then goes the way
that a model's Program goes (``run_pipeline``, ``partition_program``, ``canonicalize_kernel``). Each
kernel that comes out is a workload.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nestor.cost_model.kernel_facts import kernel_facts
from nestor.cost_model.op_counts import instance_ops
from nestor.cost_model.roofline import roofline
from nestor.cost_model.workload_texts import FAMILIES, Draw
from nestor.errors import UserError
from nestor.ir.parser import parse_program
from nestor.ir.program import Extern, Program, Statement
from nestor.ir.verifier import verify_program
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.pipeline import PassContext, run_pipeline
from nestor.target.cpu import CpuTarget

MAX_ROOFLINE_NS = 4e6
"""Least time on one thread of the largest kernel drawn [ns]; a fair schedule then stays near
10 ms."""

MIN_ROOFLINE_NS = 500.0
"""Least time of a kernel that is worth measuring [ns]: below it a call's own time counts."""

COPIES_KEPT = 1 / 6
"""Of the kernels that only move data, which most operators bring along."""

MAX_DRAWS = 64
COPY_FAMILY = "copy"
"""What a kernel is called that only moves data, whatever operator it was made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedWorkload:
    """A kernel with what the search space needs, and the family that it belongs to."""

    family: str
    fused: FusedKernel


def program_kernels(program: Program, target: CpuTarget) -> list[FusedKernel]:
    """The kernels of a Program, in canonical names and running order, as a compilation has them."""
    main = run_pipeline(program, PassContext(target=target)).main
    partition = partition_program(main, l2_bytes=target.l2_bytes, cores=target.cores)
    return [canonicalize_kernel(p)[0] for p in partition.parts if not isinstance(p, Extern)]


def draw_program(family: str, seed: int, number: int) -> Program:
    """The ``number``-th Program of a family, small enough to be measured many times.

    Equal arguments give equal Programs, whichever others are drawn.
    Raises: ``UserError`` for an unknown family.
    """
    if family not in FAMILIES:
        raise UserError(f"no family is called '{family}'; there are {', '.join(FAMILIES)}")
    draw = Draw(f"{seed}/{family}/{number}")
    for _ in range(MAX_DRAWS):
        program = parse_program(FAMILIES[family](draw))
        if _is_small(program):
            verify_program(program)
            return program
    raise UserError(f"family '{family}': no small Program in {MAX_DRAWS} draws")


_REFERENCE = CpuTarget(
    cpu="x86-64-v4", features=(), vector_bits=512, vector_registers=32, fma_bits_per_cycle=512
)
"""Sizes are bounded by the roofline of one core of a fixed machine, so that what is drawn does not
depend on where."""


def _is_small(program: Program) -> bool:
    return roofline(kernel_facts(program), _REFERENCE, 1).ns <= MAX_ROOFLINE_NS


def generate_workloads(
    count: int, seed: int, target: CpuTarget, families: Sequence[str] | None = None
) -> Iterator[GeneratedWorkload]:
    """``count`` different kernels, the families in turn.

    Raises: ``UserError`` for an unknown family.
    """
    names = list(families or FAMILIES)
    seen: set[Program] = set()
    made = number = 0
    while made < count and number < 20 * count:
        for family in names:
            keep = Draw(f"{seed}/{family}/{number}/kept")
            for fused in program_kernels(draw_program(family, seed, number), target):
                own = _family(family, fused.kernel)
                is_dropped = own == COPY_FAMILY and not keep.chance(COPIES_KEPT)
                if made == count or is_dropped or fused.kernel in seen:
                    continue
                if roofline(kernel_facts(fused.kernel), _REFERENCE, 1).ns < MIN_ROOFLINE_NS:
                    continue
                seen.add(fused.kernel)
                made += 1
                yield GeneratedWorkload(family=own, fused=fused)
        number += 1


def _family(family: str, kernel: Program) -> str:
    """The family; a kernel that only copies is of its own, unless its family is about copies."""
    if family in ("transpose", "gather"):
        return family
    statements = [s for s in kernel.statements if isinstance(s, Statement)]
    is_moving = all(not _computes(s) for s in statements)
    return COPY_FAMILY if is_moving else family


def _computes(statement: Statement) -> bool:
    """Whether a statement computes anything or reduces."""
    return statement.reduction is not None or instance_ops(statement).slots > 0
