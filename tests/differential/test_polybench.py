"""PolyBench three ways: the interpreter, the C program, the compiled kernel; both element types.

Without reassociation and contraction all three are equal bit by bit. With them the compiled kernel
is within ``TOLERANCE`` of the others in float64, relative to the largest value of an output; in
float32 it is about as near to the float64 result as the program in its own order is.

gramschmidt's matrix has linearly dependent columns (of 30 columns at MINI 15 are independent). The
first dependent column leaves only rounding errors, which the algorithm normalises to a unit vector
and then takes out of all later columns: from there on Q and R depend on the order of summation.
Where that order may differ, ``compare.compared`` holds the product Q R, which is the matrix
whatever the noise, and the columns of Q and rows of R before that column against each other.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.polybench import registry
from benchmarks.polybench.compare import relative_error
from benchmarks.polybench.native import EXACT, compile_c
from tests.helpers.polybench_plain import run_plain

NAMES = list(registry.CASES)
DTYPES = ("float64", "float32")
BOTH = [
    (n, d) for n, c in registry.CASES.items() for d in DTYPES if not c.integer or d == DTYPES[0]
]
"""Every kernel in both types; those of integers once."""

STRICT = [(n, d) for k, (n, d) in enumerate(BOTH) if d == DTYPES[0] or k % 6 == 1]
"""For code in the program's own order of sums: all in float64, some of them in float32 too."""

TOLERANCE = 1e-10

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")
INEXACT = ("deriche",)
"""Calls exp and pow, which the libraries of NumPy and C round differently."""


@cache
def interpreted(name: str, dtype: str) -> dict[str, Any]:
    """Every argument after the interpreter ran the kernel at MINI."""
    arguments = registry.CASES[name].make_inputs("MINI", dtype)
    registry.kernel(name, dtype).interpret(**arguments)
    return arguments


@cache
def compiled(name: str, dtype: str, fast: bool) -> Any:
    """The kernel as it is run: ``fast`` allows reassociation and fused multiply-adds."""
    return registry.kernel(name, dtype, reassociate=fast, contract=fast, threads=2)


def assert_identical(name: str, got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit by bit, temporaries included; up to rounding for ``INEXACT``."""
    for key, value in expected.items():
        if not isinstance(value, np.ndarray):
            continue
        if name in INEXACT:
            rtol = 1e-12 if value.dtype == np.float64 else 1e-4
            np.testing.assert_allclose(got[key], value, rtol=rtol, atol=rtol, err_msg=key)
        else:
            np.testing.assert_array_equal(got[key], value, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_interpreter_is_python(name: str) -> None:
    case = registry.CASES[name]
    arguments = case.make_inputs("MINI")
    run_plain(name, arguments, case.symbols("MINI"))
    assert_identical(name, interpreted(name, "float64"), arguments)


@needs_gcc
@pytest.mark.parametrize(("name", "dtype"), BOTH)
def test_c_program_is_the_interpreter(name: str, dtype: str, tmp_path: Path) -> None:
    case = registry.CASES[name]
    program = registry.kernel(name, dtype).program
    arguments = case.make_inputs("MINI", dtype)
    compile_c(program, case.symbols("MINI"), tmp_path, command="gcc", flags=EXACT)(arguments)
    assert_identical(name, arguments, interpreted(name, dtype))


@pytest.mark.parametrize(("name", "dtype"), STRICT)
def test_compiled_kernel_is_the_interpreter(name: str, dtype: str) -> None:
    arguments = registry.CASES[name].make_inputs("MINI", dtype)
    compiled(name, dtype, False)(**arguments)
    assert_identical(name, arguments, interpreted(name, dtype))


@pytest.mark.parametrize(("name", "dtype"), BOTH)
def test_reassociated_kernel_is_near_the_interpreter(name: str, dtype: str) -> None:
    arguments = registry.CASES[name].make_inputs("MINI", dtype)
    compiled(name, dtype, True)(**arguments)
    exact = interpreted(name, "float64")
    own = relative_error(name, interpreted(name, dtype), exact)
    allowed = TOLERANCE if dtype == "float64" else max(1e-6, 4 * own)
    assert relative_error(name, arguments, exact) <= allowed


@needs_gcc
@pytest.mark.parametrize("name", NAMES)
def test_other_sizes(name: str, tmp_path: Path) -> None:
    """SMALL, by the code that was compiled for MINI: sizes are symbols."""
    case = registry.CASES[name]
    expected, got = case.make_inputs("SMALL"), case.make_inputs("SMALL")
    program = registry.kernel(name).program
    compile_c(program, case.symbols("SMALL"), tmp_path, command="gcc", flags=EXACT)(expected)
    compiled(name, "float64", True)(**got)
    assert relative_error(name, got, expected) < TOLERANCE
    strict = case.make_inputs("SMALL")
    compiled(name, "float64", False)(**strict)
    assert_identical(name, strict, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[::3])
def test_small_is_the_interpreter(name: str) -> None:
    """What ``test_other_sizes`` shows by way of C, from the definition itself: a third of them,
    as interpreting all takes five minutes."""
    case = registry.CASES[name]
    expected, got, strict = (case.make_inputs("SMALL") for _ in range(3))
    registry.kernel(name).interpret(**expected)
    compiled(name, "float64", False)(**strict)
    assert_identical(name, strict, expected)
    compiled(name, "float64", True)(**got)
    assert relative_error(name, got, expected) < TOLERANCE
