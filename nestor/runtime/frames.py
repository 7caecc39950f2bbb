"""Native calls: function table, and the memory of one call in flight."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from nestor.errors import ArtifactError
from nestor.runtime.arena import Arena
from nestor.runtime.elf import LoadedObject, load_objects
from nestor.runtime.manifest import FunctionRef, KernelCall, Manifest
from nestor.runtime.memory import Mapping as MemoryMapping
from nestor.runtime.plan import BlockPlan, ShapePlan
from nestor.runtime.threads import Services
from nestor.runtime.weights import BoundWeights

_POINTER = ctypes.c_void_p
DRIVER_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, *[_POINTER] * 6)
ENTRY_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, _POINTER, _POINTER, _POINTER, _POINTER)
KERNEL_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, _POINTER, _POINTER, _POINTER)

_nowhere = MemoryMapping(4096, huge=False)
"""What table entries of arrays without memory point to: valid, zeroed, one page."""


class CodeTable:
    """Loaded objects and the function table that entry functions call kernels through."""

    def __init__(self, manifest: Manifest, objects: Mapping[str, bytes]):
        """Load all objects that the manifest names. Raises ArtifactError."""
        digests = manifest.object_digests
        missing = [d for d in digests if d not in objects]
        if missing:
            raise ArtifactError(f"object code {missing[0]} is missing")
        loaded = load_objects([objects[d] for d in digests], labels=[d[:12] for d in digests])
        self._loaded = dict(zip(digests, loaded, strict=True))
        self._kept: list[object] = []
        functions = [self._address(f) for f in manifest.functions]
        self.functions = (ctypes.c_uint64 * max(1, len(functions)))(*functions)
        self.address = ctypes.addressof(self.functions)
        self.entries = [ENTRY_TYPE(self._address(s.entry)) for s in manifest.segments]
        self._count = len(functions)
        blocks = manifest.blocks
        self.driver = None if blocks is None else DRIVER_TYPE(self._address(blocks.driver))

    def _address(self, function: FunctionRef) -> int:
        return self._loaded[function.object].address(function.name)

    def swap(self, position: int, address: int, keep_alive: object) -> None:
        """Call another function from now on; calls in flight may finish with the old one."""
        if not 0 <= position < self._count:
            raise IndexError(f"no function {position}; there are {self._count}")
        # An aligned store of eight bytes: other threads see the old address or the new one.
        self._kept.append(keep_alive)
        self.functions[position] = address

    @property
    def objects(self) -> dict[str, LoadedObject]:
        """Loaded objects by digest."""
        return dict(self._loaded)


class Frame:
    """Tensor table, arena and services of one call in flight; reused from call to call."""

    __slots__ = ("arena", "job", "plan", "services", "table", "table_address", "team", "weights")

    def __init__(self, slots: int):
        self.table = (ctypes.c_uint64 * max(1, slots))(*([_nowhere.address] * slots))
        self.table_address = ctypes.addressof(self.table)
        self.arena = Arena()
        self.services = Services()
        self.team = 1
        self.job = (ctypes.c_int64 * 5)()
        self.plan: ShapePlan | None = None
        self.weights: BoundWeights | None = None

    def prepare(self, plan: ShapePlan, weights: BoundWeights, threads: int) -> None:
        """Point the table to the arena and the weights; nothing to do when they are the same."""
        table = self.table
        self.services.update(threads)
        if plan.blocks is not None:
            self._prepare_team(plan, plan.blocks)
        if self.weights is not weights:
            for entry, address in weights.entries:
                table[entry] = address
            self.weights = weights
        if self.plan is not plan:
            total = plan.arena_bytes(self.services.threads)
            base = self.arena.reserve(total) if total else 0
            for entry, offset in plan.arena_entries:
                table[entry] = base + offset if plan.sizes[entry] else _nowhere.address
            self.plan = plan

    def _prepare_team(self, plan: ShapePlan, blocks: BlockPlan) -> None:
        """Decide who runs the blocks; another team, or another plan, needs another arena."""
        team = blocks.team(self.services.threads)
        if self.plan is plan and self.team == team:
            return
        self.team, self.plan = team, None
        by_block, by_thread = map(ctypes.addressof, (blocks.by_block, blocks.by_thread))
        self.job[:] = [len(self.table), blocks.count, team, by_block, by_thread]

    def call_kernel(self, functions: Any, call: KernelCall, block: int = 0) -> int:
        """Call one kernel without its entry function; what it returns.

        Args: block: on which part of the arrays in blocks.
        """
        assert self.plan is not None
        blocks = self.plan.blocks
        arguments = (ctypes.c_uint64 * max(1, len(call.tensors)))(
            *(self.table[t] + (block * blocks.by_block[t] if blocks else 0) for t in call.tensors)
        )
        values = self.plan.symbol_values
        symbols = (ctypes.c_int64 * max(1, len(call.symbols)))(*(values[s] for s in call.symbols))
        function = KERNEL_TYPE(functions[call.function])
        return int(
            function(ctypes.addressof(arguments), ctypes.addressof(symbols), self.services.address)
        )
