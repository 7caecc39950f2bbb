"""Temporaries that one variable can hold: a scalar that was given a cell for each iteration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nestor.codegen.c.nest import CIf, CLeaf, CLoop, CNode
from nestor.ir.affine import Affine
from nestor.ir.expr import Load, distinct_nodes
from nestor.ir.program import Program


@dataclass(frozen=True, slots=True)
class _Use:
    """One access: the loops around it, its indices over their variables, and the leaf."""

    loops: tuple[CLoop, ...]
    indices: tuple[Affine, ...] | None
    leaf: CLeaf


def find_scalars(program: Program, nest: tuple[CNode, ...]) -> frozenset[str]:
    """Temporaries with dimensions that need no array.

    One does if all its accesses have the same indices, over variables of loops around all of them,
    and if each iteration of the innermost of the loops that they share writes it before anything
    else: then it is one cell within an iteration, and nothing of it outlives the iteration.
    """
    uses: dict[str, list[_Use]] = {t.name: [] for t in program.by_role("temp") if t.shape}
    for loops, leaf in _leaves(nest, ()):
        for tensor, indices in _accesses(leaf):
            if tensor in uses:
                uses[tensor].append(_Use(loops, indices, leaf))
    return frozenset(name for name, found in uses.items() if found and _is_scalar(name, found))


def _is_scalar(name: str, uses: list[_Use]) -> bool:
    indices = uses[0].indices
    if indices is None or any(u.indices != indices for u in uses):
        return False
    shared = uses[0].loops
    for use in uses:
        same = [a is b for a, b in zip(shared, use.loops, strict=False)]
        shared = shared[: same.index(False) if False in same else len(same)]
    if not shared:
        return False
    around = {loop.variable for loop in shared}
    if any(i.variables() - around for i in indices):
        return False
    return _writes_first(name, shared[-1])


def _writes_first(name: str, loop: CLoop) -> bool:
    """Whether the first node of the body that touches ``name`` is a statement that only writes."""
    for node in loop.body:
        touched = [leaf for _, leaf in _leaves((node,), ()) if name in dict(_accesses(leaf))]
        if touched:
            return isinstance(node, CLeaf) and name not in _reads(node)
    return False


def _leaves(
    nodes: tuple[CNode, ...], loops: tuple[CLoop, ...]
) -> Iterator[tuple[tuple[CLoop, ...], CLeaf]]:
    for node in nodes:
        match node:
            case CLoop():
                yield from _leaves(node.body, (*loops, node))
            case CIf():
                yield from _leaves(node.body, loops)
            case CLeaf():
                yield loops, node


def _reads(leaf: CLeaf) -> set[str]:
    written = [i for w in leaf.statement.writes for i in w.indices if not isinstance(i, Affine)]
    roots = [*leaf.statement.elements, *written]
    return {n.tensor for e in roots for n in distinct_nodes(e) if isinstance(n, Load)}


def _accesses(leaf: CLeaf) -> Iterator[tuple[str, tuple[Affine, ...] | None]]:
    """Tensor and indices over loop variables of each access; None: indices that are data."""
    for write in leaf.statement.writes:
        yield write.tensor, _renamed(write.indices, leaf)
    roots = list(leaf.statement.elements)
    roots += [i for w in leaf.statement.writes for i in w.indices if not isinstance(i, Affine)]
    for element in roots:
        for node in distinct_nodes(element):
            if isinstance(node, Load):
                yield node.tensor, _renamed(node.indices, leaf)


def _renamed(indices: tuple[object, ...], leaf: CLeaf) -> tuple[Affine, ...] | None:
    out = []
    for index in indices:
        if not isinstance(index, Affine):
            return None
        out.append(index.substitute(leaf.rename))
    return tuple(out)
