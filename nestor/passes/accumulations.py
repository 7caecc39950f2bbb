"""Turn loops that accumulate into reductions, whose terms may combine in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nestor.ir.affine import Affine, Interval
from nestor.ir.expr import Binary, Expr, Load, Unary, Var, distinct_nodes
from nestor.ir.loopnest import Block, Loop
from nestor.ir.monoid import builtin_monoid
from nestor.ir.program import AnyStatement, Program, Reduction, Statement, shared_loops
from nestor.ir.type_rules import extreme
from nestor.passes.loop_facts import LoopFacts

_MONOIDS = {"add": "sum", "mul": "prod", "min": "min", "max": "max"}

Ranges = Mapping[str, tuple[Affine, Affine]]
"""Inclusive bounds of a statement's indices, outermost first."""


def recognize_accumulations(program: Program) -> Program:
    """Make each innermost accumulation a reduction into its target.

    Rewrite: ``for i: for k: x[i] = x[i] op e`` (in that order) →
        ``seq i { x[i] op= reduce(op) k of e }``; ``op`` is one of ``+ - * min max``, and
        ``x - e`` adds ``-e``.
    Legal when: reassociation is allowed (the caller's promise: ``reassociate=True``); the target
        mentions none of the innermost indices, no other statement runs inside their loops,
        ``e`` reads no element of ``x`` that is the target of the same outer iteration, and the
        target exists also where the innermost loops have no iteration.
    """
    symbols = program.symbol_ranges()
    shapes = {t.name: t.shape for t in program.tensors}
    statements = tuple(
        _recognize(s, program.statements, symbols, shapes) if isinstance(s, Statement) else s
        for s in program.statements
    )
    if all(a is b for a, b in zip(statements, program.statements)):
        return program
    return replace(program, statements=statements)


def _recognize(
    statement: Statement,
    others: tuple[AnyStatement, ...],
    symbols: Mapping[str, Interval],
    shapes: Mapping[str, tuple[Affine, ...]],
) -> Statement:
    if statement.reduction is not None or statement.scatter is not None:
        return statement
    if len(statement.writes) != 1:
        return statement
    write = statement.writes[0]
    if any(not isinstance(i, Affine) for i in write.indices):
        return statement
    target = Load(tensor=write.tensor, indices=write.indices, dtype=statement.elements[0].dtype)
    depth = _outer_depth(statement, others)
    order = statement.order[: 2 * depth + 1]
    reduced = tuple(n for n in statement.order[2 * depth + 1 :] if isinstance(n, str))
    if not reduced or any(n not in statement.order for n in statement.domain.names):
        return statement
    found = _split(statement.elements[0], target)
    if found is None:
        return statement
    op, element = found
    monoid = builtin_monoid(_MONOIDS[op], target.dtype)
    if monoid is None or not _is_independent(statement, element, target, symbols):
        return statement
    if not _exists(statement, target, shapes[target.tensor], reduced, symbols):
        return statement
    return replace(
        statement,
        order=order,
        elements=(element,),
        reduction=Reduction(
            indices=reduced,
            monoid=monoid,
            final=(Var(name="s0", dtype=target.dtype),),
            into=True,
        ),
    )


def _outer_depth(statement: Statement, others: tuple[AnyStatement, ...]) -> int:
    """How many loops stay around the accumulation."""
    loops = [n for n in statement.order if isinstance(n, str)]
    used = frozenset[str]().union(
        *(i.variables() for w in statement.writes for i in w.indices if isinstance(i, Affine))
    )
    depth = len(loops)
    while depth > 0 and loops[depth - 1] not in used:
        if any(
            o is not statement and shared_loops(o.order, statement.order) >= depth for o in others
        ):
            break
        depth -= 1
    return depth


def _split(value: Expr, target: Load) -> tuple[str, Expr] | None:
    """``value`` as ``target op element``; None if it is nothing of the kind."""
    if target.dtype.is_storage_only or not isinstance(value, Binary):
        return None
    if value.op in ("add", "sub"):
        rest = _without(value, target)
        return None if rest is None else ("add", rest)
    if value.op in _MONOIDS:
        if value.a == target:
            return value.op, value.b
        if value.b == target:
            return value.op, value.a
        if value.op == "mul":
            return _split_product(value, target)
    return None


def _split_product(value: Binary, target: Load) -> tuple[str, Expr] | None:
    """``(target * a) * b`` is ``target * (a * b)``."""
    for inner, outer in ((value.a, value.b), (value.b, value.a)):
        found = _split(inner, target) if isinstance(inner, Binary) and inner.op == "mul" else None
        if found is not None:
            return "mul", Binary(op="mul", a=found[1], b=outer)
    return None


def _without(value: Expr, target: Load) -> Expr | None:
    """What is left of a sum without the term ``target``; None if that is no term of it."""
    if not isinstance(value, Binary) or value.op not in ("add", "sub"):
        return None
    if value.a == target:
        return value.b if value.op == "add" else Unary(op="neg", x=value.b)
    if value.op == "add" and value.b == target:
        return value.a
    left = _without(value.a, target)
    if left is not None:
        return Binary(op=value.op, a=left, b=value.b)
    right = _without(value.b, target) if value.op == "add" else None
    return None if right is None else Binary(op="add", a=value.a, b=right)


def _is_independent(
    statement: Statement, element: Expr, target: Load, symbols: Mapping[str, Interval]
) -> bool:
    """Whether ``element`` never reads the target of its own outer iteration."""
    ranges = {r.name: (r.lower, r.upper - 1) for r in statement.domain.ranges}
    return all(
        _differs(node, target, ranges, symbols)
        for node in distinct_nodes(element)
        if isinstance(node, Load) and node.tensor == target.tensor
    )


def _exists(
    statement: Statement,
    target: Load,
    shape: tuple[Affine, ...],
    reduced: tuple[str, ...],
    symbols: Mapping[str, Interval],
) -> bool:
    """Whether the target is inside its tensor in every iteration of the loops that stay.

    A reduction has a result, and touches its target, also where it has nothing to combine.
    """
    domain = statement.domain
    facts = LoopFacts(
        symbols=symbols,
        loops=tuple(
            Loop(
                index=r.name, lower=(r.lower,), upper=(r.upper,), kind="serial", body=Block(body=())
            )
            for r in domain.ranges
            if r.name not in reduced
        ),
        conditions=tuple(c for c in domain.constraints if c.variables().isdisjoint(reduced)),
    )
    return all(
        isinstance(index, Affine)
        and facts.is_nonnegative(index)
        and facts.is_nonnegative(extent - 1 - index)
        for index, extent in zip(target.indices, shape, strict=True)
    )


def _differs(load: Load, target: Load, ranges: Ranges, symbols: Mapping[str, Interval]) -> bool:
    """Whether some index of the two is surely different in every iteration."""
    for a, b in zip(load.indices, target.indices):
        if not isinstance(a, Affine) or not isinstance(b, Affine):
            continue
        for distance in (a - b, b - a):
            least = extreme(distance - 1, ranges, largest=False)
            low = None if least is None else least.bounds(symbols)[0]
            if low is not None and low >= 0:
                return True
    return False
