"""Nestor: a tensor compiler for PyTorch models and for loop kernels written in Python.

``compile`` turns a model into native code; ``load`` runs a compiled artifact where only NumPy is
installed; ``kernel`` compiles a Python function of affine loops, whose parameters have types such
as ``nestor.f64["N", "M"]``. Importing this package loads no heavy dependency.
"""

from typing import TYPE_CHECKING, Any

from nestor.api import CompiledModel, compile, load
from nestor.errors import (
    ArtifactError,
    ExportError,
    IllegalSchedule,
    InputError,
    InternalError,
    NestorError,
    OutputError,
    Unsupported,
    UserError,
)

if TYPE_CHECKING:
    from nestor.frontends.python.annotations import empty, zeros
    from nestor.loop_kernel import Kernel, kernel

__version__ = "0.1.0"

_ELEMENT_TYPES = (
    "f64",
    "f32",
    "f16",
    "bf16",
    "f8e4m3",
    "f8e5m2",
    "i64",
    "i32",
    "i16",
    "i8",
    "u8",
    "bool",
)


def __getattr__(name: str) -> Any:
    """Loop kernels and their types, loaded at first use."""
    if name in ("kernel", "Kernel"):
        from nestor import loop_kernel

        return getattr(loop_kernel, name)
    if name in ("zeros", "empty") or name in _ELEMENT_TYPES:
        from nestor.frontends.python.annotations import ELEMENT_TYPES, empty, zeros

        return {**ELEMENT_TYPES, "zeros": zeros, "empty": empty}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ArtifactError",
    "CompiledModel",
    "ExportError",
    "IllegalSchedule",
    "InputError",
    "InternalError",
    "Kernel",
    "NestorError",
    "OutputError",
    "Unsupported",
    "UserError",
    "__version__",
    "compile",
    "empty",
    "kernel",
    "load",
    "zeros",
]
