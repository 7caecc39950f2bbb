"""Build a model for a GPU: import, compile, place its weights; or save it for other machines."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.autotune.choosing import chosen_schedules, is_slower
from nestor.compiler import Call, ModelKernels, refuse_externs
from nestor.config import Config
from nestor.debugging import dump_gpu_compilation
from nestor.errors import RefusedByTriton, Unsupported, UserError
from nestor.garbage import collected, uncollected
from nestor.gpu_compiler import compile_for_gpu, prepare_model_for_gpu
from nestor.gpu_program import GpuKernel, GpuProgram
from nestor.interface import InterfaceBuilder
from nestor.ir.program import Extern, Program
from nestor.ir.schedule import Schedule, format_schedule
from nestor.linking import SlotTable, dim_of
from nestor.model_weights import ModelWeights
from nestor.passes.gpu_schedule import warps_of
from nestor.report import ExternReport, KernelReport, Report
from nestor.runtime.gpu_executable import GpuExecutable
from nestor.runtime.gpu_launches import cuda_launches, graph_maker
from nestor.runtime.gpu_steps import Launch
from nestor.runtime.manifest import (
    ExternCall,
    FunctionRef,
    GpuLaunch,
    KernelCall,
    Manifest,
    StepLoop,
    TargetInfo,
    check_manifest,
)
from nestor.runtime.weights import WeightWatcher, weight_bytes
from nestor.target.gpu import GpuTarget, Tf32, gpu_of
from nestor.weights import memory_array

if TYPE_CHECKING:
    import torch

    from nestor.autotune.tuner import Tuning
    from nestor.codegen.triton.cubin import Cubin
    from nestor.frontends.torch.model import ImportedModel

TRIPLE = "nvptx64-nvidia-cuda"

TuneModel = Callable[[ModelKernels], "Tuning"]
"""Searches a model's kernels."""


@uncollected()
def build_gpu_model(
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    config: Config,
    targets: Sequence[GpuTarget],
    device: torch.device | None,
    *,
    strict: bool = False,
    dynamic_shapes: Any = None,
    name: str = "model",
    tune: TuneModel | None = None,
) -> BuiltGpuModel:
    """Compile ``model`` for example inputs, with the schedules that records have confirmed.

    Args: tune: search for better schedules first.
        targets: that it may be saved for; it runs on the first. device: where it runs, which is
        a GPU like the first target, or the CPU's memory if Triton interprets; None: it is only
        saved.
    Raises: ``ExportError``, ``InputError``, ``Unsupported``.
    """
    from nestor.frontends.torch import import_model

    start = time.perf_counter()
    imported = import_model(model, args, kwargs, dynamic_shapes=dynamic_shapes, name=name)
    seconds = {"export": imported.export_seconds}
    seconds["lowering"] = time.perf_counter() - start - imported.export_seconds
    targets = [replace(t, tf32=_tf32()) for t in targets]
    clock = time.perf_counter()
    prepared = prepare_model_for_gpu(imported, targets[0])
    seconds["passes"] = time.perf_counter() - clock
    tuning = None
    if tune is not None:
        with collected():
            tuning = tune(prepared.kernels())
    chosen = chosen_schedules(prepared.kernels, config, tuning)

    def build(schedules: Mapping[Program, Schedule], *, join: bool = True) -> BuiltGpuModel:
        clock = time.perf_counter()
        program = compile_for_gpu(prepared, strict=strict, chosen=schedules, join=join)
        dump_gpu_compilation(program, config)
        own = {**seconds, "kernels": time.perf_counter() - clock}
        return BuiltGpuModel(imported, program, targets, config, device, own)

    refused = None
    try:
        built = build(chosen)
    except RefusedByTriton as error:
        refused = str(error).splitlines()[0]
    if refused is not None:
        # Each kernel of a model without records has code alone; what else there is gives way.
        built = build({}, join=False)
        if chosen:
            warnings.warn(
                f"schedules on record are left out\n  {refused}\n  fix: tune again", stacklevel=3
            )
            if tuning is not None:
                tuning.kept_default = True
        chosen = {}
    if tuning is not None and chosen and device is not None and not imported.mutated:
        # What is faster alone need not be so beside others: the whole model decides.
        plain = build({})
        if is_slower(built.calling(args, kwargs), plain.calling(args, kwargs)):
            tuning.kept_default = True
            built = plain
    built.tuning = tuning
    return built


