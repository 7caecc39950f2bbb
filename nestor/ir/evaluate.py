"""Vectorised evaluation of expressions over a box of statement instances.

A ``Space`` lays the free indices of a statement out as the axes of NumPy arrays; every value has
either no axes or one axis per free index, of extent 1 where it does not depend on it. Accesses that
are linear in the indices become strided views, so nothing is copied for a matmul's operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nestor.errors import IndexOutOfRange, IRError
from nestor.ir import numeric
from nestor.ir.affine import Affine
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

Arrays = Mapping[str, np.ndarray]


class Space:
    """Fixed variables and free dimensions (each of extent ≥ 1) of a set of instances.

    Attributes:
        names, lows, extents: the free dimensions, outermost first; one array axis each.
        env: values of all variables; free ones as int64 arrays along their axis.
    """

    __slots__ = ("axis", "env", "extents", "lows", "names")

    def __init__(
        self,
        fixed: Mapping[str, int],
        names: Sequence[str],
        lows: Sequence[int],
        extents: Sequence[int],
    ) -> None:
        self.names, self.lows, self.extents = tuple(names), tuple(lows), tuple(extents)
        self.axis = {name: a for a, name in enumerate(self.names)}
        self.env: dict[str, Any] = dict(fixed)
        rank = len(self.names)
        for a, name in enumerate(self.names):
            shape = [1] * rank
            shape[a] = self.extents[a]
            line = np.arange(self.lows[a], self.lows[a] + self.extents[a], dtype=np.int64)
            self.env[name] = line.reshape(shape)


class Evaluator:
    """Values of expressions over one ``Space``.

    Args:
        arrays: every tensor by name, C-contiguous.
        space: the instances.
        mask: instances of the space that exist (None: all); outside it nothing is read and values
            are arbitrary.
        scalars: values of ``Var`` nodes.
        where: what is evaluated, for error messages.
    """

    __slots__ = ("_memo", "arrays", "mask", "scalars", "space", "where")

    def __init__(
        self,
        arrays: Arrays,
        space: Space,
        mask: Value | None = None,
        scalars: Mapping[str, Value] | None = None,
        where: str = "",
    ) -> None:
        self.arrays, self.space, self.mask, self.where = arrays, space, mask, where
        self.scalars = scalars or {}
        self._memo: dict[int, Value] = {}

    def expr(self, node: Expr) -> Value:
        """The value of ``node``; shared subexpressions are evaluated once."""
        key = id(node)
        if key not in self._memo:
            self._memo[key] = self._expr(node)
        return self._memo[key]

    def _expr(self, node: Expr) -> Value:
        match node:
            case Load():
                return self.load(node)
            case Index():
                value: Value = np.asarray(node.value.evaluate(self.space.env), np.int64)
                return value.astype(numeric.numpy_dtype(node.dtype))
            case Var():
                return self.scalars[node.name]
            case _:
                return operate(node, self.expr)

    def load(self, node: Load) -> Value:
        """The elements that ``node`` reads; ``other`` where its predicate fails."""
        array = self.arrays[node.tensor]
        if self.mask is None and not node.predicate:
            view = self.strided(node.tensor, array, node.indices)
            if view is not None:
                return view
        inside: Value = True
        for condition in node.predicate:
            inside = inside & (condition.evaluate(self.space.env) >= 0)
        if node.other is not None and not np.any(inside):
            return self.expr(node.other)
        exists = inside if self.mask is None else inside & self.mask
        picked = self.gather(node.tensor, array, node.indices, exists)
        if node.other is None:
            return picked
        return np.where(inside, picked, self.expr(node.other))

    def indices(self, indices: Sequence[IndexExpr]) -> list[Value]:
        """Integer values of an access's indices."""
        out = []
        for index in indices:
            if isinstance(index, Affine):
                out.append(np.asarray(index.evaluate(self.space.env), np.int64))
            else:
                out.append(np.asarray(self.expr(index)).astype(np.int64))
        return out

    def gather(
        self, name: str, array: np.ndarray, indices: Sequence[IndexExpr], exists: Value
    ) -> Value:
        """Read elements by index arrays, checking the range wherever ``exists``."""
        values = self.checked_indices(name, array.shape, indices, exists)
        if array.size == 0:
            shape = np.broadcast_shapes(*(v.shape for v in values))
            return np.zeros(shape, array.dtype)
        return array[tuple(values)]

    def checked_indices(
        self, name: str, shape: Sequence[int], indices: Sequence[IndexExpr], exists: Value
    ) -> list[np.ndarray]:
        """Index arrays brought into range; raises where an existing instance leaves the tensor."""
        out = []
        for dim, (size, index, value) in enumerate(
            zip(shape, indices, self.indices(indices), strict=True)
        ):
            outside = (value < 0) | (value >= size)
            if np.any(outside):
                if np.any(outside & exists):
                    bad = np.broadcast_to(value, np.broadcast_shapes(value.shape, np.shape(exists)))
                    first = int(bad[np.broadcast_to(outside & exists, bad.shape)].flat[0])
                    raise out_of_range(self.where, name, dim, size, first, index)
                value = np.clip(value, 0, max(size - 1, 0))
            out.append(value)
        return out

    def strided(
        self, name: str, array: np.ndarray, indices: Sequence[IndexExpr]
    ) -> np.ndarray | None:
        """A view of ``array`` whose axes are the space's, or None if the access is not linear."""
        space = self.space
        offset, used = 0, [False] * len(space.names)
        steps = [0] * len(space.names)
        for dim, (index, size, stride) in enumerate(
            zip(indices, array.shape, array.strides, strict=True)
        ):
            if not isinstance(index, Affine):
                return None
            start = low = high = index.const
            for atom, c in index.terms:
                if not isinstance(atom, str):
                    return None
                axis = space.axis.get(atom)
                if axis is None:
                    shift = c * int(space.env[atom])
                    start, low, high = start + shift, low + shift, high + shift
                    continue
                used[axis] = True
                steps[axis] += c * stride
                first, span = c * space.lows[axis], c * (space.extents[axis] - 1)
                start, low, high = (
                    start + first,
                    low + first + min(span, 0),
                    high + first + max(span, 0),
                )
            if low < 0 or high >= size:
                raise out_of_range(self.where, name, dim, size, low if low < 0 else high, index)
            offset += start * stride
        shape = [e if u else 1 for e, u in zip(space.extents, used, strict=True)]
        return np.ndarray(shape, array.dtype, array, offset, steps)


