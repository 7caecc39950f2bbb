"""Parallel loops: an outlined function per region, run by OpenMP's team or by the caller alone.

Parallel loops that are each other's only child form one space, cut into one contiguous chunk a
thread; where the work of an iteration depends on the index (a triangle), into many small chunks
that threads take as they come. The region's function gets the range of its chunk and what it needs
of the code around (argument arrays, outer loop indices, buffers) through a struct on the caller's
stack.
"""

from __future__ import annotations

from nestor.codegen.llvm.builder import FunctionBuilder, Val, int_val
from nestor.codegen.llvm.capture import Capture, slot
from nestor.codegen.llvm.context import Context, Variable
from nestor.codegen.llvm.cost import SERIAL_BELOW, instruction_estimate
from nestor.codegen.llvm.nest import (
    bound_value,
    counted_loop,
    emit_node,
    emit_serial,
    index_range,
    resolved_bounds,
)
from nestor.codegen.llvm.streaming import fence, streamed_tensors, streaming_test
from nestor.ir.affine import Affine
from nestor.ir.loopnest import Guard, Loop, Node, node_children

_NEXT_SLOT = 5
_CHUNKS_OF_A_THREAD = 16
"""Into how many chunks a thread's share of uneven work is cut."""


def emit_parallel(ctx: Context, loop: Loop) -> None:
    """A region of parallel loops. Runs serially what is known to be small."""
    loops, body = _collapsible(loop)
    work = instruction_estimate(loop, ctx.target.lanes(32))
    if work is not None and work < SERIAL_BELOW:
        emit_serial(ctx, loop.index, loop.lower, loop.upper, lambda: emit_node(ctx, loop.body))
        return
    name = f"{ctx.info.name}.region{ctx.info.regions}"
    ctx.info.regions += 1
    lowers = [bound_value(ctx, resolved_bounds(ctx, x.lower, x.upper)[0], "smax") for x in loops]
    uppers = [bound_value(ctx, resolved_bounds(ctx, x.lower, x.upper)[1], "smin") for x in loops]
    extents = [_extent(ctx, low, high) for low, high in zip(lowers, uppers, strict=True)]
    total = extents[0]
    for e in extents[1:]:
        total = _multiply(ctx, total, e)
    shared = [*lowers, *extents]
    capture = Capture(ctx, shared)
    frame = capture.fill(total)
    _Region(ctx, name, capture).write(loops, body)
    entries = Val(f"@{name}", "ptr"), Val(f"@{name}.thread", "ptr")
    streamed = streamed_tensors(ctx, body)
    if streamed:
        entries = _streaming_version(ctx, name, capture, streamed, (loops, body))
    _call_region(ctx, entries, frame, total)


def _streaming_version(
    ctx: Context,
    name: str,
    capture: Capture,
    streamed: tuple[str, ...],
    nest: tuple[list[Loop], Node],
) -> tuple[Val, Val]:
    """Write the region once more, with stores past the caches; returns the two functions to call:
    of this version where the outputs suit it, else of the plain one."""
    other = f"{name}.streaming"
    # Helpers are inlined by the number of places that call them, which this does not double.
    module, plain = ctx.info.module, (Val(f"@{name}", "ptr"), Val(f"@{name}.thread", "ptr"))
    calls, count = module.calls(), module.count_functions()
    region = _Region(ctx, other, capture)
    region.ctx.streamed = frozenset(ctx.info.roots[t] for t in streamed)
    region.write(*nest)
    module.set_calls(calls)
    if not region.ctx.streams:
        module.drop_functions(count)  # no whole lines: nothing would differ
        return plain
    test = streaming_test(ctx, streamed)
    return (
        ctx.fb.select(test, Val(f"@{other}", "ptr"), plain[0]),
        ctx.fb.select(test, Val(f"@{other}.thread", "ptr"), plain[1]),
    )


