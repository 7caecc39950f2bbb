"""What the verifier says, and that it names the statement and shows the text around it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nestor.errors import IRError
from nestor.ir.parser import parse_nest, parse_program
from nestor.ir.verifier import verify_nest, verify_program
from tests.helpers import ir_nests
from tests.helpers import ir_programs as P

Golden = Callable[[str, str], None]

BASE = """\
program p(N: 1..8) {
  input X: f32[N, 4]
  input T: i64[N]
  input H: f16[N]
  parameter W: f32[4, 5]
  temp V: f32[4*N] alias Z
  temp Z: f32[N, 4]
  output Y: f32[N, 5]

  statement S over { 0 <= i < N, 0 <= j < 5, 0 <= k < 4 }
    reduce sum(f32) over k
    s0 <- X[i, k] * W[k, j]
    Y[i, j] = s0
  statement R over { 0 <= i < N, 0 <= j < 4 }
    Z[i, j] = X[i, j] + 1.0:f32
}
"""


@pytest.mark.parametrize("name", sorted(P.ALL))
def test_good_programs_pass(name: str) -> None:
    verify_program(P.ALL[name]())


@pytest.mark.parametrize("name", ["TILED_MATMUL", "SPLIT_SUM"])
def test_good_nests_pass(name: str) -> None:
    verify_nest(parse_nest(getattr(ir_nests, name)))


def test_base_passes() -> None:
    verify_program(parse_program(BASE))
    verify_program(P.softmax("N"))
    verify_program(P.attention(causal=True))


FAULTS = [
    # types
    ("X[i, j] + 1.0:f32", "X[i, j] + 1:i64", "the operands of add are f32 and i64"),
    ("X[i, j] + 1.0:f32", "H[i]", "the value written to Z is f16, not f32: H[i]"),
    ("X[i, j] + 1.0:f32", "f32(H[i] + H[i])", "add on f16: a storage type; cast to f32"),
    ("X[i, j] + 1.0:f32", "f32(-H[i])", "neg on f16: a storage type"),
    ("X[i, j] + 1.0:f32", "f32(exp(T[i]))", "exp takes a float, not i64"),
    ("X[i, j] + 1.0:f32", "f32(T[i] / T[i])", "div takes floats, not i64"),
    ("X[i, j] + 1.0:f32", "f32(true + false)", "add takes numbers, not bool"),
    ("X[i, j] + 1.0:f32", "X[i, j] & X[i, j]", "and takes integers or bools, not f32"),
    ("X[i, j] + 1.0:f32", "f32(true << true)", "shl takes integers, not bool"),
    ("X[i, j] + 1.0:f32", "f32(not(X[i, j]))", "not takes an integer or a bool, not f32"),
    ("X[i, j] + 1.0:f32", "f32(-true)", "neg takes a number, not bool"),
    ("X[i, j] + 1.0:f32", "select(X[i, j], X[i, j], X[i, j])", "the condition of select is f32"),
    ("X[i, j] + 1.0:f32", "select(true, X[i, j], T[i])", "second value of select is i64, not f32"),
    ("X[i, j] + 1.0:f32", "X[i, j]:f64", "load of X as f64, but it is f32"),
    ("X[i, j] + 1.0:f32", "f32(300:u8)", "the constant 300 does not fit in u8"),
    ("X[i, j] + 1.0:f32", "f32(index(i):f32)", "index(i) has type f32, not an integer"),
    ("X[i, j] + 1.0:f32", "frob(X[i, j]):f32", "no function is called 'frob'; known: fma, random"),
    ("X[i, j] + 1.0:f32", "fma(X[i, j]):f32", "fma takes 3 arguments, not 1"),
    ("X[i, j] + 1.0:f32", "random_uniform(T[i], T[i], X[i, j]):f32", "argument 2 of random_"),
    ("X[i, j] + 1.0:f32", "f32(fma(T[i], T[i], T[i]):i64)", "fma gives f32 or f64, not i64"),
    ("X[i, j] + 1.0:f32", "s0:f32", "scalar s0 has no value here (those with one: none)"),
    ("= s0", "= f32(s0:f64)", "scalar s0 is f32, used as f64"),
    ("= s0", "= s1:f32", "scalar s1 has no value here (those with one: s0)"),
    # names and accesses
    ("X[i, j] + 1.0:f32", "Q[i]:f32", "no tensor is called 'Q'"),
    ("X[i, j] + 1.0:f32", "X[i]", "X has 2 dimensions, but 1 indices"),
    ("X[i, j] + 1.0:f32", "X[i, m]", "index of X m: m is no index or symbol here"),
    ("X[i, j] + 1.0:f32", "X[X[i, j], j]", "index X[i, j] of X is f32, not an integer"),
    ("X[i, j] + 1.0:f32", "X[i, j + 1]", "X: index 1, j + 1, reaches 4, but the size is 4"),
    ("X[i, j] + 1.0:f32", "X[i - 1, j]", "X: index 0, i - 1, reaches -1, below 0"),
    ("X[i, j] + 1.0:f32", "X[i + 1, j]", "X: index 0, i + 1, reaches N, but the size is N"),
    ("X[i, j] + 1.0:f32", "(X[i, j] where {m >= 0} else 0.0:f32)", "predicate of X m: m is no"),
    ("X[i, j] + 1.0:f32", "(X[i, j] where {j - 1 >= 0} else 0:i64)", "the other value of the load"),
    ("= s0", "= s0 + W[k, j]", "index of W k: k is reduced; it has no value here"),
    ("Z[i, j] = X", "X[i, j] = X", "input X must not be written"),
    ("Z[i, j] = X[i, j] + 1.0:f32", "W[j, i] = 1.0:f32", "parameter W must not be written"),
    # writes
    ("Z[i, j] = X", "Z[i, 0] = X", "instances [i=0, j=0] and [i=0, j=1] both write the same cell"),
    ("0 <= i < N, 0 <= j < 4 }\n    Z[i, j]", "0 <= i < 3, 0 <= j < 4 }\n    V[i + j]",
     "instances [i=0, j=1] and [i=1, j=0] both write the same cell of V; order them, or say"),
    ("0 <= i < N, 0 <= j < 4 }\n    Z[i, j]", "0 <= i < 1, 0 <= j < 4 }\n    Z[i, j//2]",
     "instances [i=0, j=0] and [i=0, j=1] both write"),
    ("Z[i, j] = X", "Z[T[i], j] = X", "the target of Z depends on data: say scatter unique"),
    ("Y[i, j] = s0", "Y[i, 0] = s0", "both write the same cell of Y"),
    ("Y[i, j] = s0", "Y[T[i], j] = s0", "the target of Y depends on data: only `into` may do that"),
    ("k < 4 }", "k < 4 } scatter last", "scatter is for statements without a reduction"),
    # domains and orders
    ("0 <= j < 4 }", "0 <= N < 4 }", "index N has the name of another symbol"),
    ("0 <= j < 4 }", "0 <= i < 4 }", "index i has the name of another index"),
    ("0 <= j < 4 }", "0 <= j < q }", "the range of j depends on q, which is no symbol and no"),
    ("0 <= i < N, 0 <= j < 4 }", "0 <= i < j, 0 <= j < 4 }", "the range of i depends on j"),
    ("0 <= j < 4 }", "0 <= j < 4 : q >= 0 }", "constraint q >= 0: q is no index or symbol"),
    ("  statement R", "  at 0: statement R", "position 0 is taken by S already"),
    ("statement R", "statement S", "two statements are called S"),
    # reductions
    ("over k\n", "over m\n", "reduced indices ('m',) must be distinct indices of the domain"),
    ("sum(f32)", "argmax(f32)", "monoid argmax has 2 components, not 1"),
    ("sum(f32)", "sum(f64)", "element s0 is f32, not f64: X[i, k] * W[k, j]"),
    ("= s0", "= s0\n    Y[0, 0] = s0", "both write the same cell of Y"),
    ("reduce sum(f32) over k\n", "scan sum(f32) over k\n", "both write the same cell of Y"),
    ("over k\n    s0 <- X[i, k] * W[k, j]\n    Y[i, j] = s0", "over k into\n    s0 <- X[i, k]\n"
     "    Y[i, j] = s0 + s0", "with into, final value 0 is s0, not s0 + s0"),
    ("0 <= j < 5, 0 <= k < 4 }", "0 <= k < 4, 0 <= j < k + 1 }",
     "the range of j depends on k, which is reduced"),
    ("s0 <- X[i, k]", "s0[j] <- X[i, k]", "its element or its instances depend on i"),
    ("s0 <- X[i, k]", "s0[k] <- X[i, k]", "state s0: ('k',) are not all output indices"),
    # tensors and symbols
    ("N: 1..8", "N: 5..3", "symbol N has the range 5..3"),
    ("X: f32[N, 4]", "X: f32[M, 4]", "extent M mentions M, which is no symbol"),
    ("f32[4, 5]", "f32[4, -5]", "tensor W: extent -5 is negative"),
    ("f32[4, 5]", "f32[4, 5] layout [d0] of [4, 5]", "its layout has 1 indices for 2 extents"),
    ("f32[4, 5]", "f32[4, 5] layout [d0] of [4]", "its layout puts two elements into one cell"),
    ("f32[4, 5]", "f32[4, 5] layout [d0, d2] of [4, 5]", "its layout mentions d2"),
    ("f32[4, 5]", "f32[4, 5] layout [d1, d0] of [4, 5]", "physical index d1 may leave [0, 4)"),
    ("f32[4*N] alias Z", "f32[3*N] alias Z", "V has 3 elements, but shares the bytes of Z"),
    ("f32[4*N] alias Z", "f64[4*N] alias Z", "tensor V is f64, but shares the bytes of Z, f32"),
    ("f32[4*N] alias Z", "f32[4*N] alias Q", "V is an alias of 'Q', which does not exist"),
    ("f32[4*N] alias Z", "f32[4*N] alias V", "tensor V is an alias of itself"),
    # reads and writes of the whole program
    ("output Y: f32[N, 5]", "output Y: f32[N, 5]\n  output U: f32[N]", "nothing writes output U"),
]  # fmt: skip


@pytest.mark.parametrize("old,new,message", FAULTS, ids=range(len(FAULTS)))
def test_one_fault(old: str, new: str, message: str) -> None:
    assert old in BASE and message
    program = parse_program(BASE.replace(old, new))
    with pytest.raises(IRError) as caught:
        verify_program(program)
    assert message in str(caught.value)


ALLOWED = [
    ("over k\n", "over k into\n"),
    ("0 <= j < 4 }", "0 <= j < 4 } scatter last"),
    ("0 <= k < 4 }", "0 <= k < j }"),
    ("0 <= k < 4 }", "0 <= k < 4 : j - k >= 0 }"),
    ("X[i, j] + 1.0:f32", "Y[i, j]"),
    ("= s0", "= s0 * X[i, 0]\n    Z[0, 0] = X[0, 0]"),
    ("X[i, j] + 1.0:f32", "(X[i, j + 1] where {2 - j >= 0} else 0.0:f32)"),
    ("X[i, j] + 1.0:f32", "select(T[i] > index(j), V[4*i + j], f32(H[i]))"),
    ("0 <= i < N, 0 <= j < 4 }", "0 <= i < N, i <= j < 4 : j - i >= 0, i + j - 3 >= 0 }"),
    ("output Y: f32[N, 5]", "output Y: f32[N, 5]\n  temp U: f32[N]"),
    ("f32[4, 5]", "f32[4, 5] layout [d1//2, d0, d1%2] of [3, 4, 2]"),
    ("Z[i, j] = X", "Z[i, 3 - j] = X"),
    ("Z[i, j] = X", "V[4*i + j] = X"),
]


@pytest.mark.parametrize("old,new", ALLOWED, ids=range(len(ALLOWED)))
def test_what_only_looks_wrong_passes(old: str, new: str) -> None:
    assert old in BASE
    verify_program(parse_program(BASE.replace(old, new)))


def test_orders() -> None:
    text = """
