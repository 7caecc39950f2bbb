"""Sums of products: matrix products of every shape. Convolutions are in ``rules_convolution``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestor.frontends.torch import views
from nestor.frontends.torch.builder import Space
from nestor.frontends.torch.context import Context, Scalar, cast, literal
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.value import Dim, Value
from nestor.ir.expr import Expr, Var, binary, const
from nestor.ir.monoid import sum_of
from nestor.ir.types import DType

_SOURCE = "ATen/native/LinearAlgebra.cpp"


def contract(
    ctx: Context,
    a: Value,
    b: Value,
    labels: str,
    *,
    out: DType,
    scale: float | None = None,
    compute: DType | None = None,
) -> Value:
    """Einstein sum of two operands, e.g. ``"bmk,bkn->bmn"``; labels absent at the end are reduced.

    Accumulates in ``compute`` (None: the computing type of the operands) and rounds once to
    ``out``; ``scale`` multiplies the sum. Dimensions of size 1 broadcast.
    """
    inputs, result = labels.split("->")
    left, right = inputs.split(",")
    sizes, (a, b) = _unify_labels(ctx, [a, b], [left, right])
    order = [*result, *dict.fromkeys(c for c in left + right if c not in result)]
    at = {c: k for k, c in enumerate(order)}
    compute = compute or compute_type(a.dtype)
    state = Var(name="s0", dtype=compute)
    final: Expr = state if scale is None else binary("mul", state, const(scale, compute))

    def body(space: Space) -> tuple[Expr, ...]:
        x = space.read(a, [at[c] for c in left])
        y = space.read(b, [at[c] for c in right])
        return (binary("mul", cast(x, compute), cast(y, compute)),)

    return ctx.reduce(
        [sizes[c] for c in result],
        [sizes[c] for c in order[len(result) :]],
        body,
        sum_of(compute),
        (cast(final, out),),
    )[0]


def _unify_labels(
    ctx: Context, values: Sequence[Value], labels: Sequence[str]
) -> tuple[dict[str, Dim], list[Value]]:
    """One factorisation for each label; operands are flattened where theirs do not agree."""
    values = list(values)
    sizes: dict[str, Dim] = {}
    for label in dict.fromkeys("".join(labels)):
        places = [(n, s.index(label)) for n, s in enumerate(labels) if label in s]
        sizes[label], fitted = ctx.unify_dims([(values[n], k) for n, k in places])
        for (n, _), value in zip(places, fitted):
            values[n] = value
    return sizes, values


def add_scaled(
    ctx: Context, product: Value, bias: Value | None, beta: Scalar, alpha: Scalar, out: DType
) -> Value:
    """``beta * bias + alpha * product``; ``product`` comes in the computing type."""
    compute = product.dtype

    def body(p: Expr, b: Expr) -> Expr:
        p = p if alpha == 1 else binary("mul", p, literal(alpha, compute))
        return binary("add", p, b if beta == 1 else binary("mul", b, literal(beta, compute)))

    if bias is None or beta == 0:
        if alpha == 1:
            return ctx.convert(product, out)
        scale = literal(alpha, compute)
        return ctx.map(lambda p: binary("mul", p, scale), product, compute=compute, out=out)
    return ctx.map(body, product, bias, compute=compute, out=out)


@lower("aten.linear.default", source="ATen/native/Linear.cpp")
def lower_linear(ctx: Context, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """``x · weightᵀ + bias`` over the last dimension."""
    lead = "abcdefgh"[: x.rank - 1]
    n = "n" if weight.rank == 2 else ""
    inner = ctx.out_dtype() if bias is None else compute_type(ctx.out_dtype())
    y = contract(ctx, x, weight, f"{lead}k,{n}k->{lead}{n}", out=inner)
    return y if bias is None else add_scaled(ctx, y, bias, 1, 1, ctx.out_dtype())


@lower("aten.mm.default", source=_SOURCE)
def lower_mm(ctx: Context, a: Value, b: Value) -> Value:
    """Matrix product."""
    return contract(ctx, a, b, "mk,kn->mn", out=ctx.out_dtype())


@lower("aten._int_mm.default", source="ATen/native/cuda/Blas.cpp")
def lower_int_mm(ctx: Context, a: Value, b: Value) -> Value:
    """Matrix product of int8, summed in int32."""
    return contract(ctx, a, b, "mk,kn->mn", out=DType.i32, compute=DType.i32)


@lower("aten._scaled_mm.default", source="ATen/native/cuda/ScaledBlas.cpp")
def lower_scaled_mm(
    ctx: Context,
    a: Value,
    b: Value,
    scale_a: Value,
    scale_b: Value,
    bias: Value | None = None,
    scale_result: Value | None = None,
    out_dtype: Any = None,
    use_fast_accum: bool = False,
) -> Value:
    """Matrix product of floats of 8 bits, with a scale for each operand or each of its rows and
    columns; summed in float32."""
    del out_dtype, use_fast_accum
    scales = [_scale_of(scale_a, 0, a), _scale_of(scale_b, 1, b)]
    if scale_result is not None or None in scales:
        raise NoRule
    product = contract(ctx, a, b, "mk,kn->mn", out=DType.f32, compute=DType.f32)
    out = ctx.out_dtype()
    given = [product, *(s for s in scales if s is not None)]

    def scaled(p: Expr, x: Expr, y: Expr, *rest: Expr) -> Expr:
        p = binary("mul", binary("mul", p, x), y)
        return binary("add", p, rest[0]) if rest else p

    if bias is not None:
        given.append(bias)
    return ctx.map(scaled, *given, compute=DType.f32, out=out)


def _scale_of(scale: Value, dim: int, operand: Value) -> Value | None:
    """A scale of a whole operand, or of its rows (``dim`` 0) or columns, as it broadcasts against
    the product; None where it is one of blocks."""
    if scale.rank == 0:
        return scale
    if scale.rank == 1 and scale.is_unit(0):
        return views.unsqueeze(scale, 0)
    if scale.rank != 2 or not scale.is_unit(1 - dim):
        return None
    return scale if scale.is_unit(dim) or scale.size(dim) == operand.size(dim) else None


@lower("aten.bmm.default", source=_SOURCE)
def lower_bmm(ctx: Context, a: Value, b: Value) -> Value:
    """Batched matrix product."""
    return contract(ctx, a, b, "bmk,bkn->bmn", out=ctx.out_dtype())


@lower("aten.mv.default", source=_SOURCE)
def lower_mv(ctx: Context, a: Value, b: Value) -> Value:
    """Matrix times vector."""
    return contract(ctx, a, b, "mk,k->m", out=ctx.out_dtype())


@lower("aten.dot.default", "aten.vdot.default", source=_SOURCE)
def lower_dot(ctx: Context, a: Value, b: Value) -> Value:
    """Inner product."""
    return contract(ctx, a, b, "k,k->", out=ctx.out_dtype())


@lower("aten.outer.default", "aten.ger.default", source=_SOURCE)
def lower_outer(ctx: Context, a: Value, b: Value) -> Value:
    """Outer product."""
    return ctx.map(lambda x, y: binary("mul", x, y), views.unsqueeze(a, 1), b)


@lower("aten.matmul.default", source=_SOURCE)
def lower_matmul(ctx: Context, a: Value, b: Value) -> Value:
    """Matrix product with broadcast batch dimensions; vectors are rows or columns."""
    batch = "abcdefgh"[: max(a.rank, b.rank, 2) - 2]
    left = batch[len(batch) - max(a.rank - 2, 0) :] + ("k" if a.rank == 1 else "mk")
    right = batch[len(batch) - max(b.rank - 2, 0) :] + ("k" if b.rank == 1 else "kn")
    result = batch + ("" if a.rank == 1 else "m") + ("" if b.rank == 1 else "n")
    return contract(ctx, a, b, f"{left},{right}->{result}", out=ctx.out_dtype())


@lower("aten.addmm.default", source=_SOURCE)
def lower_addmm(
    ctx: Context, bias: Value, a: Value, b: Value, *, beta: Scalar = 1, alpha: Scalar = 1
) -> Value:
    """``beta * bias + alpha * a b``."""
    out = ctx.out_dtype()
    product = contract(ctx, a, b, "mk,kn->mn", out=compute_type(out))
    return add_scaled(ctx, product, bias, beta, alpha, out)


@lower("aten.addmv.default", source=_SOURCE)
def lower_addmv(
    ctx: Context, bias: Value, a: Value, b: Value, *, beta: Scalar = 1, alpha: Scalar = 1
) -> Value:
    """``beta * bias + alpha * a b`` for a vector."""
    out = ctx.out_dtype()
    product = contract(ctx, a, b, "mk,k->m", out=compute_type(out))
    return add_scaled(ctx, product, bias, beta, alpha, out)


@lower("aten.baddbmm.default", source=_SOURCE)
def lower_baddbmm(
    ctx: Context, bias: Value, a: Value, b: Value, *, beta: Scalar = 1, alpha: Scalar = 1
) -> Value:
    """Batched ``beta * bias + alpha * a b``."""
    out = ctx.out_dtype()
    product = contract(ctx, a, b, "bmk,bkn->bmn", out=compute_type(out))
    return add_scaled(ctx, product, bias, beta, alpha, out)