def _collapsible(loop: Loop) -> tuple[list[Loop], Node]:
    """The loops of one rectangular space, outermost first, and what they hold."""
    loops = [loop]
    body: Node = loop.body
    while isinstance(body, Loop) and body.kind == "parallel":
        outer = {x.index for x in loops}
        if any(not outer.isdisjoint(a.variables()) for a in (*body.lower, *body.upper)):
            break
        loops.append(body)
        body = body.body
    return loops, body


def _is_uneven(loops: list[Loop], body: Node) -> bool:
    """Whether how much ``body`` does depends on the parallel indices."""
    indices = {x.index for x in loops}

    def depends(node: Node) -> bool:
        asked: tuple[Affine, ...] = ()
        if isinstance(node, Loop):
            asked = (*node.lower, *node.upper)
        elif isinstance(node, Guard):
            asked = node.conditions
        if any(not indices.isdisjoint(a.variables()) for a in asked):
            return True
        return any(map(depends, node_children(node)))

    return depends(body)


def _extent(ctx: Context, low: Val, high: Val) -> Val:
    if low.literal and high.literal:
        return int_val(max(0, int(high.text) - int(low.text)))
    span = high if low.literal and low.text == "0" else ctx.fb.op("sub nsw", high, low)
    return ctx.fb.intrinsic("llvm.smax", span, int_val(0))


def _multiply(ctx: Context, a: Val, b: Val) -> Val:
    if a.literal and b.literal:
        return int_val(int(a.text) * int(b.text))
    return ctx.fb.op("mul nsw", a, b)


