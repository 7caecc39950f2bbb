"""Right nests by hand, for what random schedules do not make: staging, rings, in-place states."""

from __future__ import annotations

from collections.abc import Callable

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Load, Var, binary, const, unary
from nestor.ir.loopnest import LoopNest
from nestor.ir.monoid import Monoid, sum_of
from nestor.ir.program import Program
from tests.legality.kernels import (
    F32,
    I64,
    add,
    alloc,
    box,
    buffer,
    compute,
    guard,
    load,
    loop,
    masked,
    mul,
    nest_of,
    reduce,
    state,
    statement,
    store,
    tensor,
    write,
)

Case = tuple[Program, LoopNest]
SUM = sum_of(F32)
ZERO = const(0, F32)
i, j, k, t, a, b = map(variable, "ijktab")

FIRST_MINUS = Monoid(  # affine maps x → p·x + q under composition: associative, order matters
    name="compose",
    identity=(const(1, F32), const(0, F32)),
    combine=(
        mul(Var(name="a0", dtype=F32), Var(name="b0", dtype=F32)),
        add(mul(Var(name="b0", dtype=F32), Var(name="a1", dtype=F32)), Var(name="b1", dtype=F32)),
    ),
    commutative=False,
)


def row_sums(R: int = 3, N: int = 6, scaled: bool = False) -> Program:
    final = (binary("div", state(0), const(N, F32)),) if scaled else (state(0),)
    return Program(
        name="row_sums",
        tensors=(tensor("X", R, N), tensor("Y", R, role="output")),
        statements=(
            statement("S", box(i=R, j=N), write("Y", "i"), load("X", "i", "j"),
                      reduction=reduce(SUM, "j", final=final)),
        ),
    )  # fmt: skip


def in_place_sum() -> Case:
    """The state lives in the output; the final map is the identity and left out."""
    kernel = row_sums()
    return kernel, nest_of(
        kernel,
        loop("i", 3, compute("S", "init", {"i": "i"}, store("Y", "i"), ZERO)),
        loop("j", 6, loop("i", 3, compute("S", "update", {"i": "i", "j": "j"}, store("Y", "i"),
                                          load("X", "i", "j"), monoid=SUM), kind="parallel")),
    )  # fmt: skip


def in_place_mean() -> Case:
    """The same with a final map."""
    kernel = row_sums(scaled=True)
    final = binary("div", load("Y", "i"), const(6, F32))
    return kernel, nest_of(
        kernel,
        loop(
            "i", 3,
            compute("S", "init", {"i": "i"}, store("Y", "i"), ZERO),
            loop("j", 6, compute("S", "update", {"i": "i", "j": "j"}, store("Y", "i"),
                                 load("X", "i", "j"), monoid=SUM)),
            compute("S", "final", {"i": "i"}, store("Y", "i"), final),
            kind="parallel",
        ),
    )  # fmt: skip


def split_sum() -> Case:
    """Lanes of partial sums, merged in a vector loop; the tail goes to the result directly."""
    kernel = row_sums(N=10)
    at = {"i": affine("i"), "j": 4 * a + b}
    tail = {"i": affine("i"), "j": b + 8}
    return kernel, nest_of(
        kernel,
        loop(
            "i", 3,
            alloc(
                (buffer("s", "S#0", scope="register"), buffer("p", "S#0", 4, scope="register")),
                compute("S", "init", {"i": "i"}, store("s"), ZERO),
                loop("b", 4, compute("S", "init", {"i": "i"}, store("p", "b"), ZERO),
                     kind="vector"),
                loop("a", 2, loop("b", 4, compute("S", "update", at, store("p", "b"),
                                                  load("X", i, 4 * a + b), monoid=SUM),
                                  kind="vector")),
                loop("b", 2, compute("S", "update", tail, store("s"), load("X", i, b + 8),
                                     monoid=SUM)),
                loop("b", 4, compute("S", "merge", {"i": "i"}, store("s"), load("p", "b"),
                                     monoid=SUM), kind="vector"),
                compute("S", "final", {"i": "i"}, store("Y", "i"), load("s")),
            ),
            kind="parallel",
        ),
    )  # fmt: skip


