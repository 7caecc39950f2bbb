"""Models that run in blocks of their batch, by threads each for itself or by all together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nestor
from nestor import compiler
from nestor.errors import ArtifactError, IndexOutOfRange
from nestor.passes.batch_blocks import split_batch
from nestor.runtime.manifest import Blocks, check_manifest

BATCH = 8


class Pictures(nn.Module):
    """Convolutions with a computed scale, and two results."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.each = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)
        self.mix, self.last = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.silu(self.each(F.relu(self.first(x))))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = self.mix(x * scale[:, :, None, None])
        x = x + F.relu(self.last(x))
        return self.head(x.mean((2, 3))), x


class Tokens(nn.Module):
    """Two layers of attention over embedded tokens, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.inside = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.outside = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.norm = nn.LayerNorm(32)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.words(tokens)
        for inside, outside in zip(self.inside, self.outside):
            q, k, v = inside(x).view(*x.shape[:2], 3, 2, 16).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
            x = self.norm(x + outside(y.transpose(1, 2).reshape(x.shape)))
        return x


def pictures() -> tuple[Tensor, ...]:
    """A batch of images."""
    return (torch.randn(BATCH, 3, 26, 26),)


def tokens() -> tuple[Tensor, ...]:
    """A batch of token numbers with a mask."""
    lengths = torch.randint(1, 80, (BATCH, 1))
    return torch.randint(0, 50, (BATCH, 80)), torch.arange(80) < lengths


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "pictures": (Pictures, pictures),
    "tokens": (Tokens, tokens),
}


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks as for two cores on any machine; PyTorch's own number of threads afterwards."""
    monkeypatch.setattr(compiler, "split_batch", lambda program, cores, *_: split_batch(program, 2))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made(name: str) -> tuple[Any, Any, tuple[Tensor, ...], Any]:
    """A compiled model, the model, inputs, and the manifest."""
    torch.manual_seed(11)
    make, inputs_of = CASES[name]
    model, inputs = make().eval().requires_grad_(False), inputs_of()
    compiled = nestor.compile(model, inputs)
    compiled(*inputs)
    built = compiled._fixed
    assert built.manifest.blocks is not None
    return compiled, model, inputs, built.manifest


def leaves(outputs: Any) -> list[Tensor]:
    """The tensors of an answer."""
    return list(torch.utils._pytree.tree_leaves(outputs))


@pytest.mark.parametrize("name", CASES)
def test_blocks_give_what_the_model_gives_at_any_number_of_threads(name: str) -> None:
    compiled, model, inputs, manifest = made(name)
    assert manifest.blocks.count in (4, 8)
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
    expected = leaves(compiled(*inputs))
    for threads in (1, 2, 3, 4, 5, 8, 13, 2):
        torch.set_num_threads(threads)
        for _ in range(2):
            found = leaves(compiled(*inputs))
            assert all(map(torch.equal, found, expected)), f"{threads} threads"


def test_other_inputs_strides_and_callers_at_once() -> None:
    compiled, model, inputs, _ = made("pictures")
    batches = [torch.randn_like(inputs[0]) for _ in range(6)]
    strided = [b.to(memory_format=torch.channels_last) for b in batches]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(compiled, batches + strided))
    for batch, plain, other in zip(batches, answers[:6], answers[6:]):
        torch.testing.assert_close(plain, model(batch), rtol=1e-4, atol=1e-5)
        assert all(map(torch.equal, leaves(plain), leaves(other)))


def test_temps_take_a_few_images_a_thread() -> None:
    torch.set_num_threads(2)
    compiled, model, inputs, manifest = made("pictures")
    in_blocks = compiled.report().arena_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "split_batch", lambda program, cores, *_: split_batch(program, 99))
        whole = nestor.compile(model, inputs)
        whole(*inputs)
    assert manifest.blocks.count == 8 and in_blocks < whole.report().arena_bytes / 2


def test_artifacts_run_in_blocks(tmp_path: Path) -> None:
    compiled, _, inputs, _ = made("tokens")
    compiled.save(tmp_path / "model.nst")
    loaded = nestor.load(tmp_path / "model.nst")
    found = leaves(loaded(*inputs))
    assert all(map(torch.equal, found, leaves(compiled(*inputs))))


@pytest.mark.parametrize("threads", (1, 2, 3))
@pytest.mark.parametrize("image", (0, 5, 7))
def test_an_index_out_of_range_in_any_block(image: int, threads: int) -> None:
    compiled, _, (numbers, mask), _ = made("tokens")
    torch.set_num_threads(threads)
    expected = compiled(numbers, mask)
    wrong = numbers.clone()
    wrong[image, 3] = 50
    with pytest.raises(IndexOutOfRange, match="embedding"):
        compiled(wrong, mask)
    assert torch.equal(compiled(numbers, mask), expected)


def test_times_of_all_blocks() -> None:
    compiled, _, inputs, manifest = made("pictures")
    built = compiled._fixed
    times = built.executable.profile(list(inputs), 2)
    assert len(times) == len(manifest.calls) and all(0 < t < 60 for _, t in times)


def test_manifests_that_cannot_run_in_blocks_are_refused() -> None:
    _, _, _, manifest = made("pictures")
    driver = manifest.blocks.driver
    for blocks in (None, Blocks(count=3, driver=driver), Blocks(count=0, driver=driver)):
        with pytest.raises(ArtifactError, match="block"):
            check_manifest(replace(manifest, blocks=blocks))
    temp = next(i for i, s in enumerate(manifest.slots) if s.role == "temp")
    slots = list(manifest.slots)
    slots[temp] = replace(slots[temp], in_blocks=True)
    with pytest.raises(ArtifactError, match="a temp in blocks"):
        check_manifest(replace(manifest, slots=tuple(slots)))
