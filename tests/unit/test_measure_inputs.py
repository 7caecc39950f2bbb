"""Inputs of measured kernels: ranges that follow from the kernel, by type and by role."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.autotune.kernel_inputs import Draw, check_sizes, draw_inputs, find_index_uses
from nestor.errors import UserError
from nestor.ir.affine import affine
from nestor.ir.expr import Index, const
from nestor.ir.interpreter import run_program
from nestor.ir.program import box
from nestor.ir.types import DType
from tests.helpers.ir_programs import (
    embedding,
    half_relu,
    load,
    matmul,
    op,
    program,
    scatter_add,
    statement,
    tensor,
    write,
)

i64 = DType.i64


def test_indices_stay_in_what_they_select_from() -> None:
    made = draw_inputs(embedding(500, 10, 4), {}, Draw())
    assert made["T"].dtype == np.int64
    assert set(np.unique(made["T"])) == set(range(10))
    run_program(embedding(500, 10, 4), made)


def test_the_least_of_several_dimensions_counts() -> None:
    two = program(
        "two",
        [
            tensor("T", 200, dtype=i64),
            tensor("A", 9),
            tensor("B", 5),
            tensor("Y", 200, role="output"),
        ],
        statement(
            "S",
            box(i=200),
            write("Y", "i"),
            op(
                "add",
                load("A", load("T", "i", dtype=i64)),
                load("B", load("T", "i", dtype=i64)),
            ),
        ),
    )
    assert find_index_uses(two, {}).extents == {"T": 5}
    assert draw_inputs(two, {}, Draw())["T"].max() == 4


def test_indices_by_way_of_a_temporary_and_through_another_index() -> None:
    made = program(
        "indirect",
        [
            tensor("P", 50, dtype=i64),
            tensor("Q", 7, dtype=i64),
            tensor("M", 50, dtype=i64, role="temp"),
            tensor("E", 30),
            tensor("Y", 50, role="output"),
        ],
        statement(
            "S0",
            box(i=50),
            write("M", "i"),
            load("Q", load("P", "i", dtype=i64), dtype=i64),
            order=(0,),
        ),
        statement(
            "S1", box(i=50), write("Y", "i"), load("E", load("M", "i", dtype=i64)), order=(1,)
        ),
    )
    uses = find_index_uses(made, {})
    assert uses.extents["P"] == 7
    assert uses.extents["Q"] == 30
    inputs = draw_inputs(made, {}, Draw())
    assert inputs["P"].max() < 7
    assert inputs["Q"].max() < 30
    run_program(made, inputs)


def test_computed_indices_use_a_part_of_the_range_when_asked() -> None:
    shifted = program(
        "shifted",
        [tensor("T", 40, dtype=i64), tensor("E", 20), tensor("Y", 40, role="output")],
        statement(
            "S",
            box(i=40),
            write("Y", "i"),
            load("E", op("add", load("T", "i", dtype=i64), const(9, i64))),
        ),
    )
    assert draw_inputs(shifted, {}, Draw())["T"].max() > 10
    run_program(shifted, draw_inputs(shifted, {}, Draw(span=0.5)))


@pytest.mark.parametrize(("count", "rows"), [((40,), 64), ((6, 40), 64)])
def test_promised_distinct_targets_are_distinct(count: tuple[int, ...], rows: int) -> None:
    names = ("i", "j")[-len(count) :]
    outer = [affine("i")] if len(count) == 2 else []
    shape = (*count[:-1], rows)
    made = program(
        "unique",
        [
            tensor("T", *count, dtype=i64),
            tensor("X", *count),
            tensor("Y", *shape, role="inout"),
        ],
        statement(
            "S",
            box(**dict(zip(names, count))),
            write("Y", *outer, load("T", *names, dtype=i64)),
            load("X", *names),
            scatter="unique",
        ),
    )
    drawn = draw_inputs(made, {}, Draw())["T"]
    for row in drawn.reshape(-1, count[-1]):
        assert len(set(row.tolist())) == count[-1]


def test_every_type_is_drawn_as_the_interpreter_wants_it() -> None:
    names = ["f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool"]
    tensors = [tensor(f"t_{n}", 300, dtype=DType(n)) for n in names]
    made = program(
        "all",
        [*tensors, tensor("Y", 300, dtype=i64, role="output")],
        statement("S", box(i=300), write("Y", "i"), Index(value=affine("i"))),
    )
    inputs = draw_inputs(made, {}, Draw())
    assert set(np.unique(inputs["t_bool"])) == {False, True}
    assert inputs["t_u8"].min() == 0
    assert inputs["t_i8"].min() < 0 < inputs["t_i8"].max()
    bits = inputs["t_bf16"].view(np.uint32)
    assert not (bits & 0xFFFF).any()
    assert abs(inputs["t_f32"].std() - 1) < 0.2
    assert (draw_inputs(made, {}, Draw(positive=True))["t_f32"] >= 0.5).all()
    run_program(made, inputs)


def test_the_seed_and_the_name_decide() -> None:
    made = matmul(5, 7, 6)
    one, same = draw_inputs(made, {}, Draw(seed=1)), draw_inputs(made, {}, Draw(seed=1))
    other = draw_inputs(made, {}, Draw(seed=2))
    assert all(np.array_equal(one[n], same[n]) for n in one)
    assert not np.array_equal(one["A"], other["A"])
    square = draw_inputs(matmul(6, 6, 6), {}, Draw(seed=1))
    assert not np.array_equal(square["A"], square["B"])


def test_symbols_need_values_in_their_ranges() -> None:
    made = matmul("N", 7, 6)
    assert check_sizes(made, {"N": 3}) == {"N": 3}
    assert draw_inputs(made, {"N": 3}, Draw())["A"].shape == (3, 6)
    with pytest.raises(UserError, match=r"sizes\['N'\]"):
        check_sizes(made, {})
    with pytest.raises(UserError, match="N = 0"):
        check_sizes(made, {"N": 0})


def test_what_a_scatter_reads_and_writes_is_given() -> None:
    made = draw_inputs(scatter_add(50, 4, 3), {}, Draw())
    assert set(made) == {"T", "X", "Y"}
    assert made["T"].max() == 3
    assert set(draw_inputs(half_relu(), {}, Draw())) == {
        t.name for t in half_relu().by_role("input", "parameter")
    }
