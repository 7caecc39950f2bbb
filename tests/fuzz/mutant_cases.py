"""Small cases, by name, that together notice every planted fault of ``mutants``.

A *right* case is a kernel and a schedule that the checker accepts and everybody computes rightly; a
*wrong* one must be refused; a *pass* case goes through the exact Program passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nestor.errors import IllegalSchedule, NestorError
from nestor.ir import numeric, parse_program, run_nest, verify_nest, verify_program
from nestor.ir.affine import affine
from nestor.ir.expr import Expr, Load, highest, map_expr
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node
from nestor.ir.schedule import (
    Accumulate,
    ComputeAt,
    Fuse,
    Pack,
    Parallel,
    Reorder,
    Schedule,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.ir.types import DType
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.target.cpu import host_target
from tests.fuzz import harness
from tests.fuzz.enclosure_program import EnclosureRun, find_mismatch
from tests.fuzz.generate_inputs import READ_ROLES, make_inputs
from tests.fuzz.generate_programs import Case
from tests.fuzz.program_passes import find_pass_fault, find_pipeline_fault
from tests.helpers import llvm_native

Damage = Callable[[LoopNest], LoopNest]


def case_of(text: str, *, special: bool = False, **indexes: int) -> Case:
    """A case from a Program's text; its symbols are 5. ``special``: inputs hold NaN or extremes."""
    program = parse_program(text if text.startswith("program") else f"program p {{\n{text}\n}}")
    symbols = {s.name: 5 for s in program.symbols}
    bounds = {n: (b, False) for n, b in indexes.items()}
    case = Case(0, program, symbols, bounds, frozenset(), not special)
    while special and not _is_special(case):
        case = replace(case, seed=case.seed + 1)
    return case


def _is_special(case: Case) -> bool:
    """Whether every number that is given takes extreme values."""
    for t in case.program.tensors:
        if t.role in READ_ROLES and t.dtype is not DType.bool:
            values = make_inputs(case)[t.name]
            if t.dtype.is_float:
                if not (np.isnan(values).any() and np.isinf(values).any()):
                    return False
            elif values.max() != highest(t.dtype):
                return False
    return True


TAIL = """
  input x: f32[21]
  output y: f32[21]
  statement S over { 0 <= i < 21 }
    y[i] = x[i] * 2.0:f32 + 1.0:f32"""
STRIDES = """
  input x: f32[42]
  output y: f32[21]
  output z: f32[21]
  statement S over { 0 <= i < 21 }
    y[i] = x[2*i + 1] - x[i + 3]
    z[i] = x[-i + 20]"""
MATMUL = """
  input a: f32[5, 7]
  parameter b: f32[7, 19]
  input h: f32[19]
  temp c: f32[5, 19]
  output d: f32[5, 19]
  statement C over { 0 <= m < 5, 0 <= n < 19, 0 <= k < 7 }
    reduce sum(f32) over k
    s0 <- a[m, k] * b[k, n]
    c[m, n] = s0
  statement D over { 0 <= m < 5, 0 <= n < 19 }
    d[m, n] = max(c[m, n] + h[n], 0.0:f32)"""
SUM = """
  input x: f32[3, 37]
  output y: f32[3]
  statement S over { 0 <= i < 3, 0 <= k < 37 }
    reduce sum(f32) over k
    s0 <- x[i, k]
    y[i] = s0"""
MAX = """
  input x: f32[3, 37]
  output y: f32[3]
  statement S over { 0 <= i < 3, 0 <= k < 37 }
    reduce max(f32) over k
    s0 <- -abs(x[i, k]) - 1.0:f32
    y[i] = s0"""
ARGMAX = """
  input x: f32[3, 37]
  output v: f32[3]
  output p: i64[3]
  statement S over { 0 <= i < 3, 0 <= k < 37 }
    reduce argmax(f32) over k
    s0 <- x[i, k]
    s1 <- index(k)
    v[i] = s0
    p[i] = s1"""
EXTREMES = """
  input x: f32[45]
  input w: f32[45]
  output y: f32[45]
  output z: f32[45]
  output u: f32[45]
  statement S over { 0 <= i < 45 }
    y[i] = max(x[i], w[i])
    z[i] = min(x[i], w[i])
    u[i] = max(nan:f32, x[i])"""
