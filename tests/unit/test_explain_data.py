"""``explain_kernel``: what it says is what the checker says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nestor.errors import UserError
from nestor.explaining import Explanation, explain_kernel
from nestor.explaining_text import explanation_text
from nestor.ir.affine import Affine
from nestor.ir.expr import loads
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import Arrange, Interchange, Parallel, Reverse, Tile, schedule_from_json
from nestor.target.cpu import parse_target
from tests.helpers import explain_kernels as kernels

TARGET = parse_target("x86-64-v3")
DRAWN = (kernels.jacobi, kernels.seidel, kernels.product, kernels.triangle)


def explain(kernel: Any, **options: Any) -> Explanation:
    return explain_kernel(kernel, TARGET, **options)


def cells(program: Program, statement: str, env: dict[str, int]) -> tuple[set[Any], set[Any]]:
    """Elements that an instance reads, and those that it writes."""
    s = next(s for s in program.statements if s.name == statement)
    assert isinstance(s, Statement)

    def cell(tensor: str, indices: Any) -> tuple[object, ...]:
        assert all(isinstance(i, Affine) for i in indices)
        return (tensor, *(i.evaluate(env) for i in indices))

    writes = {cell(w.tensor, w.indices) for w in s.writes}
    reads = {cell(x.tensor, x.indices) for e in s.elements for x in loads(e)}
    if s.reduction is not None:
        reads |= writes
    return reads, writes


@pytest.mark.parametrize("kernel", DRAWN, ids=lambda k: k.name)
def test_every_witness_is_a_conflict_on_the_tensor_named(kernel: Any) -> None:
    e = explain(kernel, schedule=())
    assert e.dependences
    for row in e.dependences:
        d = row.dependence
        assert d.witness is not None
        sizes = dict(d.witness.symbols)
        ends = [
            cells(e.program, name, {**sizes, **dict(at)})
            for name, at in ((d.source, d.witness.source), (d.target, d.witness.target))
        ]
        (reads_a, writes_a), (reads_b, writes_b) = ends
        shared = {
            "flow": writes_a & reads_b,
            "anti": reads_a & writes_b,
            "output": writes_a & writes_b,
        }[d.kind]
        assert d.tensor in {cell[0] for cell in shared}, str(d)


@pytest.mark.parametrize("kernel", DRAWN, ids=lambda k: k.name)
def test_a_loop_is_called_parallel_just_when_the_checker_accepts_it(kernel: Any) -> None:
    plain = explain(kernel, schedule=())
    for row in plain.loops:
        tried = explain(kernel, schedule=(), attempts=[Parallel(loop=row.name)])
        assert tried.verdicts[-1].accepted == row.is_parallel, row.name
        assert bool(row.carries) == (not row.is_parallel), row.name


def test_the_loops_that_carry() -> None:
    rows = explain(kernels.jacobi, schedule=()).dependences
    found = {
        (r.dependence.source, r.dependence.target, r.dependence.tensor, r.dependence.kind): r
        for r in rows
    }
    assert len(found) == len(rows) == 6
    back = found["S1", "S0", "A", "flow"]
    assert (back.carried_by, back.accesses, back.dependence.distances) == (("t",), 3, (1,))
    there = found["S0", "S1", "B", "flow"]
    # Within an iteration of t, by the order of the statements.
    assert (there.carried_by, there.dependence.distances) == (("",), (0,))


def test_a_refused_step_has_a_witness_and_is_left_out_of_the_next() -> None:
    steps = [Reverse(loop="i"), Parallel(loop="i"), Tile(loop="j", size=8)]
    e = explain(kernels.seidel, schedule=(), attempts=steps)
    assert [v.accepted for v in e.verdicts] == [True, False, False, True]
    refused = e.verdicts[1]
    assert (refused.what, refused.error) == ("Reverse(loop='i')", "IllegalSchedule")
    assert refused.question == "dependence"
    assert refused.witness and "A[" in refused.message
    assert e.schedule[1:] == (Tile(loop="j", size=8),)
    assert any("j.o" in line for line in e.after)


def test_interchange_of_a_permutable_nest_is_accepted() -> None:
    e = explain(kernels.seidel, schedule=(), attempts=[Interchange(loops=("j", "i"))])
    assert e.verdicts[-1].accepted
    assert [line.split()[1] for line in e.after if line.lstrip().startswith("for")] == ["j", "i"]


def test_a_refused_schedule_falls_back_to_the_nest_as_written() -> None:
    e = explain(kernels.seidel, schedule=(Reverse(loop="i"),))
    assert [(v.what, v.accepted) for v in e.verdicts] == [
        ("the schedule given", False),
        ("the nest as written", True),
    ]
    assert e.order == "original"
    assert len(e.schedule) == 1 and isinstance(e.schedule[0], Arrange)


@pytest.mark.parametrize("kernel", DRAWN, ids=lambda k: k.name)
def test_the_choice_comes_with_reasons_and_a_proof(kernel: Any) -> None:
    e = explain(kernel, sizes={"N": 500})
    assert e.verdicts[-1].accepted and e.check.seconds
    assert e.reasons and all(r.choice and r.reason for r in e.reasons)
    assert e.order in {p.origin for p in e.orders}
    assert e.after


def test_plain_data_goes_through_json_and_the_schedule_comes_back() -> None:
    e = explain(kernels.jacobi, schedule=kernels.time_skewed(), attempts=[Parallel(loop="t.o")])
    data = json.loads(json.dumps(e.to_dict()))
    assert schedule_from_json(data["schedule"]) == e.schedule
    assert [v["accepted"] for v in data["verdicts"]] == [True, False]
    assert data["verdicts"][1]["witness"]
    assert data["dependences"][0]["witness"]["source"]
    assert data["before"] == list(e.before)


def test_reassociation_is_the_kernels_wish_unless_told() -> None:
    told = explain(kernels.product, schedule=())
    assert told.reassociate
    assert "S0 is a sum over k, in any order (reassociate)" in told.notes
    assert any(r.dependence.is_reduction for r in told.dependences)
    plain = explain(kernels.product, schedule=(), reassociate=False)
    assert not any(r.dependence.is_reduction for r in plain.dependences)


def test_text_is_cut_where_asked() -> None:
    e = explain(kernels.jacobi, schedule=kernels.time_skewed())
    text = explanation_text(e, lines=2)
    assert f"… and {len(e.after) - 2} more lines (--lines 0 shows them)" in text
    assert "more lines" not in explanation_text(e, lines=0)
    assert all(line in explanation_text(e, lines=0) for line in e.after)


def test_sizes_are_the_kernels_own() -> None:
    with pytest.raises(UserError, match="has no size 'Q'; its sizes are T, N"):
        explain(kernels.jacobi, sizes={"Q": 3})
    with pytest.raises(UserError, match="always outside its array"):
        explain(kernels.beyond)


def test_accesses_by_data_are_not_exact() -> None:
    e = explain(kernels.gather, schedule=())
    assert not all(r.dependence.exact for r in e.dependences)
    assert "not exact" in explanation_text(e)
