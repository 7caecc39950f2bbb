"""Dependences are those that enumeration finds on small sizes: every one, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import islpy as isl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nestor.errors import LegalityUnknown
from nestor.ir.expr import loads
from nestor.ir.parser import parse_program
from nestor.ir.program import Program, Statement
from nestor.passes.affine_facts import dependence_from_json, dependence_to_json
from nestor.passes.polyhedral.dependence_analysis import (
    DependenceAnalysis,
    Relation,
    analyse_dependences,
)
from tests.helpers.affine_programs import KERNELS, affine_program
from tests.legality.oracle import domain_points

SIZE = 4
Instance = tuple[int, ...]
Pair = tuple[str, Instance, str, Instance]


@dataclass
class Event:
    """One instance in the Program's order, with the elements that it touches."""

    statement: str
    instance: Instance
    reads: list[tuple[str, tuple[int, ...]]]
    writes: list[tuple[str, tuple[int, ...]]]


def run(program: Program, size: int) -> list[Event]:
    """Every instance in order; full orders only, no reductions."""
    symbols = {s.name: size for s in program.symbols}
    keyed = []
    for s in program.statements:
        assert isinstance(s, Statement)
        for env in domain_points(s.domain, symbols):
            key = tuple(x if isinstance(x, int) else env[x] for x in s.order)
            scope = {**symbols, **env}

            def cell(tensor: str, indices: Any, scope: Any = scope) -> Any:
                return tensor, tuple(i.evaluate(scope) for i in indices)

            reads = [cell(x.tensor, x.indices) for e in s.elements for x in loads(e)]
            writes = [cell(w.tensor, w.indices) for w in s.writes]
            instance = tuple(env[n] for n in s.domain.names)
            keyed.append((key, Event(s.name, instance, reads, writes)))
    return [event for _, event in sorted(keyed, key=lambda pair: pair[0])]


def expected(events: list[Event]) -> dict[str, set[Pair]]:
    """Dependent pairs by kind, and ``value``: each read with the last write before it."""
    found: dict[str, set[Pair]] = {"flow": set(), "anti": set(), "output": set(), "value": set()}
    last: dict[Any, Event] = {}
    for at, b in enumerate(events):
        for c in b.reads:
            if c in last:
                a = last[c]
                found["value"].add((a.statement, a.instance, b.statement, b.instance))
        for a in events[:at]:
            pair = (a.statement, a.instance, b.statement, b.instance)
            if {*a.writes} & {*b.reads}:
                found["flow"].add(pair)
            if {*a.reads} & {*b.writes}:
                found["anti"].add(pair)
            if {*a.writes} & {*b.writes}:
                found["output"].add(pair)
        for c in b.writes:
            last[c] = b
    return found


def points_of(relation: Relation, pairs: Any, size: int) -> Iterator[Pair]:
    """The pairs of a map when every symbol is ``size``."""
    for k in range(pairs.dim(isl.dim_type.param)):
        pairs = pairs.fix_val(isl.dim_type.param, k, size)
    split = len(relation.source.points.names)
    seen: list[Any] = []
    pairs.wrap().foreach_point(seen.append)
    for point in seen:
        dims = point.to_set().dim(isl.dim_type.set)
        values = [
            int(point.get_coordinate_val(isl.dim_type.set, k).to_python()) for k in range(dims)
        ]
        yield (
            relation.source.statement.name,
            tuple(values[:split]),
            relation.target.statement.name,
            tuple(values[split:]),
        )


def found_pairs(analysis: DependenceAnalysis, size: int) -> dict[str, set[Pair]]:
    found: dict[str, set[Pair]] = {"flow": set(), "anti": set(), "output": set(), "value": set()}
    for r in analysis.relations:
        found[r.kind] |= set(points_of(r, r.map, size))
        if r.kind == "flow":
            found["value"] |= set(points_of(r, r.map if r.values is None else r.values, size))
    return found