class _Region:
    """The outlined function: ``void NAME(ptr frame, i64 first, i64 end)`` of flat positions."""

    def __init__(self, outer: Context, name: str, capture: Capture):
        header = (
            f"define internal void @{name}(ptr noalias nocapture readonly %frame, "
            "i64 %first, i64 %end) noinline nounwind"
        )
        fb = FunctionBuilder(outer.info.module, header.replace("nocapture ", ""))
        ctx = Context(outer.info, fb)
        ctx.inside_parallel = True
        ctx.env, ctx.ranges = dict(outer.env), dict(outer.ranges)
        ctx.args, ctx.symbols = slot(ctx, 0, "ptr"), slot(ctx, 1, "ptr")
        ctx.bind_symbols()
        self.ctx, self.name = ctx, name
        self.shared = capture.read(ctx)
        if outer.info.gathers:
            ctx.flag = fb.alloca("i8, align 1", "flag")
            fb.line(f"store i8 0, ptr {ctx.flag}, align 1")

    def write(self, loops: list[Loop], body: Node) -> None:
        """Write the function, and the one that each thread enters."""
        ctx, fb = self.ctx, self.ctx.fb
        count = len(loops)
        lowers, extents = self.shared[:count], self.shared[count:]
        first, end = Val("%first", "i64"), Val("%end", "i64")
        intervals = []
        for x in loops:
            intervals.append(index_range(ctx, *resolved_bounds(ctx, x.lower, x.upper)))
        if count == 1:
            low = _shift(ctx, first, lowers[0])
            high = _shift(ctx, end, lowers[0])
            self._innermost(loops[0].index, low, high, intervals[0], body, never_empty=False)
        else:
            self._rows(loops, lowers, extents, intervals, body)
        self._raise_flag()
        if ctx.streams:
            fence(ctx)
        fb.line("ret void")
        ctx.info.module.add_function(fb.finish())
        make = _taking_function if _is_uneven(loops, body) else _thread_function
        ctx.info.module.add_function(make(self.name))

    def _innermost(
        self,
        index: str,
        low: Val,
        high: Val,
        interval: tuple[int | None, int | None],
        body: Node,
        *,
        never_empty: bool,
    ) -> None:
        ctx = self.ctx
        counted_loop(
            ctx, index, low, high, interval, lambda: emit_node(ctx, body), never_empty=never_empty
        )

    def _rows(
        self,
        loops: list[Loop],
        lowers: list[Val],
        extents: list[Val],
        intervals: list[tuple[int | None, int | None]],
        body: Node,
    ) -> None:
        """Walk the flat range in runs of the innermost index: one division a run, not a step."""
        ctx, fb = self.ctx, self.ctx.fb
        head, latch, after = fb.fresh("rows"), fb.fresh("latch"), fb.fresh("done")
        before = fb.label
        test = fb.compare("icmp slt", Val("%first", "i64"), Val("%end", "i64"))
        fb.line(f"br i1 {test.text}, label %{head}, label %{after}")
        fb.start_block(head)
        at, following = Val(f"%{fb.fresh('at')}", "i64"), f"%{fb.fresh('n')}"
        fb.line(f"{at.text} = phi i64 [ %first, %{before} ], [ {following}, %{latch} ]")
        fb.push_scope()
        rest = at
        digits: list[Val] = []
        for extent in reversed(extents[1:]):
            digits.append(fb.emit_at(fb.depth, f"urem i64 {rest.text}, {extent.text}", "i64"))
            rest = fb.emit_at(fb.depth, f"udiv i64 {rest.text}, {extent.text}", "i64")
        digits.append(rest)
        digits.reverse()
        for loop, low, digit, interval in zip(loops[:-1], lowers, digits, intervals):
            value = digit
            if not (low.literal and low.text == "0"):
                value = fb.emit_at(fb.depth, f"add nsw i64 {digit.text}, {low.text}", "i64")
            ctx.variables[loop.index] = Variable(value, fb.depth)
            ctx.ranges[loop.index] = interval
            ctx.env.pop(loop.index, None)
        left = fb.op("sub nsw", Val("%end", "i64"), at)
        room = fb.op("sub nsw", extents[-1], digits[-1])
        run = fb.intrinsic("llvm.smin", left, room)
        low = _shift(ctx, digits[-1], lowers[-1])
        high = fb.op("add nsw", low, run)
        self._innermost(loops[-1].index, low, high, intervals[-1], body, never_empty=True)
        fb.line(f"br label %{latch}")
        fb.start_block(latch)
        fb.line(f"{following} = add nsw i64 {at.text}, {run.text}")
        test_name = f"%{fb.fresh('t')}"
        fb.line(f"{test_name} = icmp slt i64 {following}, %end")
        fb.line(f"br i1 {test_name}, label %{head}, label %{after}")
        fb.pop_scope()
        fb.start_block(after)

    def _raise_flag(self) -> None:
        """Tell the kernel of an index out of range; threads may do so at once."""
        ctx, fb = self.ctx, self.ctx.fb
        if ctx.flag is None:
            return
        own = fb.effect(f"load i8, ptr {ctx.flag}, align 1", "i8")
        test = fb.compare("icmp ne", own, int_val(0, "i8"))
        flagged, after = fb.fresh("flagged"), fb.fresh("after")
        shared = slot(ctx, 3, "ptr")
        fb.line(f"br i1 {test.text}, label %{flagged}, label %{after}")
        fb.start_block(flagged)
        fb.line(f"store atomic i8 1, ptr {shared.text} monotonic, align 1")
        fb.line(f"br label %{after}")
        fb.start_block(after)


def _shift(ctx: Context, value: Val, by: Val) -> Val:
    return value if by.literal and by.text == "0" else ctx.fb.op("add nsw", value, by)