program p {
  input X: f32[4]
  inout Y: f32[4]
  seq t {
    statement S over { 0 <= t < 4, 0 <= i < 4 }
      Y[i] = X[t]
  }
}"""
    verify_program(parse_program(text))
    for old, new, message in (
        ("seq t {", "seq u {", "order (0, 'u', 0): u is no index of the domain"),
        ("seq t {", "seq t { seq t {", "t occurs twice"),
        ("4 }\n      Y[i] = X[t]", "4 }\n reduce sum(f32) over t\n s0 <- X[t]\n Y[i] = s0",
         "t is reduced and in the order: only `into` may do that"),
        ("4 }\n      Y[i] = X[t]", "4 }\n reduce sum(f32) over i into\n s0 <- X[i]\n Y[i] = s0",
         ""),
        ("  }\n}", "  }\n  at 0: statement R over { } Y[0] = 0.0:f32\n}",
         "position 0 is taken by S already; a position holds one statement or one seq region"),
    ):  # fmt: skip
        changed = text.replace(old, new)
        if new.startswith("seq t { seq"):
            changed += "\n}"
        assert changed != text
        if not message:
            verify_program(parse_program(changed))
            continue
        with pytest.raises(IRError) as caught:
            verify_program(parse_program(changed))
        assert message in str(caught.value)


def test_monoids() -> None:
    text = """
