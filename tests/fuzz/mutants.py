"""Planted faults of the checker, the passes and the code generator.

A mutant replaces one function by one that does almost the same, and names the cases of
``mutant_cases`` that must notice. What they notice is a refusal of a right nest, an accepted wrong
one, or a wrong result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nestor.codegen.llvm import addressing, computes, expressions, mathlib, ops, parallel
from nestor.codegen.llvm import nest as native_nest
from nestor.codegen.llvm.builder import FunctionBuilder, bool_val, float_val, int_val
from nestor.codegen.llvm.context import Context
from nestor.codegen.llvm.expressions import Expressions
from nestor.codegen.llvm.ops import Ops
from nestor.ir.expr import Const, Load, const, map_expr
from nestor.ir.types import DType
from nestor.passes import (
    common_subexpressions,
    dead_code,
    delinearize,
    fold_scales,
    nest_builder,
    nest_constraints,
    simplify,
    simplify_expr,
    substitute,
    temp_buffers,
)
from nestor.passes.polyhedral import buffers, coverage, dependences, model, races, values
from nestor.passes.polyhedral.accumulators import _StateCheck

Patch = tuple[Any, str, Any]


@dataclass(frozen=True)
class Mutant:
    """A fault: where, what instead, and which cases see it."""

    name: str
    patches: Callable[[], list[Patch]]
    cases: tuple[str, ...]


def instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], list[Patch]]:
    """Replace ``owner.name`` by ``make(the real one)``."""
    return lambda: [(owner, name, make(getattr(owner, name)))]


def nothing(_real: Any) -> Any:
    """A function that does nothing."""
    return lambda *_, **__: None


# ------------------------------------------------------------------------------------- checker

ALL_CONCURRENT = ("parallel", "vector", "grid")


def _only_reads_or_writes(wanted: bool) -> Callable[[Any], Any]:
    def make(real: Any) -> Any:
        def check(m: Any, session: Any, write: Any, other: Any) -> None:
            if other.is_write is wanted:
                real(m, session, write, other)

        return check

    return make


def _without(kind: str) -> Callable[[Any], Any]:
    return lambda _: tuple(k for k in ALL_CONCURRENT if k != kind)


CHECKER = (
    Mutant(
        "checker: anti and flow dependences are ignored",
        instead(dependences, "_check_pair", _only_reads_or_writes(True)),
        ("wrong reader after writer", "wrong consumer too early"),
    ),
    Mutant(
        "checker: a vector loop counts as serial",
        instead(races, "CONCURRENT", _without("vector")),
        ("wrong vector seidel",),
    ),
    Mutant(
        "checker: a parallel loop counts as serial",
        instead(races, "CONCURRENT", _without("parallel")),
        ("wrong parallel seidel", "wrong parallel sum"),
    ),
    Mutant(
        "checker: coverage is skipped",
        instead(coverage, "_check_phase", nothing),
        ("wrong no tail", "wrong no guard"),
    ),
    Mutant(
        "checker: guards are taken for true",
        instead(
            model._Walker,
            "_visit_guard",
            lambda _: (
                lambda self, node, loops, trail, *rest: self.visit(
                    node.body, loops, (*trail, ("at", 0)), *rest
                )
            ),
        ),
        ("right triangle",),
    ),
    Mutant(
        "checker: buffers may be read before they are written",
        instead(buffers._ReadCheck, "check_written", nothing),
        ("wrong forgotten row",),
    ),
    Mutant(
        "checker: reductions may lose their state",
        instead(_StateCheck, "check", nothing),
        ("wrong scan backwards", "wrong composed backwards"),
    ),
    Mutant(
        "checker: the order of scans is free",
        instead(_StateCheck, "_check_order", nothing),
        ("wrong scan backwards",),
    ),
    Mutant(
        "checker: indices are not compared",
        instead(values._SiteCheck, "same", nothing),
        ("wrong shifted access",),
    ),
)

# ------------------------------------------------------------------------------------- passes

BUILDER = nest_builder._Builder


def _no_tail(real: Any) -> Any:
    def loop(self: Any, name: str, body: Any, ctx: Any) -> Any:
        info = self.state.loops[name]
        nodes = real(self, name, body, ctx)
        return nodes[:1] if info.half == "o" and len(nodes) > 1 else nodes

    return loop


def _drop_shared(real: Any) -> Any:
    def shared(self: Any, items: Any, ctx: Any, find: Any) -> Any:
        return (), real(self, items, ctx, find)[1]

    return shared


def _other_phases(order: Callable[[Any, Any, Any], tuple[Any, Any, Any]]) -> Callable[[Any], Any]:
    return lambda real: lambda *args: order(*real(*args))


def _merge_dropped(before: list[Any], inside: list[Any], after: list[Any]) -> Any:
    return before, inside, [x for x in after if x.phase != "merge"]


def _zero_identity(real: Any) -> Any:
    def stores(self: Any, item: Any, indices: Any, scope: Any) -> Any:
        targets, exprs = real(self, item, indices, scope)
        if item.phase == "init":
            exprs = tuple(const(0, e.dtype) if isinstance(e, Const) else e for e in exprs)
        return targets, exprs

    return stores


def _without_predicates(real: Any) -> Any:
    def bare(node: Any) -> Any:
        is_guarded = isinstance(node, Load) and node.predicate
        return replace(node, predicate=(), other=None) if is_guarded else node

    return lambda self, expr, *rest: map_expr(real(self, expr, *rest), bare)


def _footprint(base: int, extent: int) -> Callable[[Any], Any]:
    def make(real: Any) -> Any:
        def dimension(*args: Any) -> Any:
            origin, size = real(*args)
            return origin + base, size + extent

        return dimension

    return make


def _no_signs(real: Any) -> Any:
    def binary(node: Any, *rest: Any) -> Any:
        if node.op == "mul" and isinstance(node.b, Const) and node.b.value == 0:
            return node.b  # 0·x is 0: wrong for infinities, NaN and negative numbers
        return real(node, *rest)

    return binary


def _shortened(real: Any) -> Any:
    def split(*args: Any) -> Any:
        statement = real(*args)
        first, *others = statement.domain.ranges
        short = replace(first, upper=first.upper - 1)
        return replace(statement, domain=replace(statement.domain, ranges=(short, *others)))

    return split


def _always_below(real: Any) -> Any:
    return lambda op, difference: True if op == "lt" else real(op, difference)


PASSES = (
    Mutant(
        "nest builder: a tail has a whole tile",
        instead(nest_builder.Context, "inner_extent", nothing),
        ("right tail", "right matmul"),
    ),
    Mutant(
        "nest builder: no tail", instead(BUILDER, "loop", _no_tail), ("right tail", "right matmul")
    ),
    Mutant(
        "nest builder: constraints are dropped",
        instead(nest_constraints.Constraints, "_shared", _drop_shared),
        ("right triangle",),
    ),
    Mutant(
        "nest builder: init after the loop",
        instead(nest_builder, "_phases", _other_phases(lambda b, i, a: ([], i, b + a))),
        ("right plain max", "right matmul"),
    ),
    Mutant(
        "nest builder: final before the loop",
        instead(nest_builder, "_phases", _other_phases(lambda b, i, a: (b + a, i, []))),
        ("right plain max", "right matmul"),
    ),
    Mutant(
        "nest builder: lanes are not merged",
        instead(nest_builder, "_phases", _other_phases(_merge_dropped)),
        ("right split sum",),
    ),
    Mutant(
        "nest builder: every identity is 0",
        instead(BUILDER, "_stores_and_values", _zero_identity),
        ("right plain max",),
    ),
    Mutant(
        "nest builder: predicates are dropped",
        instead(BUILDER, "_rewrite", _without_predicates),
        ("right padded", "right shifted"),
    ),
    Mutant(
        "temp buffers: the base is one too far",
        instead(temp_buffers, "_dimension", _footprint(1, 0)),
        ("right blur",),
    ),
    Mutant(
        "temp buffers: one element too few",
        instead(temp_buffers, "_dimension", _footprint(0, -1)),
        ("right blur",),
    ),
    Mutant("simplify: 0·x is 0", instead(simplify_expr, "_binary", _no_signs), ("pass chain",)),
    Mutant(
        "simplify: every comparison holds",
        instead(simplify_expr, "_decide", _always_below),
        ("pass compared",),
    ),
    Mutant(
        "simplify: domains keep no constraints",
        instead(
            simplify,
            "_simplify_domain",
            lambda real: lambda d, r: replace(real(d, r), constraints=()),
        ),
        ("pass triangle",),
    ),
    Mutant(
        "inline: the reader's predicate is lost",
        instead(substitute, "guard_value", lambda _: lambda element, *rest: element),
        ("pass chain",),
    ),
    Mutant(
        "fold scales: a subtracted product keeps its sign",
        instead(fold_scales, "_negated", lambda _: lambda form, dtype: form),
        ("pass scaled",),
    ),
    Mutant(
        "delinearize: the last block is left out",
        instead(delinearize, "_split", _shortened),
        ("pass merged",),
    ),
    Mutant(
        "common subexpressions: indices do not count",
        instead(common_subexpressions, "_key", lambda _: lambda s, facts: len(s.elements)),
        ("pass twins",),
    ),
    Mutant(
        "dead code: inputs of live statements are dead",
        instead(dead_code, "_live", lambda real: lambda *a: (set(), set(list(real(*a)[1])[-1:]))),
        ("pass chain",),
    ),
)

# ------------------------------------------------------------------------------------- native


def _no_mask(_real: Any) -> Any:
    return lambda self: None


def _rotated(real: Any) -> Any:
    def shuffle(self: Any, value: Any, lanes: list[int], other: Any = None) -> Any:
        return real(self, value, [*lanes[1:], lanes[1 % len(lanes)]], other)

    return shuffle


def _never_reversed(real: Any) -> Any:
    def shuffle(self: Any, value: Any, lanes: list[int], other: Any = None) -> Any:
        if lanes == list(range(value.lanes))[::-1]:
            lanes = lanes[::-1]
        return real(self, value, lanes, other)

    return shuffle


def _trapping_cast(_real: Any) -> Any:
    def saturate(self: Any, x: Any, target: DType) -> Any:
        ty = {DType.i64: "i64", DType.i32: "i32"}[target]
        is_nan = self.fb.compare("fcmp uno", x, x)
        safe = self.fb.select(is_nan, float_val(0.0, x.ty), x)
        return self.fb.convert("fptosi", safe, ty)

    return saturate


def _plain_extreme(_real: Any) -> Any:
    def extreme(self: Any, op: str, a: Any, b: Any) -> Any:
        predicate = "fcmp ogt" if op == "max" else "fcmp olt"
        return self.fb.select(self.fb.compare(predicate, a, b), a, b)

    return extreme


def _rounded_towards_zero(real: Any) -> Any:
    def divide(self: Any, op: str, a: Any, b: Any, signed: bool) -> Any:
        return real(self, {"floordiv": "truncdiv", "mod": "rem"}.get(op, op), a, b, signed)

    return divide


def _raw_shift(_real: Any) -> Any:
    def shift(self: Any, op: str, a: Any, b: Any, dtype: DType) -> Any:
        count = self.fb.op("and", b, int_val(dtype.bits - 1, a.ty))
        return self.fb.op("shl" if op == "shl" else "ashr", a, count)

    return shift


def _cut_bf16(_real: Any) -> Any:
    def cut(self: Any, x: Any) -> Any:
        bits = self.fb.convert("bitcast", x, "i32")
        return self.fb.convert("trunc", self.fb.op("lshr", bits, int_val(16, "i32")), "i16")

    return cut


def _signed_everything(real: Any) -> Any:
    def binary(self: Any, op: str, a: Any, b: Any, dtype: DType) -> Any:
        return real(self, op, a, b, DType.i8 if dtype is DType.u8 else dtype)

    return binary


def _one_thread_fewer(real: Any) -> Any:
    return lambda name: real(name).replace("add i64 %share, %more", "add i64 %share, 0")


def _one_short(real: Any) -> Any:
    def bounds(ctx: Any, loop: Any) -> tuple[int, int]:
        low, high = real(ctx, loop)
        return low, high - 1 if loop.kind == "unroll" else high

    return bounds


def _unchecked_index(real: Any) -> Any:
    return lambda self, node, extent: real(self, node, extent - 1)


def _unguarded(real: Any) -> Any:
    def guarded(ctx: Any, guard: Any, lanes: Any) -> None:
        real(ctx, guard, None)

    return guarded


def _lost_merge(_real: Any) -> Any:
    def reduce_lanes(ctx: Any, monoid: Any, given: Any) -> Any:
        states = [ctx.fb.broadcast(v, ctx.lanes) for v in given]
        return [ctx.fb.extract(s, 0) for s in states]

    return reduce_lanes


def _wrong_constant(real: Any) -> Any:
    def call(fb: Any, op: str, args: Any) -> Any:
        result = real(fb, op, args)
        if op != "exp":
            return result
        return fb.op("fmul", result, float_val(1.0 + 2.0**-20, result.ty))

    return call


def _unordered_equal(real: Any) -> Any:
    def binary(self: Any, op: str, a: Any, b: Any, dtype: DType) -> Any:
        if op == "ge":
            return self.fb.compare("fcmp uge", a, b)
        return real(self, op, a, b, dtype)

    return binary


def _rest_dropped(_real: Any) -> Any:
    return property(lambda self: isinstance(self.offsets, tuple))


def _logical_addresses(real: Any) -> Any:
    def physical(self: Any, name: str, indices: Any) -> Any:
        tensor = self.ctx.info.tensors.get(name)
        if tensor is None or tensor.layout is None or len(tensor.layout.shape) != len(indices):
            return real(self, name, indices)
        return list(indices)

    return physical


NATIVE = (
    Mutant("native: masks are dropped", instead(Context, "full_mask", _no_mask), ("right tail",)),
    Mutant(
        "native: shuffles mix up lanes",
        instead(FunctionBuilder, "shuffle", _rotated),
        ("right split argmax", "right split max", "right split sum"),
    ),
    Mutant(
        "native: lanes are not combined",
        instead(computes, "reduce_lanes", _lost_merge),
        ("right split sum", "right split max"),
    ),
    Mutant(
        "native: every stride is 1",
        instead(addressing.Location, "is_contiguous", _rest_dropped),
        ("right strides",),
    ),
    Mutant(
        "native: reversed rows run forwards",
        instead(FunctionBuilder, "shuffle", _never_reversed),
        ("right strides",),
    ),
    Mutant(
        "native: layouts are ignored",
        instead(Expressions, "_physical", _logical_addresses),
        ("right layout",),
    ),
    Mutant(
        "native: casts do not saturate", instead(Ops, "_saturate", _trapping_cast), ("right casts",)
    ),
    Mutant(
        "native: NaN loses against numbers",
        instead(Ops, "_float_extreme", _plain_extreme),
        ("right extremes",),
    ),
    Mutant(
        "native: division rounds towards zero",
        instead(Ops, "_divide", _rounded_towards_zero),
        ("right integers",),
    ),
    Mutant("native: shifts wrap", instead(Ops, "_shift", _raw_shift), ("right integers",)),
    Mutant("native: bf16 is cut off", instead(Ops, "_to_bf16", _cut_bf16), ("right storage",)),
    Mutant(
        "native: bytes are signed",
        instead(Ops, "_int_binary", _signed_everything),
        ("right unsigned",),
    ),
    Mutant(
        "native: NaN is at least anything",
        instead(Ops, "_float_binary", _unordered_equal),
        ("right select",),
    ),
    Mutant(
        "native: halves round away from zero",
        instead(ops, "_ROUNDING", lambda real: {**real, "round": "round"}),
        ("right rounding",),
    ),
    Mutant(
        "native: exp is off by 2⁻²⁰",
        instead(mathlib, "call_math", _wrong_constant),
        ("right math",),
    ),
    Mutant(
        "native: threads forget the remainder",
        instead(parallel, "_thread_function", _one_thread_fewer),
        ("right threads", "right odd rows"),
    ),
    Mutant(
        "native: unrolled loops stop early",
        instead(native_nest, "constant_bounds", _one_short),
        ("right unrolled",),
    ),
    Mutant(
        "native: the last row cannot be gathered",
        instead(Expressions, "_checked_index", _unchecked_index),
        ("right gather",),
    ),
    Mutant(
        "native: guards of lanes are ignored",
        instead(native_nest, "_emit_masked", _unguarded),
        ("right triangle",),
    ),
    Mutant(
        "native: predicates always hold",
        instead(expressions, "condition", lambda _: lambda ctx, conditions: (bool_val(True), None)),
        ("right shifted", "right padded"),
    ),
)

MUTANTS = (*CHECKER, *PASSES, *NATIVE)
