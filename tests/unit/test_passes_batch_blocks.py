"""Batches in blocks: what mixes images is refused, parts of what does not are as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestor.frontends.torch import ImportedModel, import_model
from nestor.ir.interpreter import run_program
from nestor.ir.program import Program
from nestor.ir.verifier import verify_program
from nestor.passes.batch_blocks import choose_images, find_batch, split_batch, take_blocks
from tests.helpers.modules import Fun
from tests.helpers.torch_reference import to_numpy

B = 6


def network() -> nn.Module:
    """Convolutions of every kind, a scale that is computed, and a head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.MaxPool2d(2), nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.Softmax(-1),
    )  # fmt: skip


class Encoder(nn.Module):
    """Tokens with positions and a token of its own in front; a layer; rows merged and parted."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.first = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 6, 8))
        self.inside, self.outside = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.first.expand(tokens.shape[0], -1, -1), self.words(tokens)], 1)
        x = self.norm(x + self.places)
        q, k, v = self.inside(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = (x + self.outside(mixed)) * mask[:, None, None]
        rows = self.head(x.reshape(-1, 8))
        return rows, rows.reshape(tokens.shape[0], -1, 3).sum(1)


def pictures() -> tuple[Tensor, ...]:
    """A batch of images."""
    return (torch.randn(B, 3, 9, 9),)


def numbers(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    """One tensor."""
    return lambda: (torch.randn(*shape),)


SAME: dict[str, tuple[Callable[[], Any], Callable[[], tuple[Tensor, ...]]]] = {
    "network": (network, pictures),
    "encoder": (Encoder, lambda: (torch.randint(0, 11, (B, 5)), torch.rand(B))),
    "pixels": (lambda: nn.PixelShuffle(3), numbers(B, 9, 2, 2)),
    "roll": (lambda: Fun(lambda x: x.roll(1, 1).flip(2).cumsum(1)), numbers(B, 3, 4)),
    "padded": (lambda: Fun(lambda x: F.pad(x, (1, 2, 0, 1))), numbers(B, 3, 4)),
    "gathered": (
        lambda: Fun(lambda x, i: x.gather(1, i)),
        lambda: (torch.randn(B, 5), torch.randint(0, 5, (B, 3))),
    ),
    "one for all": (
        lambda: Fun(lambda x, y: x * y.softmax(0)),
        lambda: (torch.randn(B, 4), torch.randn(4)),
    ),
}

MIXED: dict[str, Callable[[Tensor], Any]] = {
    "mean": lambda x: x - x.mean(0),
    "softmax": lambda x: x.softmax(0),
    "all": lambda x: x / x.sum(),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "cumulative": lambda x: x.cumsum(0),
    "padded": lambda x: F.pad(x, (0, 0, 1, 1)),
    "part": lambda x: x[1:],
    "every other": lambda x: x[::2] + x[1::2],
    "transposed": lambda x: (x.t() * 2).contiguous(),
    "numbered": lambda x: x * torch.arange(B)[:, None],
    "triangle": lambda x: x.tril(),
    "picked": lambda x: x[torch.tensor([3, 1, 1, 0, 2, 5])],
    "one of them": lambda x: x + x[2],
    "products": lambda x: x @ x.t(),
    "merged otherwise": lambda x: x.reshape(4, B).t() + x,
    "beside numbers": lambda x: torch.cat([torch.arange(B)[:, None].float(), x], 1) * 2,
    "identity": lambda x: torch.cat([torch.eye(B), x], 1),
    "written into": lambda x: torch.ones(B, 5).index_put(
        (torch.arange(B), torch.arange(B) % 5), x[:, 0]
    ),
    "standard": lambda x: F.batch_norm(x, None, None, training=True),
}


def imported(model: Any, inputs: tuple[Tensor, ...]) -> ImportedModel:
    """The Program of a model in evaluation."""
    return import_model(model.eval().requires_grad_(False), inputs, {}, name="case")


def results(model: ImportedModel, program: Program, arrays: dict[str, Any]) -> dict[str, Any]:
    """Outputs of a Program with the model's weights."""
    weights = {n: to_numpy(t) for n, t in model.weights.items()}
    return run_program(program, arrays | weights)


