"""Planted faults in the checker: each makes it forget something, each must be caught.

A mutant replaces functions of the checker (``monkeypatch.setattr``) and names cases that the mutant
accepts although they are wrong, or refuses although they are right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nestor.passes.polyhedral import (
    accumulators,
    bounds,
    buffers,
    coverage,
    dependences,
    isl_util,
    model,
    races,
    values,
)

Patch = tuple[Any, str, Any]


@dataclass(frozen=True)
class Mutant:
    """A fault, by name, and what it replaces."""

    name: str
    patches: Callable[[], list[Patch]]


def _nothing(*_: object, **__: object) -> None:
    return None


def _skip(owner: Any, name: str) -> Callable[[], list[Patch]]:
    return lambda: [(owner, name, _nothing)]


def _no_anti() -> list[Patch]:
    real = dependences._check_pair

    def check(m: Any, session: Any, write: Any, other: Any) -> None:
        if other.is_write:
            real(m, session, write, other)

    return [(dependences, "_check_pair", check)]


def _no_output() -> list[Patch]:
    real = dependences._check_pair

    def check(m: Any, session: Any, write: Any, other: Any) -> None:
        if not other.is_write:
            real(m, session, write, other)

    return [(dependences, "_check_pair", check)]


def _vector_is_serial() -> list[Patch]:
    return [(races, "CONCURRENT", ("parallel", "grid"))]


def _parallel_is_serial() -> list[Patch]:
    return [(races, "CONCURRENT", ("vector", "grid"))]


def _merge_in_threads() -> list[Patch]:
    return [(races, "_combines_lanes", lambda a, level: True)]


def _private_everything() -> list[Patch]:
    """Race checks start below the innermost loop of buffers."""
    real = races._check_pair

    def check(m: Any, session: Any, a: Any, b: Any) -> None:
        if not a.place.is_buffer:
            real(m, session, a, b)

    return [(races, "_check_pair", check)]


def _first_level_only() -> list[Patch]:
    """Order is looked at in the outermost loop alone."""
    real = isl_util.pairs_by_level

    def levels(rel: Any, shared: int, start: int, *, ascending: bool) -> Any:
        for level, pairs in real(rel, shared, start, ascending=ascending):
            if level == start:
                yield level, pairs

    return [(dependences, "pairs_by_level", levels)]


def _any_exec() -> list[Patch]:
    """A buffer is taken to live for ever: executions of its Alloc are not told apart."""
    real = model._buffer_place

    def place(buffer: Any, uid: int, depth: int) -> Any:
        return real(buffer, uid, 0)

    return [(model, "_buffer_place", place)]


def _one_element() -> list[Patch]:
    return [(buffers, "_holds_one_element", lambda *_: True)]


def _written_once() -> list[Patch]:
    always = lambda *_: True  # noqa: E731
    return [(owner, "written_once", always) for owner in (buffers, dependences, races)]


def _no_stale() -> list[Patch]:
    return [(buffers._ReadCheck, "check_not_stale", _nothing)]


def _guards_ignored() -> list[Patch]:
    """Guards and their complements are taken for everything."""

    def visit(self: Any, node: Any, loops: Any, trail: Any, *rest: Any) -> None:
        self.visit(node.body, loops, (*trail, ("at", 0)), *rest)
        if node.orelse is not None:
            self.visit(node.orelse, loops, (*trail, ("at", 1)), *rest)

    return [(model._Walker, "_visit_guard", visit)]


def _static_order_reversed() -> list[Patch]:
    real = model.shared_loops

    def shared(a: Any, b: Any) -> tuple[int, int]:
        loops, static = real(a, b)
        return loops, -static

    owners = (accumulators, buffers, dependences)
    return [(owner, "shared_loops", shared) for owner in owners]


def _same_always() -> list[Patch]:
    return [(values._SiteCheck, "same", _nothing)]


def _aliases_ignored() -> list[Patch]:
    return [(model.Model, "alias_root", lambda self, tensor: tensor)]


def _scatter_unordered() -> list[Patch]:
    order = property(lambda self: self.statement.order)
    return [(model.StatementInfo, "sequence", order), (dependences, "_check_unordered", _nothing)]


STATE = accumulators._StateCheck

MUTANTS = (
    Mutant("expressions are not compared", _skip(values._SiteCheck, "match")),
    Mutant("indices are not compared", _same_always),
    Mutant("predicates are not compared", _skip(values._SiteCheck, "_same_predicate")),
    Mutant("coverage is not checked", lambda: [(coverage, "_check_phase", _nothing)]),
    Mutant("bounds of buffers are not checked", _skip(bounds, "_check_buffer")),
    Mutant("bounds of tensors are not checked", _skip(bounds, "_check_statement")),
    Mutant("anti and flow dependences are ignored", _no_anti),
    Mutant("output dependences are ignored", _no_output),
    Mutant("only the outermost loop orders", _first_level_only),
    Mutant("self conflicts are ignored", _skip(dependences, "_check_unordered")),
    Mutant("vector loops carry anything", _vector_is_serial),
    Mutant("parallel loops carry anything", _parallel_is_serial),
    Mutant("merges in threads", _merge_in_threads),
    Mutant("buffers do not race", _private_everything),
    Mutant("executions of an Alloc are one", _any_exec),
    Mutant("cells hold one element", _one_element),
    Mutant("tensors are written once", _written_once),
    Mutant("copies never go stale", _no_stale),
    Mutant("reads need no write", _skip(buffers._ReadCheck, "check_written")),
    Mutant("guards are ignored", _guards_ignored),
    Mutant("children run backwards", _static_order_reversed),
    Mutant("states need no start", _skip(STATE, "_check_started")),
    Mutant("states may start again", _skip(STATE, "_check_restarts")),
    Mutant("states need no sink", _skip(STATE, "_check_sinks")),
    Mutant("partial states merge at will", _skip(STATE, "_check_partials")),
    Mutant("lives may overlap", _skip(STATE, "_check_lives")),
    Mutant("order of scans is free", _skip(STATE, "_check_order")),
    Mutant("aliases are ignored", _aliases_ignored),
    Mutant("scatters are unordered", _scatter_unordered),
)
