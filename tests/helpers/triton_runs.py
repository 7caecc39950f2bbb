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
from tests.helpers import triton_mends  # noqa: F401  it changes the interpreter

Arrays = dict[str, np.ndarray]


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
