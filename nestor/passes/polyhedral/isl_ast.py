"""isl's AST as loop-nest nodes.

Source: Grosser, Verdoolaege, Cohen, Polyhedral AST Generation Is More Than Scanning Polyhedra,
TOPLAS 2015; the meaning of the operators is in isl's manual.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# isl's types are opaque to the type checker.
from typing import Any

import islpy as isl

from nestor.errors import LegalityUnknown
from nestor.ir.affine import Affine, affine, floor_div, modulo, variable
from nestor.ir.loopnest import Block, Guard, Loop, LoopKind, Node

# islpy's stubs do not name all members of these enumerations.
_OP: Any = isl.ast_expr_op_type
_EXPR: Any = isl.ast_expr_type
_NODE: Any = isl.ast_node_type

_SELECT = (_OP.cond, _OP.select)

LeafMaker = Callable[[str, tuple[Affine, ...]], Node | None]
"""Given a domain's name and the values of its coordinates, the node to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopMeaning:
    """What a loop of the AST is called in the nest, and of what kind it is."""

    name: str
    kind: LoopKind


class _UndecidedError(Exception):
    """A value ``condition ? a : b`` was met; the argument is its expression."""


class AstConverter:
    """Turns one isl AST into nest nodes.

    Args: symbols: isl's parameter → symbol. meaning: of the loop at a depth around a domain.
        leaf: makes the node of a domain.
    """

    def __init__(
        self,
        symbols: Mapping[str, str],
        meaning: Callable[[str, int], LoopMeaning],
        leaf: LeafMaker,
    ):
        self._symbols = {p: variable(s) for p, s in symbols.items()}
        self._meaning = meaning
        self._leaf = leaf

    def convert(self, node: Any) -> Node:
        """The nest of a whole AST; an empty block if nothing runs."""
        return self._visit(node, dict(self._symbols)) or Block(body=())

    def _visit(self, node: Any, values: dict[str, Affine]) -> Node | None:
        """Convert ``node``; ``values`` of iterators, symbols, and choices that were decided."""
        try:
            return self._plain(node, values)
        except _UndecidedError as undecided:
            return self._split(undecided.args[0], values, lambda known: self._visit(node, known))

    def _split(
        self,
        choice: Any,
        values: dict[str, Affine],
        make: Callable[[dict[str, Affine]], Node | None],
    ) -> Node | None:
        """``if condition: make with a; else: make with b``, for a choice ``condition ? a : b``."""
        parts: list[Node | None] = []
        for k in (1, 2):
            try:
                value = _affine(choice.get_op_arg(k), values)
            except _UndecidedError as inner:
                again = functools.partial(self._split, choice, make=make)
                parts.append(self._split(inner.args[0], values, again))
            else:
                parts.append(make({**values, choice.to_C_str(): value}))
        return _guard(_alternatives(choice.get_op_arg(0), values), *parts)

    def _plain(self, node: Any, values: dict[str, Affine]) -> Node | None:
        kind = node.get_type()
        if kind == _NODE.for_:
            return self._loop(node, values)
        if kind == _NODE.if_:
            return self._condition(node, values)
        if kind == _NODE.block:
            children = node.block_get_children()
            nodes = [self._visit(children.get_at(k), values) for k in range(children.n_ast_node())]
            return _block([n for n in nodes if n is not None])
        if kind == _NODE.user:
            call = node.user_get_expr()
            name = call.get_op_arg(0).get_id().get_name()
            arguments = [_affine(call.get_op_arg(k), values) for k in range(1, call.get_op_n_arg())]
            return self._leaf(name, tuple(arguments))
        raise LegalityUnknown(f"isl made an AST node of type {kind}")

    def _loop(self, node: Any, values: dict[str, Affine]) -> Node | None:
        iterator = node.for_get_iterator().get_id().get_name()
        lower = _extremes(node.for_get_init(), _OP.max, values)
        if node.for_is_degenerate():
            return self._visit(node.for_get_body(), {**values, iterator: lower[0]})
        domain = _first_domain(node)
        meaning = self._meaning(domain, int(iterator[1:]))
        step = int(node.for_get_inc().get_val().to_python())
        condition = node.for_get_cond()
        upper = _extremes(condition.get_op_arg(1), _OP.min, values)
        if condition.get_op_type() == _OP.le:
            upper = tuple(u + 1 for u in upper)
        elif condition.get_op_type() != _OP.lt:
            raise LegalityUnknown("isl made a loop whose condition is no upper bound")
        value = variable(meaning.name)
        if step != 1:
            # isl makes every lower bound one of the loop's values, so any can be the origin.
            origin = lower[0]
            value = value * step + origin
            lower, upper = (
                tuple(dict.fromkeys(floor_div(b - origin + (step - 1), step) for b in bounds))
                for bounds in (lower, upper)
            )
        body = self._visit(node.for_get_body(), {**values, iterator: value})
        if body is None:
            return None
        return Loop(index=meaning.name, lower=lower, upper=upper, kind=meaning.kind, body=body)

    def _condition(self, node: Any, values: dict[str, Affine]) -> Node | None:
        body = self._visit(node.if_get_then_node(), values)
        orelse = self._visit(node.if_get_else_node(), values) if node.if_has_else_node() else None
        return _guard(_alternatives(node.if_get_cond(), values), body, orelse)


