"""The networks that are written here, or called in a way of their own, are the published ones."""

from __future__ import annotations

import torch

from benchmarks.models import MODELS, SMALLER
from benchmarks.models.mobilenet import MobileNetV3Large
from benchmarks.models.wrappers import CachedDecoder


def _weights(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_mobilenetv3_has_the_published_size() -> None:
    """5.48 M weights and a feature map of 7 × 7 (table 1 and section 6 of the paper)."""
    model = MobileNetV3Large(1000).eval()
    assert 5.4e6 < _weights(model) < 5.55e6
    with torch.inference_mode():
        x = torch.randn(2, 3, 224, 224)
        assert model(x).shape == (2, 1000)
        assert model.features[:-2](x).shape == (2, 960, 7, 7)


def test_efficientnet_has_the_published_size() -> None:
    """5.3 M weights (table 2 of the paper)."""
    assert 5.2e6 < _weights(MODELS["efficientnet_b0"].build()) < 5.35e6


def test_a_token_after_a_cache_is_the_last_of_all_tokens() -> None:
    """Token by token from an empty cache gives what all tokens at once give."""
    for name in SMALLER:
        decoder = SMALLER[name].build()
        assert isinstance(decoder, CachedDecoder)
        _, keys, values = SMALLER[name].inputs(0, 2)
        keys, values = keys[:, :, :, :0], values[:, :, :, :0]
        ids = torch.randint(0, 1000, (2, 6), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = decoder.inner(input_ids=ids, use_cache=False)[0]
            for i in range(ids.shape[1]):
                got, key, value = decoder(ids[:, i : i + 1], keys, values)
                torch.testing.assert_close(got[:, 0], expected[:, i], rtol=1e-3, atol=1e-4)
                keys, values = torch.cat([keys, key], 3), torch.cat([values, value], 3)


def test_the_decoders_have_the_named_sizes() -> None:
    llama = MODELS["llama_300m_decode"]
    assert 290e6 < _weights(llama.build()) < 310e6
