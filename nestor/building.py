"""Build a model that can be called: import, compile, link, bind weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.autotune.choosing import agree, chosen_schedules, is_slower, known_point, time_calls
from nestor.compiler import (
    CompiledProgram,
    ModelKernels,
    PreparedProgram,
    ScheduleChooser,
    Slot,
    compile_prepared,
)
from nestor.config import Config
from nestor.garbage import collected, uncollected
from nestor.interface import InterfaceBuilder
from nestor.ir.program import Extern
from nestor.ir.types import DType
from nestor.linking import Linker
from nestor.model_weights import ModelWeights
from nestor.passes.knobs import Choices
from nestor.report import ExternReport, KernelReport, Report
from nestor.runtime.executable import Executable
from nestor.runtime.manifest import ExternCall, Manifest, TargetInfo, check_manifest
from nestor.runtime.threads import openmp
from nestor.runtime.weights import WeightWatcher
from nestor.target.cpu import CpuTarget, parse_target

if TYPE_CHECKING:
    import numpy as np

    from nestor.autotune.background_worker import Assignment
    from nestor.autotune.pairing import Pair
    from nestor.autotune.program_search import CompareWhole, ProgramTuning
    from nestor.autotune.program_space import ProgramPoint, ProgramSpace
    from nestor.autotune.tuner import Tuning
    from nestor.frontends.torch.model import ImportedModel


TuneModel = Callable[[ModelKernels], "Tuning"]
"""Searches schedules for a model's kernels."""

DecideProgram = Callable[["ProgramSpace", "CompareWhole"], "ProgramTuning | None"]
"""Searches the decisions of a model's passes; None: it does not."""


@uncollected()
def build_model(
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    config: Config,
    *,
    strict: bool = False,
    dynamic_shapes: Any = None,
    name: str = "model",
    release_weights: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tune: TuneModel | None = None,
    decide: DecideProgram | None = None,
) -> BuiltModel:
    """Compile ``model`` for example inputs, with the schedules that records have confirmed.

    Args: release_weights: take the weights over, so that the model has none any more.
        decide, tune: search for better decisions of the passes, and for better schedules, first.
    Raises: ``ExportError``, ``InputError``, ``Unsupported`` (in strict mode, naming the operators).
    """
    from nestor.frontends.torch import import_model

    target = parse_target(config.target)
    start = time.perf_counter()
    imported = import_model(model, args, kwargs, dynamic_shapes=dynamic_shapes, name=name)
    seconds = {"export": imported.export_seconds}
    seconds["lowering"] = time.perf_counter() - start - imported.export_seconds
    space = _program_space(imported, target, config)

    def build(prepared: PreparedProgram, choose: ScheduleChooser | None) -> BuiltModel:
        own = dict(seconds)
        compiled = compile_prepared(
            prepared, config, strict=strict, progress=progress, choose=choose
        )
        own.update(compiled.seconds)
        clock = time.perf_counter()
        built = BuiltModel(imported, compiled, target, config, own)
        own["linking"] = time.perf_counter() - clock
        return built

    # A call of a model that updates something cannot be repeated.
    is_repeatable = not imported.mutated
    decisions = None
    if decide is not None and is_repeatable:
        with collected():
            decisions = decide(space, _WholeModels(space, build, args, kwargs).compare)
    point = known_point(space) if decisions is None else decisions.point
    clock = time.perf_counter()
    choices = Choices(dict(point))
    prepared = space.prepare(choices)
    seconds["passes"] = time.perf_counter() - clock
    tuning = None
    if tune is not None:
        with collected():
            tuning = tune(space.kernels_of(prepared))
    chosen = chosen_schedules(lambda: space.kernels_of(prepared), config, tuning)
    built = build(prepared, (lambda fused: chosen.get(fused.kernel)) if chosen else None)
    if tuning is not None and built.has_chosen_schedules and is_repeatable:
        # What is faster alone need not be so beside others: the whole model decides.
        plain = build(prepared, None)
        if is_slower(built.calling(args, kwargs), plain.calling(args, kwargs)):
            tuning.kept_default = True
            built = plain
    built.tuning, built.decisions = tuning, decisions
    # What records say may be anything; this is what the rules took of it.
    built.point = choices.otherwise()
    if release_weights:
        built.take_weights(model)
    return built


