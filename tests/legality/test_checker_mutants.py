"""The tests' own test: a checker with a planted fault is caught by the cases of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from nestor.errors import IllegalSchedule, IRError, LegalityUnknown
from nestor.ir.affine import affine, variable
from nestor.ir.loopnest import Block, Compute, Loop, LoopNest
from nestor.ir.program import Program
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from tests.legality import oracle
from tests.legality.kernels import (
    I64,
    KERNELS,
    add,
    alloc,
    box,
    buffer,
    compute,
    load,
    loop,
    nest_of,
    scatter,
    statement,
    store,
    tensor,
    write,
)
from tests.legality.mutants import MUTANTS, Mutant
from tests.legality.mutations import nodes_of, renamed, replaced
from tests.legality.nests import NESTS
from tests.legality.test_checker_fuzz import ONE_SIDED, random_case

i = variable("i")
Case = tuple[Program, LoopNest, bool]


def special_cases() -> Iterator[Case]:
    """Wrong nests that random damage rarely makes."""
    kernel = Program(
        name="outside",
        tensors=(tensor("X", 6), tensor("Y", 6, role="output")),
        statements=(statement("Y", box(i=6), write("Y", "i"), load("X", i + 1)),),
    )
    yield kernel, apply_schedule(kernel, ()), False
    kernel = Program(
        name="shift",
        tensors=(tensor("A", 6, role="inout"),),
        statements=(statement("S", box(i=5), write("A", "i"), load("A", i + 1)),),
    )
    body = compute("S", "point", {"i": "i"}, store("A", "i"), load("A", i + 1))
    yield kernel, nest_of(kernel, loop("i", 5, body, kind="parallel")), False
    yield kernel, nest_of(kernel, loop("i", 5, renamed(body, {"i": 4 - i}))), False
    kernel = KERNELS["pipeline"]()
    children = apply_schedule(kernel, ()).body.body
    yield kernel, nest_of(kernel, children[0], children[3], children[2], children[1]), False
    kernel = scatter()
    ids = load("ids", 3 - i, dtype=I64)
    put = compute("A", "point", {"i": 3 - i, "j": "j"}, store("Y", ids, "j"), load("X", 3 - i, "j"))
    yield kernel, nest_of(kernel, loop("i", 4, loop("j", 3, put))), False
    kernel, nest = NESTS["staged_state"]()
    copy, *rest = nest.body.body.body.body
    stale = alloc(nest.body.buffers, copy, loop("t", 3, *rest))
    yield kernel, replace(nest, body=stale), False
    two = Program(
        name="two",
        tensors=(tensor("X", 4), tensor("Y", 4, role="output")),
        statements=(
            statement("P", box(i=4), write("Y", "i"), load("X", "i")),
            statement("Q", box(i=4), write("Y", "i"), load("X", affine(3) - i), order=(1,)),
        ),
    )
    yield two, nest_of(two, *reversed(apply_schedule(two, ()).body.body)), False


def damaged_by_hand() -> Iterator[Case]:
    """Hand-made nests with one precise fault each."""
    kernel, nest = NESTS["reused_accumulator"]()
    init, update, final = nest.body.body.body.body
    again = replace(update, body=Block(body=(init, update.body)))
    yield kernel, nest_of(kernel, alloc(nest.body.buffers, loop("i", 3, init, again, final))), False
    kernel, nest = NESTS["split_sum"]()
    for path, node in nodes_of(nest.body):
        if isinstance(node, Loop) and getattr(node.body, "phase", "") == "merge":
            twice = replaced(nest.body, path, lambda n: Block(body=(n, n)))
            yield kernel, replace(nest, body=twice), False
    kernel, nest = NESTS["rewritten_temp"]()
    p, y, q, z = nest.body.body.body.body
    other = replace(q, stores=(store("other"),))
    buffers = (*nest.body.body.buffers, buffer("other", "A"))
    body = loop("i", 4, alloc(buffers, p, y, other, z))
    yield kernel, replace(nest, body=body), False
    kernel, nest = NESTS["ring_buffer"]()
    for path, node in nodes_of(nest.body):
        if isinstance(node, Compute) and node.statement == "Y":
            bare = replace(node, values=(add(load("ring", i % 2), load("ring", (i - 1) % 2)),))
            yield kernel, replace(nest, body=replaced(nest.body, path, lambda _: bare)), False  # noqa: B023
    kernel, nest = NESTS["shifted_fusion"]()
    for path, node in nodes_of(nest.body):
        if isinstance(node, Compute) and node.statement == "Y":
            bare = replace(node, values=(add(load("A", i - 1), load("A", i - 2)),))
            yield kernel, replace(nest, body=replaced(nest.body, path, lambda _: bare)), False  # noqa: B023


@cache
def corpus() -> tuple[Case, ...]:
    """Cases with the verdict that enumeration gives."""
    found: list[Case] = [*special_cases(), *damaged_by_hand()]
    for kernel, nest, _ in damaged_by_hand():
        assert oracle.find_violation(kernel, nest) is not None
    for case in range(800):
        made = random_case(11, case)
        if made is None or made[0] in ONE_SIDED:
            continue
        _, kernel, nest = made
        wrong = oracle.find_violation(kernel, nest)
        if wrong is None or wrong.question != "malformed":
            found.append((kernel, nest, wrong is None))
    return tuple(found)


def verdict(kernel: Program, nest: LoopNest) -> bool:
    try:
        check_nest(kernel, nest)
    except (IllegalSchedule, IRError, LegalityUnknown):
        return False
    return True


def judged(kernel: Program, nest: LoopNest) -> bool:
    """The verdict; a fault that crashes is noticed like a refusal."""
    try:
        return verdict(kernel, nest)
    except Exception:
        return False


def test_the_checker_itself_never_accepts_what_is_wrong():
    right = [(kernel, nest) for kernel, nest, is_right in corpus() if is_right]
    wrong = [(kernel, nest) for kernel, nest, is_right in corpus() if not is_right]
    assert len(right) > 200 and len(wrong) > 200
    assert not any(verdict(*case) for case in wrong)
    assert sum(verdict(*case) for case in right) >= 0.97 * len(right)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_planted_fault_is_caught(mutant: Mutant, monkeypatch):
    for owner, name, new in mutant.patches():
        assert hasattr(owner, name)
        monkeypatch.setattr(owner, name, new)
    if not all(judged(*make()) for make in NESTS.values()):
        return  # the nests that must be accepted are not
    for kernel, nest, is_right in corpus():
        if not is_right and judged(kernel, nest):
            return
    pytest.fail("no case notices this fault")
