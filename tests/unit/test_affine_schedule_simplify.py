"""Tiles of tiles: divisions whose remainder stays within a common step of what they divide."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nestor.ir.affine import affine


def test_a_tile_within_a_tile() -> None:
    ranges = {"j": (0, 7)}
    value = affine("i") * 8 + affine("j")
    assert (value // 128).simplify(ranges) == affine("i") // 16
    assert (value % 128).simplify(ranges) == (affine("i") % 16) * 8 + affine("j")
    assert (value // 128).simplify({}) == value // 128
    wide = affine("i") * 8 + affine("j") + 3
    assert (wide // 128).simplify(ranges) == wide // 128


@given(
    st.integers(-20, 20),
    st.integers(-20, 20),
    st.integers(-30, 30),
    st.sampled_from([4, 6, 12, 16]),
)
def test_simplification_keeps_the_value(a: int, b: int, c: int, den: int) -> None:
    value = affine("x") * a + affine("y") * b + c
    ranges = {"x": (-3, 4), "y": (0, 3)}
    for x, y in itertools.product(range(-3, 5), range(4)):
        env = {"x": x, "y": y}
        assert (value // den).simplify(ranges).evaluate(env) == (a * x + b * y + c) // den
        assert (value % den).simplify(ranges).evaluate(env) == (a * x + b * y + c) % den