@pytest.mark.parametrize("images", (1, 2, 3))
@pytest.mark.parametrize("name", SAME)
def test_parts_give_parts(name: str, images: int) -> None:
    torch.manual_seed(3)
    make, inputs_of = SAME[name]
    inputs = inputs_of()
    model = imported(make(), inputs)
    use = find_batch(model.program)
    assert use is not None and use.batch == B
    part = take_blocks(model.program, use, images)
    verify_program(part)
    arrays = {s.name: to_numpy(t) for s, t in zip(model.inputs, inputs, strict=True)}
    whole = results(model, model.program, arrays)
    for first in range(0, B, images):
        given = {n: a[first : first + images] if n in use.tensors else a for n, a in arrays.items()}
        found = results(model, part, given)
        for output, array in found.items():
            size = len(whole[output]) // B
            expected = whole[output][first * size : (first + images) * size]
            np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_images_is_refused(name: str) -> None:
    model = imported(Fun(MIXED[name]), (torch.randn(B, 4),))
    assert find_batch(model.program) is None


class Beside(nn.Module):
    """A weight as tall as the batch beside its images, read again in parts."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(B, 4))
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        pieces = [self.own, x] if self.first else [x, self.own]
        a, b = torch.cat(pieces, -1).chunk(2, -1)
        return a.relu() + b


@pytest.mark.parametrize("first", (True, False))
def test_a_weight_as_tall_as_the_batch_is_no_image(first: bool) -> None:
    assert find_batch(imported(Beside(first), (torch.randn(B, 4),)).program) is None


def test_places_computed_for_all_images_stay_shared() -> None:
    def placed(x: Tensor) -> Tensor:
        return x + torch.arange(4 * B)[:, None].float().cos()

    use = find_batch(imported(Fun(placed), (torch.randn(B, 4 * B, 3),)).program)
    assert use is not None and len(use.indices) < len(use.tensors)


def test_empty_results_are_no_images() -> None:
    model = imported(Fun(lambda x: (x * 2, x.new_zeros(0))), (torch.randn(B, 4),))
    use = find_batch(model.program)
    if use is not None:
        verify_program(take_blocks(model.program, use, 1))


def test_a_batch_of_symbolic_size_is_left_alone() -> None:
    batch = torch.export.Dim("n", min=2, max=9)
    model = import_model(
        nn.Linear(3, 4).eval(), (torch.randn(B, 3),), {}, dynamic_shapes=({0: batch},), name="case"
    )
    assert find_batch(model.program) is None


def test_a_recurrence_is_left_alone() -> None:
    model = imported(nn.LSTM(3, 4, batch_first=True), (torch.randn(B, 5, 3),))
    assert find_batch(model.program) is None


def layers(count: int, width: int = 16) -> nn.Module:
    """Rows of tokens through many products."""
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))


def images_of(model: nn.Module, inputs: tuple[Tensor, ...], cores: int) -> int | None:
    """How many images a block would have."""
    program = imported(model, inputs).program
    use = find_batch(program)
    assert use is not None
    return choose_images(program, use, cores)


def test_fewest_images_that_use_weights_enough() -> None:
    assert images_of(layers(4), (torch.randn(8, 80, 16),), 2) == 1
    assert images_of(layers(4), (torch.randn(8, 50, 16),), 2) == 2
    assert images_of(layers(4), (torch.randn(8, 17, 16),), 2) == 4
    assert images_of(layers(4), (torch.randn(12, 50, 16),), 2) == 2
    assert images_of(layers(4), (torch.randn(12, 50, 16),), 4) == 3


def test_no_blocks_without_reuse_depth_or_work_for_all_cores() -> None:
    assert images_of(layers(4), (torch.randn(8, 1, 16),), 2) is None
    assert images_of(layers(3), (torch.randn(8, 80, 16),), 2) is None
    assert images_of(layers(4), (torch.randn(8, 80, 16),), 16) is None
    assert images_of(layers(4), (torch.randn(9, 80, 16),), 2) is None


def test_program_in_blocks() -> None:
    program = imported(layers(4), (torch.randn(8, 80, 16),)).program
    blocked = split_batch(program, 2)
    assert blocked.blocks == 8 and len(blocked.in_blocks) == 2
    assert split_batch(program, 16).program is program
