"""Random heads over random products: the same results in blocks, and with native code."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nestor
from nestor.frontends.torch import import_model
from nestor.ir.program import Program
from nestor.passes.context import PassContext
from nestor.passes.pipeline import PASSES
from nestor.passes.split_reductions import split_reductions
from nestor.target.cpu import host_target
from tests.helpers.pass_checks import assert_same_results

SEEDS = range(30)
DEPTHS = (2, 4)
L2_BYTES = 1024
"""So small that products of a few hundred elements exceed it, and blocks have 32 or 64 terms."""

EPILOGUES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "log1p": lambda x: torch.log1p(torch.relu(x)),
    "tanh": lambda x: torch.tanh(x) * 2 - x,
    "square": lambda x: x * x,
    "clamp": lambda x: (x - 0.3).clamp(-0.5, 0.5),
}

REDUCTIONS: dict[str, Callable[[Tensor, int], Any]] = {
    "sum": lambda x, d: x.sum(d),
    "mean": lambda x, d: x.mean(d),
    "norm": lambda x, d: x.norm(dim=d),
    "amax": lambda x, d: x.amax(d),
    "amin": lambda x, d: x.amin(d),
    "prod": lambda x, d: (1 + x * 0.01).prod(d),
    "argmax": lambda x, d: x.argmax(d),
    "min": lambda x, d: tuple(torch.min(x, d)),
    "any": lambda x, d: (x > 1.0).any(d),
    "count": lambda x, d: (x > 0.5).sum(d),
    "logsumexp": lambda x, d: torch.logsumexp(x, d),
    "entropy": lambda x, d: torch.logsumexp(x, d) - x.amin(d),
    "two": lambda x, d: (x.amax(d), x.sum(d), x.argmin(d)),
}


class Head(nn.Module):
    """A product with a weight or with an input, an epilogue, reductions, and perhaps a pick."""

    def __init__(self, draw: random.Random):
        super().__init__()
        self.depth = draw.choice(DEPTHS)
        self.lead = draw.choice(((), (), (2,), (3,)))
        self.rows, self.columns = draw.randint(9, 90), draw.randint(64, 150)
        self.epilogue = EPILOGUES[draw.choice(list(EPILOGUES))]
        self.kind = draw.choice(list(REDUCTIONS))
        self.along_rows = draw.random() < 0.3
        if self.along_rows:
            self.rows = draw.randint(64, 150)
        self.picks = not self.along_rows and draw.random() < 0.4
        self.weight = nn.Parameter(torch.randn(self.columns, self.depth))
        self.bias = nn.Parameter(torch.randn(self.columns)) if draw.random() < 0.5 else None
        self.given = draw.random() < 0.3

    def inputs(self) -> tuple[Tensor, ...]:
        """Rows, columns if they are not a weight, and the places of what is picked."""
        found = [torch.randn(*self.lead, self.rows, self.depth)]
        if self.given:
            found.append(torch.randn(self.columns, self.depth))
        if self.picks:
            found.append(torch.randint(0, 4, (*self.lead, self.rows, 1)))
        return tuple(found)

    def forward(self, x: Tensor, *rest: Tensor) -> Any:
        """Reduce, and pick."""
        product = x @ (rest[0] if self.given else self.weight).T
        if self.bias is not None:
            product = product + self.bias
        product = self.epilogue(product)
        result = REDUCTIONS[self.kind](product, -2 if self.along_rows else -1)
        if not self.picks:
            return result
        return result, product.gather(-1, rest[-1])


def lowered(model: nn.Module, inputs: tuple[Tensor, ...]) -> Program:
    """The program that ``split_reductions`` is given."""
    program = import_model(model, inputs).program
    ctx = PassContext()
    for run in PASSES:
        if run is split_reductions:
            return program
        made = run(program, ctx)
        assert isinstance(made, Program)
        program = made
    raise AssertionError("the pass is not in the pipeline")


def make(seed: int) -> tuple[Head, tuple[Tensor, ...]]:
    torch.manual_seed(seed)
    head = Head(random.Random(seed)).eval()
    return head, head.inputs()


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_give_the_same(seed: int) -> None:
    before = lowered(*make(seed))
    ctx = PassContext(target=replace(host_target(), l2_bytes=L2_BYTES))
    after = split_reductions(before, ctx)
    assert after is not before, [str(e) for e in ctx.log]
    assert_same_results(before, after, seeds=1, tolerance=1e-5)
    assert_same_results(before, after, seeds=1, tolerance=1e-5, special=True)


@pytest.mark.parametrize("seed", range(100, 108))
def test_native_code_gives_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(host_target(), l2_bytes=L2_BYTES)
    monkeypatch.setattr("nestor.building.parse_target", lambda name: small)
    head, inputs = make(seed)
    compiled = nestor.compile(head, inputs)
    found = torch.utils._pytree.tree_leaves(compiled(*inputs))
    wanted = torch.utils._pytree.tree_leaves(head(*inputs))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
