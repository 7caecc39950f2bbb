"""Nested outputs of a model as a flat list of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def flatten(outputs: Any) -> list[Any]:
    """The tensors (or arrays) of a nested output, in order."""
    if isinstance(outputs, Mapping):
        return [leaf for value in outputs.values() for leaf in flatten(value)]
    if isinstance(outputs, Sequence):
        return [leaf for value in outputs for leaf in flatten(value)]
    return [outputs]


def to_array(value: Any) -> NDArray[Any]:
    """A tensor or array as a NumPy array; types that NumPy lacks as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype).removeprefix("torch.").startswith(("bfloat", "float8")):
            value = value.float()
        value = value.numpy()
    return np.asarray(value)


def arrays(outputs: Any) -> list[NDArray[Any]]:
    """The leaves of a nested output as NumPy arrays."""
    return [to_array(leaf) for leaf in flatten(outputs)]
