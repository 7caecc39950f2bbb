"""Models of few and narrow layers, of which Triton's interpreter runs every kernel in seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.models.wrappers import CachedDecoder, FirstOutput, MaskedEncoder, Translator

Maker = Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]
MODELS: dict[str, Maker] = {}


def model(maker: Maker) -> Maker:
    """Add a model to the collection."""
    MODELS[maker.__name__] = maker
    return maker


# ---------------------------------------------------------------------------------- the models


def _tokens(words: int, length: int = 16) -> torch.Tensor:
    return torch.randint(0, words, (2, length), generator=torch.Generator().manual_seed(0))


def _image(size: int = 32) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@model
def bert() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=32,
    )  # fmt: skip
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 11:] = 0
    return MaskedEncoder(BertModel(config, add_pooling_layer=False)), (_tokens(99), mask)


@model
def gpt2() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    return FirstOutput(GPT2LMHeadModel(config), "input_ids", use_cache=False), (_tokens(99),)


@model
def t5_encoder() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=99, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, use_cache=False
    )
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 11:] = 0
    return MaskedEncoder(T5EncoderModel(config)), (_tokens(99), mask)


@model
def llama() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    return FirstOutput(LlamaForCausalLM(config), "input_ids", use_cache=False), (_tokens(99),)


@model
def whisper_encoder() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=48,
        num_mel_bins=8, max_source_positions=20,
    )  # fmt: skip
    mel = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0))
    return FirstOutput(WhisperEncoder(config), "input_features"), (mel,)


@model
def vit() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=32, patch_size=8, num_labels=10,
    )  # fmt: skip
    return FirstOutput(ViTForImageClassification(config), "pixel_values"), (_image(),)


@model
def resnet() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], num_labels=10)
    return FirstOutput(ResNetForImageClassification(config), "pixel_values"), (_image(),)


@model
def convnext() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=10)
    return FirstOutput(ConvNextForImageClassification(config), "pixel_values"), (_image(),)


@model
def mobilenetv2() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(num_labels=10, depth_multiplier=0.1, min_depth=4, image_size=32)
    return FirstOutput(MobileNetV2ForImageClassification(config), "pixel_values"), (_image(),)


@model
def mobilenetv3() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from benchmarks.models.mobilenet import MobileNetV3Large

    return MobileNetV3Large(10), (_image(),)


@model
def efficientnet() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=32, width_coefficient=0.2, depth_coefficient=0.1, hidden_dim=256, num_labels=10
    )
    network = EfficientNetForImageClassification(config)
    network.efficientnet.pooler = nn.AdaptiveAvgPool2d(1)
    return FirstOutput(network, "pixel_values"), (_image(),)


@model
def t5() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=99, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, use_cache=False
    )
    mask = torch.ones(2, 16, dtype=torch.int64)
    return Translator(T5ForConditionalGeneration(config)), (_tokens(99), mask, _tokens(99, 6))


@model
def gpt2_decode() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    past = torch.randn(2, 2, 2, 2, 10, 16, generator=torch.Generator().manual_seed(0))
    return CachedDecoder(GPT2LMHeadModel(config)), (_tokens(99, 1), past[0], past[1])


@model
def lstm() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.LSTM(12, 20, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(x)[0]
            return out

    return Last(), (torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)),)
