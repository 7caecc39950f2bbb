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
from tests.fuzz.mutant_kernels import (
    AHEAD,
    ANTI,
    ARGMAX,
    BEHIND,
    BLUR,
    CASTS,
    CHAIN,
    COLUMN,
    COMPARED,
    COMPOSE,
    EXTREMES,
    GATHER,
    INDEX_ADD,
    INTEGERS,
    JACOBI,
    LAYOUT,
    MATH,
    MATMUL,
    MAX,
    MERGED,
    OUTPUT,
    PADDED,
    ROUNDING,
    ROWS,
    SCALED,
    SCAN,
    SEIDEL,
    SELECT,
    SHIFTED,
    STORAGE,
    STRIDES,
    SUM,
    SYMBOL,
    TAIL,
    TRIANGLE,
    TWINS,
    UNSIGNED,
    WELFORD,
)
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
