"""Operators that are bound by arithmetic: products, convolutions, attention, a recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.ops.case import Apply, Inputs, OpCase


def cases() -> list[OpCase]:
    """The operators, in the order of the table."""
    return [*_products(), *_convolutions(), *_attentions(), _lstm()]


def _product(name: str, batch: tuple[int, ...], m: int, k: int, n: int) -> OpCase:
    """(…, M, K) times (…, K, N), both given at each call."""

    def inputs(g: torch.Generator) -> Inputs:
        return torch.randn((*batch, m, k), generator=g), torch.randn((*batch, k, n), generator=g)

    operations = 2.0 * m * k * n
    for size in batch:
        operations *= size
    return OpCase(
        name=name,
        group="product",
        build=lambda: Apply(torch.matmul),
        inputs=inputs,
        operations=operations,
    )


def _linear(m: int, k: int, n: int) -> OpCase:
    """(M, K) times a weight, plus a bias."""
    return OpCase(
        name=f"linear_{m}x{k}x{n}",
        group="product",
        build=lambda: nn.Linear(k, n),
        inputs=lambda g: (torch.randn((m, k), generator=g),),
        operations=2.0 * m * k * n + m * n,
    )


def _products() -> list[OpCase]:
    return [
        _product("gemm_1024", (), 1024, 1024, 1024),
        _linear(128, 768, 3072),
        _linear(512, 3072, 768),
        _linear(1, 4096, 4096),
        _product("matmul_4096x4096x64", (), 4096, 4096, 64),
        _product("matmul_4096x64x4096", (), 4096, 64, 4096),
        _product("bmm_96x128x64x128", (96,), 128, 64, 128),
    ]


def _conv(
    name: str, c_in: int, c_out: int, size: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> OpCase:
    """A 2-d convolution of a square image, padded to keep its size over the stride."""
    out = (size - 1) // stride + 1
    taps = kernel * kernel * c_in // groups
    return OpCase(
        name=name,
        group="convolution",
        build=lambda: nn.Conv2d(
            c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        ),
        inputs=lambda g: (torch.randn((1, c_in, size, size), generator=g),),
        operations=2.0 * taps * c_out * out * out,
    )


_TAPS = 512


def _convolutions() -> list[OpCase]:
    samples, stride, filters = 16_000, 4, 128
    frames = (samples - _TAPS) // stride + 1
    return [
        _conv("conv3x3_64_56", 64, 64, 56, 3),
        _conv("conv3x3_128_28", 128, 128, 28, 3),
        _conv("conv3x3_256_14", 256, 256, 14, 3),
        _conv("conv3x3_512_7", 512, 512, 7, 3),
        _conv("conv1x1_256_64_56", 256, 64, 56, 1),
        _conv("conv7x7s2_3_64_224", 3, 64, 224, 7, stride=2),
        _conv("depthwise3x3_96_112", 96, 96, 112, 3, groups=96),
        _conv("depthwise7x7_192_28", 192, 192, 28, 7, groups=192),
        _conv("grouped3x3_256_28", 256, 256, 28, 3, groups=32),
        OpCase(
            name="conv1d_512_taps",
            group="convolution",
            build=lambda: nn.Conv1d(1, filters, _TAPS, stride, bias=False),
            inputs=lambda g: (torch.randn((1, 1, samples), generator=g),),
            operations=2.0 * _TAPS * filters * frames,
        ),
        OpCase(
            name="transposed4x4s2_128_64_28",
            group="convolution",
            build=lambda: nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1, bias=False),
            inputs=lambda g: (torch.randn((1, 128, 28, 28), generator=g),),
            operations=2.0 * 128 * 64 * _reached(28, 56) ** 2,
        ),
    ]


def _reached(size: int, out: int) -> int:
    """Pairs of input and tap of a transposed convolution (4 taps, stride 2, padding 1) in range."""
    return sum(0 <= 2 * i + t - 1 < out for i in range(size) for t in range(4))


def _attention(
    name: str, heads: int, queries: int, keys: int, width: int, *, causal: bool = False
) -> OpCase:
    """Softmax of scaled scores times values; queries, keys and values given at each call."""

    def inputs(g: torch.Generator) -> Inputs:
        def draw(length: int) -> Tensor:
            return torch.randn((1, heads, length, width), generator=g)

        return draw(queries), draw(keys), draw(keys)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    pairs = queries * (queries + 1) // 2 if causal else queries * keys
    return OpCase(
        name=name,
        group="attention",
        build=lambda: Apply(attend),
        inputs=inputs,
        # Two products, and of each score at least: a maximum, a difference, a power, a sum.
        operations=heads * pairs * (4.0 * width + 4),
    )


def _attentions() -> list[OpCase]:
    return [
        _attention("attention_12x512x64", 12, 512, 512, 64),
        _attention("attention_12x512x64_causal", 12, 512, 512, 64, causal=True),
        _attention("attention_32x2048x64_causal", 32, 2048, 2048, 64, causal=True),
        _attention("attention_decode_32x4096x128", 32, 1, 4096, 128),
    ]


class _Recurrence(nn.Module):
    """One LSTM layer; the output of every step."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states, shape (batch, steps, width)."""
        result: Tensor = self.inner(x)[0]
        return result


def _lstm() -> OpCase:
    width, steps = 512, 64
    return OpCase(
        name="lstm_512",
        group="recurrence",
        build=lambda: _Recurrence(width),
        inputs=lambda g: (torch.randn((1, steps, width), generator=g),),
        operations=steps * (2.0 * 4 * width * 2 * width + 20 * width),
    )
