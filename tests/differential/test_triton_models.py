"""Whole models as Triton kernels, in Triton's interpreter, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.models.case import make_lively
from nestor.config import Config
from nestor.errors import IndexOutOfRange, InputError
from nestor.gpu_building import BuiltGpuModel, build_gpu_model
from nestor.target.gpu import parse_gpu_target
from tests.helpers import triton_runs
from tests.helpers.triton_cases import Of, R
from tests.helpers.triton_models import MODELS

Inputs = tuple[torch.Tensor, ...]
CPU = torch.device("cpu")


def built(module: nn.Module, inputs: Inputs, folder: Path, **more: object) -> BuiltGpuModel:
    """A model for an H200, whose kernels run where its tensors are: here."""
    assert triton_runs.is_interpreting()
    config = Config.load(cache_dir=folder)
    target = parse_gpu_target("sm_90")
    return build_gpu_model(module.eval(), inputs, {}, config, [target], CPU, **more)  # type: ignore[arg-type]


def flat(outputs: Any) -> torch.Tensor:
    """All numbers of a model's outputs."""
    return torch.cat([t.reshape(-1) for t in pytree.tree_leaves(outputs)])


def error_and_bound(
    module: nn.Module, call: Callable[..., torch.Tensor], inputs: Inputs
) -> tuple[float, float]:
    """The largest error against float64, and four times that of PyTorch in float32."""
    with torch.inference_mode():
        wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        eager, found = (flat(f(*inputs)) for f in (module, call))
        exact = flat(module.double()(*wide))
        module.float()
    scale = float(exact.abs().max())
    own = float((eager - exact).abs().max())
    return float((found - exact).abs().max()), max(4 * own, 4 * scale * 2**-23)


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, inputs = MODELS[name]()
    with torch.no_grad():
        make_lively(module)
    made = built(module, inputs, tmp_path)
    assert not made.report().externs
    error, bound = error_and_bound(module, made.executable, inputs)
    assert error <= bound


@pytest.mark.parametrize("keys", [1024, 1100])
@pytest.mark.parametrize("mask", [False, True])
def test_attention_of_one_query_is_cut(keys: int, mask: bool, tmp_path: Path) -> None:
    class Decode(nn.Module):
        def forward(
            self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None
        ) -> torch.Tensor:
            more = {"attn_mask": seen, "enable_gqa": True}
            return nn.functional.scaled_dot_product_attention(q, k, v, **more)

    seen = (torch.arange(keys) < keys - 300)[None] if mask else None
    inputs = (R(1, 4, 1, 32), R(1, 2, keys, 32), R(1, 2, keys, 32))
    module = Decode()
    made = built(module, (*inputs, seen), tmp_path)  # type: ignore[arg-type]
    assert not made.report().externs
    sources = [k.triton.source for k in made._program.kernels.values()]
    assert sum("tl.exp" in s or "lib.exp" in s for s in sources) >= 2
    wanted = module(*inputs, seen)
    torch.testing.assert_close(made.executable(*inputs, seen), wanted, rtol=1e-5, atol=1e-5)


def test_a_batch_of_any_size(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.LayerNorm(30))
    shapes = ({0: torch.export.Dim("batch", max=64)},)
    made = built(module, (R(3, 20),), tmp_path, dynamic_shapes=shapes)
    for batch in (1, 5, 33):
        error, bound = error_and_bound(module, made.executable, (R(batch, 20),))
        assert error <= bound


