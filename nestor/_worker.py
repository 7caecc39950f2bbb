"""A compile worker: ``python -m nestor._worker`` reads jobs from stdin and answers on stdout.

A message is ``u32`` length of a text, the text, ``u64`` length of a body, the body (little endian).
A job's text is its kind and its limit in seconds, an answer's is ``ok`` or ``error``. The end of
stdin ends the worker, also in the middle of a job: then the parent is gone. Where a library holds
the interpreter that goes unnoticed, and an alarm a little past the limit ends it.

``python -m nestor._worker --replay FOLDER`` runs one job from a reproducer in the foreground.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import queue
import signal
import struct
import sys
import threading
import traceback
from pathlib import Path
from typing import IO

from nestor import errors

KINDS = {
    "candidate": "nestor.autotune.compile_candidates:run_job",
    "compile": "nestor._worker:compile_llvm",
    "cubin": "nestor.codegen.triton.cubin:run_pickled_job",
    "kernel": "nestor.kernel_store:run_pickled_job",
    "isl": "nestor.isl_stages:run_job",
    "isl-warm": "nestor.isl_stages:warm_up",
    "polyhedral": "nestor.passes.polyhedral.proposals:run_job",
    "selftest": "nestor._worker:selftest",
}
"""Kind of job → ``module:function`` (bytes → bytes); nothing else can be asked of a worker."""

_MAX_BODY_BYTES = 4 << 30

ALARM_SECONDS = 2.0
"""How long after its limit a job whose parent did not end it is ended [s]."""


def write_message(pipe: IO[bytes], text: str, body: bytes) -> None:
    """Write one message and flush it."""
    name = text.encode()
    pipe.write(struct.pack("<I", len(name)) + name + struct.pack("<Q", len(body)))
    pipe.write(body)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> tuple[str, bytes] | None:
    """Read one message; None at the end of the stream, also in the middle of a message."""
    head = pipe.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("<I", head)
    rest = pipe.read(size + 8)
    if len(rest) < size + 8:
        return None
    (length,) = struct.unpack("<Q", rest[size:])
    if length > _MAX_BODY_BYTES:
        raise ValueError(f"a message of {length} bytes")
    body = pipe.read(length)
    return None if len(body) < length else (rest[:size].decode(), body)


def run_job(kind: str, payload: bytes) -> bytes:
    """Run a job in this process. KeyError for an unknown kind, else what the job raises."""
    module, _, function = KINDS[kind].partition(":")
    result = getattr(importlib.import_module(module), function)(payload)
    return bytes(result)


def compile_llvm(payload: bytes) -> bytes:
    """Kind ``compile``: JSON ``{"ir": text, "target": CpuTarget, "opt_level": 2}`` → object."""
    from nestor.codegen.llvm.compile import compile_ir
    from nestor.target.cpu import CpuTarget

    job = json.loads(payload)
    target = CpuTarget.from_json(job["target"])
    return bytes(compile_ir(job["ir"], target, job.get("opt_level", 2)))


def selftest(payload: bytes) -> bytes:
    """Kind ``selftest``: try what may happen to a worker; JSON ``{"do": …}``.

    ``echo`` gives the process id, ``sleep`` waits ``seconds``, ``exit`` ends the process with
    ``status``, ``allocate`` takes ``bytes``, ``raise`` raises ``error`` of ``nestor.errors``,
    ``print`` writes to stdout.
    """
    import time

    job = json.loads(payload)
    match job["do"]:
        case "echo":
            return str(os.getpid()).encode()
        case "sleep":
            time.sleep(job["seconds"])
        case "exit":
            os._exit(job["status"])
        case "allocate":
            return str(len(bytearray(job["bytes"]))).encode()
        case "raise":
            raise getattr(errors, job["error"])(job["message"])
        case "print":
            print("noise", flush=True)
        case other:
            raise ValueError(f"selftest cannot do {other!r}")
    return b"done"


def encode_error(error: BaseException) -> bytes:
    """An exception as JSON: Nestor's own by class and message, others with their traceback."""
    own = isinstance(error, errors.NestorError)
    text = str(error) if own else "".join(traceback.format_exception(error)).rstrip()
    name = type(error).__name__ if own else "InternalError"
    extra = {
        key: getattr(error, key)
        for key in ("question", "witness", "reproducer")
        if own and hasattr(error, key)
    }
    return json.dumps({"error": name, "text": text, "extra": extra}, default=str).encode()


def decode_error(body: bytes) -> errors.NestorError:
    """Inverse of ``encode_error``."""
    data = json.loads(body)
    text, extra = data["text"], data.get("extra", {})
    cls: type[errors.NestorError] = getattr(errors, data["error"], errors.InternalError)
    if cls is errors.IllegalSchedule:
        return errors.IllegalSchedule(
            text, question=extra.get("question", ""), witness=extra.get("witness", {})
        )
    if cls is errors.InternalError:
        return errors.InternalError(text, reproducer=extra.get("reproducer"))
    return cls(text)


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer jobs until ``source`` ends."""
    jobs: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(Exception):
            while (message := read_message(source)) is not None:
                jobs.put(message)
        # The parent is gone, or its stream is unreadable: a job that runs now is of no use.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        text, payload = jobs.get()
        kind, _, limit = text.partition(" ")
        # The signal's default action, the end of the process, needs no interpreter.
        signal.setitimer(signal.ITIMER_REAL, float(limit) + ALARM_SECONDS)
        try:
            status, body = "ok", run_job(kind, payload)
        except Exception as error:
            status, body = "error", encode_error(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_message(sink, status, body)


def _limit_memory(limit_bytes: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _replay(folder: Path) -> None:
    kind = (folder / "kind").read_text()
    result = run_job(kind, (folder / "payload").read_bytes())
    print(f"job '{kind}' gave {len(result)} bytes: it does not fail here")


def main() -> None:
    """Entry point of ``python -m nestor._worker``."""
    parser = argparse.ArgumentParser(prog="python -m nestor._worker", description=__doc__)
    parser.add_argument("--memory", type=int, default=0, help="address space at most [bytes]")
    parser.add_argument("--replay", type=Path, help="run the job in this folder and exit")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        _replay(arguments.replay)
        return
    if arguments.memory:
        _limit_memory(arguments.memory)
    # What a library prints must not get between the messages.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # The keyboard's Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
