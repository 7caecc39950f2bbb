"""Triton source to machine code, on a machine with or without a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nestor.codegen.triton.kernel import CODEGEN_VERSION, TritonKernel
from nestor.codegen.triton.launch import load_function
from nestor.errors import InternalError, RefusedByTriton
from nestor.ir.narrow_floats import BYTES
from nestor.ir.types import DType

_POINTERS = {
    DType.f64: "*fp64",
    DType.f32: "*fp32",
    DType.f16: "*fp16",
    DType.bf16: "*bf16",
    DType.f8e4m3: "*fp8e4nv",
    DType.f8e5m2: "*fp8e5",
    DType.i64: "*i64",
    DType.i32: "*i32",
    DType.i16: "*i16",
    DType.i8: "*i8",
    DType.u8: "*u8",
    DType.bool: "*i1",
}

BYTE_FLOATS = 89
"""Capability of the first chips that multiply floats of 8 bits."""

ALIGNMENT = 16
"""Of every tensor [bytes]: PyTorch's allocator and an arena's places give more."""

SCRATCH_ALIGNMENT = 128
"""Of each kernel's scratch memory, as ``runtime.gpu_steps`` places it [bytes]."""

_USAGE_SECONDS = 60.0

_THREAD_REGISTERS = 255
"""That a thread may have."""

_REGISTERS = 1 << 16
"""That the threads of a processor share."""

_MORE_WARPS = (8, 16)
"""That a program gets so as to keep everything in registers."""

