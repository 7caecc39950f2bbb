"""Run a LoopNest as native code in this process, for comparison with the reference interpreter."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Mapping, MutableMapping

import numpy as np

from nestor.codegen.llvm.compile import compile_ir
from nestor.codegen.llvm.emit import emit_kernel
from nestor.codegen.llvm.jit import LoadedFunction, jit_load
from nestor.ir.loopnest import LoopNest
from nestor.ir.narrow_floats import MEMORY, from_bits, to_bits
from nestor.ir.program import Layout, Tensor
from nestor.ir.types import DType
from nestor.target.cpu import CpuTarget

GUARD = 64
"""Elements around each array that must not change."""


class Services(ctypes.Structure):
    """What a kernel is given to run threads with."""

    _fields_ = [
        ("parallel", ctypes.c_void_p),
        ("thread_num", ctypes.c_void_p),
        ("num_threads", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    ]


@functools.cache
def openmp() -> ctypes.CDLL:
    """The libgomp that PyTorch brings; the system's where there is no PyTorch."""
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401 (maps the library)

    with open("/proc/self/maps") as maps:  # noqa: PTH123
        for line in maps:
            if "libgomp" in line:
                return ctypes.CDLL(line.split()[-1])
    return ctypes.CDLL("libgomp.so.1")


def services(threads: int) -> Services:
    """No OpenMP at all for one thread, else a team of ``threads``."""
    if threads == 1:
        return Services(None, None, None, 1)
    lib = openmp()
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    return Services(*(ctypes.cast(getattr(lib, n), ctypes.c_void_p) for n in names), threads)


def to_memory(array: np.ndarray, dtype: DType) -> np.ndarray:
    """The interpreter's array as bytes in memory: bits of what NumPy lacks, bool as bytes."""
    if dtype in MEMORY:
        return to_bits(array, dtype)
    return array.astype(np.uint8) if dtype is DType.bool else array


def from_memory(array: np.ndarray, dtype: DType) -> np.ndarray:
    """The inverse of ``to_memory``."""
    if dtype in MEMORY:
        return from_bits(array, dtype)
    return array.astype(np.bool_) if dtype is DType.bool else array


def physical_index(layout: Layout, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """For each logical element, its physical indices."""
    grid = np.indices(shape)
    env = {f"d{d}": grid[d] for d in range(len(shape))}
    return tuple(np.broadcast_to(p.evaluate(env), shape) for p in layout.physical)


def evaluate_shape(shape: tuple[object, ...], env: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(s.evaluate(env)) for s in shape)  # type: ignore[attr-defined]


class NativeNest:
    """A compiled nest. ``run`` works like ``run_nest`` and returns the kernel's code."""

    def __init__(self, nest: LoopNest, target: CpuTarget, *, fp_contract: bool = True):
        self.nest = nest
        self.ir = emit_kernel(nest, target, function_name="kernel", fp_contract=fp_contract)
        self.object = compile_ir(self.ir, target)
        self.function: LoadedFunction = jit_load(self.object, "kernel")

    def run(
        self,
        arrays: MutableMapping[str, np.ndarray],
        symbols: Mapping[str, int] | None = None,
        *,
        threads: int = 1,
    ) -> int:
        """Overwrite what the nest writes in ``arrays``; memory around each must stay."""
        env = dict(symbols or {})
        blocks: dict[str, np.ndarray] = {}
        inner: dict[str, np.ndarray] = {}
        for t in self.nest.tensors:
            if t.alias_of is None or t.alias_of not in arrays:
                blocks[t.name], inner[t.name] = self._place(t, arrays[t.name], env)
        for t in self.nest.tensors:
            if t.name not in inner:
                inner[t.name] = inner[t.alias_of or ""]
        pointers = (ctypes.c_void_p * max(1, len(self.nest.tensors)))(
            *(inner[t.name].ctypes.data for t in self.nest.tensors)
        )
        values = (ctypes.c_int64 * max(1, len(self.nest.symbols)))(
            *(env[s.name] for s in self.nest.symbols)
        )
        own = services(threads)
        code = self.function(
            ctypes.addressof(pointers), ctypes.addressof(values), ctypes.addressof(own)
        )
        for t in self.nest.tensors:
            if t.name in blocks:
                self._check_guard(t, blocks[t.name])
                arrays[t.name][...] = self._fetch(t, inner[t.name], arrays[t.name].shape, env)
        return code

    def _place(
        self, t: Tensor, array: np.ndarray, env: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        memory = to_memory(np.ascontiguousarray(array), t.dtype)
        if t.layout is not None:
            packed = np.zeros(evaluate_shape(t.layout.shape, env), memory.dtype)
            packed[physical_index(t.layout, memory.shape)] = memory
            memory = packed
        block = np.full(memory.size + 2 * GUARD, 0, memory.dtype)
        block.view(np.uint8)[...] = 0x5A
        inner = block[GUARD : GUARD + memory.size]
        inner[...] = memory.reshape(-1)
        return block, inner

    def _check_guard(self, t: Tensor, block: np.ndarray) -> None:
        raw = block.view(np.uint8)
        edge = GUARD * block.itemsize
        if not ((raw[:edge] == 0x5A).all() and (raw[-edge:] == 0x5A).all()):
            raise AssertionError(f"kernel {self.nest.name} wrote outside {t.name}")

    def _fetch(
        self, t: Tensor, inner: np.ndarray, shape: tuple[int, ...], env: Mapping[str, int]
    ) -> np.ndarray:
        if t.layout is None:
            return from_memory(inner.reshape(shape), t.dtype)
        physical = inner.reshape(evaluate_shape(t.layout.shape, env))
        return from_memory(physical[physical_index(t.layout, shape)], t.dtype)
