"""Makers of inputs: ``(seed, batch) -> tensors``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.models.case import InputMaker, Inputs

TOKENS = 128


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int) -> InputMaker:
    """Standard normal values, shape (batch, *shape)."""
    return lambda seed, batch: (torch.randn((batch, *shape), generator=generator(seed)),)


def tokens(vocabulary: int, *, masked: bool, length: int = TOKENS) -> InputMaker:
    """Token numbers, shape (batch, length); with ``masked`` also a mask of random lengths."""

    def make(seed: int, batch: int) -> Inputs:
        g = generator(seed)
        ids = torch.randint(0, vocabulary, (batch, length), generator=g)
        if not masked:
            return (ids,)
        lengths = torch.randint(length // 4, length + 1, (batch, 1), generator=g)
        mask = (torch.arange(length)[None, :] < lengths).to(torch.int64)
        return ids * mask, mask

    return make


def audio(samples: int, seed: int, batch: int, *, normalise: bool) -> Tensor:
    """Harmonic tones in noise at 16 kHz, shape (batch, samples)."""
    g = generator(seed)
    pitch = 80.0 + 400.0 * torch.rand((batch, 1, 1), generator=g)
    harmonic = torch.arange(1, 6, dtype=torch.float32).view(1, 5, 1)
    phase = 2 * math.pi * torch.rand((batch, 5, 1), generator=g)
    time = torch.arange(samples, dtype=torch.float32).view(1, 1, -1) / 16_000
    tone = (torch.sin(2 * math.pi * pitch * harmonic * time + phase) / harmonic).sum(1)
    wave = 0.2 * tone + 0.02 * torch.randn((batch, samples), generator=g)
    if normalise:
        wave = (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True)
    return wave


def silero_inputs(seed: int, batch: int) -> Inputs:
    state = 0.5 * torch.randn((2, batch, 128), generator=generator(seed + 1))
    return audio(576, seed, batch, normalise=False), state
