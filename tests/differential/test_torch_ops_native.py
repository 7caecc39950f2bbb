"""Every operator's cases as native code: what passes and code generation make of them."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import nestor
from tests.differential import test_torch_ops_compute as compute
from tests.differential import test_torch_ops_pointwise as pointwise
from tests.differential import test_torch_ops_shape as shape
from tests.helpers.torch_cases import Case

CASES = [*compute.case, *pointwise.case, *shape.case]


class Function(nn.Module):
    """A case's function; its weights are the case's."""

    def __init__(self, case: Case):
        super().__init__()
        self.function = case.function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_matches_eager(c: Case) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(c.name.encode()))
    inputs = tuple(make(generator) for make in c.inputs[0])
    model = Function(c).eval()
    copies = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, inputs)
    compiled = nestor.compile(model, inputs, workers=1)
    assert len(compiled.report().externs) == c.externs
    with torch.no_grad():
        found, wanted = (
            pytree.tree_leaves(f(*x)) for f, x in ((compiled, inputs), (model, copies))
        )
    rtol, atol = c.rtol, c.atol
    if rtol is not None:
        atol = 1e-5 if atol is None else atol
    for got, want in zip(found, wanted, strict=True):
        if isinstance(want, torch.Tensor):
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)
        else:
            assert got == want
