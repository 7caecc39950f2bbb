"""Small kernels to explain and to draw, and a schedule for one of them."""
# ruff: noqa: F821, B007 - sizes come from the annotations; loops give statements their order

import nestor
from nestor.ir.affine import variable
from nestor.ir.schedule import Arrange, Interchange, Parallel, Schedule, Skew, Tile
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence


@nestor.kernel
def jacobi(T: int, A: nestor.f64["N"], B: nestor.f64["N"]):
    """Mean of three neighbours, there and back."""
    for t in range(T):
        for i in range(1, N - 1):
            B[i] = (A[i - 1] + A[i] + A[i + 1]) / 3.0
        for i in range(1, N - 1):
            A[i] = (B[i - 1] + B[i] + B[i + 1]) / 3.0


@nestor.kernel
def seidel(A: nestor.f64["N", "M"]):
    """Each element from two that are done already."""
    for i in range(1, N):
        for j in range(1, M):
            A[i, j] = A[i - 1, j] + A[i, j - 1]


@nestor.kernel(reassociate=True)
def product(C: nestor.f64["N", "M"], A: nestor.f64["N", "K"], B: nestor.f64["K", "M"]):
    """A matrix product."""
    for i in range(N):
        for j in range(M):
            for k in range(K):
                C[i, j] += A[i, k] * B[k, j]


@nestor.kernel
def triangle(L: nestor.f64["N", "N"], x: nestor.f64["N"]):
    """Solve a lower triangular system."""
    for i in range(N):
        for j in range(i):
            x[i] -= L[i, j] * x[j]
        x[i] = x[i] / L[i, i]


@nestor.kernel
def branches(x: nestor.f64["N"], y: nestor.f64["N"]):
    """Conditions, and functions with a name."""
    for i in range(N):
        if i % 2 == 0 and i + 1 < N:
            y[i] = max(x[i], x[i + 1]) - min(x[i], 0.5) * -x[i]
        y[i] = abs(y[i]) if y[i] < 0.25 else y[i] / (1.0 + x[i])


@nestor.kernel
def crowd(A: nestor.f64["N", "N"], B: nestor.f64["N", "N"], C: nestor.f64["N", "N"]):
    """More statements of one depth than a picture has marks."""
    for i in range(N):
        for j in range(N):
            A[i, j] = 1.0
            B[i, j] = A[i, j]
            C[i, j] = B[i, j]
            A[i, j] = C[i, j]
            B[i, j] = A[i, j] + C[i, j]


@nestor.kernel
def line(x: nestor.f64["N"]):
    """Nothing to draw: one loop."""
    for i in range(1, N):
        x[i] = x[i - 1] + 1.0


@nestor.kernel
def gather(x: nestor.f64["N", "M"], at: nestor.i64["N"]):
    """A row that data chooses."""
    for i in range(N):
        for j in range(M):
            x[at[i], j] += 1.0


@nestor.kernel
def beyond(x: nestor.f64["N"]):
    """Out of bounds whatever N is."""
    for i in range(N):
        x[i + N] = 0.0


def time_skewed(time_tile: int = 32, tile: int = 64) -> Schedule:
    """``jacobi`` in tiles along the dependences, diagonals of them in parallel."""
    t, i = variable("t"), variable("i")
    loops = (
        BandLoop(name="t", rows=(("S0", t), ("S1", t))),
        BandLoop(name="x", rows=(("S0", i + t * 2), ("S1", i + t * 2 + 1))),
    )
    child = Sequence(children=(Leaf(statement="S0"), Leaf(statement="S1")))
    return (
        Arrange(tree=Band(loops=loops, child=child)),
        Tile(loop="t", size=time_tile),
        Tile(loop="x", size=tile),
        Interchange(loops=("t.o", "x.o", "t.i", "x.i")),
        Skew(loop="t.o", by="x.o", factor=1),
        Parallel(loop="x.o"),
    )
