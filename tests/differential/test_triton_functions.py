"""Every operation of the IR as Triton code, in Triton's interpreter, against its meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nestor.codegen.triton import emit_kernel
from nestor.codegen.triton.functions import (
    binary_function,
    cast_function,
    unary_function,
    uniform_function,
)
from nestor.ir.affine import affine
from nestor.ir.expr import FLOAT_UNARY, Call, Index, const
from nestor.ir.interpreter import run_program
from nestor.ir.program import Domain, IndexRange, Program, Statement, Tensor, Write
from nestor.ir.schedule import Bind, PredicatedTile, Reorder, Schedule, Vectorize
from nestor.ir.types import DType
from nestor.passes.nest import apply_schedule
from tests.helpers import every_operation
from tests.helpers.triton_runs import run_kernel


def in_tiles(statement: str) -> Schedule:
    """Programs of 32 elements of a statement over ``i``."""
    loop = f"{statement}.i"
    return (
        PredicatedTile(loop=loop, size=32),
        Reorder(statement=statement, loops=(f"{loop}.o", f"{loop}.i")),
        Bind(loop=f"{loop}.o"),
        Vectorize(loop=f"{loop}.i"),
    )


def run(program: Program, arrays: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """Every statement as a kernel of its own."""
    found: dict[str, np.ndarray] = {}
    for statement in program.statements:
        assert isinstance(statement, Statement)
        names = {"x", "y", statement.writes[0].tensor}
        one = Program(
            name=statement.writes[0].tensor,
            tensors=tuple(t for t in program.tensors if t.name in names),
            statements=(statement,),
        )
        nest = apply_schedule(one, in_tiles(statement.name))
        found |= run_kernel(emit_kernel(nest), nest, arrays, folder, {})
    return found


@pytest.mark.parametrize("dtype", every_operation.DTYPES, ids=str)
def test_every_operation(dtype: DType, tmp_path: Path) -> None:
    arrays = every_operation.operands(dtype)
    program = every_operation.program_of(dtype, affine(len(arrays["x"])))
    got = run(program, arrays, tmp_path)
    every_operation.compare(dtype, got, run_program(program, arrays, exact=True))


@pytest.mark.parametrize("dtype", [DType.f32, DType.f64], ids=str)
def test_random_numbers(dtype: DType, tmp_path: Path) -> None:
    seeds = (const(1 << 40, DType.i64), const(7, DType.i64))
    drawn = Call(function="random_uniform", args=(*seeds, Index(value=affine("i"))), dtype=dtype)
    statement = Statement(
        name="S",
        domain=Domain(ranges=(IndexRange(name="i", lower=affine(0), upper=affine(100)),)),
        order=(0, "i", 0),
        writes=(Write(tensor="out", indices=(affine("i"),)),),
        elements=(drawn,),
    )
    out = Tensor(name="out", shape=(affine(100),), dtype=dtype, role="output")
    program = Program(name="draw", tensors=(out,), statements=(statement,))
    np.testing.assert_array_equal(
        run(program, {}, tmp_path)["out"], run_program(program, {}, exact=True)["out"]
    )


@pytest.mark.parametrize("dtype", [DType.f32, DType.f64], ids=str)
def test_functions_are_as_accurate_as_on_a_cpu(dtype: DType, tmp_path: Path) -> None:
    """A sweep of moderate values, beside which hard ones alone would show little."""
    data = np.random.default_rng(0)
    kind = np.float32 if dtype is DType.f32 else np.float64
    arrays = {
        "x": (data.normal(size=2000) * np.exp(data.normal(size=2000))).astype(kind),
        "y": data.normal(size=2000).astype(kind),
    }
    program = every_operation.program_of(dtype, affine(2000))
    every_operation.compare(
        dtype, run(program, arrays, tmp_path), run_program(program, arrays, exact=True)
    )


def test_every_function_translates() -> None:
    """Whatever the code generator for CPUs writes straight has a Triton function."""
    floats, integers = (DType.f32, DType.f64), (DType.i64, DType.i32, DType.i16, DType.i8, DType.u8)
    for dtype in floats:
        for op in sorted(FLOAT_UNARY - {"sin", "cos"}):
            name, sources = unary_function(op, dtype)
            assert f"def {name}(" in sources[name]
        for op in ("floordiv", "truncdiv", "mod", "rem", "pow", "atan2"):
            assert binary_function(op, dtype)[1]
        for target in integers:
            assert cast_function(dtype, target)[1]
        assert uniform_function(dtype)[1]
    for dtype in integers:
        for op in ("floordiv", "truncdiv", "mod", "rem", "pow", "shl", "shr"):
            name, sources = binary_function(op, dtype)
            assert all(f"def {n}(" in text for n, text in sources.items())
