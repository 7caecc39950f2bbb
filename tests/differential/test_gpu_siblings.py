"""Calls that are started as one leave what they would one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nestor import gpu_siblings
from nestor.errors import RefusedByTriton
from nestor.gpu_building import BuiltGpuModel
from nestor.gpu_program import GpuProgram
from nestor.runtime.manifest import KernelCall
from tests.differential.test_triton_models import built
from tests.helpers.triton_cases import R


class Projections(nn.Module):
    """Before an attention with fewer keys than queries have heads."""

    def __init__(self, keys: int):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(48, 64), nn.Linear(48, keys), nn.Linear(48, keys)
        self.out = nn.Linear(64, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 16)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(a.transpose(1, 2).flatten(2))


class Chain(nn.Module):
    """Products of one shape that need each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a, b, c, d = self.layers
        return torch.cat([b(a(x)), d(c(y))], -1)


class Counting(nn.Module):
    """Two states that are added to alike."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.zeros(8))
        self.register_buffer("two", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.one.add_(x)
        self.two.add_(x)
        return self.one * self.two


def statements(made: BuiltGpuModel) -> list[int]:
    """How many statements the kernels of each call stand for."""
    calls = (c for c in made.manifest.calls if isinstance(c, KernelCall))
    return [c.name.count("+") + 1 for c in calls]


@pytest.mark.parametrize(("keys", "calls", "joined"), [(64, 3, 3), (32, 4, 2)])
def test_projections(keys: int, calls: int, joined: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Projections(keys).eval(), R(2, 40, 48)
    made = built(module, (x,), tmp_path)
    torch.testing.assert_close(made.executable(x), module(x), rtol=1e-4, atol=1e-5)
    assert len(made.manifest.calls) == calls
    names = [k.name for k in made.report().kernels]
    assert len(names) == len(made.manifest.launches)
    assert [n.partition("x")[2] for n in names if "x" in n] == [str(joined)]


def test_what_needs_another_waits(tmp_path: Path) -> None:
    """First both first layers, then both second ones."""
    torch.manual_seed(0)
    module, x, y = Chain().eval(), R(17, 32), R(17, 32)
    made = built(module, (x, y), tmp_path)
    torch.testing.assert_close(made.executable(x, y), module(x, y), rtol=1e-4, atol=1e-5)
    assert len(made.manifest.calls) <= 3


def test_symbolic_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Projections(64).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    made = built(module, (R(3, 20, 48),), tmp_path, dynamic_shapes=({0: batch},))
    for count in (2, 5):
        x = R(count, 20, 48)
        torch.testing.assert_close(made.executable(x), module(x), rtol=1e-4, atol=1e-5)


def test_states_stay_apart(tmp_path: Path) -> None:
    module, x = Counting().eval(), R(8)
    made = built(module, (x,), tmp_path)
    module.one.zero_(), module.two.zero_()
    for turn in (1, 2):
        torch.testing.assert_close(made.executable(x), (turn * x) ** 2)


class Experts(nn.Module):
    """Products of one shape with others in between."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(32, 48) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(48, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for up, down in zip(self.up, self.down):
            y = y + down(up(x))
        return y


def test_joined_calls_that_triton_refuses_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = BuiltGpuModel.__init__

    def refuse(self: BuiltGpuModel, imported: Any, program: GpuProgram, *rest: Any) -> None:
        if any(k.calls > 1 for k in program.kernels.values()):
            raise RefusedByTriton("Triton refuses a kernel: no")
        plain(self, imported, program, *rest)

    monkeypatch.setattr(BuiltGpuModel, "__init__", refuse)
    torch.manual_seed(0)
    module, x = Projections(64).eval(), R(2, 40, 48)
    made = built(module, (x,), tmp_path)
    torch.testing.assert_close(made.executable(x), module(x), rtol=1e-4, atol=1e-5)
    assert len(made.manifest.calls) == 5


def test_only_little_is_made_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are not moved over others where what they make is large."""
    torch.manual_seed(0)
    module, x = Experts().eval(), R(20, 32)
    counts = []
    for _ in range(2):
        made = built(module, (x,), tmp_path)
        torch.testing.assert_close(made.executable(x), module(x), rtol=1e-4, atol=1e-5)
        names = {k.name: k.calls for k in made.report().kernels}
        assert all(name.startswith("k") for name in names)
        counts.append(len(made.manifest.calls))
        monkeypatch.setattr(gpu_siblings._Joining, "_is_small", lambda self, call: False)
    assert counts[0] < counts[1]


class Steps(nn.Module):
    """Two recurrences of one shape, whose steps are loops of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.GRU(12, 12, batch_first=True) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x)[0] + self.two(x)[0]


def test_loops_of_the_host(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Steps().eval(), R(3, 5, 12)
    made = built(module, (x,), tmp_path)
    torch.testing.assert_close(made.executable(x), module(x), rtol=1e-4, atol=1e-5)
    for loop in made.manifest.loops:
        assert 0 <= loop.first < loop.last <= len(made.manifest.calls)