def _guard(
    alternatives: Sequence[tuple[Affine, ...]], body: Node | None, orelse: Node | None
) -> Node | None:
    """``body`` if one of the conjunctions holds, else ``orelse``."""
    for conditions in reversed(alternatives):
        orelse = _one_guard(conditions, body, orelse)
    return orelse


def _one_guard(
    conditions: tuple[Affine, ...], body: Node | None, orelse: Node | None
) -> Node | None:
    if not conditions:
        return body
    if body is None:
        if orelse is None:
            return None
        body = Block(body=())
    return Guard(conditions=conditions, body=body, orelse=orelse)


def _block(nodes: list[Node]) -> Node | None:
    if len(nodes) <= 1:
        return nodes[0] if nodes else None
    return Block(body=tuple(nodes))


def _first_domain(node: Any) -> str:
    """The name of a domain below an AST node."""
    kind = node.get_type()
    while kind != _NODE.user:
        if kind == _NODE.for_:
            node = node.for_get_body()
        elif kind == _NODE.if_:
            node = node.if_get_then_node()
        else:
            node = node.block_get_children().get_at(0)
        kind = node.get_type()
    return str(node.user_get_expr().get_op_arg(0).get_id().get_name())


def _extremes(expr: Any, op: Any, values: Mapping[str, Affine]) -> tuple[Affine, ...]:
    """The arguments of a ``min`` or ``max`` (``op``), or the one value there is."""
    if expr.get_type() == _EXPR.op and expr.get_op_type() == op:
        parts = [_extremes(expr.get_op_arg(k), op, values) for k in range(expr.get_op_n_arg())]
        return tuple(dict.fromkeys(x for part in parts for x in part))
    return (_affine(expr, values),)


def _alternatives(expr: Any, values: Mapping[str, Affine]) -> list[tuple[Affine, ...]]:
    """A condition in disjunctive form: of each tuple all are ≥ 0."""
    if expr.get_type() == _EXPR.int:
        return [()] if expr.get_val().to_python() else []
    if expr.get_type() != _EXPR.op:
        raise LegalityUnknown(f"isl made the condition {expr.to_C_str()}")
    op = expr.get_op_type()
    arguments = [expr.get_op_arg(k) for k in range(expr.get_op_n_arg())]
    if op in (_OP.and_, _OP.and_then):
        found: list[tuple[Affine, ...]] = [()]
        for argument in arguments:
            found = [a + b for a in found for b in _alternatives(argument, values)]
        return found
    if op in (_OP.or_, _OP.or_else):
        return [x for argument in arguments for x in _alternatives(argument, values)]
    compare = {_OP.le: (1, 0), _OP.lt: (1, -1), _OP.ge: (-1, 0), _OP.gt: (-1, -1)}
    if op == _OP.eq:
        a, b = (_affine(x, values) for x in arguments)
        return [(a - b, b - a)]
    if op not in compare:
        raise LegalityUnknown(f"isl made the condition {expr.to_C_str()}")
    sign, slack = compare[op]
    smaller, larger = arguments if sign == 1 else arguments[::-1]
    # min(…) ≤ x holds if one does, max(…) ≤ x if all do; the other side mirrors that.
    return _at_least(larger, smaller, slack, values)


def _at_least(
    larger: Any, smaller: Any, slack: int, values: Mapping[str, Affine]
) -> list[tuple[Affine, ...]]:
    for side, other in ((smaller, larger), (larger, smaller)):
        if side.get_type() != _EXPR.op or side.get_op_type() not in (_OP.min, _OP.max):
            continue
        parts = [side.get_op_arg(k) for k in range(side.get_op_n_arg())]
        pairs = [(other, p) if side is smaller else (p, other) for p in parts]
        choices = [_at_least(a, b, slack, values) for a, b in pairs]
        if (side.get_op_type() == _OP.max) == (side is smaller):  # all must hold
            found: list[tuple[Affine, ...]] = [()]
            for choice in choices:
                found = [a + b for a in found for b in choice]
            return found
        return [x for choice in choices for x in choice]
    return [(_affine(larger, values) - _affine(smaller, values) + slack,)]


def _affine(expr: Any, values: Mapping[str, Affine]) -> Affine:
    """An integer expression. Raises: ``LegalityUnknown`` if it is not quasi-affine."""
    kind = expr.get_type()
    if kind == _EXPR.int:
        return affine(int(expr.get_val().to_python()))
    if kind == _EXPR.id:
        return values[expr.get_id().get_name()]
    op = expr.get_op_type()
    if op in _SELECT:
        decided = values.get(expr.to_C_str())
        if decided is None:
            raise _UndecidedError(expr)
        return decided
    arguments = [_affine(expr.get_op_arg(k), values) for k in range(expr.get_op_n_arg())]
    if op == _OP.add:
        return arguments[0] + arguments[1]
    if op == _OP.sub:
        return arguments[0] - arguments[1]
    if op == _OP.minus:
        return -arguments[0]
    if op == _OP.mul:
        a, b = arguments
        if b.is_const:
            return a * b.const
        if a.is_const:
            return b * a.const
    if op in (_OP.div, _OP.fdiv_q, _OP.pdiv_q, _OP.pdiv_r, _OP.zdiv_r) and arguments[1].is_const:
        # div is exact and pdiv_q has a dividend ≥ 0, so both round down; zdiv_r is only compared
        # with zero.
        f = modulo if op in (_OP.pdiv_r, _OP.zdiv_r) else floor_div
        return f(arguments[0], arguments[1].const)
    raise LegalityUnknown(f"isl made the expression {expr.to_C_str()}, which is not quasi-affine")
