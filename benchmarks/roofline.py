"""What the machine can do at most: multiply-adds a second, bytes a second; measured, not assumed.

The floor of a benchmark is the longer of its operations over that peak and its bytes over that
bandwidth. Benchmarks whose arrays stay in a cache may beat the second.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.c_library import CLANG, build_library, find_command

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
void bounce(int64_t n, int64_t who, int64_t *turn) {
    for (int64_t i = 0; i < n; i++) {
        while (__atomic_load_n(turn, __ATOMIC_ACQUIRE) != 2 * i + who) {}
        __atomic_store_n(turn, 2 * i + who + 1, __ATOMIC_RELEASE);
    }
}
"""
PEAK_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast")
"""Without -ffast-math, which lets a compiler do less than what is counted."""

CHAINS = 12
COPY_BYTES = 256 << 20
"""Of each array: beyond any cache."""

STEADY_SHARE = 0.9
"""Of its peak, that the machine gives while nobody else takes from it."""

_GLANCE_SECONDS = 0.01
"""Longer than threads that just woke up go before others."""

_PEAK_TRIES = 40

_BOUNCES = 20_000
"""Times that two threads hand a cache line to each other and back: a millisecond or more."""

_NEAR_SECONDS = 150e-9
"""For handing a line over and back, between cores that share a cache; others take twice as long."""


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


class PeakMeter:
    """Measures peaks with a number of threads, and tells whether the machine gives them now.

    On a shared host two CPUs may at times be two threads of one core, or cores of two sockets,
    which reach the peak but exchange data five times as slowly: what is timed then says little, and
    tells peers apart by other limits.
    """

    def __init__(
        self,
        command: str,
        folder: Path,
        *,
        threads: int,
        dtype: str,
        vector_bits: int | None = None,
    ) -> None:
        """Measure the peaks.

        Args: command: a C compiler; folder: for its files, needed here only; dtype: float64 or
            float32; vector_bits: of the vectors used; None: the widest of the machine.
        """
        c = "double" if dtype == "float64" else "float"
        width = 64 if "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8") else 32
        width = width if vector_bits is None else vector_bits // 8
        source, target = folder / "peak.c", folder / "peak.so"
        source.write_text(SOURCE % (c, width, c, c, c, c), encoding="utf-8")
        build_library(source, target, command=command, flags=PEAK_FLAGS)
        self._library = ctypes.CDLL(str(target))
        cpus = itertools.cycle(sorted(os.sched_getaffinity(0)))
        # A thread a CPU: threads that wake up on one and the same stay there for milliseconds.
        self._pool = ThreadPoolExecutor(
            threads, initializer=lambda: os.sched_setaffinity(0, {next(cpus)})
        )
        self._outs = [np.zeros(8) for _ in range(threads)]
        self._round_flops = CHAINS * (width // (8 if dtype == "float64" else 4)) * 2
        peak = self._peak()
        self._hop = self._nearest()
        self.machine = Machine(flops=peak, bandwidth=self._bandwidth())

    def is_steady(self) -> bool:
        """Whether all threads together reach the peak at this moment, and as near each other as
        they were; in some milliseconds."""
        rounds = int(_GLANCE_SECONDS * self.machine.flops / len(self._outs) / self._round_flops)
        is_fast = any(self._flops(rounds) >= STEADY_SHARE * self.machine.flops for _ in range(2))
        return is_fast and any(self._hop_seconds() <= 2 * self._hop for _ in range(2))

    def measure_bandwidth_again(self) -> Machine:
        """The higher bandwidth of the two measurements: what else runs only lowers it."""
        bandwidth = max(self.machine.bandwidth, self._bandwidth())
        self.machine = replace(self.machine, bandwidth=bandwidth)
        return self.machine

    def _flops(self, rounds: int, threads: int | None = None) -> float:
        """Operations a second of all chains, of all threads or some."""
        outs = self._outs[:threads]
        seconds = self._timed([
            lambda out=out: self._library.peak(
                ctypes.c_int64(rounds), ctypes.c_void_p(out.ctypes.data)
            )
            for out in outs
        ])  # fmt: skip
        return rounds * len(outs) * self._round_flops / seconds

    def _peak(self) -> float:
        """The most operations a second; tried again while the machine withholds a core."""
        rounds = int(0.1 * self._flops(1_000_000, 1) / self._round_flops)
        alone = max(self._flops(rounds, 1) for _ in range(4))
        best = 0.0
        for _ in range(_PEAK_TRIES):
            best = max(best, *(self._flops(rounds) for _ in range(4)))
            if best >= STEADY_SHARE * alone * len(self._outs):
                break
            time.sleep(0.5)
        return best

    def _nearest(self) -> float:
        """The least time that a cache line takes between two threads and back [s]; tried again
        while they seem to have no cache in common."""
        best = self._hop_seconds()
        for _ in range(_PEAK_TRIES):
            best = min(best, *(self._hop_seconds() for _ in range(4)))
            if best <= _NEAR_SECONDS:
                break
            time.sleep(0.5)
        return best

    def _hop_seconds(self) -> float:
        """How long a cache line takes from one thread to another and back; 0 for one thread."""
        if len(self._outs) < 2:
            return 0.0
        turn = np.zeros(1, np.int64)
        at = ctypes.c_void_p(turn.ctypes.data)
        jobs = [
            lambda who=who: self._library.bounce(
                ctypes.c_int64(_BOUNCES), ctypes.c_int64(who), at
            )
            for who in range(2)
        ]  # fmt: skip
        return self._timed(jobs) / _BOUNCES

    def _bandwidth(self) -> float:
        """Bytes read and written a second."""
        threads = len(self._outs)
        count = COPY_BYTES // 8 // threads
        arrays = [(np.ones(count), np.zeros(count)) for _ in range(threads)]
        jobs = [
            lambda a=a, b=b: self._library.copy(
                ctypes.c_int64(count),
                ctypes.c_void_p(a.ctypes.data),
                ctypes.c_void_p(b.ctypes.data),
            )
            for a, b in arrays
        ]
        return max(16 * count * threads / self._timed(jobs) for _ in range(4))

    def _timed(self, jobs: list[Callable[[], None]]) -> float:
        start = time.perf_counter()
        for future in [self._pool.submit(job) for job in jobs]:
            future.result()
        return time.perf_counter() - start


def measure_machine(
    command: str, folder: Path, *, threads: int, dtype: str, vector_bits: int | None = None
) -> Machine:
    """The peaks alone; arguments as of ``PeakMeter``."""
    return PeakMeter(command, folder, threads=threads, dtype=dtype, vector_bits=vector_bits).machine


def peak_meter(threads: int, vector_bits: int | None = None) -> PeakMeter | None:
    """A meter of float32's peaks by a compiler of this machine; None without one."""
    command = find_command(("gcc", *CLANG))
    if command is None:
        return None
    with tempfile.TemporaryDirectory(prefix="nestor-peak-") as folder:
        return PeakMeter(
            command, Path(folder), threads=threads, dtype="float32", vector_bits=vector_bits
        )
