"""Names and types as Triton has them."""

from __future__ import annotations

import hashlib
import keyword
import math
import re
from collections.abc import Iterable

import numpy as np

from nestor.ir.monoid import Monoid
from nestor.ir.narrow_floats import BYTES, round_to, to_bits
from nestor.ir.types import DType

TYPES = {
    DType.f64: "tl.float64",
    DType.f32: "tl.float32",
    DType.f16: "tl.float16",
    DType.bf16: "tl.bfloat16",
    DType.f8e4m3: "tl.uint8",
    DType.f8e5m2: "tl.uint8",
    DType.i64: "tl.int64",
    DType.i32: "tl.int32",
    DType.i16: "tl.int16",
    DType.i8: "tl.int8",
    DType.u8: "tl.uint8",
    DType.bool: "tl.int1",
}
"""Types of values in registers; of floats of 8 bits these are their bits."""

FAILED = "failed"
"""The argument that tells of an index outside its tensor: a pointer to an i32."""

_TAKEN = {"tl", "triton", "lib", "program", "range", "float", "int", "kernel", FAILED}


class Names:
    """Identifiers for the names of the IR, each its own."""

    def __init__(self) -> None:
        self._used = set(_TAKEN) | set(keyword.kwlist)

    def fresh(self, name: str) -> str:
        """An identifier like ``name`` that nothing else has."""
        base = re.sub(r"\W", "_", name)
        if not base or base[0].isdigit():
            base = f"v{base}"
        found, count = base, 1
        while found in self._used:
            count += 1
            found = f"{base}_{count}"
        self._used.add(found)
        return found

    def all(self, names: Iterable[str]) -> dict[str, str]:
        """An identifier for each of several names."""
        return {name: self.fresh(name) for name in names}


def literal(value: float | int | bool, dtype: DType) -> str:
    """A constant as it stands in an expression of other blocks."""
    if dtype is DType.bool:
        return "True" if value else "False"
    if dtype in BYTES:
        return str(to_bits(round_to(np.float32(value), dtype), dtype).item())
    if not dtype.is_float:
        return str(int(value))
    if math.isnan(value):
        return 'float("nan")'
    if math.isinf(value):
        return 'float("inf")' if value > 0 else 'float("-inf")'
    return repr(float(value))


def combine_name(monoid: Monoid) -> str:
    """The name of a monoid's function."""
    text = "/".join(map(str, (monoid.name, monoid.dtypes, monoid.combine)))
    kind = "_".join(str(d) for d in dict.fromkeys(monoid.dtypes))
    return f"{monoid.name}_{kind}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"
