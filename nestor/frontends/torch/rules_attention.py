"""Attention as contractions around a softmax."""

from __future__ import annotations

import math
from typing import Any

from nestor.errors import Unsupported
from nestor.frontends.torch import views
from nestor.frontends.torch.context import Context, select
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.rules_contract import contract
from nestor.frontends.torch.rules_softmax import softmax
from nestor.frontends.torch.rules_view import reshape_to
from nestor.frontends.torch.sizes import Size
from nestor.frontends.torch.value import Value, linear_placeholder
from nestor.ir.expr import Expr, Index, binary, const, lowest
from nestor.ir.types import DType

_SOURCE = "ATen/native/transformers/attention.cpp"


@lower("aten.scaled_dot_product_attention.default", source=_SOURCE)
def lower_sdpa(
    ctx: Context,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """``softmax(q kᵀ * scale + mask) v``; a fully masked row gives 0."""
    if dropout_p != 0.0:
        raise NoRule
    if scale is None:
        width = query.size(query.rank - 1).constant
        if width is None:
            raise Unsupported("attention with a symbolic head size; make it static")
        scale = 1.0 / math.sqrt(width) if width else 1.0
    grouped = enable_gqa and query.size(query.rank - 3) != key.size(key.rank - 3)
    if grouped:
        query, key, value, attn_mask = _group(ctx, query, key, value, attn_mask)
    out = _attend(ctx, query, key, value, attn_mask, is_causal, scale)
    if grouped:
        out = reshape_to(ctx, out, [*(out.size(k) for k in range(out.rank - 4)),
                                    out.size(out.rank - 4) * out.size(out.rank - 3),
                                    out.size(out.rank - 2), out.size(out.rank - 1)])  # fmt: skip
    return out


def _group(
    ctx: Context, query: Value, key: Value, value: Value, mask: Value | None
) -> tuple[Value, Value, Value, Value | None]:
    """Split query heads (…, H, S, E) into (…, G, H/G, S, E); keys get a dimension of 1."""
    groups = key.size(key.rank - 3)
    each = query.size(query.rank - 3).divide(groups)
    if each is None:
        raise NoRule
    query = _split_heads(ctx, query, groups, each)
    key, value = (views.unsqueeze(v, v.rank - 2) for v in (key, value))
    if mask is not None and mask.rank >= 3:
        if mask.is_unit(mask.rank - 3):
            mask = views.unsqueeze(mask, mask.rank - 2)
        else:
            mask = _split_heads(ctx, mask, groups, each)
    return query, key, value, mask


def _split_heads(ctx: Context, x: Value, groups: Size, each: Size) -> Value:
    sizes = [x.size(k) for k in range(x.rank)]
    return reshape_to(ctx, x, [*sizes[:-3], groups, each, *sizes[-2:]])


def _attend(
    ctx: Context,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    is_causal: bool,
    scale: float,
) -> Value:
    out = query.dtype
    compute = compute_type(out)
    rank = max(query.rank, key.rank, value.rank)
    query, key, value = (_pad_rank(v, rank) for v in (query, key, value))
    batch = "abcdefgh"[: rank - 2]
    scores = contract(ctx, query, key, f"{batch}sk,{batch}tk->{batch}st", out=compute, scale=scale)
    if is_causal:
        scores = _apply_causal(ctx, scores)
    if mask is not None:
        scores = _apply_mask(ctx, scores, mask, compute)
    masked = mask is not None or is_causal
    weights = softmax(ctx, scores, rank - 1, compute, safe=masked)
    return contract(ctx, weights, value, f"{batch}st,{batch}tk->{batch}sk", out=out)


def _pad_rank(x: Value, rank: int) -> Value:
    while x.rank < rank:
        x = views.unsqueeze(x, 0)
    return x


def _apply_causal(ctx: Context, scores: Value) -> Value:
    """``-inf`` right of the diagonal, counted from the top left."""
    scores = ctx.flat(ctx.flat(scores, scores.rank - 1), scores.rank - 2)
    dims = scores.dims[-2:]
    row, column = linear_placeholder(dims, 0), linear_placeholder(dims, 1)
    assert row is not None and column is not None
    test = Value(dims, binary("ge", Index(value=row - column), const(0, DType.i64)))
    return _select_scores(ctx, test, scores)


def _select_scores(ctx: Context, test: Value, scores: Value) -> Value:
    dims, (t, s) = ctx.unify([test, scores])
    low = const(lowest(scores.dtype), scores.dtype)
    return ctx.pointwise(dims, lambda p: (select(p.read(t), p.read(s), low),))[0]


def _apply_mask(ctx: Context, scores: Value, mask: Value, compute: DType) -> Value:
    """A bool mask keeps where true; a float mask is added."""
    if mask.dtype is DType.bool:
        return _select_scores(ctx, mask, scores)

    def body(s: Expr, m: Expr) -> Expr:
        return binary("add", s, m)

    return ctx.map(body, scores, mask, compute=compute, out=compute)


@lower("aten._scaled_dot_product_flash_attention_for_cpu.default", source=_SOURCE)
def lower_flash_for_cpu(
    ctx: Context,
    query: Value,
    key: Value,
    value: Value,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Value | None = None,
    scale: float | None = None,
    **keywords: Any,
) -> tuple[Value, Value]:
    """The same without its log-sum-exp, which only training reads."""
    if 1 in ctx.used:
        raise NoRule
    out = lower_sdpa(ctx, query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    return out, out
