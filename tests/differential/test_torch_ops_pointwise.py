"""Pointwise lowering rules of the PyTorch frontend against eager.

Each case is a function of tensors and several sets of inputs: odd, size-1 and empty shapes, strided
inputs, NaN and infinities where they matter.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.torch_cases import (
    BF16,
    HALF,
    INF,
    NAN,
    SPECIAL,
    Case,
    Cases,
    b,
    fixed,
    i,
    r,
    run_case,
    t,
    u,
)

A = torch.ops.aten
case = Cases()

# --------------------------------------------------------------------------------------- pointwise

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
case("promote_zero_dim", torch.add, (r(3, dtype=HALF), r()), (i(3), r()))
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
    case(f"{_name}_scalar", lambda x, n=_name: getattr(torch, n)(x, 1), SPECIAL, i(9), b(4))
for _name in "and or xor".split():
    case(
        f"bitwise_{_name}",
        lambda x, y, n=_name: tuple(getattr(torch, f"bitwise_{n}")(x, v) for v in (y, 3)),
        (i(9), i(9)),
    )
    case(f"logical_{_name}", getattr(torch, f"logical_{_name}"), (r(4), b(4)), (b(4), b(4)))
    case(
        f"dunder_{_name}",
        lambda x, y, n=_name: (
            getattr(A, f"__{n}__").Tensor(x, y),
            getattr(A, f"__{n}__").Scalar(x, 1),
        ),
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
case("where", torch.where, (b(3, 4), r(3, 4), r(4)), (b(3, 1), r(4), r(1)))
case("where_scalar", lambda c, x: (torch.where(c, x, 0.0), torch.where(c, 1.0, x)), (b(4), r(4)))
case("where_scalars", lambda c: torch.where(c, 1.0, 2.0), b(4))
case("where_constant", lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, 0.0), r(2, 3))
case(
    "masked_fill",
    lambda x, m, v: (x.masked_fill(m, -INF), x.masked_fill(m, v)),
    (r(3, 4), b(4), r()),
)
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
case(
    "clamp", lambda x: (x.clamp(-1, 1), x.clamp(min=0.5), x.clamp(max=0.5)), SPECIAL, i(9), r(2, 3)
)
case("clamp_tensor", lambda x, lo, hi: torch.clamp(x, lo, hi), (r(3, 4), fixed(-0.5), r(4)))
case("clamp_min_max", lambda x: (A.clamp_min(x, 0.5), A.clamp_max(x, 0.5)), SPECIAL, i(9))
case(
    "clamp_min_max_tensor",
    lambda x, y: (A.clamp_min.Tensor(x, y), A.clamp_max.Tensor(x, y)),
    (r(4), r(4)),
)
case(
    "nan_to_num",
    lambda x: (torch.nan_to_num(x), torch.nan_to_num(x, 1.0, 2.0, -3.0)),
    SPECIAL,
    i(3),
)

# ------------------------------------------------------------------------------------- activations

for _name in "relu6 hardsigmoid hardswish mish elu selu celu softplus hardtanh leaky_relu".split():
    case(_name, getattr(F, _name), SPECIAL, r(3, 5, scale=3), r(4, dtype=BF16))
# Not at infinity: eager's vectorised kernel gives NaN there.
case("gelu", F.gelu, fixed(0.0, -0.0, 40.0, -40.0, NAN), r(3, 5), r(4, dtype=HALF))
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

# ----------------------------------------------------- overloads that Python's own spelling avoids

case("add_sub_scalar", lambda x: (A.add.Scalar(x, 2), A.sub.Scalar(x, 2, 3)), r(3), i(3))
case("div_scalar_mode", lambda x: A.div.Scalar_mode(x, 2, rounding_mode="floor"), r(5), i(5))
case("floor_divide_scalar", lambda x: A.floor_divide.Scalar(x, 2), r(5), i(5))
case(
    "bitwise_shifts",
    lambda x, y: (
        A.bitwise_left_shift.Tensor(x, y),
        A.bitwise_right_shift.Tensor(x, y),
        A.bitwise_left_shift.Tensor_Scalar(x, 2),
        A.bitwise_right_shift.Tensor_Scalar(x, 1),
    ),
    (i(9), i(9, low=0, high=5)),
)
case("arange_start", lambda x: A.arange.start(2, 6) + x, r(4))
case("moments_default", lambda x: (A.var.default(x), A.std.default(x, False)), r(3, 4))
case(
    "norm_dtype",
    lambda x: A.norm.ScalarOpt_dim_dtype(x, 2, [1], True, dtype=torch.float64),
    r(3, 4),
)
case("unsafe_chunk", lambda x: A.unsafe_chunk(x, 2, 1), r(3, 4))
case(
    "strided",
    lambda x: tuple(
        0 * e.zero_()
        for e in (
            torch.empty_strided((2, 3), (3, 1)),
            x.new_empty_strided((2,), (1,)),
            torch.empty_permuted((2, 3), (0, 1)),
        )
    ),
    r(3),
)
case(
    "empty_shapes",
    lambda x: (
        torch.ones_like(torch.empty_strided((2, 3), (3, 1))),
        torch.ones_like(A.new_empty_strided(x, [2], [1])),
        torch.ones_like(A.empty_permuted([2, 3], [0, 1])),
    ),
    r(3),
)
case("literal", lambda x: x + torch.tensor([1.0, 2.0, 3.0]) * torch.tensor(2.0), r(3))
case("to_other", lambda x, y: A.to.other(x, y), (r(3), i(3)))
case("to_layout", lambda x: A.to.dtype_layout(x, dtype=torch.float64), r(3))


@pytest.mark.parametrize("c", case, ids=lambda c: c.name)
def test_matches_eager(c: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imported Program, interpreted, gives eager's values, types, shapes."""
    run_case(c, monkeypatch)
