"""Small kernels and loop nests for the tests of the checker."""

from __future__ import annotations

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Expr, Index, IndexExpr, Load, Var, binary, const, unary
from nestor.ir.loopnest import Alloc, Block, Buffer, Compute, Guard, Loop, LoopNest, Node, Store
from nestor.ir.monoid import Monoid, argmax_of, max_of, sum_of, welford_of
from nestor.ir.program import (
    Domain,
    IndexRange,
    Order,
    Program,
    Reduction,
    Role,
    Statement,
    Symbol,
    Tensor,
    Write,
    box,
)
from nestor.ir.types import DType

F32, I64 = DType.f32, DType.i64
Ix = Affine | int | str


def tensor(
    name: str, *shape: Ix, role: Role = "input", dtype: DType = F32, alias_of: str | None = None
) -> Tensor:
    return Tensor(
        name=name, shape=tuple(map(affine, shape)), dtype=dtype, role=role, alias_of=alias_of
    )


def load(name: str, *indices: Ix | Load, dtype: DType = F32) -> Load:
    return Load(tensor=name, indices=tuple(map(_index, indices)), dtype=dtype)


def masked(name: str, indices: tuple[Ix, ...], predicate: tuple[Affine, ...]) -> Load:
    return Load(
        tensor=name,
        indices=tuple(map(affine, indices)),
        dtype=F32,
        predicate=predicate,
        other=const(0, F32),
    )


def _index(i: Ix | Load) -> IndexExpr:
    return i if isinstance(i, Load) else affine(i)


def write(name: str, *indices: Ix | Load) -> Write:
    return Write(tensor=name, indices=tuple(map(_index, indices)))


def state(c: int, dtype: DType = F32) -> Var:
    return Var(name=f"s{c}", dtype=dtype)


def reduce(monoid: Monoid, *indices: str, **more: object) -> Reduction:
    final = more.pop("final", tuple(state(c, d) for c, d in enumerate(monoid.dtypes)))
    return Reduction(indices=indices, monoid=monoid, final=final, **more)  # type: ignore[arg-type]


def statement(
    name: str,
    domain: Domain,
    writes: Write | tuple[Write, ...],
    *elements: Expr,
    order: Order = (0,),
    reduction: Reduction | None = None,
    scatter: str | None = None,
) -> Statement:
    return Statement(
        name=name,
        domain=domain,
        order=order,
        writes=writes if isinstance(writes, tuple) else (writes,),
        elements=elements,
        reduction=reduction,
        scatter=scatter,  # type: ignore[arg-type]
    )


def add(*xs: Expr) -> Expr:
    total = xs[0]
    for x in xs[1:]:
        total = binary("add", total, x)
    return total


def mul(a: Expr, b: Expr) -> Expr:
    return binary("mul", a, b)


i, j, k, m, n, t = map(variable, "ijkmnt")


# Kernels


def matmul(M: Ix = 5, N: Ix = 6, K: int = 3, symbols: tuple[Symbol, ...] = ()) -> Program:
    """``D = exp(A @ B + bias)``."""
    return Program(
        name="matmul",
        symbols=symbols,
        tensors=(
            tensor("A", M, K), tensor("B", K, N, role="parameter"), tensor("bias", N),
            tensor("C", M, N, role="temp"), tensor("D", M, N, role="output"),
        ),
        statements=(
            statement(
                "C", box(m=M, n=N, k=K), write("C", "m", "n"),
                mul(load("A", "m", "k"), load("B", "k", "n")),
                reduction=reduce(sum_of(F32), "k"),
            ),
            statement(
                "D", box(m=M, n=N), write("D", "m", "n"),
                unary("exp", add(load("C", "m", "n"), load("bias", "n"))), order=(1,),
            ),
        ),
    )  # fmt: skip


def seidel(T: int = 3, N: int = 6) -> Program:
    """An in-place stencil: every loop carries a dependence."""
    domain = Domain(
        ranges=(
            IndexRange(name="t", lower=affine(0), upper=affine(T)),
            IndexRange(name="i", lower=affine(1), upper=affine(N - 1)),
            IndexRange(name="j", lower=affine(1), upper=affine(N - 1)),
        )
    )
    return Program(
        name="seidel",
        tensors=(tensor("A", N, N, role="inout"),),
        statements=(
            statement(
                "S", domain, write("A", "i", "j"),
                add(load("A", i - 1, j), load("A", i - 1, j + 1), load("A", i, j - 1),
                    load("A", i, j), load("A", i, j + 1), load("A", i + 1, j)),
                order=(0, "t", 0, "i", 0, "j", 0),
            ),
        ),
    )  # fmt: skip


