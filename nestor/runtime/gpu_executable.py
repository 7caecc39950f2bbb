"""Run a model's kernels on a device: take memory, start one kernel after the other.

Everything is asked of the current stream and of PyTorch's allocator, so a call behaves like a call
of the model itself: it returns before the device is done.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from nestor.errors import ArtifactError, IndexOutOfRange, Unsupported
from nestor.runtime.calls import MAX_PLANS, ModelCalls
from nestor.runtime.checks import check_overwritten
from nestor.runtime.device_tensors import DeviceLibrary
from nestor.runtime.dims import evaluate, evaluate_all
from nestor.runtime.gpu_steps import (
    SCRATCH,
    SCRATCH_ALIGNMENT,
    Graph,
    Launch,
    RecordedCall,
    Start,
    Step,
)
from nestor.runtime.manifest import ExternCall, Manifest
from nestor.runtime.memory import round_up
from nestor.runtime.outputs import OutputPlan
from nestor.runtime.plan import ShapePlan
from nestor.runtime.tensors import BITS_ONLY, Library
from nestor.runtime.weights import StateArray, WeightWatcher

if TYPE_CHECKING:
    import torch

MOST_RECORDED = 1 << 14
"""Kernels of a call that is recorded as a graph; longer ones (recurrences) start one by one."""

ExternRunner = Callable[[ExternCall, list[Any], list[Any], Mapping[str, int]], None]
"""Runs an operator of PyTorch: call, inputs, outputs to fill, symbols."""


@dataclass(slots=True)
class _Weights:
    """Weights on the device, by slot (aliases too); and the states among them."""

    tensors: dict[int, Any]
    states: list[StateArray]


@dataclass(slots=True)
class _Arena:
    """Memory of a call's temps, by slot; how often it was used, and the call recorded on it."""

    tensors: dict[int, Any]
    uses: int = 0
    recorded: RecordedCall | None = None


@dataclass(frozen=True, slots=True)
class _Steps:
    """What a plan's calls start, in order. ``moving``: slots that are others in each call.
    ``scratch``: of memory for descriptors that a call takes [bytes]. ``arenas``: that no call is
    using, by stream."""

    plan: ShapePlan
    steps: tuple[Step, ...]
    moving: frozenset[int]
    scratch: int
    arenas: dict[int, list[_Arena]] = field(default_factory=dict)


@dataclass(slots=True)
class _Scratch:
    """How much memory for descriptors a call takes so far [bytes]."""

    bytes: int = 0

    def take(self, count: int) -> int | None:
        """Where the next kernel's part begins; None if it needs none."""
        if not count:
            return None
        start = self.bytes
        self.bytes += round_up(count, SCRATCH_ALIGNMENT)
        return start


