"""LoopNest → LLVM IR → object bytes. llvmlite is loaded by the first ``compile_ir``."""

from nestor.codegen.llvm.blocks import DRIVER_NAME, emit_driver
from nestor.codegen.llvm.compile import compile_assembly, compile_ir
from nestor.codegen.llvm.emit import CODEGEN_VERSION, emit_entry, emit_kernel
from nestor.codegen.llvm.jit import jit_load

__all__ = [
    "CODEGEN_VERSION",
    "DRIVER_NAME",
    "compile_assembly",
    "compile_ir",
    "emit_driver",
    "emit_entry",
    "emit_kernel",
    "jit_load",
]
