"""Memory of tensors and buffers: pointers, strides, sizes, and what the optimiser may know."""

from __future__ import annotations

import math

from nestor.codegen.llvm.builder import Val, mangle, vec_type
from nestor.codegen.llvm.context import Context, Private, Storage
from nestor.codegen.llvm.indexing import scalar_affine
from nestor.codegen.llvm.types import MEMORY_TYPE, TYPE_BYTES
from nestor.errors import InternalError
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import IndexExpr
from nestor.ir.loopnest import Buffer, Compute, Loop, Node, node_children

LOCAL_LIMIT_BYTES = 1 << 20
"""Buffers of one function together; OpenMP threads have stacks of 2 to 8 MB."""

SLACK_BYTES = 64
"""Allocated after each buffer, so that a whole vector may be read at its end."""


def tensor_storage(ctx: Context, name: str) -> Storage:
    """Memory of a kernel tensor; its pointer is loaded in the function's head at first use."""
    found = ctx.storages.get(name)
    if found is None:
        found = ctx.storages[name] = _bind_tensor(ctx, name)
    return found


def read_memory(ctx: Context, storage: Storage, rhs: str, lanes: int) -> Val:
    """The load ``rhs`` of so many lanes: numbered if nothing in the kernel writes this memory."""
    rhs += storage.metadata
    if storage.read_only:
        return ctx.fb.emit(rhs, storage.ty, lanes)
    return ctx.fb.effect(rhs, storage.ty, lanes)


def keep_mask(ctx: Context, value: Val, ty: str, lanes: int) -> Val:
    """What a masked load gave, apart from what is done with it.

    LLVM 22 makes ``select(m, fma(masked.load(p, m), b, c), 0)`` one masked instruction and loads
    its operand without the mask when it takes the two apart again: past the end of the array.
    """
    if ty not in ("float", "double"):
        return value
    full = vec_type(ty, lanes)
    name = ctx.fb.module.declare(f"llvm.arithmetic.fence.{mangle(ty, lanes)}", full, full)
    return ctx.fb.emit(f"call {full} {name}({full} {value.text})", ty, lanes)


def _bind_tensor(ctx: Context, name: str) -> Storage:
    info, fb = ctx.info, ctx.fb
    tensor = info.tensors[name]
    slot = f"getelementptr ptr, ptr {ctx.args.text}, i64 {info.positions[name]}"
    at = fb.emit_at(0, slot, "ptr")
    pointer = fb.emit_at(0, f"load ptr, ptr {at.text}, align 8, !invariant.load !{{}}", "ptr")
    shape = tensor.shape if tensor.layout is None else tensor.layout.shape
    strides, size = _strides(ctx, shape)
    root = info.roots[name]
    read_only = root not in info.written
    return Storage(
        pointer=pointer,
        ty=MEMORY_TYPE[tensor.dtype],
        shape=shape,
        strides=strides,
        size=size,
        private=False,
        read_only=read_only,
        metadata=info.metadata[root] + (", !invariant.load !{}" if read_only else ""),
        root=root,
    )


def _strides(
    ctx: Context, shape: tuple[Affine, ...]
) -> tuple[tuple[tuple[int, Val | None], ...], int | None]:
    """Row-major strides and the size; a symbolic extent makes the outer ones run-time products."""
    strides: list[tuple[int, Val | None]] = []
    factor = 1
    product: Val | None = None
    for extent in reversed(shape):
        strides.append((factor, product))
        if extent.is_const:
            factor *= extent.const
            continue
        value = scalar_affine(ctx, extent)
        if product is None:
            product = value
        else:
            product = ctx.fb.emit_at(0, f"mul nsw i64 {product.text}, {value.text}", "i64")
    return tuple(reversed(strides)), factor if product is None or factor == 0 else None


