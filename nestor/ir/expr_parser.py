"""Parse affines and expressions of the IR's text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from nestor.errors import IRError
from nestor.ir.affine import Affine, affine, floor_div, modulo, variable
from nestor.ir.expr import (
    BINARY_OPS,
    UNARY_OPS,
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
)
from nestor.ir.lexer import Tokens
from nestor.ir.syntax import NEGATION, SYMBOLS, TYPES
from nestor.ir.types import DType

T = TypeVar("T")


class ExprParser(Tokens):
    """Expressions in the context of tensor types (``types``) and ``Var`` types (``vars``)."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.types: dict[str, DType] = {}
        self.vars: dict[str, DType] = {}

    def items(self, item: Callable[[], T], close: str) -> tuple[T, ...]:
        """``item, item, …`` up to and including ``close``."""
        out: list[T] = []
        while not self.take(close):
            if out:
                self.expect(",")
            out.append(item())
        return tuple(out)

    def dtype(self) -> DType:
        """An element type."""
        if self.peek.text not in TYPES:
            raise self.error(f"expected a type ({', '.join(TYPES)}), found {self.peek.text!r}")
        return TYPES[self.next().text]

    # ---------------------------------------------------------------- affines

    def affine(self) -> Affine:
        """A quasi-affine expression."""
        total = -self._term() if self.take("-") else self._term()
        while self.sees("+", "-"):
            total = total + self._term() if self.next().text == "+" else total - self._term()
        return total

    def _term(self) -> Affine:
        value = self._factor()
        while self.sees("*", "//", "%"):
            symbol, start = self.next().text, self.peek.start
            if symbol == "*":
                value = self._product(value, self._factor(), start)
                continue
            divisor = self.integer()
            if divisor <= 0:
                raise self.error_at(start, f"the divisor must be positive, found {divisor}")
            value = floor_div(value, divisor) if symbol == "//" else modulo(value, divisor)
        return value

    def _product(self, a: Affine, b: Affine, start: int) -> Affine:
        if a.is_const:
            return b * a.const
        if b.is_const:
            return a * b.const
        raise self.error_at(start, f"({a}) * ({b}) is not affine: one factor must be a constant")

    def _factor(self) -> Affine:
        if self.take("("):
            value = self.affine()
            self.expect(")")
            return value
        if self.take("-"):
            return -self._factor()
        if self.peek.kind == "int":
            return affine(int(self.next().text))
        return variable(self.name("an index or symbol"))

    def condition(self) -> Affine:
        """``affine >= affine`` or ``<=``, as ``affine ≥ 0``."""
        left = self.affine()
        symbol = self.expect(">=", "<=")
        right = self.affine()
        return left - right if symbol == ">=" else right - left

    # ---------------------------------------------------------------- expressions

    def expr(self, level: int = 0) -> Expr:
        """An expression whose operators bind at least as tightly as ``level``."""
        left = self._prefix()
        while self.peek.kind == "symbol" and self.peek.text in SYMBOLS:
            op, own = SYMBOLS[self.peek.text]
            if own < level:
                break
            self.next()
            left = Binary(op=op, a=left, b=self.expr(own + 1))
        return left

    def _prefix(self) -> Expr:
        if self.sees("-"):
            follows = self.tokens[self.at + 1]
            if follows.kind in ("int", "float") or follows.text in ("inf", "nan"):
                return self._number()
            self.next()
            return Unary(op="neg", x=self.expr(NEGATION))
        return self._primary()

    def _primary(self) -> Expr:
        token = self.peek
        if token.kind in ("int", "float") or self.sees("inf", "nan"):
            return self._number()
        if self.sees("true", "false"):
            return Const(value=self.next().text == "true", dtype=DType.bool)
        if self.take("("):
            return self._group()
        if self.take("index"):
            self.expect("(")
            value = self.affine()
            self.expect(")")
            return Index(value=value, dtype=self.dtype() if self.take(":") else DType.i64)
        if self.take("select"):
            self.expect("(")
            parts = self._arguments("select", 3)
            return Select(condition=parts[0], a=parts[1], b=parts[2])
        if token.kind == "keyword" and token.text in TYPES:
            dtype = self.dtype()
            self.expect("(")
            return Cast(x=self._arguments(dtype.value, 1)[0], dtype=dtype)
        if token.kind == "name" or self.sees("min", "max"):
            return self._named()
        raise self.error(f"expected an expression, found {token.text!r}")

    def _group(self) -> Expr:
        inner = self.expr()
        if self.sees("where"):
            if not isinstance(inner, Load) or inner.other is not None:
                raise self.error("only a plain load may have a where")
            self.next()
            self.expect("{")
            predicate = self.items(self.condition, "}")
            self.expect("else")
            inner = Load(
                tensor=inner.tensor,
                indices=inner.indices,
                dtype=inner.dtype,
                predicate=predicate,
                other=self.expr(),
            )
        self.expect(")")
        return inner

    def _number(self) -> Const:
        negative = self.take("-")
        token = self.next()
        self.expect(":")
        at = self.peek.start
        dtype = self.dtype()
        value: float | int = int(token.text) if token.kind == "int" else float(token.text)
        if negative:
            value = -float(value) if dtype.is_float else -value
        if not dtype.is_float and (isinstance(value, float) or dtype is DType.bool):
            raise self.error_at(at, f"{token.text} is no value of type {dtype}")
        if math.isnan(value):
            value = math.nan
        return Const(value=value, dtype=dtype)

    def _arguments(self, function: str, count: int | None = None) -> tuple[Expr, ...]:
        start = self.peek.start
        args = self.items(self.expr, ")")
        if count is not None and len(args) != count:
            raise self.error_at(start, f"{function} takes {count} arguments, found {len(args)}")
        return args

    def _named(self) -> Expr:
        token = self.next()
        if self.take("("):
            return self._call(token.text, token.start)
        if self.take("["):
            indices = self.items(self.index, "]")
            dtype = self._load_dtype(token.text, token.start)
            return Load(tensor=token.text, indices=indices, dtype=dtype)
        if self.take(":"):
            return Var(name=token.text, dtype=self.dtype())
        if token.text not in self.vars:
            raise self.error_at(
                token.start,
                f"{token.text!r} has no known type here; write {token.text}:dtype for a scalar,"
                f" index({token.text}) for the value of an index",
            )
        return Var(name=token.text, dtype=self.vars[token.text])

    def _call(self, function: str, start: int) -> Expr:
        if function in UNARY_OPS:
            return Unary(op=function, x=self._arguments(function, 1)[0])
        if function in BINARY_OPS:
            a, b = self._arguments(function, 2)
            return Binary(op=function, a=a, b=b)
        args = self._arguments(function)
        if not self.take(":"):
            raise self.error_at(start, f"no operation is called {function!r}")
        return Call(function=function, args=args, dtype=self.dtype())

    def _load_dtype(self, name: str, start: int) -> DType:
        if self.take(":"):
            return self.dtype()
        if name not in self.types:
            raise self.error_at(start, f"no tensor or buffer is called {name!r} here")
        return self.types[name]

    def index(self) -> IndexExpr:
        """An index of an access: an affine, or for a gather an expression."""
        start, reached = self.at, -1
        reason: IRError | None = None
        try:
            value = self.affine()
            if self.sees(",", "]"):
                return value
        except IRError as error:
            reached, reason = self.at, error
        self.at = start
        try:
            return self.expr()
        except IRError:
            # Of the two readings, complain about the one that got further.
            if reason is not None and reached >= self.at:
                raise reason from None
            raise
