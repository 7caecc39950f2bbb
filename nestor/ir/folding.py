"""How the interpreter combines elements: folds, trees, scans and contractions on arrays.

All functions take and give arrays with one axis per free index of the statement (``Space``);
reduced axes have extent 1 in a fold's result. Float32 sums and products accumulate in float64,
which is one of the orders that reassociation within a reduction allows, only more exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nestor.ir.evaluate import evaluate_scalars
from nestor.ir.expr import Binary, Var
from nestor.ir.monoid import Monoid
from nestor.ir.numeric import Value, constant, numpy_dtype
from nestor.ir.types import DType

_UFUNCS: dict[str, np.ufunc] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def simple_op(monoid: Monoid, component: int) -> str | None:
    """The operation if the component's combine is just ``a op b``, else None."""
    node = monoid.combine[component]
    if not isinstance(node, Binary) or node.op not in _UFUNCS:
        return None
    left, right = (Var(name=f"{side}{component}", dtype=node.a.dtype) for side in "ab")
    return node.op if (node.a, node.b) == (left, right) else None


def ufunc_of(op: str) -> np.ufunc:
    """NumPy's function for an operation that ``simple_op`` names."""
    return _UFUNCS[op]


def combine(monoid: Monoid, left: Sequence[Value], right: Sequence[Value]) -> list[Value]:
    """``monoid.combine`` on arrays."""
    scalars = {f"a{i}": v for i, v in enumerate(left)}
    scalars.update({f"b{i}": v for i, v in enumerate(right)})
    return [evaluate_scalars(c, scalars) for c in monoid.combine]


def identity(monoid: Monoid) -> list[Value]:
    """The identity state as NumPy scalars."""
    return [constant(c.value, c.dtype) for c in monoid.identity]


def _accumulator(op: str, dtype: DType) -> np.dtype[np.generic]:
    wide = dtype is DType.f32 and op in ("add", "mul")
    return np.dtype(np.float64) if wide else numpy_dtype(dtype)


def fold(
    monoid: Monoid, elements: Sequence[Value], axes: Sequence[int], shape: Sequence[int]
) -> list[Value]:
    """Combine elements along ``axes``, in lexicographic order of ``axes`` as listed.

    Args:
        elements: one value per component.
        axes: the reduced axes.
        shape: full extents of all axes.
    """
    ops = [simple_op(monoid, i) for i in range(len(elements))]
    if all(op is not None for op in ops):
        return [
            _fold_simple(op or "", e, axes, shape, d)
            for op, e, d in zip(ops, elements, monoid.dtypes, strict=True)
        ]
    states = [_flatten(e, axes, shape) for e in elements]
    while states[0].shape[-1] > 1:
        count = states[0].shape[-1]
        pairs = combine(
            monoid, [s[..., 0 : count - 1 : 2] for s in states], [s[..., 1::2] for s in states]
        )
        if count % 2:
            pairs = [_append(p, s[..., -1:]) for p, s in zip(pairs, states, strict=True)]
        states = pairs
    states = combine(monoid, identity(monoid), states)
    return [_unflatten(s, axes, [1] * len(shape)) for s in states]


def _append(pairs: Value, last: np.ndarray) -> np.ndarray:
    """Put the odd one back; combining may have given the pairs axes that the last one lacks."""
    rest = np.broadcast_shapes(pairs.shape[:-1], last.shape[:-1])
    parts = [np.broadcast_to(x, (*rest, x.shape[-1])) for x in (pairs, last)]
    return np.concatenate(parts, axis=-1)


def _fold_simple(
    op: str, element: Value, axes: Sequence[int], shape: Sequence[int], dtype: DType
) -> Value:
    full = _spread(element, axes, shape)
    out = _UFUNCS[op].reduce(full, axis=tuple(axes), dtype=_accumulator(op, dtype), keepdims=True)
    return out.astype(numpy_dtype(dtype), copy=False)


