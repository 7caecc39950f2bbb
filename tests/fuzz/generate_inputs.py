"""Random input arrays: exact small numbers, ordinary ones, or special values."""

from __future__ import annotations

from random import Random

import numpy as np

from nestor.ir.expr import highest, lowest
from nestor.ir.narrow_floats import MEMORY, round_to
from nestor.ir.numeric import numpy_dtype
from nestor.ir.types import DType
from tests.fuzz.generate_programs import Case

READ_ROLES = ("input", "inout", "parameter", "constant", "state")

SPECIAL_FLOATS = [
    0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, -1e-40, 1.1754944e-38, 3.4028235e38,
    -3.4028235e38, 0.5, 88.8, -103.9, 2.0**31, -(2.0**31), 2.0**63, 255.0, 256.0, 65504.0, 65520.0,
    0.9999999, 1.0000001, 16777216.0, -7.5, 1e-8,
]  # fmt: skip


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    """Arrays of everything that the case's Program is given."""
    rng = Random(f"inputs {case.seed}")
    modes = ["exact", "exact", "normal", "normal"] + ([] if case.gentle else ["special"] * 2)
    default = rng.choice(modes)
    out: dict[str, np.ndarray] = {}
    for t in case.program.tensors:
        if t.role not in READ_ROLES or t.alias_of is not None:
            continue
        shape = tuple(int(d.evaluate(case.symbols)) for d in t.shape)
        if t.name in case.indexes:
            out[t.name] = _indices(shape, t.dtype, *case.indexes[t.name], rng)
            continue
        mode = default if rng.random() < 0.7 else rng.choice(modes)
        out[t.name] = random_array(shape, t.dtype, mode, rng)
    return out


def _indices(
    shape: tuple[int, ...], dtype: DType, bound: int, distinct: bool, rng: Random
) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    if distinct:
        values = rng.sample(range(bound), count)
    else:
        values = [rng.randrange(bound) for _ in range(count)]
    return np.array(values, numpy_dtype(dtype)).reshape(shape)


def random_array(shape: tuple[int, ...], dtype: DType, mode: str, rng: Random) -> np.ndarray:
    """Values of ``dtype``; bf16 as float32."""
    source = np.random.default_rng(rng.randrange(1 << 32))
    if dtype is DType.bool:
        return source.random(shape) < 0.5
    if dtype.is_float:
        return _floats(shape, dtype, mode, source)
    low, high = int(lowest(dtype)), int(highest(dtype))
    small = source.integers(max(low, -9), 10, shape)
    if mode == "special":
        edges = np.array([low, low + 1, -1 if low else 1, 0, 1, 2, high - 1, high], object)
        picked = edges[source.integers(0, len(edges), shape)]
        mixed = np.where(source.random(shape) < 0.4, picked, small.astype(object))
        return np.asarray(mixed, dtype=numpy_dtype(dtype)).reshape(shape)
    return small.astype(numpy_dtype(dtype))


def _floats(
    shape: tuple[int, ...], dtype: DType, mode: str, source: np.random.Generator
) -> np.ndarray:
    if mode == "exact":
        values = source.integers(-8, 9, shape) / 4
    else:
        values = source.standard_normal(shape)
    if mode == "special":
        picked = np.array(SPECIAL_FLOATS)[source.integers(0, len(SPECIAL_FLOATS), shape)]
        values = np.where(source.random(shape) < 0.3, picked, values)
    with np.errstate(all="ignore"):
        if dtype in MEMORY:
            return np.asarray(round_to(values, dtype)).reshape(shape)
        return np.asarray(values).astype(numpy_dtype(dtype)).reshape(shape)
