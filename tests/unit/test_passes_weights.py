"""Scales folded into weights, expressions of weights outlined, the weight program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nestor.ir.affine import affine
from nestor.ir.expr import Expr, const, loads
from nestor.ir.interpreter import run_program
from nestor.ir.monoid import max_of, sum_of
from nestor.ir.program import Program, Reduction, Statement, Symbol, Tensor, box
from nestor.ir.types import DType
from nestor.passes.context import PassContext, PassOptions
from nestor.passes.fold_constants import hoist_weight_program, outline_weight_expressions
from nestor.passes.fold_scales import fold_scales
from nestor.passes.linearize import merge_summed_dimensions
from nestor.passes.pipeline import run_pipeline
from nestor.passes.weight_copies import plain_weights
from tests.helpers.ir_programs import fn, load, op, program, reduce, s, statement, tensor, write
from tests.helpers.pass_checks import (
    assert_same_pipeline,
    assert_same_results,
    random_inputs,
    run_checked,
)
from tests.helpers.pass_models import attention_block, batch_norm, residual_network

f32 = DType.f32
C = load("C", "i", "n")


def linear(
    reader: Expr,
    *,
    final: Expr | None = None,
    weight_role: str = "parameter",
    extra: tuple[Statement, ...] = (),
    tensors: tuple[Tensor, ...] = (),
    rows: int | str = 4,
    reduction: Reduction | None = None,
) -> Program:
    """``C[i, n] = Σ_k X[i, k]·W[n, k]; Y = reader``."""
    finals = None if final is None else (final,)
    return program(
        "linear",
        [
            tensor("X", rows, 6),
            tensor("W", 5, 6, role=weight_role),  # type: ignore[arg-type]
            tensor("g", 5, role="parameter"),
            tensor("b", 5, role="parameter"),
            tensor("r", rows, role="parameter") if isinstance(rows, int) else tensor("r", rows),
            tensor("gk", 6, role="parameter"),
            tensor("x", rows, 5),
            tensor("xn", 5),
            tensor("C", rows, 5, role="temp"),
            tensor("Y", rows, 5, role="output"),
            *tensors,
        ],
        statement(
            "dot",
            box(i=rows, n=5, k=6),
            write("C", "i", "n"),
            op("mul", load("X", "i", "k"), load("W", "n", "k")),
            reduction=reduction or reduce(sum_of(f32), "k", final=finals),
            order=(0,),
        ),
        statement("read", box(i=rows, n=5), write("Y", "i", "n"), reader, order=(1,)),
        *extra,
        symbols=(Symbol(name=rows),) if isinstance(rows, str) else (),
    )


G, B = load("g", "n"), load("b", "n")


class TestFoldScales:
    @pytest.mark.parametrize(
        "reader",
        [
            op("mul", C, G),
            op("mul", C, const(0.125, f32)),
            op("div", C, G),
            op("add", op("mul", op("sub", C, B), G), B),
            fn("tanh", op("add", B, op("mul", G, C))),
            op("sub", B, op("mul", C, G)),
            fn("neg", op("mul", C, fn("exp", G))),
            op("add", op("mul", C, G), load("x", "i", "n")),
            op("mul", fn("sigmoid", op("mul", C, G)), op("mul", C, G)),
            op("mul", op("mul", C, G), fn("rsqrt", op("mul", B, B))),
        ],
    )
    def test_folded(self, reader: Expr) -> None:
        before = linear(reader)
        after = run_checked(fold_scales, before, tolerance=1e-5)
        assert after is not before
        assert any(t.name == "W_scaled" for t in after.tensors)

    def test_bias_in_the_final_map(self) -> None:
        before = linear(op("mul", C, G), final=op("add", s(0), B))
        assert run_checked(fold_scales, before, tolerance=1e-5) is not before

    def test_symbolic_rows(self) -> None:
        before = linear(op("mul", C, G), rows="N")
        after = run_checked(fold_scales, before, tolerance=1e-5, symbols={"N": 3})
        assert after is not before

    def test_batch_norm_after_a_transposed_read(self) -> None:
        before = linear(batch_norm(C, "n", "n"), tensors=tuple(
            tensor(f"n{x}", 5, role="parameter") for x in "vmgb"
        ))  # fmt: skip
        assert fold_scales(before, PassContext()) is not before

    @pytest.mark.parametrize(
        "reader",
        [
            op("mul", C, load("r", "i")),  # varies where W does not
            op("mul", C, load("x", "i", "n")),  # no weight
            op("mul", C, load("xn", "n")),  # no weight, though it varies as one
            op("mul", C, C),  # not affine
            op("add", op("mul", C, G), C),  # two different scales
            op("mul", op("add", C, load("x", "i", "n")), G),  # an offset that is no weight
            op("div", G, C),
            op("add", C, B),  # no scale
            op("max", C, G),
        ],
    )
    def test_left_alone(self, reader: Expr) -> None:
        before = linear(reader)
        assert run_checked(fold_scales, before, tolerance=1e-5) is before

    def test_scale_that_varies_over_the_sum_is_not_folded(self) -> None:
        """A planted fault: ``gk`` varies over what is an index of W, but the reduced one."""
        square = replace(linear(op("mul", C, G)).statements[1])
        before = linear(op("mul", C, G))
        assert isinstance(square, Statement)
        element = op("mul", C, load("gk", "n"))
        before = replace(
            before, statements=(before.statements[0], replace(square, elements=(element,)))
        )
        # ``gk`` is indexed by n, so it is folded along n, never along k.
        after = run_checked(fold_scales, before, tolerance=1e-5)
        (maker,) = [x for x in after.statements if x.name == "W_scaled_s"]
        assert isinstance(maker, Statement)
        assert load("gk", "n") in set(loads(maker.elements[0]))

    def test_operand_that_is_no_weight(self) -> None:
        before = linear(op("mul", C, G), weight_role="input")
        ctx = PassContext()
        assert fold_scales(before, ctx) is before
        assert "neither operand is a weight" in ctx.log[0].reason

    def test_second_reader(self) -> None:
        other = statement("other", box(i=4, n=5), write("Z", "i", "n"), fn("exp", C), order=(2,))
        before = linear(
            op("mul", C, G), extra=(other,), tensors=(tensor("Z", 4, 5, role="output"),)
        )
        assert run_checked(fold_scales, before) is before

    def test_read_at_two_places(self) -> None:
        reader = op("add", op("mul", C, G), op("mul", load("C", "i", affine(4) - "n"), G))
        before = linear(reader)
        assert run_checked(fold_scales, before) is before

    def test_maximum_is_no_sum(self) -> None:
        before = linear(op("mul", C, G), reduction=reduce(max_of(f32), "k"))
        assert run_checked(fold_scales, before) is before

    def test_final_that_is_not_affine(self) -> None:
        before = linear(op("mul", C, G), final=fn("tanh", s(0)))
        assert run_checked(fold_scales, before) is before

    def test_large_weight_that_is_used_elsewhere(self) -> None:
        other = statement("other", box(n=5, k=6), write("Z", "n", "k"), load("W", "n", "k"),
                          order=(2,))  # fmt: skip
        before = linear(
            op("mul", C, G), extra=(other,), tensors=(tensor("Z", 5, 6, role="output"),)
        )
        ctx = PassContext(options=PassOptions(max_scaled_copy_bytes=16))
        assert fold_scales(before, ctx) is before
        assert fold_scales(before, PassContext()) is not before

    def test_two_results_in_one_reader(self) -> None:
        """A residual sum: both branches end in a scale, and one statement reads both."""
        second = statement(
            "dot2",
            box(i=4, n=5, k=6),
            write("D", "i", "n"),
            op("mul", load("X", "i", "k"), load("V", "n", "k")),
            reduction=reduce(sum_of(f32), "k"),
            order=(0,),
        )
        one = op("mul", op("sub", C, B), G)
        two = op("add", op("mul", load("D", "i", "n"), fn("exp", B)), G)
        reader = op("max", op("add", one, two), const(0, f32))
        tensors = (tensor("V", 5, 6, role="parameter"), tensor("D", 4, 5, role="temp"))
        before = linear(reader, tensors=tensors)
        dot, read = (replace(x, order=(k + 1,)) for k, x in enumerate(before.statements))
        before = replace(before, statements=(second, dot, read))
        after = run_checked(fold_scales, before, tolerance=1e-5)
        assert {"W_scaled", "V_scaled"} <= {t.name for t in after.tensors}
        assert_same_pipeline(before, run_pipeline(before, PassContext()), tolerance=1e-5)


def heads(
    size: int = 3, *, apart: bool = False, inner: int | None = None, rows: int | str = 2
) -> Program:
    """``T[b,h,d] = exp(X); Y[b,n] = Σ_h Σ_d T[b,h,d]·W[n, size*h + d]``."""
    weight = load("W", "n", affine("h") * size + "d")
    element: Expr = op("mul", load("T", "b", "h", "d"), weight)
    if apart:
        element = op("mul", element, load("u", "h"))
    return program(
        "heads",
        [
            tensor("X", rows, 4, size),
            tensor("T", rows, 4, size, role="temp"),
            tensor("W", 5, 4 * size, role="parameter"),
            tensor("u", 4),
            tensor("Y", rows, 5, role="output"),
        ],
        statement(
            "make",
            box(b=rows, h=4, d=size),
            write("T", "b", "h", "d"),
            fn("exp", load("X", "b", "h", "d")),
            order=(0,),
        ),
        statement(
            "out",
            box(b=rows, n=5, h=4, d=inner or size),
            write("Y", "b", "n"),
            element,
            reduction=reduce(sum_of(f32), "h", "d"),
            order=(1,),
        ),
        symbols=(Symbol(name=rows),) if isinstance(rows, str) else (),
    )


class TestShapesOfSums:
    @pytest.mark.parametrize("rows", [2, "N"])
    def test_merged(self, rows: int | str) -> None:
        symbols = {"N": 3} if rows == "N" else None
        after = run_checked(
            merge_summed_dimensions, heads(rows=rows), tolerance=1e-5, symbols=symbols
        )
        out = after.statements[1]
        assert isinstance(out, Statement) and out.reduction is not None
        assert out.reduction.indices == ("d",)
        assert [str(e) for e in after.tensor("T").shape[1:]] == ["12"]

    def test_part_of_the_inner_dimension(self) -> None:
        """``64*h + d`` with fewer than 64 values of d leaves gaps."""
        before = heads(inner=2)
        assert run_checked(merge_summed_dimensions, before, tolerance=1e-5) is before

    def test_outer_index_used_alone(self) -> None:
        before = heads(apart=True)
        assert run_checked(merge_summed_dimensions, before, tolerance=1e-5) is before

    def test_plain_weights(self) -> None:
        before = heads(inner=2)
        after = run_checked(plain_weights, before, tolerance=1e-5)
        assert [str(e) for e in after.tensor("W_plain").shape] == ["5", "4", "2"]

    def test_temp_with_a_longer_inner_dimension(self) -> None:
        """``3*h + d`` would name one place twice where the temp's rows hold four."""
        before = heads(4)
        make, out = before.statements
        assert isinstance(out, Statement)
        weight = load("W", "n", affine("h") * 3 + "d")
        out = replace(
            out,
            domain=box(b=2, n=5, h=4, d=3),
            elements=(op("mul", load("T", "b", "h", "d"), weight),),
        )
        before = replace(before, statements=(make, out))
        assert run_checked(merge_summed_dimensions, before, tolerance=1e-5) is before

    def test_weight_that_is_read_many_times_is_not_unrolled(self) -> None:
        """A Toeplitz matrix given by its diagonals stays that small."""
        before = program(
            "toeplitz",
            [
                tensor("X", 4, 6),
                tensor("W", 11, role="parameter"),
                tensor("Y", 4, 6, role="output"),
            ],
            statement(
                "S",
                box(i=4, y=6, r=6),
                write("Y", "i", "y"),
                op("mul", load("X", "i", "r"), load("W", affine("y") + "r")),
                reduction=reduce(sum_of(f32), "r"),
            ),
        )
        ctx = PassContext()
        assert plain_weights(before, ctx) is before
        assert "more than once" in ctx.log[0].reason

    def test_plain_weight_stays(self) -> None:
        before = linear(op("add", C, B))
        assert plain_weights(before, PassContext()) is before

    def test_large_weight_used_elsewhere_stays(self) -> None:
        before = heads(inner=2)
        other = statement(
            "other", box(n=5, k=12), write("Z", "n", "k"), load("W", "n", "k"), order=(2,)
        )
        before = replace(
            before,
            statements=(*before.statements, other),
            tensors=(*before.tensors, tensor("Z", 5, 12, role="output")),
        )
        ctx = PassContext(options=PassOptions(max_scaled_copy_bytes=16))
        assert plain_weights(before, ctx) is before
        assert plain_weights(before, PassContext()) is not before


