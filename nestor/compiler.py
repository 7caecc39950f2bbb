"""Drive a compile: Program → passes → kernels → jobs (deduplicated, cached, in workers) → calls.

What comes out (``CompiledProgram``) is still symbolic: which slots exist, and which kernel is
called with which. ``linking.py`` turns it into a manifest that the runtime executes.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nestor.config import Config
from nestor.debugging import dump_compilation
from nestor.errors import Unsupported
from nestor.ir.program import Extern, Layout, Program, Tensor
from nestor.ir.schedule import Schedule
from nestor.kernel_job import KernelJob, KernelObject
from nestor.kernel_store import Progress, compile_jobs, job_key
from nestor.passes.batch_blocks import BlockedProgram, split_batch
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.knobs import Choices
from nestor.passes.nest import apply_step, initial_state, is_arranged, nest_tensors
from nestor.passes.overwrite import overwrite_operands
from nestor.passes.pipeline import PassContext, PipelineResult, run_pipeline
from nestor.passes.register_tile import VectorUnit
from nestor.target.cpu import CpuTarget
from nestor.target.gpu import GpuTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One array of the running model: a tensor in one layout."""

    tensor: Tensor
    layout: Layout | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Run kernel ``key`` on ``slots``; ``symbols`` names the shape parameters it takes."""

    key: str
    slots: tuple[int, ...]
    symbols: tuple[str, ...]
    statements: tuple[str, ...]
    origins: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class ProgramCalls:
    """Which arrays a running model has, and which kernels it calls with which.

    Attributes: key_of: of each kernel. blocks: how often all calls run, on the next part of the
        tensors ``in_blocks``.
    """

    main: Program
    weight_program: Program | None
    slots: list[Slot] = field(default_factory=list)
    calls: list[Call | Extern] = field(default_factory=list)
    key_of: dict[Program, str] = field(default_factory=dict)
    blocks: int = 1
    in_blocks: frozenset[str] = frozenset()

    def externs(self) -> list[Extern]:
        """Operators that nobody lowered, in running order."""
        return [c for c in self.calls if isinstance(c, Extern)]


@dataclass(slots=True, kw_only=True)
class CompiledProgram(ProgramCalls):
    """Everything that linking needs.

    Attributes: chosen: keys of kernels whose schedule is not the default.
    """

    objects: dict[str, KernelObject] = field(default_factory=dict)
    refused_fusions: list[str] = field(default_factory=list)
    layouts: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()
    chosen: set[str] = field(default_factory=set)

    @property
    def cache_hits(self) -> int:
        """How many objects came from the cache."""
        return len(self.cached)

    def schedules(self) -> dict[Program, Schedule]:
        """The schedule that each kernel runs with."""
        return {kernel: self.objects[key].schedule for kernel, key in self.key_of.items()}


def compile_program(
    program: Program,
    target: CpuTarget,
    config: Config,
    *,
    strict: bool = False,
    has_updates: bool = False,
    progress: Progress | None = None,
) -> CompiledProgram:
    """Compile a frontend's Program for ``target``.

    Args: has_updates: after the program runs, results are copied to states or to inputs.
    Raises: ``Unsupported`` in ``strict`` mode if an operator has no lowering; names them all.
    """
    clock = time.perf_counter()
    prepared = prepare_program(program, target, config, has_updates=has_updates)
    seconds = time.perf_counter() - clock
    compiled = compile_prepared(prepared, config, strict=strict, progress=progress)
    compiled.seconds["passes"] = seconds
    return compiled


def compile_prepared(
    prepared: PreparedProgram,
    config: Config,
    *,
    strict: bool = False,
    progress: Progress | None = None,
    choose: ScheduleChooser | None = None,
) -> CompiledProgram:
    """Compile a Program after its passes.

    Args: choose: gives kernels schedules; None, or None as its answer: the default.
    Raises: as ``compile_program``.
    """
    result, context = prepared.result, prepared.context
    compiled = CompiledProgram(
        main=result.main,
        weight_program=result.weight_program,
        blocks=prepared.blocked.blocks,
        in_blocks=prepared.blocked.in_blocks,
    )
    compiled.layouts = [(e.subject, e.reason) for e in context.entries("assign_layouts")]
    clock = time.perf_counter()
    kernels = prepared.kernels
    compiled.refused_fusions = kernels.refused
    if strict:
        refuse_externs([p for p in kernels.originals if isinstance(p, Extern)])
    jobs = _plan_jobs(compiled, kernels.different(), prepared.target, choose)
    compiled.seconds["schedules"] = time.perf_counter() - clock
    clock = time.perf_counter()
    compiled.objects, compiled.cached = compile_jobs(jobs, config, progress)
    compiled.seconds["kernels"] = time.perf_counter() - clock
    plan_calls(
        compiled,
        kernels.originals,
        kernels.canonical,
        lambda kernel, key: kernel_arguments(kernel, compiled.objects[key].schedule),
    )
    dump_compilation(compiled, context, prepared.target, config)
    return compiled


@dataclass(frozen=True, kw_only=True)
class PreparedProgram:
    """A Program after all Program → Program passes.

    Attributes: target: what kernels are made for; with blocks, one core of what was asked for.
    """

    blocked: BlockedProgram
    result: PipelineResult
    context: PassContext
    target: CpuTarget

    @functools.cached_property
    def kernels(self) -> PartitionedKernels:
        """What it is cut into."""
        return partition_kernels(self)


def prepare_program(
    program: Program,
    target: CpuTarget,
    config: Config,
    *,
    has_updates: bool = False,
    choices: Choices | None = None,
) -> PreparedProgram:
    """Cut the batch into blocks where that helps, and run the passes.

    Args: choices: decides what the passes, and the partition into kernels, leave open.
    """
    choices = choices or Choices()
    blocked = BlockedProgram(program)
    if not has_updates:
        blocked = split_batch(program, target.cores, choices)
    if blocked.blocks > 1:
        target = replace(target, cores=1)  # a block has one thread
    context = PassContext(
        target=target, config=config, debug="passes" in config.debug, choices=choices
    )
    result = run_pipeline(blocked.program, context)
    return PreparedProgram(blocked=blocked, result=result, context=context, target=target)


ScheduleChooser = Callable[[FusedKernel], "Schedule | None"]
"""Gives a kernel in canonical names its schedule; None: the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKernels:
    """The different kernels of a model, in canonical names, and what they are compiled for.

    Attributes: calls: how often each is called. threads: of one call of a kernel.
        operators: of the model, that each computes; for people.
        sizes: values of each kernel's symbols in the example that the model was compiled for, as
            far as they are known; of a kernel that is called at several, those of its first call.
        precisions: on a GPU, how each kernel makes products of float32 (``GpuTarget.precision``).
    """

    kernels: tuple[FusedKernel, ...]
    calls: tuple[int, ...]
    target: CpuTarget | GpuTarget
    threads: int
    operators: tuple[str, ...] = ()
    sizes: tuple[Mapping[str, int], ...] = ()
    precisions: tuple[str, ...] = ()

    @property
    def cpu(self) -> CpuTarget:
        """The target, for what is done for CPUs alone."""
        assert isinstance(self.target, CpuTarget)
        return self.target

    def sizes_of(self, number: int) -> Mapping[str, int] | None:
        """The example's sizes of a kernel's symbols, by position; None: one is not known."""
        known = self.sizes[number] if self.sizes else {}
        symbols = self.kernels[number].kernel.symbols
        return known if all(s.name in known for s in symbols) else None


