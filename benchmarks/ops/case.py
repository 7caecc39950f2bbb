"""An operator of the collection: a small module, its inputs, what it has to compute and to move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]

_SEED = 20241


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCase:
    """An operator at one size.

    Attributes:
        name: as given on the command line.
        group: what it is listed under.
        build: makes the module, float32; its parameters are what a model would own.
        inputs: makes the inputs from a generator.
        operations: additions, multiplications and the like that the result takes at least; a
            multiply-add counts two, and so it does in the peak that this is held against.
        read_bytes: bytes of the inputs and parameters that have to be read, from the module and the
            inputs [bytes]; None: all of them, once.
    """

    name: str
    group: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Inputs]
    operations: float
    read_bytes: Callable[[nn.Module, Inputs], int] | None = None

    def module(self) -> nn.Module:
        """The module in evaluation mode, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            return self.build().eval().requires_grad_(False)

    def make_inputs(self, seed: int) -> Inputs:
        """Inputs that depend on ``seed`` alone."""
        return self.inputs(torch.Generator().manual_seed(seed))

    def moved_bytes(self, module: nn.Module, inputs: Inputs, outputs: Sequence[Any]) -> int:
        """Bytes that any way of computing it reads or writes at least [bytes].

        Args: outputs: arrays or tensors with ``nbytes``.
        """
        written = sum(int(o.nbytes) for o in outputs)
        if self.read_bytes is not None:
            return self.read_bytes(module, inputs) + written
        return size_bytes(*inputs, *module.parameters(), *module.buffers()) + written


def size_bytes(*tensors: Tensor) -> int:
    """What ``tensors`` hold together [bytes]."""
    return sum(t.numel() * t.element_size() for t in tensors)


class Apply(nn.Module):
    """A function of the inputs, without parameters."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the function returns."""
        return self.function(*inputs)
