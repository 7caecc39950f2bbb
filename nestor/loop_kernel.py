"""``@nestor.kernel``: loop kernels written in Python, compiled to native code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from nestor.config import Config
from nestor.errors import UserError
from nestor.frontends.python import ParsedKernel, parse_kernel
from nestor.ir.narrow_floats import MEMORY, from_bits, to_bits
from nestor.ir.program import Program
from nestor.ir.schedule import format_schedule
from nestor.kernel_binding import Binder, BoundArray, BoundCall
from nestor.kernel_native import NativeOptions, Variants
from nestor.kernel_plan import CallPlan
from nestor.runtime.threads import thread_count

if TYPE_CHECKING:
    from nestor.autotune.tuner import Progress, Tuning
    from nestor.report import Report

OPTIONS = ("reassociate", "contract", "threads")


class Kernel:
    """A loop kernel; calling it runs native code on its arguments, in place.

    Parsed when it is made; compiled at its first call, once for all sizes.

    Args:
        function: what ``@nestor.kernel`` stands above.
        reassociate: sums, products, minima and maxima that a loop accumulates may be evaluated in
            any order.
        contract: a product and a sum may be rounded once (``fma``).
        threads: of a call; None: as ``nestor.config`` says.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        reassociate: bool = False,
        contract: bool = True,
        threads: int | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.reassociate, self.contract, self.threads = reassociate, contract, threads
        self.__nestor_kernel__: ParsedKernel = parse_kernel(function)
        self._binder = Binder(self.__nestor_kernel__, function)
        thread_count(threads)
        options = NativeOptions(reassociate=reassociate, contract=contract, threads=threads)
        self._variants = Variants(self.__nestor_kernel__.program, options)
        self._has_plans = CallPlan.suits(self._binder)
        self._plan: CallPlan | None = None

    @property
    def name(self) -> str:
        """The function's name."""
        return self.__nestor_kernel__.source.name

    @property
    def source(self) -> str:
        """The function's text."""
        return self.__nestor_kernel__.source.text

    @property
    def signature(self) -> inspect.Signature:
        """The function's signature."""
        return self._binder.signature

    @property
    def program(self) -> Program:
        """What the kernel computes, in the order of its Python code."""
        return self.__nestor_kernel__.program

    def interpret(self, *args: Any, **kwargs: Any) -> None:
        """Run the reference interpreter on the arguments, in place: slow, and the definition.

        Raises: ``InputError`` as a call does; ``IRError`` or ``IndexOutOfRange`` for an index
            outside its array.
        """
        from nestor.ir.interpreter import run_program

        bound = self._binder.bind(args, kwargs)
        inputs = {name: _to_logical(a) for name, a in bound.arrays.items()}
        inputs.update((n, _scalar_value(self, n, a)) for n, a in bound.scalars.items())
        results = run_program(self.program, inputs, bound.symbols, exact=True)
        for name, array in bound.arrays.items():
            if array.parameter.written:
                _assign(array, results[name])

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Run on the arguments, in place.

        Raises:
            InputError: an argument does not fit (type, dtype, rank, size, read-only, overlap), or
                with these sizes an access would leave its array.
            IndexOutOfRange: an index that is data lies outside its array.
        """
        plan = self._plan
        if plan is not None and plan.run(args, kwargs):
            return
        bound = self._binder.bind(args, kwargs)
        native = self._variants.for_sizes(bound.symbols)
        native(bound)
        bound.write_back()
        if self._has_plans:
            self._plan = CallPlan(self._binder, native, bound)

    def compile(self) -> None:
        """Compile now, for sizes of at least 1, rather than at the first call."""
        self._variants.default()

    def report(self) -> Report:
        """What compiling did; compiles if that has not happened yet."""
        from nestor.report import KernelReport, Report

        if not self._variants.compiled:
            self.compile()
        forms = self._variants.compiled
        phases: dict[str, float] = {}
        for form in forms:
            for phase, seconds in form.compiled.seconds.items():
                phases[phase] = phases.get(phase, 0.0) + seconds
        return Report(
            model=self.name,
            target=forms[0].target.cpu,
            threads=thread_count(self.threads),
            kernels=tuple(
                KernelReport(
                    name=self.name,
                    statements=tuple(s.name for s in form.program.statements),
                    origins=tuple(
                        dict.fromkeys(str(s.origin) for s in form.origins.statements if s.origin)
                    ),
                    schedule=format_schedule(form.compiled.schedule),
                    check_seconds=form.compiled.seconds.get("check"),
                    compile_seconds=None if form.from_cache else form.compiled.seconds.get("llvm"),
                    refused=form.refused,
                )
                for form in forms
            ),
            compile_seconds=phases,
            cache_hits=sum(form.from_cache for form in forms),
            symbols=tuple(f"{s.name} in {s.lower}.." for s in self.program.symbols),
        )

    def tune(
        self,
        *args: Any,
        seconds: float | str | None = None,
        trials: int | None = None,
        strategy: str = "bayesian",
        seed: int = 0,
        progress: Callable[[Progress], None] = lambda progress: None,
        **kwargs: Any,
    ) -> Tuning:
        """Search the fastest schedule for arguments of these sizes, and use it from now on.

        The arguments stay as they are: candidates run on copies, in processes of their own. Only
        a schedule whose results are right, and that is surely faster than the one without tuning,
        is used, here and in every later process that finds its record.

        Args:
            args, kwargs: as of a call. (A parameter that is called as one of the options below is
                given by its position.)
            seconds: budget [s], or a text as ``"2m"``; without ``trials`` it is a minute.
            trials: candidates at most.
            strategy: see ``nestor tune``. seed: of what it draws.
            progress: is told after each batch.
        Returns: what was tried, and the gain. ``tasks[0].confirmed`` is the time over that without
            tuning, or None if nothing faster was confirmed.
        Raises: as a call; ``UserError`` for a budget or strategy that there cannot be.
        """
        from nestor.autotune.loop_tuning import LoopProblem, tune_loop
        from nestor.autotune.options import TuneOptions, parse_seconds
        from nestor.autotune.strategies import strategy_named
        from nestor.kernel_native import is_small

        strategy_named(strategy)
        if trials is not None and trials < 1:
            raise UserError(f"{trials} trials find nothing; give at least 1")
        budget = None if seconds is None and trials is not None else parse_seconds(seconds or "60s")
        bound, config = self._binder.bind(args, kwargs), Config.load()
        native = self._variants.untuned(bound.symbols)
        inputs = {name: _to_logical(a) for name, a in bound.arrays.items()}
        inputs.update((n, _scalar_value(self, n, a)) for n, a in bound.scalars.items())
        problem = LoopProblem(
            program=native.program,
            sizes=bound.symbols,
            inputs=inputs,
            schedule=native.compiled.schedule,
            target=native.target,
            threads=native.options.thread_count(config),
            is_small=is_small(native.program, bound.symbols),
            reassociate=self.reassociate,
            contract=self.contract,
        )
        options = TuneOptions(seconds=budget, trials=trials, strategy=strategy, seed=seed)
        found = tune_loop(problem, config, options, progress)
        for task in found.tasks:
            if task.confirmed is not None:
                self._variants.use(bound.symbols, task.best.schedule)
                self._plan = None
        return found

    def bind(self, *args: Any, **kwargs: Any) -> BoundCall:
        """Check and bind arguments as a call does. Raises: ``InputError``."""
        return self._binder.bind(args, kwargs)

    def __repr__(self) -> str:
        return f"<nestor.kernel {self.name}{self._binder.signature_text()}>"


def _to_logical(array: BoundArray) -> np.ndarray[Any, Any]:
    """The values as the interpreter holds them."""
    value, dtype = array.given, array.parameter.dtype
    if isinstance(value, np.ndarray):
        return np.asarray(from_bits(value.view(MEMORY[dtype]), dtype)) if dtype in MEMORY else value
    plain = value.detach()
    return np.asarray((plain.float() if dtype in MEMORY else plain).numpy())


def _scalar_value(kernel: Kernel, name: str, array: np.ndarray[Any, Any]) -> Any:
    dtype = next(p.dtype for p in kernel.__nestor_kernel__.parameters if p.name == name)
    return from_bits(array, dtype) if dtype in MEMORY else array


def _assign(array: BoundArray, values: np.ndarray[Any, Any]) -> None:
    given = array.given
    if not isinstance(given, np.ndarray):
        import torch

        array.library.assign(given, torch.from_numpy(values).to(given.dtype))
    elif array.parameter.dtype in MEMORY:
        dtype = array.parameter.dtype
        given.view(MEMORY[dtype])[...] = to_bits(values, dtype)
    else:
        given[...] = values


@overload
def kernel(function: Callable[..., Any], /) -> Kernel: ...
@overload
def kernel(
    *, reassociate: bool = ..., contract: bool = ..., threads: int | None = ...
) -> Callable[[Callable[..., Any]], Kernel]: ...
def kernel(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Decorate a function of affine loops; see ``Kernel`` for the options.

    ::

        @nestor.kernel
        def axpy(a: nestor.f64, x: nestor.f64["N"], y: nestor.f64["N"]):
            for i in range(N):
                y[i] += a * x[i]

    Raises: ``Unsupported`` or ``UserError`` at decoration, with the line, for what is not part of
        the language (``nestor.frontends.python`` describes it).
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise UserError(f"@nestor.kernel has no option '{unknown[0]}'; it has {', '.join(OPTIONS)}")
    if function is None:
        return lambda f: Kernel(f, **options)
    return Kernel(function, **options)
