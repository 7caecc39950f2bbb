"""BLAS: products of dense, symmetric and triangular matrices, and of matrices and vectors."""
# ruff: noqa: F821 - the names of sizes come from the annotations

import nestor
from benchmarks.polybench.types import real


@nestor.kernel
def gemm(alpha: real, beta: real, C: real["NI", "NJ"], A: real["NI", "NK"], B: real["NK", "NJ"]):
    """``C = alpha A B + beta C``."""
    for i in range(NI):
        for j in range(NJ):
            C[i, j] *= beta
        for k in range(NK):
            for j in range(NJ):
                C[i, j] += alpha * A[i, k] * B[k, j]


@nestor.kernel
def gemver(
    alpha: real,
    beta: real,
    A: real["N", "N"],
    u1: real["N"],
    v1: real["N"],
    u2: real["N"],
    v2: real["N"],
    w: real["N"],
    x: real["N"],
    y: real["N"],
    z: real["N"],
):
    """``A += u1 v1ᵀ + u2 v2ᵀ``, then ``x += beta Aᵀ y + z`` and ``w += alpha A x``."""
    for i in range(N):
        for j in range(N):
            A[i, j] = A[i, j] + u1[i] * v1[j] + u2[i] * v2[j]
    for i in range(N):
        for j in range(N):
            x[i] = x[i] + beta * A[j, i] * y[j]
    for i in range(N):
        x[i] = x[i] + z[i]
    for i in range(N):
        for j in range(N):
            w[i] = w[i] + alpha * A[i, j] * x[j]


@nestor.kernel
def gesummv(
    alpha: real,
    beta: real,
    A: real["N", "N"],
    B: real["N", "N"],
    tmp: real["N"],
    x: real["N"],
    y: real["N"],
):
    """``y = alpha A x + beta B x``."""
    for i in range(N):
        tmp[i] = 0.0
        y[i] = 0.0
        for j in range(N):
            tmp[i] = A[i, j] * x[j] + tmp[i]
            y[i] = B[i, j] * x[j] + y[i]
        y[i] = alpha * tmp[i] + beta * y[i]


@nestor.kernel
def symm(alpha: real, beta: real, C: real["M", "N"], A: real["M", "M"], B: real["M", "N"]):
    """``C = alpha A B + beta C``, A symmetric of which the lower triangle is read."""
    for i in range(M):
        for j in range(N):
            below = 0.0
            for k in range(i):
                C[k, j] += alpha * B[i, j] * A[i, k]
                below += B[k, j] * A[i, k]
            C[i, j] = beta * C[i, j] + alpha * B[i, j] * A[i, i] + alpha * below


@nestor.kernel
def syr2k(alpha: real, beta: real, C: real["N", "N"], A: real["N", "M"], B: real["N", "M"]):
    """``C = alpha (A Bᵀ + B Aᵀ) + beta C``, the lower triangle of C."""
    for i in range(N):
        for j in range(i + 1):
            C[i, j] *= beta
        for k in range(M):
            for j in range(i + 1):
                C[i, j] += A[j, k] * alpha * B[i, k] + B[j, k] * alpha * A[i, k]


@nestor.kernel
def syrk(alpha: real, beta: real, C: real["N", "N"], A: real["N", "M"]):
    """``C = alpha A Aᵀ + beta C``, the lower triangle of C."""
    for i in range(N):
        for j in range(i + 1):
            C[i, j] *= beta
        for k in range(M):
            for j in range(i + 1):
                C[i, j] += alpha * A[i, k] * A[j, k]


@nestor.kernel
def trmm(alpha: real, A: real["M", "M"], B: real["M", "N"]):
    """``B = alpha Aᵀ B``, A lower triangular with ones on its diagonal."""
    for i in range(M):
        for j in range(N):
            for k in range(i + 1, M):
                B[i, j] += A[k, i] * B[k, j]
            B[i, j] = alpha * B[i, j]