class TestWeightProgram:
    def test_split(self) -> None:
        before = outline_weight_expressions(
            fold_scales(linear(op("mul", C, fn("exp", G))), PassContext()), PassContext()
        )
        main, weights = hoist_weight_program(before, PassContext())
        assert [t.name for t in main.by_role("parameter")] == ["W_scaled"]
        assert [t.name for t in weights.by_role("output")] == ["W_scaled"]
        arrays = random_inputs(before)
        made = run_program(weights, {t.name: arrays[t.name] for t in weights.by_role("parameter")})
        np.testing.assert_allclose(
            made["W_scaled"], arrays["W"] * np.exp(arrays["g"])[:, None], rtol=1e-6
        )

    def test_constants_stay_constants(self) -> None:
        before = program(
            "p",
            [
                tensor("X", 4),
                tensor("K", 4, role="constant"),
                tensor("T", 4, role="temp"),
                tensor("Y", 4, role="output"),
            ],
            statement("T0", box(i=4), write("T", "i"), fn("exp", load("K", "i")), order=(0,)),
            statement(
                "Y0",
                box(i=4),
                write("Y", "i"),
                op("mul", load("X", "i"), load("T", "i")),
                order=(1,),
            ),
        )
        main, weights = hoist_weight_program(before, PassContext())
        assert [t.name for t in main.by_role("constant")] == ["T"]
        assert [s.name for s in weights.statements] == ["T0"]

    def test_large_results_stay_in_the_call(self) -> None:
        """An outer product of two vectors is much larger than they are."""
        before = program(
            "p",
            [
                tensor("u", 3000, role="parameter"),
                tensor("v", 3000, role="parameter"),
                tensor("T", 3000, 3000, role="temp"),
                tensor("Y", 3000, 3000, role="output"),
            ],
            statement(
                "T0",
                box(i=3000, j=3000),
                write("T", "i", "j"),
                op("mul", load("u", "i"), load("v", "j")),
                order=(0,),
            ),
            statement(
                "Y0", box(i=3000, j=3000), write("Y", "i", "j"), load("T", "j", "i"), order=(1,)
            ),
        )
        ctx = PassContext()
        main, weights = hoist_weight_program(before, ctx)
        assert main is before and not weights.statements
        assert "much larger" in ctx.entries(kind="refused")[0].reason

    def test_symbols_stay_in_the_call(self) -> None:
        before = program(
            "p",
            [
                tensor("u", 3, role="parameter"),
                tensor("T", "N", 3, role="temp"),
                tensor("Y", "N", 3, role="output"),
            ],
            statement(
                "T0", box(n="N", i=3), write("T", "n", "i"), fn("exp", load("u", "i")), order=(0,)
            ),
            statement("Y0", box(n="N", i=3), write("Y", "n", "i"), load("T", "n", "i"), order=(1,)),
            symbols=(Symbol(name="N"),),
        )
        main, weights = hoist_weight_program(before, PassContext())
        assert main is before and not weights.statements

    def test_written_parameters_are_not_weights(self) -> None:
        before = program(
            "p",
            [
                tensor("S", 3, role="state"),
                tensor("T", 3, role="temp"),
                tensor("Y", 3, role="output"),
            ],
            statement("T0", box(i=3), write("T", "i"), fn("exp", load("S", "i")), order=(0,)),
            statement("Y0", box(i=3), write("Y", "i"), load("T", "i"), order=(1,)),
        )
        main, _ = hoist_weight_program(before, PassContext())
        assert main is before

    def test_equal_expressions_are_outlined_once(self) -> None:
        reader = op("add", load("x", "i", "n"), op("mul", G, B))
        before = linear(op("mul", C, reader), extra=(
            statement("again", box(i=4, n=5), write("Z", "i", "n"), reader, order=(2,)),
        ), tensors=(tensor("Z", 4, 5, role="output"),))  # fmt: skip
        after = run_checked(outline_weight_expressions, before)
        assert len(after.statements) == len(before.statements) + 1


