"""Every operator's cases as Triton kernels, in Triton's interpreter."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.differential.test_torch_ops_native import CASES, Function
from tests.differential.test_triton_models import built
from tests.helpers.torch_cases import Case


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_matches_eager(c: Case, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(c.name.encode()))
    inputs = tuple(make(generator) for make in c.inputs[0])
    model = Function(c).eval()
    copies = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, inputs)
    made = built(model, inputs, tmp_path)
    assert len(made.report().externs) == c.externs
    with torch.no_grad():
        found = pytree.tree_leaves(made.executable(*inputs))
        wanted = pytree.tree_leaves(model(*copies))
    rtol, atol = c.rtol, c.atol
    if rtol is not None:
        atol = 1e-5 if atol is None else atol
    for got, want in zip(found, wanted, strict=True):
        if isinstance(want, torch.Tensor):
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)
        else:
            assert got == want
