"""Neighbouring loads that share vectors: native code equals the nest interpreter, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir import parse_program
from nestor.ir.interpreter import run_program
from nestor.ir.schedule import Arrange, Tile, Unroll, Vectorize
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.passes.polyhedral.order_tree import program_tree
from nestor.target.cpu import parse_target
from tests.helpers.llvm_native import NativeNest

OUT_OF_PLACE = """
program stencil(N: 1..) {
  input a: f64[N + 40]
  input b: f64[N + 40]
  inout out: f64[N + 40]

  seq i {
    statement S over { 20 <= i < N + 20 }
      out[i] = a[i - 1] * 2.0:f64 + a[i] + a[i + 1] * b[i + 9] + a[i - 7] * b[i + 8] + b[i - 20]
  }
}
"""

IN_PLACE = """
program forward(N: 1..) {
  inout a: f64[N + 40]

  seq i {
    statement S over { 0 <= i < N }
      a[i] = a[i] + a[i + 1] * 3.0:f64 + a[i + 2]
  }
}
"""

ROWS = """
program rows(N: 1.., M: 1..) {
  input a: f32[N + 2, M + 2]
  inout out: f32[N + 2, M + 2]

  seq i {
    seq j {
      statement S over { 1 <= i < N + 1, 1 <= j < M + 1 }
        out[i, j] = a[i - 1, j] + a[i + 1, j] + a[i, j - 1] + a[i, j + 1] + a[i, j]
    }
  }
}
"""


def run(text: str, steps: tuple, sizes: dict[str, int], target: str) -> NativeNest:
    program = parse_program(text)
    nest = apply_schedule(program, (Arrange(tree=program_tree(program)), *steps))
    check_nest(program, nest)
    native = NativeNest(nest, parse_target(target), fp_contract=False)
    rng = np.random.default_rng(7)
    arrays = {
        t.name: rng.random([int(e.evaluate(sizes)) for e in t.shape]).astype(
            np.float32 if t.dtype.name == "f32" else np.float64
        )
        for t in program.tensors
    }
    expected = run_program(program, {n: a.copy() for n, a in arrays.items()}, sizes, exact=True)
    native.run(arrays, sizes)
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    return native


@pytest.mark.parametrize("target", ["avx2", "native"])
@pytest.mark.parametrize("width", [16, 32, 48, 64])
@pytest.mark.parametrize("size", [1, 31, 64, 200])
def test_out_of_place(width: int, size: int, target: str) -> None:
    run(OUT_OF_PLACE, (Tile(loop="i", size=width), Vectorize(loop="i.i")), {"N": size}, target)


@pytest.mark.parametrize("width", [16, 32])
def test_what_the_loop_writes_is_not_shared(width: int) -> None:
    """A vector loop may read ahead of what it writes; each vector reads before it writes."""
    steps = (Tile(loop="i", size=width), Vectorize(loop="i.i"))
    program = parse_program(IN_PLACE)
    nest = apply_schedule(program, (Arrange(tree=program_tree(program)), *steps))
    from nestor.errors import IllegalSchedule

    with pytest.raises(IllegalSchedule):  # lanes have no order: an anti dependence is refused
        check_nest(program, nest)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("rows", [1, 4])
def test_several_rows(width: int, rows: int) -> None:
    steps = (Tile(loop="j", size=width), Vectorize(loop="j.i"))
    if rows > 1:
        from nestor.ir.schedule import Interchange

        steps = (
            Tile(loop="i", size=rows),
            *steps[:1],
            Interchange(loops=("i.o", "j.o", "i.i", "j.i")),
            Unroll(loop="i.i"),
            *steps[1:],
        )
    native = run(ROWS, steps, {"N": 9, "M": 150}, "native")
    assert "shufflevector" in native.ir