def prepared_kernels(
    prepared: PreparedProgram, config: Config, sizes: Mapping[str, int] | None = None
) -> ModelKernels:
    """The kernels that ``compile_prepared`` would compile; none is.

    Args: sizes: of the Program's symbols in the example.
    """
    parts = prepared.kernels
    kernels = parts.different()
    operators: dict[Program, str] = {}
    for original, part in zip(parts.originals, parts.canonical):
        if not isinstance(original, Extern) and not isinstance(part, Extern):
            operators.setdefault(part[0].kernel, _operators(original))
    uses = Counter(part[0].kernel for part in parts.canonical if not isinstance(part, Extern))
    return ModelKernels(
        kernels=tuple(kernels),
        calls=tuple(uses[k.kernel] * prepared.blocked.blocks for k in kernels),
        target=prepared.target,
        threads=kernel_threads(prepared, config),
        operators=tuple(operators[k.kernel] for k in kernels),
        sizes=tuple(_example_sizes(k, parts, sizes or {}) for k in kernels),
    )


def _example_sizes(
    fused: FusedKernel, parts: PartitionedKernels, sizes: Mapping[str, int]
) -> dict[str, int]:
    names = next(p[1] for p in parts.canonical if not isinstance(p, Extern) and p[0] is fused)
    symbols = (s.name for s in fused.kernel.symbols)
    return {s: sizes[names[s]] for s in symbols if names[s] in sizes}


def _operators(fused: FusedKernel) -> str:
    """``linear+relu``: what a kernel's statements come from."""
    origins = (str(s.origin or s.name).split(" at ")[0] for s in fused.kernel.statements)
    names = (o.removeprefix("aten.").split(".")[0] for o in origins)
    return "+".join(dict.fromkeys(names))


def kernel_threads(prepared: PreparedProgram, config: Config) -> int:
    """Threads of one call of a kernel: blocks of a batch have one each."""
    return 1 if prepared.blocked.blocks > 1 else config.thread_count()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionedKernels:
    """A Program's kernels in running order, as they stand in it and in canonical names.

    Attributes: canonical: a kernel, and canonical → original name of its tensors and symbols.
        refused: fusions that were not made, and why.
    """

    originals: list[FusedKernel | Extern]
    canonical: list[tuple[FusedKernel, dict[str, str]] | Extern]
    refused: list[str]

    def different(self) -> list[FusedKernel]:
        """Each different kernel once, in canonical names."""
        found: dict[Program, FusedKernel] = {}
        for part in self.canonical:
            if not isinstance(part, Extern):
                found.setdefault(part[0].kernel, part[0])
        return list(found.values())


