"""The native side of measuring: a loop of calls that no interpreter slows, and a fault handler.

The handler only makes system calls, so it is safe wherever code crashes (``signal-safety(7)``): it
writes the signal's information as a message for the parent and waits to be killed, so that the
parent can still look at how much memory the process has.
"""

from __future__ import annotations

import ctypes
import signal

from nestor.runtime.elf import load_object
from nestor.runtime.memory import Mapping, libc_address

FAULT = b"fault"
"""Name of the handler's message; its body is the first 128 bytes of ``siginfo_t``."""

SIGINFO_BYTES = 128
FAULT_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)

_HEAD = len(FAULT).to_bytes(4, "little") + FAULT + SIGINFO_BYTES.to_bytes(8, "little")

HELPER_IR = f"""
@nestor_fault_pipe = global i32 1
@head = private constant [{len(_HEAD)} x i8] c"{"".join(f"{chr(92)}{b:02X}" for b in _HEAD)}"

; calls fn(tables[(start + k) % count], symbols, services) for k < times; the results or'ed
define i32 @nestor_repeat(ptr %fn, ptr %tables, i64 %count, i64 %start, i64 %times, ptr %symbols,
                          ptr %services) {{
entry:
  %any = icmp sgt i64 %times, 0
  br i1 %any, label %loop, label %done
loop:
  %k = phi i64 [ 0, %entry ], [ %next, %loop ]
  %at = phi i64 [ %start, %entry ], [ %after, %loop ]
  %seen = phi i32 [ 0, %entry ], [ %both, %loop ]
  %place = getelementptr ptr, ptr %tables, i64 %at
  %table = load ptr, ptr %place
  %status = call i32 %fn(ptr %table, ptr %symbols, ptr %services)
  %both = or i32 %seen, %status
  %step = add i64 %at, 1
  %wraps = icmp sge i64 %step, %count
  %after = select i1 %wraps, i64 0, i64 %step
  %next = add i64 %k, 1
  %more = icmp slt i64 %next, %times
  br i1 %more, label %loop, label %done
done:
  %result = phi i32 [ 0, %entry ], [ %both, %loop ]
  ret i32 %result
}}

define void @nestor_nothing(ptr %data) {{
  ret void
}}

declare i64 @write(i32, ptr, i64)
declare i32 @pause()

; a handler for sigaction: write(pipe, head), write(pipe, information), then pause() for ever
define void @nestor_on_fault(i32 %signal, ptr %information, ptr %context) {{
entry:
  %pipe = load i32, ptr @nestor_fault_pipe
  %w0 = call i64 @write(i32 %pipe, ptr @head, i64 {len(_HEAD)})
  %w1 = call i64 @write(i32 %pipe, ptr %information, i64 {SIGINFO_BYTES})
  br label %wait
wait:
  %p = call i32 @pause()
  br label %wait
}}
"""

_REPEAT_TYPE = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    *(ctypes.c_void_p, ctypes.c_void_p),
    *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
    *(ctypes.c_void_p, ctypes.c_void_p),
)

_ALTERNATE_STACK_BYTES = 64 << 10
_SA_FLAGS = 0x4 | 0x08000000 | 0x80000000  # SA_SIGINFO | SA_ONSTACK | SA_RESETHAND


class _SigAction(ctypes.Structure):
    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_uint32),
        ("restorer", ctypes.c_void_p),
    ]


class _Stack(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


class NativeHelper:
    """The helper's functions, loaded into this process.

    Attributes: nothing: address of a function for ``GOMP_parallel`` that does nothing.
    """

    def __init__(self, code: bytes):
        outside = {name: libc_address(name) for name in ("write", "pause")}
        self._loaded = load_object(code, label="measuring", externals=outside)
        self.repeat = _REPEAT_TYPE(self._loaded.address("nestor_repeat"))
        self.nothing = self._loaded.address("nestor_nothing")

    def report_faults(self, pipe: int) -> None:
        """From now on, write faults of any thread to the file descriptor ``pipe``, and stop there.

        On the calling thread that works when its stack overflows, too.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        place = self._loaded.address("nestor_fault_pipe")
        ctypes.c_int32.from_address(place).value = pipe
        self._stack = Mapping(_ALTERNATE_STACK_BYTES, huge=False)
        stack = _Stack(self._stack.address, 0, self._stack.size)
        if libc.sigaltstack(ctypes.byref(stack), None):
            raise OSError(ctypes.get_errno(), "sigaltstack")
        action = _SigAction(
            handler=self._loaded.address("nestor_on_fault"), flags=_SA_FLAGS, restorer=None
        )
        for number in FAULT_SIGNALS:
            if libc.sigaction(int(number), ctypes.byref(action), None):
                raise OSError(ctypes.get_errno(), "sigaction")


def read_fault(body: bytes) -> tuple[int, int]:
    """(signal, address) from a fault's message."""
    return int.from_bytes(body[:4], "little"), int.from_bytes(body[16:24], "little")
