"""A loop kernel written in Python: parsed when it is decorated, native code at its first call."""

from __future__ import annotations

import numpy as np

import nestor


@nestor.kernel(reassociate=True)
def smooth(steps: int, A: nestor.f64[N, M], B: nestor.f64[N, M]):  # noqa: F821
    """Average each inner cell with its four neighbours, back and forth between two arrays."""
    for _ in range(steps):
        for i in range(1, N - 1):  # noqa: F821
            for j in range(1, M - 1):  # noqa: F821
                B[i, j] = 0.2 * (A[i, j] + A[i, j - 1] + A[i, j + 1] + A[i - 1, j] + A[i + 1, j])
        for i in range(1, N - 1):  # noqa: F821
            for j in range(1, M - 1):  # noqa: F821
                A[i, j] = 0.2 * (B[i, j] + B[i, j - 1] + B[i, j + 1] + B[i - 1, j] + B[i + 1, j])


def main() -> None:
    """Run it, and compare with the interpreter."""
    start = np.random.default_rng(0).random((20, 30))
    a, b = start.copy(), start.copy()
    smooth(3, a, b)
    expected, other = start.copy(), start.copy()
    smooth.interpret(3, expected, other)
    print(f"largest difference: {np.abs(a - expected).max():.1e}")
    print(smooth.report())


if __name__ == "__main__":
    main()
