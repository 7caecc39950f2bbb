"""When a winner counts as one."""

from __future__ import annotations

import math

import pytest

from nestor.autotune.measuring import Confirmation, Measurement
from nestor.autotune.pairing import Interval


def interval(low: float, high: float) -> Interval:
    return Interval(median=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("ratio", "null", "agrees", "faster"),
    [
        (interval(0.90, 0.95), interval(0.99, 1.01), True, True),
        (interval(0.90, 0.95), interval(0.99, 1.01), False, False),
        (interval(0.98, 1.001), interval(0.999, 1.001), True, False),
        (interval(0.97, 0.99), interval(0.98, 0.995), True, False),
        (interval(0.97, 0.99), interval(1.01, 1.02), True, True),
        (interval(0.999, 1.005), interval(1.01, 1.02), True, False),
        (Interval(median=0.5, low=0.0, high=math.inf), interval(0.99, 1.01), True, False),
        (None, None, True, False),
    ],
)
def test_a_winner_is_right_and_beats_the_default_and_its_copy(
    ratio: Interval | None, null: Interval | None, agrees: bool, faster: bool
) -> None:
    found = Confirmation(
        ratio=ratio, null=null, agrees=agrees, measurement=Measurement(status="ok"), seeds=(1,)
    )
    assert found.is_faster is faster