def jacobi(T: int = 3, N: int = 7) -> Program:
    """Two arrays in turn: only the time loop carries dependences."""
    domain = Domain(
        ranges=(
            IndexRange(name="t", lower=affine(0), upper=affine(T)),
            IndexRange(name="i", lower=affine(1), upper=affine(N - 1)),
        )
    )
    return Program(
        name="jacobi",
        tensors=(tensor("A", N, role="inout"), tensor("B", N, role="inout")),
        statements=(
            statement("S", domain, write("B", "i"),
                      add(load("A", i - 1), load("A", i), load("A", i + 1)),
                      order=(0, "t", 0)),
            statement("R", domain, write("A", "i"), load("B", "i"), order=(0, "t", 1)),
        ),
    )  # fmt: skip


def softmax(R: Ix = 3, N: Ix = 6, symbols: tuple[Symbol, ...] = ()) -> Program:
    """Row softmax: maximum, exponentials, sum, quotient."""
    return Program(
        name="softmax",
        symbols=symbols,
        tensors=(
            tensor("X", R, N), tensor("Y", R, N, role="output"),
            tensor("mx", R, role="temp"), tensor("ex", R, N, role="temp"),
            tensor("sm", R, role="temp"),
        ),
        statements=(
            statement("M", box(i=R, j=N), write("mx", "i"), load("X", "i", "j"),
                      reduction=reduce(max_of(F32), "j")),
            statement("E", box(i=R, j=N), write("ex", "i", "j"),
                      unary("exp", binary("sub", load("X", "i", "j"), load("mx", "i"))),
                      order=(1,)),
            statement("Z", box(i=R, j=N), write("sm", "i"), load("ex", "i", "j"), order=(2,),
                      reduction=reduce(sum_of(F32), "j")),
            statement("Q", box(i=R, j=N), write("Y", "i", "j"),
                      binary("div", load("ex", "i", "j"), load("sm", "i")), order=(3,)),
        ),
    )  # fmt: skip


def layernorm(R: int = 3, N: int = 6) -> Program:
    """Welford statistics and normalisation."""
    x = load("X", "i", "j")
    return Program(
        name="layernorm",
        tensors=(
            tensor("X", R, N), tensor("Y", R, N, role="output"), tensor("mean", R, role="temp"),
            tensor("var", R, role="temp"),
        ),
        statements=(
            statement(
                "W", box(i=R, j=N), (write("mean", "i"), write("var", "i")),
                x, const(0, F32), const(1, F32),
                reduction=reduce(welford_of(F32), "j",
                                 final=(state(0), binary("div", state(1), state(2)))),
            ),
            statement("Y", box(i=R, j=N), write("Y", "i", "j"),
                      mul(binary("sub", x, load("mean", "i")), load("var", "i")), order=(1,)),
        ),
    )  # fmt: skip


def convolution(N: int = 2, C: int = 2, O: int = 3, H: int = 5, stride: int = 1) -> Program:  # noqa: E741
    """Padded 1-D convolution and an activation."""
    h = variable("h") * stride + variable("r") - 1
    out = (H + 2 - 3) // stride + 1
    return Program(
        name="convolution",
        tensors=(
            tensor("X", N, C, H), tensor("W", O, C, 3, role="parameter"),
            tensor("Y", N, O, out, role="temp"), tensor("Z", N, O, out, role="output"),
        ),
        statements=(
            statement(
                "Y", box(n=N, o=O, h=out, c=C, r=3), write("Y", "n", "o", "h"),
                mul(masked("X", ("n", "c", h), (h, H - 1 - h)), load("W", "o", "c", "r")),
                reduction=reduce(sum_of(F32), "c", "r"),
            ),
            statement("Z", box(n=N, o=O, h=out), write("Z", "n", "o", "h"),
                      unary("exp", load("Y", "n", "o", "h")), order=(1,)),
        ),
    )  # fmt: skip


def recurrence(T: int = 3, B: int = 2, H: int = 4) -> Program:
    """``h[t] = tanh(x[t] + U h[t-1])``: a ``seq t`` region of a reduction and a pointwise."""
    past = masked("H", (t - 1, "b", "k"), (t - 1,))
    return Program(
        name="recurrence",
        tensors=(
            tensor("X", T, B, H), tensor("U", H, H, role="parameter"),
            tensor("G", T, B, H, role="temp"), tensor("H", T, B, H, role="output"),
        ),
        statements=(
            statement("G", box(t=T, b=B, j=H, k=H), write("G", "t", "b", "j"),
                      mul(past, load("U", "j", "k")), order=(0, "t", 0),
                      reduction=reduce(sum_of(F32), "k")),
            statement("H", box(t=T, b=B, j=H), write("H", "t", "b", "j"),
                      unary("tanh", add(load("X", "t", "b", "j"), load("G", "t", "b", "j"))),
                      order=(0, "t", 1)),
        ),
    )  # fmt: skip


