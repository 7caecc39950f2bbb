"""Put a compiled program together: slots, calls, entry functions → a manifest that can run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from nestor.cache import ObjectCache
from nestor.compiler import Call, CompiledProgram, ProgramCalls, Slot
from nestor.config import Config
from nestor.ir.affine import Affine, FloorDiv
from nestor.ir.program import Extern
from nestor.runtime.dims import Dim, DimExpr, Quotient
from nestor.runtime.manifest import (
    Blocks,
    ExternCall,
    FunctionRef,
    KernelCall,
    Segment,
    TensorSlot,
)
from nestor.target.cpu import CpuTarget


class SlotTable:
    """Numbers slots.

    Attributes: slots: of the manifest. slot_of: by tensor. symbols: names, in order.
    """

    def __init__(self, program: ProgramCalls):
        self._program = program
        self.symbols = tuple(s.name for s in program.main.symbols)
        self.slot_of = {s.tensor.name: n for n, s in reversed(list(enumerate(program.slots)))}
        self.slots = tuple(self._slot(s) for s in program.slots)

    def _slot(self, slot: Slot) -> TensorSlot:
        tensor = slot.tensor
        alias = None
        if tensor.alias_of is not None:
            alias = self.slot_of[tensor.alias_of]
        physical = None
        if slot.layout is not None:
            physical = tuple(dim_of(e) for e in slot.layout.shape)
        shape = tuple(dim_of(e) for e in tensor.shape)
        in_blocks = tensor.name in self._program.in_blocks
        if in_blocks:
            # Calls see one block; the caller's array holds all of them, one after the other.
            shape = (self._all_blocks(shape[0]), *shape[1:])
            physical = physical and (self._all_blocks(physical[0]), *physical[1:])
        return TensorSlot(
            name=tensor.name,
            dtype=tensor.dtype.value,
            shape=shape,
            role=tensor.role,
            physical=physical,
            alias_of=alias,
            in_blocks=in_blocks,
        )

    def _all_blocks(self, extent: Dim) -> int:
        assert isinstance(extent, int)
        return extent * self._program.blocks

    def extern_call(self, extern: Extern) -> ExternCall:
        """A call of an operator that nobody lowered."""
        return ExternCall(
            operator=extern.operator,
            arguments={"extern": self._program.externs().index(extern)},
            inputs=tuple(self.slot_of[n] for n in extern.inputs),
            outputs=tuple(self.slot_of[n] for n in extern.outputs),
            origin=str(extern.origin or ""),
        )


class Linker(SlotTable):
    """Numbers functions, and makes the entry function of each segment.

    Attributes: functions, calls, segments, blocks: fields of the manifest. objects: digest → code.
    """

    def __init__(self, compiled: CompiledProgram, target: CpuTarget, config: Config):
        super().__init__(compiled)
        self.compiled = compiled
        self.target = target
        self.config = config
        self.objects: dict[str, bytes] = {}
        self.functions: list[FunctionRef] = []
        self._function_of: dict[str, int] = {}
        self.calls: tuple[KernelCall | ExternCall, ...] = tuple(
            self.extern_call(c) if isinstance(c, Extern) else self._kernel(c)
            for c in compiled.calls
        )
        self.segments = tuple(self._segments())
        self.blocks = self._blocks()

    def _add_object(self, code: bytes) -> str:
        digest = hashlib.sha256(code).hexdigest()
        self.objects[digest] = code
        return digest

    def _kernel(self, call: Call) -> KernelCall:
        if call.key not in self._function_of:
            compiled = self.compiled.objects[call.key]
            self._function_of[call.key] = len(self.functions)
            reference = FunctionRef(
                object=self._add_object(compiled.code), name=compiled.function_name
            )
            self.functions.append(reference)
        return KernelCall(
            function=self._function_of[call.key],
            tensors=call.slots,
            symbols=tuple(self.symbols.index(n) for n in call.symbols),
            name="+".join(call.statements),
            origin="; ".join(call.origins),
        )

    def _segments(self) -> Iterator[Segment]:
        first = 0
        while first < len(self.calls):
            last = first
            while last < len(self.calls) and isinstance(self.calls[last], KernelCall):
                last += 1
            if last > first:
                calls = [c for c in self.calls[first:last] if isinstance(c, KernelCall)]
                yield Segment(first=first, last=last, entry=self._entry(calls))
            first = max(last, first + 1)

    def _entry(self, calls: list[KernelCall]) -> FunctionRef:
        from nestor.codegen.llvm import emit_entry

        text = emit_entry("entry", [(c.function, c.tensors, c.symbols) for c in calls])
        return self._function("entry", text)

    def _blocks(self) -> Blocks | None:
        from nestor.codegen.llvm import DRIVER_NAME, emit_driver

        if self.compiled.blocks == 1:
            return None
        driver = self._function(DRIVER_NAME, emit_driver())
        return Blocks(count=self.compiled.blocks, driver=driver)

    def _function(self, name: str, text: str) -> FunctionRef:
        """Compile a function of LLVM IR, or take it from the cache."""
        from nestor.codegen.llvm import CODEGEN_VERSION, compile_ir

        cache = ObjectCache(self.config.cache_dir)
        parts = f"{name} {CODEGEN_VERSION} {self.target.isa_fingerprint()}\n{text}"
        key = hashlib.sha256(parts.encode()).hexdigest()
        code = cache.get(key)
        if code is None:
            code = compile_ir(text, self.target)
            cache.put(key, code)
        return FunctionRef(object=self._add_object(code), name=name)


def dim_of(extent: Affine) -> Dim:
    """A size as the runtime evaluates it."""
    if extent.is_const:
        return extent.const
    terms = tuple((a, c) for a, c in extent.terms if isinstance(a, str))
    quotients = tuple(
        Quotient(of=dim_of(a.num), by=a.den, times=c, is_modulus=not isinstance(a, FloorDiv))
        for a, c in extent.terms
        if not isinstance(a, str)
    )
    return DimExpr(const=extent.const, terms=terms, quotients=quotients)
