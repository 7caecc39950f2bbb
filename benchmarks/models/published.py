"""Networks with published weights: language, pitch, speech."""

from __future__ import annotations

from torch import nn

from benchmarks import pretrained
from benchmarks.models.case import model
from benchmarks.models.inputs import audio, silero_inputs, tokens


@model(tokens(30522, masked=True), batch_dims=(0, 0), pretrained=True)
def minilm() -> nn.Module:
    """all-MiniLM-L6-v2: sentences to unit vectors."""
    return pretrained.load_minilm()


@model(lambda s, b: (audio(1024, s, b, normalise=True),), pretrained=True)
def crepe() -> nn.Module:
    """CREPE ``full``: pitch of an audio frame."""
    return pretrained.load_crepe()


@model(silero_inputs, batch_dims=(0, 1), pretrained=True)
def silero() -> nn.Module:
    """Silero VAD at 16 kHz: is somebody speaking."""
    return pretrained.load_silero()
