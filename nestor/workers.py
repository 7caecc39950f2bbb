"""Compile workers: fresh interpreters that run named jobs, bytes in, bytes out.

A pool starts workers when jobs come and stops them after a while without any, at exit, and (through
the end of their standard input) when this process dies in any way. A worker that crashes on a job
is replaced and the job tried once more; a second crash is an ``InternalError`` with a reproducer.

Workers are started with ``subprocess`` rather than ``multiprocessing``: a fork after an OpenMP
region hangs, and spawning re-imports the user's ``__main__``.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from nestor import _worker
from nestor.errors import InternalError, UserError

DEFAULT_TIMEOUT_S = 300.0
DEFAULT_MEMORY_BYTES = 8 << 30
IDLE_S = 60.0
_MAX_DEFAULT_WORKERS = 16


def default_worker_count() -> int:
    """``NESTOR_WORKERS``, else the CPUs that this process may use, at most 16.

    Raises:
        UserError: the variable is not a number ≥ 0.
    """
    text = os.environ.get("NESTOR_WORKERS", "")
    if text:
        if not text.isdecimal():
            raise UserError(f"NESTOR_WORKERS is {text!r}; give a number of processes, 0 for none")
        return int(text)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cpus or 1, _MAX_DEFAULT_WORKERS))


class WorkerCrash(Exception):
    """A worker ended, was killed or ran over its limit during a job."""


@dataclass(slots=True)
class _Job:
    kind: str
    payload: bytes
    future: Future[bytes] = field(default_factory=Future)


class WorkerPool:
    """Up to ``size`` workers; 0 runs every job in this process, at ``submit``.

    Args:
        timeout_s: limit of one job [s].
        memory_bytes: limit of a worker's address space [bytes].
        idle_s: a worker without a job for so long is stopped [s].
        reproducer_dir: where crashes are written; None: in the cache folder.
    """

    def __init__(
        self,
        size: int,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        idle_s: float = IDLE_S,
        reproducer_dir: Path | None = None,
    ):
        self.size = size
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        self.idle_s = idle_s
        self.reproducer_dir = reproducer_dir
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._pending = 0
        self._workers: set[LimitedWorker] = set()
        self._is_closed = False

    def submit(self, kind: str, payload: bytes) -> Future[bytes]:
        """Run a job of a kind that ``_worker.KINDS`` lists.

        Returns:
            a future of the job's bytes; it raises what the job raised (Nestor's own errors by
            their class, others as ``InternalError``).
        """
        if kind not in _worker.KINDS:
            raise ValueError(f"unknown kind of job '{kind}'")
        job = _Job(kind, bytes(payload))
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this pool is closed")
            if self.size:
                self._pending += 1
                wanted = min(self.size, self._pending)
                starts, self._threads = self._threads < wanted, max(self._threads, wanted)
                self._jobs.put(job)
        if not self.size:
            _run_here(job)
        elif starts:
            threading.Thread(target=self._serve, name="nestor-compile", daemon=True).start()
        return job.future

    def close(self) -> None:
        """Stop all workers; jobs that have not finished are cancelled or fail."""
        with self._lock:
            self._is_closed = True
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.future.cancel()
        for _ in range(self.size):
            self._jobs.put(None)

    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running."""
        with self._lock:
            return tuple(w.pid for w in self._workers)

    def _serve(self) -> None:
        """One thread, one worker: take jobs until there is none for a while."""
        worker: LimitedWorker | None = None
        try:
            while (job := self._next_job()) is not None:
                try:
                    worker = self._run(job, worker)
                finally:
                    with self._lock:
                        self._pending -= 1
        finally:
            if worker is not None:
                self._drop(worker)

    def _next_job(self) -> _Job | None:
        """The next job; None, with this thread no longer counted, when there is none for long."""
        while True:
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(timeout=self.idle_s)
                if job is not None:
                    return job
            with self._lock:
                # Under the lock: a submit that counts on this thread has put its job by now.
                if self._is_closed or self._jobs.empty():
                    self._threads -= 1
                    return None

    def _run(self, job: _Job, worker: LimitedWorker | None) -> LimitedWorker | None:
        """Run one job, in a second worker if the first crashes; the worker to go on with."""
        if not job.future.set_running_or_notify_cancel():
            return worker
        reasons: list[str] = []
        for _ in range(2):
            if worker is not None and not worker.is_alive():
                self._drop(worker)  # it died between jobs: not this job's fault
                worker = None
            try:
                worker = worker or self._start()
            except OSError as error:
                warnings.warn(
                    f"cannot start a compile worker ({error}); compiling in this process",
                    RuntimeWarning,
                    stacklevel=2,
                )
                _finish_here(job)
                return None
            try:
                status, body = worker.run(job.kind, job.payload, self.timeout_s)
            except WorkerCrash as crash:
                reasons.append(str(crash))
                self._drop(worker)
                worker = None
                if self._is_closed:
                    break
                continue
            _deliver(job, status, body, self.reproducer_dir)
            return worker
        job.future.set_exception(_crash_error(job, reasons, self.reproducer_dir))
        return worker

    def _start(self) -> LimitedWorker:
        worker = LimitedWorker(self.memory_bytes)
        with self._lock:
            self._workers.add(worker)
            closed = self._is_closed
        if closed:
            worker.kill()
        return worker

    def _drop(self, worker: LimitedWorker) -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.kill()


