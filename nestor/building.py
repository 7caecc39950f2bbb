"""Build a model that can be called: import, compile, link, bind weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.autotune.choosing import chosen_schedules, is_slower
from nestor.compiler import (
    CompiledProgram,
    ModelKernels,
    ScheduleChooser,
    compile_prepared,
    prepare_program,
    prepared_kernels,
)
from nestor.config import Config
from nestor.interface import InterfaceBuilder
from nestor.ir.program import Extern
from nestor.linking import Linker
from nestor.report import ExternReport, KernelReport, Report
from nestor.runtime.executable import Executable
from nestor.runtime.manifest import ExternCall, Manifest, TargetInfo, WeightSource, check_manifest
from nestor.runtime.threads import openmp
from nestor.runtime.weights import Watched, WeightWatcher
from nestor.target.cpu import CpuTarget, parse_target
from nestor.weights import WEIGHT_ROLES, evaluate_weights, is_live, slot_arrays

if TYPE_CHECKING:
    import numpy as np
    import torch

    from nestor.autotune.tuner import Tuning
    from nestor.frontends.torch.model import ImportedModel


TuneModel = Callable[[ModelKernels], "Tuning"]
"""Searches schedules for a model's kernels."""


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
) -> BuiltModel:
    """Compile ``model`` for example inputs, with the schedules that records have confirmed.

    Args: release_weights: take the weights over, so that the model has none any more.
        tune: search for better schedules first.
    Raises: ``ExportError``, ``InputError``, ``Unsupported`` (in strict mode, naming the operators).
    """
    from nestor.frontends.torch import import_model

    target = parse_target(config.target)
    start = time.perf_counter()
    imported = import_model(model, args, kwargs, dynamic_shapes=dynamic_shapes, name=name)
    seconds = {"export": imported.export_seconds}
    seconds["lowering"] = time.perf_counter() - start - imported.export_seconds
    clock = time.perf_counter()
    prepared = prepare_program(imported.program, target, config, has_updates=bool(imported.mutated))
    seconds["passes"] = time.perf_counter() - clock
    tuning = tune(prepared_kernels(prepared, config)) if tune is not None else None

    def build(choose: ScheduleChooser | None) -> BuiltModel:
        own = dict(seconds)
        compiled = compile_prepared(
            prepared, config, strict=strict, progress=progress, choose=choose
        )
        own.update(compiled.seconds)
        clock = time.perf_counter()
        built = BuiltModel(imported, compiled, target, config, own)
        own["linking"] = time.perf_counter() - clock
        return built

    chosen = chosen_schedules(lambda: prepared_kernels(prepared, config), config, tuning)
    built = build((lambda fused: chosen.get(fused.kernel)) if chosen else None)
    if tuning is not None and built.has_chosen_schedules and not imported.mutated:
        # What is faster alone need not be so beside others: the whole model decides.
        plain = build(None)
        calls = (
            lambda: built.executable(*args, **kwargs),
            lambda: plain.executable(*args, **kwargs),
        )
        if is_slower(*calls):
            tuning.kept_default = True
            built = plain
    built.tuning = tuning
    if release_weights:
        built.take_weights(model)
    return built


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
    prepared = prepare_program(
        imported.program,
        parse_target(config.target),
        config,
        has_updates=bool(imported.mutated),
    )
    return prepared_kernels(prepared, config)


