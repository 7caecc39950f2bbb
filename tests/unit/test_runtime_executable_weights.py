"""Executables: weights that change, are packed, do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nestor.errors import (
    ArtifactError,
    InputError,
)
from nestor.runtime.dims import DimExpr
from nestor.runtime.executable import Executable
from nestor.runtime.weights import Watched, WeightWatcher
from tests.helpers.executables import make_chain
from tests.helpers.native import (
    chain,
)

N = DimExpr(0, (("N", 1),))


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(4, 8))


def watched_model():
    """The weight is packed: a copy that must be made anew when the parameter changes."""
    module = Module()
    packs: list[int] = []

    def pack():
        packs.append(1)
        return {"w": module.w.detach().clone()}

    watcher = WeightWatcher([Watched(module._parameters, "w", module.w)])
    manifest, objects = chain((4, 8))
    return module, packs, Executable(manifest, objects, pack(), watcher=watcher, repack=pack)


@pytest.mark.parametrize("how", ["inplace", "replace", "data", "data_write", "load", "optimizer"])
def test_changed_weights_are_noticed(how):
    module, packs, model = watched_model()
    x = torch.zeros(4, 8)
    assert (model(x) == 2).all()
    assert (model(x) == 2).all()
    assert len(packs) == 1
    with torch.no_grad():
        if how == "inplace":
            module.w[2, 3] = 5
        elif how == "replace":
            module.w = torch.nn.Parameter(torch.full((4, 8), 5.0))
        elif how == "data":
            module.w.data = torch.full((4, 8), 5.0)
        elif how == "data_write":
            module.w.data.add_(5)
        elif how == "load":
            module.load_state_dict({"w": torch.full((4, 8), 5.0)})
    if how == "optimizer":
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        module.w.grad = torch.full((4, 8), -5.0)
        optimizer.step()
    want = 2 + module.w.detach()
    assert (want != 2).any()
    assert torch.equal(model(x), want)
    assert torch.equal(model(x), want)
    assert len(packs) == 2


def test_removed_weight_is_an_error():
    module, _, model = watched_model()
    del module.w
    with pytest.raises(InputError, match="weight 'w' of model 'chain' was removed"):
        model(torch.zeros(4, 8))


def test_live_weights_need_no_packing():
    w = torch.zeros(4, 8)
    model, _ = make_chain(w)
    w.fill_(3)
    assert (model(torch.zeros(4, 8)) == 5).all()


def test_weights_at_any_address_are_aligned():
    raw = np.arange(33, dtype=np.float32)[1:].reshape(4, 8)
    for weight in (raw, torch.from_numpy(raw)):
        model, _ = make_chain(weight)
        assert all(address % 64 == 0 for _, address in model._weights.entries)
        np.testing.assert_array_equal(model(np.zeros((4, 8), np.float32)), 2 + raw)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "weight 'w' is missing"),
        ({"w": np.zeros((4, 8), np.float64)}, "dtype float64, expected f32"),
        ({"w": np.zeros((4, 9), np.float32)}, r"shape \(4, 9\), expected \(4, 8\)"),
        ({"w": [1.0]}, "a list, not an array"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    manifest, objects = chain((4, 8))
    with pytest.raises(ArtifactError, match=message):
        Executable(manifest, objects, weights)


def test_missing_object_code():
    manifest, objects = chain((4, 8))
    with pytest.raises(ArtifactError, match=r"object code .* is missing"):
        Executable(manifest, dict(list(objects.items())[1:]), {"w": np.zeros((4, 8), np.float32)})
