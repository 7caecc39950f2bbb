"""The models that Nestor is measured and tested on, by name.

``build(name)`` gives a model in evaluation mode and a maker of inputs. Each name is also a function
of this module without arguments that returns ``(model, example_inputs)``, so the command line takes
``benchmarks.models:resnet50``.

Architectures without published weights at hand have the published *sizes* and random weights from a
fixed seed. Their weights are made lively: biases, norm scales and running statistics are not
the zeros and ones that an initialiser leaves, so that forgetting one shows in the output.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import pretrained

Inputs = tuple[Tensor, ...]
InputMaker = Callable[[int, int], Inputs]
"""``(seed, batch) -> inputs``."""

_SEED = 20240
_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCase:
    """A model of the collection.

    Attributes:
        name: as given on the command line.
        build: makes the network, float32, evaluation mode, the same at every call.
        inputs: makes fresh inputs from a seed and a batch size.
        batch_dims: the batch dimension of each input, for ``dynamic_shapes``.
        pretrained: whether the weights are published ones.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: InputMaker
    batch_dims: tuple[int, ...]
    pretrained: bool


MODELS: dict[str, ModelCase] = {}


def build(name: str) -> tuple[nn.Module, InputMaker]:
    """The model called ``name`` and its maker of inputs.

    Raises: KeyError naming the models there are.
    """
    case = model_case(name)
    return case.build(), case.inputs


def model_case(name: str) -> ModelCase:
    """The entry called ``name``; KeyError naming the models there are."""
    try:
        return MODELS[name]
    except KeyError:
        raise KeyError(f"no model {name!r}; there are: {', '.join(MODELS)}") from None


def _model(
    inputs: InputMaker, *, batch_dims: tuple[int, ...] = (0,), pretrained: bool = False
) -> Callable[[Callable[[], nn.Module]], Callable[[], tuple[nn.Module, Inputs]]]:
    """Register a builder; the decorated function returns ``(model, example_inputs)``."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, Inputs]]:
        def built() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED)
                model = make()
                if not pretrained:
                    _make_lively(model)
            return model.eval().requires_grad_(False)

        @functools.wraps(make)
        def example() -> tuple[nn.Module, Inputs]:
            return built(), inputs(0, 1)

        MODELS[make.__name__] = ModelCase(
            name=make.__name__,
            build=built,
            inputs=inputs,
            batch_dims=batch_dims,
            pretrained=pretrained,
        )
        return example

    return register


def _make_lively(model: nn.Module) -> None:
    """Give biases, norm scales and running statistics values as a trained network has."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.6, 1.4)
            # Below one, so that the sums of deep residual branches keep a moderate size.
            module.weight.data.fill_(0.7)
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            # Gain of ReLU: keeps the signal's size through deep stacks, where an initialiser
            # of a fixed small deviation lets it die out.
            fan_in = math.prod(module.weight.shape[1:])
            module.weight.data.normal_(0.0, math.sqrt(2.0 / fan_in))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            continue
        if name.endswith("layer_scale_parameter"):
            parameter.data.uniform_(0.1, 0.3)
        else:
            parameter.data.add_(torch.empty_like(parameter).normal_(0.0, 0.1))


# ---------------------------------------------------------------------------------- input makers


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int) -> InputMaker:
    """Standard normal values, shape (batch, *shape)."""
    return lambda seed, batch: (torch.randn((batch, *shape), generator=_generator(seed)),)


