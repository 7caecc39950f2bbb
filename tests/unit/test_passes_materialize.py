"""Padded operands, layouts and transposed operands: what is made, and what is left alone."""

from __future__ import annotations

import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import Expr, Load, const, loads
from nestor.ir.monoid import sum_of
from nestor.ir.program import Program, Statement, Tensor, box
from nestor.ir.types import DType
from nestor.passes.analysis import contraction_roles, is_window_reduction, program_facts
from nestor.passes.context import PassContext
from nestor.passes.layout_choice import assign_layouts
from nestor.passes.layouts import stage_outputs
from nestor.passes.materialize import pad_operands
from nestor.passes.relayout import relayout_operands
from tests.helpers.ir_programs import (
    fn,
    load,
    matmul,
    op,
    program,
    reduce,
    statement,
    tensor,
    write,
)
from tests.helpers.pass_checks import run_checked
from tests.helpers.pass_models import attention_block, convolution, residual_network

f32 = DType.f32


def predicated(after: Program) -> list[str]:
    """Statements that contract and still read under a predicate."""
    return [
        x.name
        for x in after.statements
        if isinstance(x, Statement)
        and contraction_roles(x) is not None
        and any(y.predicate for e in x.elements for y in loads(e))
    ]


def signal(source_role: str = "input", *, producer: bool = False, more: bool = False) -> Program:
    """A one-dimensional convolution with padding 2 over ``X`` (or over ``T = tanh(X)``)."""
    name = "T" if producer else "X"
    at = affine("y") + "r" - 2
    inside = (at, affine(7) - at)
    operand = load(name, "c", at, predicate=inside, other=const(0, f32))
    statements = [
        statement(
            "conv",
            box(o=3, y=8, c=2, r=5),
            write("Y", "o", "y"),
            op("mul", operand, load("W", "o", "c", "r")),
            reduction=reduce(sum_of(f32), "c", "r"),
            order=(1,),
        )
    ]
    tensors: list[Tensor] = [
        tensor("X", 2, 8, role=source_role),  # type: ignore[arg-type]
        tensor("W", 3, 2, 5, role="parameter"),
        tensor("Y", 3, 8, role="output"),
    ]
    if producer:
        tensors.append(tensor("T", 2, 8, role="temp"))
        statements.insert(
            0,
            statement("make", box(c=2, x=8), write("T", "c", "x"), fn("tanh", load("X", "c", "x"))),
        )
    if more:
        tensors.append(tensor("Z", 8, 2, role="output"))
        statements.append(
            statement("more", box(x=8, c=2), write("Z", "x", "c"), load(name, "c", "x"), order=(2,))
        )
    return program("signal", tensors, *statements)


