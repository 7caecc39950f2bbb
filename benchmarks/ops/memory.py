"""Operators that are bound by memory, with working sets that no cache holds.

What they read and write together is at least ``CACHES`` times the caches of the machine, so that a
call finds nothing of the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.ops.case import Apply, Inputs, OpCase, size_bytes
from nestor.target.cpu import CpuTarget

CACHES = 4


def cases(target: CpuTarget) -> list[OpCase]:
    """The operators, in the order of the table, for the caches of ``target``."""
    elements = CACHES * (target.l3_bytes + target.cores * target.l2_bytes) // 4
    return [*_rowwise(elements), *_along_axes(elements), _embedding(elements)]


def _rows(elements: int, width: int) -> int:
    """Rows of ``width`` that hold at least so many elements, a multiple of 8."""
    return 8 * math.ceil(elements / (8 * width))


def _case(
    name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], per_element: float
) -> OpCase:
    """An operator on normal values of ``shape``, of so many operations an element."""
    return OpCase(
        name=name,
        group="memory",
        build=build,
        inputs=lambda g: (torch.randn(shape, generator=g),),
        operations=per_element * math.prod(shape),
    )


class _BiasGelu(nn.Module):
    """What stands between the two products of a transformer's dense block."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """``gelu(x + bias)``, shape (rows, width)."""
        return functional.gelu(x + self.bias)


def _lively(module: nn.Module) -> nn.Module:
    """Scales and shifts of a norm that are not ones and zeros, which a compiler may fold."""
    for parameter in module.parameters():
        parameter.data.normal_(1.0, 0.2)
    return module


def _rowwise(elements: int) -> list[OpCase]:
    """Operators whose output is as large as their input; together they are beyond the caches."""
    half = elements // 2
    wide = (_rows(half, 1024), 1024)
    dense = (_rows(half, 3072), 3072)
    channels, side = 64, 112
    images = (math.ceil(half / (channels * side * side)), channels, side, side)
    square = 8 * math.ceil(math.sqrt(half) / 8)
    return [
        _case("softmax", lambda: nn.Softmax(-1), wide, 5),
        _case("layer_norm", lambda: _lively(nn.LayerNorm(1024)), wide, 8),
        _case("rms_norm", lambda: _lively(nn.RMSNorm(1024)), wide, 4),
        _case("group_norm", lambda: _lively(nn.GroupNorm(32, channels)), images, 8),
        _case("bias_gelu", lambda: _BiasGelu(3072), dense, 6),
        _case("transpose", lambda: Apply(lambda x: x.t().contiguous()), (square, square), 0),
        _case("cumsum", lambda: Apply(lambda x: torch.cumsum(x, -1)), (_rows(half, 4096), 4096), 1),
    ]


def _along_axes(elements: int) -> list[OpCase]:
    """Reductions: what they read is beyond the caches, what they write is small."""
    shape = (_rows(elements, 256 * 512), 256, 512)
    found = []
    for axis in range(3):

        def total(x: Tensor, axis: int = axis) -> Tensor:
            return x.sum(axis)

        def largest(x: Tensor, axis: int = axis) -> Tensor:
            return x.amax(axis)

        found.append(_case(f"sum_axis{axis}", lambda f=total: Apply(f), shape, 1))
        found.append(_case(f"max_axis{axis}", lambda f=largest: Apply(f), shape, 1))
    found.sort(key=lambda c: c.name, reverse=True)
    rows = (_rows(elements, 4096), 4096)
    return [*found, _case("argmax", lambda: Apply(lambda x: torch.argmax(x, -1)), rows, 1)]


def _embedding(elements: int) -> OpCase:
    """Rows of a table: half of the working set is the rows read, half the rows written."""
    width = 768
    tokens = _rows(elements // 2, width)
    vocabulary = 2 * tokens

    def inputs(g: torch.Generator) -> Inputs:
        return (torch.randint(0, vocabulary, (tokens,), generator=g),)

    def read(module: nn.Module, given: Inputs) -> int:
        return size_bytes(*given) + 4 * width * int(given[0].unique().numel())

    return OpCase(
        name="embedding",
        group="memory",
        build=lambda: nn.Embedding(vocabulary, width),
        inputs=inputs,
        operations=0.0,
        read_bytes=read,
    )
