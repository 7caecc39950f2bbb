"""The networks written around published weights are the published networks."""

from __future__ import annotations

import pytest
import torch

from benchmarks import models, pretrained
from benchmarks.criterion import reference


@pytest.mark.parametrize("batch", [1, 3])
def test_silero_is_the_packages_own_network(batch: int) -> None:
    """Four chunks in a row, against the TorchScript program that the package ships."""
    published = pretrained.open_silero_program().eval()
    model = models.MODELS["silero"].build()
    state = torch.zeros(2, batch, 128)
    context = torch.zeros(batch, 64)
    with torch.no_grad():
        for step in range(4):
            wave = models.MODELS["silero"].inputs(step, batch)[0][:, 64:]
            expected = published(wave, 16_000)
            got, state = model(torch.cat([context, wave], dim=1), state)
            context = wave[:, -64:]
            assert torch.allclose(got, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(state, torch.zeros_like(state))


def test_minilm_ranks_sentences_by_meaning() -> None:
    """The embeddings mean something: a paraphrase is nearer than an unrelated sentence."""
    ids, mask = pretrained.tokenize(
        [
            "A man is playing the guitar on stage.",
            "Someone performs music with a guitar.",
            "The stock market fell sharply on Monday.",
        ]
    )
    with torch.no_grad():
        rows = models.MODELS["minilm"].build()(ids, mask)
    assert torch.allclose(rows.norm(dim=1), torch.ones(3), atol=1e-5)
    similar, other = float(rows[0] @ rows[1]), float(rows[0] @ rows[2])
    assert similar > 0.6
    assert other < 0.2


def test_crepe_hears_the_pitch_of_a_tone() -> None:
    """A tone of 220 Hz activates the bin of 220 Hz (20 cents a bin, first bin at 32.7 Hz)."""
    time = torch.arange(1024) / 16_000
    wave = torch.sin(2 * torch.pi * 220.0 * time)
    frame = ((wave - wave.mean()) / wave.std())[None]
    with torch.no_grad():
        activation = models.MODELS["crepe"].build()(frame)[0]
    cents = 1200 * torch.log2(torch.tensor(220.0 / 10.0))
    expected = round(float((cents - 1997.3794084376191) / 20))
    assert abs(int(activation.argmax()) - expected) <= 1


def test_reference_runs_in_float64_throughout() -> None:
    """A norm that casts to float32 by name does not lower the reference's precision."""

    class Norm(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True)).float()

    x = torch.randn(4, 7)
    exact = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True))
    assert torch.equal(torch.from_numpy(reference(Norm(), (x,))[0]), exact)


def test_every_model_has_fresh_inputs_for_each_seed() -> None:
    for case in models.MODELS.values():
        first, again, other = (case.inputs(seed, 3) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), case.name
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True)), case.name
        dims = [x.shape[d] for x, d in zip(first, case.batch_dims, strict=True)]
        assert dims == [3] * len(dims), case.name
