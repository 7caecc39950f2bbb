"""Rewrites of a scanned nest: the same computes run in the same order.

A nest is run by enumeration, and the sequence of its computes compared before and after.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest

from nestor.ir import run_nest, run_program, verify_nest
from nestor.ir.affine import Affine, affine
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node
from nestor.ir.program import Program, Symbol
from nestor.ir.schedule import (
    Arrange,
    Interchange,
    Parallel,
    Reverse,
    Schedule,
    SplitReduction,
    Step,
    Tile,
    Unroll,
)
from nestor.passes.accumulations import recognize_accumulations
from nestor.passes.index_set_splitting import split_index_sets
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.passes.polyhedral.order_tree import program_tree
from nestor.passes.polyhedral.pruning import drop_idle
from tests.helpers.affine_programs import affine_program
from tests.legality.mutations import nodes_of

SIZES = (0, 1, 2, 5)
NESTS = 300

Run = tuple[str, tuple[int, ...]]


def trace(node: Node, env: dict[str, int]) -> Iterator[Run]:
    """The computes that run, in order, each with the values of its instance."""
    match node:
        case Compute():
            yield node.statement, tuple(v.evaluate(env) for _, v in node.instance)
        case Block():
            for child in node.body:
                yield from trace(child, env)
        case Alloc():
            yield from trace(node.body, env)
        case Guard():
            holds = all(c.evaluate(env) >= 0 for c in node.conditions)
            side = node.body if holds else node.orelse
            if side is not None:
                yield from trace(side, env)
        case Loop():
            low = max(b.evaluate(env) for b in node.lower)
            high = min(b.evaluate(env) for b in node.upper)
            for value in range(low, high):
                yield from trace(node.body, {**env, node.index: value})


class Maker:
    """Random nests over the symbol N: loops, guards with and without an else, blocks."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(f"nest {seed}")
        self.computes = 0

    def node(self, names: tuple[str, ...], depth: int) -> Node:
        kind = self.rng.choice(("loop", "loop", "guard", "guard", "block", "compute"))
        if depth == 0 or (kind == "compute" and len(names) > 1):
            return self.compute(names)
        if kind == "guard":
            return self.guard(names, depth)
        if kind == "block":
            return Block(body=tuple(self.node(names, depth - 1) for _ in range(2)))
        index = f"i{len(names)}"
        return Loop(
            index=index,
            lower=tuple(self.value(names, 1) for _ in range(self.rng.choice((1, 1, 2)))),
            upper=tuple(self.value(names, 4) for _ in range(self.rng.choice((1, 1, 2)))),
            kind=self.rng.choice(("serial", "serial", "parallel")),
            body=self.node((*names, index), depth - 1),
        )

    def guard(self, names: tuple[str, ...], depth: int) -> Guard:
        count = self.rng.choice((1, 1, 2, 3))
        return Guard(
            conditions=tuple(self.value(names, 2) for _ in range(count)),
            body=self.node(names, depth - 1),
            orelse=self.node(names, depth - 1) if self.rng.random() < 0.5 else None,
        )

    def value(self, names: tuple[str, ...], constant: int) -> Affine:
        out = affine(self.rng.randint(-constant, constant))
        for name in (*names, "N"):
            if self.rng.random() < 0.5:
                out = out + affine(name) * self.rng.choice((-2, -1, 1, 1, 3))
        if names and self.rng.random() < 0.15:
            out = out + (affine(self.rng.choice(names)) + 1) // 2
        return out

    def compute(self, names: tuple[str, ...]) -> Compute:
        self.computes += 1
        return Compute(
            statement=f"S{self.computes}",
            phase="point",
            instance=tuple((f"x{k}", affine(n)) for k, n in enumerate(names)),
            stores=(),
            values=(),
        )


def assert_same_trace(before: Node, after: Node) -> None:
    for n in SIZES:
        assert list(trace(after, {"N": n})) == list(trace(before, {"N": n})), n


def test_splitting_keeps_every_compute_in_its_place() -> None:
    changed = outside = 0
    for seed in range(NESTS):
        nest = Maker(seed).node((), 5)
        made = split_index_sets(nest)
        assert_same_trace(nest, made)
        changed += made != nest
        outside += sum(isinstance(n, Guard) for _, n in nodes_of(made)) < sum(
            isinstance(n, Guard) for _, n in nodes_of(nest)
        )
    assert changed > NESTS // 4 and outside > NESTS // 20