class TestPadding:
    def test_input_is_copied(self) -> None:
        after = run_checked(pad_operands, signal(), tolerance=1e-6)
        assert not predicated(after)
        assert [str(e) for e in after.tensor("X_pad").shape] == ["2", "12"]

    @pytest.mark.parametrize("more", [False, True])
    def test_temp_gets_a_border(self, more: bool) -> None:
        after = run_checked(pad_operands, signal(producer=True, more=more), tolerance=1e-6)
        assert not predicated(after)
        assert all(t.name != "T_pad" for t in after.tensors)
        assert [str(e) for e in after.tensor("T").shape] == ["2", "12"]

    def test_two_paddings_of_one_temp(self) -> None:
        before = signal(producer=True)
        at = affine("y") + "r" - 1
        operand = load("T", "c", at, predicate=(at, affine(7) - at), other=const(0, f32))
        second = statement(
            "conv2",
            box(o=3, y=8, c=2, r=3),
            write("Z", "o", "y"),
            op("mul", operand, load("V", "o", "c", "r")),
            reduction=reduce(sum_of(f32), "c", "r"),
            order=(2,),
        )
        before = program(
            "p",
            [
                *before.tensors,
                tensor("V", 3, 2, 3, role="parameter"),
                tensor("Z", 3, 8, role="output"),
            ],
            *before.statements,  # type: ignore[arg-type]
            second,
        )
        after = run_checked(pad_operands, before, tolerance=1e-6)
        assert not predicated(after)

    def test_two_kinds_of_border_on_one_temp(self) -> None:
        """One reader wants 0 outside, the other 1: no single border serves both."""
        before = signal(producer=True)
        at = affine("y") + "r" - 1
        operand = load("T", "c", at, predicate=(at, affine(7) - at), other=const(1, f32))
        second = statement(
            "conv2",
            box(o=3, y=8, c=2, r=3),
            write("Z", "o", "y"),
            op("mul", operand, load("V", "o", "c", "r")),
            reduction=reduce(sum_of(f32), "c", "r"),
            order=(2,),
        )
        before = program(
            "p",
            [
                *before.tensors,
                tensor("V", 3, 2, 3, role="parameter"),
                tensor("Z", 3, 8, role="output"),
            ],
            *before.statements,  # type: ignore[arg-type]
            second,
        )
        after = run_checked(pad_operands, before, tolerance=1e-6)
        assert not predicated(after)
        assert len([t for t in after.tensors if t.name.startswith("T_pad")]) == 2

    def test_one_sided(self) -> None:
        """A causal convolution pads at the start only."""
        at = affine("y") + "r" - 2
        operand = load("T", at, predicate=(at,), other=const(0, f32))
        before = program(
            "p",
            [
                tensor("X", 8),
                tensor("T", 8, role="temp"),
                tensor("W", 3, role="parameter"),
                tensor("Y", 8, role="output"),
            ],
            statement("make", box(i=8), write("T", "i"), fn("tanh", load("X", "i"))),
            statement(
                "conv",
                box(y=8, r=3),
                write("Y", "y"),
                op("mul", operand, load("W", "r")),
                reduction=reduce(sum_of(f32), "r"),
                order=(1,),
            ),
        )
        after = run_checked(pad_operands, before, tolerance=1e-6)
        assert not predicated(after)
        assert len(after.statements) == 3

    def test_mask_that_is_no_border_is_left_alone(self) -> None:
        """A triangle: the predicate compares two loops, it bounds no index of the operand."""
        lower = (affine("i") - "k",)
        operand = load("X", "i", "k", predicate=lower, other=const(0, f32))
        before = program(
            "p",
            [tensor("X", 6, 6), tensor("V", 6, 4), tensor("Y", 6, 4, role="output")],
            statement(
                "S",
                box(i=6, n=4, k=6),
                write("Y", "i", "n"),
                op("mul", operand, load("V", "k", "n")),
                reduction=reduce(sum_of(f32), "k"),
            ),
        )
        assert run_checked(pad_operands, before) is before

    def test_window_inside_the_tensor(self) -> None:
        """The predicate cuts off part of the tensor: what lies outside it must not be read."""
        at = affine("y") + "r"
        operand = load("T", at, predicate=(affine(5) - at,), other=const(0, f32))
        before = program(
            "p",
            [
                tensor("X", 10),
                tensor("T", 10, role="temp"),
                tensor("W", 3, role="parameter"),
                tensor("Y", 6, role="output"),
            ],
            statement("make", box(i=10), write("T", "i"), fn("tanh", load("X", "i"))),
            statement(
                "conv",
                box(y=6, r=3),
                write("Y", "y"),
                op("mul", operand, load("W", "r")),
                reduction=reduce(sum_of(f32), "r"),
                order=(1,),
            ),
        )
        after = run_checked(pad_operands, before, tolerance=1e-6)
        assert not predicated(after)

    def test_pooling_keeps_its_predicate(self) -> None:
        after = run_checked(pad_operands, residual_network(), tolerance=2e-5)
        (pool,) = [x for x in after.statements if x.name == "pool"]
        assert isinstance(pool, Statement)
        assert any(y.predicate for e in pool.elements for y in loads(e))
        assert not predicated(after)

    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("depthwise", [False, True])
    def test_strides(self, stride: int, depthwise: bool) -> None:
        size, kernel, pad = 7, 3, 1
        out = (size + 2 * pad - kernel) // stride + 1
        before = program(
            "p",
            [
                tensor("X", 2, 3, size, size),
                tensor("T", 2, 3, size, size, role="temp"),
                tensor("W", *((3, 3, 3) if depthwise else (3, 3, 3, 3)), role="parameter"),
                tensor("Y", 2, 3, out, out, role="output"),
            ],
            statement(
                "make",
                box(n=2, c=3, y=size, x=size),
                write("T", "n", "c", "y", "x"),
                fn("exp", load("X", "n", "c", "y", "x")),
            ),
            convolution(
                "conv", "T", "Y", "W", 2, 3, 3, size, kernel, stride, pad, depthwise, order=1
            ),
        )
        after = run_checked(pad_operands, before, tolerance=1e-5)
        assert not predicated(after)


