"""Build a model for a GPU: import, passes, Triton kernels, weights on the device."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.compiler import Call, ProgramCalls, plan_calls, refuse_externs
from nestor.config import Config
from nestor.debugging import dump_gpu_compilation
from nestor.errors import Unsupported
from nestor.interface import InterfaceBuilder
from nestor.ir.affine import Affine
from nestor.ir.hashing import canonical_hash
from nestor.ir.program import Extern, Program
from nestor.ir.schedule import Schedule, format_schedule
from nestor.linking import SlotTable, dim_of
from nestor.model_weights import ModelWeights
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_fusion import partition_for_gpu
from nestor.passes.gpu_pipeline import prepare_for_gpu
from nestor.passes.gpu_schedule import gpu_schedule, warps_of
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.report import ExternReport, KernelReport, Report
from nestor.runtime.gpu_executable import GpuExecutable, GpuFunction, Launch
from nestor.runtime.manifest import (
    ExternCall,
    FunctionRef,
    KernelCall,
    Manifest,
    StepLoop,
    TargetInfo,
    check_manifest,
)
from nestor.runtime.weights import WeightWatcher, weight_bytes
from nestor.target.gpu import GpuTarget, gpu_of

if TYPE_CHECKING:
    import torch

    from nestor.codegen.triton import TritonKernel
    from nestor.codegen.triton.cubin import Cubin
    from nestor.frontends.torch.model import ImportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKernel:
    """A kernel that was proved. ``seconds``: what proving and writing it took [s]."""

    schedule: Schedule
    triton: TritonKernel
    seconds: float


@dataclass(slots=True, kw_only=True)
class GpuProgram(ProgramCalls):
    """A Program as calls of Triton kernels.

    Attributes: kernels: by key. loops: calls that run again and again: the first, one past the
        last, how often. refused_fusions: statements that were kept apart, and why.
    """

    kernels: dict[str, GpuKernel] = field(default_factory=dict)
    loops: tuple[tuple[int, int, Affine], ...] = ()
    refused_fusions: list[str] = field(default_factory=list)


def compile_for_gpu(
    imported: ImportedModel, target: GpuTarget, *, strict: bool = False
) -> GpuProgram:
    """Passes, kernels and their Triton code for a model.

    Raises: ``Unsupported`` if a kernel has no code or, in ``strict`` mode, an operator no lowering.
    """
    prepared = prepare_for_gpu(imported.program)
    partition = partition_for_gpu(
        prepared.main, l2_bytes=target.l2_bytes, processors=target.processors
    )
    if strict:
        refuse_externs([p for p in partition.parts if isinstance(p, Extern)])
    canonical = [p if isinstance(p, Extern) else canonicalize_kernel(p) for p in partition.parts]
    program = GpuProgram(
        main=partition.main,
        weight_program=prepared.weight_program,
        loops=tuple((first, last, loop.extent) for loop, first, last in partition.loops),
        refused_fusions=partition.refused,
    )
    tensors = {}
    for fused, origins in _different(partition.parts, canonical):
        key = program.key_of[fused.kernel] = canonical_hash(fused.kernel)
        program.kernels[key], tensors[key] = _kernel(fused, origins)
    plan_calls(program, partition.parts, canonical, lambda kernel, key: tensors[key])
    return program


def _different(
    originals: Sequence[FusedKernel | Extern],
    canonical: Sequence[tuple[FusedKernel, dict[str, str]] | Extern],
) -> list[tuple[FusedKernel, list[str]]]:
    """Each different kernel once, with the operators that it computes somewhere in the model."""
    found: dict[Program, tuple[FusedKernel, list[str]]] = {}
    for original, part in zip(originals, canonical):
        if isinstance(original, Extern) or isinstance(part, Extern):
            continue
        _, origins = found.setdefault(part[0].kernel, (part[0], []))
        origins += [str(s.origin or s.name).split(" at ")[0] for s in original.kernel.statements]
    return list(found.values())


def _precision(origins: Sequence[str]) -> str:
    """How products of float32 are made, by what PyTorch is set to; exactly where it leaves that."""
    import torch

    convolves = [o for o in origins if "conv" in o]
    if len(convolves) == len(origins) and torch.backends.cudnn.allow_tf32:
        return "tf32"
    is_exact = torch.get_float32_matmul_precision() == "highest"
    return "ieee" if is_exact else "tf32"


def _kernel(fused: FusedKernel, origins: Sequence[str]) -> tuple[GpuKernel, Any]:
    from nestor.codegen.triton import emit_kernel

    clock = time.perf_counter()
    schedule = gpu_schedule(fused)
    nest = apply_schedule(fused.kernel, schedule)
    check_nest(fused.kernel, nest)
    summary = ", ".join(dict.fromkeys(origins))
    triton = emit_kernel(nest, summary=summary, precision=_precision(origins))
    made = GpuKernel(schedule=schedule, triton=triton, seconds=time.perf_counter() - clock)
    return made, nest.tensors


def build_gpu_model(
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    config: Config,
    target: GpuTarget,
    device: torch.device,
    *,
    strict: bool = False,
    dynamic_shapes: Any = None,
    name: str = "model",
) -> BuiltGpuModel:
    """Compile ``model`` for example inputs on ``device``.

    Raises: ``ExportError``, ``InputError``, ``Unsupported``.
    """
    from nestor.frontends.torch import import_model

    start = time.perf_counter()
    imported = import_model(model, args, kwargs, dynamic_shapes=dynamic_shapes, name=name)
    seconds = {"export": imported.export_seconds}
    seconds["lowering"] = time.perf_counter() - start - imported.export_seconds
    clock = time.perf_counter()
    program = compile_for_gpu(imported, target, strict=strict)
    dump_gpu_compilation(program, config)
    seconds["kernels"] = time.perf_counter() - clock
    return BuiltGpuModel(imported, program, target, config, device, seconds)


class BuiltGpuModel:
    """A model compiled for a GPU with its weights there, ready to run (``executable``)."""

    def __init__(
        self,
        imported: ImportedModel,
        program: GpuProgram,
        target: GpuTarget,
        config: Config,
        device: torch.device,
        seconds: dict[str, float],
    ):
        self._program, self._target, self._seconds = program, target, seconds
        self.weights = ModelWeights(imported, program)
        self.functions = tuple(
            GpuFunction(
                launch=launch,
                grid=tuple(dim_of(e) for e in k.triton.grid),
                parameters=k.triton.symbols,
                checks=k.triton.checks,
            )
            for k, launch in zip(program.kernels.values(), self._launches(config, device))
        )
        self.manifest = self._make_manifest(imported)
        # The watcher before the weights: what changes in between is then seen.
        watcher = WeightWatcher(list(self.weights.watched()))
        self.executable = GpuExecutable(
            self.manifest,
            self.functions,
            self._arrays(),
            device,
            extern_runner=self._run_extern,
            watcher=watcher,
            repack=self._repack,
        )

    def _launches(self, config: Config, device: torch.device) -> list[Launch]:
        """What starts each kernel: its machine code, or where there is no GPU the interpreter."""
        kernels = self._program.kernels
        if device.type != "cuda":
            from nestor.codegen.triton.launch import launcher

            return [launcher(k.triton, config.cache_dir / "triton") for k in kernels.values()]
        from nestor.codegen.triton.cubin import CubinJob
        from nestor.gpu_store import compile_cubins

        clock = time.perf_counter()
        capability = self._target.capability
        jobs = {}
        for name, k in kernels.items():
            warps = warps_of(k.schedule)
            jobs[name] = CubinJob(
                kernel=k.triton, capability=capability, warps=warps.count, stages=warps.stages
            )
        cubins = compile_cubins(jobs, config)
        self._seconds["cubins"] = time.perf_counter() - clock
        return [cuda_launch(cubins[name], device) for name in kernels]

    def _make_manifest(self, imported: ImportedModel) -> Manifest:
        program, table = self._program, SlotTable(self._program)
        interface = InterfaceBuilder(imported, table)
        numbers = {key: n for n, key in enumerate(program.kernels)}
        manifest = Manifest(
            name=imported.program.name,
            target=TargetInfo(triple="nvptx64-nvidia-cuda", features=(), name=self._target.name),
            slots=interface.slots,
            functions=tuple(
                FunctionRef(object=key, name=k.triton.name) for key, k in program.kernels.items()
            ),
            calls=tuple(
                table.extern_call(c)
                if isinstance(c, Extern)
                else KernelCall(
                    function=numbers[c.key],
                    tensors=c.slots,
                    symbols=tuple(table.symbols.index(n) for n in c.symbols),
                    name="+".join(c.statements),
                    origin="; ".join(c.origins),
                )
                for c in program.calls
            ),
            segments=(),
            loops=tuple(
                StepLoop(first=first, last=last, extent=dim_of(extent))
                for first, last, extent in program.loops
            ),
            inputs=interface.inputs,
            outputs=interface.outputs,
            symbols=interface.symbols,
            weights=(*self.weights.sources(), *interface.extra_weights),
            mutations=interface.mutations,
            input_tree=interface.input_tree,
            output_tree=interface.output_tree,
            argument_names=interface.argument_names,
        )
        check_manifest(manifest)
        self._extra_states = interface.extra_states
        return manifest

    def _arrays(self) -> dict[str, Any]:
        return {**self.weights.arrays(), **self._extra_states}

    def _repack(self) -> dict[str, Any]:
        self.weights.renew()
        return self._arrays()

    def _run_extern(
        self,
        call: ExternCall,
        inputs: list[torch.Tensor],
        outputs: list[torch.Tensor],
        symbols: Mapping[str, int],
    ) -> None:
        """Run a PyTorch operator on the device."""
        from nestor.frontends.torch import run_extern

        extern = self._program.externs()[int(call.arguments["extern"])]
        results = run_extern(extern, dict(zip(extern.inputs, inputs)), symbols)
        for target, result in zip(outputs, results):
            target.copy_(result)

    def save(self, path: Path) -> None:
        """Refused. Raises: ``Unsupported``."""
        raise Unsupported(
            f"'{path}': models compiled for a GPU cannot be saved yet\n"
            "fix: compile where it runs, or for a CPU"
        )

    def report(self) -> Report:
        """What the compilation did."""
        program = self._program
        calls = [c for c in program.calls if isinstance(c, Call)]
        uses = Counter(c.key for c in calls)
        first = {c.key: c for c in reversed(calls)}
        return Report(
            model=self.manifest.name,
            target=self._target.name,
            threads=1,
            kernels=tuple(
                KernelReport(
                    name=f"k{n}",
                    statements=first[key].statements,
                    origins=first[key].origins,
                    schedule=format_schedule(kernel.schedule),
                    calls=uses[key],
                    compile_seconds=kernel.seconds,
                )
                for n, (key, kernel) in enumerate(program.kernels.items())
            ),
            externs=tuple(
                ExternReport(operator=e.operator, origin=str(e.origin or ""))
                for e in program.externs()
            ),
            compile_seconds=dict(self._seconds),
            weights_bytes=weight_bytes(self.manifest),
            refused_fusions=tuple(program.refused_fusions),
        )


def cuda_launch(cubin: Cubin, device: torch.device) -> Launch:
    """What starts a kernel on a device, on PyTorch's current stream."""
    import torch

    from nestor.runtime.cuda import CudaKernel, driver

    with torch.cuda.device(device):
        driver().use_device(torch.cuda.current_device())
        kernel = CudaKernel(
            cubin.code,
            cubin.function,
            warps=cubin.warps,
            shared_bytes=cubin.shared_bytes,
            parameters=cubin.parameters,
        )

    def launch(programs: int, tensors: Sequence[Any], sizes: Sequence[int]) -> None:
        stream = torch.cuda.current_stream(device).cuda_stream
        kernel.launch(programs, [*(t.data_ptr() for t in tensors), *sizes], stream)

    return launch


def target_of(device: torch.device) -> GpuTarget:
    """What a device is.

    Raises: ``Unsupported`` without Triton; ``UserError`` for a chip that is too old.
    """
    import importlib.util

    import torch

    if importlib.util.find_spec("triton") is None:
        raise Unsupported(
            f"inputs lie on {device}, but Triton is not installed\n"
            "fix: pip install 'nestor[gpu]', or move the model and its inputs to the CPU"
        )
    found: Any = torch.cuda.get_device_properties(device)
    return gpu_of((found.major, found.minor), found.multi_processor_count, found.L2_cache_size)
