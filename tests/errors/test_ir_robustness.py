"""Damaged text gives an ``IRError`` or valid IR; nothing else ever escapes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestor.errors import IRError
from nestor.ir.parser import parse_expr, parse_nest, parse_program
from nestor.ir.printer import print_nest, print_program
from nestor.ir.types import DType
from nestor.ir.verifier import verify_nest, verify_program
from tests.helpers import ir_nests
from tests.helpers import ir_programs as P

PROGRAMS = [print_program(P.ALL[name]()) for name in sorted(P.ALL)]
NESTS = [ir_nests.TILED_MATMUL, ir_nests.SPLIT_SUM, ir_nests.EVERYTHING]


@st.composite
def damaged(draw: st.DrawFn, texts: list[str]) -> str:
    """A text with a few words deleted, doubled, exchanged or replaced."""
    words = draw(st.sampled_from(texts)).split(" ")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(words) - 1))
        other = draw(st.integers(0, len(words) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                words[at] = ""
            case 1:
                words.insert(at, words[at])
            case 2:
                words[at], words[other] = words[other], words[at]
            case 3:
                words[at] = draw(
                    st.sampled_from(["0", "-1", "i", "1e999:f32", "N", "{", "]", "s9"])
                )
            case _:
                word = words[at]
                cut = draw(st.integers(0, len(word)))
                words[at] = word[:cut] + draw(st.sampled_from('0(:,[^`"é')) + word[cut:]
    return " ".join(words)


@given(damaged(PROGRAMS))
@settings(max_examples=400, deadline=None)
def test_programs(text: str) -> None:
    try:
        program = parse_program(text)
        assert parse_program(print_program(program)) == program
        verify_program(program)
    except IRError as error:
        assert str(error)


@given(damaged(NESTS))
@settings(max_examples=300, deadline=None)
def test_nests(text: str) -> None:
    try:
        nest = parse_nest(text)
        assert parse_nest(print_nest(nest)) == nest
        verify_nest(nest)
    except IRError as error:
        assert str(error)


def test_what_nodes_refuse_is_located_too() -> None:
    for text, message in (
        ("(X[i] where {} else 0.0:f32)", "line 1, column 28: a Load has both a predicate"),
        ("1" + "0" * 400 + ":f32", "line 1, column 406: int too large to convert to float"),
        ("(" * 5000 + "1.0:f32" + ")" * 5000, "nested too deeply"),
    ):
        with pytest.raises(IRError) as caught:
            parse_expr(text, {"X": DType.f32})
        assert message in str(caught.value)