@pytest.mark.parametrize(
    ("before", "symbols"),
    [
        (residual_network(), None),
        (residual_network(batch="N"), {"N": 3}),
        (residual_network(size=5, width=9, batch=1), None),
        (attention_block(), None),
        (attention_block(merged=False, batch="N"), {"N": 2}),
        (attention_block(tokens=1, heads=1), None),
    ],
    ids=["conv", "conv-N", "conv-odd", "attention", "attention-N", "attention-1"],
)
def test_pipeline_on_networks(before: Program, symbols: dict[str, int] | None) -> None:
    ctx = PassContext()
    result = run_pipeline(before, ctx)
    assert_same_pipeline(before, result, tolerance=5e-5, symbols=symbols)
    assert {x.name for x in result.main.by_role("input", "output")} == {
        x.name for x in before.by_role("input", "output")
    }


def test_disabled_passes_do_not_run() -> None:
    before = residual_network()
    ctx = PassContext(options=PassOptions(disabled=frozenset({"fold_scales", "assign_layouts"})))
    result = run_pipeline(before, ctx)
    assert not ctx.entries("fold_scales", "assign_layouts")
    assert all(t.layout is None for t in result.main.tensors)
    assert_same_results(result.main, result.main, tolerance=0.0)


def test_debug_keeps_the_text_after_each_pass_that_changed_something() -> None:
    ctx = PassContext(debug=True)
    run_pipeline(residual_network(), ctx)
    names = [name for name, _ in ctx.dumps]
    assert "fold_scales" in names and "assign_layouts" in names
    assert "remove_dead_code" not in names[:1]
    assert all(text.startswith("program residual_network") for _, text in ctx.dumps)