def parallel_partials() -> Case:
    """A reduced loop in parallel: each iteration has a partial state of its own."""
    kernel = row_sums(R=2, N=6)
    at = {"i": affine("i"), "j": 3 * a + b}
    return kernel, nest_of(
        kernel,
        loop(
            "i", 2,
            alloc(
                (buffer("s", "S#0"), buffer("p", "S#0", 2)),
                compute("S", "init", {"i": "i"}, store("s"), ZERO),
                loop("a", 2,
                     compute("S", "init", {"i": "i"}, store("p", "a"), ZERO),
                     loop("b", 3, compute("S", "update", at, store("p", "a"),
                                          load("X", i, 3 * a + b), monoid=SUM)),
                     kind="parallel"),
                loop("a", 2, compute("S", "merge", {"i": "i"}, store("s"), load("p", "a"),
                                     monoid=SUM)),
                compute("S", "final", {"i": "i"}, store("Y", "i"), load("s")),
            ),
        ),
    )  # fmt: skip


def reused_accumulator() -> Case:
    """One accumulator for all rows, one after the other."""
    kernel = row_sums()
    return kernel, nest_of(
        kernel,
        alloc(
            buffer("s", "S#0"),
            loop(
                "i", 3,
                compute("S", "init", {"i": "i"}, store("s"), ZERO),
                loop("j", 6, compute("S", "update", {"i": "i", "j": "j"}, store("s"),
                                     load("X", "i", "j"), monoid=SUM)),
                compute("S", "final", {"i": "i"}, store("Y", "i"), load("s")),
            ),
        ),
    )  # fmt: skip


def ordered_product() -> Case:
    """A reduction whose monoid does not commute: its order is kept."""
    kernel = Program(
        name="compose",
        tensors=(tensor("P", 2, 6), tensor("Q", 2, 6), tensor("Y", 2, role="output")),
        statements=(
            statement("S", box(i=2, j=6), write("Y", "i"), load("P", "i", "j"),
                      load("Q", "i", "j"),
                      reduction=reduce(FIRST_MINUS, "j", final=(state(1),))),
        ),
    )  # fmt: skip
    here = 3 * a + b
    buffers = (buffer("s0", "S#0", 2), buffer("s1", "S#1", 2))
    stores = (store("s0", "i"), store("s1", "i"))
    return kernel, nest_of(
        kernel,
        alloc(
            buffers,
            loop("i", 2, compute("S", "init", {"i": "i"}, stores, *FIRST_MINUS.identity)),
            loop("a", 2, loop("b", 3, loop("i", 2, compute(
                "S", "update", {"i": i, "j": here}, stores, load("P", i, here), load("Q", i, here),
                monoid=FIRST_MINUS), kind="vector"))),
            loop("i", 2, compute("S", "final", {"i": "i"}, store("Y", "i"), load("s1", "i"))),
        ),
    )  # fmt: skip


def added_to_target() -> Case:
    """``+=``: the state starts from the target's contents; partial states from the identity."""
    kernel = Program(
        name="added",
        tensors=(tensor("X", 2, 4), tensor("Y", 2, role="inout")),
        statements=(
            statement("S", box(i=2, j=4), write("Y", "i"), load("X", "i", "j"),
                      reduction=reduce(SUM, "j", into=True)),
        ),
    )  # fmt: skip
    return kernel, nest_of(
        kernel,
        loop(
            "i", 2,
            alloc(
                (buffer("s", "S#0"), buffer("p", "S#0", 2)),
                compute("S", "init", {"i": "i"}, store("s"), load("Y", "i")),
                loop("b", 2, compute("S", "init", {"i": "i"}, store("p", "b"), ZERO)),
                loop("j", 4, compute("S", "update", {"i": "i", "j": "j"}, store("p", j % 2),
                                     load("X", "i", "j"), monoid=SUM)),
                loop("b", 2, compute("S", "merge", {"i": "i"}, store("s"), load("p", "b"),
                                     monoid=SUM)),
                compute("S", "final", {"i": "i"}, store("Y", "i"), load("s")),
            ),
        ),
    )  # fmt: skip


def added_in_place() -> Case:
    """``+=`` straight into the target, without a start."""
    kernel, _ = added_to_target()
    return kernel, nest_of(
        kernel,
        loop("j", 4, loop("i", 2, compute("S", "update", {"i": "i", "j": "j"}, store("Y", "i"),
                                          load("X", "i", "j"), monoid=SUM), kind="vector")),
    )  # fmt: skip


def scan_in_chunks() -> Case:
    """A running sum, tiled, many rows in the lanes of a vector."""
    kernel = Program(
        name="scan",
        tensors=(tensor("X", 4, 6), tensor("Y", 4, 6, role="output")),
        statements=(
            statement("S", box(i=4, j=6), write("Y", "i", "j"), load("X", "i", "j"),
                      reduction=reduce(SUM, "j", scan=True)),
        ),
    )  # fmt: skip
    here = {"i": i, "j": 2 * a + b}
    return kernel, nest_of(
        kernel,
        alloc(
            buffer("s", "S#0", 4),
            loop("i", 4, compute("S", "init", {"i": "i"}, store("s", "i"), ZERO), kind="vector"),
            loop("a", 3, loop("b", 2, loop(
                "i", 4,
                compute("S", "update", here, store("s", "i"), load("X", i, 2 * a + b), monoid=SUM),
                compute("S", "final", here, store("Y", i, 2 * a + b), load("s", "i")),
                kind="vector",
            ))),
        ),
    )  # fmt: skip


