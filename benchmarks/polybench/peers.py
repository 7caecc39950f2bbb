"""The peers of the loop kernels: a C compiler on the nest as written, and Nestor."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.polybench import registry
from benchmarks.polybench.case import Case
from benchmarks.polybench.native import C_PEERS, compile_c, find_compiler

PEERS = (*C_PEERS, "nestor")
TUNED = "tuned"
"""Nestor with what records say, which is no peer that can be asked for."""
CACHE_VARIABLE = "NESTOR_CACHE_DIR"
RECORDS_VARIABLE = "NESTOR_CACHE"
ALIGNMENT = 4096
"""PolyBench's arrays start on a page [bytes]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A compiled benchmark.

    Attributes:
        call: runs it once on the arrays it was prepared for.
        compile_seconds: from source to machine code [s].
    """

    call: Callable[[], None]
    compile_seconds: float


def aligned_copy(value: Any) -> Any:
    """A copy of an array that starts on a page; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    room = np.empty(value.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    out = room[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    out[...] = value
    return out


def prepare(
    peer: str,
    case: Case,
    size: str,
    dtype: str,
    arguments: Mapping[str, Any],
    *,
    threads: int,
    folder: Path,
    restrict: bool = True,
) -> Ready:
    """Compile ``case`` by ``peer``, to run on ``arguments``.

    Args: restrict: whether C compilers are told that arrays do not overlap (PolyBench does not).
    Raises: ``NestorError`` if the peer is not there or cannot compile it.
    """
    if peer == "nestor":
        with fresh_cache(folder / "cache"):
            return _nestor(case, dtype, arguments, threads)
    if peer == TUNED:
        return _nestor(case, dtype, arguments, threads, size)
    program = registry.kernel(case.name, dtype).program
    compiled = compile_c(
        program,
        case.symbols(size),
        folder,
        command=find_compiler(peer),
        flags=C_PEERS[peer].flags,
        libraries=C_PEERS[peer].libraries,
        restrict=restrict,
    )
    bound = compiled.bind({**case.symbols(size), **arguments})
    function = compiled.address
    return Ready(call=lambda: function(*bound), compile_seconds=compiled.compile_seconds)


@contextlib.contextmanager
def fresh_cache(folder: Path) -> Iterator[None]:
    """Let Nestor find no object and no record of an earlier run, so that compiling can be timed."""
    before = {n: os.environ.pop(n, None) for n in (CACHE_VARIABLE, RECORDS_VARIABLE)}
    os.environ[CACHE_VARIABLE] = str(folder)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def warm_up(threads: int) -> None:
    """Load the compiler and start its workers by compiling a small kernel."""
    with tempfile.TemporaryDirectory() as folder, fresh_cache(Path(folder)):
        _nestor(registry.CASES["trisolv"], "float32", {}, threads)


def _nestor(
    case: Case, dtype: str, arguments: Mapping[str, Any], threads: int, size: str = "MINI"
) -> Ready:
    """Compiled by its first call, which is of the smallest size where one code serves all sizes.

    Args: size: of the first call: of what was tuned, that of the arguments.
    """
    start = time.perf_counter()
    kernel = registry.kernel(case.name, dtype, reassociate=True, threads=threads)
    kernel(**case.make_inputs(size, dtype))
    seconds = time.perf_counter() - start
    given = dict(arguments)
    return Ready(call=lambda: kernel(**given), compile_seconds=seconds)
