"""Open a database, SQLite or PostgreSQL, and run transactions that survive what passes by itself.

SQLite: write-ahead log; each write takes the lock at its beginning (a transaction that reads first
and then wants to write can fail at once, without waiting); a commit is on disk when it returns.
PostgreSQL: the server's own guarantees; a lost connection is made again and the transaction
repeated, which adds nothing twice, since every insertion is keyed by a digest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, IntegrityError

from nestor.autotune.records.mounts import file_system_of, is_network_file_system
from nestor.autotune.records.schema import (
    SCHEMA_VERSION,
    check_version,
    migrate,
    schema_version,
)
from nestor.errors import UserError

T = TypeVar("T")

BUSY_SECONDS = 30.0
"""How long a writer waits for others [s]; a transaction of ours takes milliseconds."""

PATIENCE_SECONDS = 30.0
"""How long a transaction is repeated while a server restarts, unless told otherwise [s]."""

_MAX_COLLISIONS = 20

_WATCHED_STEPS = 10_000
"""Of SQLite's machine, between two looks at how many there were."""

_READING_STEPS, _WRITING_STEPS, _STEPS_PER_BYTE = 2_000_000, 2_000_000_000, 4
"""What a transaction may take, and more for each byte of the file: a record has a thousand bytes,
and takes some hundred steps to be read."""

_NO_TEXT = "names in it are no text"

_SQLITE_MAGIC = b"SQLite format 3\0"

_PASSING_STATES = ("08", "40", "53300", "55P03", "57P", "25006")
"""SQLSTATEs of PostgreSQL that end by themselves: connection lost, deadlock or serialisation, too
many connections, lock not there, shutdown and start, read-only while it recovers."""


class RecordsWarning(UserWarning):
    """The records cannot be used, or some are damaged; tuning goes on without them."""


class DatabaseUnusable(Exception):
    """The database cannot be opened or used; the message says which and why.

    Attributes: is_away: it is a server that does not answer now, and may do so later.
    """

    def __init__(self, text: str, is_away: bool = False):
        super().__init__(text)
        self.is_away = is_away


@dataclass(slots=True)
class Database:
    """An open database at the current schema.

    Attributes:
        engine: SQLAlchemy's engine.
        label: the path, or the URL without its password; for messages.
        path: the file, for SQLite.
        set_aside: where a file that was no database has been moved to.
    """

    engine: sa.Engine
    label: str
    path: Path | None
    set_aside: Path | None = None
    _process: int = field(default_factory=os.getpid)

    def read(self, action: Callable[[sa.Connection], T], patience_s: float | None = None) -> T:
        """``action`` within one snapshot. Raises: SQLAlchemy's ``DBAPIError``.

        Args: patience_s: for how long it is repeated at most [s]; None: ``PATIENCE_SECONDS``.
        """
        return self._attempt(self.engine, action, patience_s)

    def write(self, action: Callable[[sa.Connection], T], patience_s: float | None = None) -> T:
        """``action`` in one transaction; it may run several times, the last one counts."""
        writing = self.engine.execution_options(nestor_write=True)
        return self._attempt(writing, action, patience_s)

    def is_away(self, error: BaseException) -> bool:
        """Whether ``error`` means a server that does not answer now, and may do so later."""
        return self.path is None and isinstance(error, DBAPIError) and _may_pass(error)

    def compact(self) -> None:
        """Give room that deleted rows left back to the disk, unless others are at work."""
        if self.path is None:
            return  # PostgreSQL does so by itself
        # Needs the whole file for itself, and as much room again; it is no loss without.
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(_connect(self.path, create=False)) as plain,
        ):
            plain.execute("PRAGMA busy_timeout = 1000")
            plain.execute("VACUUM")

    def _attempt(
        self, engine: sa.Engine, action: Callable[[sa.Connection], T], patience_s: float | None
    ) -> T:
        if self._process != os.getpid():
            # After a fork: a connection serves one process, and closing it would end the parent's.
            engine.dispose(close=False)
            self._process = os.getpid()
        patience_s = PATIENCE_SECONDS if patience_s is None else patience_s
        deadline = time.monotonic() + patience_s
        pause, collisions = 0.05, 0
        while True:
            try:
                with engine.begin() as connection:
                    return action(connection)
            except UnicodeDecodeError as error:  # of what SQLite complains of, or of a name
                raise DatabaseError("", None, sqlite3.DatabaseError(_NO_TEXT)) from error
            except DBAPIError as error:
                # A kernel or target that somebody else pruned meanwhile, or a fault that stays.
                collisions += isinstance(error, IntegrityError)
                may_pass = collisions <= _MAX_COLLISIONS and _may_pass(error)
                if not may_pass or time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 1.0)