CASTS = """
  input x: f32[45]
  output a: i8[45]
  output b: u8[45]
  output c: i32[45]
  output d: i64[45]
  output e: bool[45]
  statement S over { 0 <= i < 45 }
    a[i] = i8(x[i])
    b[i] = u8(x[i])
    c[i] = i32(x[i])
    d[i] = i64(x[i])
    e[i] = bool(x[i])"""
INTEGERS = """
  input x: i32[45]
  input w: i32[45]
  output a: i32[45]
  output b: i32[45]
  output c: i32[45]
  output d: i32[45]
  output e: i32[45]
  output f: i32[45]
  statement S over { 0 <= i < 45 }
    a[i] = floordiv(x[i], w[i])
    b[i] = mod(x[i], w[i])
    c[i] = truncdiv(x[i], w[i])
    d[i] = rem(x[i], w[i])
    e[i] = x[i] >> w[i]
    f[i] = x[i] << w[i]"""
UNSIGNED = """
  input x: u8[45]
  input w: u8[45]
  output a: u8[45]
  output b: bool[45]
  output c: f32[45]
  statement S over { 0 <= i < 45 }
    a[i] = max(x[i], w[i])
    b[i] = x[i] < w[i]
    c[i] = f32(x[i])"""
PADDED = """
  input x: f32[9]
  parameter w: f32[3]
  output y: f32[9]
  statement S over { 0 <= p < 9, 0 <= r < 3 }
    reduce sum(f32) over r
    s0 <- (x[p + r - 1] where {p + r - 1 >= 0, -p - r + 9 >= 0} else 1.0:f32) * w[r]
    y[p] = s0"""
SHIFTED = """
  input x: f32[21]
  output y: f32[21]
  statement S over { 0 <= i < 21 }
    y[i] = (x[i - 2] where {i - 2 >= 0} else 3.0:f32)"""
GATHER = """
  input t: f32[6, 5]
  input ids: i64[9]
  output y: f32[9, 5]
  statement S over { 0 <= i < 9, 0 <= j < 5 }
    y[i, j] = t[ids[i], j]"""
INDEX_ADD = """
  input x: f32[9, 5]
  input ids: i64[9]
  inout u: f32[4, 5]
  statement S over { 0 <= i < 9, 0 <= j < 5 }
    reduce sum(f32) over i into
    s0 <- x[i, j]
    u[ids[i], j] = s0"""
ROWS = """
  input x: f32[7, 13]
  output y: f32[13, 7]
  statement S over { 0 <= i < 13, 0 <= j < 7 }
    y[i, j] = x[j, i] + 1.0:f32"""
STORAGE = """
  input x: f32[45]
  input h: bf16[45]
  output a: f16[45]
  output b: bf16[45]
  output c: f32[45]
  statement S over { 0 <= i < 45 }
    a[i] = f16(x[i])
    b[i] = bf16(x[i])
    c[i] = f32(h[i]) + 1.0:f32"""
ROUNDING = """
  input x: f32[45]
  output a: f32[45]
  output b: f32[45]
  output c: f32[45]
  output d: f32[45]
  statement S over { 0 <= i < 45 }
    a[i] = round(f32(index(i)) * 0.5:f32 - 5.0:f32)
    b[i] = floor(x[i])
    c[i] = trunc(x[i])
    d[i] = sign(x[i])"""
MATH = """
  input x: f32[45]
  output a: f32[45]
  output b: f32[45]
  output c: f32[45]
  output d: f32[45]
  statement S over { 0 <= i < 45 }
    a[i] = exp(x[i])
    b[i] = tanh(x[i])
    c[i] = erf(x[i])
    d[i] = sin(x[i])"""
TRIANGLE = """
  input x: f32[11, 11]
  inout u: f32[11, 11]
  statement S over { 0 <= i < 11, 0 <= j < 11 : i - j >= 0 }
    u[i, j] = x[i, j] * 2.0:f32"""
LAYOUT = """
  input x: f32[6, 10] layout [d1//4, d0, d1%4] of [3, 6, 4]
  output y: f32[10, 6] layout [d1, d0] of [6, 10]
  statement S over { 0 <= i < 6, 0 <= j < 10 }
    y[j, i] = x[i, j] * 3.0:f32"""
SCAN = """
  input x: f32[4, 9]
  output y: f32[4, 9]
  statement S over { 0 <= i < 4, 0 <= j < 9 }
    scan sum(f32) over j
    s0 <- x[i, j]
    y[i, j] = s0"""
