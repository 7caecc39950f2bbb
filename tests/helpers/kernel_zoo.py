"""Loop kernels of every construct of the language, with arguments; contraction is off."""
# ruff: noqa: F821, UP037

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import nestor

SCALE = 3
THIRD = 1.0 / 3.0

kernel = nestor.kernel(contract=False)


@kernel
def gemm(
    alpha: nestor.f64,
    beta: nestor.f64,
    A: nestor.f64["NI", "NK"],
    B: nestor.f64["NK", "NJ"],
    C: nestor.f64["NI", "NJ"],
):
    """Rows are scaled, then accumulated."""
    for i in range(NI):
        for j in range(NJ):
            C[i, j] = C[i, j] * beta
        for k in range(NK):
            for j in range(NJ):
                C[i, j] += alpha * A[i, k] * B[k, j]


@kernel
def stencil(T: int, A: nestor.f64["N"], B: nestor.f64["N"]):
    for _t in range(T):
        for i in range(1, N - 1):
            B[i] = THIRD * (A[i - 1] + A[i] + A[i + 1])
        for i in range(1, N - 1):
            A[i] = THIRD * (B[i - 1] + B[i] + B[i + 1])


@kernel
def in_place(T: int, A: nestor.f64["N", "N"]):
    for _t in range(T):
        for i in range(1, N - 1):
            for j in range(1, N - 1):
                A[i][j] = (A[i - 1][j] + A[i][j - 1] + A[i][j] + A[i][j + 1] + A[i + 1][j]) / 5.0


@kernel
def gram_schmidt(A: nestor.f64["M", "N"], R: nestor.f64["N", "N"], Q: nestor.f64["M", "N"]):
    for k in range(N):
        nrm = 0.0
        for i in range(M):
            nrm += A[i, k] * A[i, k]
        R[k, k] = math.sqrt(nrm)
        for i in range(M):
            Q[i, k] = A[i, k] / R[k, k]
        for j in range(k + 1, N):
            R[k, j] = 0.0
            for i in range(M):
                R[k, j] += Q[i, k] * A[i, j]
            for i in range(M):
                A[i, j] -= Q[i, k] * R[k, j]


@kernel
def cholesky(A: nestor.f64["N", "N"]):
    for i in range(N):
        for j in range(i):
            for k in range(j):
                A[i, j] -= A[i, k] * A[j, k]
            A[i, j] /= A[j, j]
        for k in range(i):
            A[i, i] -= A[i, k] * A[i, k]
        A[i, i] = np.sqrt(A[i, i])


@kernel
def filters(x: nestor.f32["N", "M"], y: nestor.f32["N", "M"]):
    """Scalars carried from one iteration to the next, in both directions."""
    k = (1.0 - math.exp(-0.25)) / (1.0 + 2.0 * 0.25)
    for i in range(N):
        ym1 = 0.0
        xm1 = 0.0
        for j in range(M):
            y[i, j] = k * x[i, j] + k * xm1 + 0.5 * ym1
            xm1 = x[i, j]
            ym1 = y[i, j]
    for i in range(N):
        yp1 = 0.0
        for j in range(M - 1, -1, -1):
            y[i, j] = y[i, j] + 0.25 * yp1
            yp1 = y[i, j]


@kernel
def triangle_sums(w: nestor.f64["N"], A: nestor.f64["N", "N"]):
    """A name that is used for unrelated values."""
    for i in range(N):
        s = 0.0
        for j in range(i + 1):
            s += A[i, j]
        w[i] = s
    for i in range(N):
        s = w[i]
        for j in range(i, N):
            s = s * 0.5 + A[j, i]
        t = s * s
        w[i] = t - s


@kernel
def strided(a: nestor.f64["N"], b: nestor.f64["N"]):
    for i in range(0, N, 3):
        a[i] = b[i] * 2.0
    for i in range(N - 1, 0, -2):
        a[i] += b[i - 1]
    for i in range(1, N, 2):
        for j in range(i, N, 4):
            b[j] = a[j] + b[i] / (j + 1)