class GpuExecutable(ModelCalls):
    """A compiled model on one device; any number of threads may call it.

    Args:
        manifest: checked (``check_manifest``).
        launches: start the manifest's functions.
        weights: tensors by key, of any device; copied where they do not lie on this one.
        device: that calls run on.
        extern_runner: runs the calls of PyTorch operators, if there are any.
        make_graph: makes an empty graph to record calls in; None: kernels start one by one.
        watcher, repack: when the watcher tells of a change, ``repack()`` gives all weights anew.

    Raises:
        ArtifactError: weights that do not fit the manifest.
        Unsupported: it calls PyTorch operators and there is no runner.
    """

    def __init__(
        self,
        manifest: Manifest,
        launches: Sequence[Launch],
        weights: Mapping[str, Any],
        device: torch.device,
        *,
        extern_runner: ExternRunner | None = None,
        make_graph: Callable[[], Graph] | None = None,
        watcher: WeightWatcher | None = None,
        repack: Callable[[], Mapping[str, Any]] | None = None,
    ):
        import torch

        if manifest.externs and extern_runner is None:
            names = ", ".join(dict.fromkeys(e.operator for e in manifest.externs))
            raise Unsupported(f"model '{manifest.name}' calls PyTorch operators ({names})")
        super().__init__(manifest)
        self.device = device
        self._torch = torch
        self._launches = tuple(launches)
        self._library = DeviceLibrary(torch, device)
        self._bits = (torch.uint16, torch.uint8)
        self._watcher, self._repack = watcher, repack
        self._extern_runner, self._make_graph = extern_runner, make_graph
        self._weights = self._bound(weights)
        self._steps: dict[int, _Steps] = {}
        self._failed = torch.zeros((), dtype=torch.int32, device=device)
        self._checks = any(launch.checks for launch in manifest.launches)
        self._seen = self._failed  # what the host knows of it
        if device.type == "cuda":
            self._seen = torch.zeros((), dtype=torch.int32).pin_memory()
        self._overwrites = any(t.is_overwritten for t in self._layout.inputs)
        self._state_lock = threading.RLock() if self._weights.states else None
        self._plan_fixed_shapes()

    # ------------------------------------------------------------------------------ weights

    def _bound(self, weights: Mapping[str, Any]) -> _Weights:
        tensors: dict[int, Any] = {}
        states: list[StateArray] = []
        for source in self.manifest.weights:
            slot = self.manifest.slots[source.slot]
            if source.key not in weights:
                raise ArtifactError(f"weight '{source.key}' is missing")
            live = self._tensor(weights[source.key])
            wanted = self._library.dtypes[slot.dtype]
            if slot.dtype in BITS_ONLY and live.dtype in self._bits:
                live = live.view(wanted)  # NumPy has its bits only
            if live.dtype is not wanted or live.numel() != prod(
                evaluate_all(slot.memory_shape, {})
            ):
                raise ArtifactError(
                    f"weight '{source.key}': {live.dtype} of {tuple(live.shape)}, "
                    f"expected {slot.dtype} of {slot.memory_shape}"
                )
            memory = self._library.dense(live.detach().to(self.device), slot.permutation)
            if slot.role == "state":
                # An array out of a file is nobody else's: the state lives on the device.
                is_shared = isinstance(weights[source.key], self._torch.Tensor)
                states.append(StateArray(source.slot, live if is_shared else memory, memory))
            for entry in self._layout.entries[source.slot]:
                tensors[entry] = memory
        return _Weights(tensors, states)

    def _tensor(self, value: Any) -> Any:
        """A weight as a tensor; arrays of a mapped file are only read."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return self._torch.as_tensor(value)

    def _current_weights(self) -> _Weights:
        watcher, repack = self._watcher, self._repack
        if watcher is not None and repack is not None and watcher.has_changed():
            with self._lock:
                if watcher.has_changed():
                    # First look, then pack: a change in between is found by the next call.
                    watcher.update()
                    self._weights = self._bound(repack())
        return self._weights

    # ------------------------------------------------------------------------------ calls

    def _library_of(self, value: Any) -> Library | None:
        return self._library if isinstance(value, self._torch.Tensor) else None

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Flat inputs (tensors on the device, any strides; scalars) → flat outputs.

        Raises: as ``__call__``.
        """
        if self._state_lock is None:
            return self._run(inputs)
        with self._state_lock:
            return self._run(inputs)

    def _run(self, inputs: Sequence[Any]) -> list[Any]:
        libraries = self._check_tensors(inputs)
        plan, outputs = self._plan_for(inputs)
        weights = self._current_weights()
        with self._torch.no_grad(), self._on_device():
            if self._overwrites:
                check_overwritten(self._layout.inputs, inputs, libraries)
            call = self._steps_of(plan)
            stream, arena = self._take_arena(call)
            try:
                return self._run_on(arena, inputs, call, outputs, weights)
            finally:
                # What follows on this stream finds the memory when these kernels are done.
                call.arenas.setdefault(stream, []).append(arena)

    def _on_device(self) -> Any:
        if self.device.type == "cuda":
            return self._torch.cuda.device(self.device)
        return self._torch.no_grad()

    def _run_on(
        self,
        arena: _Arena,
        inputs: Sequence[Any],
        call: _Steps,
        outputs: OutputPlan,
        weights: _Weights,
    ) -> list[Any]:
        plan = call.plan
        is_late = self._seen is not self._failed
        if is_late:
            self._raise_if_failed()
        tensors = {**arena.tensors, **weights.tensors}
        dense: list[Any] = []
        for tensor in self._layout.inputs:
            value = self._library.dense(inputs[tensor.position], tensor.order)
            for entry in tensor.entries:
                tensors[entry] = value
            dense.append(value)
        arrays: list[Any] = []
        for output, shape in plan.outputs:
            array = self._library.empty(shape, output.dtype, output.order)
            for entry in output.entries:
                tensors[entry] = array
            arrays.append(array)
        for state in weights.states:
            state.refresh()
        self._start_all(arena, call, tensors, weights)
        if is_late and self._checks:
            self._seen.copy_(self._failed, non_blocking=True)
        elif not is_late:
            self._raise_if_failed()
        self._write_back(inputs, dense, tensors, weights)
        libraries = [self._library] * len(dense)
        return outputs.collect(
            arrays, dense, inputs, lambda slot: self._copy_out(tensors, plan, slot),
            (self._library, libraries),
        )  # fmt: skip

    def _raise_if_failed(self) -> None:
        """Report an index outside its tensor. On a GPU calls return before it is known: then it is
        a later call that raises."""
        if not self._checks or not int(self._seen):
            return
        self._failed.zero_()
        self._seen.zero_()
        late = ", in an earlier call" if self._seen is not self._failed else ""
        raise IndexOutOfRange(
            f"model '{self.manifest.name}': an index read from a tensor lies outside the tensor "
            f"that it selects from{late}\n  fix: check the indices among the inputs (token or "
            "position ids, gather and scatter indices)"
        )

    def _copy_out(self, tensors: Mapping[int, Any], plan: ShapePlan, slot: int) -> Any:
        info = self.manifest.slots[slot]
        array = self._library.empty(plan.shapes[slot], info.dtype, info.permutation)
        stored = tensors[slot].reshape(-1)
        order = info.permutation or tuple(range(len(plan.shapes[slot])))
        array.permute(order).copy_(stored.view([plan.shapes[slot][p] for p in order]))
        return array

    def _start_all(
        self, arena: _Arena, call: _Steps, tensors: Mapping[int, Any], weights: _Weights
    ) -> None:
        """Start a call's kernels: one by one the first time, then recorded."""
        starts = [s for s in call.steps if isinstance(s, Start)]
        arena.uses += 1
        if (
            self._make_graph is None
            or arena.uses == 1
            or len(starts) < len(call.steps)
            or not 1 < len(starts) <= MOST_RECORDED
        ):
            for step in call.steps:
                step(tensors)
            return
        recorded = arena.recorded
        if recorded is None or recorded.weights is not weights:
            graph = self._make_graph()
            recorded = RecordedCall(
                graph, starts, tensors, weights, call.moving, in_order=self._overwrites
            )
            arena.recorded = recorded
        recorded.start(tensors)

    def _steps_of(self, plan: ShapePlan) -> _Steps:
        """What a plan's call starts; worked out at its first call."""
        found = self._steps.get(id(plan))
        if found is not None and found.plan is plan:
            return found
        manifest = self.manifest
        symbols = [plan.symbols[s.name] for s in manifest.symbols]
        steps = [0] * len(manifest.loops)
        loops = {s.first: (n, s) for n, s in enumerate(manifest.loops)}
        made: list[Step] = []
        scratch = _Scratch()
        position = 0
        while position < len(manifest.calls):
            if position not in loops:
                made += self._start(position, plan, [*symbols, *steps], scratch)
                position += 1
                continue
            number, loop = loops[position]
            for step in range(evaluate(loop.extent, plan.symbols)):
                steps[number] = step
                for inner in range(loop.first, loop.last):
                    made += self._start(inner, plan, [*symbols, *steps], scratch)
            position = loop.last
        if len(self._steps) >= MAX_PLANS:
            self._steps.clear()
        outside = [t.entries for t in self._layout.inputs]
        outside += [output.entries for output, _ in plan.outputs]
        moving = frozenset(entry for entries in outside for entry in entries)
        found = self._steps[id(plan)] = _Steps(plan, tuple(made), moving, scratch.bytes)
        return found

    def _start(
        self, position: int, plan: ShapePlan, symbols: Sequence[int], scratch: _Scratch
    ) -> list[Step]:
        """One call, if it has anything to do."""
        call = self.manifest.calls[position]
        if isinstance(call, ExternCall):
            return [functools.partial(self._run_extern, call, plan)]
        how = self.manifest.launches[call.function]
        sizes = tuple(symbols[s] for s in call.symbols)
        programs = how.programs(sizes)
        start = Start(
            launch=self._launches[call.function],
            programs=programs,
            slots=tuple(call.tensors),
            further=(self._failed,) if how.checks else (),
            sizes=sizes,
            written=frozenset(how.written),
            scratch=scratch.take(programs * how.scratch_bytes),
        )
        return [start] if programs else []

    def _run_extern(self, call: ExternCall, plan: ShapePlan, tensors: Mapping[int, Any]) -> None:
        """Run an operator of PyTorch. Its tensors are stored row by row."""
        assert self._extern_runner is not None

        def shaped(slot: int) -> Any:
            count = prod(plan.shapes[slot])
            return tensors[slot].reshape(-1)[:count].view(plan.shapes[slot])

        given = [shaped(s) for s in call.inputs]
        self._extern_runner(call, given, [shaped(s) for s in call.outputs], plan.symbols)

    def _take_arena(self, call: _Steps) -> tuple[int, _Arena]:
        """Memory of a call's temps, for nobody else but later calls on this stream."""
        plan = call.plan
        stream = 0
        if self.device.type == "cuda":
            stream = int(self._torch.cuda.current_stream(self.device).cuda_stream)
        try:
            return stream, call.arenas[stream].pop()
        except (KeyError, IndexError):
            pass
        total = max(1, plan.arena.total)
        try:
            memory = self._torch.empty(total, dtype=self._torch.uint8, device=self.device)
        except self._torch.OutOfMemoryError as error:
            error.add_note(
                f"nestor: a call of '{self.manifest.name}' takes {total} bytes on {self.device} "
                "besides its inputs and outputs\nfix: smaller batches, or fewer calls at once"
            )
            raise
        slots = self.manifest.slots
        tensors = {}
        for entry, offset in plan.arena_entries:
            part = memory[offset : offset + plan.sizes[entry]]
            tensors[entry] = part.view(self._library.dtypes[slots[entry].dtype])
        if call.scratch:
            tensors[SCRATCH] = self._torch.empty(
                call.scratch, dtype=self._torch.uint8, device=self.device
            )
        return stream, _Arena(tensors)

    def _write_back(
        self,
        inputs: Sequence[Any],
        dense: Sequence[Any],
        tensors: Mapping[int, Any],
        weights: _Weights,
    ) -> None:
        """Copy new values of states and overwritten inputs to where the caller sees them."""
        targets = {self._layout.roots[m.target] for m in self.manifest.mutations}
        moves = [
            (tensors[m.target], tensors[m.source], self._layout.roots[m.source])
            for m in self.manifest.mutations
        ]
        # A source that is itself a target is read before anything is written.
        moves = [(t, s.clone() if root in targets else s, root) for t, s, root in moves]
        for target, source, _ in moves:
            flat = source.reshape(-1).view(target.dtype)
            target.as_strided((flat.numel(),), (1,), target.storage_offset()).copy_(flat)
        for state in weights.states:
            state.write_back()
        for tensor, value in zip(self._layout.inputs, dense):
            if tensor.is_overwritten:
                given = inputs[tensor.position]
                if value is given:
                    self._library.touched(given)
                else:
                    self._library.assign(given, value)

    def wait(self) -> None:
        """Until the device is done with all calls on the current stream."""
        if self.device.type == "cuda":
            self._torch.cuda.current_stream(self.device).synchronize()

    @property
    def writes_arguments(self) -> bool:
        """Whether a call changes states or inputs, so that it cannot be repeated."""
        return bool(self._overwrites or self.manifest.mutations or self._weights.states)
