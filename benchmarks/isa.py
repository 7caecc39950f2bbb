"""Peers that are limited to AVX2 on a machine with AVX-512, and a check that they keep to it.

Each library is limited by its own switch. What is inside of it cannot be seen, but what it did can:
the processor keeps track of which parts of the register file a thread has used (``xgetbv`` with
ECX = 1), so a peer whose thread touched a mask or any register that AVX-512 added is caught.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import tempfile
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.c_library import CLANG, build_library, find_command
from nestor.benchmarking import peers as known
from nestor.benchmarking.peers import PeerMaker, Prepared
from nestor.errors import UserError

ISAS = ("native", "avx2")
"""What peers can be limited to: all that the machine has, or AVX2 with FMA."""

VARIABLES = {
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels, and what torch.compile vectorises for
    "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",  # what torch.compile tells the C++ compiler
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # PyTorch's copy of oneDNN and OpenVINO's
    "DNNL_MAX_CPU_ISA": "AVX2",
    "OV_CPU_MAX_ISA": "AVX2",  # OpenVINO's own kernels, in versions that know it
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW",  # its memcpy, memset, …
    "NESTOR_TARGET": "x86-64-v3",
}
"""Read by the libraries when a process starts."""

UNLIMITED = ("ort",)
"""Peers without a switch: ONNX Runtime's kernels (MLAS) are chosen by CPUID alone."""

AVX512_STATE = 0xE0
"""Bits of the processor's extended state: masks, upper halves, registers 16 to 31."""

SOURCE = """
#include <stdint.h>
uint64_t state_in_use(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return (uint64_t)high << 32 | low;
}
"""


def default_peers(isa: str, names: str) -> str:
    """``names``, without the peers that cannot be limited to ``isa``; both comma-separated."""
    if isa == "native":
        return names
    return ",".join(n for n in names.split(",") if n not in UNLIMITED)


def limit_peers(isa: str, names: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """Limit the peers of processes that start with ``environ``, and have each one checked.

    Raises: UserError for a peer that cannot be limited.
    """
    if isa == "native":
        return
    for name in names:
        if name in UNLIMITED:
            raise UserError(f"{name} cannot be limited to {isa}: it has no switch; leave it out")
    environ.update(VARIABLES)
    known.PEERS.update(
        {n: f"benchmarks.isa:{n}" for n in ("eager", "compile", "ov", "openvino", "nestor")}
    )


@functools.cache
def _state_reader() -> Any:
    """A function that returns which parts of the extended state this thread has used."""
    command = find_command(("gcc", *CLANG))
    if command is None:
        raise UserError("--isa needs a C compiler (gcc), to check which registers a peer uses")
    with tempfile.TemporaryDirectory(prefix="nestor-isa-") as folder:
        source, target = Path(folder) / "state.c", Path(folder) / "state.so"
        source.write_text(SOURCE, encoding="utf-8")
        build_library(source, target, command=command, flags=("-O1",))
        reader = ctypes.CDLL(str(target)).state_in_use
    reader.restype = ctypes.c_uint64
    return reader


def uses_avx512() -> bool:
    """Whether this thread has used registers that only AVX-512 has, since it was started."""
    return bool(_state_reader()() & AVX512_STATE)


def checked(maker: PeerMaker) -> PeerMaker:
    """``maker``, with its first calls checked: they raise UserError where they use AVX-512."""

    def make(model: Any, inputs: Sequence[Any], threads: int) -> Prepared:
        if uses_avx512():
            raise UserError(f"AVX-512 was used before {maker.__name__} began")
        prepared = maker(model, inputs, threads)
        left = 3

        def call() -> Any:
            nonlocal left
            result = prepared.call()
            if left:
                left -= 1
                if uses_avx512():
                    raise UserError(f"{maker.__name__} used AVX-512, though limited to AVX2")
            return result

        return dataclasses.replace(prepared, call=call)

    return make


eager = checked(known.eager)
compile = checked(peers.frozen_compile)
ov = openvino = checked(peers.openvino)
nestor = checked(known.nestor_compiled)
