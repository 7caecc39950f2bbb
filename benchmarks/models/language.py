"""Networks of text and speech, at published sizes with random weights."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.models.case import InputMaker, Inputs, model
from benchmarks.models.inputs import generator, normal, tokens
from benchmarks.models.wrappers import CachedDecoder, FirstOutput, MaskedEncoder, Translator


@model(tokens(30522, masked=True), batch_dims=(0, 0))
def bert_base() -> nn.Module:
    """BERT-base (Devlin et al., 2018), 128 tokens, padded rows."""
    from transformers import BertConfig, BertModel

    return MaskedEncoder(BertModel(BertConfig(), add_pooling_layer=False))


@model(tokens(50257, masked=False))
def gpt2() -> nn.Module:
    """GPT-2 of 124 M weights (Radford et al., 2019), 128 tokens to logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return FirstOutput(GPT2LMHeadModel(GPT2Config()), "input_ids", use_cache=False)


@model(tokens(32128, masked=True), batch_dims=(0, 0))
def t5_encoder() -> nn.Module:
    """The encoder of T5-small (Raffel et al., 2019), 128 tokens, padded rows."""
    from transformers import T5Config, T5EncoderModel

    return MaskedEncoder(T5EncoderModel(T5Config(use_cache=False)))


@model(normal(80, 3000))
def whisper_encoder() -> nn.Module:
    """The encoder of Whisper-tiny (Radford et al., 2022), 30 s of mel frames."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return FirstOutput(WhisperEncoder(WhisperConfig()), "input_features")


@model(tokens(32000, masked=False))
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


@model(tokens(30522, masked=True, length=512), batch_dims=(0, 0))
def bert_base_512() -> nn.Module:
    """BERT-base, 512 tokens, padded rows."""
    from transformers import BertConfig, BertModel

    return MaskedEncoder(BertModel(BertConfig(), add_pooling_layer=False))


def _source_and_target(seed: int, batch: int) -> Inputs:
    """Tokens to translate with their mask, and the beginning of the translation."""
    return *tokens(32128, masked=True)(seed, batch), *tokens(32128, masked=False)(seed + 1, batch)


@model(_source_and_target, batch_dims=(0, 0, 0))
def t5_small() -> nn.Module:
    """T5-small (Raffel et al., 2019), 128 tokens in, 128 tokens of the answer to logits."""
    from transformers import T5Config, T5ForConditionalGeneration

    return Translator(T5ForConditionalGeneration(T5Config(use_cache=False)))


# --------------------------------------------------------------- one token after a cache of others


def _cached(vocabulary: int, layers: int, heads: int, past: int, width: int) -> InputMaker:
    """A token a row, shape (batch, 1); keys and values, (batch, layers, heads, past, width)."""

    def make(seed: int, batch: int) -> Inputs:
        g = generator(seed)
        ids = torch.randint(0, vocabulary, (batch, 1), generator=g)
        shape = (batch, layers, heads, past, width)
        return ids, torch.randn(shape, generator=g), torch.randn(shape, generator=g)

    return make


def _gpt2_decoder(layers: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return CachedDecoder(GPT2LMHeadModel(GPT2Config(n_layer=layers)))


@model(_cached(50257, 12, 12, 128, 64), batch_dims=(0, 0, 0))
def gpt2_decode() -> nn.Module:
    """GPT-2 of 124 M weights: one token after 128, whose keys and values are inputs."""
    return _gpt2_decoder(12)


@model(_cached(50257, 2, 12, 128, 64), batch_dims=(0, 0, 0), smaller_of="gpt2_decode")
def gpt2_decode_2() -> nn.Module:
    """``gpt2_decode`` with two layers."""
    return _gpt2_decoder(2)


def _llama_decoder(layers: int, vocabulary: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
    )
    return CachedDecoder(LlamaForCausalLM(config))


@model(_cached(32000, 20, 8, 512, 64), batch_dims=(0, 0, 0))
def llama_300m_decode() -> nn.Module:
    """A Llama of 300 M weights: one token after 512, whose keys and values are inputs."""
    return _llama_decoder(20, 32000)


@model(_cached(1000, 2, 8, 512, 64), batch_dims=(0, 0, 0), smaller_of="llama_300m_decode")
def llama_300m_decode_2() -> nn.Module:
    """``llama_300m_decode`` with two layers and 1,000 tokens."""
    return _llama_decoder(2, 1000)
