"""What is not part of the kernel language is refused at decoration: line, caret, what to write."""
# ruff: noqa: F821, UP037

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import nestor
from nestor.errors import InputError, Unsupported, UserError
from nestor.ir.types import DType
from nestor.kernel_binding import scalar_array
from nestor.kernel_native import Conditions, NativeOptions, Variants

_COUNT = itertools.count()


def load(folder: Path, body: str, head: str = 'A: nestor.f64["N"]') -> ModuleType:
    """A module with the kernel ``k`` of this body, written to a file."""
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    text = f"import nestor\nimport numpy as np\n\n@nestor.kernel\ndef k({head}):\n{lines}\n"
    path = folder / f"made_{next(_COUNT)}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFUSED = [
    ("while A[0] > 0.0:\n    A[0] = 0.0", "while loop", "while A[0]", "range"),
    ("for i in range(N):\n    break", "break", "break", "condition"),
    ("for i in range(N):\n    continue", "continue", "continue", "`if`"),
    ("for i in A:\n    pass", "range", "A", "for i in range(n)"),
    ("return A", "return", "return A", "array parameters"),
    ("for i in range(N * N):\n    A[i] = 0.0", "not affine", "N * N", "constants"),
    ("for i in range(0, N, N):\n    A[i] = 0.0", "step", "N", "number"),
    ("for i in range(N):\n    A[i:] = 0.0", "slices", "i:", "loop"),
    ("A[0, 1] = 0.0", "dimension", "A[0, 1]", "one index a dimension"),
    ("x = A + 1", "dimension(s) left", "A", "index every dimension"),
    ("A[0] = missing", "not defined", "missing", "parameters"),
    ("for i in range(N):\n    pass\nA[0] = i", "outside its loop", "i", "n - 1"),
    ("for i in range(N):\n    s = A[i]\nA[0] = s", "before it has a value", "A[0] = s", "assign"),
    ("A[0] = s\ns = A[1]", "no value", "s", "assign to s"),
    ("A[0] = print(1)", "cannot be called", "print(1)", "math or numpy"),
    ("A[A[0]] = 1.0", "an index is an integer", "A[0]", "//"),
    ("N = 3\nA[0] = N", "cannot be assigned", "N", "another name"),
    ("for i in range(N):\n    i = 3", "also assigned", "i", "index of its own"),
    ("for i in range(N):\n    for i in range(N):\n        A[i] = 0.0", "outer index", "i", "own"),
    ("A[0] = [x for x in A][0]", "list comprehension", "[x for x in A]", "loop"),
    ("A[0] = 'text'", "no number", "'text'", "int, float or bool"),
    ("b = nestor.zeros((N * N,), nestor.f64)\nA[0] = b[0]", "not affine", "N * N", "constants"),
    ("for i in range(N):\n    b = nestor.zeros(i, nestor.f64)", "loop index", "i", "as large"),
    ("A[0] = A @ A", "dimension(s) left", "A", "loops"),
    ("import math", "import", "import math", "top of the file"),
    ("A[0] = (A[0] > 0.0) + 1.0 << 2", "integers", "<<", "convert"),
]


@pytest.mark.parametrize("case", REFUSED, ids=[r[1] + str(k) for k, r in enumerate(REFUSED)])
def test_refused_with_place_and_way_out(case: tuple[str, str, str, str], tmp_path: Path) -> None:
    body, problem, under, instead = case
    with pytest.raises((Unsupported, UserError)) as caught:
        load(tmp_path, body)
    first, code, carets, fix = str(caught.value).split("\n")[:4]
    assert problem in first and "made_" in first and ".py:" in first and "kernel 'k'" in first
    start, end = carets.index("^"), carets.rindex("^") + 1
    assert under in code and under in code[start:] and code[start:end].strip()
    assert code[start:].startswith(under) or under in code[start:end]
    assert fix.startswith("  fix: ") and instead in fix