@kernel
def bounds(A: nestor.f64["N", "M"], h: int):
    """min, max, // and % in bounds and conditions."""
    for i in range(N):
        for j in range(max(0, i - h), min(M, i + h + 1)):
            A[i, j] += 1.0
        for j in range(min(i, M) - 1, -1, -1):
            A[i, j] *= 1.5
        for j in range(M // 2):
            if j % 3 == i % 3:
                A[i, 2 * j] -= 0.25
            elif j % 3 != 1 and i > j:
                A[i, 2 * j + 1] += 0.125
            else:
                A[i, j] = -A[i, j]


@kernel
def disjunctions(A: nestor.f64["N", "M"]):
    for i in range(N):
        for j in range(M):
            if i == 0 or j == 0 or i == N - 1 or j == M - 1:
                A[i, j] = 0.0
            elif not (i < j or j > 3):
                A[i, j] += 1.0
            if 1 < i <= j < M - 2:
                A[i, j] *= 2.0
            A[i, j] += A[i - 1, j] if i > 0 else 7.0
            A[i, j] += 1.0 if i == j else A[j, j] if j < N and i != j else 0.5


@kernel
def data_conditions(x: nestor.f64["N"], y: nestor.f64["N"], out: nestor.i64["N"]):
    for i in range(N):
        if x[i] > 0.5:
            y[i] = x[i]
            x[i] = 0.0
            out[i] = 1
        elif x[i] < -0.5 or y[i] == 0.0:
            t = x[i] * x[i]
            y[i] = t + 1.0
            out[i] += 2
        else:
            y[i] -= 1.0
            if y[i] > 0.0 and i > 2:
                y[i] = -y[i - 3]
        z = 0.0
        if y[i] > 0.0:
            z = y[i] * 2.0
        x[i] += z
        if x[i] > 0.25:
            v = 1.0
        else:
            v = -x[i]
        y[i] += v


@kernel
def running_max(x: nestor.f64["N"], where: nestor.i64["K"], best: nestor.f64["K"]):
    m = x[0]
    at = 0
    for i in range(N):
        if x[i] > m:
            m = x[i]
            at = i
    best[0] = m
    where[0] = at


@kernel
def gather(x: nestor.f64["N"], idx: nestor.i64["M"], y: nestor.f64["M"], count: nestor.i32["N"]):
    for i in range(M):
        y[i] = x[idx[i]] * 2.0
        count[idx[i]] += 1
    for i in range(M):
        p = idx[i]
        if p > 1:
            y[i] += x[p - 1]
        x[p] = x[p] + y[i]


@kernel
def integers(a: nestor.i64["N"], b: nestor.i64["N"], c: nestor.i32["N"], n: int):
    for i in range(N):
        a[i] = a[i] // 3 + b[i] % 5 - i * n
        b[i] = (a[i] & 255) ^ (b[i] << 2)
        c[i] = max(c[i], 3) - min(i, c[i], n) + abs(c[i] - 7)
        a[i] += i // 2 + n % 3 + N * n


@kernel
def mixed(x: nestor.f32["N"], y: nestor.f64["N"], n: nestor.i32["N"], a: float, s: nestor.f32):
    for i in range(N):
        y[i] = x[i] * 0.1 + y[i] * a
        x[i] = x[i] * a + s * i
        x[i] += n[i] * 0.5
        y[i] -= n[i] / 3
        x[i] = x[i] ** 2 + 1 / (i + 1)
        n[i] = n[i] + i


@kernel
def functions(x: nestor.f64["N"], y: nestor.f64["N"], z: nestor.f64["N"]):
    for i in range(N):
        y[i] = np.sqrt(abs(x[i])) + math.floor(x[i]) - np.ceil(x[i]) + math.fabs(x[i])
        y[i] = np.where(x[i] > 0, y[i], -y[i]) + np.minimum(x[i], y[i]) * np.maximum(x[i], 0.0)
        z[i] = float(i) + int(x[i]) + np.float64(i) / len(x) + x.shape[0] + round(x[i])
        z[i] += x[i] // 0.75 + x[i] % 0.75 + nestor.f64(np.float32(x[i]))
        z[i] = z[i] if x[i] != 0.0 and not y[i] < 0.0 else y[i]


@kernel
def local_arrays(A: nestor.f64["N", "M"], y: nestor.f64["M"]):
    tmp = nestor.zeros((N,), nestor.f64)
    square = np.empty((M, M), np.float64)
    for i in range(N):
        for j in range(M):
            tmp[i] = tmp[i] + A[i, j] * y[j]
    for i in range(M):
        row = nestor.zeros(M + 1, nestor.f64)
        for j in range(M):
            row[j + 1] = row[j] + y[j]
        for j in range(M):
            square[i, j] = row[j + 1] * y[i]
    for i in range(N):
        for j in range(M):
            A[i, j] = tmp[i] + square[j, j]


@kernel
def scale_rows(a: nestor.f64, row: nestor.f64["L"], n: int):
    s = a * 2.0
    for i in range(n):
        row[i] *= s
        s = s + 1.0
    a = s


@kernel
def add_outer(x: nestor.f64["P"], y: nestor.f64["Q"], A: nestor.f64["P", "Q"]):
    for i in range(P):
        for j in range(Q):
            A[i, j] += x[i] * y[j]


@kernel
def calls(A: nestor.f64["N", "M"], x: nestor.f64["M"]):
    """Other kernels, inlined; rows as arguments."""
    for i in range(N):
        scale_rows(x[0] + 1.0, A[i], M // 2)
    square = nestor.zeros((M, M), nestor.f64)
    add_outer(A[0], y=x, A=square)
    for j in range(M):
        x[j] = square[j, M - 1 - j]


@kernel
def swaps(x: nestor.f64["N"], y: nestor.f64["N"]):
    for i in range(N):
        x[i], y[i] = y[i], x[i] + 1.0
    a = b = 0.0
    for i in range(N):
        a, b = b + x[i], a - y[i]
        x[i] = a
        y[i] = b


@kernel
def constants(x: nestor.f64["N"]):
    n2 = N // 2
    m = SCALE
    h: nestor.f64 = 0.1
    for i in range(n2):
        j = 2 * i
        j = j + 1
        x[j] = x[j - m + 2] * h
    x[-1] = x[N - 1] + len(x)


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _f64(*shape: int) -> np.ndarray:
    return _rng().standard_normal(shape)


def _f32(*shape: int) -> np.ndarray:
    return _f64(*shape).astype(np.float32)


def _ints(high: int, *shape: int, dtype: Any = np.int64) -> np.ndarray:
    return _rng().integers(0, high, shape).astype(dtype)


def _spd(n: int) -> np.ndarray:
    a = _f64(n, n)
    return a @ a.T + n * np.eye(n)


CASES: list[tuple[nestor.Kernel, Callable[[], tuple[Any, ...]]]] = [
    (gemm, lambda: (1.5, 0.25, _f64(5, 7), _f64(7, 6), _f64(5, 6))),
    (gemm, lambda: (1.5, 0.25, _f64(1, 1), _f64(1, 1), _f64(1, 1))),
    (gemm, lambda: (1.5, 0.25, _f64(0, 3), _f64(3, 2), _f64(0, 2))),
    (stencil, lambda: (3, _f64(12), _f64(12))),
    (stencil, lambda: (3, _f64(1), _f64(1))),
    (stencil, lambda: (0, _f64(5), _f64(5))),
    (in_place, lambda: (2, _f64(8, 8))),
    (gram_schmidt, lambda: (_f64(7, 5), np.zeros((5, 5)), np.zeros((7, 5)))),
    (cholesky, lambda: (_spd(8),)),
    (filters, lambda: (_f32(5, 9), np.zeros((5, 9), np.float32))),
    (triangle_sums, lambda: (_f64(7), _f64(7, 7))),
    (strided, lambda: (_f64(13), _f64(13))),
    (strided, lambda: (_f64(1), _f64(1))),
    (bounds, lambda: (_f64(7, 9), 2)),
    (bounds, lambda: (_f64(9, 4), 0)),
    (disjunctions, lambda: (_f64(8, 6),)),
    (disjunctions, lambda: (_f64(1, 1),)),
    (data_conditions, lambda: (_f64(40), _f64(40)[::-1].copy(), _ints(9, 40))),
    (running_max, lambda: (_f64(33), _ints(5, 1), _f64(1))),
    (gather, lambda: (_f64(9), _ints(9, 14), _f64(14), _ints(4, 9, dtype=np.int32))),
    (integers, lambda: (_ints(99, 9) - 50, _ints(99, 9), _ints(20, 9, dtype=np.int32), 4)),
    (mixed, lambda: (_f32(9), _f64(9), _ints(9, 9, dtype=np.int32), 0.3, 0.7)),
    (functions, lambda: (_f64(16) * 3, _f64(16), _f64(16))),
    (local_arrays, lambda: (_f64(5, 6), _f64(6))),
    (calls, lambda: (_f64(5, 6), _f64(6))),
    (swaps, lambda: (_f64(9), _f64(9)[::-1].copy())),
    (constants, lambda: (_f64(11),)),
]
"""Kernels and a function that makes arguments for each."""
