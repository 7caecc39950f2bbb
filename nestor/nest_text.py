"""Loops as Python people would write them: a Program in its own order, and a loop nest.

For reading only: nothing parses it back. A line of a statement begins with the statement's name and
ends, in the nest as written, with the line of the user's file that it comes from. Loops keep the
names by which schedule steps address them, dots and all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nestor.codegen.c.nest import Bound, CIf, CLeaf, CLoop, CNode, NestBuilder
from nestor.ir.affine import Affine, variable
from nestor.ir.expr import (
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Index,
    IndexExpr,
    Load,
    Select,
    Unary,
    Var,
    map_affines,
)
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node
from nestor.ir.monoid import Monoid
from nestor.ir.program import Program, Statement
from nestor.ir.types import DType

INDENT = "    "

_INFIX = {
    "or": ("|", 1), "xor": ("^", 2), "and": ("&", 3),
    "eq": ("==", 4), "ne": ("!=", 4), "lt": ("<", 4), "le": ("<=", 4), "gt": (">", 4),
    "ge": (">=", 4), "shl": ("<<", 5), "shr": (">>", 5), "add": ("+", 6), "sub": ("-", 6),
    "mul": ("*", 7), "div": ("/", 7), "floordiv": ("//", 7), "mod": ("%", 7), "pow": ("**", 9),
}  # fmt: skip
_NEGATION, _CHOICE = 8, 0
_UPDATES = {"sum": "{0} += {1}", "prod": "{0} *= {1}", "min": "{0} = min({0}, {1})"} | {
    "max": "{0} = max({0}, {1})"
}
_KINDS = {"parallel": "parallel", "vector": "vector", "unroll": "unrolled", "grid": "grid"}


def program_lines(program: Program) -> list[str]:
    """The loops of ``program`` as its own order says, before any accumulation was recognised.

    Raises: ``Unsupported`` for an extern or a reduction.
    """
    taken = {s.name for s in program.symbols} | {t.name for t in program.tensors}
    return _program(NestBuilder(taken).build(program), 0)


def _program(nodes: Sequence[CNode], depth: int) -> list[str]:
    pad, lines = INDENT * depth, []
    for node in nodes:
        match node:
            case CLoop():
                span = _span(_bound(node.lower), _bound(node.upper))
                lines.append(f"{pad}for {node.variable} in {span}:")
                lines += _program(node.body, depth + 1)
            case CIf():
                lines.append(f"{pad}if {_conditions(node.conditions)}:")
                lines += _program(node.body, depth + 1)
            case CLeaf():
                lines += [pad + line for line in _leaf(node.statement, node.rename)]
    return lines


def _leaf(statement: Statement, rename: Mapping[str, str]) -> list[str]:
    names = {index: variable(loop) for index, loop in rename.items()}
    origin = statement.origin
    note = f"  # {Path(origin.file).name}:{origin.line}" if origin and origin.file else ""
    return [f"{statement.name}: {line}{note}" for line in statement_lines(statement, names)]


def statement_lines(statement: Statement, names: Mapping[str, Affine] | None = None) -> list[str]:
    """What one instance does, a line for each element written.

    Args: names: what stands for the statement's indices; None: they themselves.
    """
    mapping = dict(names or {})

    def renamed(e: Expr) -> Expr:
        return map_affines(e, lambda a: a.substitute(mapping))

    lines = []
    for write, element in zip(statement.writes, statement.elements):
        indices = tuple(
            i.substitute(mapping) if isinstance(i, Affine) else renamed(i) for i in write.indices
        )
        target = _element(write.tensor, indices)
        monoid = statement.reduction.monoid if statement.reduction else None
        lines.append(_assignment(target, renamed(element), monoid))
    return lines


def nest_lines(nest: LoopNest) -> list[str]:
    """The loops of ``nest``; loops that are not serial say so at the end of their line."""
    return _node(nest.body, 0)


def _node(node: Node, depth: int) -> list[str]:
    pad = INDENT * depth
    match node:
        case Block():
            return [line for child in node.body for line in _node(child, depth)]
        case Loop():
            note = f"  # {_KINDS[node.kind]}" if node.kind in _KINDS else ""
            span = _span(_extreme("max", node.lower), _extreme("min", node.upper))
            body = _node(node.body, depth + 1) or [f"{pad}{INDENT}pass"]
            return [f"{pad}for {node.index} in {span}:{note}", *body]
        case Guard():
            lines = [f"{pad}if {_conditions(node.conditions)}:", *_node(node.body, depth + 1)]
            if node.orelse is not None:
                lines += [f"{pad}else:", *_node(node.orelse, depth + 1)]
            return lines
        case Alloc():
            made = [
                f"{pad}{b.name} = {b.scope}({', '.join(map(_affine, b.shape))})  # holds {b.holds}"
                for b in node.buffers
            ]
            return [*made, *_node(node.body, depth)]
        case Compute():
            return [pad + line for line in _compute(node)]


def _compute(node: Compute) -> list[str]:
    head = f"{node.statement}: " if node.phase in ("point", "update") else ""
    note = "" if node.phase in ("point", "update") else f"  # {node.phase} of {node.statement}"
    return [
        f"{head}{_assignment(_element(s.target, s.indices), value, node.monoid)}{note}"
        for s, value in zip(node.stores, node.values, strict=True)
    ]


def _assignment(target: str, value: Expr, monoid: Monoid | None) -> str:
    if monoid is None:
        return f"{target} = {expression(value)}"
    form = _UPDATES.get(monoid.name, "{0} = " + monoid.name + "({0}, {1})")
    return form.format(target, expression(value))


# Bounds and conditions


def _span(lower: str, upper: str) -> str:
    return f"range({upper})" if lower == "0" else f"range({lower}, {upper})"


def _bound(bound: Bound) -> str:
    return _extreme(bound.choose, bound.terms)


def _extreme(choose: str, terms: Sequence[Affine]) -> str:
    if len(terms) == 1:
        return _affine(terms[0])
    return f"{choose}({', '.join(map(_affine, terms))})"


def _conditions(conditions: Sequence[Affine]) -> str:
    parts: list[str] = []
    for c in conditions:
        if -c in conditions:
            # Each of the two is there: written once, as an equation.
            if conditions.index(c) < conditions.index(-c):
                left = Affine(tuple(t for t in c.terms if t[1] > 0), max(c.const, 0))
                parts.append(f"{_affine(left)} == {_affine(left - c)}")
        else:
            parts.append(condition(c))
    return " and ".join(parts)


def condition(value: Affine) -> str:
    """``value ≥ 0`` with what is subtracted on the other side: ``i < N``."""
    left = Affine(tuple(t for t in value.terms if t[1] > 0), max(value.const, 0))
    right = left - value
    if right.const == 1 and right.terms:
        return f"{_affine(left)} > {_affine(right - 1)}"
    if not left.terms:
        return f"{_affine(right)} <= {left.const}"
    return f"{_affine(left)} >= {_affine(right)}"


def _affine(value: Affine) -> str:
    """Positive terms first."""
    ordered = [t for t in value.terms if t[1] > 0] + [t for t in value.terms if t[1] < 0]
    out = ""
    for atom, factor in ordered:
        if isinstance(atom, str):
            text = atom
        else:
            symbol = "%" if type(atom).__name__ == "Mod" else "//"
            inner = _affine(atom.num)
            plain = len(atom.num.terms) == 1 and not atom.num.const and inner.isidentifier()
            text = f"{inner if plain else f'({inner})'} {symbol} {atom.den}"
            text = f"({text})" if abs(factor) != 1 else text
        text = text if abs(factor) == 1 else f"{abs(factor)}*{text}"
        if out:
            out += f" {'-' if factor < 0 else '+'} {text}"
        else:
            out = f"-{text}" if factor < 0 else text
    if not out:
        return str(value.const)
    if value.const:
        out += f" {'-' if value.const < 0 else '+'} {abs(value.const)}"
    return out


# Expressions


def expression(node: Expr, level: int = _CHOICE) -> str:
    """``node``, in parentheses if its operator binds weaker than ``level``."""
    match node:
        case Const():
            return str(node.value)
        case Index():
            return _wrap(_affine(node.value), 6 if len(node.value.terms) > 1 else 7, level)
        case Var():
            return node.name
        case Load():
            text = _element(node.tensor, node.indices)
            if node.other is None:
                return text
            other = expression(node.other, 1)
            return _wrap(
                f"{text} if {_conditions(node.predicate)} else {other}", _CHOICE, level + 1
            )
        case Unary():
            if node.op == "neg":
                return _wrap(f"-{expression(node.x, _NEGATION)}", _NEGATION, level)
            if node.op == "not":
                sign = "not " if node.dtype is DType.bool else "~"
                return _wrap(f"{sign}{expression(node.x, _NEGATION)}", _NEGATION, level)
            return f"{node.op}({expression(node.x)})"
        case Binary():
            if node.op not in _INFIX:
                return f"{node.op}({expression(node.a)}, {expression(node.b)})"
            symbol, own = _INFIX[node.op]
            text = f"{expression(node.a, own)} {symbol} {expression(node.b, own + 1)}"
            return _wrap(text, own, level)
        case Select():
            a, b = expression(node.a, 1), expression(node.b, 1)
            return _wrap(f"{a} if {expression(node.condition, 1)} else {b}", _CHOICE, level + 1)
        case Cast():
            return f"{node.dtype}({expression(node.x)})"
        case Call():
            return f"{node.function}({', '.join(map(expression, node.args))})"


def _wrap(text: str, own: int, level: int) -> str:
    return f"({text})" if own < level else text


def _element(tensor: str, indices: Sequence[IndexExpr]) -> str:
    if not indices:
        return tensor
    parts = (_affine(i) if isinstance(i, Affine) else expression(i) for i in indices)
    return f"{tensor}[{', '.join(parts)}]"
