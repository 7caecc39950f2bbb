"""Cases of the frontend's differential tests: functions, and makers of their inputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from nestor.frontends.torch import exporting
from tests.helpers.torch_reference import check_model

Maker = Callable[[torch.Generator], Tensor]


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


class Cases(list[Case]):
    """The cases of one module."""

    def __call__(
        self, name: str, function: Callable[..., Any], *inputs: Any, **settings: Any
    ) -> None:
        """Add a case; a set of one input may be given without its tuple."""
        sets = tuple(x if isinstance(x, tuple) else (x,) for x in inputs)
        self.append(Case(name, function, sets, **settings))


SEEN: set[str] = set()
"""Operators of all graphs that were lowered in this process."""


def run_case(c: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the imported Program, interpreted, gives eager's values, types and shapes."""
    original = exporting.decompose

    def noting(*args: Any) -> Any:
        found = original(*args)
        SEEN.update(str(n.target) for n in found.graph.nodes if n.op == "call_function")
        return found

    monkeypatch.setattr(exporting, "decompose", noting)
    generator = torch.Generator().manual_seed(zlib.crc32(c.name.encode()))
    for makers in c.inputs:
        inputs = tuple(make(generator) for make in makers)
        check_model(c.function, inputs, externs=c.externs, rtol=c.rtol, atol=c.atol)
