"""The dependences of a kernel for people: equal ones together, with the loops that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass, replace
from typing import Any

from nestor.ir.schedule_tree import Band, Leaf, Sequence, Tree, tree_bands
from nestor.passes.affine_facts import AffineFacts, Dependence, dependence_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class DependenceRow:
    """Dependences of the same statements, tensor, kind and distances, by several accesses.

    Attributes:
        number: for references, from 1.
        dependence: the first of them, with its witness.
        accesses: how many there are.
        members: their positions in the analysis' list.
        carried_by: loops of the nest as written that carry it, outer ones first; also empty text
            if some of it holds within an iteration of all these, by the order of the statements.
    """

    number: int
    dependence: Dependence
    accesses: int
    members: tuple[int, ...]
    carried_by: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopRow:
    """A loop of the nest as written: whether it may run in parallel, and the dependences (by
    number) that forbid it."""

    name: str
    statements: tuple[str, ...]
    is_parallel: bool
    carries: tuple[int, ...]


def dependence_rows(facts: AffineFacts) -> tuple[DependenceRow, ...]:
    """The dependences, equal ones together."""
    groups: dict[object, list[int]] = {}
    for position, d in enumerate(facts.dependences):
        key = replace(d, witness=None, is_value_based=False)
        groups.setdefault(key, []).append(position)
    paths = _loop_names(facts.proposals[0].tree, ())
    return tuple(
        DependenceRow(
            number=number,
            dependence=facts.dependences[members[0]],
            accesses=len(members),
            members=tuple(members),
            carried_by=_carriers(facts.dependences[members[0]], paths),
        )
        for number, members in enumerate(groups.values(), start=1)
    )


def _loop_names(tree: Tree, around: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The loops around each statement, outermost first."""
    match tree:
        case Leaf():
            return {tree.statement: around}
        case Band():
            return _loop_names(tree.child, (*around, *(loop.name for loop in tree.loops)))
        case Sequence():
            return {
                s: names
                for child in tree.children
                for s, names in _loop_names(child, around).items()
            }


def _carriers(d: Dependence, paths: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The loops of the nest as written in which source and target may differ first."""
    found = []
    for direction, name in zip(d.directions, paths[d.source]):
        if direction != "=":
            found.append(name)
        if direction in ("<", ">", "!="):
            return tuple(found)
    return (*found, "")


def loop_rows(facts: AffineFacts, rows: List[DependenceRow]) -> tuple[LoopRow, ...]:
    """The loops of the nest as written, each with the ``rows`` that it carries."""
    order = facts.proposals[0]
    by_member = {m: row for row in rows for m in row.members}
    out = []
    for band, about in zip(tree_bands(order.tree), order.bands):
        for k, loop in enumerate(band.loops):
            carried = about.carried(loop.name, about.loops[:k])
            found = {r.number: r for v in carried if (r := by_member.get(v.dependence))}
            # A flow that carries no value across the loop is behind one of the others.
            telling = [n for n, r in found.items() if loop.name in r.carried_by]
            statements = tuple(s for s, _ in loop.rows)
            out.append(
                LoopRow(
                    name=loop.name,
                    statements=statements,
                    is_parallel=not carried,
                    carries=tuple(sorted(telling or found)),
                )
            )
    return tuple(out)


def row_to_dict(row: DependenceRow) -> dict[str, Any]:
    """``row`` as plain data for JSON."""
    out = {"number": row.number, **dependence_to_json(row.dependence)}
    return out | {"accesses": row.accesses, "carried_by": list(row.carried_by)}
