"""A model whose tensors lie on a GPU, run by the CPU: what ``target="auto"`` falls back to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestor.errors import Unsupported

if TYPE_CHECKING:
    import torch

    from nestor.building import BuiltModel
    from nestor.report import Report


class BuiltOnCpu:
    """A model compiled for the CPU: inputs are copied to it, results to where inputs lie.

    Args: device: that inputs lie on.
    """

    def __init__(self, built: BuiltModel, device: torch.device):
        self._built, self._device = built, device

    @property
    def executable(self) -> BuiltOnCpu:
        """What runs it."""
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given, named = moved((args, kwargs), "cpu")
        return moved(self._built.executable(*given, **named), self._device)

    def accepts(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a call fits what was compiled."""
        given, named = moved((args, kwargs), "cpu")
        return self._built.executable.accepts(*given, **named)

    def report(self) -> Report:
        """What the compilation did."""
        return self._built.report()

    def save(self, path: Path) -> None:
        """Write the artifact, for CPUs. Raises: as ``BuiltModel.save``."""
        self._built.save(path)


def moved(value: Any, device: torch.device | str) -> Any:
    """A structure with its tensors on ``device``."""
    import torch
    from torch.utils import _pytree

    return _pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), value)


def copied_to_cpu(model: Any) -> Any:
    """A copy of a module whose parameters and buffers lie on the CPU; no other tensor is copied.

    Raises: ``Unsupported`` for what is no module.
    """
    import torch
    from torch import nn

    if not isinstance(model, nn.Module):
        raise Unsupported(
            f"a {type(model).__name__} stays on the device that it was made on\n"
            "fix: export it again on the CPU"
        )
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().cpu(), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    memo |= {id(b): b.detach().cpu() for b in model.buffers()}
    with torch.no_grad():
        return copy.deepcopy(model, memo)
