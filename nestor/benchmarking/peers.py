"""The ways of running a model that ``nestor bench`` knows: a *peer* prepares it, then calls it.

A peer is a function ``(model, inputs, threads) -> Prepared`` given as ``module:function``, so that
others (``benchmarks.peers``) can add to ``PEERS`` without this package knowing them.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nestor.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model that is ready to be called.

    Attributes:
        call: runs the model once and returns its outputs.
        compile_seconds: what preparing took, first call excluded unless it compiles [s].
        compiles_at_first_call: then the first call belongs to ``compile_seconds``, and memory is
            measured at the one after it: the first that only runs the model.
        note: what a reader should know, e.g. how many kernels there are.
        externs: operators of one call that are left to PyTorch by a peer that replaces it.
    """

    call: Callable[[], Any]
    compile_seconds: float = 0.0
    compiles_at_first_call: bool = False
    note: str = ""
    externs: int = 0


PeerMaker = Callable[[Any, Sequence[Any], int], Prepared]

PEERS: dict[str, str] = {
    "eager": "nestor.benchmarking.peers:eager",
    "compile": "nestor.benchmarking.peers:torch_compile",
    "nestor": "nestor.benchmarking.peers:nestor_compiled",
    "artifact": "nestor.benchmarking.peers:as_it_is",
}
"""Name → where its maker is."""


def resolve(target: str) -> Any:
    """The object that ``module:name`` stands for."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def check_peer_names(names: Sequence[str]) -> None:
    """Raise UserError if one of ``names`` is no peer, or stands twice."""
    for name in names:
        if name not in PEERS:
            raise UserError(f"no peer {name!r}; there are: {', '.join(PEERS)}")
    if len(set(names)) != len(names):
        raise UserError(f"a peer stands twice in {','.join(names)}")


def as_it_is(model: Any, inputs: Sequence[Any], threads: int) -> Prepared:
    """Call what was loaded: an artifact, which needs no preparing."""
    return Prepared(call=lambda: model(*inputs))


def eager(model: Any, inputs: Sequence[Any], threads: int) -> Prepared:
    """PyTorch as it is."""
    import torch

    def call() -> Any:
        with torch.inference_mode():
            return model(*inputs)

    return Prepared(call=call)


def torch_compile(model: Any, inputs: Sequence[Any], threads: int) -> Prepared:
    """``torch.compile`` with its default backend; needs a C++ compiler."""
    import shutil

    import torch

    if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        raise UserError("torch.compile needs a C++ compiler (g++), and there is none")
    compiled: Any = torch.compile(model)

    def call() -> Any:
        with torch.inference_mode():
            return compiled(*inputs)

    return Prepared(call=call, compiles_at_first_call=True)


def nestor_compiled(model: Any, inputs: Sequence[Any], threads: int) -> Prepared:
    """``nestor.compile``."""
    import nestor

    start = time.perf_counter()
    compiled = nestor.compile(model, tuple(inputs), threads=threads)
    seconds = time.perf_counter() - start
    report = compiled.report()
    note = f"{len(report.kernels)} kernels, {report.cache_hits} from the cache"
    externs = sum(e.count for e in report.externs)
    if externs:
        note += f", {externs} calls of PyTorch"
    return Prepared(
        call=lambda: compiled(*inputs), compile_seconds=seconds, note=note, externs=externs
    )
