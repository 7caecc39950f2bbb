"""Redirected writes, delinearisation."""

from __future__ import annotations

from nestor.ir.affine import affine
from nestor.ir.expr import Expr, Load
from nestor.ir.monoid import sum_of
from nestor.ir.program import Program, Statement, Symbol, Tensor, box
from nestor.ir.types import DType
from nestor.passes.delinearize import delinearize_indices, division_count
from nestor.passes.redirect import redirect_writes
from tests.helpers.ir_programs import fn, load, op, program, reduce, statement, tensor, write
from tests.helpers.pass_checks import run_checked

f32 = DType.f32


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
