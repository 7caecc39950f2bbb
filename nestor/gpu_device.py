"""Where the arguments of a call lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def gpu_device(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The GPU that tensors among the arguments lie on, a ``torch.device``; None: there is none."""
    for value in (*args, *kwargs.values()):
        device = getattr(value, "device", None)
        if getattr(device, "type", "") == "cuda":
            return device
        found = None
        if isinstance(value, tuple | list):
            found = gpu_device(tuple(value), {})
        elif isinstance(value, Mapping):
            found = gpu_device((), value)
        if found is not None:
            return found
    return None
