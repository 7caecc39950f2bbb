"""An operator names the line of the user's model that it comes from."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from nestor.frontends.torch import origins
from nestor.frontends.torch.importer import import_model
from nestor.ir.program import Extern, Origin

SOURCE = """
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        x = self.fc(x)  # line: linear
        x = F.relu(x)  # line: relu
        x = self.layers(x)  # line: sequential
        x, _ = self.gru(x)  # line: gru
        return attend(x)


def attend(x):
    return F.softmax(x, dim=-1)  # line: helper


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x):
        return self.blocks(x)
"""


@pytest.fixture
def model(tmp_path: Path) -> Iterator[tuple[nn.Module, dict[str, int]]]:
    """A model defined in a file of its own, and the lines marked in it."""
    file = tmp_path / "their_model.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("their_model", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = {
        text.partition("# line: ")[2]: number
        for number, text in enumerate(SOURCE.splitlines(), start=1)
        if "# line: " in text
    }
    yield module.Model().eval(), lines


def found(model: nn.Module, x: torch.Tensor) -> list[Origin]:
    """The origin of everything that the imported Program computes."""
    program = import_model(model, (x,)).program
    parts = [s for s in program.statements if not isinstance(s, Extern)]
    return [s.origin for s in parts if s.origin is not None]


def test_modules_of_torch_name_the_line_that_calls_them(
    model: tuple[nn.Module, dict[str, int]],
) -> None:
    network, lines = model
    everything = found(network, torch.randn(2, 3, 8))
    assert {Path(o.file).name for o in everything} == {"their_model.py"}
    by_op: dict[str, set[int]] = {}
    for origin in everything:
        by_op.setdefault(origin.op.split(".")[1], set()).add(origin.line)
    assert by_op["relu"] == {lines["relu"]}
    assert by_op["tanh"] == {lines["sequential"]}
    assert by_op["gru"] == {lines["gru"]}
    assert by_op["linear"] == {lines["linear"], lines["sequential"]}
    assert any(lines["helper"] in at for op, at in by_op.items() if "softmax" in op)
    modules = {o.module for o in everything if o.line == lines["sequential"]}
    assert {"blocks.0.layers.0", "blocks.1.layers.1"} <= modules


def test_a_model_of_torch_modules_alone_names_the_module() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU()))
    assert {str(o).partition(" at ")[2] for o in found(net, torch.randn(2, 4))} == {
        "0 (Linear)",
        "1.0 (ReLU)",
    }
    assert {o.module for o in found(nn.Linear(4, 4), torch.randn(2, 4))} == {"Linear"}


def test_whose_a_file_is() -> None:
    site = Path(torch.__file__).parents[1]
    assert not origins.is_users_file(str(site / "torch" / "nn" / "modules" / "linear.py"))
    assert not origins.is_users_file(str(Path(origins.__file__)))
    assert not origins.is_users_file("<eval_with_key>.3 from /x.py")
    assert origins.is_users_file(str(site / "torchvision" / "models" / "resnet.py"))
    assert origins.is_users_file("<stdin>")


def test_innermost_line_outside_pytorch() -> None:
    site = Path(torch.__file__).parent
    trace = (
        '  File "/home/me/train.py", line 3, in forward\n    x = self.fc(x)\n'
        f'  File "{site}/nn/modules/linear.py", line 134, in forward\n    return F.linear(x)'
    )
    assert origins.innermost_frame(trace) == ("/home/me/train.py", 3)
    assert origins.innermost_frame(trace.partition("x)\n")[2]) == ("", 0)
    assert origins.innermost_frame("") == ("", 0)
