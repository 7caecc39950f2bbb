"""Attention: masked blocks left out, long rows in blocks; against the interpreter and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nestor
from nestor.frontends.torch import import_model
from nestor.ir.program import Program, Statement
from nestor.ir.verifier import verify_program
from nestor.passes import masked_terms, split_softmax
from nestor.passes.context import PassContext
from nestor.passes.masked_terms import skip_masked_terms
from nestor.passes.pipeline import PASSES
from nestor.passes.split_softmax import split_softmax as split
from tests.helpers.modules import Fun
from tests.helpers.pass_checks import assert_same_results

Attention = Callable[..., torch.Tensor]


def by_hand(keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Attention:
    """Attention spelled out; ``keep(q, k)`` of row and key numbers says which scores count."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = torch.tanh(q @ k.transpose(-1, -2) * 0.3) * 5
        row = torch.arange(q.shape[-2])[:, None]
        key = torch.arange(k.shape[-2])[None]
        return torch.softmax(scores.masked_fill(~keep(row, key), float("-inf")), -1) @ v

    return attend


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def additive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    mask = torch.full((q.shape[-2], k.shape[-2]), float("-inf")).triu(1)
    return torch.softmax(q @ k.transpose(-1, -2) + mask, -1) @ v


MASKED = {
    "causal": causal,
    "additive": additive,
    "by hand": by_hand(lambda i, j: i >= j),
    "the other way round": by_hand(lambda i, j: j < i + 1),
    "shifted": by_hand(lambda i, j: i + 9 >= j),
    "rows without keys": by_hand(lambda i, j: i - 7 >= j),
    "window": by_hand(lambda i, j: (i >= j) & (i - j < 20)),
    "both sides": by_hand(lambda i, j: (i - j < 70) & (j - i < 70)),
    "keys alone": by_hand(lambda i, j: (j < 70) & (i >= 0)),
}
PLAIN = {
    "no mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "a bias": lambda q, k, v: (
        torch.softmax(q @ k.transpose(-1, -2) + k.sum(-1)[..., None, :], -1) @ v
    ),
}


def inputs(rows: int, keys: int, width: int = 8, heads: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows * 1000 + keys)
    shapes = ((1, heads, rows, width), (1, heads, keys, width), (1, heads, keys, width + 3))
    return tuple(torch.randn(s, generator=generator) for s in shapes)


def program_before(function: Attention, arrays: tuple[torch.Tensor, ...]) -> Program:
    """The program as ``skip_masked_terms`` gets it."""
    program = import_model(Fun(function), arrays, {}, dynamic_shapes=None, name="m").program
    ctx = PassContext()
    for step in PASSES[: PASSES.index(skip_masked_terms)]:
        result = step(program, ctx)
        program = result[0] if isinstance(result, tuple) else result
    return program


def constraints(program: Program) -> int:
    return sum(bool(s.domain.constraints) for s in program.statements if isinstance(s, Statement))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_softmax, "_MAX_BLOCK_BYTES", 4 * 128)
    monkeypatch.setattr(split_softmax, "MAX_SUMMED_TERMS", 128)


