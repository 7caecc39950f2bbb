"""Loops over elementary functions beside register tiles, as functions of their own.

Such a loop holds twenty constants. In one function with a tile of sums, LLVM moves their loads in
front of the loops around both, and the registers that they then take are the sums' own: these go
through the stack in the tile's innermost loop. Behind a call the constants are loaded once a tile.
"""

from __future__ import annotations

from nestor.codegen.llvm.builder import FunctionBuilder, int_val
from nestor.codegen.llvm.capture import Capture, slot
from nestor.codegen.llvm.context import Context
from nestor.codegen.llvm.cost import EXPENSIVE, expression_cost
from nestor.ir.expr import loads
from nestor.ir.loopnest import Alloc, Block, Loop, Node, computes, node_children

_MIN_SUMS = 8
"""Sums of a tile, as vectors, from which on its registers are worth keeping."""


def outlined(ctx: Context, block: Block) -> frozenset[int]:
    """Places in ``block`` of the loops that are to be functions of their own."""
    if not ctx.inside_parallel or ctx.vector is not None:
        return frozenset()
    if ctx.info.gathers or ctx.condition is not None or ctx.mask is not None:
        return frozenset()
    if not any(_holds_tile(ctx, child) for child in block.body):
        return frozenset()
    return frozenset(
        n
        for n, child in enumerate(block.body)
        if isinstance(child, Loop) and child.kind == "serial" and _is_expensive(ctx, child)
    )


def _holds_tile(ctx: Context, node: Node) -> bool:
    """Whether ``node`` keeps a register tile over a loop inside of it."""
    if isinstance(node, Alloc):
        lanes = ctx.target.lanes(32)
        for b in node.buffers:
            size = 1
            for e in b.shape:
                size *= e.const if e.is_const else 1
            if b.scope == "register" and size >= _MIN_SUMS * lanes:
                return True
    return any(_holds_tile(ctx, child) for child in node_children(node))


def _is_expensive(ctx: Context, loop: Loop) -> bool:
    """Whether vectors of elementary functions are computed in ``loop``, from memory alone."""
    found = False
    for c in computes(loop):
        used = {s.target for s in c.stores} | {x.tensor for v in c.values for x in loads(v)}
        if any(n in ctx.buffers and ctx.buffers[n].buffer.scope == "register" for n in used):
            return False
        found = found or any(expression_cost(v) >= EXPENSIVE for v in c.values)
    return found


def emit_outlined(ctx: Context, loop: Loop) -> None:
    """Write ``loop`` as a function of its own, and call it here."""
    from nestor.codegen.llvm.nest import emit_node

    name = f"{ctx.info.name}.part{ctx.info.regions}"
    ctx.info.regions += 1
    used = {s.target for c in computes(loop) for s in c.stores}
    used |= {x.tensor for c in computes(loop) for v in c.values for x in loads(v)}
    capture = Capture(ctx, [], [n for n in ctx.buffers if n in used])
    frame = capture.fill(int_val(0))
    header = f"define internal void @{name}(ptr noalias readonly %frame) noinline nounwind"
    inner = Context(ctx.info, FunctionBuilder(ctx.info.module, header))
    inner.inside_parallel = True
    inner.env, inner.ranges, inner.streamed = dict(ctx.env), dict(ctx.ranges), ctx.streamed
    inner.args, inner.symbols = slot(inner, 0, "ptr"), slot(inner, 1, "ptr")
    inner.bind_symbols()
    capture.read(inner)
    emit_node(inner, loop)
    inner.fb.line("ret void")
    ctx.streams = ctx.streams or inner.streams
    ctx.info.module.add_function(inner.fb.finish())
    ctx.fb.line(f"call void @{name}(ptr {frame})")
