"""Networks of ``transformers`` as modules of tensors in, tensors out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FirstOutput(nn.Module):
    """Call a ``transformers`` model with one keyword and keep the first of its outputs."""

    def __init__(self, inner: nn.Module, keyword: str, **settings: Any):
        super().__init__()
        self.inner = inner
        self.keyword = keyword
        self.settings = settings

    def forward(self, x: Tensor) -> Tensor:
        """The first output of the inner model (logits or hidden states)."""
        result: Tensor = self.inner(**{self.keyword: x}, **self.settings)[0]
        return result


class MaskedEncoder(nn.Module):
    """Call a ``transformers`` encoder with tokens and a mask; keep the hidden states."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states, shape (B, T, width)."""
        result: Tensor = self.inner(input_ids=input_ids, attention_mask=attention_mask)[0]
        return result


class Translator(nn.Module):
    """Call an encoder and decoder of ``transformers``; keep the logits."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor, answer: Tensor) -> Tensor:
        """Logits, shape (B, T, vocabulary)."""
        result: Tensor = self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=answer,
            use_cache=False,
        )[0]
        return result


class CachedDecoder(nn.Module):
    """Call a decoder of ``transformers`` for one token, with the earlier ones' keys and values."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(
        self, input_ids: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, 1, vocabulary), and what the token adds to the cache: keys and values.

        Args: input_ids: (B, 1); keys, values: (B, layers, heads, past, width).
        """
        from transformers import DynamicCache

        cache = DynamicCache([(keys[:, i], values[:, i]) for i in range(keys.shape[1])])
        logits = self.inner(input_ids=input_ids, past_key_values=cache, use_cache=True)[0]
        added = [(layer.keys[:, :, -1:], layer.values[:, :, -1:]) for layer in cache.layers]
        return (
            logits,
            torch.stack([key for key, _ in added], dim=1),
            torch.stack([value for _, value in added], dim=1),
        )
