"""Schedule steps from text: the inverse of their ``repr``, and what is refused."""

from __future__ import annotations

import pytest

from nestor.errors import UserError
from nestor.ir.schedule import (
    BlockReduction,
    Distribute,
    Fuse,
    Interchange,
    Pack,
    Parallel,
    Promote,
    Reverse,
    Shift,
    Skew,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.step_text import parse_step

STEPS: list[Step] = [
    Tile(loop="S.i", size=8),
    Interchange(loops=("i", "j.o")),
    Skew(loop="i", by="t", factor=-2),
    Shift(loop="i", statement="S1", amount=3),
    Reverse(loop="i"),
    Distribute(loop="i", statement="S1"),
    Fuse(first="i", second="i.2"),
    Parallel(loop="i"),
    Vectorize(loop="i.i"),
    Unroll(loop="i.i"),
    Promote(tensor="A", loop="i", scope="local"),
    SplitReduction(loop="k", lanes=8),
    BlockReduction(loop="k"),
    Pack(tensor="W", order=(1, 0), dims=(0,), blocks=(16,)),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda s: type(s).__name__)
def test_a_step_is_what_its_repr_says(step: Step) -> None:
    assert parse_step(repr(step)) == step
    assert parse_step(f"  {step!r} ") == step


def test_lists_are_tuples_and_defaults_may_be_left_out() -> None:
    assert parse_step("Interchange(loops=['j', 'i'])") == Interchange(loops=("j", "i"))
    assert parse_step("Promote(tensor='A', loop='i')").scope == "register"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Tile", "'Tile' is not a step; write it as a call, like Tile(loop='i', size=8)"),
        ("Tile(", "is not a step; write it as a call"),
        ("Tile(loop=i, size=8)", "is not a step; write it as a call"),
        ("__import__('os').abort()", "is not a step; write it as a call"),
        ("Tile('i', 8)", "name every argument"),
        ("Tiled(loop='i', size=8)", "no step is called 'Tiled'; did you mean Tile?"),
        ("Xyzzy(loop='i')", "there are Interchange, Skew"),
        ("Arrange(tree='i')", "no step is called 'Arrange'"),
        ("Tile(loop='i', width=8)", "Tile has no 'width'; write it as Tile(loop='…', size=8)"),
        ("Tile(loop='i')", "Tile needs 'size'; write it as Tile(loop='…', size=8)"),
        ("Tile(loop='i', size='8')", "size is '8', and must be a whole number"),
        ("Tile(loop='i', size=True)", "size is True, and must be a whole number"),
        ("Tile(loop=3, size=8)", "loop is 3, and must be a text"),
        ("Interchange(loops='ij')", "loops is 'ij', and must be a tuple of texts"),
        ("Promote(tensor='A', loop='i', scope='disk')", "must be 'register' or 'local'"),
    ],
)
def test_what_is_no_step_is_told(text: str, message: str) -> None:
    with pytest.raises(UserError) as found:
        parse_step(text)
    assert message in str(found.value)
