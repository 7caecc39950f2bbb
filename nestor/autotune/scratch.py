"""A folder for what outlives a process of measurements, and goes with the one that measures.

A process that is killed cleans nothing up. Each folder is therefore locked by its owner, a lock
that ends with the process however it ends, and whoever makes a folder removes those without one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "nestor-measure-"

_YOUNG_SECONDS = 30.0
"""A folder may be so old and not locked yet: its owner is about to [s]."""


class ScratchFolder:
    """A temporary folder of this process; ``close`` removes it.

    Attributes: path: where it is.
    Raises: ``OSError`` where no temporary folder can be made.
    """

    def __init__(self) -> None:
        remove_abandoned(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def close(self) -> None:
        """Remove the folder; twice does no harm."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def remove_abandoned(parent: Path) -> int:
    """Remove this user's folders below ``parent`` whose owners are gone; how many."""
    removed = 0
    for path in parent.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            removed += _remove_if_abandoned(path)
    return removed


def _remove_if_abandoned(path: Path) -> bool:
    # Not through a link: in a folder that all users share, names prove nothing.
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _YOUNG_SECONDS:
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it has an owner
        shutil.rmtree(path, ignore_errors=True)
        return True
    finally:
        os.close(handle)
