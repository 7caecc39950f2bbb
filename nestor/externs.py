"""Run operators that nobody lowered: PyTorch calls on arrays of the running model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nestor.ir.program import Extern

if TYPE_CHECKING:
    import numpy as np


def call_extern(
    extern: Extern,
    inputs: Sequence[np.ndarray[Any, Any]],
    outputs: Sequence[np.ndarray[Any, Any]],
    symbols: Mapping[str, int],
) -> None:
    """Call the operator on ``inputs`` and copy its results into ``outputs``."""
    import torch

    from nestor.frontends.torch import run_extern

    with torch.no_grad():
        tensors = {n: _tensor(a) for n, a in zip(extern.inputs, inputs)}
        results = run_extern(extern, tensors, symbols)
        for array, result in zip(outputs, results):
            _tensor(array, like=result.dtype).copy_(result)


def _tensor(array: np.ndarray[Any, Any], like: Any = None) -> Any:
    """The array's memory as a tensor; 16-bit words are bfloat16."""
    import numpy as np
    import torch

    if array.dtype == np.uint16 or like is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
