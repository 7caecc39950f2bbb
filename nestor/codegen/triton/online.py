"""Sums weighed by a softmax that runs along with them, tile by tile.

Source: Dao et al., FlashAttention, NeurIPS 2022, algorithm 1.
"""

from __future__ import annotations

from nestor.codegen.triton.blocks import Context, Value
from nestor.codegen.triton.expressions import Expressions, converted
from nestor.codegen.triton.names import TYPES, combine_name
from nestor.codegen.triton.products import LEAST, side_of
from nestor.ir.expr import Const
from nestor.ir.loopnest import Compute
from nestor.ir.monoid import Monoid, is_builtin, max_of, sum_of
from nestor.ir.narrow_floats import BYTES
from nestor.ir.types import DType


def runs_along(node: Compute) -> bool:
    """Whether a softmax's terms are added one by one, each of weight 1, and not states of parts."""
    if node.monoid is None or node.monoid.name != "online_softmax":
        return False
    one = node.values[1]
    return isinstance(one, Const) and one.value == 1


def reduced_monoids(node: Compute) -> tuple[Monoid, ...]:
    """The monoids that elements of a tile are combined by."""
    monoid = node.monoid
    if monoid is None or node.phase == "init":
        return ()
    if not runs_along(node):
        return (monoid,)
    dtype = monoid.dtypes[0]
    return (max_of(dtype), sum_of(dtype))


def emit_online(
    ctx: Context, node: Compute, state: list[tuple[str, ...]], over: tuple[str, ...]
) -> bool:
    """Write an update of (maximum, total, weighed sum); False where it is none such."""
    monoid = node.monoid
    if monoid is None or monoid.name != "online_softmax" or not is_builtin(monoid):
        return False
    if len(over) != 1:
        return False
    rows, (axis,) = state[0], over
    columns = tuple(a for a in state[2] if a not in rows)
    if state[1] != rows or not runs_along(node):
        return False
    if tuple(a for a in ctx.axes if a in (*rows, *columns)) != (*rows, *columns):
        return False
    dtype = TYPES[monoid.dtypes[0]]
    largest, total, weighed = (ctx.registers[s.target] for s in node.stores)
    before, conditions = ctx.axes, ctx.conditions
    ctx.axes = (*rows, axis)
    ctx.conditions = tuple(c for c in conditions if not c.variables() & set(columns))
    score = Expressions(ctx).value(node.values[0])
    tests = tuple(c for c in ctx.conditions if axis in c.variables())
    mask = ctx.condition(tests)
    if mask.text:
        score = Value(f'tl.where({mask.text}, {score.text}, float("-inf"))', score.dims | mask.dims)
    every = frozenset(ctx.axes)
    score = ctx.assign("score", ctx.spread(score, every, monoid.dtypes[0]))
    at, row = len(rows), ctx.expanded
    maximum = combine_name(max_of(monoid.dtypes[0]))
    addition = combine_name(sum_of(monoid.dtypes[0]))
    top = ctx.names.fresh("top")
    most = f"tl.reduce({score.text}, {at}, {maximum})"
    nan = "propagate_nan=tl.PropagateNan.ALL"
    ctx.line(f"{top} = tl.maximum({largest.name}, {most}, {nan})")
    base = ctx.names.fresh("base")  # a row without a term so far has none to be measured by
    ctx.line(f'{base} = tl.where({top} == float("-inf"), 0.0, {top})')
    weight, scale = ctx.names.fresh("weight"), ctx.names.fresh("scale")
    ctx.line(f"{weight} = tl.exp({score.text} - {row(base, rows)})")
    ctx.line(f"{scale} = tl.exp({largest.name} - {base})")
    ctx.line(f"{largest.name} = {top}")
    ctx.line(f"{total.name} = {total.name} * {scale} + tl.reduce({weight}, {at}, {addition})")
    ctx.axes, ctx.conditions = (*rows, *columns), conditions
    scaled = f"{weighed.name} * {row(scale, rows)}"
    if len(rows) == len(columns) == 1 and all(ctx.sizes[a] >= LEAST for a in before):
        values, kind = side_of(ctx, (node.values[2],), (axis, *columns), axis, monoid.dtypes[0])
        if kind in BYTES:
            values, kind = converted(Value(values), DType.f16, kind).text, DType.f16
        left = weight if kind is monoid.dtypes[0] else f"{weight}.to({TYPES[kind]})"
        precision = f', input_precision="{ctx.precision}"' if kind is DType.f32 else ""
        ctx.line(
            f"{weighed.name} = tl.dot({left}, {values}, {scaled}{precision}, out_dtype={dtype})"
        )
    else:
        ctx.axes = (*rows, *columns, axis)
        value = Expressions(ctx).value(node.values[2])
        own = ctx.condition(tuple(c for c in ctx.conditions if axis in c.variables()))
        if own.text:
            value = Value(f"tl.where({own.text}, {value.text}, 0.0)", value.dims | own.dims)
        terms = ctx.assign(
            "terms",
            Value(f"{row(weight, (*rows, axis))} * {value.text}", frozenset(ctx.axes)),
        )
        last = len(ctx.axes) - 1
        ctx.axes = (*rows, *columns)
        scaled = f"{weighed.name} * {row(scale, rows)}"
        ctx.line(f"{weighed.name} = {scaled} + tl.reduce({terms.text}, {last}, {addition})")
    ctx.axes = before
    return True
