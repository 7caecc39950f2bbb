"""Inlining, redirected writes, delinearisation, dead code, common subexpressions."""

from __future__ import annotations

import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import Expr, Load, const, loads
from nestor.ir.monoid import max_of, sum_of
from nestor.ir.program import Program, Statement, Symbol, Tensor, box
from nestor.ir.types import DType
from nestor.passes.common_subexpressions import merge_common_subexpressions
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.delinearize import delinearize_indices, division_count
from nestor.passes.index_maps import invert_map
from nestor.passes.inline import inline_producers
from nestor.passes.redirect import redirect_writes
from tests.helpers.ir_programs import fn, load, op, program, reduce, statement, tensor, write
from tests.helpers.pass_checks import assert_same_results, run_checked

f32 = DType.f32


def inlined(before: Program, **options: object) -> Program:
    """Inline and sweep; results compared."""
    return remove_dead_code(run_checked(inline_producers, before, **options), PassContext())


def refusals(before: Program) -> str:
    ctx = PassContext()
    inline_producers(before, ctx)
    return " ".join(e.reason for e in ctx.entries("inline_producers", kind="refused"))


def chain(*statements: Statement, tensors: list[Tensor]) -> Program:
    return program("p", tensors, *statements)


def two(
    first: Expr, second: Expr, middle: tuple[int, ...] = (4, 6), out: tuple[int, ...] = (4, 6)
) -> Program:
    """``T[i0, …] = first; Y[i0, …] = second``."""
    names = ["i", "j", "k"]
    a, b = names[: len(middle)], names[: len(out)]
    return program(
        "p",
        [
            tensor("X", 4, 6),
            tensor("Z", 4, 6),
            tensor("T", *middle, role="temp"),
            tensor("Y", *out, role="output"),
        ],
        statement("A", box(**dict(zip(a, middle))), write("T", *a), first, order=(0,)),
        statement("B", box(**dict(zip(b, out))), write("Y", *b), second, order=(1,)),
    )


X = load("X", "i", "j")


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