def in_place_recurrence(T: int = 3, H: int = 4) -> Program:
    """The same with one state vector that every step overwrites, and a temp reused by each step."""
    return Program(
        name="in_place_recurrence",
        tensors=(
            tensor("X", T, H), tensor("U", H, H, role="parameter"),
            tensor("G", H, role="temp"), tensor("h", H, role="inout"),
        ),
        statements=(
            statement("G", box(t=T, j=H, k=H), write("G", "j"),
                      mul(load("h", "k"), load("U", "j", "k")), order=(0, "t", 0),
                      reduction=reduce(sum_of(F32), "k")),
            statement("H", box(t=T, j=H), write("h", "j"),
                      add(load("X", "t", "j"), load("G", "j")), order=(0, "t", 1)),
        ),
    )  # fmt: skip


def cumsum(R: int = 3, N: int = 5) -> Program:
    """A running sum along rows, and a use of it."""
    return Program(
        name="cumsum",
        tensors=(tensor("X", R, N), tensor("S", R, N, role="temp"),
                 tensor("Y", R, N, role="output")),
        statements=(
            statement("S", box(i=R, j=N), write("S", "i", "j"), load("X", "i", "j"),
                      reduction=reduce(sum_of(F32), "j", scan=True)),
            statement("Y", box(i=R, j=N), write("Y", "i", "j"), unary("exp", load("S", "i", "j")),
                      order=(1,)),
        ),
    )  # fmt: skip


def gather(R: int = 4, N: int = 3) -> Program:
    """Rows of a computed table picked by an index tensor."""
    return Program(
        name="gather",
        tensors=(tensor("X", 4, N), tensor("ids", R, dtype=I64), tensor("T", 4, N, role="temp"),
                 tensor("Y", R, N, role="output")),
        statements=(
            statement("T", box(i=4, j=N), write("T", "i", "j"), unary("exp", load("X", "i", "j"))),
            statement("Y", box(i=R, j=N), write("Y", "i", "j"),
                      load("T", load("ids", "i", dtype=I64), "j"), order=(1,)),
        ),
    )  # fmt: skip


def index_add(R: int = 4, N: int = 3) -> Program:
    """``Y[ids[i], j] += X[i, j]``."""
    return Program(
        name="index_add",
        tensors=(tensor("X", R, N), tensor("ids", R, dtype=I64), tensor("Y", 4, N, role="inout")),
        statements=(
            statement("A", box(i=R, j=N), write("Y", load("ids", "i", dtype=I64), "j"),
                      load("X", "i", "j"), reduction=reduce(sum_of(F32), "i", into=True)),
        ),
    )  # fmt: skip


def scatter(R: int = 4, N: int = 3) -> Program:
    """``Y[ids[i], j] = X[i, j]``, the last write wins."""
    return Program(
        name="scatter",
        tensors=(tensor("X", R, N), tensor("ids", R, dtype=I64), tensor("Y", 4, N, role="inout")),
        statements=(
            statement("A", box(i=R, j=N), write("Y", load("ids", "i", dtype=I64), "j"),
                      load("X", "i", "j"), scatter="last"),
        ),
    )  # fmt: skip


def argmax(R: int = 3, N: int = 6) -> Program:
    """The position of the greatest element, and the sum added to a target."""
    return Program(
        name="argmax",
        tensors=(tensor("X", R, N), tensor("P", R, dtype=I64, role="output"),
                 tensor("V", R, role="inout")),
        statements=(
            statement("P", box(i=R, j=N), write("P", "i"), load("X", "i", "j"), Index(value=j),
                      reduction=reduce(argmax_of(F32), "j", final=(state(1, I64),))),
            statement("V", box(i=R, j=N), write("V", "i"), load("X", "i", "j"), order=(1,),
                      reduction=reduce(sum_of(F32), "j", into=True)),
        ),
    )  # fmt: skip


def triangle(N: int = 5) -> Program:
    """A triangular domain with a constraint, and a shifted consumer."""
    domain = Domain(
        ranges=(
            IndexRange(name="i", lower=affine(0), upper=affine(N)),
            IndexRange(name="j", lower=affine(0), upper=i + 1),
        ),
        constraints=(i + j - 1,),
    )
    shifted = Domain(ranges=(IndexRange(name="i", lower=affine(1), upper=affine(N)),))
    return Program(
        name="triangle",
        tensors=(tensor("X", N, N), tensor("Y", N, role="temp"), tensor("Z", N, role="output")),
        statements=(
            statement("Y", domain, write("Y", "i"), load("X", "i", "j"),
                      reduction=reduce(sum_of(F32), "j")),
            statement("Z", shifted, write("Z", "i"), add(load("Y", i), load("Y", i - 1)),
                      order=(1,)),
        ),
    )  # fmt: skip


