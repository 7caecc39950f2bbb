"""Larger hand-built Programs: what the frontend makes of small networks."""

from __future__ import annotations

from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Expr, Load, const
from nestor.ir.monoid import Monoid, max_of, sum_of
from nestor.ir.program import Domain, Program, Statement, Symbol, Tensor, box
from nestor.ir.types import DType
from tests.helpers.ir_programs import fn, load, op, program, reduce, s, statement, tensor, write

f32 = DType.f32


def padded(name: str, lead: list[str], rows: list[tuple[Affine, int]], other: float = 0.0) -> Load:
    """A load whose last indices are bounded: ``rows`` has (index, extent)."""
    predicate = tuple(p for i, e in rows for p in (i, affine(e - 1) - i))
    return load(name, *lead, *(i for i, _ in rows), predicate=predicate, other=const(other, f32))


def batch_norm(x: Expr, channel: str, prefix: str) -> Expr:
    scale = fn("rsqrt", op("add", load(f"{prefix}v", channel), const(1e-5, f32)))
    centred = op("sub", x, load(f"{prefix}m", channel))
    scaled = op("mul", op("mul", centred, scale), load(f"{prefix}g", channel))
    return op("add", scaled, load(f"{prefix}b", channel))


def norm_parameters(prefix: str, channels: int) -> list[Tensor]:
    return [tensor(f"{prefix}{x}", channels, role="parameter") for x in "vmgb"]


def relu(x: Expr) -> Expr:
    return op("max", x, const(0, f32))


def convolution(
    name: str,
    source: str,
    target: str,
    weight: str,
    n: int | str,
    o: int,
    c: int,
    size: int,
    kernel: int,
    stride: int,
    pad: int,
    depthwise: bool = False,
    order: int = 0,
) -> Statement:
    out = (size + 2 * pad - kernel) // stride + 1
    h, w = affine("y") * stride + "r" - pad, affine("x") * stride + "q" - pad
    channel = "o" if depthwise else "c"
    extents: dict[str, int | str] = {"n": n, "o": o, "y": out, "x": out}
    if not depthwise:
        extents["c"] = c
    extents |= {"r": kernel, "q": kernel}
    rows = [(h, size), (w, size)]
    operand = padded(source, ["n", channel], rows) if pad else load(source, "n", channel, h, w)
    weights = load(weight, "o", "r", "q") if depthwise else load(weight, "o", "c", "r", "q")
    return statement(
        name,
        box(**extents),
        write(target, "n", "o", "y", "x"),
        op("mul", operand, weights),
        reduction=reduce(sum_of(f32), *(["r", "q"] if depthwise else ["c", "r", "q"])),
        order=(order,),
    )


def residual_network(size: int = 8, width: int = 8, batch: int | str = 2) -> Program:
    """conv → norm → relu → max-pool → conv → norm → relu → depthwise conv → + → output."""
    half = (size + 2 - 3) // 2 + 1
    symbols = (Symbol(name=batch),) if isinstance(batch, str) else ()
    pool_h, pool_w = affine("y") * 2 + "r" - 1, affine("x") * 2 + "q" - 1

    def activations(name: str, extent: int, role: str = "temp") -> Tensor:
        return tensor(name, batch, width, extent, extent, role=role)  # type: ignore[arg-type]

    def pointwise(name: str, target: str, extent: int, element: Expr, order: int) -> Statement:
        domain = box(n=batch, o=width, y=extent, x=extent)
        return statement(name, domain, write(target, "n", "o", "y", "x"), element, order=(order,))

    def at(name: str) -> Load:
        return load(name, "n", "o", "y", "x")

    pool = statement(
        "pool",
        box(n=batch, o=width, y=half, x=half, r=3, q=3),
        write("p", "n", "o", "y", "x"),
        padded("a1", ["n", "o"], [(pool_h, size), (pool_w, size)], other=float("-inf")),
        reduction=reduce(max_of(f32), "r", "q"),
        order=(2,),
    )
    return program(
        "residual_network",
        [
            tensor("X", batch, 3, size, size),
            tensor("W1", width, 3, 3, 3, role="parameter"),
            tensor("W2", width, width, 3, 3, role="parameter"),
            tensor("W3", width, 3, 3, role="parameter"),
            *norm_parameters("n1", width),
            *norm_parameters("n2", width),
            activations("c1", size),
            activations("a1", size),
            activations("p", half),
            activations("c2", half),
            activations("a2", half),
            activations("c3", half),
            activations("Y", half, "output"),
        ],
        convolution("conv1", "X", "c1", "W1", batch, width, 3, size, 3, 1, 1, order=0),
        pointwise("norm1", "a1", size, relu(batch_norm(at("c1"), "o", "n1")), 1),
        pool,
        convolution("conv2", "p", "c2", "W2", batch, width, width, half, 3, 1, 1, order=3),
        pointwise("norm2", "a2", half, relu(batch_norm(at("c2"), "o", "n2")), 4),
        convolution("conv3", "a2", "c3", "W3", batch, width, 1, half, 3, 1, 1, True, order=5),
        pointwise("add", "Y", half, op("add", at("c3"), at("p")), 6),
        symbols=symbols,
    )


