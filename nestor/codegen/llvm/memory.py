"""Loads and stores of a location: rows, gathers, masks, and what may be read.

Contiguous lanes are one vector load; equal lanes a scalar one; other patterns are gathers.
Where a predicate or mask holds for some lanes only, memory outside is never touched, unless
interval arithmetic proves that the address lies inside the tensor for all of them.
"""

from __future__ import annotations

from dataclasses import replace

from nestor.codegen.llvm.addressing import Location, stride_pattern
from nestor.codegen.llvm.builder import Val, int_val, mangle, vec_type, vector_literal
from nestor.codegen.llvm.context import Context
from nestor.codegen.llvm.indexing import emit_at
from nestor.codegen.llvm.nearby import load_nearby, load_nearby_masked, nearby_chunks
from nestor.codegen.llvm.storage import keep_mask, read_memory
from nestor.codegen.llvm.types import TYPE_BYTES
from nestor.ir.types import DType

ZEROS_BYTES = 1024
"""Size of the block of zeros that stands in for what must not be read [bytes]."""

MIN_STREAMED_BYTES = 32
"""Shorter pieces of a line would reach memory one by one."""

# --- loads -----------------------------------------------------------------------------------


def load(ctx: Context, at: Location, dtype: DType, passthru: Val | None = None) -> Val:
    """Read where the context's condition and mask hold; elsewhere the value is undefined.

    Args: passthru: the value of lanes where the mask does not hold, if that is free to give.
    """
    guard = None if at.inside else ctx.condition
    mask = None if at.inside else ctx.full_mask()
    if at.offsets is None:
        value = _load_scalar(ctx, at, guard, mask)
    elif at.is_contiguous and guard is None and mask is None:
        value = _load_window(ctx, at)
    elif at.is_contiguous or at.is_reversed:
        value = _load_row(ctx, at, guard, mask, passthru)
    else:
        value = _gather(ctx, at, guard, mask)
    return from_memory(ctx, value, dtype)


def from_memory(ctx: Context, value: Val, dtype: DType) -> Val:
    """A bool is a byte in memory."""
    return ctx.fb.compare("icmp ne", value, int_val(0, "i8")) if dtype is DType.bool else value


def to_memory(ctx: Context, value: Val, dtype: DType) -> Val:
    """The inverse of ``from_memory``."""
    if dtype is not DType.bool:
        return value
    if value.literal:
        return int_val(1 if value.text == "true" else 0, "i8")
    return ctx.fb.convert("zext", value, "i8")


def _load_scalar(ctx: Context, at: Location, guard: Val | None, mask: Val | None) -> Val:
    pointer = at.pointer
    if mask is not None and mask.text.startswith("%"):
        # What is the same in all iterations of the vector loop may be read if any of them does.
        known = ctx.first if at.is_fixed else None
        some = known if known is not None else ctx.fb.intrinsic_reduce("or", mask)
        guard = some if guard is None else ctx.and_(guard, some)
    pointer = _guarded(ctx, pointer, guard)
    align = TYPE_BYTES[at.storage.ty]
    return read_memory(
        ctx, at.storage, f"load {at.storage.ty}, ptr {pointer.text}, align {align}", 0
    )


def _guarded(ctx: Context, pointer: Val, guard: Val | None) -> Val:
    """The address, or that of zeros where ``guard`` does not hold: reading needs no branch."""
    if guard is None or (guard.literal and guard.text == "true"):
        return pointer
    zeros = ctx.info.module.add_global(
        "zeros",
        f"@zeros = internal unnamed_addr constant [{ZEROS_BYTES} x i8] zeroinitializer, align 64",
    )
    return ctx.fb.select(guard, pointer, Val(zeros, "ptr"))


