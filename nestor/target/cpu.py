"""What a CPU is: instruction set, vector registers, caches, cores, and its roofline.

A ``CpuTarget`` is what code is made for. It names one of two x86-64 levels (``x86-64-v3``: AVX2,
``x86-64-v4``: AVX-512) instead of a model of CPU, so that object code is shared between machines
with the same instructions, and the host is read from ``/proc/cpuinfo`` and sysfs, so that a machine
without LLVM can say what it is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nestor.errors import UserError

TRIPLE = "x86_64-unknown-linux-gnu"

_LEVEL_V2 = ("cx16", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2")
_LEVEL_V3 = (*_LEVEL_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_LEVEL_V4 = (*_LEVEL_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_OPTIONAL = ("avx512vnni", "avx512bf16", "avx512vbmi", "avxvnni")

_CPUINFO_NAMES = {
    "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "bmi": "bmi1", "lzcnt": "abm",
    "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avxvnni": "avx_vnni",
}  # fmt: skip

TARGET_NAMES = ("native", "auto", "x86-64-v3", "x86-64-v4", "avx2", "avx512")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTarget:
    """A CPU to generate code for.

    Attributes:
        triple: LLVM's target triple.
        cpu: LLVM's name of the level (``x86-64-v3`` or ``x86-64-v4``).
        features: instruction sets, in LLVM's names, that code may use; sorted.
        vector_bits: width of a vector register [bits]: 512, 256 or 128.
        vector_registers: how many there are (32 with AVX-512, else 16).
        fma_bits_per_cycle: width of fused multiply-adds that one core starts per cycle [bits].
        l1d_bytes: level-1 data cache of one core [bytes].
        l2_bytes: level-2 cache of one core [bytes].
        l3_bytes: last-level cache, shared [bytes].
        line_bytes: a cache line [bytes].
        cores: hardware threads that this process may run on.
        ghz: guessed clock [10⁹ cycles per second]; for the roofline only.
        memory_gbps: guessed memory bandwidth of all cores together [10⁹ bytes per second].
    """

    triple: str = TRIPLE
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    fma_bits_per_cycle: int
    l1d_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    l3_bytes: int = 32 << 20
    line_bytes: int = 64
    cores: int = 1
    ghz: float = 3.0
    memory_gbps: float = 20.0

    def lanes(self, bits: int) -> int:
        """Elements of ``bits`` bits in one vector register."""
        return self.vector_bits // bits

    @property
    def has_masks(self) -> bool:
        """True with AVX-512's mask registers (cheap masked loads and stores of any element)."""
        return "avx512vl" in self.features

    @property
    def llvm_features(self) -> str:
        """LLVM's feature string. It overrides LLVM's preference for half-width vectors."""
        wanted = [f"+{f}" for f in self.features]
        return ",".join([*wanted, "-prefer-256-bit"] if self.vector_bits == 512 else wanted)

    @property
    def required_features(self) -> tuple[str, ...]:
        """What a machine must list among its ``/proc/cpuinfo`` flags to run code made for this."""
        return tuple(sorted(_CPUINFO_NAMES.get(f, f) for f in self.features))

    def peak_flops_per_cycle(self, bits: int = 32) -> int:
        """Floating-point operations that one core does per cycle at best (an FMA counts two)."""
        return 2 * self.fma_bits_per_cycle // bits

    def peak_gflops(self, bits: int = 32, threads: int = 1) -> float:
        """Roofline's flat part [10⁹ operations per second] on ``threads`` threads."""
        return self.peak_flops_per_cycle(bits) * self.ghz * min(threads, self.cores)

    def isa_fingerprint(self) -> str:
        """Digest of everything that object code depends on: instruction set and vector width."""
        return _digest([self.triple, self.cpu, list(self.features), self.vector_bits])

    def tuning_facts(self) -> dict[str, str | int | list[str]]:
        """What a measured time depends on, by name: instruction set, caches and core count.

        Guessed speeds (clock, bandwidth) are left out: they say nothing of their own.
        """
        guessed = ("ghz", "memory_gbps")
        return {name: value for name, value in self.to_json().items() if name not in guessed}

    def fingerprint(self) -> str:
        """Digest of ``tuning_facts``."""
        return _digest(sorted(self.tuning_facts().items()))

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one entry a field."""
        return {**asdict(self), "features": list(self.features)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CpuTarget:
        """Inverse of ``to_json``. Raises: ``UserError`` for a missing or unknown field."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise UserError(
                f"CPU target: missing fields {sorted(names - set(data))}, "
                f"unknown fields {sorted(set(data) - names)}; write it with to_json"
            )
        return cls(**{**data, "features": tuple(data["features"])})


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _avx2() -> CpuTarget:
    return CpuTarget(
        cpu="x86-64-v3",
        features=tuple(sorted(_LEVEL_V3)),
        vector_bits=256,
        vector_registers=16,
        fma_bits_per_cycle=512,
    )