def allocate(ctx: Context, buffer: Buffer, body: Node | None = None) -> Private:
    """Room for a buffer in the function's frame, 64-byte aligned; rows padded to whole vectors.

    The dimension that vector loops run along is put last, whatever its place in the buffer. Inside
    a vector loop every lane gets its own buffer, side by side along a further dimension.

    Args: body: all code in which the buffer lives; what it never stores to counts as padding.
    Raises: ``InternalError`` for a symbolic shape, a scope that has no memory here, or a frame
        above ``LOCAL_LIMIT_BYTES``.
    """
    if buffer.scope not in ("register", "local") or not all(e.is_const for e in buffer.shape):
        raise InternalError(
            f"kernel {ctx.info.name}: buffer {buffer.name} of scope {buffer.scope} and shape "
            f"{buffer.shape} cannot be allocated in a frame"
        )
    per_lane = ctx.vector is not None
    order = list(range(len(buffer.shape)))
    if buffer.name in ctx.info.inner_dims:
        order.append(order.pop(ctx.info.inner_dims[buffer.name]))
    extents = [buffer.shape[d].const for d in order] + ([ctx.lanes] if per_lane else [])
    ty = MEMORY_TYPE[buffer.dtype]
    inner = extents[-1] if extents else 1
    if extents:
        extents[-1] = padded_extent(inner, ctx.target.lanes(8 * TYPE_BYTES[ty]))
    size = math.prod(extents) + SLACK_BYTES // TYPE_BYTES[ty]
    if body is not None and order and not per_lane:
        # A tile that is cut off uses the start of each row only.
        inner = min(inner, _stored_extent(body, buffer.name, order[-1], {}) or inner)
    pointer = _frame_slot(ctx, buffer, ty, size)
    shape = tuple(affine(e) for e in extents)
    storage = private_storage(pointer, ty, shape, size, inner, ctx.info.metadata[buffer.name])
    return Private(buffer, storage, tuple(order), per_lane)


def _stored_extent(node: Node, name: str, dimension: int, highest: dict[str, int]) -> int | None:
    """One past the last place in a dimension of buffer ``name`` that ``node`` may store to; 0 if it
    stores to none, None if that is not known. ``highest``: largest values of the loops around."""
    if isinstance(node, Compute):
        ends = [_end(s.indices[dimension], highest) for s in node.stores if s.target == name]
    else:
        if isinstance(node, Loop):
            uppers = [a.const - 1 for a in node.upper if a.is_const]
            highest = {k: v for k, v in highest.items() if k != node.index}
            if uppers:
                highest[node.index] = min(uppers)
        ends = [_stored_extent(n, name, dimension, highest) for n in node_children(node)]
    known = [e for e in ends if e is not None]
    return max(known, default=0) if len(known) == len(ends) else None


def _end(index: IndexExpr, highest: dict[str, int]) -> int | None:
    """One past the largest value of an index that is a sum of loops of known bounds."""
    if not isinstance(index, Affine):
        return None
    end = index.const + 1
    for atom, factor in index.terms:
        if not isinstance(atom, str) or atom not in highest or factor < 0:
            return None
        end += factor * highest[atom]
    return end


def _frame_slot(ctx: Context, buffer: Buffer, ty: str, size: int) -> Val:
    """An alloca, or that of an ended buffer of the same name (a tail's copy of the same code).

    Only of the same name: the alias information says that other buffers never share its bytes.
    """
    free = ctx.free_slots.get((buffer.name, ty, size))
    if free:
        return free.pop()
    ctx.local_bytes += size * TYPE_BYTES[ty]
    if ctx.local_bytes > LOCAL_LIMIT_BYTES:
        raise InternalError(
            f"kernel {ctx.info.name}: its buffers take {ctx.local_bytes} bytes of stack with "
            f"{buffer.name}, more than {LOCAL_LIMIT_BYTES}; use smaller tiles"
        )
    return Val(ctx.fb.alloca(f"[{size} x {ty}], align 64", "buf"), "ptr")


def release(ctx: Context, private: Private) -> None:
    """The buffer's life ends: its slot may serve the next one of the same name."""
    s = private.storage
    if private.buffer.scope == "local":
        slots = ctx.free_slots.setdefault((private.buffer.name, s.ty, s.size or 0), [])
        slots.append(s.pointer)


def padded_extent(extent: int, lanes: int) -> int:
    """Room for whole vectors: a power of two below ``lanes``, above it a multiple of ``lanes``."""
    if extent >= lanes:
        return -(-extent // lanes) * lanes
    return 1 << (extent - 1).bit_length() if extent > 0 else 0


def private_storage(
    pointer: Val, ty: str, shape: tuple[Affine, ...], size: int, inner: int, metadata: str
) -> Storage:
    """Storage of a buffer whose last dimension was padded from ``inner``."""
    strides: list[tuple[int, Val | None]] = []
    step = 1
    for extent in reversed(shape):
        strides.append((step, None))
        step *= extent.const
    return Storage(
        pointer=pointer,
        ty=ty,
        shape=shape,
        strides=tuple(reversed(strides)),
        size=size,
        private=True,
        read_only=False,
        metadata=metadata,
        inner=inner,
    )
