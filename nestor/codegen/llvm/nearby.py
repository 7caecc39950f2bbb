"""Lanes a few elements apart, put together from contiguous loads.

Every second element of a row (a pool or a convolution of stride 2), or each element twice (an image
made larger), lies within a few vectors of memory. These are read as they lie and shuffled: two
loads and a shuffle in place of sixteen loads and as many inserts. What is read in addition lies
between elements that are read anyway, or is masked off.
"""

from __future__ import annotations

from nestor.codegen.llvm.addressing import Location, stride_pattern
from nestor.codegen.llvm.builder import Val, mangle, vec_type
from nestor.codegen.llvm.context import Context
from nestor.codegen.llvm.storage import keep_mask, read_memory
from nestor.codegen.llvm.types import TYPE_BYTES

MAX_CHUNKS = 4
"""Lanes within at most so many vectors are put together from them."""

MIN_DISTINCT = 4
"""Fewer elements are as well loaded one by one."""


def nearby_chunks(ctx: Context, at: Location, *, masked: bool) -> int:
    """How many contiguous loads cover the lanes; 0 if that does not suit them.

    Args: masked: some lanes are not to be touched: they must then be at a constant distance.
    """
    offsets, lanes = at.offsets, ctx.lanes
    if not isinstance(offsets, tuple) or len(set(offsets)) < MIN_DISTINCT:
        return 0
    chunks = -(-(max(offsets) - min(offsets) + 1) // lanes)
    if masked and not (ctx.target.has_masks and chunks > 1 and _stride(offsets)):
        return 0
    return chunks if chunks <= MAX_CHUNKS else 0


def _stride(offsets: tuple[int, ...]) -> int:
    """The positive constant distance of lanes; 0 if there is none."""
    step = offsets[1] - offsets[0]
    return step if step > 0 and offsets == stride_pattern(step, len(offsets)) else 0


def load_nearby(ctx: Context, at: Location, pointer: Val) -> Val:
    """All lanes of ``at``, read from ``pointer`` on: every lane may be touched.

    Accesses to one row at equal strides share their loads where the storage is known to reach far
    enough: they are then aligned to the stride.
    """
    assert isinstance(at.offsets, tuple)
    lanes, low = ctx.lanes, min(at.offsets)
    span, stride = max(at.offsets) - low + 1, _stride(at.offsets)
    if stride > 1 and at.row is not None and pointer is at.pointer:
        skip = at.row[1] % stride
        if at.room[0] >= skip and at.room[1] >= stride - 1 - skip:
            low, span = -skip, stride * lanes
            rhs = f"getelementptr {at.storage.ty}, ptr {at.row[0].text}, i64 {at.row[1] - skip}"
            first = ctx.fb.emit(rhs, "ptr")
            starts = list(range(0, span, lanes))
            chunks = [_chunk(ctx, at, first, start, lanes) for start in starts]
            return _gathered(ctx, chunks, starts, [o + skip for o in at.offsets])
    width = min(span, lanes)
    starts = [*range(0, span - width, width), span - width]
    chunks = [_chunk(ctx, at, pointer, low + start, width) for start in starts]
    return _gathered(ctx, chunks, starts, [o - low for o in at.offsets])


def load_nearby_masked(ctx: Context, at: Location, mask: Val) -> Val:
    """The lanes of ``at`` where ``mask`` holds; the others are undefined."""
    assert isinstance(at.offsets, tuple)
    fb, lanes, stride = ctx.fb, ctx.lanes, _stride(at.offsets)
    nothing = Val("zeroinitializer", "i1", lanes)
    starts = list(range(0, stride * lanes, lanes))
    chunks = []
    for start in starts:
        places = range(start, start + lanes)
        own = fb.shuffle(mask, [lanes if p % stride else p // stride for p in places], nothing)
        chunks.append(_chunk(ctx, at, at.pointer, start, lanes, own))
    return _gathered(ctx, chunks, starts, list(at.offsets))


def _chunk(
    ctx: Context, at: Location, pointer: Val, start: int, width: int, mask: Val | None = None
) -> Val:
    ty = at.storage.ty
    if start:
        pointer = ctx.fb.emit(f"getelementptr {ty}, ptr {pointer.text}, i64 {start}", "ptr")
    align, full = TYPE_BYTES[ty], vec_type(ty, width)
    if mask is None:
        return read_memory(
            ctx, at.storage, f"load {full}, ptr {pointer.text}, align {align}", width
        )
    name = ctx.fb.module.declare(
        f"llvm.masked.load.{mangle(ty, width)}.p0", full, f"ptr, <{width} x i1>, {full}"
    )
    rhs = (
        f"call {full} {name}(ptr align {align} {pointer.text}, {mask.full} {mask.text}, "
        f"{full} poison)"
    )
    return keep_mask(ctx, read_memory(ctx, at.storage, rhs, width), ty, width)


def _gathered(ctx: Context, chunks: list[Val], starts: list[int], wanted: list[int]) -> Val:
    """Lane ``l`` is element ``wanted[l]`` of what the chunks, which begin at ``starts``, hold."""
    width = chunks[0].lanes
    source = [max(c for c, s in enumerate(starts) if s <= w) for w in wanted]
    inner = [w - starts[c] for w, c in zip(wanted, source)]
    if len(chunks) == 1:
        return ctx.fb.shuffle(chunks[0], inner)
    places = [i + c * width if c < 2 else -1 for i, c in zip(inner, source)]
    total = ctx.fb.shuffle(chunks[0], places, chunks[1])
    for number in range(2, len(chunks)):
        places = [
            width + i if c == number else lane if c < number else -1
            for lane, (i, c) in enumerate(zip(inner, source))
        ]
        total = ctx.fb.shuffle(total, places, chunks[number])
    return total
