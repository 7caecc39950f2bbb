"""An executable of two kernels and a weight, and what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from nestor.runtime.executable import Executable
from tests.helpers.native import chain


def make_chain(
    weight: np.ndarray[Any, Any] | None = None, **options: Any
) -> tuple[Executable, np.ndarray[Any, Any]]:
    """``2 (x + 1) + w`` of 4 × 8 numbers, and its weight."""
    manifest, objects = chain((4, 8))
    weight = np.arange(32, dtype=np.float32).reshape(4, 8) if weight is None else weight
    return Executable(manifest, objects, {"w": weight}, **options), weight


def expected(x: Any, w: Any) -> Any:
    """What ``make_chain``'s executable gives."""
    return 2 * (x + 1) + w