class _WholeModels:
    """Compares a model with decisions of its passes against itself without any."""

    def __init__(
        self,
        space: ProgramSpace,
        build: Callable[[PreparedProgram, ScheduleChooser | None], BuiltModel],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ):
        self._space, self._build = space, build
        self._args, self._kwargs = args, kwargs
        self._default: BuiltModel | None = None

    def compare(self, point: ProgramPoint, seconds: float) -> list[Pair]:
        """Times in turns for ``seconds``, with decisions and without; none if results differ."""
        default = self._default = self._default or self._built({})
        own = self._built(dict(point)).calling(self._args, self._kwargs)
        other = default.calling(self._args, self._kwargs)
        return time_calls(own, other, seconds) if agree(own(), other()) else []

    def _built(self, decided: dict[str, Any]) -> BuiltModel:
        return self._build(self._space.prepare(Choices(decided)), None)


def _program_space(imported: ImportedModel, target: CpuTarget, config: Config) -> ProgramSpace:
    from nestor.autotune.program_space import ProgramSpace

    return ProgramSpace(
        imported.program,
        target,
        config,
        has_updates=bool(imported.mutated),
        sizes=imported.sizes,
    )


def model_kernels(
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    config: Config,
    *,
    dynamic_shapes: Any = None,
    name: str = "model",
) -> ModelKernels:
    """The kernels that ``build_model`` would compile; none is.

    Raises: ``ExportError``, ``InputError``.
    """
    from nestor.frontends.torch import import_model

    imported = import_model(model, args, kwargs, dynamic_shapes=dynamic_shapes, name=name)
    space = _program_space(imported, parse_target(config.target), config)
    return space.at(known_point(space)).kernels