class TestRedirect:
    def product(self, target: str, order: int = 0) -> Statement:
        return statement(
            "C",
            box(h=2, s=3, d=4, k=5),
            write(target, "h", "s", "d"),
            op("mul", load("A", "h", "s", "k"), load("B", "h", "k", "d")),
            reduction=reduce(sum_of(f32), "k"),
            order=(order,),
        )

    def build(self, *rest: Statement, out: tuple[int, ...], extra: list[Tensor] | None = None):  # type: ignore[no-untyped-def]
        tensors = [
            tensor("A", 2, 3, 5),
            tensor("B", 2, 5, 4),
            tensor("T", 2, 3, 4, role="temp"),
            tensor("Y", *out, role="output"),
            *(extra or []),
        ]
        return program("p", tensors, self.product("T"), *rest)

    def copy(self, domain: object, load_: Load, *target: object, order: int = 1) -> Statement:
        return statement("copy", domain, write("Y", *target), load_, order=(order,))  # type: ignore[arg-type]

    def test_merging_copy(self) -> None:
        e = affine("e")
        copy = self.copy(box(s=3, e=8), load("T", e // 4, "s", e % 4), "s", "e")
        (only,) = run_checked(redirect_writes, self.build(copy, out=(3, 8))).statements
        assert only.writes == (write("Y", "s", affine("h") * 4 + "d"),)

    def test_slice_is_refused(self) -> None:
        copy = self.copy(box(h=2, s=2, d=4), load("T", "h", affine("s") + 1, "d"), "h", "s", "d")
        before = self.build(copy, out=(2, 2, 4))
        assert run_checked(redirect_writes, before) is before

    def test_broadcast_is_refused(self) -> None:
        copy = self.copy(box(n=2, h=2, s=3, d=4), load("T", "h", "s", "d"), "n", "h", "s", "d")
        before = self.build(copy, out=(2, 2, 3, 4))
        assert run_checked(redirect_writes, before) is before

    def test_splitting_is_refused(self) -> None:
        """The product's own loops would need ``//``."""
        copy = self.copy(
            box(h=2, s=3, a=2, b=2), load("T", "h", "s", affine("a") * 2 + "b"), "a", "h", "s", "b"
        )
        before = self.build(copy, out=(2, 2, 3, 2))
        assert run_checked(redirect_writes, before) is before

    def test_second_reader_is_refused(self) -> None:
        copy = self.copy(box(s=3, h=2, d=4), load("T", "h", "s", "d"), "s", "h", "d")
        other = statement(
            "other",
            box(h=2, s=3, d=4),
            write("Z", "h", "s", "d"),
            fn("exp", load("T", "h", "s", "d")),
            order=(2,),
        )
        before = self.build(copy, other, out=(3, 2, 4), extra=[tensor("Z", 2, 3, 4, role="output")])
        assert run_checked(redirect_writes, before) is before

    def test_symbolic_batch(self) -> None:
        e = affine("e")
        before = program(
            "p",
            [
                tensor("A", "N", 2, 5),
                tensor("B", 2, 5, 4),
                tensor("T", "N", 2, 4, role="temp"),
                tensor("Y", "N", 8, role="output"),
            ],
            statement(
                "C",
                box(n="N", h=2, d=4, k=5),
                write("T", "n", "h", "d"),
                op("mul", load("A", "n", "h", "k"), load("B", "h", "k", "d")),
                reduction=reduce(sum_of(f32), "k"),
                order=(0,),
            ),
            self.copy(box(n="N", e=8), load("T", "n", e // 4, e % 4), "n", "e"),
            symbols=(Symbol(name="N"),),
        )
        after = run_checked(redirect_writes, before, symbols={"N": 3})
        assert len(after.statements) == 1


class TestDelinearize:
    def build(self, extent: int, element: Expr) -> Program:
        return program(
            "p",
            [tensor("X", 4, 6), tensor("Y", extent, role="output")],
            statement("S", box(e=extent), write("Y", "e"), element),
        )

    def test_split(self) -> None:
        e = affine("e")
        after = run_checked(delinearize_indices, self.build(24, load("X", e // 6, e % 6)))
        (only,) = after.statements
        assert division_count(only) == 0 and len(only.domain.names) == 2

    def test_nested_splits(self) -> None:
        e = affine("e")
        node = op("add", load("X", e // 6, e % 6), load("X", (e // 3) % 4, e % 3))
        (only,) = run_checked(delinearize_indices, self.build(24, node)).statements
        assert division_count(only) < 6

    def test_extent_that_does_not_divide(self) -> None:
        e = affine("e")
        before = self.build(23, load("X", e // 6, e % 6))
        assert run_checked(delinearize_indices, before) is before

    def test_reduced_index(self) -> None:
        e = affine("e")
        before = program(
            "p",
            [tensor("X", 4, 6), tensor("V", 24), tensor("Y", role="output")],
            statement(
                "S",
                box(e=24),
                write("Y"),
                op("mul", load("X", e // 6, e % 6), load("V", "e")),
                reduction=reduce(sum_of(f32), "e"),
            ),
        )
        (only,) = run_checked(delinearize_indices, before, tolerance=1e-6).statements
        assert only.reduction is not None and only.reduction.indices == ("e_o", "e_i")

    def test_sequence_index_is_left_alone(self) -> None:
        t = affine("t")
        before = program(
            "p",
            [tensor("X", 4, 6), tensor("Y", role="inout")],
            statement(
                "S",
                box(t=24),
                write("Y"),
                op("sub", load("X", t // 6, t % 6), load("Y")),
                order=(0, "t", 0),
            ),
        )
        assert run_checked(delinearize_indices, before) is before


class TestDeadCode:
    def test_chain_of_unused(self) -> None:
        before = program(
            "p",
            [
                tensor("X", 4),
                tensor("A", 4, role="temp"),
                tensor("B", 4, role="temp"),
                tensor("U", 4, role="parameter"),
                tensor("Y", 4, role="output"),
            ],
            statement("A0", box(i=4), write("A", "i"), load("U", "i"), order=(0,)),
            statement("B0", box(i=4), write("B", "i"), load("A", "i"), order=(1,)),
            statement("Y0", box(i=4), write("Y", "i"), load("X", "i"), order=(2,)),
        )
        after = remove_dead_code(before, PassContext())
        assert [s.name for s in after.statements] == ["Y0"]
        assert [t.name for t in after.tensors] == ["X", "Y"]

    def test_state_and_aliases_live(self) -> None:
        before = program(
            "p",
            [
                tensor("X", 4),
                tensor("S", 4, role="state"),
                tensor("T", 4, role="temp"),
                tensor("F", 2, 2, role="temp", alias_of="T"),
                tensor("Y", 2, 2, role="output"),
            ],
            statement("S0", box(i=4), write("S", "i"), load("X", "i"), order=(0,)),
            statement("T0", box(i=4), write("T", "i"), load("X", "i"), order=(1,)),
            statement("Y0", box(i=2, j=2), write("Y", "i", "j"), load("F", "i", "j"), order=(2,)),
        )
        assert run_checked(remove_dead_code, before) is before

    def test_dead_write_of_a_live_statement(self) -> None:
        before = program(
            "p",
            [tensor("X", 4), tensor("T", 4, role="temp"), tensor("Y", 4, role="output")],
            statement(
                "S",
                box(i=4),
                (write("T", "i"), write("Y", "i")),
                fn("exp", load("X", "i")),
                fn("neg", load("X", "i")),
            ),
        )
        (only,) = run_checked(remove_dead_code, before).statements
        assert [w.tensor for w in only.writes] == ["Y"]


class TestCommonSubexpressions:
    def build(self, between: Statement | None = None, role: str = "input") -> Program:
        rest = [] if between is None else [between]
        return program(
            "p",
            [
                tensor("X", 4, role=role),  # type: ignore[arg-type]
                tensor("A", 4, role="temp"),
                tensor("B", 4, role="temp"),
                tensor("Y", 4, role="output"),
            ],
            statement("A0", box(i=4), write("A", "i"), fn("exp", load("X", "i")), order=(0,)),
            *rest,
            statement("B0", box(j=4), write("B", "j"), fn("exp", load("X", "j")), order=(2,)),
            statement(
                "Y0",
                box(i=4),
                write("Y", "i"),
                op("sub", load("A", "i"), load("B", "i")),
                order=(3,),
            ),
        )

    def test_equal_statements(self) -> None:
        after = run_checked(merge_common_subexpressions, self.build())
        assert [s.name for s in after.statements] == ["A0", "Y0"]

    def test_source_changed_between(self) -> None:
        """A planted fault: the second ``exp`` sees another ``X``."""
        change = statement("W", box(i=4), write("X", "i"), const(1, f32), order=(1,))
        before = self.build(change, "inout")
        assert run_checked(merge_common_subexpressions, before) is before

    def test_chains_merge(self) -> None:
        before = program(
            "p",
            [
                tensor("X", 4),
                *(tensor(n, 4, role="temp") for n in ("A", "B", "C", "D")),
                tensor("Y", 4, role="output"),
            ],
            *(
                statement(f"{n}0", box(i=4), write(n, "i"), fn(f, load(x, "i")), order=(k,))
                for k, (n, f, x) in enumerate(
                    [("A", "exp", "X"), ("B", "exp", "X"), ("C", "neg", "A"), ("D", "neg", "B")]
                )
            ),
            statement(
                "Y0",
                box(i=4),
                write("Y", "i"),
                op("add", load("C", "i"), load("D", "i")),
                order=(4,),
            ),
        )
        after = run_checked(merge_common_subexpressions, before)
        assert [s.name for s in after.statements] == ["A0", "C0", "Y0"]


def test_results_of_a_checked_pass_are_compared() -> None:
    """The comparison itself can fail."""
    before = two(X, load("T", "i", "j"))
    wrong = two(fn("neg", X), load("T", "i", "j"))
    with pytest.raises(AssertionError):
        assert_same_results(before, wrong)