def _load_row(
    ctx: Context, at: Location, guard: Val | None, mask: Val | None, passthru: Val | None
) -> Val:
    """Contiguous lanes, ascending or descending."""
    fb, lanes, ty = ctx.fb, ctx.lanes, at.storage.ty
    flip = list(range(lanes - 1, -1, -1))
    pointer = at.pointer
    if at.is_reversed:
        pointer = fb.emit(f"getelementptr {ty}, ptr {pointer.text}, i64 {1 - lanes}", "ptr")
        mask = None if mask is None else fb.shuffle(mask, flip)
        passthru = None
    pointer = _guarded(ctx, pointer, guard)
    full = vec_type(ty, lanes)
    if mask is None:
        value = read_memory(
            ctx, at.storage, f"load {full}, ptr {pointer.text}, align {TYPE_BYTES[ty]}", lanes
        )
    else:
        name = fb.module.declare(
            f"llvm.masked.load.{mangle(ty, lanes)}.p0", full, f"ptr, <{lanes} x i1>, {full}"
        )
        other = "poison" if passthru is None else fb.broadcast(passthru, lanes).text
        rhs = (
            f"call {full} {name}(ptr align {TYPE_BYTES[ty]} {pointer.text}, "
            f"{mask.full} {mask.text}, {full} {other})"
        )
        value = keep_mask(ctx, read_memory(ctx, at.storage, rhs, lanes), ty, lanes)
    return fb.shuffle(value, flip) if at.is_reversed else value


def _load_window(ctx: Context, at: Location) -> Val:
    """Contiguous lanes of whole vectors: shared with neighbouring accesses where that is known."""
    windows = ctx.windows
    if windows is None or at.row is None or not at.storage.root:
        return _load_row(ctx, at, None, None, None)
    base, offset = at.row
    parts = None if at.storage.root in windows.stored else windows.parts(base.text, offset)
    if parts is None:
        return _load_row(ctx, at, None, None, None)
    first, skip = parts

    def row(offset: int) -> Val:
        found = windows.rows.get((base.text, offset))
        if found is None:
            rhs = f"getelementptr {at.storage.ty}, ptr {base.text}, i64 {offset}"
            there = replace(at, pointer=ctx.fb.emit(rhs, "ptr"))
            found = windows.rows[base.text, offset] = _load_row(ctx, there, None, None, None)
        return found

    if skip == 0:
        return row(first)
    lanes = ctx.lanes
    return ctx.fb.shuffle(row(first), list(range(skip, skip + lanes)), row(first + lanes))


def _lane_offsets(ctx: Context, at: Location) -> Val:
    if isinstance(at.offsets, Val):
        return at.offsets
    assert at.offsets is not None
    return vector_literal([str(o) for o in at.offsets], "i32")


def _addresses(ctx: Context, at: Location, pointer: Val) -> Val:
    """One pointer a lane."""
    lanes = ctx.lanes
    if at.offsets is None:
        return ctx.fb.broadcast(pointer, lanes)
    offsets = _lane_offsets(ctx, at)
    rhs = f"getelementptr {at.storage.ty}, ptr {pointer.text}, {offsets.full} {offsets.text}"
    return ctx.fb.emit(rhs, "ptr", lanes)


def _gather(ctx: Context, at: Location, guard: Val | None, mask: Val | None) -> Val:
    """Lanes anywhere. Without a mask and with constant distances: contiguous loads and shuffles, or
    scalar loads and inserts."""
    fb, lanes, ty = ctx.fb, ctx.lanes, at.storage.ty
    if guard is not None and mask is None and nearby_chunks(ctx, at, masked=False):
        if isinstance(at.offsets, tuple) and min(at.offsets) >= 0:
            return load_nearby(ctx, at, _guarded(ctx, at.pointer, guard))
    if guard is not None:
        everywhere = fb.broadcast(guard, lanes)
        mask = everywhere if mask is None else ctx.and_(everywhere, mask)
    if mask is None and (isinstance(at.offsets, tuple) or at.step is not None):
        if nearby_chunks(ctx, at, masked=False):
            return load_nearby(ctx, at, at.pointer)
        return _load_inserted(ctx, at)
    if mask is not None and nearby_chunks(ctx, at, masked=True):
        return load_nearby_masked(ctx, at, mask)
    full = vec_type(ty, lanes)
    given = Val("splat (i1 true)", "i1", lanes) if mask is None else mask
    name = fb.module.declare(
        f"llvm.masked.gather.{mangle(ty, lanes)}.v{lanes}p0",
        full,
        f"<{lanes} x ptr>, <{lanes} x i1>, {full}",
    )
    pointers = _addresses(ctx, at, at.pointer)
    rhs = (
        f"call {full} {name}({pointers.full} align {TYPE_BYTES[ty]} {pointers.text}, "
        f"{given.full} {given.text}, {full} poison)"
    )
    return read_memory(ctx, at.storage, rhs, lanes)


