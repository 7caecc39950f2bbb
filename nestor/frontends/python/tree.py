"""A kernel's body as structured nodes, between Python's syntax tree and statements.

Expressions are those of the IR; a scalar of the kernel is a ``Var`` of its name. Nodes are changed
in place while scalars are resolved.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Union

from nestor.frontends.python.conditions import Dnf
from nestor.frontends.python.source import Source
from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, IndexExpr, Load, Var, distinct_nodes, map_expr


@dataclass(slots=True, eq=False)
class Assign:
    """``target[indices] = value``, or of a scalar (``indices`` None)."""

    target: str
    indices: tuple[IndexExpr, ...] | None
    value: Expr
    source: Source
    at: ast.AST

    @property
    def is_scalar(self) -> bool:
        """Whether the target is a scalar of the kernel."""
        return self.indices is None


@dataclass(slots=True, eq=False)
class Loop:
    """``max(lowers) ≤ index < min(uppers)``, ascending by 1."""

    index: str
    lowers: tuple[Affine, ...]
    uppers: tuple[Affine, ...]
    body: list[Node]
    source: Source
    at: ast.AST


@dataclass(slots=True, eq=False)
class Branch:
    """``then`` where a case of ``condition`` holds, ``otherwise`` where one of ``negation`` does.

    All cases of both exclude each other. With ``test`` the scalar of that name decides instead:
    such branches are gone once ``predication`` has run.
    """

    condition: Dnf
    negation: Dnf
    then: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)
    test: str | None = None


Node = Union[Assign, Loop, Branch]


def surely_runs(loop: Loop) -> bool:
    """Whether a loop has an iteration whatever the sizes are."""
    spans = (upper - lower for upper in loop.uppers for lower in loop.lowers)
    return all(span.is_const and span.const > 0 for span in spans)


def assigns(nodes: list[Node]) -> Iterator[Assign]:
    """Every assignment below ``nodes``, in order."""
    for node in nodes:
        match node:
            case Assign():
                yield node
            case Loop():
                yield from assigns(node.body)
            case Branch():
                yield from assigns(node.then)
                yield from assigns(node.otherwise)


def branches(nodes: list[Node]) -> Iterator[Branch]:
    """Every branch below ``nodes``, outer ones first."""
    for node in nodes:
        match node:
            case Loop():
                yield from branches(node.body)
            case Branch():
                yield node
                yield from branches(node.then)
                yield from branches(node.otherwise)
            case Assign():
                pass


def read_exprs(node: Assign) -> tuple[Expr, ...]:
    """The expressions that an assignment evaluates: its value, and indices that are data."""
    inner = tuple(i for i in node.indices or () if not isinstance(i, Affine))
    return (node.value, *inner)


def scalars_read(node: Assign) -> set[str]:
    """Names of the scalars that an assignment reads."""
    return {n.name for e in read_exprs(node) for n in distinct_nodes(e) if isinstance(n, Var)}


def tensors_read(node: Assign) -> set[str]:
    """Names of the tensors that an assignment reads."""
    return {n.tensor for e in read_exprs(node) for n in distinct_nodes(e) if isinstance(n, Load)}


def rewrite(node: Assign, change: Callable[[Expr], Expr]) -> None:
    """Apply ``change`` bottom-up to every expression of an assignment."""
    node.value = map_expr(node.value, change)
    if node.indices is not None:
        node.indices = tuple(
            i if isinstance(i, Affine) else map_expr(i, change) for i in node.indices
        )
