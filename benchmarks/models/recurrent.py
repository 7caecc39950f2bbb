"""Recurrences, and an MLP."""

from __future__ import annotations

from torch import nn

from benchmarks.models.case import model
from benchmarks.models.inputs import normal

_FEATURES = 128


def _recurrent(kind: type[nn.RNNBase], *, bidirectional: bool) -> nn.Module:
    return kind(_FEATURES, 256, num_layers=2, batch_first=True, bidirectional=bidirectional)


@model(normal(12, _FEATURES))
def lstm_12() -> nn.Module:
    """Two LSTM layers of width 256 over 12 steps."""
    return _recurrent(nn.LSTM, bidirectional=False)


@model(normal(500, _FEATURES))
def lstm_500() -> nn.Module:
    """Two LSTM layers of width 256 over 500 steps."""
    return _recurrent(nn.LSTM, bidirectional=False)


@model(normal(12, _FEATURES))
def bilstm_12() -> nn.Module:
    """Two bidirectional LSTM layers of width 256 over 12 steps."""
    return _recurrent(nn.LSTM, bidirectional=True)


@model(normal(500, _FEATURES))
def bilstm_500() -> nn.Module:
    """Two bidirectional LSTM layers of width 256 over 500 steps."""
    return _recurrent(nn.LSTM, bidirectional=True)


@model(normal(12, _FEATURES))
def gru_12() -> nn.Module:
    """Two GRU layers of width 256 over 12 steps."""
    return _recurrent(nn.GRU, bidirectional=False)


@model(normal(500, _FEATURES))
def gru_500() -> nn.Module:
    """Two GRU layers of width 256 over 500 steps."""
    return _recurrent(nn.GRU, bidirectional=False)


@model(normal(12, _FEATURES))
def bigru_12() -> nn.Module:
    """Two bidirectional GRU layers of width 256 over 12 steps."""
    return _recurrent(nn.GRU, bidirectional=True)


@model(normal(500, _FEATURES))
def bigru_500() -> nn.Module:
    """Two bidirectional GRU layers of width 256 over 500 steps."""
    return _recurrent(nn.GRU, bidirectional=True)


@model(normal(256))
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