def _lane_pointers(ctx: Context, at: Location) -> list[Val]:
    """The address of each lane, where it is the first one plus what is known without its index."""
    distances: list[Val] = []
    for lane in range(ctx.lanes):
        if isinstance(at.offsets, tuple):
            distances.append(int_val(at.offsets[lane]))
        else:
            assert at.step is not None
            distances.append(emit_at(ctx, 0, f"mul nsw i64 {at.step.text}, {lane}"))
    gep = f"getelementptr {at.storage.ty}, ptr {at.pointer.text}, i64"
    return [
        at.pointer if lane == 0 or d.text == "0" else ctx.fb.emit(f"{gep} {d.text}", "ptr")
        for lane, d in enumerate(distances)
    ]


def _load_inserted(ctx: Context, at: Location) -> Val:
    """Scalar loads put together: up to twice as fast as a gather (measured on Zen 4, within the
    first-level cache), and equal elements are read once."""
    fb, ty = ctx.fb, at.storage.ty
    full = vec_type(ty, ctx.lanes)
    total = Val("poison", ty, ctx.lanes)
    for lane, pointer in enumerate(_lane_pointers(ctx, at)):
        item = read_memory(
            ctx, at.storage, f"load {ty}, ptr {pointer.text}, align {TYPE_BYTES[ty]}", 0
        )
        total = fb.emit(
            f"insertelement {full} {total.text}, {ty} {item.text}, i64 {lane}", ty, ctx.lanes
        )
    return total


# --- stores ----------------------------------------------------------------------------------


def store(ctx: Context, at: Location, value: Val, dtype: DType) -> None:
    """Write where the mask holds. Lanes that coincide are written in order: the last one stays."""
    value = to_memory(ctx, value, dtype)
    lanes, mask = ctx.lanes, ctx.full_mask()
    if at.offsets is None and (mask is None or not mask.text.startswith("%")):
        assert not lanes or ctx.vector is not None
        last = ctx.vector.active - 1 if ctx.vector else 0
        _store_plain(ctx, at, at.pointer, ctx.fb.extract(value, last))
        return
    value = ctx.fb.broadcast(value, lanes)
    if at.is_contiguous:
        _store_row(ctx, at, value, mask)
        return
    if at.is_reversed:
        flip = list(range(lanes - 1, -1, -1))
        rhs = f"getelementptr {at.storage.ty}, ptr {at.pointer.text}, i64 {1 - lanes}"
        turned = Location(
            at.storage, ctx.fb.emit(rhs, "ptr"), stride_pattern(1, lanes), at.inside, None
        )
        flipped = None if mask is None else ctx.fb.shuffle(mask, flip)
        _store_row(ctx, turned, ctx.fb.shuffle(value, flip), flipped)
        return
    _scatter(ctx, at, value, mask)


def _store_plain(ctx: Context, at: Location, pointer: Val, value: Val) -> None:
    align = TYPE_BYTES[at.storage.ty]
    ctx.fb.line(
        f"store {value.full} {value.text}, ptr {pointer.text}, align {align}{at.storage.metadata}"
    )


def is_streamed(ctx: Context, at: Location, size: int) -> bool:
    """Whether ``size`` bytes there are to be written past the caches: an aligned vector."""
    if at.storage.root not in ctx.streamed or size < MIN_STREAMED_BYTES:
        return False
    return at.grain * TYPE_BYTES[at.storage.ty] % min(size, ctx.target.line_bytes) == 0


def store_past_caches(ctx: Context, value: Val, pointer: Val, size: int, metadata: str) -> None:
    """A non-temporal store of ``size`` bytes, aligned to as many (at most to a line)."""
    info = ctx.info
    ctx.streams = True
    if not info.nontemporal:
        info.nontemporal = f", !nontemporal {info.module.metadata('!{i32 1}')}"
    align = min(size, ctx.target.line_bytes)
    ctx.fb.line(
        f"store {value.full} {value.text}, ptr {pointer.text}, align {align}{metadata}"
        f"{info.nontemporal}"
    )


