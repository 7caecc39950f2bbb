"""Faults planted in checker, nest builder and code generator are noticed by the affine cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nestor.ir.affine import Affine
from nestor.ir.loopnest import Guard, Node
from nestor.passes import index_set_splitting, lane_sums
from nestor.passes.polyhedral import affine_nest, checker, dependences, isl_ast
from tests.fuzz import affine_harness
from tests.fuzz.affine_harness import AffineCounts
from tests.fuzz.harness import Failure
from tests.fuzz.test_fuzz_affine import make_case

CASES = 300


def without(*questions: str) -> Any:
    """The checker's questions except these."""
    return tuple(q for q in checker.QUESTIONS if q[0] not in questions)


def early_end(found: tuple[str, Affine | None]) -> tuple[str, Affine | None]:
    side, value = found
    return (side, value - 1) if side == "end" and value is not None else found


def after(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """``function`` with a changed result."""
    return lambda *arguments, **named: change(function(*arguments, **named))


def unguarded(node: Node | None) -> Node | None:
    return node.body if isinstance(node, Guard) and node.orelse is None else node


FAULTS: dict[str, tuple[object, str, object]] = {
    "checker: no dependences": (checker, "QUESTIONS", without("dependence")),
    "checker: no races": (checker, "QUESTIONS", without("race")),
    "checker: no promotions": (checker, "QUESTIONS", without("promotion", "buffer")),
    "checker: all pairs are in order": (dependences, "runs_in_program_order", lambda *_: True),
    "builder: pieces end early": (
        index_set_splitting, "_cut", after(index_set_splitting._cut, early_end),
    ),
    "builder: conditions are dropped": (
        isl_ast, "_one_guard", after(isl_ast._one_guard, unguarded),
    ),
    "builder: every tile is whole": (
        affine_nest._Tile, "_can_fail", lambda *_: False,
    ),
    "builder: lanes start with nothing": (
        lane_sums, "_nest",
        after(lane_sums._nest, lambda n: replace(n, upper=tuple(u - 1 for u in n.upper))),
    ),
}  # fmt: skip


def first_failure() -> Failure | None:
    """What the first of the cases that fails says."""
    counts = AffineCounts()
    for seed in range(CASES):
        case, candidate, _ = make_case(seed)
        try:
            affine_harness.check_affine_case(case, candidate, counts, native=False)
        except Failure as failure:
            return failure
    return None


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, value = FAULTS[name]
    monkeypatch.setattr(owner, attribute, value)
    failure = first_failure()
    assert failure is not None
    wanted = {"builder"} if name.startswith("builder") else {"enumeration"}
    assert failure.kind in wanted, str(failure)
