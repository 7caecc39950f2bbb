"""``pow(x, 0.5)`` is C's and no root: +inf for -inf, +0 for -0, however it is evaluated."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.ir import numeric


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_power_of_one_half(kind: type) -> None:
    bases = np.array([-np.inf, -0.0, 4.0], kind)
    wanted = np.array([np.inf, 0.0, 2.0], kind)
    with numeric.quiet():
        for exponent in (kind(0.5), np.array([0.5], kind), np.full(3, 0.5, kind)):
            got = numeric.binary("pow", bases, exponent)
            np.testing.assert_array_equal(got, wanted)
            np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))
        scalars = [numeric.binary("pow", b, kind(0.5)) for b in bases]
    np.testing.assert_array_equal(scalars, wanted)
