"""The enumeration oracle itself: it is quick where it can be, and says so where it cannot."""

from __future__ import annotations

import time

import pytest

from tests.legality import oracle
from tests.legality.kernels import box, matmul


def test_too_many_points_are_not_enumerated() -> None:
    with pytest.raises(oracle.TooLarge):
        list(oracle.domain_points(box(i=3, j=1000, k=1000), {}))


def test_a_reduction_is_enumerated_once() -> None:
    """Not once for each of its output points."""
    oracle.forget()
    started = time.process_time()
    memory = oracle.run_kernel(matmul(40, 40, 20), {})
    assert len({key for key in memory if key[0] == "D"}) == 1600
    assert time.process_time() - started < 10  # was minutes
