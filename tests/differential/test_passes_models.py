"""Imported PyTorch models mean the same after all passes: interpreter against interpreter."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nestor.frontends.torch import import_model
from nestor.ir.interpreter import run_program
from nestor.ir.program import Extern, Program, Statement
from nestor.passes.analysis import contraction_roles
from nestor.passes.context import PassContext
from nestor.passes.pipeline import PipelineResult, run_pipeline

Arrays = dict[str, np.ndarray]


class Attention(nn.Module):
    """Self-attention with a residual and a norm, as a transformer's encoder has it."""

    def __init__(self, width: int = 16, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(self.norm(x)).split(w, dim=-1)
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, t, w))


class Residual(nn.Module):
    """Two branches, each ending in a norm, summed: both scales fold."""

    def __init__(self, channels: int = 16, stride: int = 2):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(8, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.skip = nn.Sequential(nn.Conv2d(8, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(x) + self.skip(x))


class Depthwise(nn.Module):
    """A depthwise convolution between two pointwise ones, with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, 8, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Recurrent(nn.Module):
    """A bidirectional LSTM between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 5, bidirectional=True, batch_first=True)
        self.last = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.first(x))
        return self.last(y)


class Windows(nn.Module):
    """Partition into windows and back, a roll, a concatenation, a slice: views of every kind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, h, w, c = x.shape
        x = torch.roll(x, (1, 2), (1, 2))
        y = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        y = torch.softmax(y @ y.transpose(1, 2), -1) @ y
        y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.cat([x, y * 2, y[..., :1]], -1)[:, 1:, ::2]


def convolutions(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 4)), (3, 6)),
    "attention": (Attention, (2, 5, 16)),
    "residual": (Residual, (2, 8, 7, 7)),
    "residual-1": (lambda: Residual(stride=1), (1, 8, 5, 6)),
    "depthwise": (Depthwise, (2, 8, 5, 5)),
    "recurrent": (Recurrent, (2, 7, 6)),
    "windows": (Windows, (2, 4, 6, 3)),
    "pooling": (
        lambda: convolutions(
            nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 9, 3),
            nn.AvgPool2d(2), nn.Flatten(), nn.Linear(9, 4), nn.Softmax(-1),
        ),
        (2, 3, 16, 16),
    ),
    "grouped": (
        lambda: convolutions(
            nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.BatchNorm2d(16), nn.SiLU(),
            nn.Conv2d(16, 8, 3, padding=2, dilation=2), nn.GroupNorm(2, 8),
        ),
        (2, 8, 6, 5),
    ),
    "signal": (
        lambda: convolutions(
            nn.Conv1d(2, 16, 5, padding=2), nn.GELU(), nn.Conv1d(16, 8, 3, 2, 1),
            nn.BatchNorm1d(8), nn.Flatten(), nn.LazyLinear(3),
        ),
        (2, 2, 12),
    ),
    "transposed": (
        lambda: convolutions(
            nn.ConvTranspose2d(8, 9, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(9, 3, 3, 1, 1)
        ),
        (2, 8, 4, 3),
    ),
    "volume": (lambda: nn.Conv3d(2, 8, 3, padding=1), (1, 2, 4, 5, 3)),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model with weights and running statistics that no rule can mistake for the identity."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().eval()
    x = torch.randn(shape)
    with torch.no_grad():
        model(x)
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.4)
        for m in model.modules():
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
                m.running_mean.normal_()  # type: ignore[union-attr]
                m.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return model, x


def run_result(result: PipelineResult, arrays: Arrays) -> Arrays:
    """Make the weights, then run the main program."""
    known = dict(arrays)
    weights = result.weight_program
    if weights.statements:
        needed = weights.by_role("parameter", "constant")
        known.update(run_program(weights, {t.name: arrays[t.name] for t in needed}))
    needed = result.main.by_role("input", "inout", "parameter", "constant", "state")
    return run_program(result.main, {t.name: known[t.name] for t in needed})


def arrays_of(imported: Any, x: torch.Tensor) -> Arrays:
    arrays = {n: w.detach().numpy() for n, w in imported.weights.items()}
    arrays[imported.inputs[0].name] = x.numpy()
    return arrays


def assert_outputs(
    imported: Any, result: PipelineResult, model: nn.Module, x: torch.Tensor
) -> None:
    got = run_result(result, arrays_of(imported, x))
    spec = imported.outputs[0]
    sizes = {s: x.shape[d] for s, (_, d) in imported.symbols.items()}
    value = np.asarray(spec.finish(got[spec.tensor], sizes))
    with torch.no_grad():
        wanted = model.double()(x.double()).numpy()
    model.float()
    assert value.shape == wanted.shape
    scale = np.abs(wanted).max()
    assert np.abs(value - wanted).max() <= 2e-5 * scale


@pytest.mark.parametrize("name", sorted(MODELS))
def test_model(name: str) -> None:
    model, x = build(name)
    imported = import_model(model, (x,))
    assert not any(isinstance(s, Extern) for s in imported.program.statements)
    result = run_pipeline(imported.program, PassContext())
    assert_outputs(imported, result, model, x)


@pytest.mark.parametrize("name", ["mlp", "attention", "residual", "depthwise", "grouped", "signal"])
def test_model_with_a_symbolic_batch(name: str) -> None:
    model, x = build(name)
    dynamic = ({0: torch.export.Dim("N", min=2, max=64)},)
    imported = import_model(model, (x,), dynamic_shapes=dynamic)
    result = run_pipeline(imported.program, PassContext())
    for batch in (2, 5):
        assert_outputs(imported, result, model, torch.randn(batch, *x.shape[1:]))


def contractions(program: Program) -> list[Statement]:
    return [
        s
        for s in program.statements
        if isinstance(s, Statement) and contraction_roles(s) is not None
    ]


@pytest.mark.parametrize(
    "name", ["residual", "depthwise", "pooling", "grouped", "signal", "volume"]
)
def test_convolutions_read_without_predicates_and_norms_are_folded(name: str) -> None:
    model, x = build(name)
    result = run_pipeline(import_model(model, (x,)).program, PassContext())
    for statement in contractions(result.main):
        roles = contraction_roles(statement)
        assert roles is not None and not roles.a.predicate and not roles.b.predicate
    norms = sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.modules())
    scaled = [t for t in result.main.tensors if "_scaled" in t.name]
    assert len(scaled) >= norms - (1 if name == "signal" else 0)


def test_pipeline_is_quick() -> None:
    """A stack of 24 attention layers has about 600 statements; passes are near linear in them."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Attention() for _ in range(24))).eval()
    program = import_model(model, (torch.randn(1, 5, 16),)).program
    small = import_model(nn.Sequential(*(Attention() for _ in range(6))).eval(), (
        torch.randn(1, 5, 16),
    )).program  # fmt: skip

    def seconds(p: Program) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            run_pipeline(p, PassContext())
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(program) < 12 * seconds(small)
