"""Chains of products (PolyBench's group *kernels*)."""
# ruff: noqa: F821 - the names of sizes come from the annotations

import nestor
from benchmarks.polybench.types import real


@nestor.kernel
def mm2(
    alpha: real,
    beta: real,
    tmp: real["NI", "NJ"],
    A: real["NI", "NK"],
    B: real["NK", "NJ"],
    C: real["NJ", "NL"],
    D: real["NI", "NL"],
):
    """``D = alpha A B C + beta D``."""
    for i in range(NI):
        for j in range(NJ):
            tmp[i, j] = 0.0
            for k in range(NK):
                tmp[i, j] += alpha * A[i, k] * B[k, j]
    for i in range(NI):
        for j in range(NL):
            D[i, j] *= beta
            for k in range(NJ):
                D[i, j] += tmp[i, k] * C[k, j]


@nestor.kernel
def mm3(
    E: real["NI", "NJ"],
    A: real["NI", "NK"],
    B: real["NK", "NJ"],
    F: real["NJ", "NL"],
    C: real["NJ", "NM"],
    D: real["NM", "NL"],
    G: real["NI", "NL"],
):
    """``G = (A B) (C D)``."""
    for i in range(NI):
        for j in range(NJ):
            E[i, j] = 0.0
            for k in range(NK):
                E[i, j] += A[i, k] * B[k, j]
    for i in range(NJ):
        for j in range(NL):
            F[i, j] = 0.0
            for k in range(NM):
                F[i, j] += C[i, k] * D[k, j]
    for i in range(NI):
        for j in range(NL):
            G[i, j] = 0.0
            for k in range(NJ):
                G[i, j] += E[i, k] * F[k, j]


@nestor.kernel
def atax(A: real["M", "N"], x: real["N"], y: real["N"], tmp: real["M"]):
    """``y = Aᵀ (A x)``."""
    for i in range(N):
        y[i] = 0.0
    for i in range(M):
        tmp[i] = 0.0
        for j in range(N):
            tmp[i] = tmp[i] + A[i, j] * x[j]
        for j in range(N):
            y[j] = y[j] + A[i, j] * tmp[i]


@nestor.kernel
def bicg(A: real["N", "M"], s: real["M"], q: real["N"], p: real["M"], r: real["N"]):
    """``s = Aᵀ r`` and ``q = A p`` in one sweep over A."""
    for i in range(M):
        s[i] = 0.0
    for i in range(N):
        q[i] = 0.0
        for j in range(M):
            s[j] = s[j] + r[i] * A[i, j]
            q[i] = q[i] + A[i, j] * p[j]


@nestor.kernel
def doitgen(A: real["NR", "NQ", "NP"], C4: real["NP", "NP"], sum: real["NP"]):
    """Multiply each row ``A[r, q, :]`` by ``C4``, in place."""
    for r in range(NR):
        for q in range(NQ):
            for p in range(NP):
                sum[p] = 0.0
                for s in range(NP):
                    sum[p] += A[r, q, s] * C4[s, p]
            for p in range(NP):
                A[r, q, p] = sum[p]


@nestor.kernel
def mvt(x1: real["N"], x2: real["N"], y1: real["N"], y2: real["N"], A: real["N", "N"]):
    """``x1 += A y1`` and ``x2 += Aᵀ y2``."""
    for i in range(N):
        for j in range(N):
            x1[i] = x1[i] + A[i, j] * y1[j]
    for i in range(N):
        for j in range(N):
            x2[i] = x2[i] + A[j, i] * y2[j]