def gpu_model_kernels(
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    device: torch.device,
    *,
    dynamic_shapes: Any = None,
    name: str = "model",
) -> ModelKernels:
    """The kernels that ``build_gpu_model`` would compile for a device; none is.

    Raises: ``ExportError``, ``InputError``, ``Unsupported``.
    """
    from nestor.frontends.torch import import_model

    target = replace(target_of(device), tf32=_tf32())
    imported = import_model(model, args, kwargs, dynamic_shapes=dynamic_shapes, name=name)
    return prepare_model_for_gpu(imported, target).kernels()


def _tf32() -> Tf32:
    """In which products PyTorch is set to round operands of float32."""
    import torch

    if torch.get_float32_matmul_precision() != "highest":
        return "all"
    return "convolutions" if torch.backends.cudnn.allow_tf32 else "none"


class BuiltGpuModel:
    """A model compiled for GPUs: ready to run, with its weights on the device, or to be saved."""

    def __init__(
        self,
        imported: ImportedModel,
        program: GpuProgram,
        targets: Sequence[GpuTarget],
        config: Config,
        device: torch.device | None,
        seconds: dict[str, float],
    ):
        self._program, self._targets, self._seconds = program, tuple(targets), seconds
        self._config, self._imported = config, imported
        self.weights = ModelWeights(imported, program)
        self._table = SlotTable(program)
        self._interface = InterfaceBuilder(imported, self._table)
        self._cubins: dict[str, dict[str, Cubin]] = {}
        is_compiled = device is None or device.type == "cuda"
        self.manifest = self._manifest(targets[0], self.code(targets[0]) if is_compiled else None)
        self.tuning: Tuning | None = None
        self._executable: GpuExecutable | None = None
        if device is not None:
            self._executable = self._run_on(device)

    @property
    def executable(self) -> GpuExecutable:
        """What runs it. Raises: ``UserError`` if it was compiled for another machine."""
        if self._executable is None:
            names = ", ".join(t.name for t in self._targets)
            raise UserError(
                f"model '{self.manifest.name}' was compiled for {names}, not to be called here\n"
                "fix: save it, and load it where such a GPU is"
            )
        return self._executable

    def calling(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any]:
        """A call that ends when the device is done."""
        executable = self.executable

        def call() -> Any:
            found = executable(*args, **kwargs)
            executable.wait()
            return found

        return call

    def _run_on(self, device: torch.device) -> GpuExecutable:
        launches: Sequence[Launch]
        if device.type == "cuda":
            launches = cuda_launches(self.manifest, self._objects(self._targets[0]), device)
        else:
            from nestor.codegen.triton.launch import launcher

            folder = self._config.cache_dir / "triton"
            launches = [launcher(k.triton, folder) for k in self._program.kernels.values()]
        # The watcher before the weights: what changes in between is then seen.
        watcher = WeightWatcher(list(self.weights.watched()))
        return GpuExecutable(
            self.manifest,
            launches,
            self._arrays(),
            device,
            extern_runner=self._run_extern,
            make_graph=graph_maker(device) if device.type == "cuda" else None,
            watcher=watcher,
            repack=self._repack,
        )

    # ------------------------------------------------------------------------------ code

    def code(self, target: GpuTarget) -> dict[str, Cubin]:
        """Machine code of each kernel, by key; compiled at the first question."""
        from nestor.codegen.triton.cubin import CubinJob
        from nestor.gpu_store import compile_cubins

        if target.name not in self._cubins:
            clock = time.perf_counter()
            jobs = {}
            for key, kernel in self._program.kernels.items():
                warps = warps_of(kernel.schedule)
                jobs[key] = CubinJob(
                    kernel=kernel.triton,
                    capability=target.capability,
                    shared_bytes=target.shared_bytes,
                    warps=warps.count,
                    stages=warps.stages,
                )
            self._cubins[target.name] = compile_cubins(jobs, self._config)
            self._seconds[f"code for {target.name}"] = time.perf_counter() - clock
        return self._cubins[target.name]

    def _objects(self, target: GpuTarget) -> dict[str, bytes]:
        return {_digest(c): c.code for c in self.code(target).values()}

    def _manifest(self, target: GpuTarget, code: Mapping[str, Cubin] | None) -> Manifest:
        """The manifest for a target. Args: code: its machine code; None: Triton interprets."""
        program, table, interface = self._program, self._table, self._interface
        numbers = {key: n for n, key in enumerate(program.kernels)}
        manifest = Manifest(
            name=self._imported.program.name,
            target=TargetInfo(triple=TRIPLE, features=(), name=target.name),
            slots=interface.slots,
            functions=tuple(
                FunctionRef(object=key, name=kernel.triton.name)
                if code is None
                else FunctionRef(object=_digest(code[key]), name=code[key].function)
                for key, kernel in program.kernels.items()
            ),
            launches=tuple(
                _launch(kernel, target, None if code is None else code[key])
                for key, kernel in program.kernels.items()
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
        return manifest

    # ------------------------------------------------------------------------------ weights, calls

    def _arrays(self) -> dict[str, Any]:
        return {**self.weights.arrays(), **self._interface.extra_states}

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
        """Write the artifact, with code for every target.

        Raises: ``Unsupported`` if it needs PyTorch's operators, ``OutputError``.
        """
        from nestor.runtime.artifact import save_artifact

        refuse_externs(self._program.externs())
        manifests = [self._manifest(t, self.code(t)) for t in self._targets]
        objects = {d: c for t in self._targets for d, c in self._objects(t).items()}
        arrays = {
            k: v if type(v).__module__ == "numpy" else memory_array(v)
            for k, v in self._arrays().items()
        }
        save_artifact(path, manifests, objects, arrays)

    def report(self) -> Report:
        """What the compilation did."""
        program = self._program
        calls = [c for c in program.calls if isinstance(c, Call)]
        uses = Counter(c.key for c in calls)
        first = {c.key: c for c in reversed(calls)}
        return Report(
            model=self.manifest.name,
            target=", ".join(t.name for t in self._targets),
            threads=1,
            kernels=tuple(
                KernelReport(
                    name=kernel.name,
                    statements=first[key].statements,
                    origins=first[key].origins,
                    schedule=format_schedule(kernel.schedule),
                    calls=uses[key],
                    compile_seconds=kernel.seconds,
                )
                for key, kernel in program.kernels.items()
            ),
            externs=tuple(
                ExternReport(operator=e.operator, origin=str(e.origin or ""))
                for e in program.externs()
            ),
            compile_seconds=dict(self._seconds),
            weights_bytes=weight_bytes(self.manifest),
            refused_fusions=tuple(program.refused_fusions),
        )


def _launch(kernel: GpuKernel, target: GpuTarget, cubin: Cubin | None) -> GpuLaunch:
    """How a kernel is started."""
    warps = warps_of(kernel.schedule)
    return GpuLaunch(
        grid=tuple(dim_of(e) for e in kernel.triton.grid),
        sizes=kernel.triton.symbols,
        checks=kernel.triton.checks,
        written=kernel.triton.written,
        most=warps.persistent * target.processors,
        warps=warps.count if cubin is None else cubin.warps,
        shared_bytes=0 if cubin is None else cubin.shared_bytes,
        scratch_bytes=0 if cubin is None else cubin.scratch_bytes,
        parameters=0 if cubin is None else cubin.parameters,
    )


def _digest(cubin: Cubin) -> str:
    return hashlib.sha256(cubin.code).hexdigest()


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
    return gpu_of(
        (found.major, found.minor),
        found.multi_processor_count,
        found.L2_cache_size,
        found.shared_memory_per_block_optin,
    )
