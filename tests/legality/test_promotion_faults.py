"""Promoted buffers: right nests are proved, planted faults are refused with a true witness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nestor.errors import IllegalSchedule, IRError, LegalityUnknown
from nestor.ir.affine import affine
from nestor.ir.expr import Load, map_expr
from nestor.ir.interpreter import run_program
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node
from nestor.ir.nest_interpreter import run_nest
from nestor.ir.nest_verifier import verify_nest
from nestor.ir.parser import parse_nest, parse_program
from nestor.ir.program import Program
from nestor.passes.polyhedral import check_nest, promotions
from tests.legality import oracle, promoted
from tests.legality.judge import accepted, refused
from tests.legality.mutations import nodes_of, replaced
from tests.legality.promoted import PROMOTED

Case = tuple[Program, LoopNest]


def change(nest: LoopNest, wanted: Callable[[Node], bool], f: Callable[[Node], Node]) -> LoopNest:
    """The nest with ``f`` applied to the first node for which ``wanted`` holds."""
    path = next(p for p, x in nodes_of(nest.body) if wanted(x))
    return replace(nest, body=replaced(nest.body, path, f))


def is_phase(phase: str) -> Callable[[Node], bool]:
    return lambda x: isinstance(x, Compute) and x.phase == phase


def is_tile(x: Node) -> bool:
    return isinstance(x, Alloc)


def arranged(nest: LoopNest, *order: int) -> LoopNest:
    """The parts of the first ``Alloc`` (copies, loop, writebacks) in another order."""

    def f(x: Node) -> Node:
        assert isinstance(x, Alloc) and isinstance(x.body, Block)
        return replace(x, body=Block(body=tuple(x.body.body[k] for k in order)))

    return change(nest, is_tile, f)


def past_buffer(nest: LoopNest, phase: str, *indices: object) -> LoopNest:
    """The first load of a buffer in a compute of ``phase`` reads the tensor instead."""

    def f(x: Node) -> Node:
        assert isinstance(x, Compute)
        name = next(
            b.name for _, n in nodes_of(nest.body) if isinstance(n, Alloc) for b in n.buffers
        )

        def one(e):  # type: ignore[no-untyped-def]
            if isinstance(e, Load) and e.tensor == name:
                return replace(e, tensor=name.split(".")[0], indices=tuple(map(affine, indices)))
            return e

        return replace(x, values=tuple(map_expr(v, one) for v in x.values))

    return change(nest, is_phase(phase), f)


# Right ones


@pytest.mark.parametrize("name", PROMOTED)
def test_promoted_nests_are_proved(name: str) -> None:
    kernel, nest = PROMOTED[name]()
    verify_nest(nest)
    accepted(kernel, nest)


@pytest.mark.parametrize("name", PROMOTED)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_promoted_nests_compute_the_same(name: str, seed: int | None) -> None:
    kernel, nest = PROMOTED[name]()
    for n in (1, 4, 7) if kernel.symbols else (1,):
        rng = np.random.default_rng(n)
        symbols = {s.name: n for s in kernel.symbols}
        arrays = {
            t.name: rng.integers(1, 4, [int(d.evaluate(symbols)) for d in t.shape]).astype("f4")
            for t in kernel.tensors
        }
        wanted = run_program(kernel, arrays, symbols, exact=True)
        run_nest(nest, arrays, symbols, order_seed=seed)
        for key, value in wanted.items():
            np.testing.assert_array_equal(arrays[key], value)


# Faults

SMALL: dict[str, Callable[[], Case]] = {n: PROMOTED[n] for n in ("gemm", "sums", "solve", "lu")}


@pytest.mark.parametrize("name", SMALL)
def test_a_missing_copy(name: str) -> None:
    kernel, nest = SMALL[name]()
    refused(kernel, arranged(nest, 1, 2), "buffer", "was not written before")


@pytest.mark.parametrize("name", SMALL)
def test_a_missing_writeback(name: str) -> None:
    kernel, nest = SMALL[name]()
    refused(kernel, arranged(nest, 0, 1), "value", "never written back")


@pytest.mark.parametrize("name", SMALL)
def test_a_writeback_before_the_last_update(name: str) -> None:
    kernel, nest = SMALL[name]()
    refused(kernel, arranged(nest, 0, 2, 1), "buffer", "is not written back after")


def test_a_writeback_within_the_loop_is_no_fault() -> None:
    kernel, nest = promoted.gemm()

    def f(x: Node) -> Node:
        assert isinstance(x, Alloc) and isinstance(x.body, Block)
        copy, loop, back = x.body.body
        assert isinstance(loop, Loop)
        inside = replace(loop, body=Block(body=(loop.body, back)))
        return replace(x, body=Block(body=(copy, inside)))

    accepted(kernel, change(nest, is_tile, f))


def test_a_writeback_of_the_last_but_one_update() -> None:
    """Written back in each step, but before the step's update."""
    kernel, nest = promoted.gemm()

    def f(x: Node) -> Node:
        assert isinstance(x, Alloc) and isinstance(x.body, Block)
        copy, loop, back = x.body.body
        assert isinstance(loop, Loop)
        inside = replace(loop, body=Block(body=(back, loop.body)))
        return replace(x, body=Block(body=(copy, inside)))

    refused(kernel, change(nest, is_tile, f), "buffer", "is not written back after")


