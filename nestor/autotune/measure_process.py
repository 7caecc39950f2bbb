"""The parent's side of the process that runs candidates: limits, and what an end of it means."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from nestor.autotune.measure_buffers import GUARD_BYTES
from nestor.autotune.measure_native import FAULT, read_fault
from nestor.errors import InternalError
from nestor.runtime.memory import PAGE
from nestor.workers import child_environment, end_process

Fault = Literal["wrong", "crashed", "timeout", "memory"]

SETUP_SECONDS = 120.0
"""For what is not native code: drawing inputs, the interpreter, comparing [s]."""


class CandidateFault(Exception):
    """A candidate failed; unless it only gave wrong results, its process is gone.

    Attributes: status: as in ``Measurement``.
    """

    def __init__(self, status: Fault, text: str):
        super().__init__(text)
        self.status = status


class RunnerLost(InternalError):
    """The process ended though it ran no native code: somebody else ended it, or we are wrong."""


class Runner:
    """One process for native code.

    Args:
        helper: object code of ``measure_native.HELPER_IR``.
        threads: of kernels.
        run_seconds: limit of native code without an answer [s].
        memory_bytes: how much more address space than before native code may take [bytes].
        device: ``cpu``; see ``GpuBench`` for others.
    """

    def __init__(
        self,
        helper: bytes,
        *,
        threads: int,
        run_seconds: float,
        memory_bytes: int,
        device: str = "cpu",
    ):
        self._run_seconds, self._memory_bytes = run_seconds, memory_bytes
        environ = {
            **child_environment(),
            "OMP_NUM_THREADS": str(threads),
            # NumPy's own threads would be in the way of the kernels'.
            "OPENBLAS_NUM_THREADS": "1",
        }
        ending, held = os.pipe()
        self._lifeline = os.fdopen(held, "wb", buffering=0)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nestor.autotune.measure_worker", str(ending)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environ,
                bufsize=0,
                pass_fds=(ending,),
            )
        except OSError:
            self._lifeline.close()
            raise
        finally:
            os.close(ending)
        self.pid = self._process.pid
        self._buffer = b""
        self._baseline = 0
        self._arrays: list[tuple[str, int, int]] = []
        self.ask(
            "start",
            helper=helper,
            threads=threads,
            memory_bytes=memory_bytes,
            run_seconds=run_seconds,
            device=device,
        )

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def limit(self, run_seconds: float) -> None:
        """How long native code may run without an answer from now on [s]."""
        self._run_seconds = run_seconds

    def ask(self, command: str, **arguments: Any) -> Any:
        """Give a command and wait for its answer.

        Raises: ``CandidateFault``; ``RunnerLost``; ``InternalError`` for any other error that is
            not a candidate's.
        """
        body = pickle.dumps(arguments)
        name = command.encode()
        head = len(name).to_bytes(4, "little") + name + len(body).to_bytes(8, "little")
        has_run = is_running = False
        deadline = time.monotonic() + SETUP_SECONDS
        try:
            self._send(head + body)
            while True:
                message = self._receive(deadline)
                if message is None:
                    raise self._late(command, is_running)
                kind, answer = message
                if kind == "running":
                    has_run = is_running = True
                    note = json.loads(answer)
                    self._baseline, self._arrays = note["bytes"], note["arrays"]
                    deadline = time.monotonic() + self._run_seconds
                elif kind == "idle":
                    is_running = False
                    deadline = time.monotonic() + SETUP_SECONDS
                else:
                    break
        except (EOFError, OSError):
            # Also after it has run: what it spoilt may show later.
            raise self._ended(command, has_run) from None
        except ValueError:
            self.close()
            if has_run:
                raise CandidateFault("crashed", "what the process answers is garbled") from None
            raise RunnerLost("what the measuring process answers is garbled") from None
        except BaseException:
            self.close()  # half an answer may be on its way
            raise
        if kind == FAULT.decode():
            raise self._faulted(answer, has_run)
        if kind == "ok":
            return json.loads(answer)
        if kind == "failed":
            status, text = json.loads(answer)
            raise CandidateFault(status, text)
        self.close()
        raise InternalError(f"measuring ({command}): {json.loads(answer)}")

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) or 0 :]

    def _receive(self, deadline: float) -> tuple[str, bytes] | None:
        """The next message; None at the deadline. Raises: ``EOFError`` when the process ends."""
        head = self._bytes(4, deadline)
        if head is None:
            return None
        size = int.from_bytes(head, "little")
        if size > 64:
            raise ValueError("not a message")
        rest = self._bytes(size + 8, deadline)
        if rest is None:
            return None
        body = self._bytes(int.from_bytes(rest[size:], "little"), deadline)
        return None if body is None else (rest[:size].decode(), body)

    def _bytes(self, count: int, deadline: float) -> bytes | None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while len(self._buffer) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            data = os.read(pipe, 1 << 20)
            if not data:
                raise EOFError
            self._buffer += data
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    # ------------------------------------------------------------------------------ ends

    def _grown(self) -> int:
        """How much address space the process has beyond what it had before native code [bytes]."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{self.pid}/statm").read_text()
            return int(text.split()[0]) * PAGE - self._baseline
        return 0

    def _out_of_memory(self, grown: int) -> CandidateFault | None:
        # Not the whole limit: the allocation that would have passed it was refused.
        if grown <= self._memory_bytes // 2:
            return None
        return CandidateFault(
            "memory", f"took {grown:,} bytes of memory where {self._memory_bytes:,} are the limit"
        )

    def _late(self, command: str, is_running: bool) -> Exception:
        grown = self._grown()
        self.close()
        if not is_running:
            return InternalError(f"measuring ({command}) took longer than {SETUP_SECONDS:g} s")
        return self._out_of_memory(grown) or CandidateFault(
            "timeout", f"ran for longer than {self._run_seconds:g} s"
        )

    def _faulted(self, body: bytes, has_run: bool) -> Exception:
        grown = self._grown()
        self.close()
        number, address = read_fault(body)
        name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
        text = f"{name} at address {address:#x}{_near(address, self._arrays)}"
        if not has_run:
            return RunnerLost(f"the measuring process: {text}")
        return self._out_of_memory(grown) or CandidateFault("crashed", text)

    def _ended(self, command: str, has_run: bool) -> Exception:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)  # its pipe closes a little before its status is known
        self.close()
        code = self._process.returncode
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        if not has_run:
            return RunnerLost(f"the measuring process ended ({command}): {how}")
        if code == -signal.SIGKILL:
            # Nobody here did: the kernel's memory killer.
            return CandidateFault("memory", f"the process was {how}")
        return CandidateFault("crashed", how)

    def close(self) -> None:
        """End the process at once; it holds nothing that needs care."""
        end_process(self._process)
        self._lifeline.close()


def _near(address: int, arrays: Sequence[tuple[str, int, int]]) -> str:
    """Which array an address is at, in words; empty if none is near."""
    for name, start, size in arrays:
        if start <= address < start + size:
            return f": '{name}' at byte {address - start}, which it may only read"
        if start + size <= address < start + size + GUARD_BYTES:
            return f": {address - start - size} bytes past the end of '{name}'"
        if start - GUARD_BYTES <= address < start:
            return f": {start - address} bytes before the start of '{name}'"
    return ""
