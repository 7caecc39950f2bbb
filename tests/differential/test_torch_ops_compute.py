"""Reductions, contractions, pooling, norms, attention and recurrences against eager.

Each case is a function of tensors and several sets of inputs: odd, size-1 and empty shapes, strided
inputs, NaN and infinities where they matter.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
F8 = torch.float8_e4m3fn
case = Cases()

# ------------------------------------------------------------------------------------------ reduce

for _name in "sum mean amax amin prod std var any all argmax argmin logsumexp".split():
    _f = getattr(torch, _name)
    _sets = (r(3, 5), t(4, 3), r(2, 1), r(1, 7))
    case(
        f"{_name}_dim",
        lambda x, f=_f: (f(x, dim=1), f(x, dim=0, keepdim=True)),
        *_sets[:2],
        r(2, 2),
    )
case(
    "int_mm",
    lambda a, b: torch._int_mm(a, b),
    (
        i(17, 40, low=-128, high=128, dtype=torch.int8),
        i(40, 24, low=-128, high=128, dtype=torch.int8),
    ),
)
case(
    "scaled_mm",
    lambda a, b, x, y: torch._scaled_mm(a, b.t(), x, y, out_dtype=torch.float32),
    (r(16, 32, dtype=F8), r(48, 32, dtype=F8), u(low=0.5), u(low=0.5)),
    (r(32, 64, dtype=F8), r(16, 64, dtype=F8), u(32, 1, low=0.5), u(1, 16, low=0.5)),
)
for _name in "sum mean prod max min any all std var".split():
    case(f"{_name}_all", getattr(torch, _name), r(3, 5), t(2, 3, 4))
case("argmax_all", lambda x: (x.argmax(), x.argmin(), x.argmax(keepdim=True)), r(3, 5), SPECIAL)
case("argmax_ties", lambda x: (x.argmax(0), x.argmin(0)), i(9, low=0, high=2), i(4))
case("argmax_nan", lambda x: (x.argmax(1), x.argmin(1)), fixed([1.0, NAN, 2.0], [NAN, NAN, 0.0]))
case("max_dim", lambda x: (*x.max(1), *x.min(0)), r(3, 5), i(3, 4))
case("max_dim_value", lambda x: (x.max(1).values, x.min(0)[0]), r(3, 5), r(2, 2))
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
case(
    "vector_norm",
    lambda x: tuple(torch.linalg.vector_norm(x, p, dim=1) for p in (0, 1, 2, 3, INF, -INF)),
    r(3, 5),
)
case("norm", lambda x: (x.norm(), x.norm(1, dim=0), x.norm(dim=1, keepdim=True)), r(3, 5))
case("aten_norm", lambda x: (A.norm.Scalar(x, 2), A.norm.ScalarOpt_dim(x, 2, [1])), r(3, 5))
case("normalize", lambda x: F.normalize(x, dim=1), r(3, 5), fixed([0.0, 0.0], [1.0, 2.0]))
case(
    "softmax",
    lambda x: (x.softmax(-1), x.softmax(0)),
    r(3, 5, scale=9),
    fixed([1.0, -INF], [-INF, -INF]),
)
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
case(
    "cummax",
    lambda x: (*x.cummax(1), *x.cummin(0)),
    r(3, 5),
    i(3, 4, low=0, high=2),
    fixed([1.0, NAN, 3.0]),
)

# ---------------------------------------------------------------------------------------- contract

case("linear", F.linear, (r(3, 4), r(5, 4), r(5)), (r(2, 3, 4), r(5, 4)), (r(4), r(5, 4), r(5)))
case("linear_vector", F.linear, (r(2, 4), r(4)))
case("linear_half", F.linear, (r(3, 4, dtype=BF16), r(5, 4, dtype=BF16), r(5, dtype=BF16)))
case(
    "linear_merged",
    lambda x, w: F.linear(x.permute(0, 2, 1, 3).reshape(2, 5, 12), w),
    (r(2, 3, 5, 4), r(7, 12)),
)
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
case(
    "addmm",
    lambda c, x, y: torch.addmm(c, x, y, beta=0.5, alpha=2.0),
    (r(3, 5), r(3, 4), r(4, 5)),
    (r(5), r(3, 4), r(4, 5)),
)
case(
    "addmm_beta0",
    lambda c, x, y: torch.addmm(c, x, y, beta=0, alpha=2.0),
    (fixed([NAN]), r(3, 4), r(4, 5)),
)
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
case(
    "conv1d",
    lambda x, w: F.conv1d(x, w, stride=2, padding=3),
    (r(2, 3, 10), r(4, 3, 5)),
    (r(3, 10), r(4, 3, 5)),
)
case(
    "conv1d_same",
    lambda x, w: F.conv1d(x, w, padding="same"),
    (r(2, 3, 7), r(4, 3, 4)),
    (r(2, 3, 7), r(4, 3, 1)),
)
case("conv2d_valid", lambda x, w: F.conv2d(x, w, padding="valid"), (r(2, 3, 7, 6), r(4, 3, 4, 2)))
case(
    "conv3d",
    lambda x, w: F.conv3d(x, w, stride=(1, 2, 1), padding=1),
    (r(1, 2, 4, 5, 3), r(3, 2, 2, 3, 1)),
)
case(
    "conv3d_same", lambda x, w: F.conv3d(x, w, padding="same"), (r(1, 2, 4, 5, 3), r(3, 2, 2, 3, 1))
)
case(
    "conv_transpose1d",
    lambda x, w: F.conv_transpose1d(x, w, stride=3, padding=1),
    (r(2, 3, 5), r(3, 2, 4)),
)
case(
    "conv_transpose3d",
    lambda x, w: F.conv_transpose3d(x, w, stride=2),
    (r(1, 2, 2, 3, 2), r(2, 3, 2, 1, 2)),
)
case(
    "convolution",
    lambda x, w: A.convolution(x, w, None, [1], [1], [1], False, [0], 1),
    (r(2, 3, 5), r(4, 3, 3)),
)
case(
    "conv_of_padded",
    lambda x, w: F.conv2d(F.pad(x, (1, 2, 0, 1), value=2.0), w, padding=1),
    (r(1, 2, 4, 5), r(3, 2, 3, 3)),
)
case(
    "conv_bf16",
    lambda x, w, c: F.conv2d(x, w, c),
    (r(1, 3, 5, 5, dtype=BF16), r(4, 3, 3, 3, dtype=BF16), r(4, dtype=BF16)),
)
case(
    "conv_channels_last",
    lambda x, w: F.conv2d(x, w),
    (
        lambda g: torch.randn(2, 3, 5, 6, generator=g).to(memory_format=torch.channels_last),
        r(4, 3, 3, 3),
    ),
)

# ------------------------------------------------------------------------------------ pool, resize

for _n, _kw in enumerate(
    ({}, {"padding": 1}, {"padding": 1, "stride": 2}, {"stride": 2, "ceil_mode": True})
):
    case(f"max_pool2d_{_n}", lambda x, k=_kw: F.max_pool2d(x, 3, **k), r(2, 3, 9, 10), r(3, 7, 7))
    case(
        f"max_pool2d_index_{_n}",
        lambda x, k=_kw: F.max_pool2d(x, 3, return_indices=True, **k),
        r(2, 3, 9, 10),
    )
    for _c in (True, False):
        case(
            f"avg_pool2d_{_n}_{_c}",
            lambda x, k=_kw, c=_c: F.avg_pool2d(x, 3, count_include_pad=c, **k),
            r(2, 3, 9, 10),
        )
case(
    "avg_pool_window_beyond",
    lambda x: (
        F.avg_pool2d(x, 12, 3, padding=5, ceil_mode=True),
        F.avg_pool2d(x, 64, ceil_mode=True),
    ),
    r(2, 3, 7, 8),
    r(1, 2, 8, 12),
)
case(
    "max_pool_window_beyond",
    lambda x: (F.max_pool2d(x, 9, 2, padding=4, ceil_mode=True), F.max_pool2d(x, 4, 2, 2, 3, True)),
    r(2, 3, 7, 8),
)
case("max_pool_dilated", lambda x: F.max_pool2d(x, 2, dilation=3), r(1, 2, 8, 9))
case(
    "max_pool_special",
    lambda x: F.max_pool1d(x, 2, padding=1),
    fixed([[-INF, NAN, 1.0, -INF, -INF, -INF]]),
)
case("max_pool_1d_3d", lambda x: (F.max_pool1d(x[0, 0], 2), F.max_pool3d(x, 2)), r(1, 2, 4, 5, 6))
case(
    "max_pool_1d_3d_index",
    lambda x: (
        *F.max_pool1d(x[0], 2, return_indices=True),
        *F.max_pool3d(x[None, None], 2, return_indices=True),
    ),
    r(4, 5, 6),
)
case("avg_pool_1d_3d", lambda x: (F.avg_pool1d(x[0, 0], 2), F.avg_pool3d(x, 2)), r(1, 2, 4, 5, 6))
case("avg_pool_divisor", lambda x: F.avg_pool2d(x, 2, divisor_override=3), r(1, 2, 4, 5))
for _o in ((1, 1), (3, 3), (4, 5), (9, 2), (9, 10)):
    case(f"adaptive_avg_{_o}", lambda x, o=_o: F.adaptive_avg_pool2d(x, o), r(2, 3, 9, 10))
case("adaptive_avg_1d", lambda x: F.adaptive_avg_pool1d(x, 4), r(2, 3, 9))
case("adaptive_avg_3d", lambda x: F.adaptive_avg_pool3d(x, (2, 3, 1)), r(1, 2, 4, 5, 3))
case(
    "internal_adaptive",
    lambda x: (A._adaptive_avg_pool2d(x, [2, 2]), A._adaptive_avg_pool3d(x[None], [1, 2, 2])),
    r(2, 3, 4, 5),
)
case(
    "adaptive_max",
    lambda x: (F.adaptive_max_pool2d(x, (3, 5)), F.adaptive_max_pool1d(x[0], 5)),
    r(2, 3, 9, 10),
)
case("adaptive_max_3d", lambda x: F.adaptive_max_pool3d(x, 2), r(1, 2, 4, 4, 6))
for _f in (2, 1.5, 0.6, 3):
    for _m in ("nearest", "nearest-exact", "bilinear"):
        case(
            f"resize_{_m}_{_f}",
            lambda x, f=_f, m=_m: F.interpolate(x, scale_factor=f, mode=m),
            r(1, 2, 5, 7),
        )
for _o in ((10, 14), (3, 4), (13, 9), (1, 1)):
    for _m, _a in (("nearest", None), ("bilinear", False), ("bilinear", True)):
        case(
            f"resize_{_m}_{_o}_{_a}",
            lambda x, o=_o, m=_m, a=_a: F.interpolate(x, size=o, mode=m, align_corners=a),
            r(1, 2, 5, 7),
        )
case(
    "resize_1d",
    lambda x: tuple(
        F.interpolate(x, scale_factor=2.0, mode=m) for m in ("nearest", "nearest-exact", "linear")
    ),
    r(1, 2, 5),
)
case(
    "resize_3d",
    lambda x: tuple(
        F.interpolate(x, scale_factor=2.0, mode=m)
        for m in ("nearest", "nearest-exact", "trilinear")
    ),
    r(1, 2, 3, 2, 4),
)
case(
    "upsample_default",
    lambda x: (
        A.upsample_nearest1d(x, [6]),
        A._upsample_nearest_exact1d(x, [6]),
        A.upsample_linear1d(x, [6], False),
    ),
    r(1, 2, 4),
)
case(
    "upsample_default_2d",
    lambda x: (
        A.upsample_nearest2d(x, [6, 4]),
        A._upsample_nearest_exact2d(x, [6, 4]),
        A.upsample_bilinear2d(x, [6, 4], True),
    ),
    r(1, 2, 4, 3),
)
case(
    "upsample_default_3d",
    lambda x: (
        A.upsample_nearest3d(x, [6, 4, 2]),
        A._upsample_nearest_exact3d(x, [6, 4, 2]),
        A.upsample_trilinear3d(x, [6, 4, 2], True),
    ),
    r(1, 2, 4, 3, 2),
)

# -------------------------------------------------------------------------------- norms, attention

case(
    "layer_norm",
    lambda x, w, c: (F.layer_norm(x, (5,), w, c), F.layer_norm(x, (3, 5))),
    (r(2, 3, 5), r(5), r(5)),
)
case("layer_norm_bf16", lambda x: F.layer_norm(x, (8,)), r(3, 8, dtype=BF16))
case(
    "layer_norm_large_mean",
    lambda x: F.layer_norm(x + 1000.0, (64,)),
    r(3, 64),
    rtol=1e-3,
    atol=1e-3,
)
case(
    "native_layer_norm", lambda x, w: A.native_layer_norm(x, [5], w, None, 1e-5), (r(2, 3, 5), r(5))
)
case(
    "group_norm",
    lambda x, w, c: (F.group_norm(x, 2, w, c), F.group_norm(x, 4)),
    (r(2, 4, 3, 5), r(4), r(4)),
)
case(
    "native_group_norm",
    lambda x: A.native_group_norm(x, None, None, 2, 4, 15, 2, 1e-5)[0],
    r(2, 4, 3, 5),
)
case(
    "instance_norm",
    lambda x, w, c: (F.instance_norm(x, None, None, w, c), F.instance_norm(x)),
    (r(2, 3, 4, 5), r(3), r(3)),
)
case(
    "rms_norm", lambda x, w: (F.rms_norm(x, (5,), w, 1e-6), F.rms_norm(x, (5,))), (r(2, 3, 5), r(5))
)
case(
    "batch_norm",
    lambda x, m, v, w, c: F.batch_norm(x, m, v, w, c),
    (r(2, 3, 4), r(3), u(3, low=0.5), r(3), r(3)),
    (r(2, 3), r(3), u(3, low=0.5), r(3), r(3)),
)
case("batch_norm_module_training", nn.BatchNorm1d(3).train(), r(4, 3, 5), r(4, 3))
case("batch_norm_training", lambda x: F.batch_norm(x, None, None, training=True), r(4, 3, 5))
case(
    "core_batch_norm",
    lambda x, m, v: A._native_batch_norm_legit_no_training(x, None, None, m, v, 0.1, 1e-5)[0],
    (r(2, 3, 4), r(3), u(3, low=0.5)),
)
_QKV = (r(2, 3, 5, 4), r(2, 3, 6, 4), r(2, 3, 6, 7))
case("sdpa", F.scaled_dot_product_attention, _QKV, (r(5, 4), r(6, 4), r(6, 4)))
case(
    "sdpa_bool_mask",
    lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
    (*_QKV, b(2, 1, 5, 6)),
    (*_QKV, lambda g: torch.zeros(5, 6, dtype=torch.bool)),
)
case(
    "sdpa_float_mask",
    lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.3),
    (*_QKV, r(3, 1, 6)),
)
case("sdpa_causal", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), _QKV)
case(
    "sdpa_grouped",
    lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, enable_gqa=True),
    (r(2, 6, 5, 4), r(2, 3, 5, 4), r(2, 3, 5, 4), b(2, 1, 5, 5)),
    (r(2, 6, 5, 4), r(2, 3, 5, 4), r(2, 3, 5, 4), r(2, 6, 5, 5)),
)
case("sdpa_bf16", F.scaled_dot_product_attention, (r(1, 2, 5, 4, dtype=BF16),) * 3)
case(
    "flash_for_cpu",
    lambda q, k, v: A._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0],
    (r(1, 2, 5, 4), r(1, 2, 6, 4), r(1, 2, 6, 4)),
)

# --------------------------------------------------------------------------------------- recurrent


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
case(
    "lstm_states",
    _layer(nn.LSTM, num_layers=2),
    (r(5, 3, 4), lambda g: (torch.randn(2, 3, 6, generator=g), torch.randn(2, 3, 6, generator=g))),
)
case(
    "aten_lstm",
    lambda x, h, c, w, v: A.lstm.input(x, [h, c], [w, v], False, 1, 0.0, False, False, True),
    (r(2, 5, 4), r(1, 2, 6), r(1, 2, 6), r(24, 4), r(24, 6)),
)
for _name, _g in (("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
    case(
        f"aten_{_name}",
        lambda x, h, w, v, n=_name: getattr(A, n).input(
            x, h, [w, v], False, 1, 0.0, False, False, True
        ),
        (r(2, 5, 4), r(1, 2, 6), r(6 * _g, 4), r(6 * _g, 6)),
    )
case("lstm_cell", nn.LSTMCell(4, 5).eval(), r(3, 4))
case("gru_cell", nn.GRUCell(4, 5).eval(), r(3, 4))


@pytest.mark.parametrize("c", case, ids=lambda c: c.name)
def test_matches_eager(c: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imported Program, interpreted, gives eager's values, types, shapes."""
    run_case(c, monkeypatch)