def test_a_writeback_of_part_of_the_tile() -> None:
    kernel, nest = promoted.wave()
    loops = [
        x for _, x in nodes_of(nest.body) if isinstance(x, Loop) and is_phase("writeback")(x.body)
    ]
    shorter = change(nest, lambda x: x is loops[0], lambda x: replace(x, upper=(affine(4),)))
    refused(kernel, shorter, "buffer", "is not written back after")


def test_a_writeback_of_what_was_never_there() -> None:
    kernel, nest = promoted.wave()
    writeback = next(x for _, x in nodes_of(nest.body) if is_phase("writeback")(x))
    assert isinstance(writeback, Compute)
    last = replace(
        writeback,
        instance=(("d0", affine("r")), ("d1", affine(7))),
        stores=(replace(writeback.stores[0], indices=(affine("r"), affine(7))),),
        values=(replace(writeback.values[0], indices=(affine(0), affine(6))),),
    )

    def f(x: Node) -> Node:
        assert isinstance(x, Alloc) and isinstance(x.body, Block)
        return replace(x, body=Block(body=(*x.body.body, last)))

    refused(kernel, change(nest, is_tile, f), "buffer")


@pytest.mark.parametrize("phase", ["copy", "writeback"])
def test_a_transfer_of_a_wrong_element(phase: str) -> None:
    kernel, nest = promoted.solve()

    def elsewhere(x: Node) -> Node:
        """All of it consistently: element ``5 - i`` instead of ``i``."""
        assert isinstance(x, Compute)
        other = 5 - affine("i")
        stores = tuple(replace(s, indices=(other,)) if s.target == "x" else s for s in x.stores)
        values_ = tuple(
            replace(v, indices=(other,)) if isinstance(v, Load) and v.tensor == "x" else v
            for v in x.values
        )
        return replace(x, instance=(("d0", other),), stores=stores, values=values_)

    refused(kernel, change(nest, is_phase(phase), elsewhere), "buffer")

    def inconsistent(x: Node) -> Node:
        assert isinstance(x, Compute)
        return replace(x, instance=(("d0", 5 - affine("i")),))

    wrong = change(nest, is_phase(phase), inconsistent)
    with pytest.raises(IllegalSchedule, match="another element of 'x'"):
        check_nest(kernel, wrong)


@pytest.mark.parametrize("phase", ["copy", "writeback"])
def test_a_transfer_of_a_wrong_cell(phase: str) -> None:
    kernel, nest = promoted.gemm()

    def turned(x: Node) -> Node:
        assert isinstance(x, Compute)
        cell = (1 - affine("ii"), affine("jj"))
        stores = tuple(replace(s, indices=cell) if s.target != "C" else s for s in x.stores)
        values_ = tuple(
            replace(v, indices=cell) if isinstance(v, Load) and v.tensor != "C" else v
            for v in x.values
        )
        return replace(x, stores=stores, values=values_)

    refused(kernel, change(nest, is_phase(phase), turned), "buffer")


def test_a_read_past_the_buffer() -> None:
    kernel, nest = promoted.gemm()
    wrong = past_buffer(nest, "point", 2 * affine("io") + "ii", 3 * affine("jo") + "jj")
    refused(kernel, wrong, "buffer", "memory lags behind", "from memory")


def test_a_write_past_the_buffer() -> None:
    kernel, nest = promoted.gemm()

    def f(x: Node) -> Node:
        assert isinstance(x, Compute)
        indices = (2 * affine("io") + "ii", 3 * affine("jo") + "jj")
        return replace(x, stores=(replace(x.stores[0], target="C", indices=indices),))

    refused(kernel, change(nest, is_phase("point"), f), "buffer", "stale")


def test_other_reads_of_the_statement_that_meet_the_tile() -> None:
    """The tiles of ``lu`` on the diagonal: ``A[i, k]`` lies in the tile itself."""
    kernel, nest = promoted.lu()
    loop = next(
        x
        for _, x in nodes_of(nest.body)
        if isinstance(x, Loop) and x.index == "k" and x.kind == "serial"
    )
    # All of the block's steps, also where the tile is in the block's rows or columns.
    first = change(
        nest,
        lambda x: isinstance(x, Guard) and isinstance(x.body, Alloc),
        lambda x: x.body,  # type: ignore[union-attr]
    )
    longer = change(
        first,
        lambda x: x is loop,
        lambda x: replace(x, upper=(2 * affine("ko") + 2,)),
    )
    with pytest.raises(IllegalSchedule):
        check_nest(kernel, longer)
    assert oracle.find_violation(kernel, longer) is not None