def assert_exact(program: Program, size: int = SIZE, *, must_have_values: bool = False) -> None:
    analysis = analyse_dependences(program)
    assert all(r.exact for r in analysis.relations)
    wanted, found = expected(run(program, size)), found_pairs(analysis, size)
    for kind in ("flow", "anti", "output"):
        assert found[kind] == wanted[kind], kind
    if all(r.values is not None for r in analysis.relations if r.kind == "flow"):
        assert found["value"] == wanted["value"]
    else:  # not cheap: memory-based flow stands in
        assert not must_have_values
        assert found["value"] >= wanted["value"]


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"heat_3d"}))
def test_kernels(name: str) -> None:
    size = 3 if name in ("jacobi_2d", "fdtd_2d", "seidel_2d") else 5
    assert_exact(KERNELS[name](), size, must_have_values=True)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Two or three statements in one to three loops, on one matrix and one vector."""

    def index(scope: list[str]) -> str:
        names = draw(st.lists(st.sampled_from(scope), min_size=0, max_size=2)) if scope else []
        terms = [f"{draw(st.sampled_from([1, 1, 1, 2]))}*{n}" for n in names]
        constant = draw(st.integers(0, 2))
        body = " + ".join([*terms, str(constant)])
        if names and draw(st.integers(0, 5)) == 0:
            body = f"({body})//2" if draw(st.booleans()) else f"({body})%3"
        return body

    def access(scope: list[str]) -> str:
        return f"v[{index(scope)}]" if draw(st.booleans()) else f"m[{index(scope)}, {index(scope)}]"

    def body(scope: list[str], budget: int) -> str:
        parts = []
        for _ in range(draw(st.integers(1, 2))):
            if budget and draw(st.integers(0, 2)):
                name = "ijk"[len(scope)]
                lower = draw(st.sampled_from(["0", "1", *scope]))
                upper = draw(st.sampled_from(["N", "N - 1", *(f"{s} + 2" for s in scope)]))
                inner = body([*scope, name], budget - 1)
                parts.append(f"for {name} in {lower}..{upper} {{ {inner} }}")
            else:
                right = " + ".join(access(scope) for _ in range(draw(st.integers(1, 2))))
                parts.append(f"{access(scope)} = {right};")
        return " ".join(parts)

    return affine_program("random", "N", {"v": "99", "m": "99, 99"}, body([], 3))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_programs(program: Program) -> None:
    assert_exact(program, 3)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_summaries_agree_with_their_maps(program: Program) -> None:
    analysis = analyse_dependences(program)
    for r, d in zip(analysis.relations, analysis.dependences(), strict=True):
        assert dependence_from_json(dependence_to_json(d)) == d
        assert d.witness is not None
        chosen = r.values if d.is_value_based else r.map
        size = max(dict(d.witness.symbols).values(), default=3)
        source = tuple(v for _, v in d.witness.source)
        target = tuple(v for _, v in d.witness.target)
        if size <= 6:
            at = (d.source, source, d.target, target)
            assert at in set(points_of(r, chosen, size))
        names = [r.source.points.names.index(a) for a, _ in d.loops]
        others = [r.target.points.names.index(b) for _, b in d.loops]
        for _, a, _, b in points_of(r, chosen, 3):
            for i, o, direction, distance in zip(names, others, d.directions, d.distances):
                delta = b[o] - a[i]
                sign = "<" if delta > 0 else ">" if delta < 0 else "="
                assert direction == "*" or sign in direction or (direction == "!=" and delta)
                assert distance is None or distance == delta


REDUCTION = """program p(N: 1..) {
  input x: f64[N, N]
  inout u: f64[N]
  inout v: f64[N]
  seq i {
    statement S over { 0 <= i < N, 0 <= k < N }
      reduce sum(f64) over k into
      s0 <- x[i, k]
      u[i] = s0
    statement T over { 0 <= i < N }
      v[i] = u[i]
  }
}"""


def test_updates_of_an_accumulator_are_told_apart() -> None:
    found = analyse_dependences(parse_program(REDUCTION)).dependences()
    own = [d for d in found if d.source == d.target == "S"]
    assert own and all(d.is_reduction for d in own)
    between = [d for d in found if d.source == "S" and d.target == "T"]
    assert [d.kind for d in between] == ["flow"]
    assert not between[0].is_reduction
    assert between[0].loops == (("i", "i"),) and between[0].distances == (0,)


def test_a_loop_shared_with_a_reader_binds_the_updates() -> None:
    text = """program p(N: 1..) {
      input x: f64[N, N]
      inout u: f64[N]
      inout v: f64[N]
      seq k {
        statement S over { 0 <= k < N, 0 <= i < N }
          reduce sum(f64) over k into
          s0 <- x[k, i]
          u[i] = s0
        statement T over { 0 <= k < N }
          v[k] = u[0]
      }
    }"""
    found = analyse_dependences(parse_program(text)).dependences()
    own = [d for d in found if d.source == d.target == "S"]
    assert own and not any(d.is_reduction for d in own)


def test_data_dependent_indices_meet_everything() -> None:
    text = """program p(N: 1..) {
      input b: i64[N]
      inout a: f64[N, N]
      seq i {
        seq j {
          statement S over { 0 <= i < N, 0 <= j < N }
            a[i, j] = a[b[i], j] + 1.0:f64
        }
      }
    }"""
    analysis = analyse_dependences(parse_program(text))
    flow = [d for d in analysis.dependences() if d.kind == "flow"]
    assert [d.exact for d in flow] == [False]
    assert flow[0].directions == ("<", "=")  # any row before, but the same column
    pairs = found_pairs_of(analysis, "flow")
    wanted = {((i, j), (k, j)) for i in range(3) for k in range(i + 1, 3) for j in range(3)}
    assert {(a, b) for _, a, _, b in pairs} == wanted


def found_pairs_of(analysis: DependenceAnalysis, kind: str) -> set[Pair]:
    return {p for r in analysis.relations if r.kind == kind for p in points_of(r, r.map, 3)}


def test_aliases_meet_everywhere() -> None:
    text = """program p(N: 2..) {
      inout a: f64[N]
      inout b: f64[N] alias a
      seq i {
        statement S over { 0 <= i < N }
          b[i] = a[0] + 1.0:f64
      }
    }"""
    found = analyse_dependences(parse_program(text)).dependences()
    assert {(d.kind, d.exact) for d in found} == {("flow", False), ("anti", False)} | {
        ("output", True) for d in found if d.kind == "output"
    }
    assert all(d.directions == ("<",) for d in found)


def test_a_scan_runs_in_order() -> None:
    text = """program p(N: 1..) {
      input x: f64[N]
      output y: f64[N]
      statement S over { 0 <= i < N }
        scan sum(f64) over i
        s0 <- x[i]
        y[i] = s0
    }"""
    found = analyse_dependences(parse_program(text)).dependences()
    assert [(d.kind, d.directions, d.is_reduction) for d in found] == [("flow", ("<",), False)]


def test_the_limit_is_kept() -> None:
    with pytest.raises(LegalityUnknown, match="ran out of time"):
        analyse_dependences(KERNELS["heat_3d"](), limit_seconds=0.0)


def test_text_of_a_dependence() -> None:
    found = [str(d) for d in analyse_dependences(KERNELS["gemm"]()).dependences()]
    assert "flow S1 → S1 on C (i: 0, k: 1, j: 0)" in found
