"""LLVM IR text → relocatable object bytes, through llvmlite.

The IR is explicit (vectors, unrolled tiles), so the pipeline only cleans up: loop vectorising, SLP
and unrolling are off. Raises: ``InternalError`` when LLVM rejects the IR, since that is our fault.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from nestor.errors import InternalError
from nestor.target.cpu import CpuTarget

_LOCK = threading.Lock()


def compile_ir(ir_text: str, target: CpuTarget, opt_level: int = 1) -> bytes:
    """Compile a module to a relocatable ELF object (position-independent code).

    Args: ir_text: a module. target: its triple and features override the text's.
        opt_level: 0 to 3, for the passes. More than 1 takes up to twice as long and, the IR being
            explicit, changes next to nothing.
    Raises: ``InternalError`` if the text does not parse or verify.
    """
    module, machine = _optimized(ir_text, target, opt_level)
    with _LOCK:
        return bytes(machine.emit_object(module))


def compile_assembly(ir_text: str, target: CpuTarget, opt_level: int = 1) -> str:
    """The same as assembly text, for people and for tests that look for spills."""
    module, machine = _optimized(ir_text, target, opt_level)
    with _LOCK:
        return str(machine.emit_assembly(module))


def optimized_ir(ir_text: str, target: CpuTarget, opt_level: int = 1) -> str:
    """The module after the passes, as text."""
    return str(_optimized(ir_text, target, opt_level)[0])


def _optimized(ir_text: str, target: CpuTarget, opt_level: int) -> tuple[Any, Any]:
    llvm = _llvm()
    machine = _machine(target, 2 if opt_level else 0)
    try:
        module = llvm.parse_assembly(ir_text)
        module.triple = target.triple
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise InternalError(f"LLVM rejects generated code: {error}") from error
    with _LOCK:
        options = llvm.create_pipeline_tuning_options(speed_level=opt_level)
        options.loop_vectorization = False
        options.loop_interleaving = False
        options.loop_unrolling = False
        options.slp_vectorization = False
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
    return module, machine


@functools.cache
def _llvm() -> Any:
    """llvmlite's binding with the x86 code generator registered; loaded at first use."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@functools.lru_cache(maxsize=16)
def _machine(target: CpuTarget, opt_level: int) -> Any:
    """A TargetMachine; never handed to an engine, so that it may be shared."""
    return (
        _llvm()
        .Target.from_triple(target.triple)
        .create_target_machine(
            cpu=target.cpu,
            features=target.llvm_features,
            opt=opt_level,
            reloc="pic",
            codemodel="small",
        )
    )
