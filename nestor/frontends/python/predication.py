"""Branches on data → assignments that keep the old value where the condition fails.

Rewrite: ``if c: A[i] = e`` → ``A[i] = e if c else A[i]``; a scalar that lives inside the branch
    only is assigned in any case.
Source: Allen, Kennedy, Porterfield and Warren, "Conversion of control dependence to data
dependence", POPL 1983.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nestor.frontends.python.scalars import Life
from nestor.frontends.python.tree import Assign, Branch, Loop, Node, scalars_read, surely_runs
from nestor.ir.expr import Binary, Expr, Load, Select, Unary, Var, const
from nestor.ir.types import DType

Side = tuple[int, bool]
"""A branch on data (by ``id``), and whether its ``then`` side."""


def predicate_branches(nodes: list[Node], lives: list[Life]) -> list[Node]:
    """``nodes`` without branches on data."""
    return _Predication(nodes, lives).block(nodes, (), (), set())


class _Predication:
    """``homes``: the sides of branches on data that hold all of a scalar's life."""

    def __init__(self, nodes: list[Node], lives: list[Life]) -> None:
        self.types = {life.name: life.dtype for life in lives}
        self.homes: dict[str, tuple[Side, ...]] = {}
        for name, sides in _mentions(nodes, ()):
            known = self.homes.get(name)
            self.homes[name] = sides if known is None else _common(known, sides)

    def block(
        self,
        nodes: Sequence[Node],
        sides: tuple[Side, ...],
        tests: tuple[Expr, ...],
        assigned: set[str],
    ) -> list[Node]:
        """Rewrite a block.

        Args: sides, tests: the branches on data around, and what must hold in each.
            assigned: scalars that surely have a value here; updated.
        """
        out: list[Node] = []
        for node in nodes:
            match node:
                case Assign():
                    self._assign(node, tests)
                    if node.is_scalar:
                        assigned.add(node.target)
                    out.append(node)
                case Loop():
                    inside = set(assigned)
                    node.body = self.block(node.body, sides, tests, inside)
                    if surely_runs(node):
                        assigned |= inside
                    out.append(node)
                case Branch(test=None):
                    first, second = set(assigned), set(assigned)
                    node.then = self.block(node.then, sides, tests, first)
                    node.otherwise = self.block(node.otherwise, sides, tests, second)
                    assigned |= first & second
                    out.append(node)
                case Branch():
                    out += self._branch(node, sides, tests, assigned)
        return out

    def _branch(
        self,
        node: Branch,
        sides: tuple[Side, ...],
        tests: tuple[Expr, ...],
        assigned: set[str],
    ) -> list[Node]:
        out = self._first_values(node, len(sides), assigned)
        assert node.test is not None
        holds: Expr = Var(name=node.test, dtype=DType.bool)
        after: list[set[str]] = []
        for block, is_then in ((node.then, True), (node.otherwise, False)):
            test = holds if is_then else Unary(op="not", x=holds)
            known = set(assigned)
            out += self.block(block, (*sides, (id(node), is_then)), (*tests, test), known)
            after.append(known)
        assigned |= after[0] & after[1]
        return out

    def _first_values(self, node: Branch, depth: int, assigned: set[str]) -> list[Node]:
        """Scalars that outlive the branch and have no value yet get one, which nothing reads:
        whatever reads them later comes after an assignment on every path."""
        out: list[Node] = []
        for side in (node.then, node.otherwise):
            for name, at in _assigned_scalars(side):
                if name not in assigned and len(self.homes[name]) <= depth:
                    assigned.add(name)
                    zero = const(0, self.types[name])
                    out.append(Assign(name, None, zero, at.source, at.at))
        return out

    def _assign(self, node: Assign, tests: tuple[Expr, ...]) -> None:
        if node.is_scalar:
            tests = tests[len(self.homes[node.target]) :]
        if not tests:
            return
        condition = tests[0]
        for test in tests[1:]:
            condition = Binary(op="and", a=condition, b=test)
        dtype = node.value.dtype
        old: Expr = Var(name=node.target, dtype=dtype)
        if node.indices is not None:
            old = Load(tensor=node.target, indices=node.indices, dtype=dtype)
        node.value = Select(condition=condition, a=node.value, b=old)


def _mentions(
    nodes: Sequence[Node], sides: tuple[Side, ...]
) -> Iterator[tuple[str, tuple[Side, ...]]]:
    """Every mention of a scalar, and the sides of branches on data around it."""
    for node in nodes:
        match node:
            case Assign():
                names = scalars_read(node) | ({node.target} if node.is_scalar else set())
                yield from ((name, sides) for name in names)
            case Loop():
                yield from _mentions(node.body, sides)
            case Branch():
                if node.test is not None:
                    yield node.test, sides
                for block, is_then in ((node.then, True), (node.otherwise, False)):
                    inner = sides if node.test is None else (*sides, (id(node), is_then))
                    yield from _mentions(block, inner)


def _assigned_scalars(nodes: Sequence[Node]) -> Iterator[tuple[str, Assign]]:
    for node in nodes:
        match node:
            case Assign():
                if node.is_scalar:
                    yield node.target, node
            case Loop():
                yield from _assigned_scalars(node.body)
            case Branch():
                yield from _assigned_scalars(node.then)
                yield from _assigned_scalars(node.otherwise)


def _common(a: tuple[Side, ...], b: tuple[Side, ...]) -> tuple[Side, ...]:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return a[:count]