_FEW_BYTES = 64
"""Of a thread's stack: so few are a matter of how many registers the assembler takes [bytes]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CubinJob:
    """A kernel to be compiled.

    Attributes: capability: of the architecture, 90 for sm_90. shared_bytes: of shared memory that a
        program may have there [bytes]. warps: of a program, at least. stages: of loops that load
        while they compute, at most.
    """

    kernel: TritonKernel
    capability: int
    shared_bytes: int
    warps: int = 4
    stages: int = 3

    def key(self) -> str:
        """Digest of everything that makes the code."""
        parts = {
            "source": self.kernel.source,
            "dtypes": [str(d) for d in self.kernel.dtypes],
            "capability": self.capability,
            "shared_bytes": self.shared_bytes,
            "warps": self.warps,
            "stages": self.stages,
            "alignment": ALIGNMENT,
            "triton": triton.__version__,
            "codegen": CODEGEN_VERSION,
            "library": Path(__file__).with_name("library.py").read_text(encoding="utf-8"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cubin:
    """Machine code of a kernel.

    Attributes:
        code: the file's bytes. function: its entry.
        warps: of a program, those that Triton adds to copy or to multiply among them.
        stages: of loops that load while they compute.
        parameters: how many the entry takes, of eight bytes each; of those beyond the kernel's own
            the first is a pointer to ``scratch_bytes`` of memory for each program, in which it
            writes descriptors.
        shared_bytes: of shared memory that a program takes [bytes].
        registers: of a thread. spilled_bytes: of a thread's stack [bytes].
    """

    code: bytes
    function: str
    warps: int
    stages: int
    parameters: int
    shared_bytes: int
    scratch_bytes: int
    registers: int
    spilled_bytes: int

    def encode(self) -> bytes:
        """Data only: a length, a JSON header, the code."""
        fields = {k: v for k, v in asdict(self).items() if k != "code"}
        header = json.dumps(fields).encode()
        return struct.pack("<Q", len(header)) + header + self.code

    @classmethod
    def decode(cls, data: bytes) -> Cubin:
        """Inverse of ``encode``."""
        (size,) = struct.unpack_from("<Q", data)
        return cls(code=data[8 + size :], **json.loads(data[8 : 8 + size]))


def compile_cubin(job: CubinJob) -> Cubin:
    """Compile a kernel so that programs fit into shared memory, and threads into registers.

    Where it does not as asked for, it is compiled again: with fewer stages, of which each has its
    share of shared memory; with all registers that a thread may have (the assembler takes fewer so
    that more programs run at once, and then puts a few values on the stack); with more warps, each
    with a smaller share of the tile. If all ways spill, the one that spills least is taken.

    Raises: ``RefusedByTriton``, also if no way fits into shared memory.
    """
    best: Cubin | None = None
    for made in _ways(job):
        if best is None or made.spilled_bytes < best.spilled_bytes:
            best = made
        if not best.spilled_bytes:
            break
    assert best is not None
    return best


def _ways(job: CubinJob) -> Iterator[Cubin]:
    """The kernel as asked for, and in the ways that may spill less; all fit the chip."""
    made = _with_stages(job, job.warps)
    yield made
    for warps in (job.warps, *(w for w in _MORE_WARPS if w > job.warps)):
        with contextlib.suppress(RefusedByTriton):
            if warps > job.warps:
                made = _with_stages(job, warps)
                yield made
            # Triton adds warps of its own to some kernels.
            most = min(_THREAD_REGISTERS, _REGISTERS // (32 * made.warps) // 8 * 8)
            if made.spilled_bytes <= _FEW_BYTES and made.registers < most:
                yield _compiled(job, warps, made.stages, most)


def _with_stages(job: CubinJob, warps: int) -> Cubin:
    """The kernel with as many of the stages as shared memory has room for."""
    for stages in range(job.stages, 0, -1):
        made = _compiled(job, warps, stages)
        if made.shared_bytes <= job.shared_bytes:
            return made
    raise RefusedByTriton(
        f"a kernel takes {made.shared_bytes} bytes of shared memory, and sm_{job.capability} has "
        f"{job.shared_bytes}\n{job.kernel.source}"
    )


def _compiled(job: CubinJob, warps: int, stages: int, registers: int | None = None) -> Cubin:
    """Compile a kernel once. Args: registers: of a thread at most; None: the assembler decides."""
    kernel = job.kernel
    with tempfile.TemporaryDirectory(prefix="nestor-triton-") as folder:
        function = load_function(kernel, Path(folder))
        types = [_pointer(d, job.capability) for d in kernel.dtypes]
        types += ["*i32"] * kernel.checks + ["i64"] * len(kernel.symbols)
        names = function.arg_names
        aligned = {(n,): [["tt.divisibility", ALIGNMENT]] for n in range(len(kernel.tensors))}
        source = ASTSource(
            fn=function, signature=dict(zip(names, types)), constexprs={}, attrs=aligned
        )
        target = GPUTarget("cuda", job.capability, 32)
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        if registers is not None:
            options["maxnreg"] = registers
        try:
            made = triton.compile(source, target=target, options=options)
        except Exception as error:
            raise RefusedByTriton(
                f"Triton refuses a kernel: {type(error).__name__}: {error}\n{kernel.source}"
            ) from error
    if made.metadata.global_scratch_align > SCRATCH_ALIGNMENT or made.metadata.profile_scratch_size:
        raise RefusedByTriton(f"Triton wants memory of a kind of its own for\n{kernel.source}")
    code = made.asm["cubin"]
    registers, spilled = resource_usage(code)
    return Cubin(
        code=code,
        function=made.metadata.name,
        warps=made.metadata.num_warps,
        stages=stages,
        parameters=_parameters(made.asm["ptx"]),
        shared_bytes=made.metadata.shared,
        scratch_bytes=made.metadata.global_scratch_size or 0,
        registers=registers,
        spilled_bytes=spilled,
    )


def _pointer(dtype: DType, capability: int) -> str:
    """The type of a tensor's address; chips without products of 8-bit floats have bytes."""
    is_byte = dtype in BYTES and capability < BYTE_FLOATS
    return "*u8" if is_byte else _POINTERS[dtype]


def run_pickled_job(payload: bytes) -> bytes:
    """A worker's side: a pickled ``CubinJob`` from the parent's own pipe → an encoded cubin."""
    return compile_cubin(pickle.loads(payload)).encode()


def _parameters(ptx: str) -> int:
    """How many parameters the entry of a PTX module takes."""
    entry = re.search(r"\.entry\s+\w+\s*\((.*?)\)", ptx, flags=re.DOTALL)
    if entry is None:
        raise InternalError("Triton's PTX has no entry")
    return len(re.findall(r"\.param\b", entry[1]))


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
