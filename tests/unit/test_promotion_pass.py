"""``promote``: which loops it treats, the code it writes, and what it refuses."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from nestor.errors import UserError
from nestor.ir.affine import Affine, affine, floor_div, modulo
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node, node_children
from nestor.ir.nest_verifier import verify_nest
from nestor.ir.parser import parse_nest
from nestor.ir.printer import print_nest
from nestor.ir.program import Program
from nestor.passes.loop_facts import LoopFacts
from nestor.passes.promotion import promote


def promoted(text: str, tensor: str = "A", loop: str = "k", scope: str = "register") -> LoopNest:
    nest = parse_nest(text)
    kernel = Program(name=nest.name, symbols=nest.symbols, tensors=nest.tensors)
    new = promote(nest, kernel, tensor, loop, scope)  # type: ignore[arg-type]
    verify_nest(new)
    return new


def nodes(node: Node) -> list[Node]:
    return [node, *(x for child in node_children(node) for x in nodes(child))]


def transfers(nest: LoopNest, phase: str) -> list[Compute]:
    return [x for x in nodes(nest.body) if isinstance(x, Compute) and x.phase == phase]


def buffers(nest: LoopNest) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (b.name, tuple(e.const for e in b.shape))
        for x in nodes(nest.body)
        if isinstance(x, Alloc)
        for b in x.buffers
    ]


def around(body: str, head: str = "for k in 0 .. 5", symbols: str = "") -> str:
    return f"""\