def test_text_of_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        load(tmp_path, "for i in range(N):\n    while A[i] > 0:\n        A[i] -= 1.0")
    place = str(caught.value).split(":")[0]
    assert str(caught.value) == (
        f"{place}:7: kernel 'k': a while loop is not part of the kernel language\n"
        "    while A[i] > 0:\n"
        "    ^^^^^^^^^^^^^^^\n"
        "  fix: use `for … in range(…)` with bounds known when the loop starts"
    )


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("A", "has no type"),
        ("A: nestor.f64['N*N']", "not an affine size"),
        ("A: nestor.f64[1.5]", "a size is a number or text"),
        ("A: list", "no type of a kernel's parameter"),
        ("A: nestor.f64['N + M']", "does not tell"),
        ("*A: nestor.f64", "variable number of arguments"),
        ("A: unknown", "unknown"),
    ],
)
def test_refused_signatures(head: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises((UserError, Unsupported, NameError), match=problem.replace("'", ".")):
        load(tmp_path, "pass", head)


def test_unknown_option() -> None:
    with pytest.raises(UserError, match="no option 'fast'"):
        nestor.kernel(fast=True)  # type: ignore[call-overload]


def test_source_that_cannot_be_read() -> None:
    names: dict[str, Any] = {"nestor": nestor}
    exec("def k(A: nestor.f64['N']):\n    pass", names)
    with pytest.raises(UserError, match="source cannot be read"):
        nestor.kernel(names["k"])


@nestor.kernel
def axpy(a: nestor.f64, x: nestor.f64["N"], y: nestor.f64["N"]):
    for i in range(N):
        y[i] += a * x[i]


def _x(n: int = 4) -> np.ndarray:
    return np.arange(float(n))


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ((1.0, _x()), "missing a required argument: 'y'"),
        ((1.0, _x(), [1.0, 2.0]), "an array of f64.N. expected"),
        ((1.0, _x(), _x().astype(np.float32)), "'y': dtype float32, not f64"),
        ((1.0, _x(), _x()[:, None]), r"2 dimension\(s\)"),
        ((1.0, _x(), _x(5)), "dimension 0 has size 5, not N = 4 .N = 4 by dimension 0 of 'x'"),
        (("a", _x(), _x()), "a number of f64 expected"),
        ((1.0, _x(), np.broadcast_to(_x(1), (4,))), "read-only"),
    ],
)
def test_refused_arguments(args: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        axpy(*args)
    with pytest.raises(InputError, match=problem):
        axpy.interpret(*args)


def test_overlap_is_refused_with_both_names() -> None:
    data = _x(8)
    with pytest.raises(InputError, match="'x' and 'y' share memory, and the kernel writes to 'y'"):
        axpy(1.0, data[:4], data[3:7])
    with pytest.raises(InputError, match="share memory"):
        axpy(1.0, data[::2], data[2:6])
    axpy(1.0, data[::2], data[1::2])  # interleaved, with no element in common
    np.testing.assert_array_equal(data, [0, 1, 2, 5, 4, 9, 6, 13])
    axpy(1.0, data[:4], data[4:])


def test_an_array_that_overlaps_itself() -> None:
    one_element = np.lib.stride_tricks.as_strided(np.zeros(6), (4,), (0,))
    with pytest.raises(InputError, match="several of its elements share memory"):
        axpy(1.0, _x(), one_element)


@nestor.kernel
def copy_first(n: int, A: nestor.f64["N"], B: nestor.f64["M"]):
    for i in range(n):
        A[i] = B[2 * i]


def test_sizes_decide_about_bounds() -> None:
    a, b = np.zeros(4), _x(8)
    copy_first(4, a, b)
    np.testing.assert_array_equal(a, [0, 2, 4, 6])
    copy_first(0, np.zeros(0), np.zeros(0))
    with pytest.raises(
        InputError, match=r"'A' at index i of dimension 0, whose size is N = 4"
    ) as e:
        copy_first(5, a, _x(20))
    assert "test_kernel_errors.py:" in str(e.value) and "A[i] = B[2 * i]" in str(e.value)
    with pytest.raises(InputError, match=r"'B' at index 2\*i"):
        copy_first(4, a, _x(6))
    with pytest.raises(InputError, match="not between 0"):
        copy_first(-1, a, b)
    with pytest.raises(InputError, match="whole number"):
        copy_first(1.0, a, b)


@nestor.kernel
def always_outside(A: nestor.f64["N"]):
    for i in range(1, N):
        A[i] = A[i - 1] + A[i + 1]


def test_an_access_that_is_always_outside_has_a_witness() -> None:
    with pytest.raises(UserError, match=r"index 2 of 'A' is always outside") as caught:
        always_outside(_x())
    assert "N=2, i=1" in str(caught.value) and "A[i + 1]" in str(caught.value)


@pytest.mark.parametrize("scalar", ["longdouble(2)", "uint16(3)", "complex64(1)"])
def test_global_numbers_of_types_that_kernels_lack(scalar: str, tmp_path: Path) -> None:
    path = tmp_path / "global_number.py"
    path.write_text(
        f"import nestor\nimport numpy as np\nW = np.{scalar}\n\n@nestor.kernel\n"
        'def k(A: nestor.f64["N"]):\n    A[0] = W\n',
        encoding="utf-8",
    )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    with pytest.raises(Unsupported, match="'W' is no number"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


THREE = np.uint8(3)


@nestor.kernel
def add_three(A: nestor.u8["N"]):
    for i in range(N):
        A[i] += THREE


def test_a_global_byte() -> None:
    a = np.array([1, 254], np.uint8)
    add_three(a)
    np.testing.assert_array_equal(a, [4, 1])


@pytest.mark.parametrize("dtype", [DType.bf16, DType.f32, DType.f64, DType.i64])
def test_a_number_that_no_type_holds(dtype: DType) -> None:
    with pytest.raises(InputError, match="does not fit"):
        scalar_array(dtype, 10**400, InputError)


@nestor.kernel
def outside_for_all_sizes(A: nestor.f64["N"]):
    A[N - 3] = 1.0
    A[2 - N] = 1.0


def test_accesses_that_no_size_fits() -> None:
    """Each access is possible for some sizes, both together for none."""
    with pytest.raises(UserError, match="whatever the sizes are") as caught:
        outside_for_all_sizes.compile()
    assert "A[N - 3]" in str(caught.value) and "A[2 - N]" in str(caught.value)
    with pytest.raises(UserError, match="whatever the sizes are"):
        outside_for_all_sizes(_x(3))


@nestor.kernel
def shifted(A: nestor.f64["N"], m: int, k: int):
    for i in range(m):
        A[i + k] = 1.0


def test_compiling_before_a_call_is_for_sizes_that_exist() -> None:
    """Sizes that are all at least 1 are not those with ``m = 0``, whichever comes first."""
    variants = Variants(
        shifted.program, NativeOptions(reassociate=False, contract=True, threads=None)
    )
    conditions = Conditions(shifted.program)
    assert len(conditions.found.pieces) > 1
    for pieces in (conditions.found.pieces, conditions.found.pieces[::-1]):
        conditions.found = replace(conditions.found, pieces=pieces)
        variants._conditions = conditions
        symbols = variants.default().program.symbols
        assert all(s.upper is None or 1 <= s.lower <= s.upper for s in symbols)
        variants._native.clear()


@nestor.kernel
def select(x: nestor.f64["N"], idx: nestor.i64["M"], y: nestor.f64["M"]):
    for i in range(M):
        y[i] = x[idx[i]]


def test_an_index_that_is_data_is_checked_when_it_runs() -> None:
    y = np.zeros(3)
    select(_x(), np.array([3, 0, 1]), y)
    np.testing.assert_array_equal(y, [3, 0, 1])
    with pytest.raises(nestor.NestorError, match=r"y\[i\] = x\[idx\[i\]\]"):
        select(_x(), np.array([3, 4, 1]), y)
