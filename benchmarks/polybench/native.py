"""C programs compiled by the machine's compilers and called in this process."""

from __future__ import annotations

import ctypes
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.c_library import CLANG, build_library, find_command
from nestor.codegen.c import print_c
from nestor.errors import UserError
from nestor.ir.numeric import numpy_dtype
from nestor.ir.program import Program, Statement

FAST = ("-O3", "-march=native", "-ffast-math")
"""The flags of every peer that is timed."""

EXACT = ("-O1", "-ffp-contract=off")
"""Flags under which the program computes what the interpreter does, bit by bit."""

POLLY = ("-mllvm", "-polly", "-mllvm", "-polly-parallel")
"""LLVM's own polyhedral optimiser, with parallel loops."""


@dataclass(frozen=True, slots=True)
class CPeer:
    """A C compiler with its flags: the first of ``commands`` that is installed."""

    commands: tuple[str, ...]
    flags: tuple[str, ...] = FAST
    libraries: tuple[str, ...] = ("-lm",)


C_PEERS = {
    "clang": CPeer(CLANG),
    "gcc": CPeer(("gcc",)),
    "polly": CPeer(CLANG, (*FAST, *POLLY), ("-lm", "-lgomp")),
}


def find_compiler(peer: str) -> str:
    """The command of a C compiler. Raises: ``UserError`` if none is installed."""
    commands = C_PEERS[peer].commands
    if command := find_command(commands):
        return command
    raise UserError(
        f"no {commands[0]} here (looked for {', '.join(commands)}); "
        f"install it, or leave {peer} out of --peers"
    )


def compiler_version(command: str) -> str:
    """The first line of ``command --version``."""
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class CKernel:
    """A compiled Program.

    Attributes:
        library: the loaded shared object, kept alive.
        address: of its function.
        program: what it computes.
        symbols: its sizes.
        compile_seconds: how long the compiler took [s].
    """

    library: ctypes.CDLL
    address: Any
    program: Program
    symbols: Mapping[str, int]
    compile_seconds: float

    def bind(self, arrays: Mapping[str, Any]) -> list[Any]:
        """Arguments for ``address``; arrays must stay alive, and are overwritten in place.

        Args: arrays: every tensor that is no temporary, by name: C-contiguous arrays of the right
            type and shape, and numbers for scalars that are passed by value.
        """
        written = written_tensors(self.program)
        out: list[Any] = []
        for t in self.program.tensors:
            if t.role == "temp":
                continue
            kind = numpy_dtype(t.dtype)
            value = arrays[t.name]
            if not t.shape and t.name not in written:
                out.append(np.ctypeslib.as_ctypes_type(kind)(np.asarray(value, kind)[()].item()))
                continue
            shape = tuple(int(d.evaluate(self.symbols)) for d in t.shape)
            fits = isinstance(value, np.ndarray) and value.shape == shape
            if not (fits and value.dtype == kind and value.flags.c_contiguous):
                raise ValueError(f"{t.name}: needs a contiguous {kind} array of shape {shape}")
            out.append(ctypes.c_void_p(value.ctypes.data))
        return out

    def __call__(self, arrays: Mapping[str, Any]) -> None:
        """Run on ``arrays`` in place; see ``bind``."""
        self.address(*self.bind(arrays))


def written_tensors(program: Program) -> frozenset[str]:
    """Names of the tensors that a statement writes."""
    statements = (s for s in program.statements if isinstance(s, Statement))
    return frozenset(w.tensor for s in statements for w in s.writes)


def compile_c(
    program: Program,
    symbols: Mapping[str, int],
    folder: Path,
    *,
    command: str,
    flags: Sequence[str] = FAST,
    libraries: Sequence[str] = ("-lm",),
    restrict: bool = True,
) -> CKernel:
    """Print, compile and load ``program`` with its sizes fixed, as PolyBench fixes them.

    Args: folder: where the source and the shared object go; command: the compiler;
        restrict: whether it knows that arrays do not overlap.
    Raises: ``UserError`` with the compiler's words if it refuses.
    """
    # A path that was loaded before would give the library of before.
    stem = f"{program.name}_{len(list(folder.glob('*.c')))}"
    source, target = folder / f"{stem}.c", folder / f"{stem}.so"
    text = print_c(program, "kernel", symbols=symbols, restrict=restrict)
    source.write_text(text, encoding="utf-8")
    start = time.perf_counter()
    build_library(source, target, command=command, flags=flags, libraries=libraries)
    seconds = time.perf_counter() - start
    library = ctypes.CDLL(str(target))
    function = library.kernel
    function.restype = None
    return CKernel(
        library=library,
        address=function,
        program=program,
        symbols=dict(symbols),
        compile_seconds=seconds,
    )
