"""Kernels that do little run on one thread."""

from __future__ import annotations

import numpy as np

import nestor
from nestor import kernel_native
from nestor.kernel_native import SMALL_INSTANCES, count_instances


@nestor.kernel(threads=2)
def triangle(A: nestor.f64[N, N]):  # noqa: F821
    """Double what is below the diagonal."""
    for i in range(N):  # noqa: F821
        for j in range(i):
            A[i, j] = 2.0 * A[i, j]


def test_instances_are_counted_in_boxes() -> None:
    assert count_instances(triangle.program, {"N": 10}) == 90  # 10 rows, j below 9
    assert count_instances(triangle.program, {"N": 0}) == 0


def test_small_calls_start_no_threads(monkeypatch) -> None:
    triangle(np.ones((8, 8)))  # compiled, which asks for the count of threads as well
    seen: list[int] = []
    asked = kernel_native.thread_count
    monkeypatch.setattr(kernel_native, "thread_count", lambda n: seen.append(n) or asked(n))
    triangle(np.ones((8, 8)))
    assert not seen
    size = int(SMALL_INSTANCES**0.5) + 2
    triangle(np.ones((size, size)))
    assert seen == [2]