def _spread(element: Value, axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Repeat a value along the axes it does not depend on."""
    array = np.asarray(element)
    if array.ndim == 0:
        array = array.reshape((1,) * len(shape))
    target = list(array.shape)
    for a in axes:
        target[a] = shape[a]
    return np.broadcast_to(array, target)


def _flatten(element: Value, axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Bring ``axes`` to the end, in order, as one axis."""
    full = _spread(element, axes, shape)
    rest = [a for a in range(len(shape)) if a not in axes]
    moved = full.transpose([*rest, *axes])
    return moved.reshape((*moved.shape[: len(rest)], -1))


def _unflatten(state: np.ndarray, axes: Sequence[int], extents: Sequence[int]) -> np.ndarray:
    """Inverse of ``_flatten``; ``extents`` gives the extent of each axis of ``axes``."""
    rank = len(extents)
    rest = [a for a in range(rank) if a not in axes]
    moved = state.reshape((*state.shape[:-1], *(extents[a] for a in axes)))
    order = [*rest, *axes]
    return moved.transpose([order.index(a) for a in range(rank)])


def scan(
    monoid: Monoid, elements: Sequence[Value], axes: Sequence[int], shape: Sequence[int]
) -> list[Value]:
    """Inclusive running states along ``axes``, in lexicographic order of ``axes`` as listed."""
    states = [_flatten(e, axes, shape) for e in elements]
    ops = [simple_op(monoid, i) for i in range(len(elements))]
    if all(op is not None for op in ops):
        out = [
            _UFUNCS[op or ""]
            .accumulate(s, axis=-1, dtype=_accumulator(op or "", d))
            .astype(numpy_dtype(d), copy=False)
            for op, s, d in zip(ops, states, monoid.dtypes, strict=True)
        ]
    else:
        running = [identity(monoid)]
        for k in range(states[0].shape[-1]):
            running.append(combine(monoid, running[-1], [s[..., k] for s in states]))
        del running[0]
        out = [_stack([step[i] for step in running]) for i in range(len(states))]
    return [_unflatten(s, axes, shape) for s in out]


def _stack(values: Sequence[Value]) -> np.ndarray:
    shape = np.broadcast_shapes(*map(np.shape, values))
    return np.stack([np.broadcast_to(v, shape) for v in values], axis=-1)


def contract(
    a: Value, b: Value, axes: Sequence[int], shape: Sequence[int], dtype: DType
) -> np.ndarray:
    """``sum over axes of a * b`` as a batched matrix product.

    Args: a, b: factors; shape: full extents of all axes; dtype: of the factors and the sum.
    """
    rank = len(shape)
    a, b = (np.asarray(x) if np.ndim(x) else np.full((1,) * rank, x) for x in (a, b))
    is_calm = not dtype.is_float or _products_stay_finite(
        a, b, math.prod(shape[r] for r in axes), dtype
    )
    if dtype is DType.f32 and is_calm:
        a, b = a.astype(np.float64), b.astype(np.float64)
    repeat = 1
    for r in axes:
        in_a, in_b = a.shape[r] == shape[r], b.shape[r] == shape[r]
        if shape[r] == 1 or (in_a and in_b):
            continue
        if not is_calm:
            # a*b[0] + a*b[1] = a*(b[0] + b[1]) fails for infinities: inf*1 + inf*-2 is NaN.
            a, b = (np.repeat(x, shape[r], axis=r) if x.shape[r] == 1 else x for x in (a, b))
        elif not in_a and not in_b:
            repeat *= shape[r]
        elif in_a:
            a = np.add.reduce(a, axis=r, keepdims=True, dtype=a.dtype)
        else:
            b = np.add.reduce(b, axis=r, keepdims=True, dtype=b.dtype)
    out = _matmul(a, b, axes, rank)
    if repeat != 1:
        out = out * np.array(repeat).astype(out.dtype)
    return out.astype(numpy_dtype(dtype), copy=False)


def _products_stay_finite(a: np.ndarray, b: np.ndarray, terms: int, dtype: DType) -> bool:
    """No product, and no sum of factors or products, can overflow in ``dtype``."""
    limit = 3.0e38 if dtype is DType.f32 else 1.0e308
    largest = (np.float64(np.max(np.abs(x), initial=0)) for x in (a, b))
    x, y = largest
    return bool(np.max([x * y, x, y]) * terms < limit)


def _matmul(a: np.ndarray, b: np.ndarray, axes: Sequence[int], rank: int) -> np.ndarray:
    """``(batch, m, k) @ (batch, k, n)`` by the roles that the extents show."""
    k = list(axes)
    free = [r for r in range(rank) if r not in axes]
    batch = [r for r in free if a.shape[r] > 1 and b.shape[r] > 1]
    m = [r for r in free if a.shape[r] > 1 and b.shape[r] == 1]
    n = [r for r in free if r not in batch and r not in m]
    left = a.transpose([*batch, *m, *k, *n])
    right = b.transpose([*batch, *k, *n, *m])
    sizes_batch = left.shape[: len(batch)]
    sizes_m, sizes_n = [a.shape[r] for r in m], [b.shape[r] for r in n]
    depth = math.prod(a.shape[r] for r in k)
    product = np.matmul(
        left.reshape((*sizes_batch, math.prod(sizes_m), depth)),
        right.reshape((*sizes_batch, depth, math.prod(sizes_n))),
    )
    out = product.reshape((*sizes_batch, *sizes_m, *sizes_n, *([1] * len(k))))
    order = [*batch, *m, *n, *k]
    placed: np.ndarray = out.transpose([order.index(r) for r in range(rank)])
    return placed
