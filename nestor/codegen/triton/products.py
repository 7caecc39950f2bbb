"""Sums of products along a loop of the tile, as ``tl.dot``."""

from __future__ import annotations

from dataclasses import dataclass

from nestor.codegen.triton.blocks import Context, Value
from nestor.codegen.triton.descriptors import load_box
from nestor.codegen.triton.expressions import Expressions, converted, short_name
from nestor.codegen.triton.names import TYPES
from nestor.codegen.triton.states import expression_loops
from nestor.ir.expr import Binary, Cast, Expr, Load, loads
from nestor.ir.loopnest import Compute
from nestor.ir.narrow_floats import BYTES
from nestor.ir.types import DType

LEAST = 16
"""Of each side of a product that tensor cores take."""

LEAST_BYTES = 32
"""Of the terms of a product of 8-bit operands [bytes]."""

_EXACT = {
    DType.f32: (DType.f16, DType.bf16, DType.f32, *BYTES),
    DType.i32: (DType.i8,),
    DType.f64: (DType.f64,),
}
"""Operands whose products are exact in a state's type, or as the precision asked for has them."""


@dataclass(frozen=True, slots=True)
class _Sides:
    """The factors of a product: those with the state's rows, and those with its columns."""

    left: tuple[Expr, ...]
    right: tuple[Expr, ...]


def emit_product(
    ctx: Context, node: Compute, state: tuple[str, ...], over: tuple[str, ...]
) -> bool:
    """Write a sum of products of two blocks; False where it is none, and nothing is written."""
    monoid = node.monoid
    if monoid is None or monoid.name != "sum" or len(over) != 1 or len(node.values) != 1:
        return False
    dtype = node.values[0].dtype
    if len(state) not in (2, 3) or dtype not in _EXACT:
        return False
    *batch, row, column = state
    if tuple(a for a in ctx.axes if a in state) != state:
        return False
    if any(ctx.sizes[a] < LEAST for a in (row, column, over[0])):
        return False
    is_narrow = any(x.dtype.bytes == 1 for x in loads(node.values[0]))
    if is_narrow and ctx.sizes[over[0]] < LEAST_BYTES:
        return False
    for apart, beside in ((row, column), (column, row)):
        # A side's block has no dimension for what is tested on both.
        tested = (c.variables() for c in ctx.conditions if apart in c.variables())
        if any(v & {beside, over[0]} for v in tested):
            return False
    sides = _sides(ctx, node.values[0], frozenset({row}), frozenset({column}), over[0])
    if sides is None:
        return False
    left, left_kind = side_of(ctx, sides.left, (*batch, row, over[0]), over[0], dtype)
    right, right_kind = side_of(ctx, sides.right, (*batch, over[0], column), over[0], dtype)
    register = ctx.registers[node.stores[0].target]
    if left_kind in BYTES and right_kind in BYTES:
        kinds = ", ".join(f'"{short_name(k)}"' for k in (left_kind, right_kind))
        ctx.line(f"{register.name} = lib.dot_of_bytes({left}, {right}, {register.name}, {kinds})")
        return True
    if left_kind != right_kind:  # both exact, and tensor cores take one type
        left, right = (
            converted(Value(side), dtype, kind).text
            for side, kind in ((left, left_kind), (right, right_kind))
        )
    extra = f', input_precision="{ctx.precision}"' if dtype is DType.f32 else ""
    out = f", out_dtype={TYPES[dtype]}"
    ctx.line(f"{register.name} = tl.dot({left}, {right}, {register.name}{extra}{out})")
    return True


def _factors(expr: Expr) -> list[Expr]:
    if isinstance(expr, Binary) and expr.op == "mul":
        return [*_factors(expr.a), *_factors(expr.b)]
    return [expr]


def _sides(
    ctx: Context, expr: Expr, row: frozenset[str], column: frozenset[str], over: str
) -> _Sides | None:
    """Factors by the loops that they vary over; None if one varies over rows and columns, or a
    side does not vary over the sum."""
    left: list[Expr] = []
    right: list[Expr] = []
    for factor in _factors(expr):
        names = variables(ctx, factor)
        if names & row and names & column:
            return None
        (right if names & column else left).append(factor)
    if len(left) + len(right) < 2 or not left or not right:
        return None
    for side in (left, right):
        if not any(over in variables(ctx, f) for f in side):
            return None
    return _Sides(tuple(left), tuple(right))


def variables(ctx: Context, expr: Expr) -> frozenset[str]:
    """The tile's loops that an expression's value varies over."""
    return expression_loops(expr) & frozenset(ctx.axes)


def side_of(
    ctx: Context, factors: tuple[Expr, ...], axes: tuple[str, ...], over: str, dtype: DType
) -> tuple[str, DType]:
    """A block of the product of ``factors`` with the dimensions ``axes``, zero where a test leaves
    terms out, and its type: that in memory, where products of it are exact in ``dtype``."""
    before, conditions = ctx.axes, ctx.conditions
    ctx.axes = axes
    hidden = frozenset(before) - frozenset(axes)
    ctx.conditions = tuple(c for c in conditions if not c.variables() & hidden)
    plain = factors[0]
    stripped = plain.x if isinstance(plain, Cast) and plain.x.dtype in _EXACT[dtype] else plain
    writer = Expressions(ctx)
    box = load_box(ctx, stripped) if len(factors) == 1 and isinstance(stripped, Load) else None
    if box is not None:
        value, kind = box, stripped.dtype
    elif len(factors) == 1:
        if isinstance(stripped, Load) and stripped.dtype in BYTES and not stripped.predicate:
            value = writer.load(stripped, is_raw=True)
        else:
            value = writer.value(stripped)
        kind = stripped.dtype
    else:
        product = factors[0]
        for f in factors[1:]:
            product = Binary(op="mul", a=product, b=f)
        value, kind = writer.value(product), dtype
    dims = frozenset(axes)
    is_loaded = (
        len(factors) == 1
        and isinstance(stripped, Load)
        and not stripped.predicate
        and stripped.tensor not in ctx.registers
    )
    tests = tuple(c for c in ctx.conditions if over in c.variables())
    mask = ctx.condition(tests)
    if mask.text and not is_loaded:
        is_plain = kind.is_float and kind not in BYTES
        zero = "0.0" if is_plain else f"tl.full((), 0, {TYPES[kind]})"
        value = Value(f"tl.where({mask.text}, {value.text}, {zero})", value.dims | mask.dims)
    text = ctx.spread(value, dims, kind).text
    found = ctx.assign("side", Value(text, dims)).text if not text.isidentifier() else text
    ctx.axes, ctx.conditions = before, conditions
    return found, kind