def _softmax_of_scores(rows: Domain, depth: int) -> list[Statement]:
    """``P = softmax(S / √depth)`` step by step, at orders 4 to 8."""

    def row_of(name: str, target: str, source: str, monoid: Monoid, order: int) -> Statement:
        element = load(source, "b", "h", "t", "u")
        target_write = write(target, "b", "h", "t")
        reduction = reduce(monoid, "u")
        return statement(name, rows, target_write, element, reduction=reduction, order=(order,))

    def points(name: str, target: str, element: Expr, order: int) -> Statement:
        return statement(name, rows, write(target, "b", "h", "t", "u"), element, order=(order,))

    scaled = op("mul", load("S", "b", "h", "t", "u"), const(depth**-0.5, f32))
    shifted = fn("exp", op("sub", load("Z", "b", "h", "t", "u"), load("M", "b", "h", "t")))
    weights = op("div", load("E", "b", "h", "t", "u"), load("L", "b", "h", "t"))
    return [
        points("scale", "Z", scaled, 4),
        row_of("rowmax", "M", "Z", max_of(f32), 5),
        points("exps", "E", shifted, 6),
        row_of("rowsum", "L", "E", sum_of(f32), 7),
        points("weights", "P", weights, 8),
    ]


def attention_block(
    tokens: int = 9, heads: int = 2, depth: int = 4, batch: int | str = 2, merged: bool = True
) -> Program:
    """q, k, v projections, softmax attention, and the output projection, without masks."""
    width = heads * depth
    symbols = (Symbol(name=batch),) if isinstance(batch, str) else ()
    e = affine("h") * depth + "d"

    def projection(name: str, order: int) -> Statement:
        return statement(
            name,
            box(b=batch, t=tokens, n=width, k=width),
            write(name, "b", "t", "n"),
            op("mul", load("X", "b", "t", "k"), load(f"W{name}", "n", "k")),
            reduction=reduce(sum_of(f32), "k", final=(op("add", s(0), load(f"B{name}", "n")),)),
            order=(order,),
        )

    scores = statement(
        "scores",
        box(b=batch, h=heads, t=tokens, u=tokens, d=depth),
        write("S", "b", "h", "t", "u"),
        op("mul", load("q", "b", "t", e), load("k", "b", "u", e)),
        reduction=reduce(sum_of(f32), "d"),
        order=(3,),
    )
    rows = box(b=batch, h=heads, t=tokens, u=tokens)
    mixed = statement(
        "mixed",
        box(b=batch, h=heads, t=tokens, d=depth, u=tokens),
        write("A", "b", "h", "t", "d"),
        op("mul", load("P", "b", "h", "t", "u"), load("v", "b", "u", e)),
        reduction=reduce(sum_of(f32), "u"),
        order=(9,),
    )
    merge = statement(
        "merge",
        box(b=batch, t=tokens, e=width),
        write("F", "b", "t", "e"),
        load("A", "b", affine("e") // depth, "t", affine("e") % depth),
        order=(10,),
    )
    out_load = load("F", "b", "t", "k")
    if not merged:
        out_load = load("A", "b", affine("k") // depth, "t", affine("k") % depth)
    output = statement(
        "out",
        box(b=batch, t=tokens, n=width, k=width),
        write("Y", "b", "t", "n"),
        op("mul", out_load, load("Wo", "n", "k")),
        reduction=reduce(sum_of(f32), "k"),
        order=(11,),
    )
    score_shape = (batch, heads, tokens, tokens)
    return program(
        "attention_block",
        [
            tensor("X", batch, tokens, width),
            *(tensor(f"W{x}", width, width, role="parameter") for x in "qkvo"),
            *(tensor(f"B{x}", width, role="parameter") for x in "qkv"),
            *(tensor(x, batch, tokens, width, role="temp") for x in "qkv"),
            *(tensor(x, *score_shape, role="temp") for x in "SZEP"),
            *(tensor(x, batch, heads, tokens, role="temp") for x in "ML"),
            tensor("A", batch, heads, tokens, depth, role="temp"),
            tensor("F", batch, tokens, width, role="temp"),
            tensor("Y", batch, tokens, width, role="output"),
        ],
        *(projection(x, k) for k, x in enumerate("qkv")),
        scores,
        *_softmax_of_scores(rows, depth),
        mixed,
        *([merge] if merged else []),
        output,
        symbols=symbols,
    )
