"""Loop kernels give the bits of the same function run by Python, interpreted and as native code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import nestor
from tests.helpers.kernel_zoo import CASES
from tests.helpers.python_kernels import assert_same


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{k}-{kernel.name}" for k, (kernel, _) in enumerate(CASES)]
)
def test_three_ways_agree(case: tuple[nestor.Kernel, Callable[[], tuple[Any, ...]]]) -> None:
    kernel, make = case
    assert_same(kernel, *make())
