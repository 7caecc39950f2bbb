"""Machine code of Triton kernels: from the object cache, or compiled in workers and kept there."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from nestor.cache import ObjectCache
from nestor.config import Config
from nestor.workers import shared_pool

if TYPE_CHECKING:
    from nestor.codegen.triton.cubin import Cubin, CubinJob


def compile_cubins(jobs: dict[str, CubinJob], config: Config) -> dict[str, Cubin]:
    """The cubin of each job, by its name. Raises: ``RefusedByTriton``."""
    from nestor.codegen.triton.cubin import Cubin, compile_cubin

    cache = ObjectCache(config.cache_dir)
    keys = {name: job.key() for name, job in jobs.items()}
    known = {name: cache.get(key) for name, key in keys.items()}
    done = {name: Cubin.decode(data) for name, data in known.items() if data is not None}
    missing = {name: job for name, job in jobs.items() if name not in done}
    workers = config.worker_count() if len(missing) > 1 else 1
    pool = shared_pool(workers) if workers > 1 else None
    if pool is not None:
        futures = {n: pool.submit("cubin", pickle.dumps(job)) for n, job in missing.items()}
        made = {name: Cubin.decode(future.result()) for name, future in futures.items()}
    else:
        made = {name: compile_cubin(job) for name, job in missing.items()}
    for name, cubin in made.items():
        cache.put(keys[name], cubin.encode())
    return done | made