program p {
  output Y: f32[]
  monoid m { 0.0:f32 : %s }
  statement S over { 0 <= i < 4 }
    reduce m over i
    s0 <- 1.0:f32
    Y[] = s0
}"""
    verify_program(parse_program(text % "a0 + b0"))
    for combine, message in (
        ("f64(a0)", "component 0 of monoid m is f64, not f32"),
        ("a1:f32", "scalar a1 has no value here (those with one: a0, b0)"),
        ("f32(index(i))", "the value of i: i is no index or symbol here"),
        ("Y[]", "no tensor is called 'Y'"),
    ):
        with pytest.raises(IRError) as caught:
            verify_program(parse_program(text % combine))
        assert message in str(caught.value)


def test_states_of_a_tuple_monoid_may_not_see_wider_ones() -> None:
    from dataclasses import replace

    program = P.attention()
    online = program.statements[1]
    reduction = replace(online.reduction, state_indices=(("q",), ("q", "d"), ("q",)))  # type: ignore[union-attr, type-var]
    bad = replace(program, statements=(program.statements[0], replace(online, reduction=reduction)))  # type: ignore[arg-type]
    with pytest.raises(IRError, match=r"state s2 has the indices \['q'\], but its element"):
        verify_program(bad)
    reduction = replace(online.reduction, state_indices=(("q", "d"), ("q",), ("q", "d")))  # type: ignore[union-attr, type-var]
    bad = replace(program, statements=(program.statements[0], replace(online, reduction=reduction)))  # type: ignore[arg-type]
    with pytest.raises(IRError, match="state s1 combines s0, which has indices that s1 lacks"):
        verify_program(bad)


def test_externs() -> None:
    text = """
