"""What the parser says about bad text: line, column, the line itself, a caret."""

from __future__ import annotations

import pytest

from nestor.errors import IRError
from nestor.ir.parser import parse_affine, parse_expr, parse_nest, parse_program
from nestor.ir.types import DType

GOOD = """\
program p(N: 1..4) {
  input X: f32[N]
  output Y: f32[N]

  statement S over { 0 <= i < N }
    Y[i] = X[i] + 1.0:f32
}
"""


def complaint(text: str) -> str:
    with pytest.raises(IRError) as caught:
        parse_program(text)
    return str(caught.value)


def test_the_message_points_at_the_fault() -> None:
    assert complaint(GOOD.replace("X[i] +", "X[i +")) == (
        "line 6, column 18: expected the name of an index or symbol, found '1.0'\n"
        "      Y[i] = X[i + 1.0:f32\n"
        "                   ^"
    )


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("program p", "program", "line 1, column 8: expected the name of the program, found '('"),
        ("program p", "program if", "found 'if' (a reserved word: put it in backticks)"),
        ("f32[N]\n  output", "f31[N]\n  output", "line 2, column 12: expected a type (f64, f32,"),
        ("X[i] +", "Z[i] +", "line 6, column 12: no tensor or buffer is called 'Z' here"),
        ("X[i] +", "i +", "'i' has no known type here; write i:dtype for a scalar, index(i) for"),
        ("1.0:f32", "1.0", "line 7, column 1: expected ':', found '}'"),
        ("1.0:f32", "1.5:i64", "1.5 is no value of type i64"),
        ("X[i] +", "X[i*i] +", "(i) * (i) is not affine: one factor must be a constant"),
        ("X[i] +", "X[i//0] +", "the divisor must be positive, found 0"),
        ("X[i] +", "frob(X[i]) +", "no operation is called 'frob'"),
        ("X[i] +", "exp(X[i], X[i]) +", "exp takes 1 arguments, found 2"),
        (
            "X[i] +",
            "(X[i] + X[i] where {i >= 0} else X[i]) +",
            "only a plain load may have a where",
        ),
        ("0 <= i < N", "0 <= i <= N", "line 5, column 29: expected '<', found '<='"),
        ("X[i] +", "X[i] $", "line 6, column 17: unexpected character '$'"),
        ("  output", "  input X: f32[3]\n  output", "tensor 'X' is declared twice"),
        ("< N }", "< N } scatter first", "scatter is unique or last, found 'first'"),
        (
            "< N }",
            "< N } reduce sum over i",
            "monoid 'sum' is not defined; a builtin needs its type",
        ),
        ("< N }", "< N } reduce mean(f32) over i", "no monoid mean(f32) is built in"),
        ("< N }", "< N } reduce sum(f32) over i s1 <- X[i]", "expected the element s0, found 's1'"),
        ("f32\n}\n", "f32\n", "line 7, column 1: expected '}', found 'end of text'"),
        ("f32\n}\n", "f32\n}\n}\n", "line 8, column 1: expected the end of the text, found '}'"),
    ],
)
def test_messages(old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert message in complaint(GOOD.replace(old, new))


def test_nests() -> None:
    text = "nest n {\n  output Y: f32[2]\n  for i in 0 .. 2 {\n    %s\n  }\n}\n"
    for body, message in (
        ("Y[i] = 0.0:f32", "line 4, column 5: expected a loop, a compute, alloc, if or block"),
        ("update S(i=i) { Y[i] = 0.0:f32 }", "phase update needs a monoid (with …)"),
        ("point S(i=i) with sum(f32) { Y[i] = 0.0:f32 }", "phase point has no a monoid"),
        (
            "alloc b: f32[2] stack holds S {}",
            "expected 'arena' or 'shared' or 'local' or 'register'",
        ),
        ("loop j in 0 .. 2 {}", "expected a loop, a compute"),
    ):
        with pytest.raises(IRError) as caught:
            parse_nest(text % body)
        assert message.replace("no a monoid", "no monoid") in str(caught.value)


def test_single_expressions_must_end() -> None:
    with pytest.raises(IRError, match="expected the end of the text, found 'j'"):
        parse_affine("i + 1 j")
    with pytest.raises(IRError, match="expected the end of the text"):
        parse_expr("X[i] X[i]", {"X": DType.f32})
    with pytest.raises(IRError, match="line 1, column 4: expected the name of an index or symbol"):
        parse_affine("i +")
