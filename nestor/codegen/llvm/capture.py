"""What a function of a kernel gets of the code around its call: a struct on the caller's stack."""

from __future__ import annotations

from nestor.codegen.llvm.builder import Val, int_val
from nestor.codegen.llvm.context import Context, Private, Variable
from nestor.codegen.llvm.storage import private_storage

FIXED_SLOTS = 6
"""args, symbols, services, the out-of-range flag, the number of iterations, and the first that
nobody has taken come first."""


class Capture:
    """Values that a function needs of the code around its call, and their places in a struct.

    Args: shared: values besides outer loop indices. buffers: those that it uses; by default all.
    """

    def __init__(self, ctx: Context, shared: list[Val], buffers: list[str] | None = None):
        self.ctx = ctx
        self.names = [n for n in ctx.variables if not _is_symbol(ctx, n) and not n.startswith("%")]
        self.buffers = list(ctx.buffers) if buffers is None else buffers
        self.shared = shared

    def fill(self, total: Val) -> str:
        """Store everything; returns the struct's address."""
        ctx, fb = self.ctx, self.ctx.fb
        flag = Val(ctx.flag, "ptr") if ctx.flag else Val("null", "ptr")
        services = Val("null", "ptr") if ctx.inside_parallel else ctx.services
        values = [ctx.args, ctx.symbols, services, flag, total, int_val(0)]
        values += [ctx.variables[n].value for n in self.names]
        values += [ctx.buffers[n].storage.pointer for n in self.buffers]
        values += [v for v in self.shared if not v.literal]
        frame = fb.alloca(f"[{len(values)} x i64], align 8", "frame")
        for position, value in enumerate(values):
            at = fb.emit(f"getelementptr i64, ptr {frame}, i64 {position}", "ptr")
            fb.line(f"store {value.full} {value.text}, ptr {at.text}, align 8")
        return frame

    def read(self, ctx: Context) -> list[Val]:
        """Bind names and buffers in the function; returns the shared values there."""
        position = FIXED_SLOTS
        for name in self.names:
            ctx.variables[name] = Variable(slot(ctx, position, "i64"), 0)
            position += 1
        for name in self.buffers:
            private = self.ctx.buffers[name]
            s = private.storage
            pointer = slot(ctx, position, "ptr")
            storage = private_storage(pointer, s.ty, s.shape, s.size or 0, s.inner, s.metadata)
            ctx.buffers[name] = Private(private.buffer, storage, private.order, private.per_lane)
            position += 1
        out: list[Val] = []
        for value in self.shared:
            if value.literal:
                out.append(value)
            else:
                out.append(slot(ctx, position, "i64"))
                position += 1
        return out


def _is_symbol(ctx: Context, name: str) -> bool:
    return any(s.name == name for s in ctx.info.symbols)


def slot(ctx: Context, position: int, ty: str) -> Val:
    """What the struct holds at ``position``, loaded in the function's head."""
    at = ctx.fb.emit_at(0, f"getelementptr i64, ptr %frame, i64 {position}", "ptr")
    return ctx.fb.emit_at(0, f"load {ty}, ptr {at.text}, align 8, !invariant.load !{{}}", ty)
