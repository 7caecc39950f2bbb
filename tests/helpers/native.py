"""Hand-written kernels that follow the native interface, compiled with llvmlite alone."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from nestor.runtime.manifest import (
    FunctionRef,
    InputSpec,
    KernelCall,
    Manifest,
    OutputSpec,
    Segment,
    TargetInfo,
    TensorSlot,
    check_manifest,
)

TARGET = TargetInfo(triple="x86_64-unknown-linux-gnu", features=("sse2",))


@functools.cache
def compile_text(text: str, code_model: str = "small") -> bytes:
    """LLVM IR → a relocatable object."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    module.triple = TARGET.triple
    machine = llvm.Target.from_triple(TARGET.triple).create_target_machine(
        cpu="x86-64", reloc="pic" if code_model == "small" else "static", codemodel=code_model
    )
    return bytes(machine.emit_object(module))


def entry_text(
    calls: list[tuple[int, tuple[int, ...], tuple[int, ...]]], name: str = "entry"
) -> str:
    """An entry function: calls (function, slots, symbols) one after the other."""
    lines = [f"define i32 @{name}(ptr %table, ptr %tensors, ptr %symbols, ptr %services) {{"]
    for n, (function, slots, symbols) in enumerate(calls):
        lines.append(f"  %args{n} = alloca [{max(1, len(slots))} x ptr]")
        lines.append(f"  %syms{n} = alloca [{max(1, len(symbols))} x i64]")
        for i, slot in enumerate(slots):
            lines += [
                f"  %s{n}_{i} = getelementptr ptr, ptr %tensors, i64 {slot}",
                f"  %t{n}_{i} = load ptr, ptr %s{n}_{i}",
                f"  %d{n}_{i} = getelementptr ptr, ptr %args{n}, i64 {i}",
                f"  store ptr %t{n}_{i}, ptr %d{n}_{i}",
            ]
        for i, symbol in enumerate(symbols):
            lines += [
                f"  %sy{n}_{i} = getelementptr i64, ptr %symbols, i64 {symbol}",
                f"  %sv{n}_{i} = load i64, ptr %sy{n}_{i}",
                f"  %sd{n}_{i} = getelementptr i64, ptr %syms{n}, i64 {i}",
                f"  store i64 %sv{n}_{i}, ptr %sd{n}_{i}",
            ]
        lines += [
            f"  %fp{n} = getelementptr ptr, ptr %table, i64 {function}",
            f"  %f{n} = load ptr, ptr %fp{n}",
            f"  %r{n} = call i32 %f{n}(ptr %args{n}, ptr %syms{n}, ptr %services)",
            f"  %bad{n} = icmp ne i32 %r{n}, 0",
            f"  br i1 %bad{n}, label %stop{n}, label %go{n}",
            f"stop{n}:",
            f"  ret i32 %r{n}",
            f"go{n}:",
        ]
    return "\n".join([*lines, "  ret i32 0", "}"])


def _tensor(i: int) -> str:
    return f"""  %a{i} = getelementptr ptr, ptr %args, i64 {i}
  %p{i} = load ptr, ptr %a{i}"""


def pointwise(body: str, count: str, inputs: int = 1, name: str = "kernel") -> str:
    """A float32 loop: tensors 0 … inputs-1 are read into %x0, %x1, …; %y goes to the last tensor.

    ``count`` is a number, or ``symbol`` for symbols[0].
    """
    tensors = "\n".join(_tensor(i) for i in range(inputs + 1))
    loads = "\n".join(
        f"  %q{i} = getelementptr float, ptr %p{i}, i64 %i\n"
        f"  %x{i} = load float, ptr %q{i}, align 4"
        for i in range(inputs)
    )
    size = "load i64, ptr %symbols" if count == "symbol" else f"add i64 0, {count}"
    return f"""
define i32 @{name}(ptr %args, ptr %symbols, ptr %services) {{
start:
{tensors}
  %n = {size}
  br label %head
head:
  %i = phi i64 [ 0, %start ], [ %next, %body ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %end
body:
{loads}
{body}
  %qy = getelementptr float, ptr %p{inputs}, i64 %i
  store float %y, ptr %qy, align 4
  %next = add i64 %i, 1
  br label %head
end:
  ret i32 0
}}"""


ADD = "  %y = fadd float %x0, %x1"
DOUBLE = "  %y = fadd float %x0, %x0"
INCREMENT = "  %y = fadd float %x0, 1.0"

FAIL = "define i32 @kernel(ptr %args, ptr %symbols, ptr %services) { ret i32 1 }"

