"""Depthwise convolutions of an input into an output: row-major, whatever follows them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import nestor
from nestor.frontends.torch import import_model
from nestor.ir.loopnest import Alloc, Node, node_children
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.nest import apply_schedule
from nestor.passes.pipeline import PassContext, run_pipeline
from nestor.passes.polyhedral.checker import check_nest
from nestor.passes.register_tile import VectorUnit


class Followed(nn.Module):
    """A depthwise convolution and what else happens to each of its results."""

    def __init__(self, follow: str, size: int, bias: bool, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(18, 18, size, stride=stride, padding=size // 2, groups=18, bias=bias)
        self.mix = nn.Conv2d(18, 20, 1)
        self.follow = follow

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(x)
        match self.follow:
            case "relu":
                return torch.relu(result)
            case "sum":
                return result + y
            case "transposed":
                return torch.relu(result).transpose(2, 3) + y.transpose(2, 3)
            case "mixed":
                mixed: torch.Tensor = self.mix(torch.relu(result))
                return mixed
        return result


def layouts_of(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[object]:
    """The layouts of the temps that the pipeline leaves."""
    program = import_model(model, inputs).program
    main = run_pipeline(program, PassContext()).main
    return [t.layout for t in main.tensors if t.role == "temp" and t.layout is not None]


def inputs_of(stride: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    out = 28 if stride == 1 else 14
    return torch.randn(batch, 18, 28, 28), torch.randn(batch, 18, out, out)


@pytest.mark.parametrize("follow", ["nothing", "relu", "sum", "transposed", "mixed"])
@pytest.mark.parametrize(("size", "bias", "stride"), [(7, True, 1), (3, True, 1), (5, False, 2)])
def test_results_are_those_of_torch(follow: str, size: int, bias: bool, stride: int) -> None:
    inputs = inputs_of(stride)
    model = Followed(follow, size, bias, stride).eval()
    with torch.no_grad():
        found, exact = nestor.compile(model, inputs)(*inputs), model(*inputs)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("follow", ["nothing", "relu", "sum"])
def test_a_bias_or_an_activation_keeps_rows(follow: str) -> None:
    assert layouts_of(Followed(follow, 7, True, 1).eval(), inputs_of(1)) == []


def test_a_convolution_of_all_channels_wants_them_last() -> None:
    """Channels that fill their vectors, that is: 18 run faster as rows of pixels here too."""
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1)).eval()
    assert layouts_of(model, (torch.randn(1, 32, 56, 56),)) != []


def kernels_of(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[list[str]]:
    """The tensors that each kernel keeps to itself."""
    main = run_pipeline(import_model(model, inputs).program, PassContext()).main
    parts = partition_program(main, l2_bytes=1 << 20).parts
    kernels = [p.kernel for p in parts if isinstance(p, FusedKernel)]
    assert len(kernels) == len(parts)
    return [[t.name for t in k.tensors if t.role == "temp"] for k in kernels]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_border_and_what_follows_are_of_one_kernel(batch: int) -> None:
    (temps,) = kernels_of(Followed("relu", 7, True, 1).eval(), inputs_of(1, batch))
    assert len(temps) == 2


def scopes_of(node: Node) -> Iterator[tuple[str, str]]:
    """What each buffer of a nest holds, and where it is."""
    if isinstance(node, Alloc):
        yield from ((str(b.holds), b.scope) for b in node.buffers)
    for child in node_children(node):
        yield from scopes_of(child)


def test_the_schedule_keeps_results_in_registers() -> None:
    model = Followed("sum", 5, True, 1).eval()
    main = run_pipeline(import_model(model, inputs_of(1)).program, PassContext()).main
    (part,) = partition_program(main, l2_bytes=1 << 20).parts
    assert isinstance(part, FusedKernel)
    nest = apply_schedule(part.kernel, default_schedule(part, VectorUnit()))
    check_nest(part.kernel, nest)
    scopes = dict(scopes_of(nest.body))
    assert sorted(scopes[t.name] for t in part.kernel.tensors if t.role == "temp") == [
        "local",
        "register",
    ]


def test_a_batch_of_any_size() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(18, 18, 7, padding=3, groups=18)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.relu(self.conv(x))
            return result

    model = Alone().eval()
    x, _ = inputs_of(1, 4)
    compiled = nestor.compile(model, (x,), dynamic_shapes=({0: torch.export.Dim("N")},))
    with torch.no_grad():
        for batch in (4, 1, 7):
            x = torch.randn(batch, 18, 28, 28)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
