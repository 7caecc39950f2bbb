"""Compile candidates in workers with limits; what cannot be compiled is told apart by why."""

from __future__ import annotations

import json
import pickle
import queue
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nestor import _worker
from nestor.errors import (
    InternalError,
    LegalityUnknown,
    Unsupported,
    UserError,
)
from nestor.gpu_job import GpuKernelJob
from nestor.kernel_job import KernelJob, KernelObject, generate_code, prove_schedule
from nestor.kernel_store import decode_object, encode_object
from nestor.workers import LimitedWorker, WorkerCrash, write_reproducer

Job = KernelJob | GpuKernelJob
"""What is compiled."""

Failure = Literal["illegal", "unknown", "crashed", "timeout", "memory"]

_DETAIL = 2000
"""Characters of a refusal that are kept."""

START_SECONDS = 60.0
"""For a worker to start and load what it needs; no part of a candidate's time [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What became of a candidate: an object, or why there is none.

    Attributes: status: ``ok``, or why not. seconds: by phase.
    """

    status: Literal["ok"] | Failure
    object: KernelObject | None = None
    detail: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


def run_job(payload: bytes) -> bytes:
    """Kind ``candidate``: a pickled job from the parent's own pipe → an answer.

    Unlike kind ``kernel``, a schedule that is refused gives way to no other.
    """
    job: Job = pickle.loads(payload)
    status, detail, code = "ok", "", b""
    try:
        if isinstance(job, GpuKernelJob):
            code = encode_object(job.compile())
        else:
            code = encode_object(generate_code(job, prove_schedule(job)))
    except LegalityUnknown as error:
        status, detail = "unknown", str(error)
    except (UserError, Unsupported) as error:
        status, detail = "illegal", f"{type(error).__name__}: {error}"
    except InternalError as error:
        if not isinstance(job, GpuKernelJob):
            raise
        status, detail = "crashed", str(error)[:_DETAIL]  # Triton refuses it, or fails
    except MemoryError:
        status, detail = "memory", "compiling needs more memory than is allowed"
    head = json.dumps([status, detail]).encode()
    return struct.pack("<I", len(head)) + head + code


def _decode(body: bytes) -> Compiled:
    (size,) = struct.unpack_from("<I", body)
    status, detail = json.loads(body[4 : 4 + size])
    made = decode_object(body[4 + size :]) if status == "ok" else None
    return Compiled(status=status, detail=detail, object=made, seconds=made.seconds if made else {})


class CandidateCompiler:
    """Up to ``workers`` processes that compile candidates; a context of ``Measurer``.

    Args:
        seconds: of one candidate at most [s].
        memory_bytes: address space of a worker [bytes].
    """

    def __init__(self, workers: int, *, seconds: float, memory_bytes: int):
        self._count = max(1, workers)
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._workers: list[LimitedWorker | None] = [None] * self._count
        self._is_closed = False

    def compile(self, jobs: Mapping[str, Job], done: Callable[[str, Compiled], None]) -> None:
        """Compile all jobs; ``done`` is told each one's key and result, from another thread.

        Returns when the last one has finished: nothing is compiled while something is measured.
        Raises: ``InternalError`` if a job fails in a way that is no fault of its schedule.
        """
        waiting: queue.SimpleQueue[tuple[str, Job]] = queue.SimpleQueue()
        for item in jobs.items():
            waiting.put(item)
        errors: list[BaseException] = []
        lock = threading.Lock()

        def serve(slot: int) -> None:
            while not errors and not self._is_closed:
                try:
                    key, job = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    result = self._run(slot, job)
                    with lock:
                        done(key, result)
                except BaseException as error:
                    errors.append(error)

        count = min(self._count, len(jobs))
        threads = [threading.Thread(target=serve, args=(k,), daemon=True) for k in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def compile_ir(self, text: str, target: object) -> bytes:
        """An object from LLVM IR text, for the helper of measurements."""
        job = json.dumps({"ir": text, "target": target}).encode()
        status, body = self._worker(0).run("compile", job, START_SECONDS)
        if status != "ok":
            raise _worker.decode_error(body)
        return body

    def _run(self, slot: int, job: Job) -> Compiled:
        worker = self._worker(slot)
        payload = pickle.dumps(job)
        try:
            status, body = worker.run("candidate", payload, self._seconds)
        except WorkerCrash as crash:
            self._drop(slot)
            late = "took longer" in str(crash)
            return Compiled(status="timeout" if late else "crashed", detail=f"compiling: {crash}")
        if status == "ok":
            return _decode(body)
        error = _worker.decode_error(body)
        if isinstance(error, InternalError):
            folder = write_reproducer("candidate", payload, str(error), None)
            raise InternalError(
                f"{error}\nreproduce: python -m nestor._worker --replay {folder}",
                reproducer=folder,
            )
        raise error

    def _worker(self, slot: int) -> LimitedWorker:
        """A worker that has loaded isl and LLVM."""
        worker = self._workers[slot]
        if worker is None or not worker.is_alive():
            self._drop(slot)
            worker = LimitedWorker(self._memory_bytes)
            self._workers[slot] = worker
            try:
                worker.run("isl-warm", b"", START_SECONDS)
            except WorkerCrash as crash:
                self._drop(slot)
                raise InternalError(f"a compile worker does not start: {crash}") from None
        return worker

    def _drop(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.kill()

    def close(self) -> None:
        """End the workers, also those that compile."""
        self._is_closed = True
        for slot in range(self._count):
            self._drop(slot)
