"""Every operation of the IR on values that are hard: zeros, ends of ranges, infinities, NaN."""

from __future__ import annotations

import numpy as np

from nestor.ir.affine import Affine, affine
from nestor.ir.expr import COMPARE, FLOAT_UNARY, Binary, Cast, Expr, Load, Unary
from nestor.ir.numeric import numpy_dtype
from nestor.ir.program import Domain, IndexRange, Program, Statement, Symbol, Tensor, Write
from nestor.ir.types import DType

FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, 3.0, 1e-310, 1e30, -7.25, np.inf, -np.inf, np.nan]
INTEGERS = {
    DType.i64: [0, 1, -1, 2, -3, 7, 63, 64, 2**63 - 1, -(2**63)],
    DType.i32: [0, 1, -1, 2, -3, 7, 31, 32, 2**31 - 1, -(2**31)],
    DType.i16: [0, 1, -1, 2, -3, 7, 15, 16, 2**15 - 1, -(2**15)],
    DType.i8: [0, 1, -1, 2, -3, 7, 8, 127, -128],
    DType.u8: [0, 1, 2, 3, 7, 8, 128, 255],
    DType.bool: [False, True],
}
DTYPES = (DType.f64, DType.f32, *INTEGERS)
ROUNDED = FLOAT_UNARY - {"sqrt", "floor", "ceil", "trunc", "round", "reciprocal"} | {"pow", "atan2"}
"""Functions that a mathematical library need not round correctly."""


def operands(dtype: DType) -> dict[str, np.ndarray]:
    """All pairs of hard values of a type."""
    values = np.array(FLOATS if dtype.is_float else INTEGERS[dtype], numpy_dtype(dtype))
    x, y = (v.ravel() for v in np.meshgrid(values, values))
    return {"x": x, "y": y}


def operations(dtype: DType) -> list[tuple[str, Expr]]:
    """Every operation on ``x[i]`` and ``y[i]``, by name."""
    x = Load(tensor="x", indices=(affine("i"),), dtype=dtype)
    y = Load(tensor="y", indices=(affine("i"),), dtype=dtype)
    if dtype is DType.bool:
        unary, both = ["not"], ["and", "or", "xor", "min", "max", *COMPARE]
    elif dtype.is_float:
        unary = sorted(FLOAT_UNARY | {"neg", "abs", "sign", "isnan", "isinf"})
        both = ["add", "sub", "mul", "div", "floordiv", "truncdiv", "mod", "rem", "min", "max",
                "pow", "atan2", *COMPARE]  # fmt: skip
    else:
        unary = ["neg", "abs", "sign", "not"]
        both = ["add", "sub", "mul", "floordiv", "truncdiv", "mod", "rem", "min", "max", "pow",
                "and", "or", "xor", "shl", "shr", *COMPARE]  # fmt: skip
    out: list[tuple[str, Expr]] = [(op, Unary(op=op, x=x)) for op in unary]
    out += [(op, Binary(op=op, a=x, b=y)) for op in sorted(both)]
    targets = [*INTEGERS, DType.f32, DType.f64]
    out += [(f"to_{t}", Cast(x=x, dtype=t)) for t in targets if t is not dtype]
    return out


def program_of(dtype: DType, size: Affine) -> Program:
    """A program that writes every operation's result to a tensor ``out_NAME`` of its own.

    Args: size: how many operands there are, or a symbol.
    """
    found = operations(dtype)
    loop = Domain(ranges=(IndexRange(name="i", lower=affine(0), upper=size),))
    statements = tuple(
        Statement(
            name=f"S{k}",
            domain=loop,
            order=(k, "i", 0),
            writes=(Write(tensor=f"out_{name}", indices=(affine("i"),)),),
            elements=(value,),
        )
        for k, (name, value) in enumerate(found)
    )
    tensors = [Tensor(name=n, shape=(size,), dtype=dtype, role="input") for n in "xy"]
    tensors += [
        Tensor(name=f"out_{name}", shape=(size,), dtype=value.dtype, role="output")
        for name, value in found
    ]
    symbols = tuple(Symbol(name=n) for n in sorted(size.variables()))
    return Program(name="ops", symbols=symbols, tensors=tuple(tensors), statements=statements)


def compare(dtype: DType, got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Fail unless results are equal, of functions of ``ROUNDED`` nearly."""
    for name, _ in operations(dtype):
        have, want = got[f"out_{name}"], expected[f"out_{name}"]
        if name in ROUNDED:
            rtol, atol = (1e-5, 0) if dtype is DType.f32 else (1e-13, 1e-14)  # lgamma has zeros
            np.testing.assert_allclose(have, want, rtol=rtol, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(have, want, err_msg=name)