class BuiltModel:
    """A compiled model with its weights, ready to run (``executable``) or to be saved."""

    def __init__(
        self,
        imported: ImportedModel,
        compiled: CompiledProgram,
        target: CpuTarget,
        config: Config,
        seconds: dict[str, float],
    ):
        self._imported = imported
        self._compiled = compiled
        self._target = target
        self._config = config
        self._seconds = seconds
        self._taken: dict[str, Any] | None = None
        self.tuning: Tuning | None = None
        linker = Linker(compiled, target, config)
        self._externs = [c for c in compiled.calls if isinstance(c, Extern)]
        self.objects = linker.objects
        self.manifest = self._make_manifest(linker)
        self.executable = Executable(
            self.manifest,
            self.objects,
            self._weights(),
            threads=config.threads,
            extern_runner=self._run_extern if self._externs else None,
            watcher=WeightWatcher(list(self._watched())),
            repack=self._repack,
            prefer="torch",
        )
        if config.thread_count() > 1:
            openmp()  # PyTorch's, so to look for it now rather than in the first call does no harm

    @property
    def has_chosen_schedules(self) -> bool:
        """Whether any kernel's schedule is not the default."""
        return bool(self._compiled.chosen)

    def _make_manifest(self, linker: Linker) -> Manifest:
        imported = self._imported
        interface = InterfaceBuilder(imported, linker)
        sources = [
            WeightSource(
                slot=position,
                key=self._key(position),
                how="state"
                if slot.tensor.role == "state"
                else "live"
                if is_live(slot, imported.weights)
                else "packed",
            )
            for position, slot in enumerate(self._compiled.slots)
            if slot.tensor.role in WEIGHT_ROLES and slot.tensor.alias_of is None
        ]
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
            weights=(*sources, *interface.extra_weights),
            mutations=interface.mutations,
            input_tree=interface.input_tree,
            output_tree=interface.output_tree,
            argument_names=interface.argument_names,
        )
        check_manifest(manifest)
        self._extra_states = interface.extra_states
        return manifest

    def _key(self, position: int) -> str:
        slot = self._compiled.slots[position]
        return slot.tensor.name if slot.layout is None else f"{slot.tensor.name}@{position}"

    def _weights(self) -> dict[str, Any]:
        """Arrays by weight key: the model's own storage where kernels may read it, else packed."""
        if self._taken is not None:
            return self._taken
        imported, slots = self._imported, self._compiled.slots
        derived = evaluate_weights(imported.weights, self._compiled.weight_program)
        live = {
            n
            for n, s in enumerate(slots)
            if s.tensor.role == "state" or is_live(s, imported.weights)
        }
        arrays: dict[str, Any] = {}
        for position, slot in enumerate(slots):
            if position in live and slot.tensor.name in imported.weights:
                arrays[self._key(position)] = imported.weights[slot.tensor.name].detach()
        rest = [s if n not in live else None for n, s in enumerate(slots)]
        for position, array in slot_arrays(rest, imported.weights, derived).items():
            arrays[self._key(position)] = array
        return {**arrays, **self._extra_states}

    def _watched(self) -> Any:
        """Every weight that has a place in the model; values of live ones may change freely."""
        live = {
            s.tensor.name
            for s in self._compiled.slots
            if s.tensor.role == "state" or is_live(s, self._imported.weights)
        }
        packed = {
            s.tensor.name for s in self._compiled.slots if s.tensor.name not in live or s.layout
        }
        program = self._compiled.weight_program
        if program is not None:
            packed |= {t.name for t in program.by_role("parameter", "constant", "input", "state")}
        for name, owner in self._imported.owners.items():
            container = _container(owner.module, owner.attribute)
            if container is not None:
                tensor = self._imported.weights[name]
                yield Watched(container, owner.attribute, tensor, check_values=name in packed)

    def _repack(self) -> dict[str, Any]:
        """The arrays anew, from the tensors that the model holds now."""
        weights = dict(self._imported.weights)
        for name, owner in self._imported.owners.items():
            current = owner.current()
            if current is not None:
                weights[name] = current
        self._imported = replace(self._imported, weights=weights)
        return self._weights()

    def take_weights(self, model: Any) -> None:
        """Keep only the arrays that kernels read; ``model`` gets stand-ins without memory.

        Buffers that calls update stay with the model, which sees their new values as before.
        """
        from nestor.frontends.torch import release_weights

        self._taken = self.executable.own_weights()
        states = [self._taken[s.key] for s in self.manifest.weights if s.how == "state"]
        release_weights(model, states)
        self._imported = replace(self._imported, weights={}, owners={})

    def _run_extern(
        self,
        call: ExternCall,
        inputs: list[np.ndarray[Any, Any]],
        outputs: list[np.ndarray[Any, Any]],
        symbols: Mapping[str, int],
    ) -> None:
        """Run a PyTorch operator on the arena's arrays."""
        from nestor.externs import call_extern

        call_extern(self._externs[int(call.arguments["extern"])], inputs, outputs, symbols)

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


def _container(module: torch.nn.Module | None, attribute: str) -> Mapping[str, Any] | None:
    if module is None:
        return None
    for container in (module._parameters, module._buffers, module.__dict__):
        if attribute in container:
            return container
    return None


def _numpy(value: Any) -> Any:
    from nestor.weights import memory_array

    return value if type(value).__module__ == "numpy" else memory_array(value)