def _thread_function(name: str) -> str:
    """What each thread of the team runs: its contiguous share of the iterations."""
    return f"""define internal void @{name}.thread(ptr %frame) nounwind {{
entry:
  %services.at = getelementptr i64, ptr %frame, i64 2
  %services = load ptr, ptr %services.at, align 8
  %total.at = getelementptr i64, ptr %frame, i64 4
  %total = load i64, ptr %total.at, align 8
  %number.at = getelementptr i64, ptr %services, i64 1
  %number.fn = load ptr, ptr %number.at, align 8
  %count.at = getelementptr i64, ptr %services, i64 2
  %count.fn = load ptr, ptr %count.at, align 8
  %number32 = call i32 %number.fn()
  %count32 = call i32 %count.fn()
  %number = sext i32 %number32 to i64
  %count = sext i32 %count32 to i64
  %share = udiv i64 %total, %count
  %extra = urem i64 %total, %count
  %base = mul i64 %number, %share
  %before = call i64 @llvm.smin.i64(i64 %number, i64 %extra)
  %first = add i64 %base, %before
  %one.more = icmp slt i64 %number, %extra
  %more = zext i1 %one.more to i64
  %own = add i64 %share, %more
  %end = add i64 %first, %own
  %any = icmp slt i64 %first, %end
  br i1 %any, label %work, label %done
work:
  call void @{name}(ptr %frame, i64 %first, i64 %end)
  br label %done
done:
  ret void
}}"""


def _taking_function(name: str) -> str:
    """What each thread runs where the work is uneven: it takes the next few iterations, again and
    again."""
    return f"""define internal void @{name}.thread(ptr %frame) nounwind {{
entry:
  %services.at = getelementptr i64, ptr %frame, i64 2
  %services = load ptr, ptr %services.at, align 8
  %total.at = getelementptr i64, ptr %frame, i64 4
  %total = load i64, ptr %total.at, align 8
  %next.at = getelementptr i64, ptr %frame, i64 {_NEXT_SLOT}
  %count.at = getelementptr i64, ptr %services, i64 2
  %count.fn = load ptr, ptr %count.at, align 8
  %count32 = call i32 %count.fn()
  %count = sext i32 %count32 to i64
  %chunks = mul i64 %count, {_CHUNKS_OF_A_THREAD}
  %share = udiv i64 %total, %chunks
  %none = icmp eq i64 %share, 0
  %chunk = select i1 %none, i64 1, i64 %share
  br label %take
take:
  %first = atomicrmw add ptr %next.at, i64 %chunk monotonic
  %any = icmp slt i64 %first, %total
  br i1 %any, label %work, label %done
work:
  %after = add i64 %first, %chunk
  %end = call i64 @llvm.smin.i64(i64 %after, i64 %total)
  call void @{name}(ptr %frame, i64 %first, i64 %end)
  br label %take
done:
  ret void
}}"""


def _call_region(ctx: Context, entries: tuple[Val, Val], frame: str, total: Val) -> None:
    """``GOMP_parallel`` if there is a team and more than one iteration, else a plain call.

    Args: entries: the region's function, and the one that each thread of a team enters.
    """
    name, thread = (entry.text for entry in entries)
    fb = ctx.fb
    fb.module.declare("llvm.smin.i64", "i64", "i64, i64")
    run = fb.emit_at(0, f"load ptr, ptr {ctx.services.text}, align 8", "ptr")
    at = fb.emit_at(0, f"getelementptr i64, ptr {ctx.services.text}, i64 3", "ptr")
    threads = fb.emit_at(0, f"load i64, ptr {at.text}, align 8", "i64")
    has_team = fb.compare("icmp ne", run, Val("null", "ptr"))
    many = fb.compare("icmp sgt", threads, int_val(1))
    team = fb.op("and", has_team, many)
    if not total.literal:
        team = fb.op("and", team, fb.compare("icmp sgt", total, int_val(1)))
    elif int(total.text) < 2:
        fb.line(f"call void {name}(ptr {frame}, i64 0, i64 {total.text})")
        return
    count = fb.convert("trunc", threads, "i32")
    together, alone, after = fb.fresh("team"), fb.fresh("alone"), fb.fresh("joined")
    fb.line(f"br i1 {team.text}, label %{together}, label %{alone}")
    fb.start_block(together)
    fb.line(f"call void {run.text}(ptr {thread}, ptr {frame}, i32 {count.text}, i32 0)")
    fb.line(f"br label %{after}")
    fb.start_block(alone)
    fb.line(f"call void {name}(ptr {frame}, i64 0, i64 {total.text})")
    fb.line(f"br label %{after}")
    fb.start_block(after)
