"""Functions that a kernel may call: of ``math``, NumPy and Python itself, by object."""

from __future__ import annotations

import builtins
import functools
import math
from typing import Any

import numpy as np

_UNARY_NAMES = {
    "sqrt": "sqrt", "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log2": "log2",
    "log1p": "log1p", "sin": "sin", "cos": "cos", "tan": "tan", "sinh": "sinh", "cosh": "cosh",
    "tanh": "tanh", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "isnan": "isnan",
    "isinf": "isinf",
}  # fmt: skip
_NUMPY_UNARY = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arcsinh": "asinh", "arccosh": "acosh",
    "arctanh": "atanh", "rint": "round", "abs": "abs", "absolute": "abs", "fabs": "abs",
    "sign": "sign", "reciprocal": "reciprocal", "negative": "neg",
}  # fmt: skip
_MATH_UNARY = {
    "asin": "asin", "acos": "acos", "atan": "atan", "asinh": "asinh", "acosh": "acosh",
    "atanh": "atanh", "fabs": "abs", "erf": "erf", "erfc": "erfc", "lgamma": "lgamma",
}  # fmt: skip
_NUMPY_BINARY = {
    "minimum": "min", "maximum": "max", "arctan2": "atan2", "power": "pow", "float_power": "pow",
    "fmod": "rem", "add": "add", "subtract": "sub", "multiply": "mul", "divide": "div",
    "mod": "mod", "remainder": "mod", "floor_divide": "floordiv",
}  # fmt: skip
_MATH_BINARY = {"atan2": "atan2", "pow": "pow", "fmod": "rem"}
_INTEGER_RESULT = frozenset(("floor", "ceil", "trunc"))
KEEPS_INTEGERS = frozenset(("abs", "sign", "neg"))
"""Unary operations that an integer needs no conversion for."""


@functools.cache
def _table() -> dict[int, tuple[str, str]]:
    """Object → (kind, operation); kinds are unary, integer (unary, then to i64), binary, …"""
    table: dict[int, tuple[str, str]] = {}

    def add(module: Any, names: dict[str, str], kind: str) -> None:
        for name, op in names.items():
            found = getattr(module, name, None)
            if found is not None:
                table[id(found)] = (kind, op)

    add(np, _UNARY_NAMES, "unary")
    add(np, _NUMPY_UNARY, "unary")
    add(math, {k: v for k, v in _UNARY_NAMES.items() if k not in _INTEGER_RESULT}, "unary")
    add(math, {k: k for k in _INTEGER_RESULT}, "integer")
    add(math, _MATH_UNARY, "unary")
    add(np, _NUMPY_BINARY, "binary")
    add(math, _MATH_BINARY, "binary")
    add(builtins, {"abs": "abs"}, "unary")
    add(builtins, {"round": "round"}, "integer")
    add(builtins, {"pow": "pow"}, "binary")
    add(builtins, {"min": "min", "max": "max"}, "fold")
    add(np, {"where": "where"}, "where")
    add(builtins, {"len": "len"}, "len")
    add(builtins, {"float": "f64", "int": "i64"}, "python")
    for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8):
        table[id(kind)] = ("cast", kind.__name__)
    table[id(np.uint8)] = ("cast", "uint8")
    add(np, {"zeros": "zeros", "empty": "empty"}, "array")
    return table


def known_function(target: Any) -> tuple[str, str] | None:
    """Kind and operation of a callable that kernels may use; None for any other."""
    return _table().get(id(target))
