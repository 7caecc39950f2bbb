"""Kernels to measure, and hand-written objects that no checker would let pass."""

from __future__ import annotations

import functools
from dataclasses import replace

from nestor.autotune.measure_session import Variant
from nestor.autotune.measuring import Candidate
from nestor.ir.affine import affine
from nestor.ir.expr import const
from nestor.ir.program import Program, box
from nestor.ir.types import DType
from nestor.kernel_job import KernelObject
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.register_tile import VectorUnit
from nestor.target.cpu import host_target
from tests.helpers.ir_programs import load, op, program, reduce, statement, sum_of, tensor, write

COUNT = 1000
"""Elements of the hand-written kernels' arrays: 4000 bytes, no multiple of a cache line."""


def fused(made: Program) -> FusedKernel:
    """The first kernel of a program, in canonical names."""
    target = host_target()
    parts = partition_program(made, l2_bytes=target.l2_bytes, cores=target.cores).parts
    assert isinstance(parts[0], FusedKernel)
    return canonicalize_kernel(parts[0])[0]


def default(made: Program, bits: int | None = None, registers: int = 32) -> Candidate:
    """A program's first kernel with its default schedule for vectors of ``bits``."""
    one = fused(made)
    unit = VectorUnit(bits=bits or host_target().vector_bits, registers=registers)
    return Candidate(kernel=one.kernel, schedule=default_schedule(one, unit))


def depthwise(channels: int = 6, size: int = 12) -> Program:
    """A depthwise convolution of three taps a side, with zeros around the image."""
    h, w = affine("y") + "r" - 1, affine("x") + "q" - 1
    inside = (h, affine(size - 1) - h, w, affine(size - 1) - w)
    padded = load("X", "c", h, w, predicate=inside, other=const(0, DType.f32))
    return program(
        "depthwise",
        [
            tensor("X", channels, size, size),
            tensor("W", channels, 3, 3, role="parameter"),
            tensor("Y", channels, size, size, role="output"),
        ],
        statement(
            "S",
            box(c=channels, y=size, x=size, r=3, q=3),
            write("Y", "c", "y", "x"),
            op("mul", padded, load("W", "c", "r", "q")),
            reduction=reduce(sum_of(DType.f32), "r", "q"),
        ),
    )


def doubled() -> Program:
    """``y = x + x``, which the hand-written kernels compute too."""
    return program(
        "doubled",
        [tensor("x", COUNT), tensor("y", COUNT, role="output")],
        statement("S", box(i=COUNT), write("y", "i"), op("add", load("x", "i"), load("x", "i"))),
    )


_DOUBLE = f"""
define internal void @double(ptr %args) {{
entry:
  %x = load ptr, ptr %args
  %a1 = getelementptr ptr, ptr %args, i64 1
  %y = load ptr, ptr %a1
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %n, %loop ]
  %px = getelementptr float, ptr %x, i64 %i
  %py = getelementptr float, ptr %y, i64 %i
  %v = load float, ptr %px, align 4
  %w = fadd float %v, %v
  store float %w, ptr %py, align 4
  %n = add i64 %i, 1
  %more = icmp slt i64 %n, {COUNT}
  br i1 %more, label %loop, label %end
end:
  ret void
}}
declare void @llvm.trap()
@calls = internal global i64 0
define internal i64 @sys(i64 %n, i64 %a, i64 %b, i64 %c, i64 %d, i64 %e, i64 %f) {{
  %r = call i64 asm sideeffect "movq $5, %r10; movq $6, %r8; movq $7, %r9; syscall",
    "={{rax}},{{rax}},{{rdi}},{{rsi}},{{rdx}},r,r,r,~{{rcx}},~{{r11}},~{{r10}},~{{r8}},~{{r9}},~{{memory}}"(
      i64 %n, i64 %a, i64 %b, i64 %c, i64 %d, i64 %e, i64 %f)
  ret i64 %r
}}
define internal i64 @deep(i64 %n) {{
  %big = alloca [65536 x i8]
  store volatile i8 1, ptr %big
  %m = add i64 %n, 1
  %r = call i64 @deep(i64 %m)
  %byte = load volatile i8, ptr %big
  %wide = zext i8 %byte to i64
  %s = add i64 %r, %wide
  ret i64 %s
}}
define i32 @kernel(ptr %args, ptr %symbols, ptr %services) {{
  call void @double(ptr %args)
  %px = load ptr, ptr %args
  %a1 = getelementptr ptr, ptr %args, i64 1
  %py = load ptr, ptr %a1
"""


