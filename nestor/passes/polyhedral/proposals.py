"""Orders that a kernel's statements may run in: as written, and what isl's scheduler finds.

One strategy is one call of the scheduler, which knows no limit of its own: ``nestor.proposing``
runs this in a helper process that can be ended. ``propose_here`` runs in this process and asks for
the time between strategies only.
"""

from __future__ import annotations

import functools
import json
import time
from typing import Any

from nestor.errors import LegalityUnknown
from nestor.ir.parser import parse_program
from nestor.ir.program import Program
from nestor.ir.schedule_tree import tree_bands
from nestor.passes.affine_facts import (
    AffineFacts,
    BandFacts,
    Dependence,
    DirectionVector,
    Proposal,
    dependence_to_json,
    proposal_to_json,
)
from nestor.passes.polyhedral.dependence_analysis import DependenceAnalysis, analyse_dependences
from nestor.passes.polyhedral.distribution import distribute_tree
from nestor.passes.polyhedral.isl_schedule import compute_tree
from nestor.passes.polyhedral.order_tree import program_tree
from nestor.passes.polyhedral.tree_facts import TreeFacts, tree_facts

DISTRIBUTED = "distributed"

STRATEGIES: dict[str, dict[str, int]] = {
    DISTRIBUTED: {},
    "serialize-sccs": {"serialize_sccs": 1, "maximize_band_depth": 1, "maximize_coincidence": 1},
    "max-fusion": {"whole_component": 1, "maximize_band_depth": 1},
    "incremental": {"maximize_band_depth": 1, "maximize_coincidence": 1},
    "outer-coincidence": {"serialize_sccs": 1, "outer_coincidence": 1, "maximize_coincidence": 1},
    "share-reads": {"whole_component": 1, "maximize_band_depth": 1, "share_reads": 1},
}
"""Options of isl's scheduler, most useful first.

``distributed`` needs none: the loops as written around as few statements as can be.
``serialize-sccs`` distributes all that may be; ``max-fusion`` keeps together all that may be;
``incremental`` fuses where that costs neither band depth nor parallelism; ``outer-coincidence``
wants a parallel outermost loop, without which it starts a new band; ``share-reads`` also brings
together instances that read the same element.
"""

ORIGINAL = "original"
DEPENDENCES = "dependences"
SUMMARY_SHARE = 0.25
"""How much of the time the summaries of dependences may take; they are for people."""


def propose_original(analysis: DependenceAnalysis, *, deadline: float | None = None) -> Proposal:
    """The nest as written."""
    clock = time.monotonic()
    facts = tree_facts(analysis, program_tree(analysis.program), deadline=deadline)
    return _proposal(ORIGINAL, facts, clock)


def propose_strategy(
    analysis: DependenceAnalysis, strategy: str, *, deadline: float | None = None
) -> Proposal:
    """What isl finds with one of ``STRATEGIES``. Raises: ``LegalityUnknown`` if that is nothing."""
    clock = time.monotonic()
    if strategy == DISTRIBUTED:
        tree = distribute_tree(analysis, program_tree(analysis.program))
    else:
        tree = compute_tree(analysis, STRATEGIES[strategy])
    facts = tree_facts(analysis, tree, deadline=deadline)
    return _proposal(strategy, facts, clock)


def _proposal(origin: str, facts: TreeFacts, clock: float) -> Proposal:
    return Proposal(
        tree=facts.tree,
        origin=origin,
        bands=facts.bands,
        is_legal=facts.is_legal,
        seconds=time.monotonic() - clock,
    )


def plain_proposal(program: Program) -> Proposal:
    """The nest as written, of which nothing is known: each band carries what one may fear."""
    tree = program_tree(program)
    bands = []
    for band in tree_bands(tree):
        signs = tuple(-1 for _ in band.loops)
        worst = DirectionVector(signs=signs, dependence=-1)
        bands.append(BandFacts(loops=tuple(x.name for x in band.loops), vectors=(worst,)))
    return Proposal(tree=tree, origin=ORIGINAL, bands=tuple(bands))


def propose_here(program: Program, *, limit_seconds: float = 3.0) -> AffineFacts:
    """All proposals, made in this process, different ones only; the nest as written comes first."""
    deadline = time.monotonic() + limit_seconds
    collected = Collector(program, limit_seconds)
    try:
        analysis = analyse_dependences(program, limit_seconds=limit_seconds)
        collected.add(propose_original(analysis, deadline=deadline))
        collected.dependences = analysis.dependences(limit_seconds=SUMMARY_SHARE * limit_seconds)
    except LegalityUnknown as error:
        collected.give_up(ORIGINAL, error)
        return collected.facts()
    for strategy in STRATEGIES:
        if time.monotonic() > deadline:
            collected.give_up(strategy)
            continue
        try:
            collected.add(propose_strategy(analysis, strategy, deadline=deadline))
        except LegalityUnknown as error:
            collected.give_up(strategy, error)
    return collected.facts()


class Collector:
    """Proposals as they come in: different ones, legal ones, and what was given up."""

    def __init__(self, program: Program, limit_seconds: float):
        self.program = program
        self.limit_seconds = limit_seconds
        self.dependences: tuple[Dependence, ...] = ()
        self._proposals: list[Proposal] = []
        self._unfinished: list[str] = []

    def add(self, proposal: Proposal) -> None:
        """Keep ``proposal`` if it is new."""
        if not proposal.is_legal and proposal.origin != ORIGINAL:
            self._unfinished.append(f"{proposal.origin}: its order breaks a dependence")
        elif all(proposal.tree != p.tree for p in self._proposals):
            self._proposals.append(proposal)

    def give_up(self, what: str, reason: object = None) -> None:
        """Note that ``what`` is missing."""
        limit = f"the limit of {self.limit_seconds:g} s"
        self._unfinished.append(f"{what}: {limit if reason is None else reason}")

    def facts(self) -> AffineFacts:
        """What there is; the nest as written comes first, whatever happened."""
        proposals = self._proposals
        if all(p.origin != ORIGINAL for p in proposals):
            proposals = [plain_proposal(self.program), *proposals]
        return AffineFacts(
            dependences=self.dependences,
            proposals=tuple(proposals),
            unfinished=tuple(self._unfinished),
        )


# The helper process's side


@functools.lru_cache(maxsize=1)
def _analysed(text: str) -> DependenceAnalysis:
    """The analysis of a printed Program; the jobs of one kernel follow each other."""
    return analyse_dependences(parse_program(text))


def run_job(payload: bytes) -> bytes:
    """Kind ``polyhedral``: JSON ``{"program": text, "strategy": name}`` → proposal as JSON.

    Besides ``STRATEGIES`` there are ``original``, and ``dependences``, a list of which is made in
    about ``seconds``.
    """
    job = json.loads(payload)
    strategy = job["strategy"]
    analysis = _analysed(job["program"])
    answer: Any
    if strategy == DEPENDENCES:
        found = analysis.dependences(limit_seconds=job["seconds"])
        answer = [dependence_to_json(d) for d in found]
    elif strategy == ORIGINAL:
        answer = proposal_to_json(propose_original(analysis))
    else:
        answer = proposal_to_json(propose_strategy(analysis, strategy))
    return json.dumps(answer).encode()
