"""Kernels and records for tests of the records database; no PyTorch needed."""

from __future__ import annotations

from typing import Any

from nestor.autotune.records import KernelKey, Record, TargetKey
from nestor.ir import parse_program
from nestor.ir.schedule import Reorder, Schedule, Tile, Vectorize
from nestor.target.cpu import CpuTarget

CPU = CpuTarget(
    cpu="x86-64-v3",
    features=("avx", "avx2", "fma"),
    vector_bits=256,
    vector_registers=16,
    fma_bits_per_cycle=512,
    cores=4,
)
TARGET = TargetKey.of(CPU)
GENERATOR = "llvm test"


def matmul(m: int, n: int, k: int, names: str = "ABC") -> KernelKey:
    """C = A B, with the tensors called as ``names`` says."""
    a, b, c = names
    return KernelKey.of(
        parse_program(
            f"""
program product() {{
  input {a}: f32[{m}, {k}]
  input {b}: f32[{k}, {n}]
  output {c}: f32[{m}, {n}]

  statement P over {{ 0 <= i < {m}, 0 <= j < {n}, 0 <= k < {k} }}
    reduce sum(f32) over k
    s0 <- {a}[i, k]*{b}[k, j]
    {c}[i, j] = s0
}}
"""
        )
    )


KERNEL = matmul(64, 96, 128)


def tiled(size: int) -> Schedule:
    """A schedule that is told from others by ``size``."""
    return (
        Tile(loop="S0.i1", size=size),
        Reorder(statement="S0", loops=("S0.i0", "S0.i1.o", "S0.i2", "S0.i1.i")),
        Vectorize(loop="S0.i1.i"),
    )


def sample(size: int = 8, ratio: float = 0.5, **changes: Any) -> Record:
    """A record of ``KERNEL`` under ``tiled(size)``, with three samples around ``ratio``."""
    samples = tuple((1e6 * ratio * f, 1e6) for f in (0.9, 1.0, 1.3))
    fields: dict[str, Any] = {
        "kernel": KERNEL,
        "target": TARGET,
        "threads": 2,
        "schedule": tiled(size),
        "point": (("tile", size), ("order", ("i", "j")), ("note", None)),
        "status": "ok",
        "samples_ns": samples,
        "strategy": "test",
        "trial": size,
        "generator": GENERATOR,
        "package": "0.1.0",
        "created_ns": 1_700_000_000_000_000_000 + size,
    }
    return Record(**{**fields, **changes})