BLUR = """
  input x: f32[6, 10]
  temp a: f32[6, 10]
  output y: f32[6, 8]
  statement A over { 0 <= i < 6, 0 <= j < 10 }
    a[i, j] = x[i, j] * x[i, j]
  statement Y over { 0 <= i < 6, 0 <= j < 8 }
    y[i, j] = a[i, j] + (a[i, j + 1] + a[i, j + 2])"""
COLUMN = """
  input x: f32[6, 10]
  temp a: f32[6, 10]
  output y: f32[4, 10]
  statement A over { 0 <= i < 6, 0 <= j < 10 }
    a[i, j] = x[i, j] * x[i, j]
  statement Y over { 0 <= i < 4, 0 <= j < 10 }
    y[i, j] = a[i, j] + (a[i + 1, j] + a[i + 2, j])"""
AHEAD = """
  input x: f32[6]
  temp a: f32[6]
  output y: f32[6]
  statement A over { 0 <= i < 6 }
    a[i] = x[i] * x[i]
  statement Y over { 0 <= i < 6 }
    y[i] = (a[i + 1] where {-i + 4 >= 0} else 0.0:f32)"""
BEHIND = """
  input x: f32[6]
  temp a: f32[6]
  output y: f32[6]
  statement A over { 0 <= i < 6 }
    a[i] = x[i] * x[i]
  statement Y over { 0 <= i < 6 }
    y[i] = a[i] + (a[i - 1] where {i - 1 >= 0} else 0.0:f32)"""
WELFORD = """
  input x: f32[3, 21]
  output m: f32[3]
  output v: f32[3]
  statement S over { 0 <= i < 3, 0 <= k < 21 }
    reduce welford(f32) over k
    s0 <- x[i, k]
    s1 <- 0.0:f32
    s2 <- 1.0:f32
    m[i] = s0
    v[i] = s1 / s2"""
SYMBOL = """program p(N: 1..) {
  input x: f32[N, 3]
  output y: f32[3, N]
  statement S over { 0 <= i < N, 0 <= j < 3 }
    y[j, i] = x[-i + N - 1, j]
}"""
SELECT = """
  input x: f32[45]
  input b: bool[45]
  output y: f32[45]
  output z: bool[45]
  statement S over { 0 <= i < 45 }
    y[i] = select(x[i] >= 0.0:f32, 1.0:f32, 2.0:f32)
    z[i] = b[i] & isnan(x[i]) | not(b[i])"""
SEIDEL = """
  inout u: f32[9]
  seq t {
    seq i {
      statement S over { 0 <= t < 3, 1 <= i < 8 }
        u[i] = u[i - 1] + (u[i] + u[i + 1])
    }
  }"""
JACOBI = """
  inout a: f32[9]
  inout b: f32[9]
  seq t {
    statement S over { 0 <= t < 3, 1 <= i < 8 }
      b[i] = a[i - 1] + a[i + 1]
    statement R over { 0 <= t < 3, 1 <= i < 8 }
      a[i] = b[i]
  }"""
ANTI = """
  input x: f32[9]
  inout u: f32[10]
  output y: f32[9]
  statement S over { 0 <= i < 9 }
    y[i] = u[i]
  statement R over { 0 <= i < 9 }
    u[i + 1] = x[i]"""
OUTPUT = """
  input x: f32[9]
  inout u: f32[10]
  statement S over { 0 <= i < 9 }
    u[i] = x[i]
  statement R over { 0 <= i < 9 }
    u[i + 1] = -x[i]"""
COMPOSE = """
  input x: i64[3, 7]
  output p: i64[3]
  output q: i64[3]
  monoid compose noncommutative { 1:i64, 0:i64 : a0 * b0, a1 * b0 + b1 }
  statement S over { 0 <= i < 3, 0 <= k < 7 }
    reduce compose over k
    s0 <- x[i, k]
    s1 <- x[i, k] + 1:i64
    p[i] = s0
    q[i] = s1"""
CHAIN = """
  input x: f32[4, 6]
  temp a: f32[6, 4]
  temp b: f32[24]
  output y: f32[24]
  output z: f32[4, 6]
  statement A over { 0 <= i < 6, 0 <= j < 4 }
    a[i, j] = x[j, i] * 1.0:f32 + 0.0:f32
  statement B over { 0 <= k < 24 }
    b[k] = a[k//4, k%4] * 2.0:f32
  statement Y over { 0 <= k < 24 }
    y[k] = (b[k - 1] where {k - 1 >= 0} else 5.0:f32) - 1.0:f32
  statement Z over { 0 <= i < 4, 0 <= j < 6 }
    z[i, j] = select(index(i) < 9:i64, x[i, j], 0.0:f32) * 0.0:f32"""