PARALLEL_MARK = """
; every thread writes 1 + its number to tensor 0 at its own place, and the team's size to tensor 1
define internal void @work(ptr %data) {
  %p0 = load ptr, ptr %data
  %d1 = getelementptr ptr, ptr %data, i64 1
  %p1 = load ptr, ptr %d1
  %d2 = getelementptr ptr, ptr %data, i64 2
  %num = load ptr, ptr %d2
  %d3 = getelementptr ptr, ptr %data, i64 3
  %team = load ptr, ptr %d3
  %t = call i32 %num()
  %n = call i32 %team()
  %t64 = zext i32 %t to i64
  %q = getelementptr i64, ptr %p0, i64 %t64
  %mark = add i64 %t64, 1
  store i64 %mark, ptr %q
  %n64 = zext i32 %n to i64
  store i64 %n64, ptr %p1
  ret void
}
define i32 @kernel(ptr %args, ptr %symbols, ptr %services) {
  %p0 = load ptr, ptr %args
  %a1 = getelementptr ptr, ptr %args, i64 1
  %p1 = load ptr, ptr %a1
  %parallel = load ptr, ptr %services
  %s1 = getelementptr ptr, ptr %services, i64 1
  %num = load ptr, ptr %s1
  %s2 = getelementptr ptr, ptr %services, i64 2
  %team = load ptr, ptr %s2
  %s3 = getelementptr ptr, ptr %services, i64 3
  %threads = load i64, ptr %s3
  %none = icmp eq ptr %parallel, null
  br i1 %none, label %serial, label %many
serial:
  store i64 1, ptr %p0
  store i64 %threads, ptr %p1
  ret i32 0
many:
  %data = alloca [4 x ptr]
  store ptr %p0, ptr %data
  %e1 = getelementptr ptr, ptr %data, i64 1
  store ptr %p1, ptr %e1
  %e2 = getelementptr ptr, ptr %data, i64 2
  store ptr %num, ptr %e2
  %e3 = getelementptr ptr, ptr %data, i64 3
  store ptr %team, ptr %e3
  %t32 = trunc i64 %threads to i32
  call void %parallel(ptr @work, ptr %data, i32 %t32, i32 0)
  ret i32 0
}"""


def digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()


class ModelMaker:
    """Collects slots, kernels and calls, and makes a manifest with its objects."""

    def __init__(self, name: str = "model"):
        self.name = name
        self.objects: dict[str, bytes] = {}
        self.slots: list[TensorSlot] = []
        self.functions: list[FunctionRef] = []
        self.calls: list[Any] = []
        self.fields: dict[str, Any] = {}

    def slot(
        self, name: str, shape: tuple[Any, ...], role: str, dtype: str = "f32", **more: Any
    ) -> int:
        self.slots.append(TensorSlot(name=name, dtype=dtype, shape=shape, role=role, **more))  # type: ignore[arg-type]
        return len(self.slots) - 1

    def kernel(
        self, text: str, slots: tuple[int, ...], symbols: tuple[int, ...] = (), **more: Any
    ) -> int:
        code = compile_text(text)
        self.objects[digest(code)] = code
        self.functions.append(FunctionRef(object=digest(code), name="kernel"))
        self.calls.append(
            KernelCall(function=len(self.functions) - 1, tensors=slots, symbols=symbols, **more)
        )
        return len(self.functions) - 1

    def manifest(self, outputs: list[Any], **more: Any) -> Manifest:
        segments = []
        first = 0
        while first < len(self.calls):
            last = first
            while last < len(self.calls) and isinstance(self.calls[last], KernelCall):
                last += 1
            if last > first:
                calls = [(c.function, c.tensors, c.symbols) for c in self.calls[first:last]]
                code = compile_text(entry_text(calls))
                self.objects[digest(code)] = code
                entry = FunctionRef(object=digest(code), name="entry")
                segments.append(Segment(first=first, last=last, entry=entry))
            first = max(last, first + 1)
        inputs = tuple(
            InputSpec(name=s.name, slot=i)
            for i, s in enumerate(self.slots)
            if s.role in ("input", "inout") and s.alias_of is None
        )
        specs = tuple(o if isinstance(o, OutputSpec) else OutputSpec(slot=o) for o in outputs)
        values = {
            "name": self.name, "target": TARGET, "slots": tuple(self.slots),
            "functions": tuple(self.functions), "calls": tuple(self.calls),
            "segments": tuple(segments), "inputs": inputs,
            "outputs": specs,
        }  # fmt: skip
        manifest = Manifest(**(values | more))
        check_manifest(manifest)
        return manifest


def chain(shape: tuple[int, ...] = (4, 8)) -> tuple[Manifest, dict[str, bytes]]:
    """y = 2·(x + 1) + w, with two temps and a weight ``w`` of the same shape."""
    count = 1
    for s in shape:
        count *= s
    m = ModelMaker("chain")
    x = m.slot("x", shape, "input")
    w = m.slot("w", shape, "parameter")
    a = m.slot("a", shape, "temp")
    b = m.slot("b", shape, "temp")
    y = m.slot("y", shape, "output")
    m.kernel(pointwise(INCREMENT, str(count)), (x, a), name="increment")
    m.kernel(pointwise(DOUBLE, str(count)), (a, b), name="double")
    m.kernel(pointwise(ADD, str(count), 2), (b, w, y), name="add")
    from nestor.runtime.manifest import WeightSource

    return m.manifest([y], weights=(WeightSource(slot=w, key="w", how="live"),)), m.objects