def _store(place: str, at: int, value: str = "1.0") -> str:
    return f"""  %q = getelementptr float, ptr {place}, i64 {at}
  store volatile float {value}, ptr %q, align 4
  ret i32 0
}}"""


def _mapping(bytes_: int, touch: bool) -> str:
    """A loop that maps memory again and again, and goes on when there is none left."""
    store = "  store volatile i8 1, ptr %at\n" if touch else ""
    return f"""  br label %again
again:
  %r = call i64 @sys(i64 9, i64 0, i64 {bytes_}, i64 3, i64 34, i64 -1, i64 0)
  %at = inttoptr i64 %r to ptr
{store}  br label %again
}}"""


BODIES = {
    "good": "  ret i32 0\n}",
    "wrong element": _store("%py", COUNT - 1),
    "null": _store("null", 0),
    "just past the end": _store("%py", COUNT),
    "just before the start": _store("%py", -1),
    "far past the end": _store("%py", COUNT + 1500),
    "far before the start": _store("%py", -2500),
    "writes its input": _store("%px", 3),
    "reads past the end": f"""  %q = getelementptr float, ptr %px, i64 {COUNT + 16}
  %v = load volatile float, ptr %q, align 4
  ret i32 0
}}""",
    "endless": "  br label %again\nagain:\n  br label %again\n}",
    "maps and touches": _mapping(64 << 20, touch=True),
    "maps only": _mapping(64 << 20, touch=False),
    "overflows its stack": "  %r = call i64 @deep(i64 0)\n  %t = trunc i64 %r to i32\n"
    "  ret i32 %t\n}",
    "exits": "  %r = call i64 @sys(i64 231, i64 0, i64 0, i64 0, i64 0, i64 0, i64 0)\n"
    "  ret i32 0\n}",
    "garbles answers": """  %address = ptrtoint ptr %px to i64
  br label %next
next:
  %fd = phi i64 [ 3, %0 ], [ %after, %next ]
  %r = call i64 @sys(i64 1, i64 %fd, i64 %address, i64 64, i64 0, i64 0, i64 0)
  %after = add i64 %fd, 1
  %more = icmp slt i64 %after, 12
  br i1 %more, label %next, label %done
done:
  ret i32 0
}""",
    "traps": "  call void @llvm.trap()\n  unreachable\n}",
    "index out of range": "  ret i32 1\n}",
    "wrong at the third call": """  %n = load i64, ptr @calls
  %m = add i64 %n, 1
  store i64 %m, ptr @calls
  %late = icmp sge i64 %n, 2
  br i1 %late, label %bad, label %fine
bad:
  store volatile float 7.0, ptr %py, align 4
  br label %fine
fine:
  ret i32 0
}""",
    "endless in the long run": """  %n = load i64, ptr @calls
  %m = add i64 %n, 1
  store i64 %m, ptr @calls
  br label %look
look:
  %late = icmp sge i64 %n, 100000
  br i1 %late, label %look, label %fine
fine:
  ret i32 0
}""",
}


@functools.cache
def object_of(body: str) -> bytes:
    """Object code of one of ``BODIES``."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    module = llvm.parse_assembly(_DOUBLE + BODIES[body])
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(
        cpu="x86-64", reloc="pic", codemodel="small"
    )
    return bytes(machine.emit_object(module))


def variant(body: str, candidate: Candidate) -> Variant:
    """One of ``BODIES`` as a variant of ``doubled``'s kernel."""
    made = KernelObject(function_name="kernel", code=object_of(body), schedule=())
    tensors = candidate.kernel.tensors
    return Variant(
        name=body,
        object=replace(made, tensors=tuple(t.name for t in tensors)),
        tensors=tensors,
    )
