"""Scalar expressions and quasi-affine indices as C."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nestor.codegen.c.helpers import C_TYPES, binary_helper, saturate_helper, sign_helper
from nestor.errors import Unsupported
from nestor.ir.affine import Affine, FloorDiv
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
)
from nestor.ir.types import DType

Text = tuple[str, int]
"""C text and how tightly its outermost operator binds (as in the table of C's precedences)."""

ATOM, UNARY, PRODUCT, SUM, COMPARE, EQUAL, AND, XOR, OR, BOTH, CHOICE = range(11, 0, -1)

_OPERATORS: dict[str, tuple[str, int]] = {
    "mul": ("*", PRODUCT), "div": ("/", PRODUCT), "add": ("+", SUM), "sub": ("-", SUM),
    "lt": ("<", COMPARE), "le": ("<=", COMPARE), "gt": (">", COMPARE), "ge": (">=", COMPARE),
    "eq": ("==", EQUAL), "ne": ("!=", EQUAL), "and": ("&", AND), "xor": ("^", XOR),
    "or": ("|", OR),
}  # fmt: skip

_LIBRARY = frozenset(
    "exp exp2 expm1 log log2 log1p sqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh"
    " atanh erf erfc floor ceil trunc lgamma".split()
)


def wrap(text: Text, least: int) -> str:
    """``text``, in parentheses if its operator binds less tightly than ``least``."""
    return text[0] if text[1] >= least else f"({text[0]})"


class Printer:
    """Prints the expressions of one function and collects the helpers that they call.

    Args: names: C name of each tensor and symbol; by_value: scalars that are plain C variables.
    ``contracted``: arrays that are plain variables too, whatever their indices.
    """

    def __init__(self, names: Mapping[str, str], by_value: frozenset[str]) -> None:
        self.names, self.by_value = names, by_value
        self.contracted: frozenset[str] = frozenset()
        self.helpers: dict[str, str] = {}

    # --------------------------------------------------------------------------- affine

    def affine(self, value: Affine, rename: Mapping[str, str]) -> Text:
        """``value`` over loop variables; ``rename``: index → loop variable."""
        out, level = "", ATOM
        for atom, factor in sorted(value.terms, key=lambda term: term[1] < 0):
            if isinstance(atom, str):
                part = rename.get(atom) or self.names.get(atom, atom)
            else:
                op = "floordiv" if isinstance(atom, FloorDiv) else "mod"
                inner = self.affine(atom.num, rename)[0]
                part = f"{self._helper(op, DType.i64)}({inner}, {atom.den})"
            if abs(factor) != 1:
                part, level = f"{abs(factor)} * {part}", min(level, PRODUCT)
            if out:
                out, level = f"{out} {'-' if factor < 0 else '+'} {part}", SUM
            elif factor < 0:
                out, level = f"-{part}", min(level, UNARY)
            else:
                out = part
        if not out:
            return (str(value.const), ATOM if value.const >= 0 else UNARY)
        if value.const:
            return f"{out} {'-' if value.const < 0 else '+'} {abs(value.const)}", SUM
        return out, level

    def condition(self, value: Affine, rename: Mapping[str, str]) -> str:
        """``value ≥ 0``, what is subtracted on the other side."""
        plus = Affine(tuple(t for t in value.terms if t[1] > 0), max(value.const, 0))
        minus = plus - value
        strict = minus.const == 1
        if strict:
            minus = minus - 1
        left, right = self.affine(plus, rename)[0], self.affine(minus, rename)[0]
        return f"{left} {'>' if strict else '>='} {right}"

    def extreme(self, choose: str, terms: tuple[Affine, ...]) -> str:
        """The least or greatest of ``terms``, which are over loop variables."""
        first, *others = terms
        text = self.affine(first, {})[0]
        for other in others:
            text = f"{self._helper(choose, DType.i64)}({text}, {self.affine(other, {})[0]})"
        return text

    # --------------------------------------------------------------------------- scalars

    def expr(self, node: Expr, rename: Mapping[str, str]) -> Text:
        """The value of ``node``. Raises: ``Unsupported`` for what has no C."""
        match node:
            case Const():
                return literal(node)
            case Index():
                text = self.affine(node.value, rename)
                return text if node.dtype is DType.i64 else self._convert(text, node.dtype)
            case Load():
                return self._load(node, rename)
            case Unary():
                return self._unary(node, rename)
            case Binary():
                return self._binary(node, rename)
            case Select():
                condition = wrap(self.expr(node.condition, rename), BOTH)
                a, b = self.expr(node.a, rename), self.expr(node.b, rename)
                return f"{condition} ? {wrap(a, BOTH)} : {wrap(b, CHOICE)}", CHOICE
            case Cast():
                return self._cast(node, rename)
            case Call() if node.function == "fma" and node.dtype in (DType.f32, DType.f64):
                args = ", ".join(self.expr(a, rename)[0] for a in node.args)
                return f"{library('fma', node.dtype)}({args})", ATOM
            case _:
                raise Unsupported(f"{node} has no C")

    def element(
        self, tensor: str, indices: tuple[IndexExpr, ...], rename: Mapping[str, str]
    ) -> str:
        """An element of ``tensor`` as an lvalue."""
        name = self.names[tensor]
        if tensor in self.contracted:
            return name
        if not indices:
            return name if tensor in self.by_value else f"*{name}"
        parts = []
        for index in indices:
            if isinstance(index, Affine):
                parts.append(self.affine(index, rename)[0])
            else:
                parts.append(self.expr(index, rename)[0])
        return name + "".join(f"[{p}]" for p in parts)

    def _load(self, node: Load, rename: Mapping[str, str]) -> Text:
        text = self.element(node.tensor, node.indices, rename)
        level = UNARY if text.startswith("*") else ATOM
        if node.other is None:
            return text, level
        tests = " && ".join(self.condition(p, rename) for p in node.predicate)
        other = wrap(self.expr(node.other, rename), CHOICE)
        return f"{tests} ? {text} : {other}", CHOICE

    def _unary(self, node: Unary, rename: Mapping[str, str]) -> Text:
        x, dtype = self.expr(node.x, rename), node.x.dtype
        if node.op in _LIBRARY:
            return f"{library(node.op, dtype)}({x[0]})", ATOM
        match node.op:
            case "neg":
                operand = wrap(x, UNARY)
                text = f"-({operand})" if operand.startswith("-") else f"-{operand}"
                return self._narrow((text, UNARY), dtype)
            case "round":
                return f"{library('rint', dtype)}({x[0]})", ATOM
            case "abs" if dtype.is_float:
                return f"{library('fabs', dtype)}({x[0]})", ATOM
            case "abs":
                operand = wrap(x, UNARY)
                return self._narrow((f"{operand} < 0 ? -({operand}) : {operand}", CHOICE), dtype)
            case "sign":
                name, self.helpers[name] = sign_helper(dtype)
                return f"{name}({x[0]})", ATOM
            case "not":
                text = f"{'!' if dtype is DType.bool else '~'}{wrap(x, UNARY)}"
                return self._narrow((text, UNARY), dtype)
            case "reciprocal":
                return f"1 / {wrap(x, UNARY)}", PRODUCT
            case "rsqrt":
                return f"1 / {library('sqrt', dtype)}({x[0]})", PRODUCT
            case "sigmoid":
                return f"1 / (1 + {library('exp', dtype)}(-({x[0]})))", PRODUCT
            case "isnan" | "isinf":
                return f"({node.op}({x[0]}) != 0)", ATOM
            case _:
                raise Unsupported(f"the operation {node.op} has no C")

    def _binary(self, node: Binary, rename: Mapping[str, str]) -> Text:
        a, b, dtype = self.expr(node.a, rename), self.expr(node.b, rename), node.a.dtype
        if node.op in ("min", "max") and dtype is DType.bool:
            return f"{wrap(a, AND)} {'&' if node.op == 'min' else '|'} {wrap(b, XOR)}", OR
        if dtype.is_float and node.op in ("pow", "atan2", "rem"):
            function = library("fmod" if node.op == "rem" else node.op, dtype)
            return f"{function}({a[0]}, {b[0]})", ATOM
        if dtype.is_float and node.op == "truncdiv":
            return f"{library('trunc', dtype)}({wrap(a, PRODUCT)} / {wrap(b, UNARY)})", ATOM
        helper = binary_helper(node.op, dtype)
        if helper is not None:
            name, self.helpers[name] = helper
            return f"{name}({a[0]}, {b[0]})", ATOM
        symbol, level = _OPERATORS[node.op]
        text = f"{wrap(a, level)} {symbol} {wrap(b, level + 1)}"
        return self._narrow((text, level), node.dtype)

    def _cast(self, node: Cast, rename: Mapping[str, str]) -> Text:
        x, source, target = self.expr(node.x, rename), node.x.dtype, node.dtype
        if source is target:
            return x
        if target is DType.bool:
            return f"{wrap(x, COMPARE)} != 0", EQUAL
        if source.is_float and not target.is_float:
            wide = DType.i64 if target is DType.i64 else DType.i32
            name, self.helpers[name] = saturate_helper(source, wide)
            text = f"{name}({x[0]})", ATOM
            return text if target is wide else self._convert(text, target)
        return self._convert(x, target)

    def _convert(self, text: Text, dtype: DType) -> Text:
        return f"({c_type(dtype)}){wrap(text, UNARY)}", UNARY

    def _narrow(self, text: Text, dtype: DType) -> Text:
        """Back to the type itself, where C computes narrow integers as ``int``."""
        if dtype in (DType.i16, DType.i8, DType.u8):
            return self._convert(text, dtype)
        return text

    def _helper(self, op: str, dtype: DType) -> str:
        helper = binary_helper(op, dtype)
        assert helper is not None
        name, self.helpers[name] = helper
        return name


def c_type(dtype: DType) -> str:
    """The element's C type. Raises: ``Unsupported`` for f16 and bf16."""
    if dtype not in C_TYPES:
        raise Unsupported(f"{dtype} has no type in C99")
    return C_TYPES[dtype]


def library(function: str, dtype: DType) -> str:
    """The mathematical library's ``function`` for ``dtype``."""
    c_type(dtype)
    return function + "f" if dtype is DType.f32 else function


def literal(node: Const) -> Text:
    """A constant, to the bit."""
    dtype, value = node.dtype, node.value
    c_type(dtype)
    if dtype is DType.bool:
        return ("true" if value else "false"), ATOM
    if dtype.is_int:
        number = int(value)
        if number == -(2**63):
            return "INT64_MIN", ATOM
        suffix = "LL" if dtype is DType.i64 and not -(2**31) <= number < 2**31 else ""
        return f"{number}{suffix}", ATOM if number >= 0 else UNARY
    suffix = "f" if dtype is DType.f32 else ""
    real = float(np.float32(value)) if dtype is DType.f32 else float(value)
    if math.isnan(real):
        return "NAN", ATOM
    if math.isinf(real):
        return ("INFINITY", ATOM) if real > 0 else ("-INFINITY", UNARY)
    text = str(np.float32(value)) if dtype is DType.f32 else repr(real)
    return text + suffix, ATOM if math.copysign(1, real) > 0 else UNARY
