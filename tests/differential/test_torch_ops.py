"""Every lowering rule of the PyTorch frontend against eager, through the reference interpreter.

Each case is a function of tensors and several sets of inputs: odd, size-1 and empty shapes, strided
inputs, NaN and infinities where they matter. ``test_every_rule_is_exercised`` fails when a rule has
no case.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.torch_reference import check_model
from torch import Tensor, nn

from nestor.frontends.torch import exporting
from nestor.frontends.torch.recurrent_ops import NAMESPACE
from nestor.frontends.torch.rules import RULES

Maker = Callable[[torch.Generator], Tensor]
A = torch.ops.aten


def r(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Maker:
    """Normal values."""
    return lambda g: (scale * torch.randn(shape, generator=g)).to(dtype)


def u(*shape: int, low: float = 0.0, high: float = 1.0) -> Maker:
    """Uniform values."""
    return lambda g: low + (high - low) * torch.rand(shape, generator=g)


def i(*shape: int, low: int = -4, high: int = 5, dtype: torch.dtype = torch.int64) -> Maker:
    """Integers in ``[low, high)``."""
    return lambda g: torch.randint(low, high, shape, generator=g).to(dtype)


def b(*shape: int) -> Maker:
    """Booleans."""
    return lambda g: torch.rand(shape, generator=g) > 0.5


def t(*shape: int) -> Maker:
    """Normal values, transposed in memory."""
    return lambda g: torch.randn(shape[::-1], generator=g).permute(*reversed(range(len(shape))))


def fixed(*values: Any, dtype: torch.dtype = torch.float32) -> Maker:
    """These values."""
    return lambda g: torch.tensor(values, dtype=dtype)


NAN, INF = float("nan"), float("inf")
SPECIAL = fixed(0.0, -0.0, 1.0, -1.5, 0.5, 2.5, INF, -INF, NAN, 1e-40, -3e38, 88.0, -104.0)
HALF, BF16 = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A function and sets of inputs for it."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[tuple[Maker, ...], ...]
    externs: int = 0
    rtol: float | None = None
    atol: float | None = None


CASES: list[Case] = []


def case(name: str, function: Callable[..., Any], *inputs: Any, **settings: Any) -> None:
    """Add a case; a set of one input may be given without its tuple."""
    sets = tuple(x if isinstance(x, tuple) else (x,) for x in inputs)
    CASES.append(Case(name, function, sets, **settings))


# ---------------------------------------------------------------------------------- pointwise

for _name in (
    "abs neg sign sgn exp exp2 expm1 sin cos tan atan sinh cosh tanh asinh erf erfc sigmoid floor"
    " ceil trunc round frac square isnan isinf isfinite relu silu"
).split():
    case(_name, getattr(A, _name).default, SPECIAL, r(3, 5), t(4, 3), r(1), r(0, 4))
for _name in "log log2 log1p log10 sqrt rsqrt reciprocal lgamma".split():
    case(_name, getattr(A, _name).default, SPECIAL, u(3, 5, low=0.1, high=9.0), u(), rtol=1e-5)
for _name in "asin acos atanh".split():
    case(_name, getattr(A, _name).default, u(3, 5, low=-0.9, high=0.9), fixed(1.0, -1.0, 2.0, NAN))
case("acosh", A.acosh.default, u(3, 5, low=1.0, high=9.0), fixed(1.0, 0.5, INF))
case("exp_int", torch.exp, i(3, 2))
case("exp_half", torch.exp, r(3, 4, dtype=HALF), r(3, 4, dtype=BF16))
case("sigmoid_bf16", torch.sigmoid, r(5, dtype=BF16))
case("floor_int", A.floor.default, i(3, 2))
case("is_int", lambda x: (torch.isnan(x), torch.isinf(x), torch.isfinite(x)), i(3, 2))
case("abs_int", torch.abs, i(3, 2), i(4, dtype=torch.int8, low=-128, high=127))
case("neg_u8", torch.neg, i(4, low=0, high=255, dtype=torch.uint8))
case("logical_not", torch.logical_not, b(3), r(3), i(3, low=0, high=2))
case("bitwise_not", torch.bitwise_not, b(3), i(4))

case("add", torch.add, (r(3, 4), r(3, 4)), (r(3, 1), r(4)), (t(4, 3), r(4, 1)), (r(0, 3), r(3)))
case("add_alpha", lambda x, y: torch.add(x, y, alpha=0.5), (r(3, 4), r(4)))
case("add_mixed", torch.add, (r(3), i(3)), (i(3), b(3)), (r(3, dtype=HALF), r(1)), (b(3), b(3)))
case("add_scalar", lambda x: (x + 1.5, 2 - x, x + 1), r(3, 4), i(5), r(3, dtype=BF16))
case("promote_zero_dim", torch.add, (r(3, dtype=HALF), fixed(2.0).__call__ and r()), (i(3), r()))
case("sub", torch.sub, (r(3, 4), r(4)), (i(3), i(3, dtype=torch.int32)))
case("rsub", lambda x, y: (torch.rsub(x, 2.0), torch.rsub(x, y, alpha=3)), (r(3), r(3)))
case("mul", torch.mul, (r(3, 4), r(4)), (b(3), b(3)), (r(3, dtype=BF16), r(3, dtype=BF16)))
case("mul_scalar", lambda x: A.mul.Scalar(x, 3), r(3), i(3))
case("div", torch.div, (r(3, 4), r(4)), (i(3), i(3, low=1)), (SPECIAL, r(13)))
case("div_scalar", lambda x: (x / 3, A.div.Scalar(x, 0.5)), r(3), i(3))
for _mode in ("floor", "trunc"):
    case(
        f"div_{_mode}",
        lambda x, y, m=_mode: torch.div(x, y, rounding_mode=m),
        (r(3, 4), r(4)),
        (i(3, 4), i(4, low=1)),
        (i(4), fixed(-3, 3, -2, 5, dtype=torch.int64)),
    )
    case(f"div_{_mode}_scalar", lambda x, m=_mode: torch.div(x, 3, rounding_mode=m), r(9), i(9))
case("floor_divide", lambda x, y: (x // y, x // 2), (i(9), i(9, low=1)), (r(5), r(5)))
case("remainder", lambda x, y: (x % y, x % 3), (i(9), i(9, low=1)), (r(9), r(9)))
case("fmod", lambda x, y: (torch.fmod(x, y), torch.fmod(x, 3)), (i(9), i(9, low=1)), (r(9), r(9)))
_WITH_NAN = (SPECIAL, lambda g: torch.flip(SPECIAL(g), [0]))
for _name in "maximum minimum fmax fmin".split():
    case(_name, getattr(A, _name).default, (r(3, 4), r(4)), (i(3), i(3)), _WITH_NAN)
case("max_min_other", lambda x, y: (torch.max(x, y), torch.min(x, y)), (r(3, 4), r(4)))
for _name in "eq ne lt le gt ge".split():
    case(_name, getattr(torch, _name), (r(3, 4), r(4)), (i(9), i(9)), (i(3), r(3)), _WITH_NAN)
    case(f"{_name}_scalar", lambda x, f=getattr(torch, _name): f(x, 1), SPECIAL, i(9), b(4))
for _name in "and or xor".split():
    case(
        f"bitwise_{_name}",
        lambda x, y, f=getattr(torch, f"bitwise_{_name}"): (f(x, y), f(x, 3)),
        (i(9), i(9)),
    )
    case(f"logical_{_name}", getattr(torch, f"logical_{_name}"), (r(4), b(4)), (b(4), b(4)))
    case(
        f"dunder_{_name}",
        lambda x, y, f=getattr(A, f"__{_name}__"): (f.Tensor(x, y), f.Scalar(x, 1)),
        (i(9), i(9)),
        (b(4), b(4)),
    )
case("shifts", lambda x, y: (x << y, x >> y, x << 2, x >> 1), (i(9), i(9, low=0, high=5)))
case("atan2", torch.atan2, (r(9), r(9)))
for _e in (0, 1, 2, 3, 0.5, -0.5, -1, -2, 1.7):
    case(f"pow_{_e}", lambda x, e=_e: torch.pow(x, e), u(9, low=0.1, high=3.0), rtol=1e-5)
case("pow_int", lambda x: torch.pow(x, 2), i(9))
case("pow_tensor", torch.pow, (u(9, low=0.1, high=3.0), r(9)), (i(5), i(5, low=0)), rtol=1e-5)
case("pow_scalar_base", lambda x: torch.pow(2.0, x), r(9), rtol=1e-5)
case("addcmul", lambda x, y, z: torch.addcmul(x, y, z, value=0.5), (r(3, 4), r(4), r(3, 1)))
case("addcdiv", lambda x, y, z: torch.addcdiv(x, y, z, value=2), (r(4), r(4), u(4, low=0.5)))
case("lerp", lambda x, y, w: (torch.lerp(x, y, w), torch.lerp(x, y, 0.7)), (r(4), r(4), u(4)))
case("where", torch.where, (b(3, 4), r(3, 4), r(4)), (b(3, 1), r(4), fixed(0.0).__call__ and r(1)))
case("where_scalar", lambda c, x: (torch.where(c, x, 0.0), torch.where(c, 1.0, x)), (b(4), r(4)))
case("where_scalars", lambda c: torch.where(c, 1.0, 2.0), b(4))
case("where_constant", lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, 0.0), r(2, 3))
case("masked_fill", lambda x, m, v: (x.masked_fill(m, -INF), x.masked_fill(m, v)), (r(3, 4), b(4), r()))
case("to", lambda x: (x.to(torch.int32), x.double(), x.bool(), x.half(), x.to(BF16)), r(9, scale=9))
case("to_small", lambda x: (x.to(torch.uint8), x.to(torch.int8)), i(9, low=-300, high=300))
case("type_as", lambda x, y: (x.type_as(y), x.to(y)), (r(4), i(4)))
case("to_copy", lambda x: A._to_copy(x, dtype=torch.float64), r(4))
case("convert_element_type", lambda x: torch.ops.prims.convert_element_type(x, torch.int64), r(4))
case("clone", lambda x: (x.clone(), x.detach(), x.contiguous()), t(3, 4))
case("positive", lambda x: A.positive.default(x), r(4))
case("alias", lambda x: A.alias.default(x), r(4))
case("copy", lambda x, y: A.copy.default(x, y), (r(3, 4), i(4)))
case("dropout_eval", lambda x: F.dropout(x, 0.5, training=False), r(4))
case("native_dropout_eval", lambda x: A.native_dropout(x, 0.5, False)[0], r(4))
case("clamp", lambda x: (x.clamp(-1, 1), x.clamp(min=0.5), x.clamp(max=0.5)), SPECIAL, i(9), r(2, 3))
case("clamp_tensor", lambda x, lo, hi: torch.clamp(x, lo, hi), (r(3, 4), fixed(-0.5), r(4)))
case("clamp_min_max", lambda x: (A.clamp_min(x, 0.5), A.clamp_max(x, 0.5)), SPECIAL, i(9))
case("clamp_min_max_tensor", lambda x, y: (A.clamp_min.Tensor(x, y), A.clamp_max.Tensor(x, y)), (r(4), r(4)))
case("nan_to_num", lambda x: (torch.nan_to_num(x), torch.nan_to_num(x, 1.0, 2.0, -3.0)), SPECIAL, i(3))

# --------------------------------------------------------------------------------- activations

for _name in "relu6 hardsigmoid hardswish mish elu selu celu softplus hardtanh leaky_relu".split():
    case(_name, getattr(F, _name), SPECIAL, r(3, 5, scale=3), r(4, dtype=BF16))
case("gelu", F.gelu, SPECIAL, r(3, 5), r(4, dtype=HALF))
case("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), r(3, 5, scale=3))
case("logsigmoid", F.logsigmoid, fixed(0.0, 90.0, -90.0, INF), r(3, 5))
case("log_sigmoid", A.log_sigmoid.default, r(3, 5))
case("aten_relu6", A.relu6.default, r(3, 5, scale=4))
case("aten_mish", A.mish.default, r(3, 5, scale=4))
case("prelu", F.prelu, (r(2, 3, 4), r(3)), (r(2, 3), r(1)), (r(5), r(1)))
case("prelu_kernel", A._prelu_kernel.default, (r(2, 3), r(2, 3)))
case("shrink", lambda x: (F.hardshrink(x), F.softshrink(x)), SPECIAL, r(3, 5))
case("threshold", lambda x: F.threshold(x, 0.1, 20.0), SPECIAL, r(3, 5))
case("softplus_beta", lambda x: F.softplus(x, 2.0, 5.0), r(9, scale=4))
case("glu", lambda x: (F.glu(x), F.glu(x, 1)), r(3, 4, 6), t(2, 2, 4))

# --------------------------------------------------------------------------------------- views

case("view", lambda x: (x.view(2, 6), x.view(-1), x.view(3, 2, 2)), r(3, 4))
case("view_odd", lambda x: x.reshape(8, 3), r(6, 4), t(6, 4))
case("view_merge_permuted", lambda x: x.permute(0, 2, 1, 3).reshape(2, 5, 12).exp(), r(2, 3, 5, 4))
case("view_chain", lambda x: x.permute(1, 0, 2).reshape(3, 8).reshape(12, 2).t() + 1, r(2, 3, 4))
case("view_empty", lambda x: x.view(0, 6), r(0, 2, 3))
case("view_units", lambda x: x.view(1, 3, 1, 4, 1) * 2, r(3, 4))
case("view_after_slice", lambda x: x[:, 1:3].reshape(-1) + 1, r(3, 4))
case("unsafe_view", lambda x: A._unsafe_view(x, [6]), r(2, 3))
case("view_same_dtype", lambda x: x.view(torch.float32) + 1, r(2, 3))
case("view_other_dtype", lambda x: x.view(torch.int32), r(2, 3), externs=1)
case("permute", lambda x: x.permute(2, 0, 1), r(2, 3, 4), r(1, 3, 0))
case("transpose", lambda x: (x.transpose(0, -1), x.mT, x[0].t()), r(2, 3, 4))
case("t_vector", lambda x: x.t() + 1, r(4))
case("expand", lambda x: (x.expand(2, 3, 4) + 1, x.expand(-1, 4)), r(3, 1))
case("expand_as", lambda x, y: x.expand_as(y) * 1, (r(3, 1), r(3, 4)))
case("broadcast_to", lambda x: torch.broadcast_to(x, (2, 3)) * 1, r(3))
case("unsqueeze", lambda x: (x.unsqueeze(0), x.unsqueeze(-1)), r(3, 4), r())
case("squeeze", lambda x: (x.squeeze(), x.squeeze(1), x.squeeze((0, 1)), x.squeeze(2)), r(1, 1, 3))
case("slice", lambda x: (x[1:], x[:-1], x[::2], x[1:9:3], x[:, -2:], x[5:]), r(4, 5))
case("narrow", lambda x: x.narrow(1, 1, 2) + 1, r(3, 4))
case("select", lambda x: (x[0], x[-1], x[:, 1]), r(3, 4))
case("select_of_merged", lambda x: x.permute(0, 2, 1).reshape(2, 12)[:, 7], r(2, 3, 4))
case("slice_of_merged", lambda x: x.permute(0, 2, 1).reshape(2, 12)[:, 3:9:2] + 1, r(2, 3, 4))
case("split", lambda x: x.split([1, 3], 1) + x.split(2) + x.chunk(2, -1), r(3, 4))
case("unbind", lambda x: x.unbind(1), r(3, 2))
case("unfold", lambda x: x.unfold(1, 3, 2) * 1, r(2, 8))
case("flip", lambda x: (x.flip(0), x.flip([0, 1]) + 1), r(3, 4))
case("flip_of_merged", lambda x: x.permute(1, 0).reshape(12).flip(0), r(3, 4))
case("repeat", lambda x: (x.repeat(2, 3), x.repeat(2, 1, 2)), r(3, 2), r(1, 2))
case("repeat_interleave", lambda x: (x.repeat_interleave(3, 1), x.repeat_interleave(2)), r(3, 2))
case("diagonal", lambda x: (x.diagonal(), x.diagonal(1), x.diagonal(-1, 1, 0)), r(3, 4))
case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), r(2, 8, 3, 2))
case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), r(2, 3, 4, 6))
case("channel_shuffle", lambda x: F.channel_shuffle(x, 2), r(1, 4, 3, 2))
case("flatten", lambda x: (x.flatten(1), x.unflatten(1, (3, 1))), r(2, 3, 4))

# -------------------------------------------------------------------------------------- create


def _created(x: Tensor) -> tuple[Tensor, ...]:
    return (
        torch.zeros(2, 3) + x,
        torch.ones(3) * x,
        torch.full((2, 3), 2.5),
        torch.zeros_like(x),
        torch.ones_like(x),
        torch.full_like(x, 3.0),
        x.new_zeros(2),
        x.new_ones(2),
        x.new_full((2,), 4.0),
        torch.empty_like(x).fill_(1.0),
        torch.empty(3).zero_(),
        torch.scalar_tensor(2.0),
        torch.eye(3),
        torch.eye(2, 3),
    )


case("create", _created, r(2, 3))
case("arange", lambda x: (torch.arange(4) + x, torch.arange(1, 9, 2), torch.arange(0.0, 1.0, 0.3)), r(4))
case("arange_f32", lambda x: torch.arange(5, dtype=torch.float32) * x, r(5))
case("iota", lambda x: torch.ops.prims.iota(4, start=2, step=3, dtype=torch.int64, device="cpu", requires_grad=False) + x, i(4))
case("linspace", lambda x: (torch.linspace(-1, 1, 7) + x, torch.linspace(0, 1, 1)), r(7))
case("tri", lambda x: (x.tril(), x.triu(1), x.tril(-1), torch.ones(3, 4).triu()), r(3, 4), r(2, 3, 4))
case("fill", lambda x, v: (A.fill.Scalar(x, 2), A.fill.Tensor(x, v)), (r(3, 4), r()))
case("causal_mask", lambda x: x.masked_fill(torch.arange(4)[:, None] < torch.arange(4)[None], -INF), r(4, 4))
case("empty", lambda x: (torch.empty(3) * 0 == 0).sum() * 0 + A.new_empty(x, [2]).shape[0] + x, r(3))

# -------------------------------------------------------------------------------------- reduce

for _name in "sum mean amax amin prod std var any all argmax argmin logsumexp".split():
    _f = getattr(torch, _name)
    _sets = (r(3, 5), t(4, 3), r(2, 1), r(1, 7))
    case(f"{_name}_dim", lambda x, f=_f: (f(x, dim=1), f(x, dim=0, keepdim=True)), *_sets[:2], r(2, 2))
for _name in "sum mean prod max min any all std var".split():
    case(f"{_name}_all", getattr(torch, _name), r(3, 5), t(2, 3, 4))
case("argmax_all", lambda x: (x.argmax(), x.argmin(), x.argmax(keepdim=True)), r(3, 5), _WITH_NAN[0])
case("argmax_ties", lambda x: (x.argmax(0), x.argmin(0)), i(9, low=0, high=2), b(5).__call__ and i(4))
case("argmax_nan", lambda x: (x.argmax(1), x.argmin(1)), fixed([1.0, NAN, 2.0], [NAN, NAN, 0.0]))
case("max_dim", lambda x: (*x.max(1), *x.min(0)), r(3, 5), i(3, 4))
case("max_dim_value", lambda x: (x.max(1).values, x.min(0)[0]), r(3, 5), r(3, dtype=BF16).__call__ and r(2, 2))
case("max_scalar", lambda x: x.max(0)[0], r())
case("amax_nan", lambda x: (x.amax(1), x.amin(1), x.amax((0, 1))), fixed([1.0, NAN], [2.0, -INF]))
case("amax_bool", lambda x: (x.amax(0), x.amin(0)), b(3, 2))
case("sum_types", lambda x: (x.sum(), x.sum(dtype=torch.float64)), i(5), b(5), r(5, dtype=HALF))
case("sum_dims", lambda x: (x.sum((0, 2)), x.mean((-1, -2), True)), r(2, 3, 4), r(2, 3, 1))
case("sum_empty", lambda x: (x.sum(0), x.sum(1), x.prod(0), x.any(0), x.all(0)), r(0, 3))
case("sum_merged", lambda x: x.permute(0, 2, 1).reshape(2, 12).sum(1), r(2, 3, 4))
case("mean_empty", lambda x: x.mean(0), r(0, 3))
case("mean_bf16", lambda x: x.mean(-1), r(3, 40, dtype=BF16))
case("any_types", lambda x: (x.any(), x.all(), x.any(0)), i(3, 2, low=0, high=2), fixed(NAN, 0.0))
case("any_u8", lambda x: x.any(0), i(3, 2, low=0, high=2, dtype=torch.uint8))
case("any_dims", lambda x: (A.any.dims(x, [0, 1]), A.all.dims(x, [0])), b(3, 2))
case("var_correction", lambda x: (x.var(1, correction=0), x.std(0, correction=2)), r(3, 5))
case("var_mean", lambda x: (*torch.var_mean(x, 1), *torch.std_mean(x, 0)), r(3, 5))
case("var_one", lambda x: x.var(1), r(3, 1))
case("vector_norm", lambda x: tuple(torch.linalg.vector_norm(x, p, dim=1) for p in (0, 1, 2, 3, INF, -INF)), r(3, 5))
case("norm", lambda x: (x.norm(), x.norm(1, dim=0), x.norm(dim=1, keepdim=True)), r(3, 5))
case("aten_norm", lambda x: (A.norm.Scalar(x, 2), A.norm.ScalarOpt_dim(x, 2, [1])), r(3, 5))
case("normalize", lambda x: F.normalize(x, dim=1), r(3, 5), fixed([0.0, 0.0], [1.0, 2.0]))
case("softmax", lambda x: (x.softmax(-1), x.softmax(0)), r(3, 5, scale=9), fixed([1.0, -INF], [-INF, -INF]))
case("softmax_scalar", lambda x: x.softmax(0), r())
case("softmax_bf16", lambda x: x.softmax(-1), r(3, 5, dtype=BF16))
case("softmax_to_double", lambda x: x.softmax(-1, dtype=torch.float64), r(3, 5))
case("log_softmax", lambda x: (x.log_softmax(-1), F.log_softmax(x, 0)), r(3, 5, scale=9))
case("internal_softmax", lambda x: (A._softmax(x, 1, False), A._log_softmax(x, 1, False)), r(3, 5))
case("safe_softmax", lambda x: A._safe_softmax(x, 1), r(3, 5), fixed([1.0, -INF], [-INF, -INF]))
case("logsumexp_inf", lambda x: x.logsumexp(1), fixed([1.0, -INF], [-INF, -INF], [INF, 0.0]))
case("cumsum", lambda x: (x.cumsum(0), x.cumsum(-1)), r(3, 5), i(3, 4), r(1, 1), r(0, 2))
case("cumprod", lambda x: x.cumprod(1), r(3, 5), i(2, 3))
case("cumsum_scalar", lambda x: x.cumsum(0), r())
case("cumsum_bool", lambda x: x.cumsum(0), b(4))
case("cummax", lambda x: (*x.cummax(1), *x.cummin(0)), r(3, 5), i(3, 4, low=0, high=2), fixed([1.0, NAN, 3.0]))

# ------------------------------------------------------------------------------------ contract

case("linear", F.linear, (r(3, 4), r(5, 4), r(5)), (r(2, 3, 4), r(5, 4)), (r(4), r(5, 4), r(5)))
case("linear_vector", F.linear, (r(2, 4), r(4)))
case("linear_half", F.linear, (r(3, 4, dtype=BF16), r(5, 4, dtype=BF16), r(5, dtype=BF16)))
case("linear_merged", lambda x, w: F.linear(x.permute(0, 2, 1, 3).reshape(2, 5, 12), w), (r(2, 3, 5, 4), r(7, 12)))
case("linear_f64", F.linear, (r(3, 4, dtype=torch.float64), r(5, 4, dtype=torch.float64)))
case("mm", torch.mm, (r(3, 4), r(4, 5)), (t(3, 4), t(4, 5)), (r(3, 1), r(1, 5)), (r(3, 0), r(0, 5)))
case("mm_int", torch.mm, (i(3, 4), i(4, 5)))
case("bmm", torch.bmm, (r(2, 3, 4), r(2, 4, 5)), (r(1, 1, 4), r(1, 4, 1)))
case("mv_dot", lambda m, x: (torch.mv(m, x), torch.dot(x, x), torch.vdot(x, x)), (r(3, 4), r(4)))
case("outer", lambda x, y: torch.outer(x, y), (r(3), r(4)))
case("ger", lambda x, y: A.ger.default(x, y), (r(3), r(4)))
case(
    "matmul",
    torch.matmul,
    (r(3, 4), r(4)),
    (r(4), r(4, 5)),
    (r(4), r(4)),
    (r(2, 1, 3, 4), r(5, 4, 2)),
    (r(2, 3, 4), r(4)),
    (r(4), r(2, 4, 3)),
)
case("addmm", lambda c, x, y: torch.addmm(c, x, y, beta=0.5, alpha=2.0), (r(3, 5), r(3, 4), r(4, 5)), (r(5), r(3, 4), r(4, 5)))
case("addmm_beta0", lambda c, x, y: torch.addmm(c, x, y, beta=0, alpha=2.0), (fixed([NAN]), r(3, 4), r(4, 5)))
case("addmv", torch.addmv, (r(3), r(3, 4), r(4)))
case("baddbmm", torch.baddbmm, (r(2, 3, 5), r(2, 3, 4), r(2, 4, 5)))
case("einsum", lambda x, y: torch.einsum("bhqd,bkhd->bhqk", x, y), (r(2, 3, 4, 5), r(2, 6, 3, 5)))

for _groups, _ci, _co in ((1, 3, 4), (2, 4, 6), (4, 4, 8)):
    for _s, _p, _d in ((1, 0, 1), (2, 1, 1), (1, 2, 2)):
        case(
            f"conv2d_g{_groups}_s{_s}_p{_p}_d{_d}",
            lambda x, w, c, a=(_s, _p, _d, _groups): F.conv2d(x, w, c, *a),
            (r(2, _ci, 9, 7), r(_co, _ci // _groups, 3, 3), r(_co)),
        )
        case(
            f"conv_transpose2d_g{_groups}_s{_s}_p{_p}_d{_d}",
            lambda x, w, c, a=(_s, _p, _s - 1, _groups, _d): F.conv_transpose2d(x, w, c, *a),
            (r(2, _ci, 4, 5), r(_ci, _co // _groups, 3, 3), r(_co)),
        )
case("conv1d", lambda x, w: F.conv1d(x, w, stride=2, padding=3), (r(2, 3, 10), r(4, 3, 5)), (r(3, 10), r(4, 3, 5)))
case("conv1d_same", lambda x, w: F.conv1d(x, w, padding="same"), (r(2, 3, 7), r(4, 3, 4)), (r(2, 3, 7), r(4, 3, 1)))
case("conv2d_valid", lambda x, w: F.conv2d(x, w, padding="valid"), (r(2, 3, 7, 6), r(4, 3, 4, 2)))
case("conv3d", lambda x, w: F.conv3d(x, w, stride=(1, 2, 1), padding=1), (r(1, 2, 4, 5, 3), r(3, 2, 2, 3, 1)))
case("conv3d_same", lambda x, w: F.conv3d(x, w, padding="same"), (r(1, 2, 4, 5, 3), r(3, 2, 2, 3, 1)))
case("conv_transpose1d", lambda x, w: F.conv_transpose1d(x, w, stride=3, padding=1), (r(2, 3, 5), r(3, 2, 4)))
case("conv_transpose3d", lambda x, w: F.conv_transpose3d(x, w, stride=2), (r(1, 2, 2, 3, 2), r(2, 3, 2, 1, 2)))
case("convolution", lambda x, w: A.convolution(x, w, None, [1], [1], [1], False, [0], 1), (r(2, 3, 5), r(4, 3, 3)))
case("conv_of_padded", lambda x, w: F.conv2d(F.pad(x, (1, 2, 0, 1), value=2.0), w, padding=1), (r(1, 2, 4, 5), r(3, 2, 3, 3)))
case("conv_bf16", lambda x, w, c: F.conv2d(x, w, c), (r(1, 3, 5, 5, dtype=BF16), r(4, 3, 3, 3, dtype=BF16), r(4, dtype=BF16)))
case("conv_channels_last", lambda x, w: F.conv2d(x, w), (lambda g: torch.randn(2, 3, 5, 6, generator=g).to(memory_format=torch.channels_last), r(4, 3, 3, 3)))

# --------------------------------------------------------------------------------- pool, resize

for _n, _kw in enumerate(
    ({}, {"padding": 1}, {"padding": 1, "stride": 2}, {"stride": 2, "ceil_mode": True})
):
    case(f"max_pool2d_{_n}", lambda x, k=_kw: F.max_pool2d(x, 3, **k), r(2, 3, 9, 10), r(3, 7, 7))
    case(f"max_pool2d_index_{_n}", lambda x, k=_kw: F.max_pool2d(x, 3, return_indices=True, **k), r(2, 3, 9, 10))
    for _c in (True, False):
        case(f"avg_pool2d_{_n}_{_c}", lambda x, k=_kw, c=_c: F.avg_pool2d(x, 3, count_include_pad=c, **k), r(2, 3, 9, 10))
case("max_pool_dilated", lambda x: F.max_pool2d(x, 2, dilation=3), r(1, 2, 8, 9))
case("max_pool_special", lambda x: F.max_pool1d(x, 2, padding=1), fixed([[-INF, NAN, 1.0, -INF, -INF, -INF]]))
case("max_pool_1d_3d", lambda x: (F.max_pool1d(x[0, 0], 2), F.max_pool3d(x, 2)), r(1, 2, 4, 5, 6))
case("max_pool_1d_3d_index", lambda x: (*F.max_pool1d(x[0], 2, return_indices=True), *F.max_pool3d(x[None, None], 2, return_indices=True)), r(4, 5, 6))
case("avg_pool_1d_3d", lambda x: (F.avg_pool1d(x[0, 0], 2), F.avg_pool3d(x, 2)), r(1, 2, 4, 5, 6))
case("avg_pool_divisor", lambda x: F.avg_pool2d(x, 2, divisor_override=3), r(1, 2, 4, 5))
for _o in ((1, 1), (3, 3), (4, 5), (9, 2), (9, 10)):
    case(f"adaptive_avg_{_o}", lambda x, o=_o: F.adaptive_avg_pool2d(x, o), r(2, 3, 9, 10))
case("adaptive_avg_1d", lambda x: F.adaptive_avg_pool1d(x, 4), r(2, 3, 9))
case("adaptive_avg_3d", lambda x: F.adaptive_avg_pool3d(x, (2, 3, 1)), r(1, 2, 4, 5, 3))
case("internal_adaptive", lambda x: (A._adaptive_avg_pool2d(x, [2, 2]), A._adaptive_avg_pool3d(x[None], [1, 2, 2])), r(2, 3, 4, 5))
case("adaptive_max", lambda x: (F.adaptive_max_pool2d(x, (3, 5)), F.adaptive_max_pool1d(x[0], 5)), r(2, 3, 9, 10))
case("adaptive_max_3d", lambda x: F.adaptive_max_pool3d(x, 2), r(1, 2, 4, 4, 6))
for _f in (2, 1.5, 0.6, 3):
    for _m in ("nearest", "nearest-exact", "bilinear"):
        case(f"resize_{_m}_{_f}", lambda x, f=_f, m=_m: F.interpolate(x, scale_factor=f, mode=m), r(1, 2, 5, 7))
for _o in ((10, 14), (3, 4), (13, 9), (1, 1)):
    for _m, _a in (("nearest", None), ("bilinear", False), ("bilinear", True)):
        case(f"resize_{_m}_{_o}_{_a}", lambda x, o=_o, m=_m, a=_a: F.interpolate(x, size=o, mode=m, align_corners=a), r(1, 2, 5, 7))
case("resize_1d", lambda x: tuple(F.interpolate(x, scale_factor=2.0, mode=m) for m in ("nearest", "nearest-exact", "linear")), r(1, 2, 5))
case("resize_3d", lambda x: tuple(F.interpolate(x, scale_factor=2.0, mode=m) for m in ("nearest", "nearest-exact", "trilinear")), r(1, 2, 3, 2, 4))
case("upsample_default", lambda x: (A.upsample_nearest1d(x, [6]), A._upsample_nearest_exact1d(x, [6]), A.upsample_linear1d(x, [6], False)), r(1, 2, 4))
case("upsample_default_2d", lambda x: (A.upsample_nearest2d(x, [6, 4]), A._upsample_nearest_exact2d(x, [6, 4]), A.upsample_bilinear2d(x, [6, 4], True)), r(1, 2, 4, 3))
case("upsample_default_3d", lambda x: (A.upsample_nearest3d(x, [6, 4, 2]), A._upsample_nearest_exact3d(x, [6, 4, 2]), A.upsample_trilinear3d(x, [6, 4, 2], True)), r(1, 2, 4, 3, 2))

# ---------------------------------------------------------------------------------- join, pad

case("cat", lambda x, y, z: torch.cat([x, y, z], 1), (r(3, 2), r(3, 1), r(3, 4)), (r(3, 0), r(3, 1), t(3, 4)))
case("cat_types", lambda x, y: torch.cat([x, y]), (r(3), i(2)))
case("cat_one", lambda x: torch.cat([x]), r(3))
case("cat_empty_vector", lambda x, y: torch.cat([x, y], 1), (r(0), r(2, 3)))
case("cat_merged", lambda x, y: torch.cat([x.permute(0, 2, 1).reshape(2, 12), y], 0), (r(2, 3, 4), r(1, 12)))
case("stack", lambda x, y: (torch.stack([x, y], 0), torch.stack([x, y.exp()], -1)), (r(2, 3), t(2, 3)))
case("pad", lambda x: (F.pad(x, (1, 2)), F.pad(x, (-1, 2, 1, -1), value=3.0)), r(3, 4), i(3, 4))
case("pad_of_cat", lambda x: F.pad(torch.cat([x, x + 1]), (0, 0, 1, 1)).sum(1), r(3, 4))
case("pad_modes", lambda x: tuple(F.pad(x, (2, 1, 1, 2), mode=m) for m in ("reflect", "replicate", "circular")), r(1, 2, 4, 5))
case("pad_modes_1d", lambda x: tuple(F.pad(x, (2, 1), mode=m) for m in ("reflect", "replicate")), r(2, 4))
case("pad_nd", lambda x: (A.constant_pad_nd(x, [1, 2], 1.5), A.reflection_pad1d(x, [1, 2]), A.replication_pad1d(x, [1, 2])), r(2, 4))
case("pad_nd_2d", lambda x: (A.reflection_pad2d(x, [1, 2, 1, 0]), A.replication_pad2d(x, [1, 2, 0, 3])), r(2, 4, 5))
case("pad_nd_3d", lambda x: (A.reflection_pad3d(x, [1, 1, 1, 0, 0, 2]), A.replication_pad3d(x, [1, 2, 0, 3, 1, 1])), r(2, 4, 3, 5))
case("roll", lambda x: (torch.roll(x, (2, -1), (0, 1)), torch.roll(x, 3), torch.roll(x, 8, 0)), r(4, 5))


def _assign(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:8:3] = 0.0
    y[2] = x[0]
    y[:, -1] += 1
    return y


case("assign_slices", _assign, r(4, 9))
case("slice_scatter", lambda x, y: (A.slice_scatter(x, y, 1, 1, 6, 2), A.select_scatter(x, y[:, 0], 1, -2)), (r(3, 7), r(3, 3)))

# ----------------------------------------------------------------------------- gather, scatter

_IX = i(2, 3, low=0, high=3)
case("embedding", F.embedding, (i(2, 3, low=0, high=5), r(5, 4)), (i(3, low=0, high=5, dtype=torch.int32), r(5, 4)))
case("embedding_empty", F.embedding, (i(0, low=0, high=5), r(5, 4)))
case("index_select", lambda x, k: (x.index_select(1, k), x.t().index_select(0, k)), (r(3, 4), i(5, low=0, high=4)))
case("gather", lambda x, k: (x.gather(1, k), x.gather(0, k[:, :2] % 2)), (r(2, 4), _IX))
case("take_along", lambda x, k: torch.take_along_dim(x, k, 1), (r(2, 4), _IX))
case("index_one", lambda x, k: (x[k], x[:, k[0]], x[-1, k[1]]), (r(4, 5), i(2, 3, low=-4, high=4)))
case("index_two", lambda x, k: (x[k[0], k[1]], x[k[0], :, k[1]], x[:, k, k[:1]]), (r(4, 4, 5), i(2, 3, low=-4, high=4)))
case("index_arange", lambda x: x[:, torch.arange(3)] + x[torch.arange(2)[:, None], torch.arange(3)], r(2, 4).__call__ and r(2, 3))
case("index_of_padded", lambda x, k: F.pad(x, (1, 1))[k], (r(4, 5), i(3, low=0, high=4)))
case("unsafe_index", lambda x, k: A._unsafe_index(x, [None, k]), (r(4, 5), i(3, low=0, high=4)))
case("index_mask", lambda x, m: x[m], (r(4), b(4)), externs=1)
case("scatter", lambda x, k, s: (x.scatter(1, k, s), x.scatter(1, k, 1.5)), (r(2, 4), _IX, r(2, 5)))
case("scatter_add", lambda x, k, s: x.scatter_add(1, k, s), (r(2, 4), _IX, r(2, 5)), (r(2, 4, dtype=BF16), _IX, r(2, 3, dtype=BF16)), (i(2, 4), _IX, i(2, 3)))
for _name in ("sum", "prod", "amax", "amin"):
    case(f"scatter_reduce_{_name}", lambda x, k, s, f=_name: x.scatter_reduce(1, k, s, f), (r(2, 4), _IX, r(2, 5)))
case("scatter_reduce_mean", lambda x, k, s: x.scatter_reduce(1, k, s, "mean"), (r(2, 4), _IX, r(2, 5)), externs=1)
case("scatter_old_reduce", lambda x, k, s: (A.scatter.reduce(x, 1, k, s, reduce="add"), A.scatter.value_reduce(x, 1, k, 2.0, reduce="multiply")), (r(2, 4), _IX, r(2, 5)))
case("index_put", lambda x, k, v: x.index_put((k[0], k[1] + 1), v), (r(4, 5), fixed([0, 1, 2], [2, 1, 0], dtype=torch.int64), r(3)))
case("index_put_accumulate", lambda x, k, v: x.index_put((k,), v, accumulate=True), (r(4, 3), _IX, r(2, 3, 3)), (r(4, 3), _IX, r(1)))
case("unsafe_index_put", lambda x, k, v: A._unsafe_index_put(x, [k], v, True), (r(4, 3), i(3, low=0, high=4), r(3, 3)))
case("index_put_mask", lambda x, m: (x.index_put((m,), torch.tensor(0.0)), x.index_put((m[:, 0],), torch.tensor(1.0))), (r(3, 4), b(3, 4)))
case("index_add", lambda x, k, s: x.index_add(1, k, s), (r(2, 4), i(3, low=0, high=4), r(2, 3)))
case("index_copy", lambda x, k, s: x.index_copy(1, k, s), (r(2, 4), fixed(2, 0, 3, dtype=torch.int64), r(2, 3)))
case("index_fill", lambda x, k: x.index_fill(1, k, 2.0), (r(2, 4), i(3, low=0, high=4)))
case("index_fill_tensor", lambda x, k, v: x.index_fill(0, k, v), (r(4, 2), i(2, low=0, high=4), r()))

# ---------------------------------------------------------------------------- norms, attention

case("layer_norm", lambda x, w, c: (F.layer_norm(x, (5,), w, c), F.layer_norm(x, (3, 5))), (r(2, 3, 5), r(5), r(5)))
case("layer_norm_bf16", lambda x: F.layer_norm(x, (8,)), r(3, 8, dtype=BF16))
case("layer_norm_large_mean", lambda x: F.layer_norm(x + 1000.0, (64,)), r(3, 64), rtol=1e-3, atol=1e-3)
case("native_layer_norm", lambda x, w: A.native_layer_norm(x, [5], w, None, 1e-5), (r(2, 3, 5), r(5)))
case("group_norm", lambda x, w, c: (F.group_norm(x, 2, w, c), F.group_norm(x, 4)), (r(2, 4, 3, 5), r(4), r(4)))
case("native_group_norm", lambda x: A.native_group_norm(x, None, None, 2, 4, 15, 2, 1e-5)[0], r(2, 4, 3, 5))
case("instance_norm", lambda x, w, c: (F.instance_norm(x, None, None, w, c), F.instance_norm(x)), (r(2, 3, 4, 5), r(3), r(3)))
case("rms_norm", lambda x, w: (F.rms_norm(x, (5,), w, 1e-6), F.rms_norm(x, (5,))), (r(2, 3, 5), r(5)))
case("batch_norm", lambda x, m, v, w, c: F.batch_norm(x, m, v, w, c), (r(2, 3, 4), r(3), u(3, low=0.5), r(3), r(3)), (r(2, 3), r(3), u(3, low=0.5), r(3), r(3)))
case("batch_norm_training", lambda x: F.batch_norm(x, None, None, training=True), r(4, 3, 5))
case("core_batch_norm", lambda x, m, v: A._native_batch_norm_legit_no_training(x, None, None, m, v, 0.1, 1e-5)[0], (r(2, 3, 4), r(3), u(3, low=0.5)))
_QKV = (r(2, 3, 5, 4), r(2, 3, 6, 4), r(2, 3, 6, 7))
case("sdpa", F.scaled_dot_product_attention, _QKV, (r(5, 4), r(6, 4), r(6, 4)))
case("sdpa_bool_mask", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), (*_QKV, b(2, 1, 5, 6)), (*_QKV, lambda g: torch.zeros(5, 6, dtype=torch.bool)))
case("sdpa_float_mask", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.3), (*_QKV, r(3, 1, 6)))
case("sdpa_causal", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), _QKV)
case("sdpa_grouped", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, enable_gqa=True), (r(2, 6, 5, 4), r(2, 3, 5, 4), r(2, 3, 5, 4), b(2, 1, 5, 5)), (r(2, 6, 5, 4), r(2, 3, 5, 4), r(2, 3, 5, 4), r(2, 6, 5, 5)))
case("sdpa_bf16", F.scaled_dot_product_attention, (r(1, 2, 5, 4, dtype=BF16),) * 3)
case("flash_for_cpu", lambda q, k, v: A._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0], (r(1, 2, 5, 4), r(1, 2, 6, 4), r(1, 2, 6, 4)))

# ------------------------------------------------------------------------------------ recurrent


def _layer(kind: type[nn.RNNBase], **settings: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return kind(4, 6, **settings).eval()


for _n, (_kind, _kw) in enumerate(
    (
        (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (nn.LSTM, {"batch_first": True, "bias": False}),
        (nn.LSTM, {"proj_size": 3, "bidirectional": True}),
        (nn.GRU, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        (nn.GRU, {"bias": False}),
        (nn.RNN, {"nonlinearity": "relu"}),
        (nn.RNN, {"bidirectional": True, "num_layers": 2}),
    )
):
    case(f"recurrent_{_n}", _layer(_kind, **_kw), r(5, 3, 4), r(1, 1, 4), r(7, 4))
case("lstm_states", _layer(nn.LSTM, num_layers=2), (r(5, 3, 4), lambda g: (torch.randn(2, 3, 6, generator=g), torch.randn(2, 3, 6, generator=g))))
case("aten_lstm", lambda x, h, c, w, v: A.lstm.input(x, [h, c], [w, v], False, 1, 0.0, False, False, True), (r(2, 5, 4), r(1, 2, 6), r(1, 2, 6), r(24, 4), r(24, 6)))
for _name, _g in (("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
    case(f"aten_{_name}", lambda x, h, w, v, f=getattr(A, _name).input: f(x, h, [w, v], False, 1, 0.0, False, False, True), (r(2, 5, 4), r(1, 2, 6), r(6 * _g, 4), r(6 * _g, 6)))
case("lstm_cell", _layer(nn.LSTM) and nn.LSTMCell(4, 5).eval(), r(3, 4))
case("gru_cell", nn.GRUCell(4, 5).eval(), r(3, 4))

_SEEN: set[str] = set()


@pytest.mark.parametrize("index", range(len(CASES)), ids=[c.name for c in CASES])
def test_matches_eager(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imported Program, interpreted, gives eager's values, types, shapes."""
    c = CASES[index]
    _note_operators(monkeypatch)
    generator = torch.Generator().manual_seed(zlib.crc32(c.name.encode()))
    for makers in c.inputs:
        inputs = tuple(make(generator) for make in makers)
        check_model(c.function, inputs, externs=c.externs, rtol=c.rtol, atol=c.atol)


def _note_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    original = exporting.decompose

    def noting(*args: Any) -> Any:
        found = original(*args)
        _SEEN.update(str(n.target) for n in found.graph.nodes if n.op == "call_function")
        return found

    monkeypatch.setattr(exporting, "decompose", noting)


def test_every_rule_is_exercised() -> None:
    """A rule without a case is not tested; runs after the cases above."""
    if not {"aten.relu.default", "aten.cat.default"} <= _SEEN:
        pytest.skip("the cases were not all run")
    missing = sorted(set(RULES) - _SEEN - UNREACHED)
    assert not missing, f"rules without a case: {', '.join(missing)}"
    assert not UNREACHED & _SEEN, f"reached after all: {sorted(UNREACHED & _SEEN)}"


UNREACHED: set[str] = {f"{NAMESPACE}.nothing"}
"""Rules for operators that only other versions of PyTorch leave in an exported graph."""