def child_environment() -> dict[str, str]:
    """This process's variables, for another one that imports the same ``nestor``."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


class LimitedWorker:
    """One ``python -m nestor._worker`` process, which is killed when a job takes too long."""

    def __init__(self, memory_bytes: int):
        environ = {
            **child_environment(),
            # A worker is one of several: neither OpenMP nor nested pools should multiply them.
            "OMP_NUM_THREADS": "1",
            "NESTOR_WORKERS": "1",
        }
        # -P keeps the current folder, which may hold a module of any name, off the path.
        command = [sys.executable, "-P", "-m", "nestor._worker", "--memory", str(memory_bytes)]
        if not sys.executable:
            raise FileNotFoundError("the Python interpreter is unknown")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
        )
        self.pid = self._process.pid

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def run(self, kind: str, payload: bytes, timeout_s: float) -> tuple[str, bytes]:
        """Send a job and wait for ``(status, body)``. Raises WorkerCrash."""
        assert self._process.stdin is not None and self._process.stdout is not None
        clock = time.monotonic()
        with self._limit(timeout_s):
            try:
                _worker.write_message(self._process.stdin, f"{kind} {timeout_s}", payload)
                answer = _worker.read_message(self._process.stdout)
            except (OSError, ValueError):
                answer = None
        if answer is None:
            if time.monotonic() - clock >= timeout_s:
                raise WorkerCrash(f"it took longer than {timeout_s:g} s")
            self.kill()
            raise WorkerCrash(_describe_exit(self._process.returncode))
        return answer

    @contextlib.contextmanager
    def _limit(self, timeout_s: float) -> Iterator[None]:
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def kill(self) -> None:
        """End the process at once and collect it."""
        # A worker holds nothing that needs care: no files, no locks.
        end_process(self._process)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, collect it and close its pipes."""
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by signal {-code}"
    return f"exit status {code}"


def _run_here(job: _Job) -> None:
    if job.future.set_running_or_notify_cancel():
        _finish_here(job)


def _finish_here(job: _Job) -> None:
    try:
        job.future.set_result(_worker.run_job(job.kind, job.payload))
    except Exception as error:
        job.future.set_exception(error)


def _deliver(job: _Job, status: str, body: bytes, reproducer_dir: Path | None) -> None:
    if status == "ok":
        job.future.set_result(body)
        return
    error = _worker.decode_error(body)
    if isinstance(error, InternalError) and error.reproducer is None:
        folder = write_reproducer(job.kind, job.payload, str(error), reproducer_dir)
        error = type(error)(f"{error}{_reproducer_hint(folder)}", reproducer=folder)
    job.future.set_exception(error)


def _crash_error(job: _Job, reasons: list[str], reproducer_dir: Path | None) -> InternalError:
    what = f"a '{job.kind}' job failed in {len(reasons)} compile workers: {'; '.join(reasons)}"
    folder = write_reproducer(job.kind, job.payload, what, reproducer_dir)
    return InternalError(what + _reproducer_hint(folder), reproducer=folder)


def _reproducer_hint(folder: str | None) -> str:
    return f"\nreproduce: python -m nestor._worker --replay {folder}" if folder else ""


def write_reproducer(kind: str, payload: bytes, what: str, folder: Path | None) -> str | None:
    """Write a job so that ``python -m nestor._worker --replay FOLDER`` runs it; its folder.

    None when it cannot be written: the error that it belongs to matters more.
    """
    import hashlib

    from nestor.cache import default_cache_dir

    base = folder or default_cache_dir() / "reproducers"
    digest = hashlib.sha256(kind.encode() + b"\0" + payload).hexdigest()[:16]
    place = base / f"{kind}-{digest}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / "kind").write_text(kind)
        (place / "payload").write_bytes(payload)
        (place / "error.txt").write_text(what + "\n")
    except OSError:
        return None
    return str(place)


_shared: WorkerPool | None = None
_shared_lock = threading.Lock()


def shared_pool(size: int | None = None) -> WorkerPool | None:
    """The pool that this process's compiles share, started lazily; None for no workers.

    Args:
        size: workers at most; None: ``default_worker_count()``; 0: None is returned. A pool that
            exists is kept and grows to the largest size asked for.
    """
    global _shared
    count = default_worker_count() if size is None else size
    if count <= 0:
        return None
    with _shared_lock:
        if _shared is None:
            _shared = WorkerPool(count)
        _shared.size = max(_shared.size, count)
        return _shared


def _close_shared() -> None:
    if _shared is not None:
        _shared.close()


def _forget_shared() -> None:
    """In a forked child: the workers, their pipes and threads are the parent's."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


atexit.register(_close_shared)
os.register_at_fork(after_in_child=_forget_shared)
