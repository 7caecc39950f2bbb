"""Operators that keep a recurrence whole through ``torch.export``.

ATen's ``lstm``, ``gru`` and ``rnn`` are composites: tracing one with fake tensors runs every time
step, so export time grows with the length and the length cannot be symbolic. While a model is
exported, ``torch._VF`` calls these custom operators instead; their fake implementations
give shapes at once. Their real implementations call ATen.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

NAMESPACE = "nestor_recurrent"
_DEPTH = threading.local()
_LOCK = threading.Lock()
_USERS = 0
_ORIGINALS: dict[str, Any] = {}


def _sequence_shape(
    x: Tensor, state: Tensor, bidirectional: bool, proj: int | None = None
) -> list[Any]:
    width = state.shape[-1] * (2 if bidirectional else 1)
    return [*x.shape[:-1], width]


def _output(x: Tensor, state: Tensor, bidirectional: bool, batch_first: bool) -> Tensor:
    """A sequence laid out as ATen's: time outermost in memory."""
    shape = _sequence_shape(x, state, bidirectional)
    if not batch_first:
        return x.new_empty(shape)
    return x.new_empty([shape[1], shape[0], shape[2]]).transpose(0, 1)


@custom_op(f"{NAMESPACE}::lstm", mutates_args=())
def lstm(
    x: Tensor,
    hx: list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``aten::lstm.input``."""
    found: tuple[Tensor, Tensor, Tensor] = torch.lstm(
        x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
    )
    return tuple(t.clone() for t in found)  # type: ignore[return-value]


@lstm.register_fake
def _(
    x: Tensor,
    hx: list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    h, c = hx
    return _output(x, h, bidirectional, batch_first), torch.empty_like(h), torch.empty_like(c)


def _declare_simple(name: str) -> None:
    original = getattr(torch, name)

    def real(
        x: Tensor,
        hx: Tensor,
        params: list[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor]:
        found = original(
            x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
        )
        return found[0].clone(), found[1].clone()

    def fake(
        x: Tensor,
        hx: Tensor,
        params: list[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor]:
        return _output(x, hx, bidirectional, batch_first), torch.empty_like(hx)

    for function in (real, fake):  # the schema is inferred from real types, not from strings
        function.__annotations__ = {
            "x": Tensor,
            "hx": Tensor,
            "params": list[Tensor],
            "has_biases": bool,
            "num_layers": int,
            "dropout": float,
            "train": bool,
            "bidirectional": bool,
            "batch_first": bool,
            "return": tuple[Tensor, Tensor],
        }
    operator = custom_op(f"{NAMESPACE}::{name}", real, mutates_args=())
    operator.register_fake(fake)


KINDS = ("gru", "rnn_tanh", "rnn_relu")
for _kind in KINDS:
    _declare_simple(_kind)


def _dispatch(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    operator = getattr(getattr(torch.ops, NAMESPACE), name)

    def call(*args: Any) -> Any:
        # The packed form has a tensor of batch sizes second; it stays with ATen.
        packed = isinstance(args[3], list | tuple) if len(args) > 3 else True
        if getattr(_DEPTH, "value", 0) and not packed:
            x, hx, params, *rest = args
            state = list(hx) if name == "lstm" else hx
            return operator(x, state, list(params), *rest)
        return original(*args)

    return call


@contextlib.contextmanager
def keep_recurrences() -> Iterator[None]:
    """Within, this thread's recurrent layers call the operators of this module."""
    global _USERS
    names = ("lstm", *KINDS)
    with _LOCK:
        if _USERS == 0:
            for name in names:
                _ORIGINALS[name] = getattr(torch._VF, name)
                setattr(torch._VF, name, _dispatch(name, _ORIGINALS[name]))
        _USERS += 1
    _DEPTH.value = getattr(_DEPTH, "value", 0) + 1
    try:
        yield
    finally:
        _DEPTH.value -= 1
        with _LOCK:
            _USERS -= 1
            if _USERS == 0:
                for name in names:
                    setattr(torch._VF, name, _ORIGINALS[name])