class BuiltModel:
    """A compiled model with its weights, ready to run (``executable``) or to be saved."""

    def __init__(
        self,
        imported: ImportedModel,
        compiled: CompiledProgram,
        target: CpuTarget,
        config: Config,
        seconds: dict[str, float],
        beside: BuiltModel | None = None,
    ):
        self.weights = ModelWeights(imported, compiled)
        self._compiled = compiled
        self._target = target
        self._config = config
        self._seconds = seconds
        self._taken: dict[str, Any] | None = None
        self.tuning: Tuning | None = None
        self.decisions: ProgramTuning | None = None
        self.point: ProgramPoint = () if beside is None else beside.point
        linker = Linker(compiled, target, config)
        self._externs = [c for c in compiled.calls if isinstance(c, Extern)]
        self.objects = linker.objects
        self.manifest = self._make_manifest(linker)
        # The watcher before the weights: what changes in between is then seen.
        if beside is None:
            watcher = WeightWatcher(list(self.weights.watched()))
            self.executable = self._make_executable(self._weights(), watcher)
        else:
            with beside.executable.steady_weights() as arrays:
                self.weights.imported = beside.weights.imported
                watcher = WeightWatcher(list(self.weights.watched()))
                weights = self._weights(self._known_weights(beside, arrays))
                self.executable = self._make_executable(weights, watcher)
            self.executable.take_turns_with(beside.executable)
        if config.thread_count() > 1:
            openmp()  # PyTorch's, so to look for it now rather than in the first call does no harm

    def _make_executable(
        self, weights: Mapping[str, Any], watcher: WeightWatcher | None
    ) -> Executable:
        return Executable(
            self.manifest,
            self.objects,
            weights,
            threads=self._config.threads,
            extern_runner=self._run_extern if self._externs else None,
            watcher=watcher,
            repack=None if watcher is None else self._repack,
            prefer="torch",
        )

    def calling(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any]:
        """A call of the model with these arguments."""
        return lambda: self.executable(*args, **kwargs)

    def with_kernels(self, compiled: CompiledProgram) -> BuiltModel:
        """The same model with kernels of other schedules, for calls from now on.

        Both may be called at the same time. Weights that both keep alike are shared, not copied;
        states are the same, and calls that update them take turns.
        Args: compiled: of the same program.
        """
        seconds = {**self._seconds, **compiled.seconds}
        return BuiltModel(
            self._imported, compiled, self._target, self._config, seconds, beside=self
        )

    def rehearsal(self) -> Executable:
        """An executable that may be run on arguments of one's own without anybody noticing: states
        are copies.
        """
        if not self.executable.writes_arguments:
            return self.executable
        slots = self.manifest.slots
        states = {s.key for s in self.manifest.weights if slots[s.slot].role == "state"}
        with self.executable.steady_weights() as arrays:
            arrays = arrays or self._weights()
            copies = {k: _copy(a) if k in states else a for k, a in arrays.items()}
        return self._make_executable(copies, None)

    def assignment(self, seconds: float) -> Assignment:
        """What a process needs to know to search better schedules for this model.

        Args: seconds: it may take [s].
        """
        from nestor.autotune.background_worker import Assignment

        compiled = self._compiled
        return Assignment(
            program=self._imported.program,
            target=self._target,
            # The number of threads is this process's to know: it has PyTorch's settings.
            config=replace(self._config, threads=self._config.thread_count()),
            has_updates=bool(self._imported.mutated),
            seconds=seconds,
            schedules=compiled.schedules(),
            point=self.point,
            sizes=self._imported.sizes,
        )

    @property
    def _imported(self) -> ImportedModel:
        return self.weights.imported

    @property
    def has_chosen_schedules(self) -> bool:
        """Whether any kernel's schedule is not the default."""
        return bool(self._compiled.chosen)

    def _make_manifest(self, linker: Linker) -> Manifest:
        imported = self._imported
        interface = InterfaceBuilder(imported, linker)
        manifest = Manifest(
            name=imported.program.name,
            target=TargetInfo(
                triple=self._target.triple,
                features=tuple(self._target.required_features),
                name=self._target.cpu,
            ),
            slots=interface.slots,
            functions=tuple(linker.functions),
            calls=linker.calls,
            segments=linker.segments,
            blocks=linker.blocks,
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

    def _known_weights(self, beside: BuiltModel, arrays: Mapping[str, Any]) -> dict[Slot, Any]:
        """What ``beside`` has of this one's weights, by what they are: a tensor in a layout."""
        theirs, original = beside._compiled, self._imported.weights
        # A derived weight is known by its name only where the same program derives it.
        is_same = self._compiled.weight_program == theirs.weight_program
        keys = ((s, beside.weights.key(n)) for n, s in enumerate(theirs.slots))
        return {
            slot: arrays[key]
            for slot, key in keys
            if key in arrays and (is_same or slot.tensor.name in original)
        }

    def _weights(self, known: Mapping[Slot, Any] | None = None) -> dict[str, Any]:
        """Arrays by weight key. Args: known: what is there already."""
        if self._taken is not None:
            return self._taken
        return {**self.weights.arrays(known), **self._extra_states}

    def _repack(self) -> dict[str, Any]:
        """The arrays anew, from the tensors that the model holds now."""
        self.weights.renew()
        return self._weights()

    def take_weights(self, model: Any) -> None:
        """Keep only the arrays that kernels read; ``model`` gets stand-ins without memory.

        Buffers that calls update stay with the model, which sees their new values as before.
        """
        from nestor.frontends.torch import release_weights

        self._taken = self.executable.own_weights()
        states = [self._taken[s.key] for s in self.manifest.weights if s.how == "state"]
        release_weights(model, states)
        self.weights.imported = replace(self._imported, weights={}, owners={})

    def _run_extern(
        self,
        call: ExternCall,
        inputs: list[np.ndarray[Any, Any]],
        outputs: list[np.ndarray[Any, Any]],
        symbols: Mapping[str, int],
    ) -> None:
        """Run a PyTorch operator on the arena's arrays."""
        from nestor.externs import call_extern

        dtypes = [DType(self.manifest.slots[slot].dtype) for slot in call.inputs]
        extern = self._externs[int(call.arguments["extern"])]
        call_extern(extern, inputs, outputs, symbols, dtypes)

    def save(self, path: Path) -> None:
        """Write the artifact. Raises: ``Unsupported`` if it needs PyTorch, ``OutputError``."""
        from nestor.compiler import refuse_externs
        from nestor.runtime.artifact import save_artifact

        refuse_externs(self._externs)
        manifest = replace(self.manifest, statistics=self.report().to_dict())
        arrays = {k: _numpy(v) for k, v in self._weights().items()}
        save_artifact(path, manifest, self.objects, arrays)

    def _memory(self) -> dict[str, int]:
        """Bytes of a call: known at once for fixed sizes, else the most that any call took."""
        memory = self.executable.memory()
        if not self._compiled.main.symbols:
            plan = self.executable.plan_for_symbols()
            memory["arena"] = plan.arena_bytes(self._config.thread_count())
            memory["outputs"] = sum(plan.sizes[o.slot] for o, _ in plan.outputs)
        return memory

    def report(self) -> Report:
        """What the compilation did."""
        compiled = self._compiled
        memory = self._memory()
        is_known = not compiled.main.symbols or memory["outputs"] > 0
        calls: dict[str, list[Any]] = {}
        for call in compiled.calls:
            if not isinstance(call, Extern):
                calls.setdefault(call.key, []).append(call)
        return Report(
            model=self.manifest.name,
            target=self._target.cpu,
            threads=self._config.thread_count(),
            kernels=tuple(
                _kernel_report(f"k{n}", compiled, key, uses)
                for n, (key, uses) in enumerate(calls.items())
            ),
            externs=tuple(
                ExternReport(operator=e.operator, origin=str(e.origin or "")) for e in self._externs
            ),
            compile_seconds=dict(self._seconds),
            cache_hits=compiled.cache_hits,
            tuned_kernels=sum(not compiled.objects[k].refused for k in compiled.chosen),
            tuning_trials=0 if self.tuning is None else self.tuning.trials,
            arena_bytes=memory["arena"] if is_known else None,
            weights_bytes=memory["weights"],
            peak_bytes=memory["arena"] + memory["outputs"] if is_known else None,
            symbols=tuple(
                f"{s.name} in {s.lower}..{'' if s.upper is None else s.upper}"
                for s in compiled.main.symbols
            ),
            refused_fusions=tuple(compiled.refused_fusions),
            layouts=tuple(f"{subject}: {reason}" for subject, reason in compiled.layouts),
        )


def _kernel_report(name: str, compiled: CompiledProgram, key: str, uses: list[Any]) -> KernelReport:
    from nestor.ir.schedule import format_schedule

    compiled_kernel = compiled.objects[key]
    fresh = key not in compiled.cached
    seconds = compiled_kernel.seconds
    return KernelReport(
        name=name,
        statements=uses[0].statements,
        origins=uses[0].origins,
        schedule=format_schedule(compiled_kernel.schedule),
        calls=len(uses),
        check_seconds=seconds.get("check") if fresh else None,
        compile_seconds=sum(seconds.values()) if fresh else None,
        refused=compiled_kernel.refused or "",
    )


def copy_arguments(tree: Any) -> Any:
    """Arguments of a call with tensors of their own."""
    import torch
    from torch.utils import _pytree

    return _pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), tree)


def _copy(array: Any) -> Any:
    return array.copy() if type(array).__module__ == "numpy" else array.detach().clone()


def _numpy(value: Any) -> Any:
    from nestor.weights import memory_array

    return value if type(value).__module__ == "numpy" else memory_array(value)