@pytest.mark.parametrize("name", MASKED)
def test_masked_blocks_are_left_out(name: str) -> None:
    before = program_before(MASKED[name], inputs(100, 130))
    after = skip_masked_terms(before, PassContext())
    verify_program(after)
    assert constraints(after) >= 5
    assert_same_results(before, after, tolerance=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_nothing_is_left_out_without_a_mask(name: str) -> None:
    before = program_before(PLAIN[name], inputs(20, 130))
    assert skip_masked_terms(before, PassContext()) is before


def test_scores_that_somebody_reads_stay_whole() -> None:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        scores = q @ k.transpose(-1, -2)
        keep = torch.arange(100)[:, None] >= torch.arange(130)[None]
        weights = torch.softmax(scores.masked_fill(~keep, float("-inf")), -1)
        return weights @ v, weights, scores

    before = program_before(attend, inputs(100, 130))
    after = skip_masked_terms(before, PassContext())
    assert_same_results(before, after, tolerance=1e-5)


def test_a_finite_mask_leaves_nothing_out() -> None:
    """A row of scores that are all at the mask's value has a mean, not zeros."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keep = torch.arange(100)[:, None] >= torch.arange(130)[None]
        scores = (q @ k.transpose(-1, -2)).masked_fill(~keep, -1e4)
        return torch.softmax(scores, -1) @ v

    before = program_before(attend, inputs(100, 130))
    assert skip_masked_terms(before, PassContext()) is before


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("keys", [256, 257, 300, 330])
@pytest.mark.parametrize("name", [*MASKED, *PLAIN])
def test_rows_are_split_into_blocks_of_keys(name: str, keys: int) -> None:
    function = {**MASKED, **PLAIN}[name]
    ctx = PassContext()
    before = program_before(function, inputs(24, keys))
    after = split(skip_masked_terms(before, ctx), ctx)
    verify_program(after)
    # A rest that lies in one block of a mask stays with its row.
    is_whole = constraints(skip_masked_terms(before, ctx)) > 0 and 0 < keys % 128 <= 32
    assert bool(ctx.entries("split_softmax", kind="changed")) != is_whole
    assert_same_results(before, after, tolerance=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", PLAIN)
def test_few_rows_share_the_keys(name: str) -> None:
    ctx = PassContext()
    before = program_before(PLAIN[name], inputs(1, 600))
    after = split(before, ctx)
    assert ctx.entries("split_softmax", kind="changed")
    assert_same_results(before, after, tolerance=1e-5)


def compiled_like_eager(
    function: Attention, arrays: tuple[torch.Tensor, ...], dynamic_shapes: Any = None
) -> None:
    """Compiled results lie as near to float64's as eager's; equal on one and on two threads."""
    model = Fun(function)
    with torch.no_grad():
        exact = model(*(a.double() for a in arrays))
        eager = model(*arrays)
        got = [
            nestor.compile(model, arrays, threads=n, dynamic_shapes=dynamic_shapes) for n in (1, 2)
        ]
        results = [g(*arrays) for g in got]
    assert not [k.refused for k in got[0].report().kernels if k.refused]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0].isnan(), eager.isnan())
    own = (eager.double() - exact).nan_to_num().abs().max().item()
    error = (results[0].double() - exact).nan_to_num().abs().max().item()
    assert error <= max(4 * own, 3e-6)


@pytest.mark.parametrize("name", MASKED)
def test_masks_compiled(name: str) -> None:
    compiled_like_eager(MASKED[name], inputs(100, 200, 33))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["causal", "window", "rows without keys", "no mask"])
def test_blocks_compiled(name: str) -> None:
    compiled_like_eager({**MASKED, **PLAIN}[name], inputs(50, 300, 16))


@pytest.mark.parametrize("width", [1, 5, 64, 100])
def test_few_queries_compiled(width: int) -> None:
    compiled_like_eager(PLAIN["no mask"], inputs(1, 2100, width))


@pytest.mark.parametrize("name", ["causal", "window"])
def test_symbolic_lengths(name: str) -> None:
    length = torch.export.Dim("length", min=2, max=512)
    compiled_like_eager(
        MASKED[name], inputs(90, 90, 16), {"inputs": tuple({2: length} for _ in range(3))}
    )


def test_a_mask_on_short_symbolic_rows_stays() -> None:
    """Terms that all lie in one block: a constraint on them would drop results."""
    length = torch.export.Dim("length", min=2, max=masked_terms.KEY_VECTORS[0] * 16)
    compiled_like_eager(
        MASKED["window"], inputs(30, 30, 16), {"inputs": tuple({2: length} for _ in range(3))}
    )


def test_grouped_queries() -> None:
    q, _, _ = inputs(70, 70, 16, heads=4)
    _, k, v = inputs(70, 70, 16, heads=2)
    compiled_like_eager(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        (q, k, v),
    )
