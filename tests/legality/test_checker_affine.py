"""The checker against enumeration: nests of random affine programs, arranged at random, damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from nestor.errors import IllegalSchedule, IRError, LegalityUnknown, UserError
from nestor.ir.loopnest import LoopNest
from nestor.ir.verifier import verify_nest
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest, dependences
from tests.fuzz.affine_programs import random_affine_case
from tests.fuzz.affine_schedules import random_tree_schedule
from tests.fuzz.generate_programs import Case
from tests.legality import oracle
from tests.legality.confirm import confirm
from tests.legality.mutations import mutate

CASES = 400


def random_nests(seed: int, count: int) -> Iterator[tuple[int, Case, LoopNest]]:
    """Nests that may be right: of random schedules, most of them damaged once or twice."""
    for number in range(count):
        rng = Random(f"{seed}/affine nest/{number}")
        case = random_affine_case(7_000_000 + seed * 1_000_000 + number)
        schedule, _, _ = random_tree_schedule(case.program, f"{seed}/{number}")
        try:
            nest = apply_schedule(case.program, schedule)
            for _ in range(rng.choice([0, 1, 1, 2])):
                nest = mutate(nest, rng) or nest
            verify_nest(nest)
        except UserError:
            continue
        oracle.forget()
        yield number, case, nest


def sizes(case: Case) -> list[dict[str, int]]:
    """The case's own, smallest and in between: a nest may be wrong at one of them only."""
    found = [case.symbols, dict.fromkeys(case.symbols, 1), dict.fromkeys(case.symbols, 2)]
    return [s for k, s in enumerate(found) if s not in found[:k]]


def test_checker_and_enumeration_agree(fuzz_seed: int) -> None:
    """Nothing wrong is accepted; what is refused is wrong, or breaks a dependence in vain."""
    verdicts: Counter[str] = Counter()
    for number, case, nest in random_nests(fuzz_seed, CASES):
        wrong = [oracle.find_violation(case.program, nest, s) for s in sizes(case)]
        is_wrong = any(w is not None for w in wrong)
        try:
            check_nest(case.program, nest)
        except IllegalSchedule as refusal:
            verdicts["refused"] += 1
            verdicts[refusal.question] += 1
            if not any(w is not None and w.question == "malformed" for w in wrong):
                confirm(case.program, nest, refusal)
            at = refusal.witness.get("a", {}).get("symbols", {})  # type: ignore[attr-defined]
            if not is_wrong and oracle.find_violation(case.program, nest, at) is None:
                is_real = refusal.witness.get("kind") in ("order", "stale")
                verdicts["in vain" if is_real else "refused though right"] += 1
        except (IRError, LegalityUnknown) as refusal:
            verdicts[type(refusal).__name__] += 1
        else:
            assert not is_wrong, f"case {number} of seed {fuzz_seed} is accepted: {wrong}"
            verdicts["accepted"] += 1
    assert verdicts["accepted"] >= 0.15 * CASES, verdicts
    assert verdicts["refused though right"] <= max(2, 0.02 * verdicts["refused"]), verdicts
    assert verdicts["LegalityUnknown"] <= 0.02 * CASES, verdicts
    for question in ("value", "coverage", "dependence", "bounds"):
        assert verdicts[question] >= 2, verdicts


def test_the_order_that_is_read_off_is_the_order_that_isl_finds(
    fuzz_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the shortcut for pairs in the Program's order, every verdict is the same."""
    shortcut = dependences.runs_in_program_order
    taken: Counter[bool] = Counter()

    def counted(*arguments: object) -> bool:
        found = shortcut(*arguments)  # type: ignore[arg-type]
        taken[found] += 1
        return found

    for number, case, nest in random_nests(fuzz_seed + 1, CASES // 2):
        monkeypatch.setattr(dependences, "runs_in_program_order", counted)
        quick = verdict(case, nest)
        monkeypatch.setattr(dependences, "runs_in_program_order", lambda *_: False)
        assert verdict(case, nest) == quick, f"case {number} of seed {fuzz_seed + 1}"
    assert min(taken[True], taken[False]) >= 50


def verdict(case: Case, nest: LoopNest) -> str:
    """What the checker says, in a word."""
    try:
        check_nest(case.program, nest)
    except IllegalSchedule as refusal:
        return refusal.question
    except (IRError, LegalityUnknown) as refusal:
        return type(refusal).__name__
    return "accepted"