def _store_row(ctx: Context, at: Location, value: Val, mask: Val | None) -> None:
    fb, storage = ctx.fb, at.storage
    if mask is None or (mask == ctx.tail_mask() and _pads(ctx, at)):
        size = value.lanes * TYPE_BYTES[value.ty]
        if mask is None and size >= ctx.target.vector_bits // 8 and is_streamed(ctx, at, size):
            store_past_caches(ctx, value, at.pointer, size, storage.metadata)
            return
        _store_plain(ctx, at, at.pointer, value)
        return
    if storage.private and at.inside:
        # Rewriting the neighbours of a private buffer is a plain load, blend and store, which
        # stays in registers; a masked store would pin the buffer to memory.
        rhs = f"load {value.full}, ptr {at.pointer.text}, align {TYPE_BYTES[storage.ty]}"
        old = fb.effect(rhs + storage.metadata, storage.ty, value.lanes)
        _store_plain(ctx, at, at.pointer, fb.select(mask, value, old))
        return
    if mask == ctx.tail_mask() and not ctx.target.has_masks:
        assert ctx.vector is not None
        store_pieces(ctx, value, ctx.vector.active, at.pointer, storage.metadata)
        return
    name = fb.module.declare(
        f"llvm.masked.store.{mangle(value.ty, value.lanes)}.p0",
        "void",
        f"{value.full}, ptr, <{value.lanes} x i1>",
    )
    fb.line(
        f"call void {name}({value.full} {value.text}, ptr align {TYPE_BYTES[storage.ty]} "
        f"{at.pointer.text}, {mask.full} {mask.text}){storage.metadata}"
    )


def store_pieces(ctx: Context, value: Val, active: int, pointer: Val, metadata: str) -> None:
    """The first lanes in plain stores of powers of two: AMD's processors run AVX2's masked stores
    in microcode (Zen 4: some 40 operations each)."""
    fb, ty, done = ctx.fb, value.ty, 0
    while (left := active - done) > 0:
        count = 1 << (left.bit_length() - 1)
        if count == 1:
            piece = fb.extract(value, done)
        else:
            piece = fb.shuffle(value, list(range(done, done + count)))
        place = pointer
        if done:
            place = fb.emit(f"getelementptr {ty}, ptr {pointer.text}, i64 {done}", "ptr")
        fb.line(
            f"store {piece.full} {piece.text}, ptr {place.text}, align {TYPE_BYTES[ty]}{metadata}"
        )
        done += count


def _pads(ctx: Context, at: Location) -> bool:
    """True if the unused lanes fall into the padding of a private buffer's rows."""
    if not at.storage.private or at.inner_start is None or not at.inside:
        return False
    assert ctx.vector is not None
    end = at.inner_start + ctx.vector.lanes
    padded = at.storage.shape[-1].const
    return at.inner_start + ctx.vector.active >= at.storage.inner and end <= padded


def _scatter(ctx: Context, at: Location, value: Val, mask: Val | None) -> None:
    """Lanes anywhere, ascending; without AVX-512 LLVM writes them one by one."""
    fb, lanes, ty = ctx.fb, ctx.lanes, at.storage.ty
    if mask is None and (isinstance(at.offsets, tuple) or at.step is not None):
        for lane, pointer in enumerate(_lane_pointers(ctx, at)):
            _store_plain(ctx, at, pointer, fb.extract(value, lane))
        return
    given = Val("splat (i1 true)", "i1", lanes) if mask is None else mask
    name = fb.module.declare(
        f"llvm.masked.scatter.{mangle(ty, lanes)}.v{lanes}p0",
        "void",
        f"{value.full}, <{lanes} x ptr>, <{lanes} x i1>",
    )
    pointers = _addresses(ctx, at, at.pointer)
    fb.line(
        f"call void {name}({value.full} {value.text}, {pointers.full} align {TYPE_BYTES[ty]} "
        f"{pointers.text}, {given.full} {given.text}){at.storage.metadata}"
    )


def any_lane(ctx: Context, test: Val) -> Val:
    """A scalar i1: ``test`` holds in some lane."""
    return ctx.fb.intrinsic_reduce("or", test) if test.lanes else test
