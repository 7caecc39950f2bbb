"""Dead code, common subexpressions, results of checked passes."""

from __future__ import annotations

import pytest

from nestor.ir.expr import const
from nestor.ir.program import Program, Statement, box
from nestor.ir.types import DType
from nestor.passes.common_subexpressions import merge_common_subexpressions
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.inline import inline_producers
from tests.helpers.ir_programs import fn, load, op, program, statement, tensor, write
from tests.helpers.pass_checks import assert_same_results, run_checked
from tests.helpers.two_statements import X, two

f32 = DType.f32


def inlined(before: Program, **options: object) -> Program:
    """Inline and sweep; results compared."""
    return remove_dead_code(run_checked(inline_producers, before, **options), PassContext())


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
