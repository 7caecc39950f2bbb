"""Compile jobs: look each up in the object cache, compile the rest in workers, keep the results."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable, Iterator

from nestor.cache import ObjectCache
from nestor.config import Config
from nestor.ir.schedule import schedule_from_json, schedule_to_json
from nestor.kernel_job import KernelJob, KernelObject, Proofs, run_kernel_job
from nestor.workers import WorkerPool, shared_pool

Progress = Callable[[int, int], None]
"""Called with (jobs done, jobs in all)."""


def job_key(job: KernelJob) -> str:
    """Digest of everything that makes the object: kernel, schedule, target, code versions."""
    from nestor.codegen.llvm import CODEGEN_VERSION
    from nestor.codegen.llvm.streaming import depends_on_caches
    from nestor.ir.printer import print_program
    from nestor.passes.polyhedral import CHECKER_VERSION

    parts = {
        "kernel": print_program(job.kernel),
        "schedule": schedule_to_json(job.schedule),
        "target": job.target.isa_fingerprint(),
        "stream": depends_on_caches(job.kernel.tensors, job.target),
        "function": job.function_name,
        "contract": job.contract,
        "fallbacks": [schedule_to_json(s) for s in job.fallbacks],
        "codegen": CODEGEN_VERSION,
        "checker": CHECKER_VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def compile_jobs(
    jobs: dict[str, KernelJob],
    config: Config,
    progress: Progress | None = None,
    proofs: Proofs | None = None,
) -> tuple[dict[str, KernelObject], frozenset[str]]:
    """Objects for all jobs, by key, and the keys of those that came from the cache.

    Args: proofs: where a single job asks isl; None: in this process. Several go to workers.
    Raises: what a job raises, after the others have finished.
    """
    cache = ObjectCache(config.cache_dir)
    done: dict[str, KernelObject] = {}
    for key in jobs:
        data = cache.get(key)
        if data is not None:
            done[key] = decode_object(data)
    hits = frozenset(done)
    missing = {key: job for key, job in jobs.items() if key not in done}
    report = progress or (lambda finished, total: None)
    report(len(hits), len(jobs))
    wanted = config.worker_count() if len(missing) > 1 else 1
    pool = shared_pool(wanted) if wanted > 1 else None
    results = _compile_here(missing, proofs) if pool is None else _compile_in_workers(pool, missing)
    for position, (key, compiled) in enumerate(results):
        done[key] = compiled
        cache.put(key, encode_object(compiled))
        report(len(hits) + position + 1, len(jobs))
    return done, hits


def _compile_here(
    jobs: dict[str, KernelJob], proofs: Proofs | None
) -> Iterator[tuple[str, KernelObject]]:
    for key, job in jobs.items():
        yield key, run_kernel_job(job, proofs)


def _compile_in_workers(
    pool: WorkerPool, jobs: dict[str, KernelJob]
) -> Iterator[tuple[str, KernelObject]]:
    futures = {key: pool.submit("kernel", pickle.dumps(job)) for key, job in jobs.items()}
    for key, future in futures.items():
        yield key, decode_object(future.result())


def run_pickled_job(payload: bytes) -> bytes:
    """The worker's side: a pickled ``KernelJob`` from the parent's own pipe → encoded object."""
    return encode_object(run_kernel_job(pickle.loads(payload)))


def encode_object(compiled: KernelObject) -> bytes:
    """Data only: a length, a JSON header, the object file."""
    header = json.dumps(
        {
            "function": compiled.function_name,
            "schedule": schedule_to_json(compiled.schedule),
            "seconds": compiled.seconds,
            "refused": compiled.refused,
            "tensors": compiled.tensors,
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + compiled.code


def decode_object(data: bytes) -> KernelObject:
    """Inverse of ``encode_object``."""
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    return KernelObject(
        function_name=header["function"],
        code=bytes(data[8 + size :]),
        schedule=schedule_from_json(header["schedule"]),
        seconds=header["seconds"],
        refused=header["refused"],
        tensors=tuple(header.get("tensors", ())),
    )
