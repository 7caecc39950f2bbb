"""Nestor: a tensor compiler for PyTorch models.

``compile`` turns a model into native code; ``load`` runs a compiled artifact where only NumPy is
installed. Importing this package loads no heavy dependency.
"""

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

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "CompiledModel",
    "ExportError",
    "IllegalSchedule",
    "InputError",
    "InternalError",
    "NestorError",
    "OutputError",
    "Unsupported",
    "UserError",
    "__version__",
    "compile",
    "load",
]
