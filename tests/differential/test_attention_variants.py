"""Every form of attention: near float64's result, and without a buffer of all scores."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import nestor
from tests.helpers.modules import Fun

Tensor = torch.Tensor
Attention = Callable[..., Tensor]
LENGTH = 1536
HEADS = 4


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """Keys for grouped queries, by expansion, as model libraries write it."""
    b, heads, length, width = x.shape
    wide = x[:, :, None].expand(b, heads, times, length, width)
    return wide.reshape(b, heads * times, length, width)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def distance(x: Tensor) -> Tensor:
    """Row number minus key number of a matrix of scores."""
    return torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])[None]


def upcast(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.softmax(scores(q, k) + mask, -1, dtype=wide).to(q.dtype) @ v


def soft_cap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = torch.tanh(scores(q, k) / 30.0) * 30.0
    return x.masked_fill(distance(x) < 0, float("-inf")).softmax(-1) @ v


def slopes(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> Tensor:
    x = scores(q, k)
    x = x - slope[:, None, None] * distance(x)
    return torch.where(distance(x) >= 0, x, -3e38).softmax(-1) @ v


def relative(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    x = scores(q, k)
    return (x + table[:, distance(x).clamp(-64, 64) + 64]).softmax(-1) @ v


def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = scores(q, k)
    near = (distance(x) >= 0) & (distance(x) < 256)
    return torch.where(near, x, float("-inf")).softmax(-1) @ v


def einsums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.125
    return torch.einsum("bhqk,bkhd->bqhd", x.softmax(-1), v)


def grouped_spelled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    k, v = repeat_heads(k, times), repeat_heads(v, times)
    x = scores(q, k)
    return (x + torch.where(distance(x) < 0, -3e38, 0.0)).softmax(-1) @ v


def grouped_repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(
        q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    )


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def operands(
    width: int = 64, heads: int = HEADS, rows: int = LENGTH, keys: int = LENGTH, batch: int = 1
) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(width + heads + rows + keys)
    shapes = (HEADS, rows), (heads, keys), (heads, keys)
    return tuple(torch.randn(batch, h, n, width, generator=g) for h, n in shapes)


def extra(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


VARIANTS: dict[str, tuple[Attention, tuple[Tensor, ...]]] = {
    **{f"width {d}": (plain, operands(d)) for d in (16, 40, 80, 96, 128, 256)},
    "causal": (causal, operands()),
    "bias": (masked, (*operands(), extra(1, 1, LENGTH, LENGTH))),
    "mask": (masked, (*operands(), extra(1, 1, LENGTH, LENGTH) > 0)),
    "mask of keys": (masked, (*operands(), extra(1, 1, 1, LENGTH) > 0)),
    "grouped": (grouped, operands(heads=2)),
    "grouped, expanded": (grouped_spelled, operands(heads=2)),
    "grouped, repeated": (grouped_repeated, operands(heads=2)),
    "one group": (grouped_spelled, operands(heads=1)),
    "upcast": (upcast, (*operands(), extra(1, 1, LENGTH, LENGTH))),
    "einsums": (einsums, tuple(x.transpose(1, 2).contiguous() for x in operands())),
    "soft cap": (soft_cap, operands()),
    "slopes": (slopes, (*operands(), extra(HEADS).abs())),
    "relative": (relative, (*operands(), extra(HEADS, 129))),
    "window": (window, operands()),
    "batch": (grouped_spelled, operands(batch=2, heads=2)),
    "odd": (causal, operands(rows=1501, keys=1501)),
    "long": (plain, operands(heads=HEADS, rows=700, keys=6000)),
}


def compare(model: Fun, compiled: Any, arrays: tuple[Tensor, ...]) -> Tensor:
    """Assert that the result lies as near to float64's as eager's does."""
    with torch.no_grad():
        exact = model(*(a.double() if a.is_floating_point() else a for a in arrays))
        eager = model(*arrays)
        got: Tensor = compiled(*arrays)
    assert torch.equal(got.isnan(), eager.isnan())
    own = (eager.double() - exact).nan_to_num().abs().max().item()
    error = (got.double() - exact).nan_to_num().abs().max().item()
    assert error <= max(4 * own, 3e-6)
    return got


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_keep_no_scores(name: str) -> None:
    function, arrays = VARIANTS[name]
    model = Fun(function)
    compiled = nestor.compile(model, arrays, threads=2)
    assert not [k.refused for k in compiled.report().kernels if k.refused]
    got = compare(model, compiled, arrays)
    q, k = arrays[:2]
    one_head = 4 * max(q.shape[-2] * k.shape[-2], q.shape[1] * k.shape[1])
    arena = compiled.report().arena_bytes
    copies = 4 * sum(a.numel() for a in arrays[:3])
    assert arena is not None
    assert arena <= copies + 4 * 4 * got.numel()
    assert arena < one_head * HEADS  # all scores


@pytest.mark.parametrize("name", ["causal", "grouped, expanded", "long"])
def test_bits_depend_on_no_thread(name: str) -> None:
    function, arrays = VARIANTS[name]
    one, two = (nestor.compile(Fun(function), arrays, threads=n)(*arrays) for n in (1, 2))
    assert torch.equal(one, two)


LENGTHS = (2, 15, 31, 32, 33, 65, 129, 700, 2047, 2048, 2049, 2500)


@pytest.mark.parametrize("function", [plain, causal, grouped_spelled])
def test_rows_of_symbolic_length(function: Attention) -> None:
    length = torch.export.Dim("length", min=2, max=8192)
    model, heads = Fun(function), 2 if function is grouped_spelled else HEADS
    shapes = ({2: length},) * 3
    compiled = nestor.compile(
        model, operands(16, heads, 96, 96), threads=2, dynamic_shapes={"inputs": shapes}
    )
    assert not [k.refused for k in compiled.report().kernels if k.refused]
    for n in LENGTHS:
        compare(model, compiled, operands(16, heads, n, n))


@pytest.mark.parametrize("rows", [1, 40])
def test_keys_of_symbolic_length(rows: int) -> None:
    """A cache of keys and values that grows."""
    length = torch.export.Dim("length", min=2, max=8192)
    model = Fun(plain)
    shapes = (None, {2: length}, {2: length})
    compiled = nestor.compile(
        model, operands(rows=rows, keys=96), threads=2, dynamic_shapes={"inputs": shapes}
    )
    for n in LENGTHS:
        compare(model, compiled, operands(rows=rows, keys=n))


def test_a_mask_over_quotients_of_its_own_index() -> None:
    """Each row of 64 sees less from its start on: the last row of a tile does not see the most."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = scores(q, k)
        row, key = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
        return torch.where(row - row // 64 * 64 + 100 >= key, x, float("-inf")).softmax(-1) @ v

    arrays = operands(16, HEADS, 300, 300)
    compare(Fun(attend), nestor.compile(Fun(attend), arrays), arrays)


@pytest.mark.parametrize("is_symbolic", [False, True])
def test_no_keys(is_symbolic: bool) -> None:
    """A sum of no terms is 0, and not what dividing it by no weights gives."""
    length = torch.export.Dim("length", min=0, max=4096)
    shapes = {"inputs": (None, {2: length}, {2: length})} if is_symbolic else None
    example = operands(rows=9, keys=96 if is_symbolic else 0)
    compiled = nestor.compile(Fun(plain), example, dynamic_shapes=shapes)
    for keys in (0, 1, 33) if is_symbolic else (0,):
        q, k, v = operands(rows=9, keys=keys)
        torch.testing.assert_close(compiled(q, k, v), plain(q, k, v), atol=1e-5, rtol=1e-5)


def chain(seed: int) -> Attention:
    """A random chain of pointwise operators between the two contractions."""
    pick = random.Random(seed)
    steps: list[Callable[[Tensor], Tensor]] = []
    for _ in range(pick.randint(1, 4)):
        c = pick.uniform(0.1, 3.0)
        steps.append(
            pick.choice(
                [
                    lambda x, c=c: x * c,
                    lambda x, c=c: torch.tanh(x / c) * c,
                    lambda x, c=c: x + c * torch.sin(distance(x).to(x.dtype)),
                    lambda x, c=c: x - c * distance(x).abs() / 50,
                    lambda x: F.silu(x),
                    lambda x: x + x.abs().sqrt(),
                    lambda x: x.masked_fill(distance(x) < 0, float("-inf")),
                    lambda x: torch.where(distance(x).abs() <= 40, x, float("-inf")),
                    lambda x, c=c: x.clamp(-c, c),
                ]
            )
        )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = scores(q, k)
        for step in steps:
            x = step(x)
        return x.softmax(-1) @ v

    return attend


@pytest.mark.parametrize("seed", range(8))
def test_random_chains(seed: int) -> None:
    pick = random.Random(seed)
    rows, keys = pick.randint(1, 150), pick.randint(2, 300)
    arrays = operands(pick.choice([5, 16, 40, 64]), HEADS, rows, keys)
    model = Fun(chain(seed))
    compare(model, nestor.compile(model, arrays, threads=2), arrays)
