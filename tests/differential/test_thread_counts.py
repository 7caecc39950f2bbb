# ruff: noqa: F821, UP037

"""The same bits from run to run and at any number of threads, set at run time or at compile time.

Sizes are such that every kernel has work for several threads: most are cut differently for each
number of them, so a sum that followed the cut would show.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nestor
from tests.helpers.modules import Fun

THREADS = (1, 2, 3, 5)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a few heads."""
    return F.scaled_dot_product_attention(q, k, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a decoder."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def normal(*shape: int) -> Tensor:
    """Values whose sums depend on the order."""
    return torch.randn(*shape) * torch.logspace(-3, 3, shape[-1])


def network() -> nn.Module:
    """Convolutions whose windows are transformed, strided, depthwise, and of one pixel."""
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 48, 1), nn.SiLU(),
        nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.Conv2d(64, 64, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "attention": lambda: (Fun(attention), tuple(torch.randn(1, 3, 130, 32) for _ in range(3))),
    "long keys": lambda: (
        Fun(attention),
        (torch.randn(1, 2, 1, 64), torch.randn(1, 2, 3000, 64), torch.randn(1, 2, 3000, 64)),
    ),
    "causal": lambda: (Fun(causal), tuple(torch.randn(1, 2, 200, 32) for _ in range(3))),
    "few long dots": lambda: (Fun(torch.matmul), (normal(3, 20000), normal(20000, 5))),
    "one row": lambda: (nn.Linear(3000, 1000), (normal(1, 3000),)),
    "contraction": lambda: (Fun(torch.matmul), (normal(150, 300), normal(300, 210))),
    "all": lambda: (Fun(torch.sum), (normal(70, 50, 60),)),
    "axis 0": lambda: (Fun(lambda x: x.sum(0)), (normal(700, 30),)),
    "axis 1": lambda: (Fun(lambda x: x.sum(1)), (normal(7, 500, 40),)),
    "axis 2": lambda: (Fun(lambda x: x.sum(2)), (normal(7, 11, 3000),)),
    "variance": lambda: (Fun(lambda x: x.var(0)), (normal(900, 20),)),
    "softmax": lambda: (Fun(lambda x: x.softmax(-1)), (normal(3, 40000),)),
    "softmax of columns": lambda: (Fun(lambda x: x.softmax(0)), (normal(4000, 20),)),
    "cumulative": lambda: (Fun(lambda x: x.cumsum(0)), (normal(4000, 20),)),
    "norm": lambda: (nn.LayerNorm(768), (normal(50, 768),)),
    "group norm": lambda: (nn.GroupNorm(4, 16), (normal(1, 16, 40, 40),)),
    "convolutions": lambda: (network(), (torch.randn(1, 16, 40, 40),)),
    "lstm": lambda: (nn.LSTM(32, 64, 2, bidirectional=True), (torch.randn(20, 3, 32),)),
    "gru": lambda: (nn.GRU(32, 96), (torch.randn(20, 1, 32),)),
    "transformer": lambda: (
        nn.TransformerEncoderLayer(64, 4, 256, batch_first=True),
        (torch.randn(2, 70, 64),),
    ),
}


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    """PyTorch's own number of threads afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bits(outputs: Any) -> list[bytes]:
    """The bytes of all tensors of an answer."""
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [t.detach().contiguous().numpy().tobytes() for t in leaves]


@pytest.mark.parametrize("name", CASES)
def test_bits_do_not_depend_on_threads(name: str) -> None:
    torch.manual_seed(7)
    model, inputs = CASES[name]()
    model = model.eval().requires_grad_(False)
    torch.set_num_threads(2)
    compiled = nestor.compile(model, inputs)
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-3, atol=1e-2)
    expected = bits(compiled(*inputs))
    for threads in THREADS:
        torch.set_num_threads(threads)
        for _ in range(2):
            assert bits(compiled(*inputs)) == expected, f"{threads} threads"


@nestor.kernel(reassociate=True)
def sums(A: nestor.f64["N", "M"], x: nestor.f64["N"], y: nestor.f64["M"], total: nestor.f64[1]):
    """Products with a matrix from both sides, and the sum of all its elements."""
    for i in range(N):
        for j in range(M):
            x[i] += A[i, j] * 1.5
            y[j] += A[i, j] * 0.3
            total[0] += A[i, j]


def test_bits_of_loop_kernels() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((701, 463)) * np.logspace(-6, 6, 463)
    expected: list[bytes] = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        for _ in range(2):
            results = np.zeros(701), np.zeros(463), np.zeros(1)
            sums(matrix, *results)
            found = [r.tobytes() for r in results]
            expected = expected or found
            assert found == expected, f"{threads} threads"
    np.testing.assert_allclose(results[2], matrix.sum(), rtol=1e-9)


@pytest.mark.parametrize("threads", THREADS)
def test_number_of_threads_is_the_one_asked_for(threads: int) -> None:
    """Of the compiled model if it was given one, else PyTorch's at the time of the call."""
    model = nn.Linear(64, 64).eval()
    inputs = (torch.randn(8, 64),)
    fixed = nestor.compile(model, inputs, threads=threads)
    free = nestor.compile(model, inputs)
    for setting in (2, 4):
        torch.set_num_threads(setting)
        assert (used(fixed, inputs), used(free, inputs)) == (threads, setting)
    assert torch.equal(fixed(*inputs), free(*inputs))


def used(compiled: Any, inputs: tuple[Tensor, ...]) -> int:
    """The number of threads that native code is told at a call."""
    seen: list[int] = []
    executable = compiled._fixed.executable

    def look(frame: Any, plan: Any) -> None:
        memory = frame.services._memory
        seen.append(struct.unpack_from("<QQQq", memory)[3])
        executable._run_steps(frame, plan)

    executable._run(list(inputs), look)
    return seen[0]