def test_a_parallel_loop_inside_that_shares_tiles() -> None:
    """Iterations of a parallel loop that each keep, and write back, the same tile."""
    kernel, nest = promoted.gemm()
    outer = next(x for _, x in nodes_of(nest.body) if isinstance(x, Loop) and x.index == "ko")
    racing = change(nest, lambda x: x is outer, lambda x: replace(x, kind="parallel"))
    refused(kernel, racing, "dependence", "parallel loop 'ko' carries a dependence")


def test_a_writeback_of_elements_that_others_read() -> None:
    """Rows are independent, but a tile with a row more races with its neighbour."""
    kernel = parse_program(
        """\
program rows {
  inout A: f32[4, 3]
  seq i { seq t {
    statement S over { 0 <= i < 4, 0 <= t < 3 }
      A[i, 0] = A[i, 0] + A[i, t]
  } }
}
"""
    )
    text = """\
nest rows {{
  inout A: f32[4, 3]
  parallel i in 0 .. 4 {{
    alloc P: f32[2] register holds A {{
      unroll a in 0 .. {n} {{
        if 3 - i - a >= 0 {{ copy A(d0=i + a, d1=0) {{ P[a] = A[i + a, 0] }} }}
      }}
      point S(i=i, t=0) {{ P[0] = P[0] + P[0] }}
      for t in 1 .. 3 {{ point S(i=i, t=t) {{ P[0] = P[0] + A[i, t] }} }}
      unroll a in 0 .. {n} {{
        if 3 - i - a >= 0 {{ writeback A(d0=i + a, d1=0) {{ A[i + a, 0] = P[a] }} }}
      }}
    }}
  }}
}}
"""
    accepted(kernel, parse_nest(text.format(n=1)))
    refused(kernel, parse_nest(text.format(n=2)), "dependence", "parallel loop 'i'")


def test_rules_of_writebacks() -> None:
    kernel, nest = promoted.solve()
    # What no statement writes must not be written at all.
    text = """\
nest solve {
  inout x: f32[6]
  input L: f32[6, 6]
  alloc P: f32[1] register holds L {
    copy L(d0=0, d1=0) { P[0] = L[0, 0] }
    writeback L(d0=0, d1=0) { L[0, 0] = P[0] }
  }
}
"""
    extra = parse_nest(text)
    both = replace(nest, body=Block(body=(nest.body, extra.body)))
    with pytest.raises(IllegalSchedule, match="which no statement writes"):
        check_nest(kernel, both)

    def to_other(x: Node) -> Node:
        assert isinstance(x, Compute)
        return replace(
            x, values=(Load(tensor="L", indices=(affine(0),) * 2, dtype=nest.tensors[0].dtype),)
        )

    with pytest.raises((IllegalSchedule, IRError)):
        check_nest(kernel, change(nest, is_phase("writeback"), to_other))


def test_tiles_within_tiles_write_back_to_memory() -> None:
    """A buffer written back to a buffer is not understood, and said so."""
    kernel, _ = promoted.solve()
    outer = """\
nest solve {
  inout x: f32[6]
  input L: f32[6, 6]
  alloc Q: f32[6] local holds x {
    for i in 0 .. 6 { copy x(d0=i) { Q[i] = x[i] } }
    for i in 0 .. 6 {
      alloc P: f32[1] register holds x {
        copy x(d0=i) { P[0] = Q[i] }
        for j in 0 .. i { point S(i=i, j=j) { P[0] = P[0] - L[i, j] * Q[j] } }
        writeback x(d0=i) { Q[i] = P[0] }
      }
      point D(i=i) { Q[i] = Q[i] / L[i, i] }
    }
    for i in 0 .. 6 { writeback x(d0=i) { x[i] = Q[i] } }
  }
}
"""
    with pytest.raises(LegalityUnknown, match="written back to the buffer"):
        check_nest(kernel, parse_nest(outer))
    plain = outer.replace("P[0] = Q[i]", "P[0] = x[i]").replace("Q[i] = P[0]", "x[i] = P[0]")
    refused(kernel, parse_nest(plain), "buffer")


# Faults of the checker itself


def _nothing(*_: object, **__: object) -> None:
    return None


def test_a_checker_that_asks_for_no_writeback_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, nest = promoted.gemm()
    wrong = arranged(nest, 0, 2, 1)
    monkeypatch.setattr(promotions._PromotionCheck, "_check_written_back", _nothing)
    check_nest(kernel, wrong)  # accepted: the rule is needed
    assert oracle.find_violation(kernel, wrong) is not None


def test_a_checker_that_trusts_memory_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, nest = promoted.gemm()
    wrong = past_buffer(nest, "point", 2 * affine("io") + "ii", 3 * affine("jo") + "jj")
    monkeypatch.setattr(promotions._PromotionCheck, "_check_memory", _nothing)
    check_nest(kernel, wrong)
    assert oracle.find_violation(kernel, wrong) is not None
