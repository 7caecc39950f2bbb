"""``torch.compile(model, backend="nestor")``."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nestor.api import CompiledModel
from nestor.dynamo import backend
from nestor.errors import ExportError, UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[CompiledModel]:
    """Every call that native code answered."""
    seen: list[CompiledModel] = []
    original = CompiledModel.__call__

    def spy(self: CompiledModel, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CompiledModel, "__call__", spy)
    return seen


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = torch.relu(self.norm(self.first(x)))
        return self.second(hidden), {"hidden": hidden, "flat": hidden.reshape(x.shape[0] * 16)}


def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def assert_same(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_small_module(calls: list[CompiledModel]) -> None:
    model, x = small(), torch.rand(5, 8)
    fast = torch.compile(model, backend=backend)
    with torch.inference_mode():
        for _ in range(2):
            assert_same(fast(x), model(x))
    assert len(calls) == 2 and calls[0] is calls[1]
    assert calls[0].report().kernels and not calls[0].report().externs


def test_changed_weights_are_seen() -> None:
    model, x = small(), torch.rand(5, 8)
    fast = torch.compile(model, backend=backend)
    with torch.no_grad():
        assert_same(fast(x), model(x))
        model.first.weight.mul_(2)
        assert_same(fast(x), model(x))
        model.second.weight = nn.Parameter(torch.rand(3, 16))
        model.norm.running_mean = torch.rand(16)
        assert_same(fast(x), model(x))


def test_one_compilation_serves_all_batches(calls: list[CompiledModel]) -> None:
    model = small()
    fast = torch.compile(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for batch in (5, 3, 17):
            x = torch.rand(batch, 8)
            assert_same(fast(x), model(x))
    assert len(calls) == 3 and len(set(map(id, calls))) == 1
    assert len({id(b) for b in calls[0]._built.values()}) == 1


def test_a_size_that_changes_becomes_dynamic(calls: list[CompiledModel]) -> None:
    model = small()
    fast = torch.compile(model, backend=backend)
    with torch.no_grad():
        for batch in (4, 6, 9, 11):
            x = torch.rand(batch, 8)
            assert_same(fast(x), model(x))
    assert len(set(map(id, calls))) == 2  # the first size, and all


def test_a_number_that_is_no_size() -> None:
    def function(x: Tensor, factor: int) -> Tensor:
        return x * factor + x.sum(0)

    fast = torch.compile(function, backend=backend, dynamic=True)
    with torch.no_grad():
        for batch, factor in ((3, 2), (4, 5), (4, 7)):
            x = torch.rand(batch, 8)
            assert_same(fast(x, factor), function(x, factor))


def test_a_number_of_many_values_is_left_to_pytorch() -> None:
    def function(x: Tensor, factor: float) -> Tensor:
        return x * factor

    x = torch.rand(4)
    fast = torch.compile(function, backend=backend, dynamic=True)
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="has 8 values already"):
        for factor in range(12):
            assert_same(fast(x, factor + 0.5), x * (factor + 0.5))


def test_what_cannot_be_exported_is_left_to_pytorch() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.mul, (x, graph.call_function(bool, (x,)))),))
    module, value = torch.fx.GraphModule({}, graph), torch.tensor([2.0])
    with pytest.raises(ExportError):
        backend(module, [value], options={"strict": True})(value)
    fast = backend(module, [value])
    with pytest.warns(RuntimeWarning, match="nestor does not compile"):
        assert fast(value)[0].item() == 2
    assert fast(value)[0].item() == 2


def test_a_graph_break_in_the_middle(
    calls: list[CompiledModel], capsys: pytest.CaptureFixture[str]
) -> None:
    def function(x: Tensor) -> Tensor:
        y = torch.softmax(x @ x.T, -1)
        print("between")
        return y.sum(0) * 3

    x = torch.rand(6, 4)
    fast = torch.compile(function, backend=backend)
    with torch.no_grad():
        assert_same(fast(x), function(x))
    assert len(set(map(id, calls))) == 2
    assert capsys.readouterr().out == "between\nbetween\n"


def test_buffers_that_a_model_overwrites() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return x * self.count

    model, plain, x = Counting(), Counting(), torch.rand(4)
    fast = torch.compile(model, backend=backend)
    with torch.no_grad():
        for _ in range(3):
            assert_same(fast(x), plain(x))
        assert model.count.item() == 3
        model.count = torch.full((1,), 7.0)
        plain.count = torch.full((1,), 7.0)
        assert_same(fast(x), plain(x))
        assert model.count.item() == 8


def test_training_is_left_to_pytorch(calls: list[CompiledModel]) -> None:
    model, x = small().train(), torch.rand(5, 8)
    fast = torch.compile(model, backend=backend)
    with pytest.warns(RuntimeWarning, match="nestor compiles for inference"):
        fast(x)[0].sum().backward()
    assert model.first.weight.grad is not None and not calls
    model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert_same(fast(x), model(x))
    assert calls


def test_options_and_modes() -> None:
    model, x = small(), torch.rand(2, 8)
    with torch.no_grad():
        assert_same(torch.compile(model, backend=backend, options={"threads": 1})(x), model(x))
    graph = torch.fx.symbolic_trace(nn.ReLU())
    with pytest.raises(UserError, match="no mode 'max-autotune'"):
        backend(graph, [x], mode="max-autotune")
    with pytest.raises(UserError, match="thread"):
        backend(graph, [x], options={"thread": 1})


def test_the_entry_point_names_the_backend() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["torch_dynamo_backends"].items()
    assert name == "nestor"
    assert EntryPoint(name, value, "torch_dynamo_backends").load() is backend


def test_importing_nestor_does_not_import_torch() -> None:
    code = "import sys, nestor; sys.exit('torch' in sys.modules or 'nestor.dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