nest n{symbols} {{
  inout A: f32[40, 40]
  inout B: f32[40, 40]
  for i in 0 .. 9 {{
    {head} {{
      {body}
    }}
  }}
}}
"""


def point(target: str, value: str, name: str = "S") -> str:
    return f"point {name}(i=i, k=k) {{ {target} = {value} }}"


def test_reads_only_need_no_writeback() -> None:
    nest = promoted(around(point("B[i, k]", "A[i, 3] * B[i, k]")))
    assert buffers(nest) == [("A.k", (1, 1))]
    assert len(transfers(nest, "copy")) == 1 and not transfers(nest, "writeback")


def test_offsets_make_a_box() -> None:
    body = "unroll u in 0 .. 4 { " + point("A[i, 2*u + 3]", "A[i, 2*u + 4] + A[i, 2]") + " }"
    nest = promoted(around(body))
    assert buffers(nest) == [("A.k", (1, 9))]
    update = next(x for x in nodes(nest.body) if isinstance(x, Compute) and x.phase == "point")
    assert update.stores[0].indices == (affine(0), 2 * affine("u") + 1)
    assert len(transfers(nest, "copy")) == 3 and len(transfers(nest, "writeback")) == 1


def test_tiles_that_are_only_read_are_kept_apart() -> None:
    nest = promoted(around(point("B[i, k]", "A[i, 3] * A[3, i]")))
    assert [name for name, _ in buffers(nest)] == ["A.k.2", "A.k"]


def test_every_loop_of_the_name_that_can_be() -> None:
    text = around(point("A[i, 1]", "A[i, 1] + 1.0:f32")).replace(
        "  for i in 0 .. 9 {",
        "  for k in 0 .. 4 { point T(k=k) { A[k, 0] = 0.0:f32 } }\n  for i in 0 .. 9 {",
    )
    assert len(buffers(promoted(text))) == 1


def test_two_tensors_around_one_loop() -> None:
    text = around(
        point("A[i, 1]", "A[i, 1] + B[i, 2]") + point("B[i, 2]", "A[i, 1]", "T"),
        "for k in 0 .. i - 1",
    )
    nest = promoted(text)
    kernel = Program(name=nest.name, tensors=nest.tensors)
    both = promote(nest, kernel, "B", "k", "local")
    verify_nest(both)
    assert buffers(both) == [("A.k", (1, 1)), ("B.k", (1, 1))]
    assert sum(isinstance(x, Guard) for x in nodes(both.body)) == 1
    again = next(x for x in nodes(both.body) if isinstance(x, Alloc))
    assert isinstance(again.body, Block)


def test_guards_of_elements_that_may_be_outside() -> None:
    body = (
        "unroll u in 0 .. 4 { vector v in 0 .. 8 { "
        "if N - 1 - 4*i - u >= 0, k - v >= 0, 40 - N - v >= 0 { "
        + point("A[4*i + u, v + 1]", "A[4*i + u, v + 1] + 1.0:f32")
        + " } } }"
    )
    nest = promoted(around(body, symbols="(N: 1..40)"))
    guards = [x for x in nodes(nest.body) if isinstance(x, Guard)]
    copies = [g for g in guards if isinstance(g.body, Compute) and g.body.phase == "copy"]
    # The condition on ``k`` cannot stand outside of its loop: that tile is copied whole. Row
    # ``4*i + u`` is inside by the condition that stays.
    n, i, u, v = map(affine, "Niuv")
    assert copies[0].conditions == (n - 1 - 4 * i - u, 40 - n - v)


def test_bounds_where_no_condition_is_left() -> None:
    body = (
        "unroll u in 0 .. 8 { if k - u - 5*i >= 0 { "
        + point("A[5*i + u, 0]", "A[5*i + u, 0] + 1.0:f32")
        + " } }"
    )
    nest = promoted(around(body, "for k in 5*i .. 40"))
    (copy,) = [x for x in nodes(nest.body) if isinstance(x, Guard) and isinstance(x.body, Compute)
               and x.body.phase == "copy"]  # fmt: skip
    assert copy.conditions == (39 - 5 * affine("i") - "u",)


def test_a_loop_that_may_be_empty_is_guarded() -> None:
    text = around(point("A[i, 1]", "A[i, 1] + 1.0:f32"), "for k in max(2, i) .. min(5, 2*i + 1)")
    nest = promoted(text)
    guard = next(x for x in nodes(nest.body) if isinstance(x, Guard))
    i = affine("i")
    assert set(guard.conditions) == {2 * i - 2, 4 - i}
    assert isinstance(guard.body, Alloc)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (around(point("A[i, k]", "1.0:f32")), "moves with the loop"),
        (around(point("B[i, 0]", "B[i, k]")), "every access of it moves with the loop"),
        (around(point("A[i, 1]", "A[1, i]") + point("A[1, i]", "0.0:f32", "T")), "several tiles"),
        (
            around("for u in 0 .. 34 { " + point("A[i, u]", "A[i, u] + A[i, 0]") + " }"),
            "what it writes moves with the loop",
        ),
        (
            around("for u in 0 .. 4 { " + point("A[i, u]", "A[i, u] + A[i, k]") + " }"),
            "a serial loop within moves over the tile",
        ),
        (
            around("for u in 0 .. 4 { " + point("A[i + 1, u]", "A[i + 1, u] + A[k, 2]") + " }"),
            "other accesses may meet its elements",
        ),
        (around(point("A[i, 1]", "0.0:f32"), "unroll k in 0 .. 5"), "a unroll loop keeps nothing"),
        (around(point("A[i, 1]", "0.0:f32")).replace("for k", "for m").replace("k=k", "k=m"),
         "there is no such loop"),
    ],
)  # fmt: skip
def test_refusals_say_why(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        promoted(text)


def test_rows_at_the_edge_are_unrolled() -> None:
    body = (
        "for u in 0 .. min(4, N - 4*i) { vector v in 0 .. 8 { "
        + point("A[4*i + u, v + 8]", "A[4*i + u, v + 8] - A[4*i + u, k] * B[k, v]")
        + " } }"
    )
    nest = promoted(around(body, "for k in 0 .. 8", symbols="(N: 1..40)"))
    assert buffers(nest) == [("A.k", (4, 8))]
    rows = [x for x in nodes(nest.body) if isinstance(x, Loop) and x.index == "u"]
    assert [x.kind for x in rows] == ["unroll"] * 3
    # A loop of other rows, which may be in the tile, stays as it is.
    with pytest.raises(UserError, match="moves over the tile"):
        promoted(around(body, "for k in 0 .. 9", symbols="(N: 1..40)"))


def test_local_tiles_extend_over_serial_loops() -> None:
    body = (
        "for m in max(0, 4*i) .. min(N, 4*i + 4) { vector v in 0 .. 8 { "
        + point("B[m, k]", "B[m, k] + A[v, m + 1]")
        + " } }"
    )
    text = around(body, symbols="(N: 1..39)")
    nest = promoted(text, scope="local")
    assert buffers(nest) == [("A.k", (8, 4))]
    update = next(x for x in nodes(nest.body) if isinstance(x, Compute) and x.phase == "point")
    assert "A.k[v, -4*i + m]" in print_nest(nest)
    assert update.stores[0].target == "B"
    (copy,) = [x for x in nodes(nest.body) if isinstance(x, Loop) and x.index == "m"][:1]
    assert copy.upper == (affine("N"), 4 * affine("i") + 4)
    # In registers it does not: a serial loop moves over it.
    with pytest.raises(UserError, match="moves with the loop"):
        promoted(text)


def test_what_is_kept_already_is_not_kept_again() -> None:
    nest = promoted(around("for m in 0 .. 3 { " + point("A[i, 1]", "A[i, 1] + 1.0:f32") + " }"),
                    loop="m")  # fmt: skip
    kernel = Program(name=nest.name, tensors=nest.tensors)
    with pytest.raises(UserError, match="keeps it already"):
        promote(nest, kernel, "A", "k")
    with pytest.raises(UserError, match="no tensor 'X'"):
        promote(nest, kernel, "X", "k")


# What loops and conditions say


def random_affine(rng: Random, names: list[str]) -> Affine:
    value = affine(rng.randrange(-6, 7))
    for name in names:
        if rng.random() < 0.6:
            value = value + affine(name) * rng.choice([-8, -4, -2, -1, 1, 2, 4, 8])
    if names and rng.random() < 0.5:
        inner = affine(rng.choice(names)) * rng.choice([1, 3]) + rng.randrange(9)
        make = rng.choice([floor_div, modulo])
        value = value + make(inner, rng.choice([2, 4, 8])) * rng.choice([-8, -1, 1, 8])
    return value


def test_facts_hold_by_enumeration() -> None:
    """Whatever is claimed holds at each point; and enough is claimed to be of use."""
    rng = Random(0)
    claimed = 0
    empty = Block(body=())
    for _ in range(1500):
        facts = LoopFacts({"N": (1, None)})
        names = ["N"]
        for index in "ij":
            low, high = random_affine(rng, names), random_affine(rng, names)
            loop = Loop(index=index, lower=(low,), upper=(high, affine("N")), kind="serial",
                        body=empty)  # fmt: skip
            facts = facts.inside(loop)
            names.append(index)
        conditions = (random_affine(rng, names),)
        facts = facts.where(conditions)
        value = random_affine(rng, names)
        value = value if rng.random() < 0.5 else value + conditions[0]
        if not facts.is_nonnegative(value):
            continue
        claimed += 1
        for n, i, j in itertools.product(range(1, 7), range(-20, 7), range(-20, 7)):
            env = {"N": n, "i": i, "j": j}
            inside = all(
                all(b.evaluate(env) <= env[x.index] for b in x.lower)
                and all(b.evaluate(env) > env[x.index] for b in x.upper)
                for x in facts.loops
            )
            if inside and all(c.evaluate(env) >= 0 for c in conditions):
                assert value.evaluate(env) >= 0
    assert claimed > 50
