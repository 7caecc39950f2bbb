"""Run a compiled model: check the inputs, fill the table of pointers, make one native call."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from nestor.errors import IndexOutOfRange, InputError, InternalError, Unsupported
from nestor.runtime.checks import (
    call_name,
    check_overwritten,
    check_plain,
    describe,
    tensor_error,
)
from nestor.runtime.dims import evaluate_all
from nestor.runtime.frames import CodeTable, Frame
from nestor.runtime.manifest import ExternCall, KernelCall, Manifest
from nestor.runtime.memory import copy_bytes
from nestor.runtime.outputs import OutputPlan
from nestor.runtime.plan import Layout, ShapePlan, bind_symbols
from nestor.runtime.pool import POOLED_BYTES, OutputPool
from nestor.runtime.structure import CallFlattener, check_tree, make_builder
from nestor.runtime.tensors import (
    DTYPE_NAMES,
    NUMPY,
    Library,
    array_at,
    library_of,
    torch_library,
)
from nestor.runtime.threads import thread_count
from nestor.runtime.weights import BoundWeights, Weights, WeightWatcher, bind_weights, weight_bytes

ExternRunner = Callable[
    [ExternCall, list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]], Mapping[str, int]], None
]
"""Runs an operator of PyTorch: call, input arrays, output arrays to fill, symbols."""

MAX_PLANS = 256
"""Combinations of input shapes whose plans are kept."""


class Executable:
    """A compiled model, ready to run; any number of threads may call it.

    Args:
        manifest: checked (``Manifest.from_json`` or ``check_manifest``).
        objects: object code by digest.
        weights: arrays by key; kept alive, and used in place where their memory fits.
        threads: of a call; None: see ``threads.thread_count``.
        extern_runner: runs the calls of PyTorch operators, if there are any.
        watcher, repack: when the watcher tells of a change, ``repack()`` gives all weights anew.
        prefer: the library of outputs when no input is a tensor.

    Raises:
        ArtifactError: objects or weights that do not fit the manifest.
        Unsupported: it calls PyTorch operators and there is no runner.
    """

    def __init__(
        self,
        manifest: Manifest,
        objects: Mapping[str, bytes],
        weights: Weights | None = None,
        *,
        threads: int | None = None,
        extern_runner: ExternRunner | None = None,
        watcher: WeightWatcher | None = None,
        repack: Callable[[], Weights] | None = None,
        prefer: Literal["numpy", "torch"] = "numpy",
    ):
        if manifest.externs and extern_runner is None:
            names = ", ".join(dict.fromkeys(e.operator for e in manifest.externs))
            raise Unsupported(f"model '{manifest.name}' calls PyTorch operators ({names})")
        thread_count(threads)
        self.manifest = manifest
        self.threads = threads
        self.prefer = prefer
        self._layout = Layout(manifest)
        self._code = CodeTable(manifest, objects)
        self._weights = bind_weights(manifest, self._layout, weights or {})
        self._extern_runner = extern_runner
        self._watcher = watcher
        self._repack = repack
        self._plans: dict[object, tuple[ShapePlan, OutputPlan]] = {}
        self._frames: deque[Frame] = deque()
        self._pool = OutputPool()
        self._lock = threading.Lock()
        # Calls that update state take turns, as the second must see what the first wrote.
        self._state_lock = threading.RLock() if self._weights.states else None
        self._steps = self._make_steps()
        self._plain_inputs = [(i, s) for i, s in enumerate(manifest.inputs) if s.kind != "tensor"]
        self._overwrites = any(t.is_overwritten for t in self._layout.inputs)
        self._flatten = self._make_flattener()
        self._build = self._make_builder()
        self._plan_fixed_shapes()

    def _make_steps(self) -> list[Any]:
        """Entry functions and extern calls in running order."""
        manifest = self.manifest
        entries = dict(zip((s.first for s in manifest.segments), self._code.entries, strict=True))
        steps: list[Any] = []
        for position, call in enumerate(manifest.calls):
            if position in entries:
                steps.append(entries[position])
            elif isinstance(call, ExternCall):
                steps.append(call)
        return steps

    def _make_flattener(self) -> CallFlattener:
        manifest = self.manifest
        if manifest.input_tree is not None:
            check_tree(manifest.input_tree, len(manifest.inputs), "manifest.input_tree")
        nones = frozenset(
            i for i, s in self._plain_inputs if s.kind == "constant" and s.constant is None
        )
        return CallFlattener(manifest.input_tree, manifest.argument_names, nones)

    def _make_builder(self) -> Callable[[Sequence[Any]], Any]:
        tree = self.manifest.output_tree
        count = len(self.manifest.outputs)
        if tree is None:
            return (lambda values: values[0]) if count == 1 else tuple
        check_tree(tree, count, "manifest.output_tree")
        return make_builder(tree)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on arguments of the structure it was compiled with.

        Raises:
            InputError: number, structure, dtype, shape or device do not fit.
            IndexOutOfRange: a data-dependent index lies outside its tensor.
        """
        return self._build(self.run(self._flatten(args, kwargs)))

    def accepts(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a call with these arguments would pass the checks; nothing runs."""
        try:
            inputs = self._flatten(args, kwargs)
            self._check_tensors(inputs)
            self._plan_for(inputs)
        except InputError:
            return False
        return True

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Flat inputs (tensors of PyTorch or NumPy, any strides; scalars) → flat outputs.

        Raises: as ``__call__``.
        """
        if self._state_lock is None:
            return self._run(inputs, self._run_steps)
        with self._state_lock:
            return self._run(inputs, self._run_steps)

    def _run(
        self, inputs: Sequence[Any], run_steps: Callable[[Frame, ShapePlan], None]
    ) -> list[Any]:
        libraries = self._check_tensors(inputs)
        plan, outputs = self._plan_for(inputs)
        if self._watcher is not None and self._watcher.has_changed():
            self._refresh_weights()
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = Frame(len(self.manifest.slots))
        try:
            weights = self._weights
            frame.prepare(plan, weights, thread_count(self.threads))
            table = frame.table
            dense: list[Any] = []
            for tensor, library in zip(self._layout.inputs, libraries):
                value = library.dense(inputs[tensor.position], tensor.order)
                pointer = library.pointer(value)
                for entry in tensor.entries:
                    table[entry] = pointer
                dense.append(value)
            if self._overwrites:
                check_overwritten(self._layout.inputs, inputs, libraries)
            library = self._output_library(libraries)
            arrays: list[Any] = []
            for output, shape in plan.outputs:
                size = plan.sizes[output.slot]
                if size < POOLED_BYTES:
                    array = library.empty(shape, output.dtype, output.order)
                else:
                    array = library.over(self._pool.take(size), shape, output.dtype, output.order)
                pointer = library.pointer(array)
                for entry in output.entries:
                    table[entry] = pointer
                arrays.append(array)
            for state in weights.states:
                state.refresh()
            run_steps(frame, plan)
            if self._overwrites or self.manifest.mutations or weights.states:
                self._write_back(inputs, dense, libraries, weights, frame)
            return outputs.collect(arrays, dense, inputs, frame, (library, libraries))
        finally:
            self._frames.append(frame)

    def _run_steps(self, frame: Frame, plan: ShapePlan) -> None:
        functions, symbols = self._code.address, plan.symbol_address
        if (driver := self._code.driver) is not None:
            entry = ctypes.cast(self._code.entries[0], ctypes.c_void_p)
            job = ctypes.addressof(frame.job)
            services = frame.services.address
            status = driver(entry, functions, frame.table_address, symbols, services, job)
            if status:
                raise self._failure(status, frame)
            return
        for step in self._steps:
            if isinstance(step, ExternCall):
                self._run_extern(step, frame, plan)
                continue
            status = step(functions, frame.table_address, symbols, frame.services.address)
            if status:
                raise self._failure(status, frame)

    def _check_tensors(self, inputs: Sequence[Any]) -> list[Library]:
        """Number, kind, dtype and device of the inputs; the library of each tensor."""
        specs = self.manifest.inputs
        if len(inputs) != len(specs):
            names = ", ".join(s.name for s in specs)
            model = self.manifest.name
            raise InputError(
                f"{len(inputs)} inputs, but model '{model}' takes {len(specs)}: {names}"
            )
        libraries: list[Library] = []
        for tensor in self._layout.inputs:
            value = inputs[tensor.position]
            library = NUMPY if type(value) is np.ndarray else library_of(value)
            if library is None:
                raise InputError(
                    f"input '{tensor.name}': a tensor of {DTYPE_NAMES[tensor.dtype]} expected "
                    f"(PyTorch or NumPy), got {describe(value)}"
                )
            problem = library.problem(value, tensor.dtype)
            if problem is not None:
                raise tensor_error(tensor, library, problem)
            libraries.append(library)
        return libraries

    def _plan_for(self, inputs: Sequence[Any]) -> tuple[ShapePlan, OutputPlan]:
        """The plan for these input shapes; made, checked and kept at their first call."""
        key: tuple[Any, ...] = tuple([inputs[t.position].shape for t in self._layout.inputs])
        if self._plain_inputs:
            for position, spec in self._plain_inputs:
                check_plain(spec, inputs[position])
                if spec.kind == "integer":
                    key = (*key, inputs[position])
        found = self._plans.get(key)
        if found is not None:
            return found
        shapes = [tuple(inputs[t.position].shape) for t in self._layout.inputs]
        return self._add_plan(key, bind_symbols(self._layout, inputs, shapes))

    def _plan_fixed_shapes(self) -> None:
        """Plan at load where there is but one plan: the first call then takes no time for it."""
        manifest = self.manifest
        if manifest.symbols or any(s.kind == "integer" for _, s in self._plain_inputs):
            return
        shapes = [manifest.slots[t.slot].shape for t in self._layout.inputs]
        self._add_plan(tuple(evaluate_all(s, {}) for s in shapes), {})

    def _add_plan(self, key: object, symbols: Mapping[str, int]) -> tuple[ShapePlan, OutputPlan]:
        plan = ShapePlan(self._layout, symbols)
        self._pool.allow(plan.sizes[o.slot] for o, _ in plan.outputs)
        made = plan, OutputPlan(self._layout, plan)
        with self._lock:
            while len(self._plans) >= MAX_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = made
        return made

    def _output_library(self, libraries: list[Library]) -> Library:
        for library in libraries:
            if library is not NUMPY:
                return library
        if not libraries and self.prefer == "torch":
            return torch_library() or NUMPY
        return NUMPY

    def _refresh_weights(self) -> None:
        with self._lock:
            watcher, repack = self._watcher, self._repack
            if watcher is None or not watcher.has_changed():
                return
            if repack is None:
                raise InputError(
                    f"a weight of model '{self.manifest.name}' was changed after it was compiled; "
                    "compile it again"
                )
            # First look, then pack: a change in between is found by the next call.
            try:
                watcher.update()
            except KeyError as error:
                raise InputError(
                    f"weight {error} of model '{self.manifest.name}' was removed after it was "
                    "compiled; compile it again"
                ) from None
            self._weights = bind_weights(self.manifest, self._layout, repack())

    def _write_back(
        self,
        inputs: Sequence[Any],
        dense: Sequence[Any],
        libraries: Sequence[Library],
        weights: BoundWeights,
        frame: Frame,
    ) -> None:
        """Copy new values of states and overwritten inputs to where the caller sees them."""
        assert frame.plan is not None
        roots, sizes, table = self._layout.roots, frame.plan.sizes, frame.table
        targets = {roots[m.target] for m in self.manifest.mutations}
        moves = [
            (int(table[m.target]), int(table[m.source]), sizes[m.target], roots[m.source])
            for m in self.manifest.mutations
        ]
        # A source that is itself a target is read before anything is written.
        kept = [array_at(s, (n,), "u8").copy() for _, s, n, root in moves if root in targets]
        saved = iter(kept)
        for target, source, size, root in moves:
            copy_bytes(target, NUMPY.pointer(next(saved)) if root in targets else source, size)
        for state in weights.states:
            state.write_back()
        for tensor, value, library in zip(self._layout.inputs, dense, libraries):
            if tensor.is_overwritten:
                given = inputs[tensor.position]
                if value is given:
                    library.touched(given)
                else:
                    library.assign(given, value)

    def _run_extern(self, call: ExternCall, frame: Frame, plan: ShapePlan) -> None:
        assert self._extern_runner is not None
        slots = self.manifest.slots

        def array(slot: int) -> np.ndarray[Any, Any]:
            return array_at(int(frame.table[slot]), plan.shapes[slot], slots[slot].dtype)

        given = [array(s) for s in call.inputs]
        self._extern_runner(call, given, [array(s) for s in call.outputs], plan.symbols)

    def _failure(self, status: int, frame: Frame) -> Exception:
        if status != 1:
            return InternalError(f"native code returned the unknown status {status}")
        where = self._failing_kernel(frame)
        return IndexOutOfRange(
            f"model '{self.manifest.name}': an index read from a tensor lies outside the tensor "
            f"that it selects from{where}\n  fix: check the indices among the inputs (token or "
            "position ids, gather and scatter indices)"
        )

    def _failing_kernel(self, frame: Frame) -> str:
        """Name the kernel that failed by running one after the other, where that does no harm."""
        if self._overwrites or self._state_lock is not None or self.manifest.externs:
            return ""
        functions = self._code.functions
        for block in range(self._block_count):
            for call in self.manifest.calls:
                if isinstance(call, KernelCall) and frame.call_kernel(functions, call, block):
                    return f", in {call.origin or call_name(call)}"
        return ""

    @property
    def _block_count(self) -> int:
        return 1 if self.manifest.blocks is None else self.manifest.blocks.count

    def own_weights(self) -> dict[str, Any]:
        """The arrays that native code reads, by key; from now on no other weights count.

        Changes of the model's weights are not looked for any more. States stay the caller's.
        """
        with self._lock:
            self._watcher = self._repack = None
            return self._arrays()

    def _arrays(self) -> dict[str, Any]:
        """The arrays that native code reads, by key; of states the caller's."""
        states = {s.slot: s.live for s in self._weights.states}
        pairs = zip(self.manifest.weights, self._weights.kept, strict=True)
        return {source.key: states.get(source.slot, array) for source, array in pairs}

    @contextlib.contextmanager
    def steady_weights(self) -> Iterator[dict[str, Any]]:
        """The arrays that native code reads, by key; none is packed anew while this lasts.

        Empty if a weight was changed since they were packed. A watcher that was made within sees
        every change that they do not have.
        """
        with self._lock:
            changed = self._watcher is not None and self._watcher.has_changed()
            yield {} if changed else self._arrays()

    def take_turns_with(self, other: Executable) -> None:
        """Let calls of this and of ``other`` that update state take turns: it is the same state.

        Only before the first call.
        """
        self._state_lock = other._state_lock

    @property
    def writes_arguments(self) -> bool:
        """Whether a call changes states or inputs, so that it cannot be repeated."""
        return bool(self._overwrites or self.manifest.mutations or self._weights.states)

    def profile(self, inputs: Sequence[Any], repeats: int = 5) -> list[tuple[str, float]]:
        """Least time of each call [s], in all blocks together, run one by one on flat inputs.

        States and overwritten inputs are changed ``repeats`` times.
        """
        times = [float("inf")] * len(self.manifest.calls)

        def run_steps(frame: Frame, plan: ShapePlan) -> None:
            taken = [0.0] * len(times)
            for block in range(self._block_count):
                for position, call in enumerate(self.manifest.calls):
                    clock = time.perf_counter()
                    if isinstance(call, ExternCall):
                        self._run_extern(call, frame, plan)
                    elif status := frame.call_kernel(self._code.functions, call, block):
                        raise self._failure(status, frame)
                    taken[position] += time.perf_counter() - clock
            times[:] = map(min, times, taken)

        for _ in range(repeats):
            self._run(inputs, run_steps)
        return [(call_name(c), t) for c, t in zip(self.manifest.calls, times, strict=True)]

    def swap_kernel(self, position: int, address: int, keep_alive: object = None) -> None:
        """Use another native function for an entry of the function table, from the next call on.

        Args:
            address: of a function with the same arguments.
            keep_alive: what owns its memory (a ``LoadedObject``); kept as long as this.

        Raises: IndexError for a position that does not exist.
        """
        self._code.swap(position, address, keep_alive)

    def memory(self) -> dict[str, int]:
        """Bytes: ``weights``; ``arena``, ``outputs`` and ``arena_lower_bound`` at most so far."""
        plans = [p for p, _ in list(self._plans.values())]
        threads = thread_count(self.threads)
        return {
            "weights": weight_bytes(self.manifest),
            "arena": max((p.arena_bytes(threads) for p in plans), default=0),
            "arena_lower_bound": max((p.arena.lower_bound for p in plans), default=0),
            "outputs": max((sum(p.sizes[o.slot] for o, _ in p.outputs) for p in plans), default=0),
        }

    def plan_for_symbols(self, symbols: Mapping[str, int] | None = None) -> ShapePlan:
        """Sizes and places for given symbol values, without a call."""
        return ShapePlan(self._layout, symbols or {})

    def trim(self) -> None:
        """Give the memory of arenas that no call uses back to the system."""
        self._frames.clear()
