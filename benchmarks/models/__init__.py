"""The models that Nestor is measured and tested on, by name.

``build(name)`` gives a model in evaluation mode and a maker of inputs. Each name is also a function
of this module without arguments that returns ``(model, example_inputs)``, so the command line takes
``benchmarks.models:resnet50``.

Architectures without published weights at hand have the published *sizes* and random weights from a
fixed seed. Their weights are made lively: biases, norm scales and running statistics are not
the zeros and ones that an initialiser leaves, so that forgetting one shows in the output.
"""

from __future__ import annotations

from benchmarks.models.case import MODELS, SMALLER, InputMaker, Inputs, ModelCase, build, model_case
from benchmarks.models.language import (
    bert_base,
    bert_base_512,
    gpt2,
    gpt2_decode,
    llama_4x512,
    llama_300m_decode,
    t5_encoder,
    t5_small,
    whisper_encoder,
)
from benchmarks.models.published import crepe, minilm, silero
from benchmarks.models.recurrent import (
    bigru_12,
    bigru_500,
    bilstm_12,
    bilstm_500,
    gru_12,
    gru_500,
    lstm_12,
    lstm_500,
    mlp,
)
from benchmarks.models.vision import (
    convnext_tiny,
    efficientnet_b0,
    mobilenetv2,
    mobilenetv3_large,
    resnet50,
    vit_base,
)
from benchmarks.models.wrappers import CachedDecoder, FirstOutput, MaskedEncoder, Translator

__all__ = [
    "MODELS",
    "SMALLER",
    "Inputs",
    "InputMaker",
    "ModelCase",
    "build",
    "model_case",
    "minilm",
    "crepe",
    "silero",
    "resnet50",
    "mobilenetv2",
    "convnext_tiny",
    "vit_base",
    "mobilenetv3_large",
    "efficientnet_b0",
    "bert_base",
    "gpt2",
    "t5_encoder",
    "whisper_encoder",
    "llama_4x512",
    "bert_base_512",
    "t5_small",
    "gpt2_decode",
    "llama_300m_decode",
    "lstm_12",
    "lstm_500",
    "bilstm_12",
    "bilstm_500",
    "gru_12",
    "gru_500",
    "bigru_12",
    "bigru_500",
    "mlp",
    "CachedDecoder",
    "FirstOutput",
    "MaskedEncoder",
    "Translator",
]
