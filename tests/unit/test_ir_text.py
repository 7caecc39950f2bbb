"""IR text parses back to an equal object, for every construct."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestor.ir.affine import affine
from nestor.ir.expr import (
    BINARY_OPS,
    UNARY_OPS,
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Index,
    Load,
    Select,
    Unary,
    Var,
    const,
)
from nestor.ir.monoid import Monoid, any_of, sum_of
from nestor.ir.parser import parse_expr, parse_nest, parse_program
from nestor.ir.printer import print_expr, print_nest, print_program
from nestor.ir.program import Extern, Layout, Origin, Program, Symbol, TensorRef, box
from nestor.ir.types import DType
from tests.helpers import ir_nests
from tests.helpers import ir_programs as P

TENSORS = (P.tensor("X", 4, 4), P.tensor("T", 4, dtype=DType.i64), P.tensor("no name", 4))
TYPES = {t.name: t.dtype for t in TENSORS}


@pytest.mark.parametrize("name", sorted(P.ALL))
def test_programs_round_trip(name: str) -> None:
    program = P.ALL[name]()
    text = print_program(program)
    assert parse_program(text) == program
    assert print_program(parse_program(text)) == text


@pytest.mark.parametrize("name", ["TILED_MATMUL", "SPLIT_SUM", "EVERYTHING"])
def test_nests_round_trip(name: str) -> None:
    nest = parse_nest(getattr(ir_nests, name))
    text = print_nest(nest)
    assert parse_nest(text) == nest
    assert print_nest(parse_nest(text)) == text


def test_every_field_of_a_program_round_trips() -> None:
    """Layouts, aliases, externs, odd names, custom monoids, unusual orders, empty shapes."""
    f32 = DType.f32
    a0, b0 = Var(name="a0", dtype=f32), Var(name="b0", dtype=f32)
    first = Monoid(name="max", identity=(const(-0.0, f32),), combine=(a0,), commutative=False)
    second = replace(first, combine=(b0,))
    layout = Layout(physical=(affine("d0") // 48, affine("d1"), affine("d0") % 48),
                    shape=(affine(2), affine("N"), affine(48)))  # fmt: skip
    reduced = P.statement(
        "seq",
        box(i="N", k=4),
        P.write("a.b", "i"),
        P.load("W", "k", "i"),
        reduction=P.reduce(first, "k", state_indices=(None,)),
        order=(7, "i", 2),
    )
    program = Program(
        name="my program",
        symbols=(Symbol(name="N", lower=0), Symbol(name="if", lower=2, upper=9)),
        tensors=(
            replace(P.tensor("W", 96, "N", role="parameter"), layout=layout),
            P.tensor("a.b", "N", role="temp"),
            P.tensor("view`\\\n", "N", role="temp", alias_of="a.b"),
            P.tensor("scalar", role="output"),
        ),
        statements=(
            reduced,
            replace(reduced, name="S.1", reduction=replace(reduced.reduction, monoid=second,
                    state_indices=((),)), order=(7, "i", 0)),  # type: ignore[type-var]
            Extern(
                name="sort",
                operator="aten.sort.default",
                arguments=(TensorRef(name="a.b"), (1, -2.5, None, (True, "x\"y\n")), math.inf, ()),
                inputs=("a.b",),
                outputs=("scalar", "view`\\\n"),
                order=(3,),
                origin=Origin(op="sort", file="m.py", line=3),
            ),
            P.statement("any", box(i=2), P.write("scalar"), const(True, DType.bool),
                        reduction=P.reduce(any_of(), "i", into=True), order=(3, "i", 4, "k", 5)),
            P.statement("none", box(), (), order=(4,)),
        ),
    )  # fmt: skip
    text = print_program(program)
    assert "# sort at m.py:3" in text
    assert parse_program(text) == program
    assert print_program(program, origins=False).count("#") == 0


# ------------------------------------------------------------------------------- random expressions

affines = st.builds(
    lambda a, b, c, d: (affine("i") * a + affine("j") + c) // d % 7 + affine("N") * b - c,
    st.integers(-5, 5), st.integers(-5, 5), st.integers(-9, 9), st.integers(1, 9),
)  # fmt: skip
floats = st.one_of(st.floats(allow_nan=True), st.sampled_from([-0.0, math.inf, -math.inf]))
dtypes = st.sampled_from(list(DType))
constants = st.one_of(
    st.builds(
        lambda v, d: const(v, d), floats, st.sampled_from([DType.f64, DType.f32, DType.bf16])
    ),
    st.builds(lambda v, d: const(v, d), st.integers(-(2**63), 2**63 - 1), st.just(DType.i64)),
    st.builds(lambda v: const(v, DType.bool), st.booleans()),
)
leaves: st.SearchStrategy[Expr] = st.one_of(
    constants,
    st.builds(
        lambda a, d: Index(value=a, dtype=d), affines, st.sampled_from([DType.i64, DType.i8])
    ),
    st.builds(lambda n, d: Var(name=n, dtype=d), st.sampled_from(["s0", "f32", "a b"]), dtypes),
    st.builds(lambda a, b: P.load("X", a, b), affines, affines),
)


def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(lambda o, x: Unary(op=o, x=x), st.sampled_from(sorted(UNARY_OPS)), inner),
        st.builds(
            lambda o, a, b: Binary(op=o, a=a, b=b),
            st.sampled_from(sorted(BINARY_OPS)), inner, inner,
        ),
        st.builds(lambda c, a, b: Select(condition=c, a=a, b=b), inner, inner, inner),
        st.builds(lambda x, d: Cast(x=x, dtype=d), inner, dtypes),
        st.builds(
            lambda a, b, d: Call(function="some_function", args=(a, b), dtype=d),
            inner, inner, dtypes,
        ),
        st.builds(lambda x, a, d: P.load("X", x, a, dtype=d), inner, affines, dtypes),
        st.builds(
            lambda a, p, x: Load(tensor="no name", indices=(a,), dtype=DType.f32,
                                 predicate=(p, a), other=x),
            affines, affines, inner,
        ),
    )  # fmt: skip


@given(st.recursive(leaves, grow, max_leaves=12))
@settings(max_examples=400, deadline=None)
def test_expressions_round_trip(node: Expr) -> None:
    text = print_expr(node, TENSORS)
    assert parse_expr(text, TYPES) == node


@pytest.mark.parametrize(
    "text,want",
    [
        ("X[i, j] - X[j, i] - 1.0:f32", ("sub", "sub")),
        ("X[i, j] - (X[j, i] - 1.0:f32)", ("sub", "load")),
    ],
)
def test_infix_associates_to_the_left(text: str, want: tuple[str, str]) -> None:
    node = parse_expr(text, TYPES)
    assert isinstance(node, Binary)
    assert (node.op, node.a.op if isinstance(node.a, Binary) else "load") == want
    assert print_expr(node, TENSORS) == text


def test_constants_keep_their_bits() -> None:
    for text in (
        "-0.0:f32",
        "nan:f64",
        "-inf:f16",
        "1e-45:f32",
        "-9223372036854775808:i64",
        "true",
    ):
        node = parse_expr(text)
        assert isinstance(node, Const)
        assert print_expr(node) == text
    assert parse_expr("-0.0:f32") != parse_expr("0.0:f32")
    assert parse_expr("-(1.0:f32 + 2.0:f32)") == Unary(op="neg", x=parse_expr("1.0:f32 + 2.0:f32"))


def test_shared_monoids_are_defined_once() -> None:
    a0, b0 = Var(name="a0", dtype=DType.f32), Var(name="b0", dtype=DType.f32)
    left = Monoid(name="left", identity=(const(0, DType.f32),), combine=(a0,))
    right = Monoid(name="left", identity=(const(0, DType.f32),), combine=(b0,))
    statements = [
        P.statement(f"S{k}", box(i=2), P.write("Y"), const(1, DType.f32),
                    reduction=P.reduce(m, "i"), order=(k,))
        for k, m in enumerate((left, right, left, sum_of(DType.f32)))
    ]  # fmt: skip
    program = P.program("p", [P.tensor("Y", role="output")], *statements)
    text = print_program(program)
    assert text.count("monoid left") == 2 and "monoid left.2 named left" in text
    assert parse_program(text) == program
