"""Run a compiled model: check the inputs, fill the table of pointers, make one native call."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from nestor.errors import IndexOutOfRange, InputError, InternalError, Unsupported
from nestor.runtime.calls import ModelCalls
from nestor.runtime.checks import call_name, check_overwritten
from nestor.runtime.frames import CodeTable, Frame
from nestor.runtime.manifest import ExternCall, KernelCall, Manifest
from nestor.runtime.memory import copy_bytes
from nestor.runtime.plan import ShapePlan
from nestor.runtime.pool import POOLED_BYTES, OutputPool
from nestor.runtime.tensors import (
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


class Executable(ModelCalls):
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
        super().__init__(manifest)
        self.threads = threads
        self.prefer = prefer
        self._code = CodeTable(manifest, objects)
        self._weights = bind_weights(manifest, self._layout, weights or {})
        self._extern_runner = extern_runner
        self._watcher = watcher
        self._repack = repack
        self._frames: deque[Frame] = deque()
        self._pool = OutputPool()
        # Calls that update state take turns, as the second must see what the first wrote.
        self._state_lock = threading.RLock() if self._weights.states else None
        self._steps = self._make_steps()
        self._overwrites = any(t.is_overwritten for t in self._layout.inputs)
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
            copy_out = functools.partial(self._copy_out, plan, frame, library)
            return outputs.collect(arrays, dense, inputs, copy_out, (library, libraries))
        finally:
            self._frames.append(frame)

    def _copy_out(self, plan: ShapePlan, frame: Frame, library: Library, slot: int) -> Any:
        info = self.manifest.slots[slot]
        array = library.empty(plan.shapes[slot], info.dtype, info.permutation)
        copy_bytes(library.pointer(array), int(frame.table[slot]), plan.sizes[slot])
        return array

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

    def _library_of(self, value: Any) -> Library | None:
        return NUMPY if type(value) is np.ndarray else library_of(value)

    def _planned(self, plan: ShapePlan) -> None:
        self._pool.allow(plan.sizes[o.slot] for o, _ in plan.outputs)

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

    def trim(self) -> None:
        """Give the memory of arenas that no call uses back to the system."""
        self._frames.clear()
