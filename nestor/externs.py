"""Run operators that nobody lowered: PyTorch calls on arrays of the running model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nestor.ir.narrow_floats import MEMORY
from nestor.ir.program import Extern
from nestor.ir.types import DType

if TYPE_CHECKING:
    import numpy as np
    import torch


def call_extern(
    extern: Extern,
    inputs: Sequence[np.ndarray[Any, Any]],
    outputs: Sequence[np.ndarray[Any, Any]],
    symbols: Mapping[str, int],
    dtypes: Sequence[DType],
) -> None:
    """Call the operator on ``inputs``, of ``dtypes``, and copy its results into ``outputs``."""
    import torch

    from nestor.frontends.torch import run_extern
    from nestor.frontends.torch.dtypes import to_torch

    with torch.no_grad():
        tensors = {n: _tensor(a, to_torch(d)) for n, a, d in zip(extern.inputs, inputs, dtypes)}
        results = run_extern(extern, tensors, symbols)
        for array, result in zip(outputs, results):
            _tensor(array, result.dtype).copy_(result)


def _tensor(array: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
    """The array's memory as a tensor: bits of a type that NumPy lacks become that."""
    import torch

    from nestor.frontends.torch.dtypes import from_torch

    found = torch.from_numpy(array)
    return found.view(dtype) if from_torch(dtype) in MEMORY else found
