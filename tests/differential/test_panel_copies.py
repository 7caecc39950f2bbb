"""Operands given at run time are copied into panels: right for any size, type and target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import nestor
from tests.helpers.modules import Fun


def _check(model: Any, a: Tensor, b: Tensor) -> None:
    found, exact = model(a, b), a.double() @ b.double()
    terms = a.shape[-1]
    bound = (a.double().abs() @ b.double().abs()) * terms * torch.finfo(a.dtype).eps
    assert bool(((found.double() - exact).abs() <= bound).all())


def _panel_widths(model: Any) -> list[int]:
    """Innermost physical extents of the blocked temps of a compiled model."""
    tensors = model._current()._compiled.main.tensors
    return [
        t.layout.shape[-1].const
        for t in tensors
        if t.role == "temp" and t.layout is not None and "%" in str(t.layout.physical[-1])
    ]


@pytest.mark.parametrize("target", ["avx2", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "terms", "columns"), [(65, 301, 333), (97, 256, 512), (70, 1031, 257)]
)
@pytest.mark.parametrize("transposed", [False, True])
def test_odd_sizes(
    rows: int, terms: int, columns: int, transposed: bool, dtype: torch.dtype, target: str
) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(rows, terms, dtype=dtype), torch.randn(terms, columns, dtype=dtype)
    function = (lambda x, y: x @ y.T) if transposed else (lambda x, y: x @ y)
    given = b.T.contiguous() if transposed else b
    model = nestor.compile(Fun(function), (a, given), target=target)
    assert _panel_widths(model)
    assert torch.equal(model(a, given), model(a, given))
    _check(lambda x, _: model(x, given), a, b)


def test_batched() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(3, 66, 200), torch.randn(3, 200, 345)
    model = nestor.compile(Fun(lambda x, y: x @ y), (a, b))
    assert _panel_widths(model)
    _check(model, a, b)


def test_short_or_narrow_products_read_in_place() -> None:
    for rows, terms, columns in ((8, 512, 512), (128, 64, 512), (128, 2048, 32)):
        a, b = torch.randn(rows, terms), torch.randn(terms, columns)
        model = nestor.compile(Fun(lambda x, y: x @ y), (a, b))
        assert not _panel_widths(model)
        _check(model, a, b)


def test_symbolic_sizes() -> None:
    torch.manual_seed(2)
    m, k, n = (torch.export.Dim(name, min=1, max=4096) for name in "mkn")
    shapes = (({0: m, 1: k}, {0: k, 1: n}),)
    a, b = torch.randn(130, 520), torch.randn(520, 530)
    model = nestor.compile(Fun(lambda x, y: x @ y), (a, b), dynamic_shapes=shapes)
    for rows, terms, columns in ((130, 520, 530), (1, 1, 1), (64, 512, 1024), (5, 700, 49)):
        _check(model, torch.randn(rows, terms), torch.randn(terms, columns))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    torch.manual_seed(3)
    a, b = torch.randn(200, 600), torch.randn(600, 500)
    results = [nestor.compile(Fun(lambda x, y: x @ y), (a, b), threads=t)(a, b) for t in (1, 3)]
    assert torch.equal(*results)
