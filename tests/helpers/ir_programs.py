"""Small Programs for the tests of the IR, and the shorthand that builds them."""

from __future__ import annotations

from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Binary, Cast, Expr, Index, IndexExpr, Load, Select, Unary, Var, const
from nestor.ir.monoid import (
    Monoid,
    argmax_of,
    logsumexp_of,
    max_of,
    online_softmax_of,
    sum_of,
    welford_of,
)
from nestor.ir.program import (
    Domain,
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

f32, i64 = DType.f32, DType.i64


def tensor(
    name: str,
    *shape: Affine | int | str,
    dtype: DType = f32,
    role: Role = "input",
    alias_of: str | None = None,
) -> Tensor:
    return Tensor(
        name=name, shape=tuple(map(affine, shape)), dtype=dtype, role=role, alias_of=alias_of
    )


def ix(index: Affine | int | str | Expr) -> IndexExpr:
    return affine(index) if isinstance(index, (int, str, Affine)) else index


def load(
    name: str,
    *indices: Affine | int | str | Expr,
    dtype: DType = f32,
    predicate: tuple[Affine, ...] = (),
    other: Expr | None = None,
) -> Load:
    return Load(
        tensor=name,
        indices=tuple(map(ix, indices)),
        dtype=dtype,
        predicate=predicate,
        other=other,
    )


def op(name: str, a: Expr, b: Expr) -> Binary:
    return Binary(op=name, a=a, b=b)


def fn(name: str, x: Expr) -> Unary:
    return Unary(op=name, x=x)


def write(name: str, *indices: Affine | int | str | Expr) -> Write:
    return Write(tensor=name, indices=tuple(map(ix, indices)))


def s(i: int, dtype: DType = f32) -> Var:
    return Var(name=f"s{i}", dtype=dtype)


def reduce(
    monoid: Monoid,
    *indices: str,
    final: tuple[Expr, ...] | None = None,
    scan: bool = False,
    into: bool = False,
    state_indices: tuple[tuple[str, ...] | None, ...] | None = None,
) -> Reduction:
    if final is None:
        final = tuple(s(i, d) for i, d in enumerate(monoid.dtypes))
    return Reduction(
        indices=indices,
        monoid=monoid,
        final=final,
        scan=scan,
        into=into,
        state_indices=state_indices,
    )


def statement(
    name: str,
    domain: Domain,
    writes: Write | tuple[Write, ...],
    *elements: Expr,
    reduction: Reduction | None = None,
    scatter: str | None = None,
    order: Order = (0,),
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


def program(
    name: str,
    tensors: list[Tensor],
    *statements: Statement,
    symbols: tuple[Symbol, ...] = (),
) -> Program:
    return Program(name=name, symbols=symbols, tensors=tuple(tensors), statements=tuple(statements))


def matmul(m: int | str = 5, n: int = 7, k: int = 6, dtype: DType = f32) -> Program:
    symbols = (Symbol(name=m),) if isinstance(m, str) else ()
    return program(
        "matmul",
        [
            tensor("A", m, k, dtype=dtype),
            tensor("B", k, n, dtype=dtype, role="parameter"),
            tensor("C", m, n, dtype=dtype, role="output"),
        ],
        statement(
            "C0",
            box(i=m, j=n, k=k),
            write("C", "i", "j"),
            op("mul", load("A", "i", "k", dtype=dtype), load("B", "k", "j", dtype=dtype)),
            reduction=reduce(sum_of(dtype), "k"),
        ),
        symbols=symbols,
    )


def conv2d(
    n: int = 2, c: int = 3, o: int = 4, size: int = 7, k: int = 3, stride: int = 2, pad: int = 1
) -> Program:
    out = (size + 2 * pad - k) // stride + 1
    h = affine("y") * stride + "r" - pad
    w = affine("x") * stride + "q" - pad
    inside = (h, affine(size - 1) - h, w, affine(size - 1) - w)
    padded = load("X", "n", "c", h, w, predicate=inside, other=const(0, f32))
    return program(
        "conv2d",
        [
            tensor("X", n, c, size, size),
            tensor("W", o, c, k, k, role="parameter"),
            tensor("b", o, role="parameter"),
            tensor("Y", n, o, out, out, role="output"),
        ],
        statement(
            "S",
            box(n=n, o=o, y=out, x=out, c=c, r=k, q=k),
            write("Y", "n", "o", "y", "x"),
            op("mul", padded, load("W", "o", "c", "r", "q")),
            reduction=reduce(sum_of(f32), "c", "r", "q", final=(op("add", s(0), load("b", "o")),)),
        ),
    )


def softmax(rows: int | str = 4, cols: int = 9) -> Program:
    """Max, sum of exponentials and division as three statements."""
    symbols = (Symbol(name=rows, upper=64),) if isinstance(rows, str) else ()
    shifted = op("sub", load("X", "i", "j"), load("m", "i"))
    return program(
        "softmax",
        [
            tensor("X", rows, cols),
            tensor("m", rows, role="temp"),
            tensor("l", rows, role="temp"),
            tensor("Y", rows, cols, role="output"),
        ],
        statement(
            "M",
            box(i=rows, j=cols),
            write("m", "i"),
            load("X", "i", "j"),
            reduction=reduce(max_of(f32), "j"),
            order=(0,),
        ),
        statement(
            "L",
            box(i=rows, j=cols),
            write("l", "i"),
            fn("exp", shifted),
            reduction=reduce(sum_of(f32), "j"),
            order=(1,),
        ),
        statement(
            "N",
            box(i=rows, j=cols),
            write("Y", "i", "j"),
            op("div", fn("exp", shifted), load("l", "i")),
            order=(2,),
        ),
        symbols=symbols,
    )


def argmax(rows: int = 4, cols: int = 9) -> Program:
    return program(
        "argmax",
        [
            tensor("X", rows, cols),
            tensor("V", rows, role="output"),
            tensor("I", rows, dtype=i64, role="output"),
        ],
        statement(
            "S",
            box(i=rows, j=cols),
            (write("V", "i"), write("I", "i")),
            load("X", "i", "j"),
            Index(value=affine("j")),
            reduction=reduce(argmax_of(f32), "j"),
        ),
    )


def layer_norm(rows: int = 3, cols: int = 20) -> Program:
    """Welford's mean and variance, then the normalisation."""
    count = const(cols, f32)
    inverse = fn("rsqrt", op("add", op("div", s(1), count), const(1e-5, f32)))
    centred = op("sub", load("X", "i", "j"), load("mean", "i"))
    scaled = op("mul", op("mul", centred, load("inv", "i")), load("g", "j"))
    return program(
        "layer_norm",
        [
            tensor("X", rows, cols),
            tensor("g", cols, role="parameter"),
            tensor("b", cols, role="parameter"),
            tensor("mean", rows, role="temp"),
            tensor("inv", rows, role="temp"),
            tensor("Y", rows, cols, role="output"),
        ],
        statement(
            "S",
            box(i=rows, j=cols),
            (write("mean", "i"), write("inv", "i")),
            load("X", "i", "j"),
            const(0, f32),
            const(1, f32),
            reduction=reduce(welford_of(f32), "j", final=(s(0), inverse)),
            order=(0,),
        ),
        statement(
            "N",
            box(i=rows, j=cols),
            write("Y", "i", "j"),
            op("add", scaled, load("b", "j")),
            order=(1,),
        ),
    )


def logsumexp(rows: int = 3, cols: int = 11) -> Program:
    return program(
        "logsumexp",
        [tensor("X", rows, cols), tensor("Y", rows, role="output")],
        statement(
            "S",
            box(i=rows, j=cols),
            write("Y", "i"),
            load("X", "i", "j"),
            const(1, f32),
            reduction=reduce(logsumexp_of(f32), "j", final=(op("add", s(0), fn("log", s(1))),)),
        ),
    )


def attention(queries: int = 5, keys: int = 6, depth: int = 4, causal: bool = False) -> Program:
    """Scores as a statement, then the online softmax with its state (m[q], l[q], acc[q, d])."""
    domain = box(q=queries, k=keys, d=depth)
    if causal:
        domain = Domain(ranges=domain.ranges, constraints=(affine("q") - "k",))
    return program(
        "attention",
        [
            tensor("Q", queries, depth),
            tensor("K", keys, depth),
            tensor("V", keys, depth),
            tensor("S", queries, keys, role="temp"),
            tensor("O", queries, depth, role="output"),
        ],
        statement(
            "scores",
            box(q=queries, k=keys, e=depth),
            write("S", "q", "k"),
            op("mul", load("Q", "q", "e"), load("K", "k", "e")),
            reduction=reduce(sum_of(f32), "e", final=(op("mul", s(0), const(depth**-0.5, f32)),)),
            order=(0,),
        ),
        statement(
            "online",
            domain,
            write("O", "q", "d"),
            load("S", "q", "k"),
            const(1, f32),
            load("V", "k", "d"),
            reduction=reduce(
                online_softmax_of(f32),
                "k",
                final=(op("div", s(2), s(1)),),
                state_indices=(("q",), ("q",), ("q", "d")),
            ),
            order=(1,),
        ),
    )


def cumsum(rows: int = 3, cols: int = 8, dtype: DType = f32) -> Program:
    return program(
        "cumsum",
        [tensor("X", rows, cols, dtype=dtype), tensor("Y", rows, cols, dtype=dtype, role="output")],
        statement(
            "S",
            box(i=rows, j=cols),
            write("Y", "i", "j"),
            load("X", "i", "j", dtype=dtype),
            reduction=reduce(sum_of(dtype), "j", scan=True),
        ),
    )


def embedding(tokens: int = 5, words: int = 10, width: int = 4) -> Program:
    return program(
        "embedding",
        [
            tensor("T", tokens, dtype=i64),
            tensor("E", words, width, role="parameter"),
            tensor("Y", tokens, width, role="output"),
        ],
        statement(
            "S",
            box(i=tokens, j=width),
            write("Y", "i", "j"),
            load("E", load("T", "i", dtype=i64), "j"),
        ),
    )


def scatter_add(count: int = 8, rows: int = 4, width: int = 3) -> Program:
    """``Y[T[i], j] += X[i, j]``."""
    return program(
        "scatter_add",
        [
            tensor("T", count, dtype=i64),
            tensor("X", count, width),
            tensor("Y", rows, width, role="inout"),
        ],
        statement(
            "S",
            box(i=count, j=width),
            write("Y", load("T", "i", dtype=i64), "j"),
            load("X", "i", "j"),
            reduction=reduce(sum_of(f32), "i", into=True),
        ),
    )


def scatter_last(count: int = 6, rows: int = 4) -> Program:
    """``Y[T[i]] = X[i]``; the last write wins."""
    return program(
        "scatter_last",
        [
            tensor("T", count, dtype=i64),
            tensor("X", count),
            tensor("Y", rows, role="inout"),
        ],
        statement(
            "S",
            box(i=count),
            write("Y", load("T", "i", dtype=i64)),
            load("X", "i"),
            scatter="last",
        ),
    )


def lstm(steps: int = 6, batch: int = 2, inputs: int = 3, hidden: int = 4) -> Program:
    """One layer as a ``seq`` region; gates in PyTorch's order i, f, g, o; ``H[0]`` is the start."""
    gate = "g"

    def at(k: int) -> Load:
        return load("G", "n", affine("h") + k * hidden)

    cell = op(
        "add",
        op("mul", fn("sigmoid", at(1)), load("Cs", "n", "h")),
        op("mul", fn("sigmoid", at(0)), fn("tanh", at(2))),
    )
    return program(
        "lstm",
        [
            tensor("X", steps, batch, inputs),
            tensor("Wi", 4 * hidden, inputs, role="parameter"),
            tensor("Wh", 4 * hidden, hidden, role="parameter"),
            tensor("b", 4 * hidden, role="parameter"),
            tensor("P", steps, batch, 4 * hidden, role="temp"),
            tensor("G", batch, 4 * hidden, role="temp"),
            tensor("Cs", batch, hidden, role="state"),
            tensor("Hs", batch, hidden, role="state"),
            tensor("Y", steps, batch, hidden, role="output"),
        ],
        statement(
            "inputs",
            box(t=steps, n=batch, g=4 * hidden, e=inputs),
            write("P", "t", "n", gate),
            op("mul", load("X", "t", "n", "e"), load("Wi", gate, "e")),
            reduction=reduce(sum_of(f32), "e", final=(op("add", s(0), load("b", gate)),)),
            order=(0,),
        ),
        statement(
            "gates",
            box(t=steps, n=batch, g=4 * hidden, e=hidden),
            write("G", "n", gate),
            op("mul", load("Hs", "n", "e"), load("Wh", gate, "e")),
            reduction=reduce(sum_of(f32), "e", final=(op("add", s(0), load("P", "t", "n", gate)),)),
            order=(1, "t", 0),
        ),
        statement(
            "cell",
            box(t=steps, n=batch, h=hidden),
            write("Cs", "n", "h"),
            cell,
            order=(1, "t", 1),
        ),
        statement(
            "hidden",
            box(t=steps, n=batch, h=hidden),
            (write("Hs", "n", "h"), write("Y", "t", "n", "h")),
            *(
                op("mul", fn("sigmoid", at(3)), fn("tanh", load("Cs", "n", "h"))),
                op("mul", fn("sigmoid", at(3)), fn("tanh", load("Cs", "n", "h"))),
            ),
            order=(1, "t", 2),
        ),
    )


def triangular_solve(n: int = 5) -> Program:
    """Forward substitution ``L x = b``: a triangle under a ``seq`` loop."""
    inner = Domain(
        ranges=(
            *box(i=n).ranges,
            *(r for r in box(k="i").ranges),
        )
    )
    return program(
        "triangular_solve",
        [
            tensor("L", n, n),
            tensor("b", n),
            tensor("x", n, role="output"),
        ],
        statement(
            "S",
            inner,
            write("x", "i"),
            op("mul", load("L", "i", "k"), load("x", "k")),
            reduction=reduce(
                sum_of(f32),
                "k",
                final=(op("div", op("sub", load("b", "i"), s(0)), load("L", "i", "i")),),
            ),
            order=(0, "i", 0),
        ),
    )


def half_relu(n: int = 8, dtype: DType = DType.bf16) -> Program:
    """Storage types: cast to float32, operate, cast back."""
    x = Cast(x=load("X", "i", dtype=dtype), dtype=f32)
    positive = op("gt", x, const(0, f32))
    return program(
        "half_relu",
        [tensor("X", n, dtype=dtype), tensor("Y", n, dtype=dtype, role="output")],
        statement(
            "S",
            box(i=n),
            write("Y", "i"),
            Cast(x=Select(condition=positive, a=op("mul", x, const(3, f32)), b=x), dtype=dtype),
        ),
    )


ALL = {
    f.__name__: f
    for f in (
        matmul, conv2d, softmax, argmax, layer_norm, logsumexp, attention, cumsum, embedding,
        scatter_add, scatter_last, lstm, triangular_solve, half_relu,
    )
}  # fmt: skip