COMPARED = """
  input x: f32[9]
  output y: f32[9]
  statement Y over { 0 <= i < 9 }
    y[i] = select(index(i) < 4:i64, x[i], 0.0:f32)"""
SCALED = """
  input x: f32[5, 6]
  parameter w: f32[4, 6]
  parameter g: f32[4]
  parameter b: f32[4]
  temp c: f32[5, 4]
  output y: f32[5, 4]
  statement C over { 0 <= m < 5, 0 <= n < 4, 0 <= k < 6 }
    reduce sum(f32) over k
    s0 <- x[m, k] * w[n, k]
    c[m, n] = s0
  statement Y over { 0 <= m < 5, 0 <= n < 4 }
    y[m, n] = b[n] - c[m, n] * g[n]"""
MERGED = """
  input x: f32[4, 6]
  output y: f32[24]
  statement Y over { 0 <= k < 24 }
    y[k] = x[k//6, k%6] * 2.0:f32"""
TWINS = """
  input x: f32[5]
  temp a: f32[5]
  temp b: f32[5]
  output y: f32[5]
  statement A over { 0 <= i < 5 }
    a[i] = exp(x[i])
  statement B over { 0 <= i < 5 }
    b[i] = exp(x[-i + 4])
  statement Y over { 0 <= i < 5 }
    y[i] = a[i] - b[i]"""


def vectors(statement: str, index: str, size: int = 8, inside: str = "") -> Schedule:
    """One loop in vectors of ``size``, within the loops of the indices ``inside``."""
    loop = f"{statement}.{index}"
    order = (f"{loop}.o", *(f"{statement}.{n}" for n in inside), f"{loop}.i")
    reorder = (Reorder(statement=statement, loops=order),) if inside else ()
    return (Tile(loop=loop, size=size), *reorder, Vectorize(loop=f"{loop}.i"))


def lanes_of(statement: str, size: int) -> Schedule:
    """A reduction over k in ``size`` lanes."""
    return (
        SplitReduction(loop=f"{statement}.k", lanes=size),
        Vectorize(loop=f"{statement}.k.i"),
        Accumulate(statement=statement, scope="register"),
    )


REGISTER_TILE: Schedule = (
    Tile(loop="C.m", size=2),
    Tile(loop="C.n", size=8),
    Reorder(statement="C", loops=("C.m.o", "C.n.o", "C.k", "C.m.i", "C.n.i")),
    Parallel(loop="C.m.o"),
    Unroll(loop="C.m.i"),
    Vectorize(loop="C.n.i"),
    Accumulate(statement="C", scope="register"),
    Pack(tensor="b", order=(1, 0), dims=(1,), blocks=(8,)),
)


def fused(first: str, second: str, *more: Step) -> Schedule:
    """Two loops in one."""
    return (Fuse(first=first, second=second), *more)


