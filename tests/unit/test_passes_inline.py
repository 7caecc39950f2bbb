"""Inlining, inverses of index maps."""

from __future__ import annotations

import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import const, loads
from nestor.ir.monoid import max_of, sum_of
from nestor.ir.program import Program, box
from nestor.ir.types import DType
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.index_maps import invert_map
from nestor.passes.inline import inline_producers
from tests.helpers.ir_programs import fn, load, op, reduce, statement, tensor, write
from tests.helpers.pass_checks import run_checked
from tests.helpers.two_statements import X, chain, two

f32 = DType.f32


def inlined(before: Program, **options: object) -> Program:
    """Inline and sweep; results compared."""
    return remove_dead_code(run_checked(inline_producers, before, **options), PassContext())


def refusals(before: Program) -> str:
    ctx = PassContext()
    inline_producers(before, ctx)
    return " ".join(e.reason for e in ctx.entries("inline_producers", kind="refused"))


class TestInline:
    def test_pointwise_into_pointwise(self) -> None:
        after = inlined(two(fn("exp", X), op("add", load("T", "i", "j"), load("Z", "i", "j"))))
        assert len(after.statements) == 1

    def test_transposed_view(self) -> None:
        before = two(load("X", "j", "i"), fn("neg", load("T", "j", "i")), middle=(6, 4))
        (only,) = inlined(before).statements
        assert list(loads(only.elements[0])) == [X]

    def test_merged_write_is_inverted(self) -> None:
        flat = statement(
            "A", box(i=4, j=6), write("T", affine("i") * 6 + "j"), fn("neg", X), order=(0,)
        )
        read = statement("B", box(e=24), write("Y", "e"), load("T", affine(23) - "e"), order=(1,))
        tensors = [tensor("X", 4, 6), tensor("T", 24, role="temp"), tensor("Y", 24, role="output")]
        after = inlined(chain(flat, read, tensors=tensors))
        assert len(after.statements) == 1

    def test_split_write_is_inverted(self) -> None:
        split = statement(
            "A",
            box(e=24),
            write("T", affine("e") // 6, affine("e") % 6),
            load("V", "e"),
            order=(0,),
        )
        read = statement(
            "B", box(i=4, j=6), write("Y", "i", "j"), fn("abs", load("T", "i", "j")), order=(1,)
        )
        tensors = [
            tensor("V", 24),
            tensor("T", 4, 6, role="temp"),
            tensor("Y", 4, 6, role="output"),
        ]
        (only,) = inlined(chain(split, read, tensors=tensors)).statements
        assert list(loads(only.elements[0])) == [load("V", affine("i") * 6 + "j")]

    def test_padding_of_relu_needs_no_select(self) -> None:
        inside = (affine("j") - 1, affine(6) - "j")
        padded = load("T", "i", affine("j") - 1, predicate=inside, other=const(0, f32))
        after = inlined(two(op("max", X, const(0, f32)), padded, out=(4, 8)))
        (only,) = after.statements
        assert isinstance(only.elements[0], type(op("max", X, X)))

    def test_padding_of_exp_keeps_other(self) -> None:
        inside = (affine("j") - 1, affine(6) - "j")
        padded = load("T", "i", affine("j") - 1, predicate=inside, other=const(0, f32))
        after = inlined(two(fn("exp", X), padded, out=(4, 8)))
        assert len(after.statements) == 1

    def test_padding_of_padding_with_another_value(self) -> None:
        first = load("X", "i", affine("j") - 1, predicate=(affine("j") - 1,), other=const(3, f32))
        inside = (affine("j") - 2, affine(7) - "j")
        second = load("T", "i", affine("j") - 2, predicate=inside, other=const(5, f32))
        assert len(inlined(two(first, second, middle=(4, 6), out=(4, 9))).statements) == 1

    def test_padding_of_work_on_padding_with_another_value(self) -> None:
        """Outside the outer border the result is 0, not what the inner border would give."""
        first = load("X", "i", affine("j") - 1, predicate=(affine("j") - 1,), other=const(3, f32))
        inside = (affine("j") - 2, affine(7) - "j")
        second = load("T", "i", affine("j") - 2, predicate=inside, other=const(0, f32))
        before = two(op("max", first, const(0, f32)), second, out=(4, 9))
        assert len(inlined(before).statements) == 1

    def test_overwritten_piece_is_not_read_as_it_was(self) -> None:
        first = statement("P0", box(i=8), write("T", "i"), load("U", "i"), order=(0,))
        again = statement("P1", box(i=4), write("T", affine("i") + 4), load("V", "i"), order=(1,))
        read = statement("B", box(i=4), write("Y", "i"), load("T", affine("i") + 2), order=(2,))
        tensors = [
            tensor("U", 8),
            tensor("V", 4),
            tensor("T", 8, role="temp"),
            tensor("Y", 4, role="output"),
        ]
        before = chain(first, again, read, tensors=tensors)
        assert run_checked(inline_producers, before) is before

    def test_gather_that_would_vanish_keeps_its_range_check(self) -> None:
        """Every element of ``T`` is the same, but a bad index must still be found."""
        index = load("I", "n", dtype=DType.i64)
        tensors = [
            tensor("V", 9),
            tensor("I", 5, dtype=DType.i64),
            tensor("T", 6, role="temp"),
            tensor("Y", 5, role="output"),
        ]
        before = chain(
            statement("A", box(i=6), write("T", "i"), load("V", 0), order=(0,)),
            statement("B", box(n=5), write("Y", "n"), load("T", index), order=(1,)),
            tensors=tensors,
        )
        assert run_checked(inline_producers, before) is before

    def test_gather_of_a_view(self) -> None:
        index = load("I", "n", dtype=DType.i64)
        view = statement("A", box(i=6, j=4), write("T", "i", "j"), load("X", "j", "i"), order=(0,))
        read = statement(
            "B", box(n=5, j=4), write("Y", "n", "j"), load("T", index, "j"), order=(1,)
        )
        tensors = [
            tensor("X", 4, 6),
            tensor("I", 5, dtype=DType.i64),
            tensor("T", 6, 4, role="temp"),
            tensor("Y", 5, 4, role="output"),
        ]
        assert len(inlined(chain(view, read, tensors=tensors)).statements) == 1

    def test_gather_of_a_slice_keeps_its_range_check(self) -> None:
        index = load("I", "n", dtype=DType.i64)
        view = statement("A", box(i=3), write("T", "i"), load("V", "i"), order=(0,))
        read = statement("B", box(n=5), write("Y", "n"), load("T", index), order=(1,))
        tensors = [
            tensor("V", 9),
            tensor("I", 5, dtype=DType.i64),
            tensor("T", 3, role="temp"),
            tensor("Y", 5, role="output"),
        ]
        before = chain(view, read, tensors=tensors)
        assert inline_producers(before, PassContext()) is before

    def test_slice_of_a_concatenation(self) -> None:
        pieces = [
            statement(f"P{k}", box(i=4, j=6), write("T", affine("i") + 4 * k, "j"), e, order=(k,))
            for k, e in enumerate([X, load("Z", "i", "j")])
        ]
        read = statement(
            "B", box(i=3, j=6), write("Y", "i", "j"), load("T", affine("i") + 5, "j"), order=(2,)
        )
        tensors = [
            tensor("X", 4, 6),
            tensor("Z", 4, 6),
            tensor("T", 8, 6, role="temp"),
            tensor("Y", 3, 6, role="output"),
        ]
        (only,) = inlined(chain(*pieces, read, tensors=tensors)).statements
        assert list(loads(only.elements[0])) == [load("Z", affine("i") + 1, "j")]

    def test_read_across_a_concatenation_stays(self) -> None:
        pieces = [
            statement(f"P{k}", box(i=4, j=6), write("T", affine("i") + 4 * k, "j"), e, order=(k,))
            for k, e in enumerate([X, load("Z", "i", "j")])
        ]
        read = statement(
            "B", box(i=3, j=6), write("Y", "i", "j"), load("T", affine("i") + 2, "j"), order=(2,)
        )
        tensors = [
            tensor("X", 4, 6),
            tensor("Z", 4, 6),
            tensor("T", 8, 6, role="temp"),
            tensor("Y", 3, 6, role="output"),
        ]
        assert len(inlined(chain(*pieces, read, tensors=tensors)).statements) == 3

    def test_source_overwritten_between_is_not_read_late(self) -> None:
        """A planted fault: ``X`` changes after ``T`` was made from it."""
        tensors = [
            tensor("X", 8, role="inout"),
            tensor("T", 8, role="temp"),
            tensor("Y", 8, role="output"),
        ]
        before = chain(
            statement("A", box(i=8), write("T", "i"), load("X", "i"), order=(0,)),
            statement("W", box(i=8), write("X", "i"), const(7, f32), order=(1,)),
            statement("B", box(i=8), write("Y", "i"), load("T", "i"), order=(2,)),
            tensors=tensors,
        )
        assert inline_producers(before, PassContext()) is before

    def test_exp_is_not_repeated(self) -> None:
        before = two(fn("exp", X), load("T", "j", "k"), out=(3, 4, 6))
        assert "times" in refusals(before)
        assert len(inlined(before).statements) == 2

    def test_nothing_is_computed_inside_a_contraction(self) -> None:
        contraction = statement(
            "B",
            box(i=4, n=3, k=6),
            write("Y", "i", "n"),
            op("mul", load("T", "i", "k"), load("W", "n", "k")),
            reduction=reduce(sum_of(f32), "k"),
            order=(1,),
        )
        before = chain(
            statement("A", box(i=4, j=6), write("T", "i", "j"), fn("abs", X), order=(0,)),
            contraction,
            tensors=[
                tensor("X", 4, 6),
                tensor("W", 3, 6, role="parameter"),
                tensor("T", 4, 6, role="temp"),
                tensor("Y", 4, 3, role="output"),
            ],
        )
        assert "contraction" in refusals(before)
        assert len(inlined(before).statements) == 2

    def test_view_into_a_contraction(self) -> None:
        contraction = statement(
            "B",
            box(i=6, n=3, k=4),
            write("Y", "i", "n"),
            op("mul", load("T", "i", "k"), load("W", "n", "k")),
            reduction=reduce(sum_of(f32), "k"),
            order=(1,),
        )
        before = chain(
            statement("A", box(i=6, j=4), write("T", "i", "j"), load("X", "j", "i"), order=(0,)),
            contraction,
            tensors=[
                tensor("X", 4, 6),
                tensor("W", 3, 4, role="parameter"),
                tensor("T", 6, 4, role="temp"),
                tensor("Y", 6, 3, role="output"),
            ],
        )
        (only,) = inlined(before).statements
        assert load("X", "k", "i") in set(loads(only.elements[0]))

    def test_weight_work_waits_for_hoisting(self) -> None:
        before = chain(
            statement("A", box(i=6), write("T", "i"), fn("exp", load("W", "i")), order=(0,)),
            statement(
                "B",
                box(i=4, j=6),
                write("Y", "i", "j"),
                op("mul", load("T", "j"), X),
                order=(1,),
            ),
            tensors=[
                tensor("X", 4, 6),
                tensor("W", 6, role="parameter"),
                tensor("T", 6, role="temp"),
                tensor("Y", 4, 6, role="output"),
            ],
        )
        assert "parameters alone" in refusals(before)

    def test_several_readers_of_cheap_work(self) -> None:
        before = chain(
            statement("A", box(i=4, j=6), write("T", "i", "j"), fn("neg", X), order=(0,)),
            statement(
                "M",
                box(i=4, j=6),
                write("m", "i"),
                load("T", "i", "j"),
                reduction=reduce(max_of(f32), "j"),
                order=(1,),
            ),
            statement(
                "B",
                box(i=4, j=6),
                write("Y", "i", "j"),
                op("sub", load("T", "i", "j"), load("m", "i")),
                order=(2,),
            ),
            tensors=[
                tensor("X", 4, 6),
                tensor("T", 4, 6, role="temp"),
                tensor("m", 4, role="temp"),
                tensor("Y", 4, 6, role="output"),
            ],
        )
        assert [s.name for s in inlined(before).statements] == ["M", "B"]

    def test_alias_is_left_alone(self) -> None:
        before = chain(
            statement("A", box(i=4, j=6), write("T", "i", "j"), X, order=(0,)),
            statement("B", box(e=24), write("Y", "e"), load("F", "e"), order=(1,)),
            tensors=[
                tensor("X", 4, 6),
                tensor("T", 4, 6, role="temp"),
                tensor("F", 24, role="temp", alias_of="T"),
                tensor("Y", 24, role="output"),
            ],
        )
        assert inline_producers(before, PassContext()) is before

    def test_producer_in_a_sequence_is_left_alone(self) -> None:
        before = chain(
            statement("A", box(t=3, i=4), write("T", "i"), load("X", "t", "i"), order=(0, "t", 0)),
            statement("B", box(t=3, i=4), write("Y", "t", "i"), load("T", "i"), order=(0, "t", 1)),
            tensors=[
                tensor("X", 3, 4),
                tensor("T", 4, role="temp"),
                tensor("Y", 3, 4, role="output"),
            ],
        )
        assert inline_producers(before, PassContext()) is before


@pytest.mark.parametrize(
    ("indices", "extents", "values", "wanted"),
    [
        (["i", "j"], {"i": 3, "j": 4}, ["a", "b"], {"i": "a", "j": "b"}),
        ([affine("i") + 2], {"i": 3}, ["a"], {"i": affine("a") - 2}),
        ([affine(5) - "i"], {"i": 3}, ["a"], {"i": affine(5) - "a"}),
        ([affine("i") * 2 + 1], {"i": 3}, ["a"], {"i": (affine("a") - 1) // 2}),
        (
            [affine("i") * 4 + "j"],
            {"i": 3, "j": 4},
            ["a"],
            {"i": affine("a") // 4, "j": affine("a") % 4},
        ),
        (
            [affine("e") // 6, (affine("e") // 2) % 3, affine("e") % 2],
            {"e": 12},
            ["a", "b", "c"],
            {"e": affine("a") * 6 + affine("b") * 2 + "c"},
        ),
        (["i"], {"i": 3, "u": 1}, ["a"], {"i": "a", "u": 0}),
    ],
)
def test_invert_map(indices, extents, values, wanted) -> None:  # type: ignore[no-untyped-def]
    solved = invert_map([affine(i) for i in indices], box(**extents), [affine(v) for v in values])
    assert solved == {k: affine(v) for k, v in wanted.items()}


@pytest.mark.parametrize(
    ("indices", "extents"),
    [
        (["i"], {"i": 3, "j": 2}),  # j is lost
        ([affine("i") + "j"], {"i": 3, "j": 2}),  # a window
        ([affine("i") * 3 + "j"], {"i": 3, "j": 4}),  # overlapping
        ([affine("e") // 2], {"e": 8}),
    ],
)
def test_maps_without_inverse(indices, extents) -> None:  # type: ignore[no-untyped-def]
    values = [affine(f"v{k}") for k in range(len(indices))]
    assert invert_map([affine(i) for i in indices], box(**extents), values) is None
