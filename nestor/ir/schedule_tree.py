"""Schedule trees: in which order the statement instances of an affine kernel run, as data.

A *band* gives each statement below it one affine value a loop; instances run in the lexicographic
order of these values. A *sequence* runs its children one after the other, within each iteration of
the bands around. The leaves are the statements. isl's proposals have this form, and a Program's own
order is one such tree. Source: Grosser, Verdoolaege, Cohen, Polyhedral AST Generation Is More Than
Scanning Polyhedra, TOPLAS 2015.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union

from nestor.errors import IRError
from nestor.ir.affine import Affine


@dataclass(frozen=True, slots=True, kw_only=True)
class BandLoop:
    """One loop: ``rows`` maps each statement below it to its value there.

    A value is quasi-affine in the statement's domain indices and the program's symbols. ``name`` is
    unique in the tree; schedule steps address the loop by it.
    """

    name: str
    rows: tuple[tuple[str, Affine], ...]

    def row(self, statement: str) -> Affine:
        """The value of ``statement``; KeyError if it is not below this loop."""
        return dict(self.rows)[statement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """``loops``, outermost first, around ``child``.

    ``permutable``: any order of the loops is legal, and tiles of them are. A claim for heuristics:
    nothing relies on it for correctness.
    """

    loops: tuple[BandLoop, ...]
    child: Tree
    permutable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """``children`` one after the other."""

    children: tuple[Tree, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """The instances of one statement that the bands above do not tell apart: unordered."""

    statement: str


Tree = Union[Band, Sequence, Leaf]


def tree_statements(tree: Tree) -> tuple[str, ...]:
    """Names of the statements below ``tree``, in order."""
    match tree:
        case Leaf():
            return (tree.statement,)
        case Band():
            return tree_statements(tree.child)
        case Sequence():
            return tuple(s for child in tree.children for s in tree_statements(child))


def tree_bands(tree: Tree) -> Iterator[Band]:
    """Every band, outer ones first."""
    match tree:
        case Band():
            yield tree
            yield from tree_bands(tree.child)
        case Sequence():
            for child in tree.children:
                yield from tree_bands(child)


def print_tree(tree: Tree, indent: int = 0) -> str:
    """Indented text for people."""
    pad = "  " * indent
    match tree:
        case Leaf():
            return f"{pad}{tree.statement}"
        case Band():
            tail = "  # permutable" if tree.permutable else ""
            lines = [
                f"{pad}{loop.name}: " + ", ".join(f"{s} at {row}" for s, row in loop.rows) + tail
                for loop in tree.loops
            ]
            return "\n".join([*lines, print_tree(tree.child, indent + 1)])
        case Sequence():
            return "\n".join(
                [f"{pad}sequence", *(print_tree(child, indent + 1) for child in tree.children)]
            )


def tree_to_json(tree: Tree) -> dict[str, Any]:
    """Plain data; affine values as text."""
    match tree:
        case Leaf():
            return {"leaf": tree.statement}
        case Band():
            loops = [
                {"name": loop.name, "rows": {s: str(row) for s, row in loop.rows}}
                for loop in tree.loops
            ]
            return {
                "band": loops,
                "permutable": tree.permutable,
                "child": tree_to_json(tree.child),
            }
        case Sequence():
            return {"sequence": [tree_to_json(child) for child in tree.children]}


def tree_from_json(data: dict[str, Any]) -> Tree:
    """Inverse of ``tree_to_json``. Raises: ``IRError`` for anything else."""
    from nestor.ir.parser import parse_affine

    try:
        if "leaf" in data:
            return Leaf(statement=data["leaf"])
        if "sequence" in data:
            return Sequence(children=tuple(tree_from_json(child) for child in data["sequence"]))
        loops = tuple(
            BandLoop(
                name=item["name"],
                rows=tuple((s, parse_affine(text)) for s, text in item["rows"].items()),
            )
            for item in data["band"]
        )
        child = tree_from_json(data["child"])
    except (KeyError, TypeError, AttributeError) as error:
        raise IRError(f"no schedule tree: {error!r} in {data!r}") from None
    return Band(loops=loops, permutable=bool(data.get("permutable")), child=child)
