"""Run Triton kernels on the CPU, in Triton's interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("Triton was imported before this module, so kernels would be compiled")
os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels are made for it or not

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from nestor.codegen.triton import TritonKernel, emit_kernel
from nestor.codegen.triton.launch import load_function
from nestor.frontends.torch.dtypes import to_torch
from nestor.ir.interpreter import run_program
from nestor.ir.loopnest import LoopNest
from nestor.ir.narrow_floats import MEMORY
from nestor.ir.numeric import numpy_dtype
from nestor.ir.program import Program, Tensor
from nestor.ir.schedule import Schedule
from nestor.passes.gpu_schedule import warps_of
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest

Arrays = dict[str, np.ndarray]

_plain_splat = InterpreterBuilder.create_splat


def _splat(self: Any, shape: Any, scalar: Any) -> Any:
    """The interpreter makes integers of a truth value that becomes a block, and then refuses them
    as a mask."""
    made = _plain_splat(self, shape, scalar)
    if scalar.data.dtype == np.bool_:
        made.data = made.data.astype(np.bool_)
    return made


InterpreterBuilder.create_splat = _splat

_plain_dot = InterpreterBuilder.create_dot


def _dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    """The interpreter holds bfloat16 as its bits, and multiplies those."""
    wide = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _plain_dot(self, *wide, *rest)


InterpreterBuilder.create_dot = _dot

_plain_cast = InterpreterBuilder.cast_impl


def _cast(self: Any, value: Any, dtype: Any) -> Any:
    """The interpreter knows bfloat16 from float32 only, takes the smallest numbers for 0, and cuts
    off what bfloat16 has no bits for; a GPU rounds to nearest even."""
    source, target = value.dtype.scalar, dtype.scalar
    if source == tl.bfloat16 and value.data.dtype != np.uint16:
        source = value.dtype = tl.int1  # of a comparison, whose handle has its operands' type
    if tl.bfloat16 in (source, target) and tl.float32 not in (source, target) and source != target:
        return _cast(self, _cast(self, value, tl.float32), dtype)
    if source == tl.bfloat16 and target == tl.float32:
        wide = value.data.astype(np.uint32) << np.uint32(16)
        return TensorHandle(wide.view(np.float32), tl.float32)
    if source == tl.float32 and target == tl.bfloat16:
        bits = value.data.view(np.uint32)
        up = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.where(np.isnan(value.data), bits | np.uint32(1 << 22), up)
        return TensorHandle((rounded >> np.uint32(16)).astype(np.uint16), tl.bfloat16)
    return _plain_cast(self, value, dtype)


InterpreterBuilder.cast_impl = _cast


def is_interpreting() -> bool:
    """Whether kernels that are made from now on run in the interpreter."""
    return bool(triton.knobs.runtime.interpret)


def check_kernel(
    program: Program,
    schedule: Schedule,
    arrays: Arrays,
    folder: Path,
    *,
    sizes: Mapping[str, int] | None = None,
    tolerance: float = 1e-5,
    most: int = 0,
) -> TritonKernel:
    """Prove a schedule, run its Triton kernel, and compare with what the IR means.

    Args: arrays: inputs and parameters. tolerance: of the largest element. most: programs that are
        started at most, of a kernel whose programs take several turns; 0: any number.
    """
    values = dict(sizes or {})
    nest = apply_schedule(program, schedule)
    check_nest(program, nest)
    kernel = emit_kernel(nest, warps=warps_of(schedule))
    wanted = run_program(program, arrays, values)
    found = run_kernel(
        kernel, nest, arrays, folder, values, most if warps_of(schedule).persistent else 0
    )
    for name, array in wanted.items():
        finite = np.abs(array[np.isfinite(array)].astype(np.float64))
        scale = max(1.0, float(finite.max(initial=0.0)))
        np.testing.assert_allclose(
            found[name].astype(np.float64), array.astype(np.float64),
            rtol=0, atol=tolerance * scale, err_msg=f"{name}\n{kernel.source}",
        )  # fmt: skip
    return kernel


def run_kernel(
    kernel: TritonKernel,
    nest: LoopNest,
    arrays: Arrays,
    folder: Path,
    sizes: dict[str, int],
    most: int = 0,
) -> Arrays:
    """What a kernel leaves in its tensors, as logical arrays."""
    memory: dict[str, torch.Tensor] = {}
    for t in nest.tensors:
        if t.alias_of is not None:
            memory[t.name] = memory[t.alias_of]
            continue
        shape = [int(e.evaluate(sizes)) for e in t.shape]
        array = arrays.get(t.name)
        if array is None:
            is_float = np.issubdtype(numpy_dtype(t.dtype), np.floating)
            array = np.full(shape, np.nan if is_float else 0, numpy_dtype(t.dtype))
        tensor = torch.from_numpy(np.ascontiguousarray(_stored(t, array, sizes)))
        memory[t.name] = tensor.to(to_torch(t.dtype)) if t.dtype in MEMORY else tensor.clone()
    function = load_function(kernel, folder)
    pointers = [memory[name] for name in kernel.tensors]
    failed = [torch.zeros((), dtype=torch.int32)] * kernel.checks
    values = [sizes[s] for s in kernel.symbols]
    programs = kernel.programs(sizes)
    function[(min(programs, most or programs),)](*pointers, *failed, *values)
    assert not any(failed), "an index lies outside its tensor"
    found = {}
    for t in nest.tensors:
        tensor = memory[t.name].float() if t.dtype in MEMORY else memory[t.name]
        found[t.name] = _logical(t, tensor.numpy(), sizes)
    return found


def _places(t: Tensor, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """Where each logical element of a tensor with a layout is stored."""
    assert t.layout is not None
    shape = [int(e.evaluate(sizes)) for e in t.shape]
    index = np.indices(shape)
    env: dict[str, Any] = {f"d{d}": index[d] for d in range(len(shape))} | dict(sizes)
    return tuple(np.broadcast_to(p.evaluate(env), shape) for p in t.layout.physical)


def _stored(t: Tensor, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    if t.layout is None:
        return array
    out = np.zeros([int(e.evaluate(sizes)) for e in t.layout.shape], array.dtype)
    out[_places(t, sizes)] = array
    return out


def _logical(t: Tensor, memory: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
    return memory if t.layout is None else memory[_places(t, sizes)]
