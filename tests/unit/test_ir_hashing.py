"""Canonical hashes: blind to names, sensitive to everything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import Expr, const, map_expr
from nestor.ir.hashing import canonical_hash, canonicalize, canonicalize_nest, nest_hash
from nestor.ir.interpreter import run_program
from nestor.ir.parser import parse_nest, parse_program
from nestor.ir.printer import print_nest, print_program
from nestor.ir.program import Layout, Origin, Program, Statement, Symbol
from nestor.ir.types import DType
from nestor.ir.verifier import verify_program
from tests.helpers import ir_nests
from tests.helpers import ir_programs as P


def renamed(text: str, names: dict[str, str]) -> str:
    """``text`` with whole words replaced."""
    pattern = r"\b(" + "|".join(map(re.escape, names)) + r")\b"
    return re.sub(pattern, lambda m: names[m[1]], text)


@pytest.mark.parametrize("name", sorted(P.ALL))
def test_canonical_names_keep_the_meaning(name: str) -> None:
    program = P.ALL[name]()
    canonical, names = canonicalize(program)
    verify_program(canonical)
    assert canonicalize(canonical)[0] == canonical
    assert canonical_hash(canonical) == canonical_hash(program)
    assert set(names) >= {t.name for t in program.tensors}


def test_names_and_origins_do_not_count() -> None:
    program = P.softmax("N", 9)
    names = {"X": "y", "m": "z", "l": "a", "Y": "b", "N": "batch", "M": "T1", "L": "T2",
             "i": "row", "j": "a_col", "softmax": "other"}  # fmt: skip
    other = parse_program(renamed(print_program(program), names))
    assert other != program
    assert canonical_hash(other) == canonical_hash(program)
    first = program.statements[0]
    tagged = replace(
        program, statements=(replace(first, origin=Origin(op="max")), *program.statements[1:])
    )
    assert canonical_hash(tagged) == canonical_hash(program)
    moved = replace(
        program,
        statements=tuple(replace(s, order=(3 * s.order[0] + 2,)) for s in program.statements),
    )
    assert canonical_hash(moved) == canonical_hash(program)


def test_index_names_that_sort_differently_make_no_difference() -> None:
    def build(a: str, b: str) -> Program:
        return P.program(
            "p",
            [P.tensor("X", 9), P.tensor("Y", 3, 3, role="output")],
            P.statement(
                "S",
                P.Domain(ranges=(*P.box(**{a: 3}).ranges, *P.box(**{b: 3}).ranges)),
                P.write("Y", a, b),
                P.load("X", affine(a) * 3 + b),
            ),
        )

    assert canonical_hash(build("i", "j")) == canonical_hash(build("z", "a"))
    assert canonical_hash(build("i", "j")) == canonical_hash(build("i1", "i0"))


def _edit_first(program: Program, **changes: object) -> Program:
    first = program.statements[0]
    return replace(program, statements=(replace(first, **changes), *program.statements[1:]))  # type: ignore[arg-type]


def _edit_tensor(program: Program, k: int, **changes: object) -> Program:
    tensors = list(program.tensors)
    tensors[k] = replace(tensors[k], **changes)  # type: ignore[arg-type]
    return replace(program, tensors=tuple(tensors))


def _edit_element(program: Program, f: Callable[[Expr], Expr]) -> Program:
    first = program.statements[0]
    assert isinstance(first, Statement)
    return _edit_first(program, elements=tuple(map_expr(e, f) for e in first.elements))


CHANGES: dict[str, Callable[[Program], Program]] = {
    "shape": lambda p: P.conv2d(size=8),
    "stride": lambda p: P.conv2d(stride=1),
    "dtype": lambda p: _edit_tensor(p, 0, dtype=DType.f64),
    "role": lambda p: _edit_tensor(p, 1, role="constant"),
    "layout": lambda p: _edit_tensor(
        p, 1, layout=Layout(physical=tuple(affine(f"d{k}") for k in (1, 0, 2, 3)),
                            shape=tuple(map(affine, (3, 4, 3, 3))))
    ),
    "alias": lambda p: _edit_tensor(p, 3, alias_of="X"),
    "order": lambda p: _edit_first(p, order=(0, "n", 0)),
    "scatter": lambda p: _edit_first(p, scatter="unique"),
    "monoid": lambda p: _edit_first(
        p, reduction=replace(p.statements[0].reduction, monoid=P.max_of(DType.f32))  # type: ignore[union-attr]
    ),
    "into": lambda p: _edit_first(p, reduction=replace(p.statements[0].reduction, into=True)),  # type: ignore[union-attr]
    "negative zero": lambda p: _edit_element(
        p, lambda n: const(-0.0, DType.f32) if n == const(0, DType.f32) else n
    ),
    "operation": lambda p: _edit_element(
        p, lambda n: replace(n, op="add") if isinstance(n, P.Binary) else n
    ),
    "symbol": lambda p: replace(p, symbols=(Symbol(name="N"),)),
}  # fmt: skip


def test_structural_differences_count() -> None:
    base = P.conv2d()
    hashes = {"base": canonical_hash(base)}
    for name, change in CHANGES.items():
        hashes[name] = canonical_hash(change(base))
    assert len(set(hashes.values())) == len(hashes)


def test_a_shared_graph_is_hashed_in_linear_time() -> None:
    x: Expr = P.load("X", "i")
    for _ in range(200):
        x = P.op("add", x, x)
    program = P.program(
        "deep",
        [P.tensor("X", 4), P.tensor("Y", 4, role="output")],
        P.statement("S", P.box(i=4), P.write("Y", "i"), x),
    )
    assert len(canonical_hash(program)) == 64
    verify_program(program)


def test_run_after_renaming() -> None:
    import numpy as np

    program = P.matmul()
    canonical, names = canonicalize(program)
    a = np.arange(30, dtype=np.float32).reshape(5, 6)
    b = np.arange(42, dtype=np.float32).reshape(6, 7)
    want = run_program(program, {"A": a, "B": b})["C"]
    got = run_program(canonical, {names["A"]: a, names["B"]: b})[names["C"]]
    np.testing.assert_array_equal(got, want)


def test_nests_hash_up_to_names() -> None:
    text = ir_nests.TILED_MATMUL
    base = nest_hash(parse_nest(text))
    names = {"io": "a", "ii": "z", "j": "b", "k": "y", "acc": "r", "A": "P", "B": "Q", "C": "R",
             "M": "batch", "C0": "statement7", "matmul": "mm", "i": "q"}  # fmt: skip
    other = renamed(
        text.replace("`C0#0`", "`statement7#0`"), {k: v for k, v in names.items() if k != "C0"}
    )
    other = other.replace("C0(", "statement7(")
    assert nest_hash(parse_nest(other)) == base
    canonical = canonicalize_nest(parse_nest(text))
    assert canonicalize_nest(canonical) == canonical
    assert parse_nest(print_nest(canonical)) == canonical
    for old, new in (
        ("parallel", "for"),
        ("register", "local"),
        ("f32[4, 8]", "f32[4, 9]"),
        ("0.0:f32", "-0.0:f32"),
        ("sum(f32)", "max(f32)"),
        ("min(4, M - 4*io)", "min(3, M - 4*io)"),
        ("1..64", "1..65"),
    ):
        assert nest_hash(parse_nest(text.replace(old, new))) != base, old
