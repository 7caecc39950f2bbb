"""The interpreter's log-gamma near the largest number: infinity, as in C, not an exception."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from nestor.ir import numeric
from nestor.ir.types import DType


@pytest.mark.parametrize("value", [sys.float_info.max, 1e308, math.inf])
def test_lgamma_overflows_to_infinity(value: float) -> None:
    with numeric.quiet():
        assert numeric.unary("lgamma", np.float64(value), DType.f64) == math.inf
