"""Trees and steps that once could not be scanned, or gave nests that were refused."""

from __future__ import annotations

from typing import Any

import pytest

from nestor.errors import UserError
from nestor.ir.affine import variable
from nestor.ir.loopnest import Compute, Loop, LoopNest
from nestor.ir.parser import parse_program
from nestor.ir.program import Program
from nestor.ir.schedule import (
    Arrange,
    Distribute,
    Fuse,
    Interchange,
    Promote,
    Skew,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Tree, tree_statements
from nestor.passes.accumulations import recognize_accumulations
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral.dependence_analysis import analyse_dependences
from nestor.passes.polyhedral.isl_ast import AstConverter
from nestor.passes.polyhedral.isl_schedule import compute_tree
from nestor.passes.polyhedral.order_tree import program_tree
from nestor.passes.polyhedral.proposals import STRATEGIES
from tests.helpers.affine_programs import affine_program
from tests.legality.judge import accepted, refused
from tests.legality.mutations import nodes_of


def arranged(program: Program, *steps: Step, tree: Tree | None = None) -> LoopNest:
    """The nest of ``program`` after ``steps`` on its own order, or on ``tree``."""
    return apply_schedule(program, (Arrange(tree=tree or program_tree(program)), *steps))


def loops(nest: LoopNest) -> list[Loop]:
    return [x for _, x in nodes_of(nest.body) if isinstance(x, Loop)]


def row_loop(name: str, index: str) -> Band:
    """One loop around statement S0 only."""
    loop = BandLoop(name=name, rows=(("S0", variable(index)),))
    return Band(loops=(loop,), child=Leaf(statement="S0"))


def test_programs_without_symbols_scan() -> None:
    p = affine_program("p", "", {"A": "6"}, "for i in 0..6 { A[i] = A[i] * 0.5; }")
    accepted(p, arranged(p, Tile(loop="i", size=4)), {})


def test_instances_that_a_tree_leaves_unordered_run_in_loops_of_their_own() -> None:
    p = affine_program(
        "p", "N", {"A": "N, N"}, "for i in 0..N { for j in 0..N { A[i, j] = A[i, j] * 0.5; } }"
    )
    nest = arranged(p, tree=row_loop("t", "j"))
    assert [x.index for x in loops(nest)] == ["t", "i"]
    accepted(p, nest, {"N": 3})


def test_unordered_instances_that_depend_on_each_other_are_refused() -> None:
    p = affine_program(
        "p", "N", {"A": "N, N"},
        "for i in 1..N { for j in 1..N { A[i, j] = A[i - 1, j] + A[i, j - 1]; } }",
    )  # fmt: skip
    accepted(p, arranged(p, tree=row_loop("t", "i")), {"N": 4})
    back = Band(
        loops=(BandLoop(name="t", rows=(("S0", -variable("j")),)),), child=Leaf(statement="S0")
    )
    refused(p, arranged(p, tree=back), "dependence", symbols={"N": 4})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bounds", ["3..3", "N..N", "i + 1..1"])
def test_proposals_hold_statements_without_instances(strategy: str, bounds: str) -> None:
    p = affine_program(
        "p", "N", {"A": "N", "B": "N, 8"},
        f"for i in 0..N {{ A[i] = A[i] * 0.5; for j in {bounds} {{ B[i, j] = A[i]; }} }}",
    )  # fmt: skip
    tree = compute_tree(analyse_dependences(p), STRATEGIES[strategy])
    assert sorted(tree_statements(tree)) == ["S0", "S1"]
    accepted(p, arranged(p, tree=tree), {"N": 3})


@pytest.mark.parametrize(
    "condition", ["-(i%2) >= 0", "i//2 - j >= 0", "-((i + j)%3) >= 0", "j - i%3 >= 0"]
)
@pytest.mark.parametrize("kind", [Vectorize, Unroll])
def test_register_tiles_under_conditions_that_round(condition: str, kind: type) -> None:
    p = parse_program(
        f"""program p(N: 1..) {{
          inout A: f64[N, N]
          seq i {{ seq j {{
            statement S0 over {{ 0 <= i < N, 0 <= j < N : {condition} }}
              A[i, j] = A[i, j] * 0.5:f64
          }} }}
        }}"""
    )
    for loop in "ij":
        inner = (f"{loop}.i",)
        other = "j" if loop == "i" else "i"
        steps = (Tile(loop=loop, size=4), *(
            (Interchange(loops=(other, f"{loop}.i")),) if loop == "i" else ()
        ))  # fmt: skip
        nest = arranged(p, *steps, kind(loop=inner[0]))
        accepted(p, nest, {"N": 1}, {"N": 5}, {"N": 8})


def test_a_tile_of_a_tiles_outer_loop_may_be_unrolled_with_it() -> None:
    p = affine_program("p", "N", {"A": "N"}, "for i in 0..N { A[i] = A[i] * 0.5; }")
    steps = (Tile(loop="i", size=4), Tile(loop="i.o", size=2))
    nest = arranged(p, *steps, Unroll(loop="i.o.i"), Vectorize(loop="i.i"))
    accepted(p, nest, {"N": 1}, {"N": 8}, {"N": 19})
    assert {x.index for x in loops(nest) if x.kind in ("unroll", "vector")} == {"i.o.i", "i.i"}


def test_a_fused_outer_loop_of_a_tile_keeps_its_register_tile() -> None:
    p = affine_program(
        "p", "N", {"A": "N", "B": "4*N + 4"},
        "for i in 0..N { A[i] = A[i] * 0.5; } for j in 0..4*N { B[j] = B[j] * 0.5; }",
    )  # fmt: skip
    steps = (Tile(loop="j", size=4), Vectorize(loop="j.i"), Fuse(first="i", second="j.o"))
    nest = arranged(p, *steps)
    accepted(p, nest, {"N": 1}, {"N": 5})
    assert "j.i" in {x.index for x in loops(nest) if x.kind == "vector"}
    with pytest.raises(UserError, match="inside of a tile"):
        arranged(p, Tile(loop="j", size=4), Interchange(loops=("j.i", "j.o")),
                 Fuse(first="i", second="j.i"))  # fmt: skip


def test_strided_loops_may_have_several_lower_bounds() -> None:
    p = parse_program(
        """program p(N: 1..) {
          inout C: f64[2*N + 5, N + 3, N + 9]
          seq i { seq j { seq k {
            statement S0 over { 0 <= i < N + 3, 0 <= j < i + 1, i - 2 <= k < i + 3
                : k >= 0, -k + 6 >= 0, -(i%2) >= 0 }
              C[2*i, j, k + 4] = C[2*i, j, k + 4] * 0.5:f64
          } } }
        }"""
    )
    nest = arranged(p, Interchange(loops=("k", "i", "j")), Tile(loop="j", size=5))
    accepted(p, nest, {"N": 1}, {"N": 4}, {"N": 6})
    assert any(len(x.lower) > 1 for x in loops(nest))


def test_choices_in_bounds_become_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[str] = []
    split = AstConverter._split

    def spy(self: AstConverter, choice: Any, values: Any, make: Any) -> Any:
        met.append(choice.to_C_str())
        return split(self, choice, values, make)

    monkeypatch.setattr(AstConverter, "_split", spy)
    p = affine_program(
        "p", "", {"A": "3, 5, 3", "E": ""},
        """for i in 1..2 { for j in 0..3 { for k in j//2..(j + 1)//2 + 2 { for l in 0..j%3 + 1 {
             A[j, k, l] = A[j, k, l] * 0.5; } } } }""",
    )  # fmt: skip
    accepted(p, arranged(p, Skew(loop="j", by="k", factor=2)), {})
    assert met


def sums() -> Program:
    """Row sums, as a reduction."""
    text = "for i in 0..N { for k in 0..N { s[i] = s[i] + A[i, k]; } }"
    p = affine_program("p", "N", {"s": "N", "A": "N, N"}, text, inputs="A")
    return recognize_accumulations(p)


def test_lanes_merge_into_a_promoted_element() -> None:
    p = sums()
    steps = (Tile(loop="k", size=3), SplitReduction(loop="k.i", lanes=2))
    nest = arranged(p, *steps, Promote(tensor="s", loop="k.o"))
    merges = [x for _, x in nodes_of(nest.body) if isinstance(x, Compute) and x.phase == "merge"]
    assert merges and all(m.stores[0].target != "s" for m in merges)
    accepted(p, nest, {"N": 1}, {"N": 7})


def test_lanes_of_different_results_do_not_sum() -> None:
    p = sums()
    with pytest.raises(UserError, match="different results"):
        arranged(p, Skew(loop="i", by="k", factor=1), SplitReduction(loop="k", lanes=4))


def test_loops_that_distribution_makes_get_names_that_no_tile_had() -> None:
    p = affine_program(
        "p", "N", {"A": "N", "B": "N", "C": "N + 3"},
        """for i in 0..N { A[i] = A[i] * 0.5; B[i] = B[i] * 0.5; }
           for i in 0..N + 3 { C[i] = C[i] * 0.5; }""",
    )  # fmt: skip
    steps = (Tile(loop="i.2", size=4), Distribute(loop="i", statement="S1"))
    nest = arranged(p, *steps, Tile(loop="i.3", size=2), Unroll(loop="i.3.i"))
    accepted(p, nest, {"N": 1}, {"N": 5})
    with pytest.raises(UserError, match=r"i\.2"):
        arranged(p, *steps, Tile(loop="i.2", size=2))
