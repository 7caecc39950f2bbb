"""Every form of attention as one Triton kernel, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nestor.errors import IndexOutOfRange
from tests.differential import test_attention_variants as variants
from tests.differential.test_triton_models import built, error_and_bound
from tests.helpers.triton_cases import Of, R

Tensor = torch.Tensor
ROWS = 130


def near(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A sliding window."""
    far = variants.distance(q @ k.transpose(-1, -2))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(far >= 0) & (far < 40))


def relative(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    x = variants.scores(q, k)
    places = variants.distance(x).clamp(-16, 16) + 16
    return (x + table[:, places]).softmax(-1) @ v


def paged(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, seen: Tensor) -> Tensor:
    """Keys in pages that a table names, as servers of language models keep them."""
    k, v = (pages[table].flatten(1, 2).transpose(1, 2) for pages in (keys, values))
    mask = torch.arange(k.shape[2]) < seen[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])


def paged_groups(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, seen: Tensor) -> Tensor:
    """The same where several heads of queries share one of keys."""
    k, v = (pages[table].flatten(1, 2).transpose(1, 2) for pages in (keys, values))
    mask = torch.arange(k.shape[2]) < seen[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], enable_gqa=True)


def operands(heads: int = 4, width: int = 32, rows: int = ROWS) -> tuple[Tensor, ...]:
    return R(1, 4, rows, width), R(1, heads, ROWS, width), R(1, heads, ROWS, width)


VARIANTS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "plain": (variants.plain, operands()),
    "width 40": (variants.plain, operands(width=40)),
    "causal": (variants.causal, operands()),
    "bias": (variants.masked, (*operands(), R(1, 1, ROWS, ROWS))),
    "mask": (variants.masked, (*operands(), R(1, 1, ROWS, ROWS) > 0)),
    "mask of keys": (variants.masked, (*operands(), R(1, 1, 1, ROWS) > 0)),
    "grouped": (variants.grouped, operands(heads=2)),
    "grouped, expanded": (variants.grouped_spelled, operands(heads=2)),
    "soft cap": (variants.soft_cap, operands()),
    "slopes": (variants.slopes, (*operands(), R(4).abs())),
    "relative": (relative, (*operands(), R(4, 33))),
    "window": (near, operands()),
    "one query": (variants.plain, operands(rows=1)),
    "few queries": (variants.plain, operands(rows=3)),
    "paged": (
        paged,
        (
            R(2, 4, 1, 32), R(20, 16, 4, 32), R(20, 16, 4, 32),
            torch.randperm(20)[:14].view(2, 7), torch.tensor([100, 33]),
        ),
    ),
    "many pages": (
        paged,
        (
            R(2, 4, 1, 32), R(80, 16, 4, 32), R(80, 16, 4, 32),
            torch.randperm(80).view(2, 40), torch.tensor([600, 133]),
        ),
    ),
    "pages of grouped heads": (
        paged_groups,
        (
            R(2, 8, 1, 16), R(30, 32, 2, 16), R(30, 32, 2, 16),
            torch.randperm(30)[:10].view(2, 5), torch.tensor([150, 33]),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path) -> None:
    function, inputs = VARIANTS[name]
    module = Of(function)
    made = built(module, inputs, tmp_path)
    assert not made.report().externs
    assert any("score = " in k.triton.source for k in made._program.kernels.values())
    if "page" in name:  # read where they lie: nothing is gathered first
        gathers = [k for k in made._program.kernels.values() if k.triton.checks]
        assert len(gathers) == 1
    error, bound = error_and_bound(module, made.executable, inputs)
    assert error <= bound


def test_a_page_that_is_not_there(tmp_path: Path) -> None:
    function, inputs = VARIANTS["paged"]
    made = built(Of(function), inputs, tmp_path)
    table = inputs[3].clone()
    table[1, 3] = 20
    with pytest.raises(IndexOutOfRange, match="lies outside the tensor"):
        made.executable(*inputs[:3], table, inputs[4])