def test_weights_that_change(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    x = R(4, 8)
    made = built(module, (x,), tmp_path)
    with torch.no_grad():
        before = made.executable(x)
        module[0].weight.mul_(2)
        module[1].running_mean.add_(1)
        wanted = module(x)
    assert not torch.allclose(before, wanted)
    torch.testing.assert_close(made.executable(x), wanted)


def test_states_and_inputs_that_are_overwritten(tmp_path: Path) -> None:
    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(4, 3))

        def forward(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            self.seen.add_(x)
            out.mul_(2)
            return self.seen * 10

    module, eager = Cache(), Cache()
    made = built(module, (R(4, 3), R(4, 3)), tmp_path)
    for _ in range(3):
        x, out = R(4, 3), R(4, 3)
        theirs = out.clone()
        found, wanted = made.executable(x, out), eager(x, theirs)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(out, theirs)
        torch.testing.assert_close(module.seen, eager.seen)


def test_inputs_of_any_strides_and_structure(tmp_path: Path) -> None:
    module = Of(lambda pair: {"sum": pair[0] + pair[1], "view": pair[0].t()})
    made = built(module, ((R(4, 6), R(4, 6)),), tmp_path)  # type: ignore[arg-type]
    a, b = R(6, 4).t(), R(4, 12)[:, ::2]
    found = made.executable((a, b))
    torch.testing.assert_close(found["sum"], a + b)
    torch.testing.assert_close(found["view"], a.t())


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    made = built(nn.Linear(8, 4), (R(2, 8),), tmp_path)
    with pytest.raises(InputError, match="shape"):
        made.executable(R(2, 7))
    with pytest.raises(InputError, match="dtype float64"):
        made.executable(R(2, 8).double())
    with pytest.raises(InputError, match="device meta"):
        made.executable(R(2, 8).to("meta"))


INDICES = torch.tensor([3, 0, 3, 4, 1, 3])
SCATTERS: dict[str, tuple[Callable[..., torch.Tensor], Inputs]] = {
    "index_add": (lambda x, i, y: x.index_add(0, i, y), (R(5, 7), INDICES, R(6, 7))),
    "index_add along columns": (lambda x, i, y: x.index_add(1, i, y), (R(7, 5), INDICES, R(7, 6))),
    "index_copy": (lambda x, i, y: x.index_copy(0, i, y), (R(5, 40), INDICES[1:3], R(2, 40))),
    "scatter_add": (
        lambda x, i, y: x.scatter_add(0, i, y),
        (R(5, 3), INDICES[:, None].expand(6, 3).clone(), R(6, 3)),
    ),
    "scatter": (
        lambda x, i, y: x.scatter(1, i, y),
        (R(3, 5), torch.stack([torch.randperm(5)[:4] for _ in range(3)]), R(3, 4)),
    ),
    "largest": (
        lambda x, i, y: x.scatter_reduce(0, i, y, "amax"),
        (R(5, 3), INDICES[:, None].expand(6, 3).clone(), R(6, 3)),
    ),
    "gather": (lambda x, i: x.gather(1, i), (R(4, 9), torch.randint(0, 9, (4, 3)))),
    "rows": (lambda x, i: x[i] * 2, (R(5, 33), INDICES)),
}


@pytest.mark.parametrize("name", SCATTERS)
def test_indices_that_are_data(name: str, tmp_path: Path) -> None:
    function, inputs = SCATTERS[name]
    made = built(Of(function), inputs, tmp_path)
    assert not made.report().externs
    torch.testing.assert_close(made.executable(*inputs), function(*inputs))


@pytest.mark.parametrize("wrong", [-1, 10, 1 << 40])
def test_an_index_outside_its_tensor(wrong: int, tmp_path: Path) -> None:
    table = nn.Embedding(10, 20)
    made = built(table, (torch.tensor([1, 2, 3]),), tmp_path)
    with pytest.raises(IndexOutOfRange, match="an index read from a tensor"):
        made.executable(torch.tensor([1, wrong, 3]))
    again = torch.tensor([0, 9, 4])
    torch.testing.assert_close(made.executable(again), table(again))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrences(kind: type[nn.Module], bidirectional: bool, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            more = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": True}
            self.net = kind(6, 10, **more)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(x)[0]
            return out

    module, x = Net(), R(3, 4, 6)
    made = built(module, (x,), tmp_path)
    error, bound = error_and_bound(module, made.executable, (x,))
    assert error <= bound


def test_quotients_of_quotients(tmp_path: Path) -> None:
    """In double precision, where a division is an operator of Triton's."""

    def quotients(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x / (y / z), x * (y / z), (y / z).reciprocal(), (x / y) / z, x - (y / z) * x

    inputs = tuple(1 + torch.rand(9, dtype=torch.float64) for _ in range(3))
    found = built(Of(quotients), inputs, tmp_path).executable(*inputs)
    for got, want in zip(found, quotients(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-15, atol=0)


def test_signs_of_zeros(tmp_path: Path) -> None:
    def zeros(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return -x, torch.fmod(x, 2.0), torch.atan(x), torch.copysign(x, -x)

    x = torch.tensor([0.0, -0.0, 4.0, -4.0, 1.0])
    found = built(Of(zeros), (x,), tmp_path).executable(x)
    for got, want in zip(found, zeros(x), strict=True):
        torch.testing.assert_close(got, want)
        assert torch.equal(torch.signbit(got), torch.signbit(want))
