"""Ask for schedule proposals in the helper process (``isl_helper``).

isl's scheduler has no limit of its own: the helper is killed when its time is up; what it had
finished by then is kept.
"""

from __future__ import annotations

import json
import time

from nestor.errors import NestorError
from nestor.ir.printer import print_program
from nestor.ir.program import Program
from nestor.isl_helper import Unanswered, shared_helper
from nestor.passes.affine_facts import AffineFacts, dependence_from_json, proposal_from_json
from nestor.workers import default_worker_count

LIMIT_SECONDS = 3.0
RESTART_SECONDS = 1.0
"""With less time left, a helper that was ended is not started again."""

STRATEGY_SHARE = 0.6
"""Of the time that is left, how much one strategy may use."""


def propose(program: Program, *, limit_seconds: float = LIMIT_SECONDS) -> AffineFacts:
    """Dependences of an affine kernel and the orders that isl proposes for it.

    Args: limit_seconds: for all of isl's work together [s]; past it, what is finished is returned.
    Returns: the nest as written is always the first proposal. ``unfinished`` says what is missing.
    Raises: ``UserError`` for a program that has no loops of its own (an extern).
    """
    from nestor.passes.polyhedral.proposals import (
        DEPENDENCES,
        ORIGINAL,
        STRATEGIES,
        Collector,
        propose_here,
    )

    if default_worker_count() == 0:
        return propose_here(program, limit_seconds=limit_seconds)
    collected = Collector(program, limit_seconds)
    text = print_program(program)
    helper = shared_helper()
    with helper.lock:
        if not helper.start():
            return propose_here(program, limit_seconds=limit_seconds)
        deadline = time.monotonic() + limit_seconds
        for strategy in (ORIGINAL, DEPENDENCES, *STRATEGIES):
            left = deadline - time.monotonic()
            may_start = left > RESTART_SECONDS
            if left <= 0 or not (helper.is_alive() or (may_start and helper.start())):
                collected.give_up(strategy)
                continue
            # Later strategies shall have a chance; the nest as written takes what it needs.
            share = left if strategy == ORIGINAL else left * STRATEGY_SHARE
            job = {"program": text, "strategy": strategy, "seconds": share * STRATEGY_SHARE}
            try:
                answer = json.loads(helper.ask("polyhedral", json.dumps(job).encode(), share))
            except (Unanswered, NestorError) as error:
                collected.give_up(strategy, error)
                continue
            if strategy == DEPENDENCES:
                collected.dependences = tuple(map(dependence_from_json, answer))
            else:
                collected.add(proposal_from_json(answer))
    return collected.facts()