def _tokens(vocabulary: int, *, masked: bool) -> InputMaker:
    """Token numbers, shape (batch, 128); with ``masked`` also a mask of random lengths."""

    def make(seed: int, batch: int) -> Inputs:
        g = _generator(seed)
        ids = torch.randint(0, vocabulary, (batch, _TOKENS), generator=g)
        if not masked:
            return (ids,)
        lengths = torch.randint(_TOKENS // 4, _TOKENS + 1, (batch, 1), generator=g)
        mask = (torch.arange(_TOKENS)[None, :] < lengths).to(torch.int64)
        return ids * mask, mask

    return make


def _audio(samples: int, seed: int, batch: int, *, normalise: bool) -> Tensor:
    """Harmonic tones in noise at 16 kHz, shape (batch, samples)."""
    g = _generator(seed)
    pitch = 80.0 + 400.0 * torch.rand((batch, 1, 1), generator=g)
    harmonic = torch.arange(1, 6, dtype=torch.float32).view(1, 5, 1)
    phase = 2 * math.pi * torch.rand((batch, 5, 1), generator=g)
    time = torch.arange(samples, dtype=torch.float32).view(1, 1, -1) / 16_000
    tone = (torch.sin(2 * math.pi * pitch * harmonic * time + phase) / harmonic).sum(1)
    wave = 0.2 * tone + 0.02 * torch.randn((batch, samples), generator=g)
    if normalise:
        wave = (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True)
    return wave


def _silero_inputs(seed: int, batch: int) -> Inputs:
    state = 0.5 * torch.randn((2, batch, 128), generator=_generator(seed + 1))
    return _audio(576, seed, batch, normalise=False), state


# ------------------------------------------------------------------------------ published weights


@_model(_tokens(30522, masked=True), batch_dims=(0, 0), pretrained=True)
def minilm() -> nn.Module:
    """all-MiniLM-L6-v2: sentences to unit vectors."""
    return pretrained.load_minilm()


@_model(lambda s, b: (_audio(1024, s, b, normalise=True),), pretrained=True)
def crepe() -> nn.Module:
    """CREPE ``full``: pitch of an audio frame."""
    return pretrained.load_crepe()


@_model(_silero_inputs, batch_dims=(0, 1), pretrained=True)
def silero() -> nn.Module:
    """Silero VAD at 16 kHz: is somebody speaking."""
    return pretrained.load_silero()


# ---------------------------------------------------------- published sizes, random weights


class FirstOutput(nn.Module):
    """Call a ``transformers`` model with one keyword and keep the first of its outputs."""

    def __init__(self, inner: nn.Module, keyword: str, **settings: Any):
        super().__init__()
        self.inner = inner
        self.keyword = keyword
        self.settings = settings

    def forward(self, x: Tensor) -> Tensor:
        """The first output of the inner model (logits or hidden states)."""
        result: Tensor = self.inner(**{self.keyword: x}, **self.settings)[0]
        return result


class MaskedEncoder(nn.Module):
    """Call a ``transformers`` encoder with tokens and a mask; keep the hidden states."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states, shape (B, T, width)."""
        result: Tensor = self.inner(input_ids=input_ids, attention_mask=attention_mask)[0]
        return result


@_model(_normal(3, 224, 224))
def resnet50() -> nn.Module:
    """ResNet-50 (He et al., 2015), 1,000 classes."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return FirstOutput(ResNetForImageClassification(ResNetConfig(num_labels=1000)), "pixel_values")


@_model(_normal(3, 224, 224))
def mobilenetv2() -> nn.Module:
    """MobileNetV2 at width 1.0 (Sandler et al., 2018), 1,001 classes."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(num_labels=1001)
    return FirstOutput(MobileNetV2ForImageClassification(config), "pixel_values")


@_model(_normal(3, 224, 224))
def convnext_tiny() -> nn.Module:
    """ConvNeXt-tiny (Liu et al., 2022), 1,000 classes."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(num_labels=1000)
    return FirstOutput(ConvNextForImageClassification(config), "pixel_values")


@_model(_normal(3, 224, 224))
def vit_base() -> nn.Module:
    """ViT-base, patches of 16 (Dosovitskiy et al., 2020), 1,000 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    return FirstOutput(ViTForImageClassification(ViTConfig(num_labels=1000)), "pixel_values")


@_model(_tokens(30522, masked=True), batch_dims=(0, 0))
def bert_base() -> nn.Module:
    """BERT-base (Devlin et al., 2018), 128 tokens, padded rows."""
    from transformers import BertConfig, BertModel

    return MaskedEncoder(BertModel(BertConfig(), add_pooling_layer=False))


@_model(_tokens(50257, masked=False))
def gpt2() -> nn.Module:
    """GPT-2 of 124 M weights (Radford et al., 2019), 128 tokens to logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return FirstOutput(GPT2LMHeadModel(GPT2Config()), "input_ids", use_cache=False)


@_model(_tokens(32128, masked=True), batch_dims=(0, 0))
def t5_encoder() -> nn.Module:
    """The encoder of T5-small (Raffel et al., 2019), 128 tokens, padded rows."""
    from transformers import T5Config, T5EncoderModel

    return MaskedEncoder(T5EncoderModel(T5Config(use_cache=False)))


@_model(_normal(80, 3000))
def whisper_encoder() -> nn.Module:
    """The encoder of Whisper-tiny (Radford et al., 2022), 30 s of mel frames."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return FirstOutput(WhisperEncoder(WhisperConfig()), "input_features")


@_model(_tokens(32000, masked=False))
def llama_4x512() -> nn.Module:
    """A Llama (Touvron et al., 2023) of 4 layers × 512, 128 tokens to logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
    )
    return FirstOutput(LlamaForCausalLM(config), "input_ids", use_cache=False)


# ------------------------------------------------------------------------ recurrences and an MLP

_FEATURES = 128


def _recurrent(kind: type[nn.RNNBase], *, bidirectional: bool) -> nn.Module:
    return kind(_FEATURES, 256, num_layers=2, batch_first=True, bidirectional=bidirectional)


@_model(_normal(12, _FEATURES))
def lstm_12() -> nn.Module:
    """Two LSTM layers of width 256 over 12 steps."""
    return _recurrent(nn.LSTM, bidirectional=False)


@_model(_normal(500, _FEATURES))
def lstm_500() -> nn.Module:
    """Two LSTM layers of width 256 over 500 steps."""
    return _recurrent(nn.LSTM, bidirectional=False)


@_model(_normal(12, _FEATURES))
def bilstm_12() -> nn.Module:
    """Two bidirectional LSTM layers of width 256 over 12 steps."""
    return _recurrent(nn.LSTM, bidirectional=True)


@_model(_normal(500, _FEATURES))
def bilstm_500() -> nn.Module:
    """Two bidirectional LSTM layers of width 256 over 500 steps."""
    return _recurrent(nn.LSTM, bidirectional=True)


@_model(_normal(12, _FEATURES))
def gru_12() -> nn.Module:
    """Two GRU layers of width 256 over 12 steps."""
    return _recurrent(nn.GRU, bidirectional=False)


@_model(_normal(500, _FEATURES))
def gru_500() -> nn.Module:
    """Two GRU layers of width 256 over 500 steps."""
    return _recurrent(nn.GRU, bidirectional=False)


@_model(_normal(12, _FEATURES))
def bigru_12() -> nn.Module:
    """Two bidirectional GRU layers of width 256 over 12 steps."""
    return _recurrent(nn.GRU, bidirectional=True)


@_model(_normal(500, _FEATURES))
def bigru_500() -> nn.Module:
    """Two bidirectional GRU layers of width 256 over 500 steps."""
    return _recurrent(nn.GRU, bidirectional=True)


@_model(_normal(256))
def mlp() -> nn.Module:
    """Three dense layers with GELU and a softmax: the smallest whole path."""
    return nn.Sequential(
        nn.Linear(256, 512),
        nn.GELU(),
        nn.Linear(512, 512),
        nn.GELU(),
        nn.Linear(512, 10),
        nn.Softmax(dim=-1),
    )
