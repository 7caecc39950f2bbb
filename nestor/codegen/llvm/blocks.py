"""The driver of models that run in blocks of their batch: LLVM IR of a function that calls an entry
function once a block, on the next part of the arrays each time, by a team of threads or alone.

Each thread of a team takes consecutive blocks and runs them from the first kernel to the last by
itself: what one kernel leaves in a core's cache the next one finds there, and threads meet once a
call instead of once a kernel. Results do not depend on who runs a block.
"""

from __future__ import annotations

from nestor.target.cpu import TRIPLE

DRIVER_NAME = "blocks"

_DRIVER = """
define internal i32 @run(ptr %call, i64 %thread, i64 %first, i64 %last, ptr %services) nounwind {
start:
  %entry = load ptr, ptr %call, align 8
  %table.at = getelementptr i64, ptr %call, i64 1
  %table = load ptr, ptr %table.at, align 8
  %tensors.at = getelementptr i64, ptr %call, i64 2
  %tensors = load ptr, ptr %tensors.at, align 8
  %symbols.at = getelementptr i64, ptr %call, i64 3
  %symbols = load ptr, ptr %symbols.at, align 8
  %job.at = getelementptr i64, ptr %call, i64 4
  %job = load ptr, ptr %job.at, align 8
  %slots = load i64, ptr %job, align 8
  %by.block.at = getelementptr i64, ptr %job, i64 3
  %by.block = load ptr, ptr %by.block.at, align 8
  %by.thread.at = getelementptr i64, ptr %job, i64 4
  %by.thread = load ptr, ptr %by.thread.at, align 8
  %own = alloca ptr, i64 %slots, align 16
  %any = icmp slt i64 %first, %last
  br i1 %any, label %block, label %done
block:
  %number = phi i64 [ %first, %start ], [ %number.next, %after ]
  br label %slot
slot:
  %s = phi i64 [ 0, %block ], [ %s.next, %slot ]
  %base.at = getelementptr i64, ptr %tensors, i64 %s
  %base = load ptr, ptr %base.at, align 8
  %block.step.at = getelementptr i64, ptr %by.block, i64 %s
  %block.step = load i64, ptr %block.step.at, align 8
  %thread.step.at = getelementptr i64, ptr %by.thread, i64 %s
  %thread.step = load i64, ptr %thread.step.at, align 8
  %from.block = mul i64 %number, %block.step
  %from.thread = mul i64 %thread, %thread.step
  %offset = add i64 %from.block, %from.thread
  %pointer = getelementptr i8, ptr %base, i64 %offset
  %own.at = getelementptr i64, ptr %own, i64 %s
  store ptr %pointer, ptr %own.at, align 8
  %s.next = add i64 %s, 1
  %more.slots = icmp slt i64 %s.next, %slots
  br i1 %more.slots, label %slot, label %call.entry
call.entry:
  %status = call i32 %entry(ptr %table, ptr %own, ptr %symbols, ptr %services)
  %ok = icmp eq i32 %status, 0
  br i1 %ok, label %after, label %failed
after:
  %number.next = add i64 %number, 1
  %more = icmp slt i64 %number.next, %last
  br i1 %more, label %block, label %done
failed:
  ret i32 %status
done:
  ret i32 0
}

define internal void @thread(ptr %call) nounwind {
  %alone = alloca [4 x i64], align 16
  store [4 x i64] [i64 0, i64 0, i64 0, i64 1], ptr %alone, align 16
  %job.at = getelementptr i64, ptr %call, i64 4
  %job = load ptr, ptr %job.at, align 8
  %count.at = getelementptr i64, ptr %job, i64 1
  %count = load i64, ptr %count.at, align 8
  %services.at = getelementptr i64, ptr %call, i64 5
  %services = load ptr, ptr %services.at, align 8
  %number.at = getelementptr i64, ptr %services, i64 1
  %number.fn = load ptr, ptr %number.at, align 8
  %size.at = getelementptr i64, ptr %services, i64 2
  %size.fn = load ptr, ptr %size.at, align 8
  %number32 = call i32 %number.fn()
  %size32 = call i32 %size.fn()
  %number = sext i32 %number32 to i64
  %size = sext i32 %size32 to i64
  %next = add i64 %number, 1
  %before = mul i64 %number, %count
  %behind = mul i64 %next, %count
  %first = sdiv i64 %before, %size
  %last = sdiv i64 %behind, %size
  %status = call i32 @run(ptr %call, i64 %number, i64 %first, i64 %last, ptr %alone)
  %ok = icmp eq i32 %status, 0
  br i1 %ok, label %done, label %failed
failed:
  %status.at = getelementptr i64, ptr %call, i64 6
  store atomic i32 %status, ptr %status.at monotonic, align 8
  br label %done
done:
  ret void
}

define i32 @DRIVER(ptr %entry, ptr %table, ptr %tensors, ptr %symbols, ptr %services, ptr %job)
    nounwind {
  %call = alloca [7 x i64], align 16
  store ptr %entry, ptr %call, align 8
  %table.at = getelementptr i64, ptr %call, i64 1
  store ptr %table, ptr %table.at, align 8
  %tensors.at = getelementptr i64, ptr %call, i64 2
  store ptr %tensors, ptr %tensors.at, align 8
  %symbols.at = getelementptr i64, ptr %call, i64 3
  store ptr %symbols, ptr %symbols.at, align 8
  %job.at = getelementptr i64, ptr %call, i64 4
  store ptr %job, ptr %job.at, align 8
  %services.at = getelementptr i64, ptr %call, i64 5
  store ptr %services, ptr %services.at, align 8
  %status.at = getelementptr i64, ptr %call, i64 6
  store i64 0, ptr %status.at, align 8
  %team.at = getelementptr i64, ptr %job, i64 2
  %team = load i64, ptr %team.at, align 8
  %many = icmp sgt i64 %team, 1
  br i1 %many, label %together, label %alone
together:
  %parallel = load ptr, ptr %services, align 8
  %team32 = trunc i64 %team to i32
  call void %parallel(ptr @thread, ptr %call, i32 %team32, i32 0)
  %status = load i32, ptr %status.at, align 8
  ret i32 %status
alone:
  %count.at = getelementptr i64, ptr %job, i64 1
  %count = load i64, ptr %count.at, align 8
  %status.alone = call i32 @run(ptr %call, i64 0, i64 0, i64 %count, ptr %services)
  ret i32 %status.alone
}
"""


def emit_driver() -> str:
    """LLVM IR of ``i32 blocks(ptr entry, ptr table, ptr tensors, ptr symbols, ptr services, ptr
    job)``; ``entry`` is an entry function, and the next four are its arguments.

    ``job`` is ``struct { i64 slots; i64 blocks; i64 team; ptr by_block; ptr by_thread; }``: how
    many entries ``tensors`` has, how many blocks there are, how many threads take them (1: the
    calling thread takes all, and kernels use ``services`` as ever), and two arrays of ``i64``, for
    each entry how many bytes it moves on from block to block and from thread to thread.
    Returns: 0, or what an entry function returned; the thread that got it stopped there.
    """
    return f'target triple = "{TRIPLE}"\n' + _DRIVER.replace("@DRIVER", f"@{DRIVER_NAME}")
