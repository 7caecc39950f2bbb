"""What the machine can do at most: multiply-adds a second, bytes a second; measured, not assumed.

The floor of a benchmark is the longer of its operations over that peak and its bytes over that
bandwidth. Benchmarks whose arrays stay in a cache may beat the second.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.c_library import build_library

# Twelve chains hide the latency of two units of four cycles; more would not fit with AVX2.
SOURCE = """
#include <stdint.h>
typedef %s vector __attribute__((vector_size(%d)));
void peak(int64_t rounds, %s *out) {
    vector s[12], m = {0}, a = {0};
    m += (%s)0.999; a += (%s)0.001;
    for (int k = 0; k < 12; k++) s[k] = m * (%s)k;
    for (int64_t r = 0; r < rounds; r++)
        for (int k = 0; k < 12; k++) s[k] = s[k] * m + a;
    for (int k = 1; k < 12; k++) s[0] += s[k];
    *out = s[0][0];
}
void copy(int64_t n, const double *restrict from, double *restrict to) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i] * 0.5;
}
"""
PEAK_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast")
"""Without -ffast-math, which lets a compiler do less than what is counted."""

CHAINS = 12
COPY_BYTES = 256 << 20
"""Of each array: beyond any cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Peaks of this machine with a number of threads.

    Attributes:
        flops: multiply-adds in the element type, two operations each [1/s].
        bandwidth: bytes read and written while copying [B/s].
    """

    flops: float
    bandwidth: float

    def floor_seconds(self, operations: float, moved_bytes: float) -> float:
        """The least time for so many operations of fused multiply-adds and so many bytes [s]."""
        return max(operations / self.flops, moved_bytes / self.bandwidth)


def measure_machine(
    command: str, folder: Path, *, threads: int, dtype: str, vector_bits: int | None = None
) -> Machine:
    """Measure the peaks of ``threads`` cores, the best of a few tries of some 0.2 s.

    Args: command: a C compiler; folder: for its files; dtype: float64 or float32; vector_bits: of
        the vectors used; None: the widest of the machine.
    """
    c = "double" if dtype == "float64" else "float"
    width = 64 if "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8") else 32
    width = width if vector_bits is None else vector_bits // 8
    source, target = folder / "peak.c", folder / "peak.so"
    source.write_text(SOURCE % (c, width, c, c, c, c), encoding="utf-8")
    build_library(source, target, command=command, flags=PEAK_FLAGS)
    library = ctypes.CDLL(str(target))
    lanes = width // (8 if dtype == "float64" else 4)
    with ThreadPoolExecutor(threads) as pool:
        flops = _peak(library, pool, threads) * CHAINS * lanes * 2
        bandwidth = _bandwidth(library, pool, threads)
    return Machine(flops=flops, bandwidth=bandwidth)


def _peak(library: ctypes.CDLL, pool: ThreadPoolExecutor, threads: int) -> float:
    """Rounds of all chains a second, over all threads."""
    outs = [np.zeros(8) for _ in range(threads)]

    def run(rounds: int) -> float:
        return _timed(pool, [
            lambda out=out: library.peak(ctypes.c_int64(rounds), ctypes.c_void_p(out.ctypes.data))
            for out in outs
        ])  # fmt: skip

    rounds = 1_000_000
    rounds = max(rounds, int(rounds * 0.2 / run(rounds)))
    return max(rounds * threads / run(rounds) for _ in range(4))


def _bandwidth(library: ctypes.CDLL, pool: ThreadPoolExecutor, threads: int) -> float:
    """Bytes read and written a second."""
    count = COPY_BYTES // 8 // threads
    arrays = [(np.ones(count), np.zeros(count)) for _ in range(threads)]
    jobs = [
        lambda a=a, b=b: library.copy(
            ctypes.c_int64(count), ctypes.c_void_p(a.ctypes.data), ctypes.c_void_p(b.ctypes.data)
        )
        for a, b in arrays
    ]
    return max(16 * count * threads / _timed(pool, jobs) for _ in range(4))


def _timed(pool: ThreadPoolExecutor, jobs: list[Callable[[], None]]) -> float:
    start = time.perf_counter()
    for future in [pool.submit(job) for job in jobs]:
        future.result()
    return time.perf_counter() - start
