"""Solvers: factorisations and triangular or Toeplitz systems."""
# ruff: noqa: F821 - the names of sizes come from the annotations

import math

import nestor
from benchmarks.polybench.types import real


@nestor.kernel
def cholesky(A: real["N", "N"]):
    """``A = L Lᵀ``: L replaces the lower triangle of A; the upper one is not touched."""
    for i in range(N):
        for j in range(i):
            for k in range(j):
                A[i, j] -= A[i, k] * A[j, k]
            A[i, j] /= A[j, j]
        for k in range(i):
            A[i, i] -= A[i, k] * A[i, k]
        A[i, i] = math.sqrt(A[i, i])


@nestor.kernel
def durbin(r: real["N"], y: real["N"], z: real["N"]):
    """Levinson-Durbin: solve the Yule-Walker system of ``r`` for ``y``; ``z`` is room to work."""
    y[0] = -r[0]
    beta = 1.0
    alpha = -r[0]
    for k in range(1, N):
        beta = (1.0 - alpha * alpha) * beta
        sum = 0.0
        for i in range(k):
            sum += r[k - i - 1] * y[i]
        alpha = -(r[k] + sum) / beta
        for i in range(k):
            z[i] = y[i] + alpha * y[k - i - 1]
        for i in range(k):
            y[i] = z[i]
        y[k] = alpha


@nestor.kernel
def gramschmidt(A: real["M", "N"], R: real["N", "N"], Q: real["M", "N"]):
    """Modified Gram-Schmidt: ``A = Q R`` with orthonormal columns of Q; A is used up."""
    for k in range(N):
        norm = 0.0
        for i in range(M):
            norm += A[i, k] * A[i, k]
        R[k, k] = math.sqrt(norm)
        for i in range(M):
            Q[i, k] = A[i, k] / R[k, k]
        for j in range(k + 1, N):
            R[k, j] = 0.0
            for i in range(M):
                R[k, j] += Q[i, k] * A[i, j]
            for i in range(M):
                A[i, j] = A[i, j] - Q[i, k] * R[k, j]


@nestor.kernel
def lu(A: real["N", "N"]):
    """``A = L U`` in place, the unit diagonal of L not stored; no pivoting."""
    for i in range(N):
        for j in range(i):
            for k in range(j):
                A[i, j] -= A[i, k] * A[k, j]
            A[i, j] /= A[j, j]
        for j in range(i, N):
            for k in range(i):
                A[i, j] -= A[i, k] * A[k, j]


@nestor.kernel
def ludcmp(A: real["N", "N"], b: real["N"], x: real["N"], y: real["N"]):
    """Solve ``A x = b`` by ``A = L U`` in place and two triangular systems."""
    for i in range(N):
        for j in range(i):
            w = A[i, j]
            for k in range(j):
                w -= A[i, k] * A[k, j]
            A[i, j] = w / A[j, j]
        for j in range(i, N):
            w = A[i, j]
            for k in range(i):
                w -= A[i, k] * A[k, j]
            A[i, j] = w
    for i in range(N):
        w = b[i]
        for j in range(i):
            w -= A[i, j] * y[j]
        y[i] = w
    for i in range(N - 1, -1, -1):
        w = y[i]
        for j in range(i + 1, N):
            w -= A[i, j] * x[j]
        x[i] = w / A[i, i]


@nestor.kernel
def trisolv(L: real["N", "N"], x: real["N"], b: real["N"]):
    """Solve ``L x = b``, L lower triangular."""
    for i in range(N):
        x[i] = b[i]
        for j in range(i):
            x[i] -= L[i, j] * x[j]
        x[i] = x[i] / L[i, i]
