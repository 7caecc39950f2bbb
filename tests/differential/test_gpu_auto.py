"""``target="auto"``: the CPU where there is no code for the GPU that inputs lie on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import nestor
from nestor.config import Config
from nestor.errors import Unsupported, UserError
from nestor.gpu_building import build_gpu_model
from nestor.on_cpu import BuiltOnCpu, copied_to_cpu, moved
from nestor.target.gpu import parse_gpu_target
from tests.helpers import triton_runs  # noqa: F401  kernels of this process are interpreted
from tests.helpers.triton_cases import R

HERE = torch.device("cpu")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 30)
        self.register_buffer("shift", R(30))
        self.tied = self.linear.weight

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.linear(x) * scale + self.shift, "z": x @ self.tied.t()}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Inputs count as a GPU's, for which there is no code."""

    def refuse(error: Exception) -> None:
        def target_of(device: torch.device) -> None:
            raise error

        monkeypatch.setattr("nestor.api.gpu_device", lambda args, kwargs: HERE)
        monkeypatch.setattr("nestor.gpu_building.target_of", target_of)

    return refuse


@pytest.mark.parametrize(
    "error",
    [
        Unsupported("no Triton"),
        UserError("an old chip"),
        torch.OutOfMemoryError("no memory"),
        nestor.errors.RefusedByTriton("no code"),
    ],
)
def test_what_has_no_code_runs_on_the_cpu(
    on_gpu: Callable[[Exception], None], error: Exception, tmp_path: Path
) -> None:
    on_gpu(error)
    net, x, scale = Net().eval(), R(5, 20), R(30)
    with pytest.warns(UserWarning, match=f"runs on the CPU[\\s\\S]*{error}"):
        fast = nestor.compile(net, target="auto", cache_dir=tmp_path)
        found = fast(x, scale=scale)
    expected = net(x, scale=scale)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert "x86" in fast.report().target
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(x, scale=scale)  # compiled once
    fast.save(tmp_path / "net.nst")
    assert nestor.load(tmp_path / "net.nst").manifest.name == "Net"
    with pytest.raises(type(error)):
        nestor.compile(net, cache_dir=tmp_path)(x, scale=scale)


def test_other_errors_stay(on_gpu: Callable[[Exception], None], tmp_path: Path) -> None:
    on_gpu(ZeroDivisionError("a mistake"))
    with pytest.raises(ZeroDivisionError):
        nestor.compile(nn.Linear(4, 4), (R(1, 4),), target="auto", cache_dir=tmp_path)


def test_without_a_gpu_it_is_this_cpu(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = nestor.compile(nn.Linear(4, 4), (R(2, 4),), target="auto", cache_dir=tmp_path)
    assert "x86" in fast.report().target


def test_results_go_where_inputs_lie() -> None:
    class Built:
        def executable(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return x + 1, 3

    y, three = BuiltOnCpu(Built(), torch.device("meta"))(torch.zeros(2))  # type: ignore[arg-type]
    assert (y.device.type, three) == ("meta", 3)
    given = moved({"a": [torch.zeros(2), "b"]}, "meta")
    assert (given["a"][0].device.type, given["a"][1]) == ("meta", "b")


def test_a_copy_keeps_what_is_tied() -> None:
    net = Net().eval()
    copied = copied_to_cpu(net)
    assert copied.tied is copied.linear.weight
    assert copied.tied is not net.tied
    torch.testing.assert_close(copied.shift, net.shift)
    with pytest.raises(Unsupported, match="export it again"):
        copied_to_cpu(torch.export.export(nn.Linear(4, 4), (R(1, 4),)))


def test_memory_that_runs_out_says_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = nn.Sequential(nn.Linear(20, 30), nn.Softmax(0)).eval(), R(5, 20)
    config, target = Config.load(cache_dir=tmp_path), parse_gpu_target("sm_90")
    made = build_gpu_model(net, (x,), {}, config, [target], HERE, name="net")
    torch.testing.assert_close(made.executable(x), net(x))
    made = build_gpu_model(net, (x,), {}, config, [target], HERE, name="net")

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError, match="no memory") as caught:
        made.executable(x)
    assert any("fix: smaller batches" in note for note in caught.value.__notes__)
