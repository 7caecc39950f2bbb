"""Expressions as Python closures over one instance: literal, one element at a time.

The exact mode of the Program interpreter and the LoopNest interpreter run on these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nestor.errors import IRError
from nestor.ir import numeric
from nestor.ir.affine import Affine, FloorDiv
from nestor.ir.evaluate import out_of_range
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
)
from nestor.ir.numeric import Value


class Frame:
    """What a closure sees: index values, arrays (tensors and buffers), values of ``Var``."""

    __slots__ = ("arrays", "env", "scalars")

    def __init__(
        self,
        env: dict[str, int],
        arrays: Mapping[str, np.ndarray],
        scalars: dict[str, Value] | None = None,
    ) -> None:
        self.env, self.arrays = env, arrays
        self.scalars: dict[str, Value] = scalars or {}


Closure = Callable[[Frame], Value]
Indexer = Callable[[Frame], tuple[int, ...]]


class Closures:
    """Compiles expressions, each node once. ``where`` names the statement in errors."""

    def __init__(self) -> None:
        self._memo: dict[int, tuple[Expr, Closure]] = {}

    def expr(self, node: Expr, where: str) -> Closure:
        """A closure for the value of ``node``."""
        known = self._memo.get(id(node))
        if known is None:
            known = node, self._compile(node, where)
            self._memo[id(node)] = known
        return known[1]

    def _compile(self, node: Expr, where: str) -> Closure:
        match node:
            case Const():
                value = numeric.constant(node.value, node.dtype)
                return lambda frame: value
            case Index():
                index, kind = compile_affine(node.value), numeric.numpy_dtype(node.dtype)
                return lambda frame: np.int64(index(frame.env)).astype(kind)
            case Var():
                name = node.name
                return lambda frame: frame.scalars[name]
            case Load():
                return self._load(node, where)
            case Unary():
                x, op, dtype = self.expr(node.x, where), node.op, node.x.dtype
                return lambda frame: numeric.unary(op, x(frame), dtype)
            case Binary():
                a, b, op = self.expr(node.a, where), self.expr(node.b, where), node.op
                return lambda frame: numeric.binary(op, a(frame), b(frame))
            case Select():
                c = self.expr(node.condition, where)
                a, b = self.expr(node.a, where), self.expr(node.b, where)
                return lambda frame: a(frame) if c(frame) else b(frame)
            case Cast():
                x, source, target = self.expr(node.x, where), node.x.dtype, node.dtype
                return lambda frame: numeric.cast(x(frame), source, target)
            case Call():
                args = [self.expr(a, where) for a in node.args]
                function, dtype = node.function, node.dtype
                return lambda frame: numeric.call(function, tuple(a(frame) for a in args), dtype)

    def _load(self, node: Load, where: str) -> Closure:
        tensor, indexer = node.tensor, self.indexer(node.tensor, node.indices, where)
        if node.other is None:
            return lambda frame: frame.arrays[tensor][indexer(frame)]
        conditions = [compile_affine(p) for p in node.predicate]
        other = self.expr(node.other, where)

        def load(frame: Frame) -> Value:
            env = frame.env
            if all(c(env) >= 0 for c in conditions):
                return frame.arrays[tensor][indexer(frame)]
            return other(frame)

        return load

    def indexer(self, name: str, indices: Sequence[IndexExpr], where: str) -> Indexer:
        """A closure for the element that an access names; raises outside the array."""
        parts: list[Callable[[Frame], int]] = []
        for index in indices:
            if isinstance(index, Affine):
                value = compile_affine(index)
                parts.append(lambda frame, value=value: value(frame.env))  # type: ignore[misc]
            else:
                closure = self.expr(index, where)
                parts.append(lambda frame, closure=closure: int(closure(frame)))  # type: ignore[misc]

        def locate(frame: Frame) -> tuple[int, ...]:
            array = frame.arrays[name]
            if array.ndim != len(parts):
                raise IRError(f"{where}: {name} has {array.ndim} dimensions, not {len(parts)}")
            at = tuple(part(frame) for part in parts)
            for dim, (i, size) in enumerate(zip(at, array.shape, strict=True)):
                if not 0 <= i < size:
                    raise out_of_range(where, name, dim, size, i, indices[dim])
            return at

        return locate


def compile_affine(value: Affine) -> Callable[[Mapping[str, int]], int]:
    """A closure for an affine over integer variables."""
    const = value.const
    if not value.terms:
        return lambda env: const
    if all(isinstance(a, str) for a, _ in value.terms):
        names: list[Any] = [a for a, _ in value.terms]
        if len(names) == 1:
            name, factor = names[0], value.terms[0][1]
            return lambda env: factor * env[name] + const
        pairs = [(n, c) for n, (_, c) in zip(names, value.terms, strict=True)]
        return lambda env: const + sum(c * env[n] for n, c in pairs)
    parts = [(_compile_atom(a), c) for a, c in value.terms]
    return lambda env: const + sum(c * f(env) for f, c in parts)


def _compile_atom(atom: Any) -> Callable[[Mapping[str, int]], int]:
    if isinstance(atom, str):
        return lambda env: env[atom]
    num, den = compile_affine(atom.num), atom.den
    if isinstance(atom, FloorDiv):
        return lambda env: num(env) // den
    return lambda env: num(env) % den