def _may_pass(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed a little later."""
    if isinstance(error, IntegrityError):
        return True
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # no server to answer
        return error.connection_invalidated or type(error.orig).__name__ == "OperationalError"
    return str(state).startswith(_PASSING_STATES)


def describe_error(error: BaseException) -> str:
    """One line without the statement and its values."""
    origin = getattr(error, "orig", None) or error
    if getattr(origin, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
        return "its pages lead round in circles"
    if isinstance(origin, UnicodeDecodeError):
        return _NO_TEXT
    text = str(origin).strip() or type(origin).__name__
    return text.splitlines()[0]


# ------------------------------------------------------------------------------------ opening


def open_database(where: str | Path, *, create: bool = True) -> Database | None:
    """The database at a path or URL, at the current schema; None if there is none to be read.

    Args: create: make a new one where there is none.
    Raises: ``UserError`` for a place that cannot hold one (a network file system), for a newer
        schema or a missing driver; ``DatabaseUnusable`` for what a user can only be told about.
    """
    path, url = parse_place(where)
    try:
        if path is not None:
            return _open_sqlite(path, create)
        assert url is not None
        return _open_postgresql(url)
    except (DBAPIError, sqlite3.Error, OSError, UnicodeDecodeError) as error:
        label = str(path) if url is None else _shown(url)
        is_away = url is not None and isinstance(error, DBAPIError) and _may_pass(error)
        raise DatabaseUnusable(f"{label}: {describe_error(error)}", is_away) from error


def parse_place(where: str | Path) -> tuple[Path | None, sa.URL | None]:
    """A path, or else a server's URL. Raises: ``UserError``; never repeats a password."""
    text = str(where)
    if isinstance(where, Path) or "://" not in text:
        return Path(text).expanduser(), None
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        raise UserError("the records' URL cannot be read; check NESTOR_CACHE") from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise UserError("the records' URL sqlite:///… needs a path")
        return Path(url.database).expanduser(), None
    if backend != "postgresql":
        raise UserError(f"records in {backend!r} are not supported: use sqlite or postgresql")
    return None, url.set(drivername="postgresql+psycopg")


def _shown(url: sa.URL) -> str:
    """A URL as it was given, without its password."""
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


def _open_postgresql(url: sa.URL) -> Database:
    label = _shown(url)
    try:
        engine = sa.create_engine(
            url, pool_pre_ping=True, pool_size=2, connect_args={"connect_timeout": 10}
        )
    except ImportError:
        raise UserError(
            f"records in {label} need the package psycopg\n  fix: pip install 'nestor[postgres]'"
        ) from None
    try:
        with engine.begin() as connection:
            version = schema_version(connection)
        check_version(version, label)
        if version != SCHEMA_VERSION:
            with engine.begin() as connection:
                migrate(connection, label)
    except BaseException:
        engine.dispose()
        raise
    return Database(engine, label, None)


def _open_sqlite(path: Path, create: bool) -> Database | None:
    if not path.exists() and not create:
        return None
    kind = file_system_of(path)
    if is_network_file_system(kind):
        raise UserError(
            f"{path} lies on a network file system ({kind}), where SQLite loses data\n"
            "  fix: share records by a server, NESTOR_CACHE=postgresql://USER@HOST/DATABASE, or "
            "keep them on a local disk, NESTOR_CACHE=sqlite:////PATH/records.db"
        )
    if create:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opening_lock(path):
        set_aside = None
        if not _is_database(path):
            if not create:
                raise DatabaseUnusable(f"{path}: is no database")
            set_aside = _set_aside(path)
        engine = _sqlite_engine(path, create)
        try:
            _prepare_sqlite(engine, path)
        except BaseException:
            engine.dispose()
            raise
    return Database(engine, str(path), path, set_aside)


def _prepare_sqlite(engine: sa.Engine, path: Path) -> None:
    with engine.connect() as connection:
        odd = connection.exec_driver_sql(
            "SELECT count(*) FROM sqlite_master "
            "WHERE type IN ('trigger', 'view') OR (type = 'table' AND rootpage = 0)"
        ).scalar()
        version = schema_version(connection)
    if odd:
        # All three are programs that would run when we read or write.
        raise DatabaseUnusable(
            f"{path}: holds triggers, views or virtual tables, which Nestor never makes"
        )
    check_version(version, str(path))
    if version != SCHEMA_VERSION:
        with contextlib.closing(_connect(path, create=True)) as plain:
            plain.execute("PRAGMA journal_mode = WAL")  # impossible within a transaction
        with engine.execution_options(nestor_write=True).begin() as connection:
            migrate(connection, str(path))


@contextlib.contextmanager
def _opening_lock(path: Path) -> Iterator[None]:
    """One process at a time makes, migrates or sets aside a file; the lock dies with it."""
    handle = os.open(
        path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_database(path: Path) -> bool:
    """Whether a file is what SQLite writes. One that is absent or empty is a new database."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE_MAGIC))
    except FileNotFoundError:
        return True
    return not head or head == _SQLITE_MAGIC


def _set_aside(path: Path) -> Path:
    """Move a file that is no database out of the way; where to."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        # A log of what the file was must not be replayed into the new one.
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


class _Watch:
    """Ends a transaction that takes more steps than a sound file of its size can ask for: pages
    that are damaged may lead back to each other."""

    def __init__(self, path: Path):
        self.path, self.left = path, _WRITING_STEPS // _WATCHED_STEPS

    def start(self, is_write: bool) -> None:
        """A transaction begins."""
        size = 0
        with contextlib.suppress(OSError):
            size = self.path.stat().st_size
        least = _WRITING_STEPS if is_write else _READING_STEPS
        self.left = (least + _STEPS_PER_BYTE * size) // _WATCHED_STEPS

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def _connect(path: Path, create: bool) -> sqlite3.Connection:
    """A connection without the driver's own transactions, and with every defence switched on."""
    mode = "rwc" if create else "rw"
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    # Bytes that are no text become a text that no digest fits, not an exception.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _sqlite_engine(path: Path, create: bool) -> sa.Engine:
    # The URL names no file, which would mean one connection for all threads.
    engine = sa.create_engine(
        "sqlite://", creator=lambda: _connect(path, create), poolclass=sa.QueuePool
    )

    @sa.event.listens_for(engine, "connect")
    def connect(plain: sqlite3.Connection, record: Any) -> None:
        watch = record.info["watch"] = _Watch(path)
        plain.set_progress_handler(watch, _WATCHED_STEPS)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        is_write = connection.get_execution_options().get("nestor_write", False)
        connection.info["watch"].start(is_write)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")

    return engine