def operate(node: Expr, value: Callable[[Expr], Value]) -> Value:
    """The value of an operation or literal, given ``value`` for its operands."""
    match node:
        case Const():
            return numeric.constant(node.value, node.dtype)
        case Unary():
            return numeric.unary(node.op, value(node.x), node.x.dtype)
        case Binary():
            return numeric.binary(node.op, value(node.a), value(node.b))
        case Select():
            chosen: Value = np.where(value(node.condition), value(node.a), value(node.b))
            return chosen[()]
        case Cast():
            return numeric.cast(value(node.x), node.x.dtype, node.dtype)
        case Call():
            return numeric.call(node.function, tuple(value(a) for a in node.args), node.dtype)
        case _:
            raise IRError(f"{type(node).__name__} cannot stand in a monoid's definition")


def evaluate_scalars(node: Expr, scalars: Mapping[str, Value]) -> Value:
    """The value of an expression of ``Var`` and ``Const`` only, e.g. a monoid's combine."""
    memo: dict[int, Value] = {}

    def visit(n: Expr) -> Value:
        if isinstance(n, Var):
            return scalars[n.name]
        if id(n) not in memo:
            memo[id(n)] = operate(n, visit)
        return memo[id(n)]

    return visit(node)


def out_of_range(
    where: str, name: str, dim: int, size: int, value: int, index: IndexExpr
) -> Exception:
    """The error for an index outside its tensor: the user's if data decides it, else the IR's."""
    message = f"{where}: index {value} of dimension {dim} of {name} is outside [0, {size})"
    if isinstance(index, Affine):
        return IRError(f"{message}; the access is {name}[… {index} …]")
    return IndexOutOfRange(message)
