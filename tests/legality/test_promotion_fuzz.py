"""Promoted nests with random damage: what the checker accepts, enumeration finds right."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from nestor.errors import IllegalSchedule, IRError, LegalityUnknown
from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, Load, map_expr
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node, Store
from nestor.passes.polyhedral import check_nest
from tests.legality import oracle
from tests.legality.confirm import confirm
from tests.legality.mutations import mutate, nodes_of, replaced
from tests.legality.promoted import PROMOTED

CASES = 400


def transfer_of(node: Node) -> str:
    """``copy`` or ``writeback`` if that is all that ``node`` does."""
    while isinstance(node, (Loop, Guard)):
        node = node.body
    return node.phase if isinstance(node, Compute) and node.phase in ("copy", "writeback") else ""


def damage_transfers(nest: LoopNest, rng: Random) -> LoopNest:
    """Drop, repeat or move a copy or writeback."""
    blocks = [
        (path, x)
        for path, x in nodes_of(nest.body)
        if isinstance(x, Block) and any(transfer_of(c) for c in x.body)
    ]
    if not blocks:
        return nest
    path, block = rng.choice(blocks)
    at = rng.choice([k for k, c in enumerate(block.body) if transfer_of(c)])
    rest = [*block.body[:at], *block.body[at + 1 :]]
    times = rng.choice([0, 1, 1, 2])
    for _ in range(times):
        rest.insert(rng.randrange(len(rest) + 1), block.body[at])
    return replace(nest, body=replaced(nest.body, path, lambda _: Block(body=tuple(rest))))


def bypass(nest: LoopNest, rng: Random) -> LoopNest:
    """Send an access of a statement past the buffer, to the element that the cell stands for."""
    allocs = [(p, x) for p, x in nodes_of(nest.body) if isinstance(x, Alloc)]
    if not allocs:
        return nest
    path, alloc = rng.choice(allocs)
    buffer = alloc.buffers[0]
    copies = [x for _, x in nodes_of(alloc) if isinstance(x, Compute) and x.phase == "copy"]
    if not copies:
        return nest
    origin = tuple(
        e - c
        for (_, e), c in zip(copies[0].instance, copies[0].stores[0].indices)
        if isinstance(c, Affine)
    )

    def element(indices: tuple[object, ...]) -> tuple[Affine, ...]:
        return tuple(i + o for i, o in zip(indices, origin) if isinstance(i, Affine))

    def load(e: Expr) -> Expr:
        if isinstance(e, Load) and e.tensor == buffer.name and rng.random() < 0.7:
            return replace(e, tensor=buffer.holds, indices=element(e.indices))
        return e

    spots = [
        p
        for p, x in nodes_of(alloc)
        if isinstance(x, Compute) and x.phase not in ("copy", "writeback")
    ]

    def visit(x: Node) -> Node:
        assert isinstance(x, Compute)
        stores = tuple(
            Store(target=buffer.holds, indices=element(s.indices))
            if s.target == buffer.name and rng.random() < 0.5
            else s
            for s in x.stores
        )
        return replace(x, stores=stores, values=tuple(map_expr(v, load) for v in x.values))

    if not spots:
        return nest
    spot = (*path, *rng.choice(spots))
    return replace(nest, body=replaced(nest.body, spot, visit))


def test_checker_and_oracle_agree(fuzz_seed: int) -> None:
    verdicts: Counter[str] = Counter()
    for case in range(CASES):
        rng = Random(f"{fuzz_seed}/promotion/{case}")
        name = list(PROMOTED)[case % len(PROMOTED)]
        kernel, nest = PROMOTED[name]()
        for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
            damage = rng.choice([damage_transfers, damage_transfers, bypass, mutate, mutate])
            nest = damage(nest, rng) or nest
        wrong = oracle.find_violation(kernel, nest)
        oracle.forget()
        try:
            check_nest(kernel, nest)
        except IllegalSchedule as refusal:
            verdicts["refused"] += 1
            verdicts[refusal.question] += 1
            if wrong is None:
                verdicts["refused though right"] += 1
            if wrong is None or wrong.question != "malformed":
                confirm(kernel, nest, refusal)
        except (IRError, LegalityUnknown) as refusal:
            verdicts[type(refusal).__name__] += 1
        else:
            assert wrong is None, f"case {case} ({name}) of seed {fuzz_seed} is accepted: {wrong}"
            verdicts["accepted"] += 1
    assert verdicts["refused though right"] <= 0.1 * verdicts["refused"], verdicts
    assert verdicts["accepted"] >= 0.05 * CASES, verdicts
    assert verdicts["LegalityUnknown"] <= 0.02 * CASES, verdicts
    for question in ("value", "coverage", "dependence", "buffer"):
        assert verdicts[question] >= 5, verdicts
