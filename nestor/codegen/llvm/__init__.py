"""LoopNest → LLVM IR → object bytes. llvmlite is loaded by the first ``compile_ir``."""

from nestor.codegen.llvm.compile import compile_assembly, compile_ir
from nestor.codegen.llvm.emit import CODEGEN_VERSION, emit_entry, emit_kernel
from nestor.codegen.llvm.jit import jit_load

__all__ = [
    "CODEGEN_VERSION",
    "compile_assembly",
    "compile_ir",
    "emit_entry",
    "emit_kernel",
    "jit_load",
]
