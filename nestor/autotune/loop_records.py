"""What records say of a loop kernel at given sizes: it is compiled for all sizes, but how it runs
best depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nestor.config import Config
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.target.cpu import CpuTarget


class Recalled:
    """What records say of one kernel at any sizes; read when a first call asks.

    Args: program: as it is compiled, in its own names.
    """

    def __init__(self, program: Program, target: CpuTarget, threads: int, config: Config):
        self._program, self._target, self._threads = program, target, threads
        self._config = config
        self._known: frozenset[str] | None = None

    def schedule(self, sizes: Mapping[str, int]) -> Schedule | None:
        """The schedule that was confirmed at ``sizes``, in canonical names; None if none was."""
        if not _has_records(self._config) or self._known == frozenset():
            return None
        from nestor.autotune.records import KernelKey, Records, TargetKey
        from nestor.autotune.tuner import confirmed_schedule

        key = KernelKey.of(self._program, sizes)
        if self._known is not None and key.digest not in self._known:
            return None
        with Records.open(self._config, create=False) as records:
            target = TargetKey.of(self._target)
            found = confirmed_schedule(records, key, target, self._threads)
            if self._known is None:
                others = frozenset(k.digest for k in records.family(key))
                self._known = others if found is None else others | {key.digest}
            return found


def _has_records(config: Config) -> bool:
    return config.cache is not None or Path(config.cache_dir, "records.db").exists()
