"""Proposed orders keep every dependence; what is said of their loops is what enumeration finds."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from nestor.ir.affine import affine
from nestor.ir.parser import parse_program
from nestor.ir.program import Program
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence, tree_bands
from nestor.passes.affine_facts import AffineFacts, Proposal, proposal_from_json, proposal_to_json
from nestor.passes.polyhedral.dependence_analysis import analyse_dependences
from nestor.passes.polyhedral.proposals import (
    ORIGINAL,
    STRATEGIES,
    Collector,
    plain_proposal,
    propose_here,
    propose_strategy,
)
from nestor.passes.polyhedral.tree_facts import tree_facts
from tests.helpers.affine_programs import KERNELS
from tests.helpers.tree_order import instance_times, values
from tests.legality.test_dependence_analysis import REDUCTION, expected, programs, run

Pair = tuple[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...]]]


def dependent_pairs(program: Program, size: int) -> set[Pair]:
    found = expected(run(program, size))
    return {
        ((a, at), (b, to)) for kind in ("flow", "anti", "output") for a, at, b, to in found[kind]
    }


def assert_kept(program: Program, facts: AffineFacts, size: int) -> None:
    pairs = dependent_pairs(program, size)
    for proposal in facts.proposals:
        assert proposal.is_legal
        times = instance_times(program, proposal.tree, size)
        assert len(set(map(values, times.values()))) == len(times), "two instances at one time"
        assert all(values(times[a]) < values(times[b]) for a, b in pairs), proposal.origin
        assert_signs(program, proposal, size, pairs)


def assert_signs(program: Program, proposal: Proposal, size: int, pairs: set[Pair]) -> None:
    """Every direction vector that occurs is known (more may be: sizes are small here)."""
    times = instance_times(program, proposal.tree, size)
    for band in proposal.bands:
        known = {v.signs for v in band.vectors}
        for a, b in pairs:
            left, right = dict(times[a]), dict(times[b])
            if band.loops[0] not in left or band.loops[0] not in right:
                continue
            around = [step for step, _ in times[a]].index(band.loops[0])
            if times[a][:around] != times[b][:around]:
                continue
            deltas = [right[name] - left[name] for name in band.loops]
            signs = tuple((d > 0) - (d < 0) for d in deltas)
            assert not any(signs) or signs in known


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernels(name: str) -> None:
    program = KERNELS[name]()
    facts = propose_here(program, limit_seconds=60.0)
    assert not facts.unfinished
    assert facts.proposals[0].origin == "original"
    assert_kept(program, facts, 3 if name in ("heat_3d", "fdtd_2d", "seidel_2d") else 4)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_programs(program: Program) -> None:
    assert_kept(program, propose_here(program, limit_seconds=2.0), 3)


def test_proposals_survive_json() -> None:
    for proposal in propose_here(KERNELS["lu"]()).proposals:
        assert proposal_from_json(proposal_to_json(proposal)) == proposal


def test_what_isl_finds_for_the_textbook_cases() -> None:
    found = {p.origin: p for p in propose_here(KERNELS["gemm"]()).proposals}
    apart = found["serialize-sccs"]
    deep = next(b for b in apart.bands if len(b.loops) == 3)
    assert deep.is_permutable()
    assert [deep.is_coincident(x) for x in deep.loops] == [True, True, False]
    assert [v.signs for v in deep.carried("k", ("i.2", "j.2"))] == [(0, 0, 1)] * 3

    skewed = {p.origin: p for p in propose_here(KERNELS["seidel_2d"]()).proposals}
    assert not skewed["original"].bands[0].is_permutable()
    assert skewed["serialize-sccs"].bands[0].is_permutable()

    together = {p.origin: p for p in propose_here(KERNELS["mvt"]()).proposals}
    assert len(list(tree_bands(together["share-reads"].tree))) == 1


def test_an_illegal_tree_is_called_so() -> None:
    program = KERNELS["jacobi_1d"]()
    analysis = analyse_dependences(program)
    loops = tuple(
        BandLoop(name=n, rows=tuple((s, affine(n)) for s in ("S0", "S1"))) for n in ("i", "t")
    )
    tree = Band(loops=loops, child=Sequence(children=(Leaf(statement="S0"), Leaf(statement="S1"))))
    assert not tree_facts(analysis, tree).is_legal


def test_orders_that_a_band_allows() -> None:
    facts = propose_here(KERNELS["seidel_2d"]()).proposals[0].bands[0]
    assert facts.can_order(("t", "i", "j"))
    assert not facts.can_order(("j", "i", "t"))
    assert facts.carried("j", ("t", "i")) and not facts.is_coincident("j")


def test_an_accumulator_may_be_tiled_but_not_shared() -> None:
    proposal = propose_here(parse_program(REDUCTION)).proposals[0]
    band = proposal.band_of("k")
    assert band.is_permutable() and band.can_order(("k",))
    assert not band.is_coincident("k")
    assert all(v.is_reduction for v in band.vectors if v.signs[band.loops.index("k")])


def test_nothing_known_allows_nothing() -> None:
    program = KERNELS["gemm"]()
    plain = plain_proposal(program)
    assert not plain.coincident
    assert not any(b.is_permutable() for b in plain.bands)
    facts = propose_here(program, limit_seconds=0.0)
    assert [p.origin for p in facts.proposals] == ["original"] and facts.unfinished


def test_the_nest_as_written_comes_first_also_where_it_was_given_up() -> None:
    program = KERNELS["gemm"]()
    collected = Collector(program, 1.0)
    collected.give_up(ORIGINAL)
    found = propose_strategy(analyse_dependences(program), "serialize-sccs")
    collected.add(found)
    assert collected.facts().proposals == (plain_proposal(program), found)


def test_every_strategy_is_known_to_isl() -> None:
    from nestor.passes.polyhedral.isl_schedule import OPTIONS

    assert all(set(options) <= {*OPTIONS, "share_reads"} for options in STRATEGIES.values())
