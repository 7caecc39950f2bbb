"""One GPU kernel with inputs, and its loaded variants: as ``Bench`` for kernels of a CPU.

Each timed call finds the device's last cache full of something else, and the device busy when it
is asked for, so that what the host takes to ask does not count.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from nestor.autotune.kernel_inputs import Array, Draw, check_sizes, draw_inputs
from nestor.autotune.measure_bench import (
    BadCall,
    DeviceFault,
    OverMemory,
    Watcher,
    base_of,
    written_roots,
)
from nestor.autotune.measure_buffers import CANARY, fetch, physical_bytes, spoil, store
from nestor.gpu_job import GpuCode
from nestor.ir.interpreter import RESULT_ROLES
from nestor.ir.program import Program, Tensor
from nestor.ir.types import DType
from nestor.runtime.device_tensors import DeviceLibrary
from nestor.runtime.dims import dim_from_json
from nestor.runtime.manifest import GpuLaunch
from nestor.runtime.memory import round_up

GUARD_BYTES = 1 << 16
"""On each side of an array; what a kernel writes there shows [bytes]."""

_FLUSHED_BYTES = 256 << 20
"""More than any last-level cache holds."""

_MOST_TIMES = 20
"""Calls of a sample at most."""


@dataclass(slots=True)
class _Loaded:
    """A variant. Attributes: scratch: memory in which it writes descriptors, whose address comes
    behind the sizes. times: calls in one sample."""

    launch: Any
    programs: int
    sizes: tuple[int, ...]
    scratch: Any
    checks: bool
    tensors: tuple[Tensor, ...]
    times: int = 1


@dataclass(slots=True)
class _Block:
    """Memory of an array on the device between two guards."""

    whole: Any
    inside: Any
    size: int
    image: Any = field(default=None)

    def damage(self) -> str:
        """What is wrong with the guards, in words; empty if nothing is."""
        before, after = self.whole[:GUARD_BYTES], self.whole[GUARD_BYTES + self.inside.numel() :]
        for guard, where in ((before, "before its start"), (after, "past its end")):
            if bool((guard != CANARY).any()):
                return f"bytes {where}"
        return ""


class GpuBench:
    """See ``Bench``.

    Args: device: ``cuda``, or ``interpreter``: Triton's, in the CPU's memory.
        memory_bytes: that the arrays of one candidate may take.
    """

    def __init__(
        self,
        program: Program,
        sizes: Mapping[str, int],
        *,
        device: str,
        memory_bytes: int,
        watcher: Watcher,
    ):
        import torch

        self._torch = torch
        self.program = program
        self.sizes = check_sizes(program, sizes)
        self.inputs: dict[str, Array] = {}
        self.loaded: dict[str, _Loaded] = {}
        self.memory_bytes, self.watcher = memory_bytes, watcher
        self.fenced_ns = 0.0
        self._is_gpu = device == "cuda"
        self._device = torch.device("cuda" if self._is_gpu else "cpu")
        self._blocks: dict[tuple[str, object], _Block] = {}
        self._written = written_roots(program)
        self._failed = torch.zeros((), dtype=torch.int32, device=self._device)
        self._library = DeviceLibrary(torch, self._device)
        self._flushed: Any = None
        if self._is_gpu:
            size = _FLUSHED_BYTES
            self._flushed = torch.empty(size, dtype=torch.int8, device=self._device)
        self._folder = tempfile.TemporaryDirectory(prefix="nestor-gpu-")

    @property
    def overwrites(self) -> bool:
        """Whether the kernel writes to what it is given."""
        return bool(self._written & self.inputs.keys())

    @property
    def results(self) -> tuple[Tensor, ...]:
        """The tensors whose values are compared."""
        return self.program.by_role(*RESULT_ROLES)  # type: ignore[arg-type]

    def set_inputs(self, draw: Draw) -> None:
        """Draw the inputs."""
        self.inputs = draw_inputs(self.program, self.sizes, draw)
        self._blocks.clear()

    def load(self, name: str, code: bytes, function: str, tensors: tuple[Tensor, ...]) -> None:
        """Load a variant of the kernel.

        Raises: ``OverMemory`` if its arrays are too large.
        """
        needed = sum(physical_bytes(t, self.sizes) for t in tensors if not base_of(t, tensors))
        if needed > self.memory_bytes:
            raise OverMemory(f"its arrays take {needed:,} bytes, {self.memory_bytes:,} are allowed")
        made = GpuCode.decode(code)
        sizes = [self.sizes[n] for n in made.sizes]
        how = GpuLaunch(
            grid=tuple(dim_from_json(d, "grid") for d in made.grid),
            written=(),
            sizes=tuple(made.sizes),
            most=made.most,
        )
        programs = how.programs(sizes)
        needed += programs * made.scratch_bytes
        if needed > self.memory_bytes:
            raise OverMemory(f"with descriptors it takes {needed:,} bytes")
        scratch = self._torch.empty(
            programs * made.scratch_bytes, dtype=self._torch.uint8, device=self._device
        )
        self.loaded[name] = _Loaded(
            launch=self._launch_of(made, function),
            programs=programs,
            sizes=(*sizes, scratch.data_ptr()) if made.scratch_bytes else tuple(sizes),
            scratch=scratch,
            checks=made.checks,
            tensors=tensors,
        )

    def _launch_of(self, code: GpuCode, function: str) -> Any:
        if not self._is_gpu:
            from nestor.codegen.triton.launch import launch_source

            return launch_source(code.source, function, Path(self._folder.name))
        from nestor.runtime.cuda import CudaKernel, driver
        from nestor.runtime.gpu_launches import CudaLaunch

        driver().use_device(self._torch.cuda.current_device())
        kernel = CudaKernel(
            code.binary,
            code.function,
            warps=code.warps,
            shared_bytes=code.shared_bytes,
            parameters=code.parameters,
        )
        return CudaLaunch(kernel, self._device)

    def drop(self, name: str) -> None:
        """Forget a variant, and arrays that no other one uses."""
        self.loaded.pop(name, None)
        used = {(t.name, t.layout) for one in self.loaded.values() for t in one.tensors}
        self._blocks = {k: b for k, b in self._blocks.items() if k in used}

    # -------------------------------------------------------------------------- results

    def run_fenced(
        self,
        name: str,
        side: Literal["start", "end"],
        inputs: Mapping[str, Array] | None = None,
    ) -> tuple[dict[str, Array], str]:
        """Run a variant once; the results, and what was damaged around which array.

        Args: side: of no meaning here: every array has a guard on either side.
        Raises: ``BadCall`` if an index was out of range; ``DeviceFault``.
        """
        del side
        one = self.loaded[name]
        self._fill(one, inputs or self.inputs)
        self.watcher.begin([])
        start = time.perf_counter_ns()
        self._call(one)
        self._wait()
        self.fenced_ns = float(time.perf_counter_ns() - start)
        self.watcher.end()
        self._raise_if_failed()
        blocks = {t.name: self._block(t, one) for t in one.tensors}
        damage = "; ".join(f"'{n}': {d}" for n, b in blocks.items() if (d := b.damage()))
        if damage:
            self._blocks.clear()
        return self._results(one), damage

    def _results(self, one: _Loaded) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for t in one.tensors:
            if t.role in RESULT_ROLES:
                block = self._block(t, one)
                held = block.inside[: block.size].cpu().numpy()
                found[t.name] = fetch(held, t, self.sizes)
        return found

    def last_results(self, name: str) -> dict[str, Array] | None:
        """Results of the last call of ``sample``; None if calls overwrite their inputs."""
        return None if self.overwrites else self._results(self.loaded[name])

    def _raise_if_failed(self) -> None:
        if int(self._failed):
            self._failed.zero_()
            raise BadCall("an index was out of range")

    # -------------------------------------------------------------------------- times

    def prepare(
        self, name: str, *, sample_ns: float, cold_bytes: int, call_ns: float = 0.0
    ) -> float:
        """See ``Bench.prepare``; caches are always cold."""
        del cold_bytes
        one = self.loaded[name]
        self._fill(one, self.inputs)
        one.times = 1
        if call_ns:
            return call_ns
        for _ in range(3 if self._is_gpu else 1):
            self.watcher.begin([])
            call_ns = self.sample(name)
            one.times = max(1, min(_MOST_TIMES, math.ceil(sample_ns / max(call_ns, 1.0))))
        self.watcher.end()
        return call_ns

    def sample(self, name: str) -> float:
        """The time of one call [ns]: the median of a few. What is overwritten gets its values back
        first."""
        one = self.loaded[name]
        if not self._is_gpu:
            if self.overwrites:
                self._fill(one, self.inputs)
            start = time.perf_counter_ns()
            self._call(one)
            found = float(time.perf_counter_ns() - start)
            self._raise_if_failed()
            return found
        events, event = [], cast(Any, self._torch.cuda.Event)
        for _ in range(one.times):
            if self.overwrites:
                self._fill(one, self.inputs)
            self._flushed.zero_()
            pair = [event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            self._call(one)
            pair[1].record()
            events.append(pair)
        self._wait()
        self._raise_if_failed()
        return float(np.median([a.elapsed_time(b) for a, b in events])) * 1e6

    # -------------------------------------------------------------------------- parts

    def _call(self, one: _Loaded) -> None:
        tensors = []
        for t in one.tensors:
            block = self._block(t, one)
            tensors.append(block.inside[: block.size].view(self._dtype(t.dtype)))
        if one.checks:
            tensors.append(self._failed)
        try:
            one.launch(one.programs, tensors, one.sizes)
        except RuntimeError as error:
            raise DeviceFault(str(error)) from None

    def _wait(self) -> None:
        """Until the device is done."""
        if not self._is_gpu:
            return
        try:
            self._torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceFault(str(error).splitlines()[0]) from None

    def _fill(self, one: _Loaded, inputs: Mapping[str, Array]) -> None:
        """Give all arrays of a variant what they hold before a call."""
        for t in one.tensors:
            if base_of(t, one.tensors):
                continue
            block = self._block(t, one)
            if inputs is self.inputs and block.image is not None:
                block.inside[: block.size].copy_(block.image)
                continue
            view = np.empty(block.size, np.uint8)
            if t.name in inputs:
                store(view, t, inputs[t.name], self.sizes)
            else:
                spoil(view, t)
            held = self._torch.from_numpy(view).to(self._device)
            block.inside[: block.size].copy_(held)
            if inputs is self.inputs:
                block.image = held

    def _block(self, t: Tensor, one: _Loaded) -> _Block:
        """An array's memory, shared by variants with the same layout."""
        base = base_of(t, one.tensors)
        root = next(o for o in one.tensors if o.name == base) if base else t
        key = (root.name, root.layout)
        if key not in self._blocks:
            size = physical_bytes(root, self.sizes)
            inner = round_up(max(size, 1), 256)
            whole = self._torch.full(
                (inner + 2 * GUARD_BYTES,), CANARY, dtype=self._torch.uint8, device=self._device
            )
            inside = whole[GUARD_BYTES : GUARD_BYTES + inner]
            self._blocks[key] = _Block(whole=whole, inside=inside, size=size)
        return self._blocks[key]

    def _dtype(self, dtype: DType) -> Any:
        """PyTorch's type of an element."""
        return self._library.dtypes[str(dtype)]
