"""Load an object into this process through LLVM's ORC, for tests and experiments only.

The product maps objects itself (``runtime/elf.py``).
"""

from __future__ import annotations

import ctypes
from typing import Any

from nestor.codegen.llvm.compile import _llvm


class LoadedFunction:
    """A native function and the library that keeps it alive. Call it like a ctypes function."""

    def __init__(self, library: Any, engine: Any, function: Any):
        self._library = library
        self._engine = engine
        self._function = function

    def __call__(self, *args: object) -> int:
        return int(self._function(*args))


_COUNT = [0]


def jit_load(object_bytes: bytes, function_name: str, arguments: int = 3) -> LoadedFunction:
    """Link ``object_bytes`` and return ``i32 function_name(ptr, …)`` of ``arguments`` pointers."""
    llvm = _llvm()
    engine = llvm.create_lljit_compiler()
    _COUNT[0] += 1
    builder = llvm.JITLibraryBuilder().add_object_img(object_bytes).add_current_process()
    library = builder.export_symbol(function_name).link(engine, f"object{_COUNT[0]}")
    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *([ctypes.c_void_p] * arguments))
    return LoadedFunction(library, engine, prototype(library[function_name]))
