"""Small networks of the real architectures, imported without an Extern and interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from benchmarks.models import FirstOutput, MaskedEncoder
from benchmarks.pretrained import SentenceEncoder
from tests.helpers.torch_reference import check_model

transformers = pytest.importorskip("transformers")

Built = tuple[nn.Module, Callable[[int], tuple[Tensor, ...]]]


def _images(n: int) -> tuple[Tensor, ...]:
    return (torch.randn(n, 3, 32, 32),)


def _tokens(n: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 50, (n, 7)),)


def _masked(n: int) -> tuple[Tensor, ...]:
    lengths = torch.tensor([7, 4, 1, 6, 2])[:n, None]
    return torch.randint(0, 50, (n, 7)), (torch.arange(7) < lengths).long()


def _image_model(kind: str, **settings: Any) -> Built:
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **settings)
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    return FirstOutput(model, "pixel_values"), _images


def resnet() -> Built:
    return _image_model("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])


def mobilenet() -> Built:
    return _image_model("MobileNetV2", depth_multiplier=0.25, image_size=32)


def convnext() -> Built:
    return _image_model("ConvNext", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])


def vit() -> Built:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return _image_model("ViT", **small, intermediate_size=20, image_size=32, patch_size=8)


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=50,
        max_position_embeddings=20,
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def bert() -> Built:
    return MaskedEncoder(_bert()), _masked


def sentence_encoder() -> Built:
    return SentenceEncoder(_bert()), _masked


def gpt2() -> Built:
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=3)
    return FirstOutput(transformers.GPT2LMHeadModel(config), "input_ids", use_cache=False), _tokens


def t5_encoder() -> Built:
    config = transformers.T5Config(
        vocab_size=50, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, use_cache=False
    )
    return MaskedEncoder(transformers.T5EncoderModel(config)), _masked


def whisper_encoder() -> Built:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = transformers.WhisperConfig(
        num_mel_bins=6,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        max_source_positions=10,
    )
    model = FirstOutput(WhisperEncoder(config), "input_features")
    return model, lambda n: (torch.randn(n, 6, 20),)


def llama() -> Built:
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return FirstOutput(transformers.LlamaForCausalLM(config), "input_ids", use_cache=False), _tokens


BUILDERS = (
    resnet, mobilenet, convnext, vit, bert, sentence_encoder, gpt2, t5_encoder, whisper_encoder,
    llama,
)  # fmt: skip


@pytest.mark.parametrize("build", BUILDERS, ids=lambda b: b.__name__)
def test_import_matches_eager(build: Callable[[], Built]) -> None:
    """Batch 2 with a symbolic batch, then other sizes of it; no operator is left to PyTorch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, inputs = build()
        model = model.eval().requires_grad_(False)
        for module in model.modules():  # lively statistics, so that forgetting them shows
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.6, 1.4)
        first = inputs(2)
        shapes = {"x": ({0: Dim.DYNAMIC},), "input_ids": ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC})}
        imported = check_model(
            model,
            first,
            dynamic_shapes=shapes["x" if len(first) == 1 else "input_ids"],
            others=[inputs(1), inputs(5)],
            rtol=1e-4,
            atol=1e-4,
        )
    assert len(imported.program.symbols) == 1