program p {
  input X: f32[4]
  output Y: f32[4]
  extern E = "aten.sort"(%X, 1) reads [X] writes [Y]
}"""
    verify_program(parse_program(text))
    for old, new, message in (
        ("[Y]", "[X]", "input X must not be written"),
        ("%X", "%Q", "no tensor is called 'Q'"),
        ("[X]", "[Q]", "no tensor is called 'Q'"),
    ):
        with pytest.raises(IRError) as caught:
            verify_program(parse_program(text.replace(old, new)))
        assert message in str(caught.value)


def test_the_whole_message(golden: Golden) -> None:
    with pytest.raises(IRError) as program_error:
        verify_program(parse_program(BASE.replace("X[i, j] + 1.0:f32", "X[i, j] + T[i]")))
    with pytest.raises(IRError) as nest_error:
        verify_nest(parse_nest(ir_nests.TILED_MATMUL.replace("* B[k, j]", "* B[k]")))
    golden("ir_verifier.txt", f"{program_error.value}\n\n{nest_error.value}\n")


NEST_FAULTS = [
    ("unroll ii in 0 .. 4 {\n        vector j in 0 .. 8 {\n          init",
     "unroll ii in 1 .. 4 {\n        vector j in 0 .. 8 {\n          init",
     "loop ii is unroll: it must run from 0 to a constant"),
    ("vector j in 0 .. 8 {\n          init", "vector j in 0 .. M {\n          init",
     "loop j is vector: it must run from 0 to a constant"),
    ("for k in 0 .. 6", "for M in 0 .. 6", "index M is a symbol or a loop around already"),
    ("for k in 0 .. 6 {\n        unroll", "vector k in 0 .. 6 {\n        for",
     "a vector loop holds only unroll and vector loops, not a serial one"),
    ("min(4, M - 4*io)", "min(4, q)", "bound of ii q: q is no symbol and no loop around"),
    ("acc: f32[4, 8]", "acc: f32[M, 8]", "register buffer acc: extent M is not constant"),
    ("acc: f32[4, 8] register", "A: f32[2, 2] local holds Q, acc: f32[4, 8] register",
     "buffer A has the name of a tensor or buffer around"),
    ("acc: f32[4, 8]", "acc: f64[4, 8]", "the value stored to acc is f32, not f64"),
    ("sum(f32)", "sum(f64)", "monoid sum combines [f64], the stores are [f32]"),
    ("C[4*io + ii, j] = ", "A[4*io + ii, j] = ", "input A must not be written"),
    ("M - 4*io - ii - 1 >= 0", "M - q >= 0", "condition M - q: q is no symbol"),
    ("C0(i=4*io + ii, j=j, k=k)", "C0(i=i, j=j, k=k)", "instance i = i: i is no symbol"),
    ("C0(i=4*io + ii, j=j, k=k)", "C0(i=k, i=j, k=k)", "an index occurs twice in the instance"),
    ("acc[ii, j] = 0.0:f32", "acc[ii] = 0.0:f32", "acc has 2 dimensions, but 1 indices"),
    ("acc[ii, j] = 0.0:f32", "acc[ii + 4, j] = 0.0:f32",
     "acc: index 0, ii + 4, is always outside [0, 4)"),
    ("acc[ii, j] = 0.0:f32", "acc[ii, j] = s0:f32", "scalar s0 has no value here"),
    ("final C0(i=4*io + ii, j=j)", "copy C0(d0=4*io + ii, d1=j)",
     "a copy stores one element of a buffer"),
]  # fmt: skip


@pytest.mark.parametrize("old,new,message", NEST_FAULTS, ids=range(len(NEST_FAULTS)))
def test_one_fault_of_a_nest(old: str, new: str, message: str) -> None:
    text = ir_nests.TILED_MATMUL
    assert old in text
    with pytest.raises(IRError) as caught:
        verify_nest(parse_nest(text.replace(old, new)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "around", ["for i in 0 .. 0", "for i in 3 .. 9", "if i0 - 1 >= 0", "for i in 5 .. min(9, 2*i0)"]
)
def test_an_access_that_may_never_run_is_not_refused(around: str) -> None:
    text = """
nest n {
  output Y: f32[1]
  for i0 in 0 .. 1 {
    %s {
      point S() { Y[%s] = 0.0:f32 }
    }
  }
}"""
    verify_nest(parse_nest(text % (around, "i0 + 5" if around != "for i in 3 .. 9" else "i0")))
    if around == "for i in 3 .. 9":
        with pytest.raises(IRError, match="Y: index 0, i0 \\+ 5, is always outside"):
            verify_nest(parse_nest(text % (around, "i0 + 5")))
