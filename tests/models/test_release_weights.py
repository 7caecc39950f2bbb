"""``release_weights``: the compiled model owns the weights, and the module has none any more."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nestor
from nestor.errors import InputError, UserError


class Tied(nn.Module):
    """An embedding whose table is the output layer's as well, and a buffer that calls update."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 24)
        self.inner = nn.Linear(24, 24)
        self.output = nn.Linear(24, 50, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("scale", torch.full((24,), 0.5))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores of the next id."""
        self.calls.add_(1.0)
        return self.output(torch.tanh(self.inner(self.embedding(ids))) * self.scale)


@pytest.fixture
def inputs() -> tuple[torch.Tensor]:
    """Some ids."""
    return (torch.arange(12).reshape(2, 6),)


def make() -> Tied:
    torch.manual_seed(0)
    return Tied().eval().requires_grad_(False)


def test_answers_stay_and_memory_goes(inputs: tuple[torch.Tensor]) -> None:
    model = make()
    expected = make()(*inputs)
    packed = weakref.ref(model.inner.weight)
    compiled = nestor.compile(model, inputs, release_weights=True)
    gc.collect()
    assert packed() is None, "the original of a packed weight is still in memory"
    torch.testing.assert_close(compiled(*inputs), expected)
    assert model.inner.weight.shape == (24, 24)
    assert model.inner.weight.device.type == "meta"
    assert model.output.weight is model.embedding.weight
    assert model.calls.item() == 1.0, "a buffer that calls update belongs to the model still"


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: m(*x),
        lambda m, x: m.state_dict(),
        lambda m, x: copy.deepcopy(m),
        lambda m, x: m.inner.weight + 1,
        lambda m, x: m.double(),
        lambda m, x: m.inner.weight.data.sum(),
        lambda m, x: torch.cat([m.scale, m.scale]),
    ],
)
def test_using_the_module_is_a_clear_error(inputs: tuple[torch.Tensor], use: Any) -> None:
    model = make()
    nestor.compile(model, inputs, release_weights=True)
    with pytest.raises(UserError, match=r"(?s)'\S+' was released.*fix: call the compiled"):
        use(model, inputs)


def test_compiling_again_is_a_clear_error(inputs: tuple[torch.Tensor]) -> None:
    model = make()
    compiled = nestor.compile(model, inputs, release_weights=True)
    with pytest.raises(UserError, match="its weights are gone"):
        compiled.compile_for(inputs)
    with pytest.raises(UserError, match="was released"):
        nestor.compile(model, inputs)


def test_needs_example_inputs() -> None:
    with pytest.raises(InputError, match="pass example inputs"):
        nestor.compile(make(), release_weights=True)


def test_saves_what_it_took(inputs: tuple[torch.Tensor], tmp_path: Path) -> None:
    compiled = nestor.compile(make(), inputs, release_weights=True)
    file = tmp_path / "model.nst"
    compiled.save(file)
    loaded = nestor.load(file)
    assert torch.equal(loaded(*inputs), compiled(*inputs))
    torch.testing.assert_close(loaded(*inputs), make()(*inputs))


def test_later_changes_are_not_seen(inputs: tuple[torch.Tensor]) -> None:
    model = make()
    compiled = nestor.compile(model, inputs, release_weights=True)
    before = compiled(*inputs)
    model.inner.weight = nn.Parameter(torch.zeros(24, 24), requires_grad=False)
    assert torch.equal(compiled(*inputs), before)
    kept = make()
    watching = nestor.compile(kept, inputs)
    before = watching(*inputs)
    kept.inner.weight.zero_()
    assert not torch.equal(watching(*inputs), before)


def test_released_under_no_other_owner_only(inputs: tuple[torch.Tensor]) -> None:
    """A tensor that the caller holds too keeps its values: releasing writes to nothing."""
    model = make()
    held = model.inner.weight
    copied = held.clone()
    nestor.compile(model, inputs, release_weights=True)
    assert torch.equal(held, copied)