def pipeline(N: int = 8) -> Program:
    """Pointwise producers with shifted uses, an alias, and a concatenation by predicates."""
    return Program(
        name="pipeline",
        tensors=(
            tensor("X", N), tensor("A", N, role="temp"), tensor("B", N, role="temp"),
            tensor("B2", N // 2, 2, role="temp", alias_of="B"),
            tensor("Y", N, role="output"), tensor("Z", N // 2, 2, role="output"),
        ),
        statements=(
            statement("A", box(i=N), write("A", "i"), unary("exp", load("X", "i"))),
            statement("B", box(i=N), write("B", "i"),
                      add(load("A", "i"), masked("A", (i - 1,), (i - 1,))), order=(1,)),
            statement("Y", box(i=N), write("Y", "i"), unary("neg", load("A", N - 1 - i)),
                      order=(2,)),
            statement("Z", box(i=N // 2, j=2), write("Z", "i", "j"), load("B2", "i", "j"),
                      order=(3,)),
        ),
    )  # fmt: skip


def blur(N: int = 6) -> Program:
    """Two stages, the second uses a neighbourhood of the first: for computed-at temps."""
    domain = Domain(ranges=(IndexRange(name="i", lower=affine(0), upper=affine(N)),
                            IndexRange(name="j", lower=affine(0), upper=affine(4))))  # fmt: skip
    return Program(
        name="blur",
        tensors=(tensor("X", N, 6), tensor("A", N, 6, role="temp"),
                 tensor("Y", N, 4, role="output")),
        statements=(
            statement("A", box(i=N, j=6), write("A", "i", "j"), unary("exp", load("X", "i", "j"))),
            statement("Y", domain, write("Y", "i", "j"),
                      add(load("A", "i", "j"), load("A", i, j + 1), load("A", i, j + 2)),
                      order=(1,)),
        ),
    )  # fmt: skip


def matmul_rows() -> Program:
    """``matmul`` with a symbolic number of rows."""
    return matmul("N", 6, 3, (Symbol(name="N", lower=1, upper=7),))


def softmax_columns() -> Program:
    """``softmax`` over a symbolic number of columns."""
    return softmax(2, "N", (Symbol(name="N", lower=1, upper=7),))


KERNELS = {
    f.__name__: f
    for f in (
        matmul, seidel, jacobi, softmax, layernorm, convolution, recurrence, in_place_recurrence,
        cumsum, gather, index_add, scatter, argmax, triangle, pipeline, blur, matmul_rows,
        softmax_columns,
    )
}  # fmt: skip


# Nests by hand


def loop(index: str, extent: Ix, *body: Node, kind: str = "serial", lower: Ix = 0) -> Loop:
    return Loop(
        index=index,
        lower=(affine(lower),),
        upper=(affine(extent),),
        kind=kind,  # type: ignore[arg-type]
        body=block(*body),
    )


def block(*nodes: Node) -> Node:
    return nodes[0] if len(nodes) == 1 else Block(body=nodes)


def guard(condition: Affine, body: Node, orelse: Node | None = None) -> Guard:
    return Guard(conditions=(condition,), body=body, orelse=orelse)


def buffer(name: str, holds: str, *shape: Ix, scope: str = "local", dtype: DType = F32) -> Buffer:
    return Buffer(
        name=name,
        dtype=dtype,
        shape=tuple(map(affine, shape)),
        scope=scope,  # type: ignore[arg-type]
        holds=holds,
    )


def alloc(buffers: Buffer | tuple[Buffer, ...], *body: Node) -> Alloc:
    buffers = buffers if isinstance(buffers, tuple) else (buffers,)
    return Alloc(buffers=buffers, body=block(*body))


def store(name: str, *indices: Ix | Load) -> Store:
    return Store(target=name, indices=tuple(map(_index, indices)))


def compute(
    statement: str,
    phase: str,
    instance: dict[str, Ix],
    stores: Store | tuple[Store, ...],
    *values: Expr,
    monoid: Monoid | None = None,
) -> Compute:
    return Compute(
        statement=statement,
        phase=phase,  # type: ignore[arg-type]
        instance=tuple((n, affine(a)) for n, a in instance.items()),
        stores=stores if isinstance(stores, tuple) else (stores,),
        values=values,
        monoid=monoid,
    )


def nest_of(kernel: Program, *body: Node, without: tuple[str, ...] = ()) -> LoopNest:
    """A nest of ``kernel``; the temps ``without`` memory are kept in buffers."""
    return LoopNest(
        name=kernel.name,
        symbols=kernel.symbols,
        tensors=tuple(x for x in kernel.tensors if x.name not in without),
        body=block(*body),
    )
