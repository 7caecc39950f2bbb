"""The local object cache: files in the user's cache folder, keyed by digest, verified on load.

Any number of processes may read and write: a file appears by an atomic rename and is never changed
afterwards. A file that is damaged is set aside with a warning and counts as a miss. A folder that
cannot be used (read-only, full, owned by somebody else) means a warning and no caching, never a
failure: object code is executed, so it is only taken from a folder that others cannot write to.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAGIC = b"NSTCACH1"
_HEADER = struct.Struct("<8s32sQ")
_KEY = re.compile(r"[0-9a-zA-Z_-]{8,128}")
_TOUCH_AFTER_S = 3600.0
_STALE_TEMPORARY_S = 3600.0
_PRUNE_TO = 0.8

DEFAULT_MAX_BYTES = 2 << 30


class CacheWarning(UserWarning):
    """The cache cannot be used, or an entry of it was damaged; nothing is lost but time."""


def default_cache_dir() -> Path:
    """``NESTOR_CACHE_DIR``, else ``nestor`` in the user's cache folder (XDG)."""
    chosen = os.environ.get("NESTOR_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()
    return folder / "nestor"


class FileStore:
    """Blobs by key in one folder; see the module for the guarantees.

    Args:
        folder: where; created when first written. Its parent must be usable too.
        suffix: of the files.
        max_bytes: past this size the least recently used entries are removed.
    """

    def __init__(self, folder: Path, suffix: str, max_bytes: int = DEFAULT_MAX_BYTES):
        self.folder = Path(folder)
        self.suffix = suffix
        self.max_bytes = max_bytes
        self._usable: bool | None = None
        self._written = 0
        self._lock = threading.Lock()

    def path_of(self, key: str) -> Path:
        """Where the entry of ``key`` lies. ValueError for what cannot be a key."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a cache key: {key!r}")
        return self.folder / key[:2] / (key + self.suffix)

    def get(self, key: str) -> bytes | None:
        """The blob of ``key``, verified; None when there is none."""
        path = self.path_of(key)
        if not self._is_usable():
            return None
        try:
            data = path.read_bytes()
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return None
        except OSError as error:
            self._give_up(f"cannot be read: {error}")
            return None
        payload = _unpack(data)
        if payload is None:
            self._set_aside(path)
            return None
        if age > _TOUCH_AFTER_S:
            # The time of last use steers pruning; renewing it at every hit would cost more.
            with contextlib.suppress(OSError):
                os.utime(path)
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Keep ``payload``; on a full or read-only disk warn once and go on without."""
        path = self.path_of(key)
        if not self._is_usable(create=True):
            return
        header = _HEADER.pack(_MAGIC, hashlib.sha256(payload).digest(), len(payload))
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _write_atomically(path, header + payload)
        except OSError as error:
            self._give_up(f"cannot be written: {error}")
            return
        with self._lock:
            is_first, self._written = self._written == 0, self._written + len(payload)
            due = is_first or self._written > self.max_bytes // 16
            if due:
                self._written = 1
        if due:
            self.prune()

    def prune(self, max_bytes: int | None = None) -> int:
        """Remove the least recently used entries until 80 % of the limit; the bytes removed.

        One process prunes at a time; the others skip it.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        removed = 0
        try:
            with self._prune_lock() as is_mine:
                if not is_mine:
                    return 0
                entries = sorted(self._entries())
                total = sum(size for _, size, _ in entries)
                if total <= limit:
                    return 0
                for _, size, path in entries:
                    path.unlink(missing_ok=True)
                    removed += size
                    if total - removed <= limit * _PRUNE_TO:
                        break
        except OSError as error:
            self._give_up(f"cannot be pruned: {error}")
        return removed

    def size_bytes(self) -> int:
        """Bytes that the entries take."""
        return sum(size for _, size, _ in self._entries())

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        now = time.time()
        for path in self.folder.glob("??/*"):
            try:
                status = path.stat()
            except OSError:
                continue  # removed by another process meanwhile
            if path.suffix == self.suffix:
                yield status.st_mtime, status.st_size, path
            elif path.name.startswith(".tmp") and now - status.st_mtime > _STALE_TEMPORARY_S:
                # Left by a process that was killed while it wrote.
                with contextlib.suppress(OSError):
                    path.unlink()

    @contextlib.contextmanager
    def _prune_lock(self) -> Iterator[bool]:
        handle = os.open(self.folder / ".prune", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def _is_usable(self, create: bool = False) -> bool:
        if self._usable is None:
            try:
                if create:
                    self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                status = self.folder.stat()
            except FileNotFoundError:
                return False
            except OSError as error:
                self._give_up(f"cannot be used: {error}")
                return False
            user = os.geteuid()
            if status.st_uid != user and user != 0:
                self._give_up("belongs to another user")
                return False
            if status.st_mode & 0o002:
                self._give_up("may be written by every user (chmod o-w it)")
                return False
            self._usable = True
        return self._usable

    def _give_up(self, why: str) -> None:
        self._usable = False
        warnings.warn(
            f"the cache folder {self.folder} {why}; going on without a cache "
            "(set NESTOR_CACHE_DIR to another folder)",
            CacheWarning,
            stacklevel=4,
        )

    def _set_aside(self, path: Path) -> None:
        aside = self.folder / "damaged"
        try:
            aside.mkdir(mode=0o700, exist_ok=True)
            path.replace(aside / path.name)
            what = f"set aside in {aside}"
        except OSError:
            what = "ignored"
        warnings.warn(
            f"cache entry {path.name} is damaged: {what}, and made again",
            CacheWarning,
            stacklevel=4,
        )


class ObjectCache(FileStore):
    """Object code by digest of everything that made it (the caller's key)."""

    def __init__(self, cache_dir: Path | None = None, max_bytes: int = DEFAULT_MAX_BYTES):
        super().__init__((cache_dir or default_cache_dir()) / "objects", ".obj", max_bytes)


class RecordStore:
    """Small JSON records by digest, e.g. which checks passed; the guarantees of ``FileStore``."""

    def __init__(self, cache_dir: Path | None = None, max_bytes: int = 64 << 20):
        self._files = FileStore((cache_dir or default_cache_dir()) / "records", ".rec", max_bytes)

    def get(self, key: str) -> Any | None:
        """The record of ``key``; None when there is none."""
        data = self._files.get(key)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError:
            self._files._set_aside(self._files.path_of(key))
            return None

    def put(self, key: str, record: Any) -> None:
        """Keep ``record`` (JSON)."""
        self._files.put(key, json.dumps(record, sort_keys=True).encode())

    def prune(self) -> int:
        """See ``FileStore.prune``."""
        return self._files.prune()


def _unpack(data: bytes) -> bytes | None:
    if len(data) < _HEADER.size:
        return None
    magic, digest, size = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if magic != _MAGIC or size != len(payload) or hashlib.sha256(payload).digest() != digest:
        return None
    return payload


def _write_atomically(path: Path, data: bytes) -> None:
    """Write by rename. No fsync: after a power cut the checksum tells, and the entry is remade."""
    handle, name = tempfile.mkstemp(prefix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
