"""Products that are only reduced: right, in little memory, the same at any number of threads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nestor
from tests.helpers.modules import Fun

ROWS, DEPTH, WORDS = 90, 48, 5003


class Head(nn.Module):
    """A function of a vocabulary's weights and of what it is given."""

    def __init__(self, function: Callable[..., Any], words: int = WORDS, bias: bool = False):
        super().__init__()
        self.words = nn.Linear(DEPTH, words, bias=bias)
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        """Call it."""
        return self.function(self.words, *args)


def splade(words: nn.Linear, hidden: Tensor, mask: Tensor) -> Tensor:
    """What each word weighs in a text."""
    return (torch.log1p(torch.relu(words(hidden))) * mask.unsqueeze(-1)).amax(1)


def splade_max(words: nn.Linear, hidden: Tensor, mask: Tensor) -> Tensor:
    """The same, masked before the logarithm."""
    weights = torch.log(1 + torch.relu(words(hidden) * mask.unsqueeze(-1)))
    return torch.max(weights, dim=1).values


def gathered(words: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy from log-probabilities of the targets."""
    return -F.log_softmax(words(hidden), -1).gather(1, targets[:, None]).mean()


def by_logsumexp(words: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row, written out."""
    logits = words(hidden)
    return torch.logsumexp(logits, -1) - logits.gather(1, targets[:, None])[:, 0]


def infinite(words: nn.Linear, hidden: Tensor, penalty: Tensor) -> Tensor:
    """Words that are ruled out: whole blocks of them, and all of them in some rows."""
    logits = words(hidden) + penalty
    return torch.logsumexp(logits.masked_fill(hidden[:, :1] > 1.5, -torch.inf), -1)


def penalties() -> Tensor:
    """Minus infinity for some words, and for all of a few blocks."""
    found = torch.randn(WORDS)
    found[:2000] = found[3000::17] = -torch.inf
    return found


def texts(count: int, length: int) -> tuple[Tensor, Tensor]:
    """Hidden states, and a mask that ends each text elsewhere."""
    lengths = torch.arange(length // 2, length // 2 + count)[:, None]
    return torch.randn(count, length, DEPTH), (torch.arange(length) < lengths).float()


def rows(count: int = ROWS) -> Tensor:
    """Hidden states of a batch of tokens."""
    return torch.randn(count, DEPTH)


def targets(count: int = ROWS) -> Tensor:
    """Words, some of which do not count."""
    found = torch.randint(0, WORDS, (count,))
    found[::7] = -100
    return found


def points() -> tuple[Tensor, Tensor]:
    """Queries, and what is searched."""
    return rows(400), rows(4100)


Case = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
CASES: dict[str, Case] = {
    "splade": lambda: (Head(splade, bias=True), texts(2, 70)),
    "splade, long texts": lambda: (Head(splade_max, 900), texts(2, 700)),
    "cross-entropy": lambda: (
        Head(lambda w, h, t: F.cross_entropy(w(h), t)), (rows(), targets())),
    "cross-entropy, each row": lambda: (
        Head(lambda w, h, t: F.cross_entropy(w(h), t, reduction="none"), bias=True),
        (rows(), targets())),
    "cross-entropy of texts": lambda: (
        Head(lambda w, h, t: F.cross_entropy(w(h).view(-1, WORDS), t.view(-1))),
        (torch.randn(3, 30, DEPTH), targets().view(3, 30))),
    "nll": lambda: (
        Head(lambda w, h, t: F.nll_loss(F.log_softmax(w(h), -1), t)), (rows(), targets())),
    "gathered": lambda: (Head(gathered), (rows(), targets().clamp(0))),
    "logsumexp": lambda: (Head(by_logsumexp, bias=True), (rows(), targets().clamp(0))),
    "ruled out": lambda: (Head(infinite), (rows(), penalties())),
    "greedy": lambda: (Head(lambda w, h: w(h).argmax(-1)), (rows(),)),
    "both": lambda: (Head(lambda w, h: tuple(w(h).max(-1))), (rows(),)),
    "temperature": lambda: (Head(lambda w, h: (w(h) / 0.7).tanh().amax(-1)), (rows(),)),
    "nearest": lambda: (Fun(lambda x, y: tuple((x @ y.T).max(1))), points()),
    "distances": lambda: (Fun(lambda x, y: tuple(torch.cdist(x, y).min(1))), points()),
    "squares": lambda: (
        Fun(lambda x, y: ((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T).argmin(1)),
        points()),
    "pool": lambda: (Head(lambda w, h: F.gelu(w(h)).mean(1), 900), (texts(2, 300)[0],)),
    "norm": lambda: (Head(lambda w, h: w(h).norm(dim=-1)), (rows(),)),
    "two sums": lambda: (
        Head(lambda w, h: (w(h).relu().sum(-1), w(h).relu().amax(-1))), (rows(),)),
    "columns": lambda: (Head(lambda w, h: w(h).sigmoid().sum(0), 300), (rows(2000),)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    """PyTorch's own number of threads afterwards."""
    torch.manual_seed(3)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def product_bytes(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Size of the product if it were written out [bytes]."""
    columns = model.words.out_features if isinstance(model, Head) else inputs[1].shape[0]
    return inputs[0].numel() // DEPTH * columns * 4


def in_doubles(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What eager PyTorch answers in float64."""
    wide = copy.deepcopy(model).double()
    given = [x.double() if x.is_floating_point() else x for x in inputs]
    return torch.utils._pytree.tree_leaves(wide(*given))


@pytest.mark.parametrize("name", CASES)
def test_right_small_and_the_same_bits(name: str) -> None:
    model, inputs = CASES[name]()
    model = model.eval().requires_grad_(False)
    torch.set_num_threads(2)
    compiled = nestor.compile(model, inputs)
    found = torch.utils._pytree.tree_leaves(compiled(*inputs))
    wanted_all = in_doubles(model, inputs)
    for got, wanted in zip(found, wanted_all, strict=True):
        assert got.shape == wanted.shape
        wanted = wanted.to(got.dtype)
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)
    report = compiled.report()
    assert report.arena_bytes is not None
    assert report.arena_bytes < product_bytes(model, inputs) * 0.6
    expected = [t.numpy().tobytes() for t in found]
    for threads in (1, 3, 5):
        torch.set_num_threads(threads)
        again = torch.utils._pytree.tree_leaves(compiled(*inputs))
        assert [t.numpy().tobytes() for t in again] == expected, f"{threads} threads"


DYNAMIC: dict[str, tuple[str, dict[int, str], tuple[int, ...]]] = {
    "cross-entropy": ("cross-entropy, each row", {0: "n"}, (90, 61, 200)),
    "splade": ("splade", {0: "n"}, (2, 5, 3)),
    "greedy": ("greedy", {0: "n"}, (90, 64, 131)),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_symbolic_batch(name: str) -> None:
    """One compilation serves all sizes of a batch, without the product in memory."""
    case, sizes, counts = DYNAMIC[name]
    model, inputs = CASES[case]()
    model = model.eval().requires_grad_(False)
    batch = {d: torch.export.Dim(n, min=2, max=4096) for d, n in sizes.items()}
    compiled = nestor.compile(model, inputs, dynamic_shapes=(tuple(batch for _ in inputs),))
    for count in counts:
        given = tuple(x[torch.arange(count) % x.shape[0]] for x in inputs)
        got = compiled(*given)
        wanted = in_doubles(model, given)[0].to(got.dtype)
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)
    assert temps(compiled) and not any(map(is_large, temps(compiled)))


def temps(compiled: Any) -> list[Any]:
    """Arrays that a call keeps in its arena."""
    return [s for s in compiled._fixed.manifest.slots if s.role == "temp"]


def is_large(slot: Any) -> bool:
    """Whether an array has as many columns as there are words."""
    return any(str(WORDS) in str(d) for d in slot.shape)


def test_a_product_that_is_needed_stays() -> None:
    """Log-probabilities of all words: the answer itself has the product's size."""
    model = Head(lambda w, h: (F.log_softmax(w(h), -1), w(h).argmax(-1))).eval()
    inputs = (rows(),)
    with torch.no_grad():
        got, wanted = nestor.compile(model, inputs)(*inputs), model(*inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_heads_of_halves(dtype: torch.dtype) -> None:
    """Sums are taken in float32 and logits rounded, block by block as otherwise."""
    model = Head(lambda w, h: (w(h).float().logsumexp(-1), w(h).amax(-1))).eval().to(dtype)
    inputs = (rows(200).to(dtype),)
    with torch.no_grad():
        compiled = nestor.compile(model, inputs)
        wanted = model(*inputs)
        torch.testing.assert_close(compiled(*inputs), wanted, rtol=2e-2, atol=2e-2)
    assert not any(map(is_large, temps(compiled)))