def partition_kernels(prepared: PreparedProgram) -> PartitionedKernels:
    """Cut a prepared Program into kernels."""
    main, target = prepared.result.main, prepared.target
    partition = partition_program(
        main, l2_bytes=target.l2_bytes, cores=target.cores, choices=prepared.context.choices
    )
    originals = overwrite_operands(main, partition.parts)
    canonical = [p if isinstance(p, Extern) else canonicalize_kernel(p) for p in originals]
    return PartitionedKernels(originals=originals, canonical=canonical, refused=partition.refused)


def refuse_externs(externs: list[Extern]) -> None:
    """Raise ``Unsupported`` naming every operator without a lowering and its line."""
    if externs:
        lines = "\n".join(f"  {e.operator}  {e.origin or ''}" for e in externs)
        raise Unsupported(
            f"{len(externs)} operator(s) have no lowering; the model cannot run without PyTorch:\n"
            f"{lines}\nfix: replace them in the model, or compile without strict to call PyTorch"
        )


def _plan_jobs(
    compiled: CompiledProgram,
    kernels: list[FusedKernel],
    target: CpuTarget,
    choose: ScheduleChooser | None,
) -> dict[str, KernelJob]:
    """One job for each different kernel; a chosen schedule falls back to the default."""
    unit = VectorUnit(bits=target.vector_bits, registers=target.vector_registers)
    jobs: dict[str, KernelJob] = {}
    for fused in kernels:
        default = default_schedule(fused, unit)
        chosen = choose(fused) if choose is not None else None
        is_chosen = chosen is not None and chosen != default
        job = KernelJob(
            kernel=fused.kernel,
            schedule=chosen if is_chosen and chosen is not None else default,
            target=target,
            function_name="kernel",
            fallbacks=(default,) if is_chosen else (),
        )
        key = job_key(job)
        if is_chosen:
            compiled.chosen.add(key)
        compiled.key_of[fused.kernel] = key
        jobs[key] = job
    return jobs


def plan_calls(
    compiled: ProgramCalls,
    originals: Sequence[FusedKernel | Extern],
    canonical: Sequence[tuple[FusedKernel, dict[str, str]] | Extern],
    arguments_of: Callable[[Program, str], tuple[Tensor, ...]],
) -> None:
    """Fill ``slots`` and ``calls``: which arrays exist, and which kernel runs on which.

    Args: arguments_of: the tensors that the function of a kernel, with its key, takes.
    """
    slot_of: dict[tuple[str, Layout | None], int] = {}
    tensors = {t.name: t for t in compiled.main.tensors}

    def slot(tensor: Tensor, layout: Layout | None) -> int:
        key = (tensor.name, layout)
        if key not in slot_of:
            slot_of[key] = len(compiled.slots)
            compiled.slots.append(Slot(tensor=tensor, layout=layout))
        return slot_of[key]

    for tensor in compiled.main.tensors:
        if tensor.role in ("input", "output", "inout", "state"):
            slot(tensor, tensor.layout)
    for part, renamed in zip(originals, canonical):
        if isinstance(part, Extern) or isinstance(renamed, Extern):
            assert isinstance(part, Extern)
            compiled.calls.append(part)
            for name in (*part.inputs, *part.outputs):
                slot(tensors[name], tensors[name].layout)
            continue
        fused, names = renamed
        key = compiled.key_of[fused.kernel]
        arguments = arguments_of(fused.kernel, key)
        own = {t.name: t.layout for t in fused.kernel.tensors}
        origins = (str(s.origin) for s in part.kernel.statements if s.origin)
        compiled.calls.append(
            Call(
                key=key,
                slots=tuple(
                    # A layout of the kernel's own, not the schedule's, is over canonical symbols.
                    slot(
                        tensors[names[t.name]],
                        tensors[names[t.name]].layout if t.layout == own[t.name] else t.layout,
                    )
                    for t in arguments
                ),
                symbols=tuple(names[s.name] for s in fused.kernel.symbols),
                statements=tuple(s.name for s in part.kernel.statements),
                origins=tuple(dict.fromkeys(origins)),
            )
        )


def kernel_arguments(kernel: Program, schedule: Schedule) -> tuple[Tensor, ...]:
    """The tensors that the scheduled kernel's function takes, with layouts, in order."""
    if is_arranged(schedule):
        return kernel.tensors
    state = initial_state(kernel)
    for step in schedule:
        apply_step(state, step)
    return nest_tensors(state)
