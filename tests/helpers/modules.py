"""Modules for tests of compiled models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Fun(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        """Call it."""
        return self.function(*inputs)