def smooth(N: int = 7) -> Program:
    """A producer and a consumer that looks one back."""
    return Program(
        name="smooth",
        tensors=(tensor("X", N), tensor("A", N, role="temp"), tensor("Y", N, role="output")),
        statements=(
            statement("A", box(i=N), write("A", "i"), unary("exp", load("X", "i"))),
            statement("Y", box(i=N), write("Y", "i"),
                      add(load("A", "i"), masked("A", (i - 1,), (i - 1,))), order=(1,)),
        ),
    )  # fmt: skip


def ring_buffer() -> Case:
    """The temp in a ring of two cells: the older value is still there when it is read."""
    kernel = smooth()
    older = masked("ring", ((i - 1) % 2,), (i - 1,))
    return kernel, nest_of(
        kernel,
        alloc(
            buffer("ring", "A", 2),
            loop(
                "i", 7,
                compute("A", "point", {"i": "i"}, store("ring", i % 2), unary("exp", load("X", i))),
                compute("Y", "point", {"i": "i"}, store("Y", "i"), add(load("ring", i % 2), older)),
            ),
        ),
        without=("A",),
    )  # fmt: skip


def shifted_fusion() -> Case:
    """The consumer one iteration behind its producer, guarded at the ends."""
    kernel = smooth()
    back = add(load("A", i - 1), masked("A", (i - 2,), (i - 2,)))
    return kernel, nest_of(
        kernel,
        loop(
            "i", 8,
            guard(6 - i, compute("A", "point", {"i": "i"}, store("A", "i"),
                                 unary("exp", load("X", "i")))),
            guard(i - 1, compute("Y", "point", {"i": i - 1}, store("Y", i - 1), back)),
        ),
    )  # fmt: skip


def blur_rows(N: int = 4) -> Program:
    """Each output needs three inputs."""
    return Program(
        name="blur_rows",
        tensors=(tensor("X", N, 6), tensor("Y", N, 4, role="output")),
        statements=(
            statement("Y", box(i=N, j=4), write("Y", "i", "j"),
                      add(load("X", "i", "j"), load("X", i, j + 1), load("X", i, j + 2))),
        ),
    )  # fmt: skip


def staged_row() -> Case:
    """A row of the input copied into a buffer first."""
    kernel = blur_rows()
    taps = add(load("row", "j"), load("row", j + 1), load("row", j + 2))
    return kernel, nest_of(
        kernel,
        loop(
            "i", 4,
            alloc(
                buffer("row", "X", 6),
                loop("b", 6, compute("X", "copy", {"d0": "i", "d1": "b"}, store("row", "b"),
                                     load("X", "i", "b")), kind="vector"),
                loop("j", 4, compute("Y", "point", {"i": "i", "j": "j"}, store("Y", "i", "j"),
                                     taps)),
            ),
            kind="parallel",
        ),
    )  # fmt: skip


def staged_state() -> Case:
    """A vector that every time step overwrites, staged anew in every step."""
    kernel = Program(
        name="staged_state",
        tensors=(tensor("U", 3, 3), tensor("G", 3, role="temp"), tensor("h", 3, role="inout")),
        statements=(
            statement("G", box(t=3, j=3, k=3), write("G", "j"),
                      mul(load("h", "k"), load("U", "j", "k")), order=(0, "t", 0),
                      reduction=reduce(SUM, "k")),
            statement("H", box(t=3, j=3), write("h", "j"), unary("tanh", load("G", "j")),
                      order=(0, "t", 1)),
        ),
    )  # fmt: skip
    point = {"t": t, "j": j}
    return kernel, nest_of(
        kernel,
        alloc(
            (buffer("hs", "h", 3), buffer("g", "G", 3), buffer("s", "G#0")),
            loop(
                "t", 3,
                loop("b", 3, compute("h", "copy", {"d0": "b"}, store("hs", "b"), load("h", "b"))),
                loop(
                    "j", 3,
                    compute("G", "init", point, store("s"), ZERO),
                    loop("k", 3, compute("G", "update", {**point, "k": k}, store("s"),
                                         mul(load("hs", "k"), load("U", "j", "k")), monoid=SUM)),
                    compute("G", "final", point, store("g", "j"), load("s")),
                ),
                loop("j", 3, compute("H", "point", point, store("h", "j"),
                                     unary("tanh", load("g", "j")))),
            ),
        ),
        without=("G",),
    )  # fmt: skip


