"""``Records``: what the rest of Nestor sees of the database."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from nestor.autotune.records.checking import BadRecord
from nestor.autotune.records.database import (
    Database,
    DatabaseUnusable,
    RecordsWarning,
    describe_error,
    open_database,
)
from nestor.autotune.records.record import (
    CONDEMNED,
    STATUSES,
    KernelKey,
    Record,
    Status,
    current_generator,
    median_ratio,
)
from nestor.autotune.records.rows import (
    RECORD_COLUMNS,
    KeyCache,
    add_row,
    ascending,
    bounded,
    kernel_row,
    load_keys,
    read_rows,
    record_row,
    row_kernel,
)
from nestor.autotune.records.schema import kernel_table, record_table, target_table
from nestor.autotune.records.summary import KernelSummary, Summary
from nestor.errors import UserError

if TYPE_CHECKING:
    from nestor.autotune.records.upkeep import Verification

T = TypeVar("T")
_CHUNK = 200

_WRITE_PATIENCE_S = 5.0
"""How long an addition waits for a server that restarts, before records are kept here [s]."""

_RETRY_S = 5.0
"""After that, how long nobody asks it again [s]."""

_LAST_PATIENCE_S = 10.0
"""How long ``close`` waits for it when there are records to write [s]."""

_MAX_PENDING = 100_000


class Records:
    """The records database. Any number of threads and processes may use it at once.

    A failure of the database is told once, as a ``RecordsWarning``; from then on it reads as empty
    and drops what is added: tuning goes on without it. A server that does not answer is told of
    too, but what is added meanwhile is kept here and written when it answers again, at the latest
    by ``close``. Damaged records are skipped and counted (``skipped``); ``verify`` names them. With
    ``strict`` a failure is a ``UserError``.
    """

    def __init__(self, database: Database | None, place: str, *, strict: bool = False):
        self._database = database
        self._strict = strict
        self._lock = threading.Lock()
        self._sent: set[str] = set()
        self._told = False
        self._pending: list[Record] = []
        self._retry_at: float | None = None
        self._reopen: Callable[[], Database | None] | None = None
        self.place = place
        self.skipped = 0

    # ------------------------------------------------------------------------ opening, closing

    @classmethod
    def open(cls, where: Any, *, create: bool = True, strict: bool = False) -> Records:
        """Open the database at ``where``.

        Args: where: a ``Config``, a path, or a URL (``sqlite:///PATH``, ``postgresql://…``).
            create: make a database where there is none; else it reads as empty.
            strict: raise where otherwise a warning is given.
        Raises: ``UserError`` for a network file system under SQLite, a newer schema (nothing is
            lost), or a missing driver.
        """
        place = where if isinstance(where, str | Path) else _configured_place(where)
        try:
            database = open_database(place, create=create)
        except DatabaseUnusable as error:
            records = cls(None, str(error).partition(": ")[0], strict=strict)
            if error.is_away and not strict:
                records._reopen = lambda: open_database(place, create=create)
                records._wait_for_it(str(error))
            else:
                records._give_up(str(error))
            return records
        records = cls(database, database.label if database else str(place), strict=strict)
        if database is not None and database.set_aside is not None:
            warnings.warn(
                f"{database.label} was no database: moved to {database.set_aside}, and begun anew",
                RecordsWarning,
                stacklevel=2,
            )
        return records

    def close(self) -> None:
        """Write what is pending and let go of the database; afterwards it reads as empty."""
        deadline = time.monotonic() + _LAST_PATIENCE_S
        while self._pending and self._is_expected and time.monotonic() < deadline:
            self._retry_at = 0.0
            if not self._add_chunk([]) and self._pending:
                time.sleep(0.2)
        if self._pending:
            warnings.warn(
                f"{len(self._pending)} records are lost: {self.place} did not answer any more",
                RecordsWarning,
                stacklevel=2,
            )
        database, self._database, self._reopen = self._database, None, None
        if database is not None:
            database.engine.dispose()

    @property
    def _is_expected(self) -> bool:
        """Whether there is a database, or a server that may answer later."""
        return self._database is not None or self._reopen is not None

    @property
    def pending(self) -> int:
        """Records that wait for the server to answer again."""
        return len(self._pending)

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_usable(self) -> bool:
        """Whether there is a database behind this."""
        return self._database is not None

    @property
    def database(self) -> Database | None:
        """The database itself, for upkeep."""
        return self._database

    def _give_up(self, why: str) -> None:
        if self._strict:
            raise UserError(f"the records cannot be used: {why}")
        with self._lock:
            first, self._database, self._reopen = not self._told, None, None
            self._told = True
        if first:
            warnings.warn(
                f"the records cannot be used: {why}\n  going on without them; `nestor cache "
                "verify` looks closer, NESTOR_CACHE names another database",
                RecordsWarning,
                stacklevel=4,
            )

    def reading(self, action: Callable[[sa.Connection], T], otherwise: T) -> T:
        """``action`` within one snapshot; ``otherwise`` where there is no database."""
        return self._using("read", action, otherwise, None)

    def writing(
        self, action: Callable[[sa.Connection], T], otherwise: T, patience_s: float | None = None
    ) -> T:
        """``action`` in one transaction; ``otherwise`` where there is no database."""
        return self._using("write", action, otherwise, patience_s)

    def _using(
        self,
        how: Literal["read", "write"],
        action: Callable[[sa.Connection], T],
        otherwise: T,
        patience_s: float | None,
    ) -> T:
        if self._retry_at is not None:
            if time.monotonic() < self._retry_at:
                return otherwise
            patience_s = 0.0  # it was waited for before
        database = self._opened()
        if database is None:
            return otherwise
        attempt = database.read if how == "read" else database.write
        try:
            done = attempt(action, patience_s)
        except SQLAlchemyError as error:
            why = f"{database.label}: {describe_error(error)}"
            if database.is_away(error) and not self._strict:
                self._wait_for_it(why)
            else:
                self._give_up(why)
            return otherwise
        self._retry_at = None
        return done

    def _opened(self) -> Database | None:
        """The database; one that did not answer when it was to be opened is asked again."""
        reopen = self._reopen
        if self._database is None and reopen is not None:
            try:
                self._database, self._reopen = reopen(), None
            except DatabaseUnusable as error:
                if error.is_away:
                    self._wait_for_it(str(error))
                else:
                    self._give_up(str(error))
        return self._database

    def _wait_for_it(self, why: str) -> None:
        """Ask the server again later; the first time, say so."""
        first, self._retry_at = self._retry_at is None, time.monotonic() + _RETRY_S
        if first:
            warnings.warn(
                f"the records do not answer: {why}\n  going on; what is added is kept and written "
                "when they answer again",
                RecordsWarning,
                stacklevel=5,
            )

    # ------------------------------------------------------------------------ adding

    def add(self, record: Record) -> bool:
        """Keep ``record``: when this returns, it is on disk, unless the store is not usable or it
        is ``pending``.

        Returns: whether it is on disk now, and was new.
        """
        return self.add_many((record,)) == 1

    def add_many(self, records: Iterable[Record]) -> int:
        """Keep records, a few hundred a transaction; how many are new.

        What ``records`` gave before it raised is kept.
        """
        added = 0
        chunk: list[Record] = []
        try:
            for record in records:
                chunk.append(record)
                if len(chunk) == _CHUNK:
                    full, chunk = chunk, []
                    added += self._add_chunk(full)
        finally:
            if chunk:
                added += self._add_chunk(chunk)
        return added

    def _add_chunk(self, new: list[Record]) -> int:
        """Write records, and before them those that wait; how many of ``new`` were new."""
        attempts = 0
        with self._lock:
            records, self._pending = self._pending + new, []

        def insert(connection: sa.Connection) -> int:
            nonlocal attempts
            # What was sent before may have been pruned since: a second attempt trusts nothing.
            sent = self._sent if attempts == 0 else frozenset[str]()
            attempts += 1
            kernels = {r.kernel.digest: r.kernel for r in records if r.kernel.digest not in sent}
            targets = {r.target.digest: r.target for r in records if r.target.digest not in sent}
            # In one order everywhere: writers of the same kernels never wait in a circle.
            for digest in sorted(kernels):
                add_row(connection, kernel_table, kernel_row(kernels[digest]))
            for digest in sorted(targets):
                values = {"digest": digest, "facts": targets[digest].text}
                add_row(connection, target_table, values)
            added = [add_row(connection, record_table, record_row(r)) for r in records]
            return sum(added[len(records) - len(new) :])

        added = None
        try:
            added = self.writing(insert, None, None if self._strict else _WRITE_PATIENCE_S)
        finally:
            with self._lock:
                if added is not None:
                    self._sent.update(r.kernel.digest for r in records)
                    self._sent.update(r.target.digest for r in records)
                elif self._is_expected:
                    self._pending = (records + self._pending)[-_MAX_PENDING:]
        return added or 0

    # ------------------------------------------------------------------------ asking

    def best(
        self, kernel: str, target: str, threads: int, *, generator: str | None = None
    ) -> Record | None:
        """The record of the fastest schedule, or None.

        Samples of all records of a schedule count together (the median of candidate over
        reference), so one lucky measurement of several does not win. A schedule that was ever
        illegal, wrong or crashed here is out.

        Args: kernel, target: digests of their keys. generator: None: this Nestor's. What others
            made is not comparable: see ``seeds``.
        """
        generator = current_generator() if generator is None else generator
        where = _key(kernel, target, threads) & (record_table.c.generator == generator)
        return self.reading(lambda connection: self._best(connection, where), None)

    def _best(self, connection: sa.Connection, where: sa.ColumnElement[bool]) -> Record | None:
        best: Record | None = None
        best_ratio = float("inf")
        for schedule, least in connection.execute(_ranking(where)).all():
            # The median of all samples lies between the least and the largest record's median.
            if not isinstance(least, float):
                continue
            if least >= best_ratio:
                break
            same = sa.select(*RECORD_COLUMNS).where(
                where, record_table.c.schedule_digest == schedule, record_table.c.status == "ok"
            )
            records = self.sound(connection, read_rows(connection, same))
            ratio = median_ratio(tuple(s for r in records for s in r.samples_ns))
            if ratio is not None and ratio < best_ratio:
                best_ratio = ratio
                best = max(records, key=lambda r: (len(r.samples_ns), r.created_ns, r.digest))
        return best

    def seeds(
        self,
        kernel: str,
        target: str,
        threads: int,
        *,
        generator: str | None = None,
        limit: int = 8,
    ) -> list[Record]:
        """Good schedules that other code generators measured, best first: to be measured again.

        Each is the best of its generator; the newest generators (by their newest record) first.
        """
        generator = current_generator() if generator is None else generator
        where = _key(kernel, target, threads)
        newest = sa.func.max(record_table.c.created_ns)
        others = (
            sa.select(record_table.c.generator)
            .where(where, record_table.c.generator != generator)
            .group_by(record_table.c.generator)
            .order_by(newest.desc())
            .limit(limit)
        )

        def ask(connection: sa.Connection) -> list[Record]:
            found = [
                self._best(connection, where & (record_table.c.generator == other))
                for (other,) in connection.execute(others).all()
            ]
            return [r for r in found if r is not None]

        return self.reading(ask, [])

    def history(
        self,
        kernel: str,
        *,
        target: str | None = None,
        threads: int | None = None,
        statuses: Iterable[Status] = STATUSES,
        limit: int | None = None,
    ) -> list[Record]:
        """Records of a kernel, in the order in which they were added; the newest ``limit``."""
        where = [record_table.c.kernel == kernel, record_table.c.status.in_(list(statuses))]
        if target is not None:
            where.append(record_table.c.target == target)
        if threads is not None:
            where.append(record_table.c.threads == threads)
        query = sa.select(*RECORD_COLUMNS).where(*where).order_by(record_table.c.id.desc())

        def ask(connection: sa.Connection) -> list[Record]:
            return self.sound(connection, read_rows(connection, query.limit(limit)))

        nothing: list[Record] = []
        return self.reading(ask, nothing)[::-1]

    def confirmations(
        self, kernels: Sequence[str], strategy: str, *, target: str, threads: int, generator: str
    ) -> dict[str, list[Record]]:
        """Of each kernel the records of ``strategy`` and, of the schedules that these have, all
        that are not ``ok``; in the order in which they were added. Kernels without are left out.
        """
        t, other = record_table.c, record_table.alias("other")
        own = (t.target == target) & (t.threads == threads) & (t.generator == generator)
        confirmed = sa.exists().where(
            other.c.kernel == t.kernel,
            other.c.target == target,
            other.c.threads == threads,
            other.c.generator == generator,
            other.c.schedule_digest == t.schedule_digest,
            other.c.strategy == strategy,
        )
        wanted = (t.strategy == strategy) | (t.status != "ok") & confirmed

        def ask(connection: sa.Connection) -> dict[str, list[Record]]:
            found: dict[str, list[Record]] = {}
            for first in range(0, len(kernels), _CHUNK):
                part = kernels[first : first + _CHUNK]
                query = sa.select(*RECORD_COLUMNS).where(t.kernel.in_(part), own, wanted)
                for record in self.sound(connection, read_rows(connection, query.order_by(t.id))):
                    found.setdefault(record.kernel.digest, []).append(record)
            return found

        nothing: dict[str, list[Record]] = {}
        return self.reading(ask, nothing)

    def similar(
        self,
        kernel: KernelKey,
        target: str,
        threads: int,
        *,
        generator: str | None = None,
        limit: int = 8,
    ) -> list[Record]:
        """The best record of each kernel that differs from ``kernel`` in sizes alone, the nearest
        amount of work first."""
        generator = current_generator() if generator is None else generator

        def ask(connection: sa.Connection) -> list[Record]:
            found: list[Record] = []
            for other in self._family(connection, kernel):
                where = _key(other.digest, target, threads) & (
                    record_table.c.generator == generator
                )
                best = self._best(connection, where)
                if best is not None:
                    found.append(best)
                if len(found) == limit:
                    break
            return found

        return self.reading(ask, [])

    def family(self, kernel: KernelKey) -> list[KernelKey]:
        """Other kernels that differ in sizes alone, the nearest amount of work first."""
        return self.reading(lambda connection: self._family(connection, kernel), [])

    def _family(self, connection: sa.Connection, kernel: KernelKey) -> list[KernelKey]:
        query = sa.select(*bounded(kernel_table)).where(
            kernel_table.c.family == kernel.family, kernel_table.c.digest != kernel.digest
        )
        found = []
        for row in read_rows(connection, query.limit(1000)):
            try:
                found.append(row_kernel(row))
            except BadRecord:
                self.skip(1)
        work = kernel.operations + 1
        return sorted(
            found,
            key=lambda k: (max((k.operations + 1) / work, work / (k.operations + 1)), k.digest),
        )

    def kernels(self) -> list[KernelSummary]:
        """Every kernel, those with the newest records first."""
        t = record_table.c
        query = (
            sa.select(
                t.kernel,
                sa.func.count().label("records"),
                sa.func.count(sa.case((t.status == "ok", 1))).label("measured"),
                sa.func.min(sa.case((t.status == "ok", t.ratio))).label("best_ratio"),
                sa.func.max(t.created_ns).label("last_ns"),
            )
            .group_by(t.kernel)
            .order_by(sa.func.max(t.created_ns).desc(), t.kernel)
        )

        def ask(connection: sa.Connection) -> list[KernelSummary]:
            rows, keys = read_rows(connection, query), KeyCache()
            keys.load(connection, kernel_table, {str(r["kernel"]) for r in rows})
            found = []
            for row in rows:
                key = keys.kernel(str(row["kernel"]))
                if key is None:
                    self.skip(1)
                else:
                    found.append(KernelSummary(**{**row, "kernel": key}))
            return found

        return self.reading(ask, [])

    def kernel(self, prefix: str) -> KernelKey:
        """The one kernel whose digest begins with ``prefix``. Raises: ``UserError``."""
        if not prefix or not set(prefix) <= set("0123456789abcdef"):
            raise UserError(f"{prefix!r} is not the beginning of a kernel's digest")
        query = sa.select(*bounded(kernel_table)).where(
            kernel_table.c.digest >= prefix, kernel_table.c.digest < prefix + "g"
        )
        nothing: list[Mapping[str, Any]] = []
        rows = self.reading(lambda connection: read_rows(connection, query.limit(2)), nothing)
        if not rows:
            raise UserError(f"no kernel's digest begins with {prefix!r}; see `nestor cache ls`")
        if len(rows) > 1:
            raise UserError(f"several kernels' digests begin with {prefix!r}; give more of it")
        try:
            return row_kernel(rows[0])
        except BadRecord as error:
            raise UserError(f"kernel {prefix} is damaged: {error}") from None

    def iterate(self) -> Iterator[Record]:
        """Every sound record, in the order in which they were added, a few hundred at a time."""
        last = -1
        while True:
            query = sa.select(*RECORD_COLUMNS).where(record_table.c.id > last)
            query = query.order_by(record_table.c.id).limit(_CHUNK)

            def ask(
                connection: sa.Connection, query: sa.Select[Any] = query, after: int = last
            ) -> tuple[int | None, list[Record]]:
                rows = ascending(read_rows(connection, query), "id", after)
                sound = self.sound(connection, rows)
                return (int(rows[-1]["id"]) if rows else None), sound

            nothing: tuple[int | None, list[Record]] = (None, [])
            end, records = self.reading(ask, nothing)
            if end is None:
                return
            last = end
            yield from records

    def summary(self) -> Summary:
        """Counts and sizes."""
        from nestor.autotune.records.upkeep import summarize

        return summarize(self)

    def sound(self, connection: sa.Connection, rows: list[Mapping[str, Any]]) -> list[Record]:
        """The records of rows; those that break a rule are skipped and counted."""
        keys = KeyCache()
        load_keys(connection, rows, keys)
        found = []
        for row in rows:
            try:
                found.append(keys.record(row))
            except BadRecord:
                self.skip(1)
        return found

    def skip(self, count: int) -> None:
        """Count damaged rows."""
        with self._lock:
            self.skipped += count

    # ------------------------------------------------------------------------ upkeep

    def export(self, path: str | Path) -> int:
        """Write every record to a compressed file; how many. Raises: ``OutputError``."""
        from nestor.autotune.records.exchange import export_records

        return export_records(self, Path(path))

    def import_(self, path: str | Path) -> tuple[int, int, int]:
        """Add the records of an exported file; (new, known before, refused).

        Raises: ``UserError`` if it is no such file, or ends too early.
        """
        from nestor.autotune.records.exchange import import_records

        return import_records(self, Path(path))

    def merge(self, where: str | Path) -> tuple[int, int, int]:
        """Add the records of another database; (new, known before, refused).

        Raises: ``UserError`` if it cannot be opened.
        """
        from nestor.autotune.records.exchange import merge_records

        return merge_records(self, where)

    def prune(self, *, before_ns: int, keep_best: int = 3) -> int:
        """Remove old records; see ``upkeep.prune_records``. Returns: how many."""
        from nestor.autotune.records.upkeep import prune_records

        return prune_records(self, before_ns=before_ns, keep_best=keep_best)

    def verify(self) -> Verification:
        """Look at every page, row and digest of the database."""
        from nestor.autotune.records.upkeep import verify_records

        return verify_records(self)


def _configured_place(config: Any) -> str | Path:
    """Where a ``Config`` has the records."""
    chosen: str | None = config.cache
    return chosen if chosen is not None else Path(config.cache_dir) / "records.db"


def _key(kernel: str, target: str, threads: int) -> sa.ColumnElement[bool]:
    t = record_table.c
    return (t.kernel == kernel) & (t.target == target) & (t.threads == threads)


def _ranking(where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Schedules that were measured and never condemned, with their records' least ratio."""
    t, other = record_table.c, record_table.alias("other")
    condemned = sa.exists().where(
        other.c.kernel == t.kernel,
        other.c.schedule_digest == t.schedule_digest,
        other.c.status.in_(CONDEMNED),
        other.c.target == t.target,
        other.c.generator == t.generator,
    )
    least = sa.func.min(t.ratio)
    return (
        sa.select(t.schedule_digest, least)
        .where(where, t.status == "ok", ~condemned)
        .group_by(t.schedule_digest)
        .order_by(least, t.schedule_digest)
    )