RIGHT: dict[str, tuple[Case, Schedule]] = {
    "tail": (case_of(TAIL), vectors("S", "i")),
    "strides": (case_of(STRIDES), vectors("S", "i")),
    "matmul": (case_of(MATMUL), REGISTER_TILE),
    "threads": (case_of(ROWS), (Parallel(loop="S.i"), Parallel(loop="S.j"))),
    "odd rows": (case_of(ROWS), (Parallel(loop="S.i"),)),
    "transposed": (case_of(ROWS), vectors("S", "i", inside="j")),
    "split sum": (case_of(SUM), lanes_of("S", 8)),
    "vector sum": (case_of(SUM), vectors("S", "i", inside="k")),
    "split max": (case_of(MAX), lanes_of("S", 16)),
    "split argmax": (case_of(ARGMAX), lanes_of("S", 16)),
    "plain max": (case_of(MAX), ()),
    "extremes": (case_of(EXTREMES, special=True), vectors("S", "i")),
    "casts": (case_of(CASTS, special=True), vectors("S", "i")),
    "integers": (case_of(INTEGERS, special=True), vectors("S", "i")),
    "unsigned": (case_of(UNSIGNED, special=True), vectors("S", "i")),
    "padded": (case_of(PADDED), vectors("S", "p", 4, inside="r")),
    "shifted": (case_of(SHIFTED), vectors("S", "i")),
    "gather": (case_of(GATHER, ids=6), vectors("S", "i", 4, inside="j")),
    "index add": (case_of(INDEX_ADD, ids=4), ()),
    "storage": (case_of(STORAGE, special=True), vectors("S", "i")),
    "rounding": (case_of(ROUNDING), vectors("S", "i")),
    "math": (case_of(MATH, special=True), vectors("S", "i")),
    "triangle": (case_of(TRIANGLE), (Vectorize(loop="S.j"),)),
    "layout": (case_of(LAYOUT), vectors("S", "j", 4)),
    "scan": (case_of(SCAN), (Parallel(loop="S.i"), Accumulate(statement="S"))),
    "blur": (
        case_of(BLUR),
        fused("A.i", "Y.i", Parallel(loop="A.i"), ComputeAt(tensor="a")),
    ),
    "welford": (case_of(WELFORD), lanes_of("S", 4)),
    "symbol": (case_of(SYMBOL), vectors("S", "i", 4, inside="j")),
    "select": (case_of(SELECT, special=True), vectors("S", "i")),
    "seidel": (case_of(SEIDEL), ()),
    "jacobi": (case_of(JACOBI), (Vectorize(loop="S.i"), Vectorize(loop="R.i"))),
    "compose": (case_of(COMPOSE), vectors("S", "i", 2, inside="k")),
    "unrolled": (case_of(SUM), (Unroll(loop="S.i"), Tile(loop="S.k", size=5))),
}
"""Accepted and computed rightly."""


def dropped_tail(nest: LoopNest) -> LoopNest:
    """The nest without the last child of its first block."""
    return replace(nest, body=_edit(nest.body, lambda n: _without_last(n)))


def dropped_guard(nest: LoopNest) -> LoopNest:
    """The nest without its guards."""
    return replace(nest, body=_edit(nest.body, lambda n: n.body if isinstance(n, Guard) else n))


def first_element(nest: LoopNest) -> LoopNest:
    """The nest with every load at the first element."""

    def at_zero(node: Expr) -> Expr:
        if not isinstance(node, Load):
            return node
        return replace(node, indices=tuple(affine(0) for _ in node.indices))

    def rewrite(node: Node) -> Node:
        if not isinstance(node, Compute):
            return node
        return replace(node, values=tuple(map_expr(v, at_zero) for v in node.values))

    return replace(nest, body=_edit(nest.body, rewrite))


def smaller_buffer(nest: LoopNest) -> LoopNest:
    """Buffers whose last dimension is one element short."""

    def shrink(node: Node) -> Node:
        if not isinstance(node, Alloc):
            return node
        short = [replace(b, shape=(*b.shape[:-1], b.shape[-1] - 1)) for b in node.buffers]
        return replace(node, buffers=tuple(short))

    return replace(nest, body=_edit(nest.body, shrink))


def _without_last(node: Node) -> Node:
    return replace(node, body=node.body[:-1]) if isinstance(node, Block) else node


def _edit(node: Node, f: Callable[[Node], Node]) -> Node:
    match node:
        case Compute():
            new: Node = node
        case Block():
            new = replace(node, body=tuple(_edit(c, f) for c in node.body))
        case Loop() | Alloc():
            new = replace(node, body=_edit(node.body, f))
        case Guard():
            orelse = None if node.orelse is None else _edit(node.orelse, f)
            new = replace(node, body=_edit(node.body, f), orelse=orelse)
    return f(new)


