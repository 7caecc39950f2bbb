"""The face: ``nestor.compile`` and the compiled model that it returns."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from nestor.config import Config
from nestor.errors import InputError, RefusedByTriton, Unsupported, UserError
from nestor.gpu_device import gpu_device
from nestor.target.gpu import GpuTarget, parse_gpu_targets

if TYPE_CHECKING:
    from nestor.autotune.background import BackgroundTuning
    from nestor.autotune.choosing import ModelTuner
    from nestor.autotune.options import TuneRequest
    from nestor.building import BuiltModel
    from nestor.gpu_building import BuiltGpuModel
    from nestor.on_cpu import BuiltOnCpu
    from nestor.report import Report

    Built: TypeAlias = BuiltModel | BuiltGpuModel | BuiltOnCpu

AUTO = "auto"
"""The target of models that run on the CPU where there is no code for the GPU of their inputs."""

MAX_SIGNATURES = 8
"""How many input signatures a model compiled without example inputs may collect."""


class CompiledModel:
    """A model as native code; call it as the model.

    Compiled at once if example inputs were given, and then bound to their shapes (but for dynamic
    ones). Otherwise compiled at the first call, and again for each new signature of inputs.
    Inference only: outputs carry no gradient.
    """

    def __init__(
        self,
        model: Any,
        config: Config,
        *,
        strict: bool,
        dynamic_shapes: Any,
        name: str,
        release_weights: bool = False,
        tune: TuneRequest | None = None,
    ):
        self._model = model
        self._tune = tune
        self._tunings: list[BackgroundTuning] = []
        self._is_auto = config.target == AUTO
        self._config = replace(config, target="native") if self._is_auto else config
        self._strict = strict
        self._dynamic_shapes = dynamic_shapes
        self._name = name
        self._releases_weights = release_weights
        self._lock = threading.Lock()
        self._fixed: Built | None = None
        self._built: dict[object, Built] = {}

    def compile_for(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> None:
        """Compile now for example inputs, and accept only calls that fit them.

        Raises: ``ExportError`` if the model cannot be exported, ``Unsupported`` in strict mode,
            ``UserError`` if its weights were released.
        """
        if self._fixed is not None and self._releases_weights:
            raise UserError(
                f"'{self._name}' was compiled with release_weights: its weights are gone, so it "
                "cannot be compiled again\nfix: load the model anew, or name the sizes that vary "
                "in dynamic_shapes"
            )
        self._stop_tuning()
        self._fixed = self._build(tuple(args), dict(kwargs or {}))
        self._tune_beside(self._fixed, tuple(args), dict(kwargs or {}))
        if self._releases_weights:
            self._model = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._fixed is not None:
            return self._fixed.executable(*args, **kwargs)
        return self._for_signature(args, kwargs).executable(*args, **kwargs)

    def _for_signature(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Built:
        key = _signature((args, kwargs))
        built = self._built.get(key)
        if built is not None:
            return built
        with self._lock:
            if key in self._built:
                return self._built[key]
            for other in self._built.values():
                if self._dynamic_shapes is not None and other.executable.accepts(*args, **kwargs):
                    self._built[key] = other
                    return other
            if len({id(b) for b in self._built.values()}) >= MAX_SIGNATURES:
                raise UserError(
                    f"'{self._name}' was called with {MAX_SIGNATURES} different input signatures, "
                    "each compiled anew\nfix: name the sizes that vary in dynamic_shapes, or "
                    "compile separately for each use"
                )
            built = self._built[key] = self._build(args, kwargs)
            self._tune_beside(built, args, kwargs)
            return built

    def _build(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Built:
        device, named = gpu_device(args, kwargs), parse_gpu_targets(self._config.target)
        if device is None and not named:
            return self._build_for_cpu(self._model, args, kwargs)
        if not self._is_auto:
            return self._build_for_gpu(args, kwargs, device, named)
        import torch

        from nestor.on_cpu import BuiltOnCpu, copied_to_cpu, moved

        try:
            return self._build_for_gpu(args, kwargs, device, named)
        except (Unsupported, UserError, RefusedByTriton, torch.OutOfMemoryError) as error:
            reason = str(error)
        given, by_name = moved((args, kwargs), "cpu")
        built = self._build_for_cpu(copied_to_cpu(self._model), given, by_name)
        warnings.warn(
            f"'{self._name}' runs on the CPU, with the weights of now: there is no code for "
            f"{device}\n  {reason}",
            stacklevel=2,
        )
        return BuiltOnCpu(built, device)

    def _build_for_cpu(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> BuiltModel:
        from nestor.building import build_model

        tuner = self._tuner()
        return build_model(
            model,
            args,
            kwargs,
            self._config,
            strict=self._strict,
            dynamic_shapes=self._dynamic_shapes,
            name=self._name,
            release_weights=self._releases_weights,
            tune=None if tuner is None else tuner.tune,
            decide=None if tuner is None else tuner.decide,
        )

    def _build_for_gpu(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        device: Any,
        named: tuple[GpuTarget, ...],
    ) -> BuiltGpuModel:
        if self._releases_weights or (self._tune is not None and self._tune.in_background):
            raise Unsupported(
                "release_weights and tune='background' are for CPUs so far\n"
                "fix: leave them out on a GPU"
            )
        if self._tune is not None and device is None:
            raise Unsupported(
                "a model is tuned on the GPU that it runs on, and its inputs lie on none\n"
                "fix: move the model and its inputs to the GPU, or leave tune out"
            )
        from nestor.gpu_building import build_gpu_model, target_of

        own = named
        if device is not None:
            here = target_of(device)
            own = (here, *(t for t in named if t.name != here.name))
        return build_gpu_model(
            self._model,
            args,
            kwargs,
            self._config,
            own,
            device,
            strict=self._strict,
            dynamic_shapes=self._dynamic_shapes,
            name=self._name,
            tune=None if (tuner := self._tuner()) is None else tuner.tune,
        )

    def _tuner(self) -> ModelTuner | None:
        """What searches before the model is compiled, if that was asked for."""
        request = self._tune
        if request is None or request.in_background:
            return None
        from nestor.autotune.choosing import ModelTuner
        from nestor.autotune.options import TuneOptions

        return ModelTuner(self._config, TuneOptions(seconds=request.seconds))

    # ------------------------------------------------------------------ tuning beside calls

    def _tune_beside(self, built: Built, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._tune is not None and self._tune.in_background:
            from nestor.autotune.background import BackgroundTuning
            from nestor.building import BuiltModel, copy_arguments

            if not isinstance(built, BuiltModel):
                return  # tuning is refused on GPUs, and left out of what falls back to the CPU
            args, kwargs = copy_arguments((args, kwargs))
            seconds = self._tune.seconds
            self._tunings.append(BackgroundTuning(self, built, args, kwargs, seconds))

    def _stop_tuning(self) -> None:
        for tuning in self._tunings:
            tuning.end()
        self._tunings.clear()

    def swap(self, old: BuiltModel, new: BuiltModel) -> bool:
        """Serve calls with ``new`` from now on; False if ``old`` serves none any more.

        Calls under way end on ``old``. For tuning in the background.
        """
        with self._lock:
            if self._fixed is old:
                self._fixed = new
                return True
            if self._fixed is not None:
                return False
            keys = [key for key, built in self._built.items() if built is old]
            self._built.update(dict.fromkeys(keys, new))
            return bool(keys)

    @property
    def tuning(self) -> BackgroundTuning | None:
        """The search in the background for the (latest) compilation: ``report()``, ``wait()``,
        ``stop()``; None without one.
        """
        return self._tunings[-1] if self._tunings else None

    def _current(self) -> Built:
        built = self._fixed or next(reversed(self._built.values()), None)
        if built is None:
            raise UserError(
                f"'{self._name}' has not been compiled yet\n"
                "fix: call it once, or pass example inputs to nestor.compile"
            )
        return built

    def report(self) -> Report:
        """What the (latest) compilation did: kernels, externs, times, memory."""
        report = self._current().report()
        return report if self.tuning is None else replace(report, tuning=self.tuning.report())

    def save(self, path: str | Path) -> None:
        """Write the compiled model as an artifact that needs neither PyTorch nor a compiler.

        Raises: ``Unsupported`` if an operator runs in PyTorch, ``OutputError`` if it cannot write.
        """
        self._current().save(Path(path))


def compile(
    model: Any,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    target: str | None = None,
    dynamic_shapes: Any = None,
    strict: bool = False,
    threads: int | None = None,
    name: str | None = None,
    release_weights: bool = False,
    tune: str | float | None = None,
    **settings: Any,
) -> CompiledModel:
    """Compile a PyTorch model.

    Args: model: an ``nn.Module`` in inference mode, or a saved ``torch.export`` program.
        example_inputs: positional arguments (a tuple), or keyword arguments (a dict), or a single
            tensor; None compiles at the first call.
        target: ``native`` (the default), ``x86-64-v3`` (AVX2) or ``x86-64-v4`` (AVX-512); or GPUs
            to be saved for, ``sm_80,sm_90``. Inputs on a GPU mean that GPU; with ``auto`` the CPU
            where there is no code for it (no Triton, an older chip, too little memory): a copy of
            the model, to which inputs are copied and from which results are copied back.
        dynamic_shapes: as of ``torch.export.export``.
        strict: refuse operators that would have to run in PyTorch.
        threads: of a call; None: as many as PyTorch uses.
        release_weights: take the weights over: the compiled model keeps those that its kernels
            read, most of them packed, and ``model`` has none any more (using it is an error, and
            changes of its weights are not seen). Needs example inputs. Buffers that calls update
            stay. Weights that something else refers to take memory as long as it does.
        tune: search for better schedules for so long first, ``"60s"``, ``"10m"`` or seconds; or
            ``"background"``, ``"background:10m"``: serve at once, search in another process, and
            let better kernels take over between calls (see ``CompiledModel.tuning``). What is found
            is kept in the records (``nestor cache``): later compilations take it from there
            without ``tune``. A model without example inputs searches at each compilation.
        settings: other fields of ``nestor.config.Config``.
    Raises: ``UserError``, ``Unsupported`` or ``InternalError``; each says what, where and what to
        do about it.
    """
    if release_weights and example_inputs is None:
        raise InputError(
            "release_weights without example_inputs: the weights could serve one compilation only, "
            "and each signature of inputs needs its own\nfix: pass example inputs"
        )
    config = Config.load(target=target, threads=threads, **settings)
    request = _tuning(tune, release_weights=release_weights)
    compiled = CompiledModel(
        model,
        config,
        strict=strict,
        dynamic_shapes=dynamic_shapes,
        name=name or type(model).__name__,
        release_weights=release_weights,
        tune=request,
    )
    if example_inputs is not None:
        if isinstance(example_inputs, Mapping):
            compiled.compile_for((), example_inputs)
        elif isinstance(example_inputs, tuple | list):
            compiled.compile_for(example_inputs)
        elif hasattr(example_inputs, "shape"):
            compiled.compile_for((example_inputs,))
        else:
            raise InputError(
                f"example_inputs is a {type(example_inputs).__name__}; give a tuple of the model's "
                "arguments, a dict of keyword arguments, or one tensor"
            )
    return compiled


def _tuning(tune: str | float | None, *, release_weights: bool) -> TuneRequest | None:
    """What ``tune=`` asks for."""
    if tune is None:
        return None
    from nestor.autotune.options import parse_tune

    request = parse_tune(tune)
    if request.in_background and release_weights:
        raise InputError(
            "tune='background' with release_weights: other kernels may want the weights packed "
            "otherwise, and they would be gone\nfix: search first, as with tune='60s', or leave "
            "release_weights out"
        )
    return request


def load(path: str | Path, *, threads: int | None = None) -> Any:
    """Load an artifact written by ``CompiledModel.save`` or ``nestor compile``; needs NumPy only.

    Raises: ``ArtifactError`` if it is truncated, altered, or made for another CPU.
    """
    from nestor.runtime.artifact import load_artifact

    return load_artifact(path, threads=threads)


def _signature(value: Any) -> object:
    """What a call is compiled for: structure, and shape and dtype of every array."""
    if isinstance(value, tuple | list):
        return (type(value).__name__, *(_signature(v) for v in value))
    if isinstance(value, Mapping):
        return ("dict", *((k, _signature(v)) for k, v in value.items()))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return (tuple(value.shape), str(value.dtype))
    return value if isinstance(value, int | float | bool | str | None) else repr(value)
