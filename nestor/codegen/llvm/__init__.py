"""LoopNest → LLVM IR → object code. See ``docs/architecture.md`` for the native interface."""

from nestor.codegen.llvm.compile import compile_ir
from nestor.codegen.llvm.emit import CODEGEN_VERSION, emit_entry, emit_kernel

__all__ = ["CODEGEN_VERSION", "compile_ir", "emit_entry", "emit_kernel"]
