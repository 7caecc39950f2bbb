"""On a real GPU: operators, models at full size, streams, errors. ``pytest -m gpu``."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import nestor
from benchmarks.models import MODELS, SMALLER
from nestor.errors import IndexOutOfRange, InputError
from tests.differential.test_torch_ops_native import CASES, Function
from tests.helpers.torch_cases import Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture(autouse=True)
def compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests ask Triton to interpret when they are collected."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def moved(tree: Any) -> Any:
    return pytree.tree_map(lambda x: x.cuda() if isinstance(x, torch.Tensor) else x, tree)


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_operators(c: Case) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(c.name.encode()))
    inputs = moved(tuple(make(generator) for make in c.inputs[0]))
    model = Function(c).eval()
    if isinstance(c.function, nn.Module):
        model = model.cuda()
    compiled = nestor.compile(model, inputs)
    with torch.no_grad():
        wanted = pytree.tree_leaves(model(*pytree.tree_map(torch.clone, inputs)))
        found = pytree.tree_leaves(compiled(*inputs))
    for got, want in zip(found, wanted, strict=True):
        if isinstance(want, torch.Tensor):
            rtol, atol = (c.rtol or 1e-4, c.atol or 1e-4) if want.is_floating_point() else (0, 0)
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, dtype: torch.dtype) -> None:
    case = SMALLER.get(name, MODELS[name])
    model = case.build().to(device="cuda", dtype=dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in moved(case.inputs(0, 2)))
    compiled = nestor.compile(model, inputs, name=name)
    with torch.inference_mode():
        eager, found = (pytree.tree_leaves(f(*inputs)) for f in (model, compiled))
        wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        exact = pytree.tree_leaves(model.double()(*wide))
    for got, theirs, want in zip(found, eager, exact, strict=True):
        scale = float(want.abs().max())
        own = float((theirs.double() - want).abs().max())
        least = 4 * scale * torch.finfo(dtype).eps
        assert float((got.double() - want).abs().max()) <= max(4 * own, least)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 33, 65), (128, 300, 1000), (1000, 1, 77)])
def test_products_of_odd_sizes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = shape
    a, b = (torch.randn(s, device="cuda").to(dtype) for s in ((m, k), (k, n)))
    compiled = nestor.compile(Function(Case("p", torch.matmul, ())), (a, b))
    exact = a.double() @ b.double()
    error = (compiled(a, b).double() - exact).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps * (a.double().abs() @ b.double().abs()).max()


def test_attention_at_full_size() -> None:
    given = tuple(torch.randn(1, 16, 4096, 128, device="cuda").bfloat16() for _ in range(3))
    attend = Function(
        Case("a", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), ())
    )
    compiled = nestor.compile(attend, given)
    exact = attend(*(x.double() for x in given))
    own = (attend(*given).double() - exact).abs().max()
    assert (compiled(*given).double() - exact).abs().max() <= 4 * own


def test_runs_are_identical() -> None:
    model = nn.Sequential(nn.Linear(300, 200), nn.GELU(), nn.LayerNorm(200)).cuda()
    x = torch.randn(50, 300, device="cuda")
    compiled = nestor.compile(model, (x,))
    first = compiled(x)
    assert all(torch.equal(compiled(x), first) for _ in range(20))


def test_streams() -> None:
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))).cuda()
    inputs = [torch.randn(256, 512, device="cuda") for _ in range(6)]
    compiled = nestor.compile(model, (inputs[0],))
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    found = []
    for number, x in enumerate(inputs):
        with torch.cuda.stream(streams[number % 3]):
            found.append(compiled(x))
    torch.cuda.synchronize()
    for got, want in zip(found, wanted):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_an_index_outside_its_tensor_is_reported_later() -> None:
    table = nn.Embedding(10, 20).cuda()
    good, bad = torch.tensor([1, 2], device="cuda"), torch.tensor([1, 10], device="cuda")
    compiled = nestor.compile(table, (good,))
    with pytest.raises(IndexOutOfRange):
        compiled(bad)
        torch.cuda.synchronize()
        compiled(good)
    torch.cuda.synchronize()
    torch.testing.assert_close(compiled(good), table(good))


def test_another_device_is_refused() -> None:
    compiled = nestor.compile(nn.Linear(8, 4).cuda(), (torch.randn(2, 8, device="cuda"),))
    with pytest.raises(InputError, match="device cpu"):
        compiled(torch.randn(2, 8))