def test_conditions_leave_the_loop() -> None:
    """``for i: if c(N), i ≥ 2, i < N - 1: A else: B`` asks once, and cuts the range in three."""
    i, n = affine("i"), affine("N")
    sides = [
        Compute(statement=s, phase="point", instance=(("i", i),), stores=(), values=())
        for s in "AB"
    ]
    guard = Guard(conditions=(n - 3, i - 2, n - 2 - i), body=sides[0], orelse=sides[1])
    loop = Loop(index="i", lower=(affine(0),), upper=(n,), kind="serial", body=guard)
    made = split_index_sets(loop)
    assert_same_trace(loop, made)
    assert isinstance(made, Guard) and made.conditions == (n - 3,)
    assert isinstance(made.body, Block)
    assert [x.body.statement for x in made.body.body] == ["B", "A", "B"]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["vector", "unroll"])
def test_register_tiles_keep_their_conditions(kind: str) -> None:
    compute = Compute(statement="A", phase="point", instance=(), stores=(), values=())
    guard = Guard(conditions=(affine("N") - 3,), body=compute)
    loop = Loop(index="i", lower=(affine(0),), upper=(affine(4),), kind=kind, body=guard)  # type: ignore[arg-type]
    assert split_index_sets(loop) is loop


def test_pruning_drops_what_never_runs_and_nothing_else() -> None:
    kernel = Program(name="p", symbols=(Symbol(name="N", lower=0),))
    dropped = 0
    for seed in range(NESTS // 2):
        nest = LoopNest(name="p", symbols=kernel.symbols, tensors=(), body=Maker(seed).node((), 5))
        made = drop_idle(kernel, nest)
        assert_same_trace(nest.body, made.body)
        before, after = (
            {n.statement for _, n in nodes_of(x.body) if isinstance(n, Compute)}
            for x in (nest, made)
        )
        ran = {s for n in range(12) for s, _ in trace(nest.body, {"N": n})}
        assert after == ran
        dropped += len(before - after)
    assert dropped > NESTS // 10


def test_a_nest_of_which_nothing_runs_is_empty() -> None:
    kernel = Program(name="p", symbols=(Symbol(name="N", lower=3),))
    compute = Compute(statement="A", phase="point", instance=(), stores=(), values=())
    guard = Guard(conditions=(-affine("N"),), body=compute)
    nest = LoopNest(name="p", symbols=kernel.symbols, tensors=(), body=guard)
    assert drop_idle(kernel, nest).body == Block(body=())


# ------------------------------------------------------------------------------------ lane sums

LANES: list[tuple[Step, ...]] = [
    (SplitReduction(loop="k", lanes=4),),
    (Tile(loop="k", size=6), SplitReduction(loop="k.i", lanes=4)),
    (Reverse(loop="k"), SplitReduction(loop="k", lanes=3)),
    (SplitReduction(loop="k", lanes=2), Interchange(loops=("k.o", "i"))),
    (Parallel(loop="i"), SplitReduction(loop="k", lanes=4)),
    (Tile(loop="i", size=2), Interchange(loops=("k", "i.i")), SplitReduction(loop="k", lanes=4),
     Interchange(loops=("i.i", "k.i")), Unroll(loop="i.i")),
]  # fmt: skip


def sums(op: str) -> Program:
    """Results over columns below the diagonal, so that tiles are partial, and some rows empty."""
    value = f"{op}(s[i], A[i, k])" if op in ("min", "max") else f"s[i] {op} A[i, k]"
    text = f"for i in 0..N {{ for k in 2..i + M {{ s[i] = {value}; }} }}"
    return affine_program("p", "N M", {"s": "N", "A": "N, N + M"}, text, inputs="A")


def lane_nest(program: Program, steps: tuple[Step, ...]) -> LoopNest:
    schedule: Schedule = (Arrange(tree=program_tree(program)), *steps)
    return apply_schedule(program, schedule)


@pytest.mark.parametrize("op", ["+", "-", "*", "min", "max"])
@pytest.mark.parametrize("steps", LANES, ids=range(len(LANES)))
def test_lanes_sum_to_the_same(op: str, steps: tuple[Step, ...]) -> None:
    program = recognize_accumulations(sums(op))
    nest = lane_nest(program, steps)
    verify_nest(nest)
    check_nest(program, nest)
    merges = [n for _, n in nodes_of(nest.body) if isinstance(n, Compute) and n.phase == "merge"]
    assert merges
    rng = np.random.default_rng(3)
    for n, m in ((1, 1), (1, 9), (5, 1), (6, 4), (9, 13)):
        s, a = rng.integers(1, 3, n) * 1.0, rng.integers(1, 3, (n, n + m)) * 1.0
        a[rng.random(a.shape) < 0.01] = np.inf
        symbols = {"N": n, "M": m}
        want = run_program(sums(op), {"s": s.copy(), "A": a}, symbols)["s"]
        run_nest(nest, {"s": s, "A": a}, symbols)
        np.testing.assert_array_equal(s, want)