WRONG: dict[str, tuple[Case, Schedule, Damage | None]] = {
    "parallel seidel": (case_of(SEIDEL), (Parallel(loop="S.i"),), None),
    "vector seidel": (case_of(SEIDEL), (Vectorize(loop="S.i"),), None),
    "interchanged jacobi": (case_of(JACOBI), fused("S.i", "R.i"), None),
    "parallel sum": (case_of(SUM), (Parallel(loop="S.k"),), None),
    "consumer too early": (case_of(AHEAD), fused("A.i", "Y.i"), None),
    "overwritten too early": (case_of(ANTI), fused("S.i", "R.i", Parallel(loop="S.i")), None),
    "reader after writer": (case_of(ANTI), fused("R.i", "S.i"), None),
    "writes in threads": (case_of(OUTPUT), fused("S.i", "R.i", Parallel(loop="S.i")), None),
    "neighbouring rows": (
        case_of(COLUMN),
        (Tile(loop="A.i", size=2), Tile(loop="Y.i", size=2), ComputeAt(tensor="a")),
        smaller_buffer,
    ),
    "scan backwards": (
        case_of(SCAN),
        (Tile(loop="S.j", size=4), Reorder(statement="S", loops=("S.i", "S.j.i", "S.j.o"))),
        None,
    ),
    "no tail": (case_of(TAIL), vectors("S", "i"), dropped_tail),
    "shifted access": (case_of(TAIL), (), first_element),
    "no guard": (case_of(TRIANGLE), (Vectorize(loop="S.j"),), dropped_guard),
    "no final": (case_of(SUM), (), dropped_tail),
    "composed backwards": (
        case_of(COMPOSE),
        (Tile(loop="S.k", size=3), Reorder(statement="S", loops=("S.i", "S.k.i", "S.k.o"))),
        None,
    ),
    "forgotten row": (case_of(BEHIND), fused("A.i", "Y.i", ComputeAt(tensor="a")), None),
    "buffer too small": (
        case_of(BLUR), fused("A.i", "Y.i", ComputeAt(tensor="a")), smaller_buffer,
    ),
}  # fmt: skip
"""Refused."""

PASSES: dict[str, Case] = {
    "chain": case_of(CHAIN, special=True),
    "twins": case_of(TWINS),
    "compared": case_of(COMPARED),
    "scaled": case_of(SCALED),
    "merged": case_of(MERGED),
    "triangle": case_of(TRIANGLE),
    "padded": case_of(PADDED),
    "matmul": case_of(MATMUL),
}
"""Unchanged by the exact passes."""


def faults(names: tuple[str, ...] | None = None) -> list[str]:
    """What the named cases (all, by default) find wrong; each as ``name: reason``."""
    out = []
    for kind, table in (("right", RIGHT), ("wrong", WRONG), ("pass", PASSES)):
        for name in table:
            label = f"{kind} {name}"
            if names is None or label in names:
                fault = _judge(kind, name)
                if fault is not None:
                    out.append(f"{label}: {fault}")
    return out


def _judge(kind: str, name: str) -> str | None:
    try:
        if kind == "right":
            return _judge_right(*RIGHT[name])
        if kind == "wrong":
            return _judge_wrong(*WRONG[name])
        return _judge_passes(PASSES[name])
    except (NestorError, harness.Failure, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _judge_right(case: Case, schedule: Schedule) -> str | None:
    verify_program(case.program)
    nest = apply_schedule(case.program, schedule)
    verify_nest(nest)
    check_nest(case.program, nest)
    inputs = make_inputs(case)
    memory = EnclosureRun(case.program, inputs, case.symbols).run()
    reference = harness.Reference(inputs, case.symbols, memory)
    arrays = harness.fresh_arrays(nest, reference)
    run_nest(nest, arrays, case.symbols)
    wrong = _wrong_result(case, memory, arrays)
    if wrong is not None:
        return f"interpreter: {wrong}"
    native = llvm_native.NativeNest(nest, host_target())
    arrays = harness.fresh_arrays(nest, reference)
    with numeric.quiet():
        code = native.run(arrays, case.symbols, threads=2)
    if code != 0:
        return "an index is reported out of range"
    return _wrong_result(case, memory, arrays)


def _wrong_result(case: Case, memory: object, arrays: dict[str, np.ndarray]) -> str | None:
    for t in case.program.tensors:
        if t.role in harness.RESULTS:
            wrong = find_mismatch(t.name, memory[t.name], arrays[t.name])  # type: ignore[index]
            if wrong is not None:
                return str(wrong)
    return None


def _judge_wrong(case: Case, schedule: Schedule, damage: Damage | None) -> str | None:
    nest = apply_schedule(case.program, schedule)
    if damage is not None:
        nest = damage(nest)
    try:
        check_nest(case.program, nest)
    except IllegalSchedule:
        return None
    return "accepted"


def _judge_passes(case: Case) -> str | None:
    inputs = make_inputs(case)
    memory = EnclosureRun(case.program, inputs, case.symbols).run()
    return find_pass_fault(case.program, inputs, case.symbols, memory) or find_pipeline_fault(
        case.program, inputs, case.symbols, memory
    )