class TestLayouts:
    def test_channels_last_through_a_network(self) -> None:
        before = residual_network()
        after = run_checked(assign_layouts, before)
        for name in ("c1", "a1", "p", "c2", "a2", "c3"):
            layout = after.tensor(name).layout
            assert layout is not None and str(layout.physical[-1]) == "d1", name
        assert after.tensor("X").layout is None and after.tensor("Y").layout is None

    def test_output_of_a_convolution_is_staged(self) -> None:
        before = program(
            "p",
            [
                tensor("X", 1, 8, 6, 6),
                tensor("W", 9, 8, 3, 3, role="parameter"),
                tensor("Y", 1, 9, 4, 4, role="output"),
            ],
            convolution("conv", "X", "Y", "W", 1, 9, 8, 6, 3, 1, 0),
        )
        staged = run_checked(stage_outputs, before, tolerance=1e-5)
        assert len(staged.statements) == 2
        layout = run_checked(assign_layouts, staged, tolerance=1e-5).tensor("Y_staged").layout
        assert layout is not None and str(layout.physical[-1]) == "d1"

    def test_output_of_a_linear_layer_is_not_staged(self) -> None:
        before = matmul()
        assert stage_outputs(before, PassContext()) is before

    def test_few_channels_stay(self) -> None:
        after = assign_layouts(residual_network(width=4), PassContext())
        assert all(t.layout is None for t in after.tensors)

    def test_attention_stays_row_major(self) -> None:
        before = attention_block()
        after = run_checked(assign_layouts, before)
        assert all(after.tensor(n).layout is None for n in "qkvSZEPF")

    def test_summed_dimensions_become_contiguous(self) -> None:
        before = program(
            "p",
            [
                tensor("X", 2, 3, 5, 4),
                tensor("A", 2, 3, 5, 4, role="temp"),
                tensor("W", 7, 3, 4, role="parameter"),
                tensor("Y", 2, 5, 7, role="output"),
            ],
            statement(
                "make",
                box(b=2, h=3, t=5, d=4),
                write("A", "b", "h", "t", "d"),
                fn("exp", load("X", "b", "h", "t", "d")),
            ),
            statement(
                "out",
                box(b=2, t=5, n=7, h=3, d=4),
                write("Y", "b", "t", "n"),
                op("mul", load("A", "b", "h", "t", "d"), load("W", "n", "h", "d")),
                reduction=reduce(sum_of(f32), "h", "d"),
                order=(1,),
            ),
        )
        layout = run_checked(assign_layouts, before).tensor("A").layout
        assert layout is not None and [str(p) for p in layout.physical] == ["d0", "d2", "d1", "d3"]


class TestRelayout:
    def product(self, b: Load, rows: int = 9, extra: Expr | None = None) -> Program:
        return program(
            "p",
            [
                tensor("A", rows, 6),
                tensor("B", 10, 6),
                tensor("Bt", 6, 10),
                tensor("Y", rows, 10, role="output"),
            ],
            statement(
                "S",
                box(i=rows, j=10, k=6),
                write("Y", "i", "j"),
                op("mul", load("A", "i", "k"), b),
                reduction=reduce(sum_of(f32), "k"),
            ),
        )

    def test_transposed_operand_is_copied(self) -> None:
        after = run_checked(relayout_operands, self.product(load("B", "j", "k")), tolerance=1e-6)
        assert len(after.statements) == 2

    def test_plain_operand_stays(self) -> None:
        before = self.product(load("Bt", "k", "j"))
        assert relayout_operands(before, PassContext()) is before

    def test_few_rows_do_not_pay(self) -> None:
        before = self.product(load("B", "j", "k"), rows=2)
        ctx = PassContext()
        assert relayout_operands(before, ctx) is before
        assert "would not pay" in ctx.log[0].reason

    def test_windows_are_not_unrolled_into_memory(self) -> None:
        """A copy over all of a convolution's indices would hold each element many times."""
        before = program(
            "p",
            [
                tensor("X", 1, 8, 19, 19),
                tensor("W", 9, 8, 3, 3, role="parameter"),
                tensor("Y", 1, 9, 9, 9, role="output"),
            ],
            convolution("conv", "X", "Y", "W", 1, 9, 8, 19, 3, 2, 0),
        )
        ctx = PassContext()
        assert relayout_operands(before, ctx) is before
        assert "window" in ctx.log[0].reason

    def test_keys_of_attention(self) -> None:
        after = run_checked(relayout_operands, attention_block(), tolerance=2e-5)
        assert [t.name for t in after.tensors if t.name.endswith("_t")] == ["k_t"]


class TestAnalysis:
    def test_roles_of_a_convolution(self) -> None:
        conv = convolution("conv", "X", "Y", "W", 2, 4, 3, 7, 3, 1, 1)
        roles = contraction_roles(conv)
        assert roles is not None
        assert (roles.m, roles.n, roles.k) == (("n", "y", "x"), ("o",), ("c", "r", "q"))
        assert roles.windows == (("y", "r"), ("x", "q"))

    def test_roles_of_a_depthwise_convolution(self) -> None:
        roles = contraction_roles(convolution("c", "X", "Y", "W", 2, 4, 1, 7, 3, 2, 0, True))
        assert roles is not None
        assert (roles.batch, roles.m, roles.n) == (("o",), ("n", "y", "x"), ())

    def test_merged_heads_are_no_window(self) -> None:
        scores = attention_block().statements[3]
        roles = contraction_roles(scores)
        assert roles is not None and roles.windows == ()
        assert (roles.batch, roles.m, roles.n, roles.k) == (("b", "h"), ("t",), ("u",), ("d",))

    def test_pooling_is_a_window_reduction(self) -> None:
        named = {x.name: x for x in residual_network().statements}
        assert is_window_reduction(named["pool"])
        assert not is_window_reduction(named["norm1"])
        assert contraction_roles(named["pool"]) is None

    def test_weight_is_operand_b(self) -> None:
        before = residual_network()
        facts = program_facts(before)
        element = before.statements[0].elements[0]  # type: ignore[union-attr]
        assert element.b.tensor == "W1"
        roles = contraction_roles(before.statements[0], facts.tensors)
        assert roles is not None and roles.b.tensor == "W1"
