"""Every form of attention as one Triton kernel, in Triton's interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nestor.errors import IndexOutOfRange
from nestor.passes.gpu_schedule import gpu_schedule, warps_of
from nestor.passes.knobs import Choices
from tests.differential import test_attention_variants as variants
from tests.differential.test_triton_models import built, error_and_bound
from tests.helpers.pass_checks import random_inputs
from tests.helpers.triton_cases import Of, R, kernels_of
from tests.helpers.triton_runs import check_kernel

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


def by_page(step: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The same with something done to scores while they are counted by page and place."""

    def attend(q: Tensor, keys: Tensor, values: Tensor, table: Tensor) -> Tensor:
        scores = step(torch.einsum("bhqd,bnshd->bhqns", q, keys[table])).flatten(3)
        weights = scores.masked_fill(torch.arange(scores.shape[3]) > 99, -math.inf).softmax(-1)
        return weights @ values[table].flatten(1, 2).transpose(1, 2)

    return attend


def operands(heads: int = 4, width: int = 32, rows: int = ROWS) -> tuple[Tensor, ...]:
    return R(1, 4, rows, width), R(1, heads, ROWS, width), R(1, heads, ROWS, width)


PAGES = R(20, 16, 4, 32), R(20, 16, 4, 32)

STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda s: s,
    "read twice": lambda s: s.masked_fill(s > 1, -5.0) * s.tanh(),
    "against the first page": lambda s: s - s[..., :1, :],
    "against the first of a page": lambda s: s - s[..., :1],
}

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
    **{
        f"pages, {name}": (
            by_page(step),
            (R(2, 4, 1, 32), *PAGES, torch.randperm(20)[:14].view(2, 7)),
        )
        for name, step in STEPS.items()
    },
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
    is_one = any("score = " in k.triton.source for k in made._program.kernels.values())
    assert is_one or name.startswith("pages, against")
    if name in (
        "paged",
        "many pages",
        "pages of grouped heads",
    ):  # read where they lie: nothing is gathered first
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


def documents(q: Tensor, k: Tensor, v: Tensor, number: Tensor) -> Tensor:
    """Several texts in one row, none of which sees another."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=number[:, None] == number[None, :])


SKIPPED: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "documents": (documents, (*operands(), torch.arange(ROWS) // 50)),
    "mask": VARIANTS["mask"],
    "mask of keys": (variants.masked, (*operands(), (torch.arange(ROWS) > 99)[None, None, None])),
    "paged": VARIANTS["paged"],
    "causal documents": (
        lambda q, k, v, n: F.scaled_dot_product_attention(
            q, k, v, attn_mask=(n[:, None] == n[None, :]).tril()
        ),
        (*operands(), torch.arange(ROWS) // 50),
    ),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_tiles_that_are_hidden(name: str, tmp_path: Path) -> None:
    function, inputs = SKIPPED[name]
    tested = 0
    for fused in kernels_of(Of(function), inputs):
        knobs = Choices({"skip": 1, "tile": (16, 16)})
        schedule = gpu_schedule(fused, knobs)
        if not warps_of(schedule).skip:
            continue
        arrays = random_inputs(fused.kernel)
        for t in fused.kernel.tensors:  # what decides the mask is as given
            given = [x for x in inputs if x.dtype in MASKS and x.numel() == arrays_size(t)]
            if t.name in arrays and given and str(t.dtype) in ("i64", "bool"):
                arrays[t.name] = given[0].numpy().reshape(arrays[t.name].shape)
        kernel = check_kernel(fused.kernel, schedule, arrays, tmp_path)
        tested += "if lib.any_of(" in kernel.source
    assert tested == 1


MASKS = (torch.int64, torch.bool)


def arrays_size(t: Any) -> int:
    return math.prod(e.const for e in t.shape)
