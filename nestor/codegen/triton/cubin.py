"""Triton source to machine code, on a machine with or without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nestor.codegen.triton.kernel import TritonKernel
from nestor.codegen.triton.launch import load_function
from nestor.errors import InternalError
from nestor.ir.program import Tensor
from nestor.ir.types import DType

_POINTERS = {
    DType.f64: "*fp64",
    DType.f32: "*fp32",
    DType.f16: "*fp16",
    DType.bf16: "*bf16",
    DType.i64: "*i64",
    DType.i32: "*i32",
    DType.i16: "*i16",
    DType.i8: "*i8",
    DType.u8: "*u8",
    DType.bool: "*i1",
}

ALIGNMENT = 16
"""Of every tensor [bytes]: PyTorch's allocator and an arena's places give more."""

_USAGE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cubin:
    """Machine code of a kernel.

    Attributes:
        code: the file's bytes. function: its entry. warps: of a program.
        shared_bytes: of shared memory that a program takes [bytes].
        registers: of a thread. spilled_bytes: of a thread's stack [bytes].
    """

    code: bytes
    function: str
    warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int


def compile_cubin(
    kernel: TritonKernel,
    tensors: Mapping[str, Tensor],
    capability: int,
    *,
    warps: int = 4,
    stages: int = 3,
) -> Cubin:
    """Compile a kernel for an architecture, 90 for sm_90.

    Args: tensors: of the kernel, by name. stages: of loops that load while they compute.
    Raises: ``InternalError`` if Triton refuses it.
    """
    with tempfile.TemporaryDirectory(prefix="nestor-triton-") as folder:
        function = load_function(kernel, Path(folder))
        types = [_POINTERS[tensors[name].dtype] for name in kernel.tensors]
        types += ["*i32"] * kernel.checks + ["i64"] * len(kernel.symbols)
        names = function.arg_names
        aligned = {(n,): [["tt.divisibility", ALIGNMENT]] for n in range(len(kernel.tensors))}
        source = ASTSource(
            fn=function, signature=dict(zip(names, types)), constexprs={}, attrs=aligned
        )
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        try:
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        except Exception as error:
            raise InternalError(
                f"Triton refuses a kernel: {type(error).__name__}: {error}\n{kernel.source}"
            ) from error
    code = made.asm["cubin"]
    registers, spilled = resource_usage(code)
    return Cubin(
        code=code,
        function=made.metadata.name,
        warps=warps,
        shared_bytes=made.metadata.shared,
        registers=registers,
        spilled_bytes=spilled,
    )


def resource_usage(code: bytes) -> tuple[int, int]:
    """Registers and bytes of stack that a thread of a cubin's kernel takes, as ``cuobjdump`` of
    Triton's wheel reads them off."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        done = subprocess.run(
            [str(tool), "-res-usage", file.name],
            capture_output=True,
            text=True,
            timeout=_USAGE_SECONDS,
            check=True,
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if found is None:
        raise InternalError(f"cuobjdump tells no registers: {done.stdout[:500]}")
    return int(found[1]), int(found[2])
