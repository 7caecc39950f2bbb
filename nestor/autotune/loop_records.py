"""What records say of a loop kernel at given sizes.

A loop kernel is compiled for all sizes, but how it runs best depends on them. So its records are of
the kernel with each symbol's range narrowed to the value that was measured: another program with a
key of its own, and for other sizes of the same family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nestor.config import Config
from nestor.ir.program import Program
from nestor.ir.schedule import Schedule
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.autotune.records import KernelKey


def sized_key(kernel: Program, sizes: Mapping[str, int]) -> KernelKey:
    """The key of records of ``kernel`` at ``sizes``: each symbol can only be what it is.

    Args: kernel: in any names. sizes: of its symbols, by its names.
    """
    from nestor.autotune.records import KernelKey

    symbols = tuple(replace(s, lower=sizes[s.name], upper=sizes[s.name]) for s in kernel.symbols)
    return KernelKey.of(replace(kernel, symbols=symbols))


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
        from nestor.autotune.records import Records, TargetKey
        from nestor.autotune.tuner import confirmed_schedule

        key = sized_key(self._program, sizes)
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