def rewritten_temp() -> Case:
    """A temp that is written, read, and written again, kept in one buffer."""
    kernel = Program(
        name="rewritten",
        tensors=(tensor("X", 4), tensor("A", 4, role="temp"), tensor("Y", 4, role="output"),
                 tensor("Z", 4, role="output")),
        statements=(
            statement("P", box(i=4), write("A", "i"), unary("exp", load("X", "i"))),
            statement("Y", box(i=4), write("Y", "i"), load("A", "i"), order=(1,)),
            statement("Q", box(i=4), write("A", "i"), unary("neg", load("X", "i")), order=(2,)),
            statement("Z", box(i=4), write("Z", "i"), load("A", "i"), order=(3,)),
        ),
    )  # fmt: skip
    at = {"i": "i"}
    return kernel, nest_of(
        kernel,
        loop(
            "i", 4,
            alloc(
                buffer("x", "A"),
                compute("P", "point", at, store("x"), unary("exp", load("X", "i"))),
                compute("Y", "point", at, store("Y", "i"), load("x")),
                compute("Q", "point", at, store("x"), unary("neg", load("X", "i"))),
                compute("Z", "point", at, store("Z", "i"), load("x")),
            ),
            kind="parallel",
        ),
        without=("A",),
    )  # fmt: skip


def gathered_buffer() -> Case:
    """A table in a buffer, gathered from."""
    kernel = Program(
        name="gathered",
        tensors=(tensor("X", 4, 3), tensor("ids", 5, dtype=I64), tensor("T", 4, 3, role="temp"),
                 tensor("Y", 5, 3, role="output")),
        statements=(
            statement("T", box(i=4, j=3), write("T", "i", "j"), unary("exp", load("X", "i", "j"))),
            statement("Y", box(i=5, j=3), write("Y", "i", "j"),
                      load("T", load("ids", "i", dtype=I64), "j"), order=(1,)),
        ),
    )  # fmt: skip
    row: Load = load("ids", "i", dtype=I64)
    return kernel, nest_of(
        kernel,
        loop(
            "j", 3,
            alloc(
                buffer("col", "T", 4, 1),
                loop("i", 4, compute("T", "point", {"i": "i", "j": "j"}, store("col", "i", 0),
                                     unary("exp", load("X", "i", "j")))),
                loop("i", 5, compute("Y", "point", {"i": "i", "j": "j"}, store("Y", "i", "j"),
                                     load("col", row, 0))),
            ),
            kind="parallel",
        ),
        without=("T",),
    )  # fmt: skip


def index_added() -> Case:
    """A reduction into data-dependent rows: rows in order, columns in parallel."""
    from tests.legality.kernels import index_add

    kernel = index_add()
    row: Load = load("ids", "i", dtype=I64)
    return kernel, nest_of(
        kernel,
        loop("j", 3, loop("i", 4, compute("A", "update", {"i": "i", "j": "j"},
                                          store("Y", row, "j"), load("X", "i", "j"), monoid=SUM)),
             kind="parallel"),
    )  # fmt: skip


def masked_tail() -> Case:
    """A parallel tile whose last iteration is shorter; a vector loop with a masked tail."""
    kernel = Program(
        name="tail",
        tensors=(tensor("X", 10, 5), tensor("Y", 10, 5, role="output")),
        statements=(
            statement("Y", box(i=10, j=5), write("Y", "i", "j"),
                      unary("exp", load("X", "i", "j"))),
        ),
    )  # fmt: skip

    def one(row: Affine) -> object:
        here = {"i": row, "j": affine("j")}
        return loop("j", 8, guard(4 - j, compute("Y", "point", here, store("Y", row, "j"),
                                                 unary("exp", load("X", row, "j")))),
                    kind="vector")  # fmt: skip

    main = loop("b", 4, one(4 * a + b), kind="unroll")  # type: ignore[arg-type]
    tail = loop("b", 2, one(b + 8), kind="unroll")  # type: ignore[arg-type]
    return kernel, nest_of(kernel, loop("a", 3, guard(1 - a, main, tail), kind="parallel"))


NESTS: dict[str, Callable[[], Case]] = {
    f.__name__: f
    for f in (
        in_place_sum, in_place_mean, split_sum, parallel_partials, reused_accumulator,
        ordered_product, added_to_target, added_in_place, scan_in_chunks, ring_buffer,
        shifted_fusion, staged_row, staged_state, rewritten_temp, gathered_buffer, index_added,
        masked_tail,
    )
}  # fmt: skip
