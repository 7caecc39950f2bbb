"""Products whose results are only reduced: none of these needs the whole product in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.ops.case import Apply, OpCase

_WIDTH, _BERT_WORDS, _GPT2_WORDS = 768, 30_522, 50_257


class _Head(nn.Module):
    """A vocabulary's weights, and what is done with the product."""

    def __init__(self, words: int, function: Callable[..., Any], *, bias: bool):
        super().__init__()
        self.words = nn.Linear(_WIDTH, words, bias=bias)
        self.function = function

    def forward(self, hidden: Tensor, *rest: Tensor) -> Tensor:
        """The product, reduced."""
        result: Tensor = self.function(self.words(hidden), *rest)
        return result


def cases() -> list[OpCase]:
    """The operators, in the order of the table."""
    return [_splade(4, 128), _cross_entropy(512), _greedy(64), _nearest(1024, 20_000, 128)]


def _splade(texts: int, length: int) -> OpCase:
    """What each word of a vocabulary weighs in each text: the maximum over its tokens."""

    def weigh(logits: Tensor, mask: Tensor) -> Tensor:
        return (torch.log1p(torch.relu(logits)) * mask.unsqueeze(-1)).amax(1)

    def inputs(g: torch.Generator) -> tuple[Tensor, ...]:
        ends = torch.randint(length // 2, length + 1, (texts, 1), generator=g)
        mask = (torch.arange(length) < ends).float()
        return torch.randn((texts, length, _WIDTH), generator=g), mask

    return OpCase(
        name="splade_head",
        group="reduced product",
        build=lambda: _Head(_BERT_WORDS, weigh, bias=True),
        inputs=inputs,
        # The product, and of each logit: bias, two maxima, a logarithm, the mask.
        operations=texts * length * _BERT_WORDS * (2.0 * _WIDTH + 5),
    )


def _cross_entropy(tokens: int) -> OpCase:
    """The loss of a language model over its vocabulary."""

    def inputs(g: torch.Generator) -> tuple[Tensor, ...]:
        targets = torch.randint(0, _GPT2_WORDS, (tokens,), generator=g)
        return torch.randn((tokens, _WIDTH), generator=g), targets

    return OpCase(
        name="cross_entropy_vocab",
        group="reduced product",
        build=lambda: _Head(_GPT2_WORDS, functional.cross_entropy, bias=False),
        inputs=inputs,
        # The product, and of each logit: a maximum, a difference, a power, a sum.
        operations=tokens * _GPT2_WORDS * (2.0 * _WIDTH + 4),
    )


def _greedy(rows: int) -> OpCase:
    """The likeliest word of each sequence of a batch."""
    return OpCase(
        name="greedy_head",
        group="reduced product",
        build=lambda: _Head(_GPT2_WORDS, lambda logits: logits.argmax(-1), bias=False),
        inputs=lambda g: (torch.randn((rows, _WIDTH), generator=g),),
        operations=rows * _GPT2_WORDS * (2.0 * _WIDTH + 1),
    )


def _nearest(queries: int, points: int, width: int) -> OpCase:
    """The nearest of many points to each query, both given at each call."""

    def search(x: Tensor, y: Tensor) -> Tensor:
        return ((y * y).sum(1) - 2 * (x @ y.T)).argmin(1)

    return OpCase(
        name="nearest_neighbour",
        group="reduced product",
        build=lambda: Apply(search),
        inputs=lambda g: (
            torch.randn((queries, width), generator=g),
            torch.randn((points, width), generator=g),
        ),
        operations=queries * points * (2.0 * width + 3) + points * 2.0 * width,
    )