def _avx512() -> CpuTarget:
    return CpuTarget(
        cpu="x86-64-v4",
        features=tuple(sorted(_LEVEL_V4)),
        vector_bits=512,
        vector_registers=32,
        fma_bits_per_cycle=1024,
    )


def parse_target(name: str) -> CpuTarget:
    """The target called ``name``.

    ``native`` (also ``auto``) is the machine that this runs on; ``x86-64-v3`` (also ``avx2``) and
    ``x86-64-v4`` (also ``avx512``) are levels: code for them runs on every CPU of the level. Caches
    and cores of a level are the host's, since tuning happens here.

    Raises: ``UserError`` for another name.
    """
    if name in ("native", "auto"):
        return host_target()
    levels = {"x86-64-v3": _avx2, "avx2": _avx2, "x86-64-v4": _avx512, "avx512": _avx512}
    if name not in levels:
        raise UserError(f"unknown target {name!r}: use one of {', '.join(TARGET_NAMES)}")
    return _with_machine(levels[name]())


@functools.cache
def host_target() -> CpuTarget:
    """The machine that this process runs on.

    Raises: ``UserError`` if the CPU lacks AVX2 and FMA, the least that code is made for.
    """
    flags = host_flags()
    known = {f for f in (*_LEVEL_V4, *_OPTIONAL) if _CPUINFO_NAMES.get(f, f) in flags}
    missing = sorted(set(_LEVEL_V3) - known)
    if missing:
        raise UserError(f"this CPU lacks {', '.join(missing)}; Nestor needs at least AVX2 and FMA")
    level = _avx512() if known >= set(_LEVEL_V4) else _avx2()
    if level.vector_bits == 256:
        known = {f for f in known if not f.startswith("avx512")}
    return _with_machine(replace(level, features=tuple(sorted(known))))


def host_flags() -> frozenset[str]:
    """Instruction sets of this machine under their names in ``/proc/cpuinfo``.

    Falls back on LLVM's own reading of CPUID where there is no such file.
    """
    flags = _cpuinfo().get("flags")
    if flags is not None:
        return frozenset(flags.split())
    import llvmlite.binding as llvm  # only where the operating system does not tell

    found = dict(llvm.get_host_cpu_features())
    return frozenset(_CPUINFO_NAMES.get(str(f), str(f)) for f, on in found.items() if on)


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of ``/proc/cpuinfo``; empty where it cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _with_machine(level: CpuTarget) -> CpuTarget:
    """``level`` with the caches, cores and clock of this machine."""
    caches = _caches()
    clock = _cpuinfo().get("cpu MHz", "")
    cores = _cores()
    return replace(
        level,
        fma_bits_per_cycle=_fma_bits(level),
        l1d_bytes=caches.get(1, level.l1d_bytes),
        l2_bytes=caches.get(2, level.l2_bytes),
        l3_bytes=caches.get(3, level.l3_bytes),
        cores=cores,
        ghz=round(float(clock) / 1000, 1) if re.fullmatch(r"\d+(\.\d+)?", clock) else level.ghz,
        memory_gbps=min(12.0 * cores, 200.0),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _fma_bits(level: CpuTarget) -> int:
    """AMD's Zen 4 runs 512-bit operations in two halves; Zen 5 and Intel's servers do not."""
    info = _cpuinfo()
    is_zen4_or_older = info.get("vendor_id") == "AuthenticAMD" and info.get("cpu family") in (
        "23",
        "25",
    )
    return 512 if is_zen4_or_older else level.fma_bits_per_cycle


def _caches() -> dict[int, int]:
    """Size [bytes] of each level's data or unified cache, from sysfs; empty where unknown."""
    found: dict[int, int] = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level = int((folder / "level").read_text())
            kind = (folder / "type").read_text().strip()
            size = (folder / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and match:
            found[level] = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
    return found
