"""Count, prune and verify what the database holds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from nestor.autotune.records.checking import BadRecord
from nestor.autotune.records.database import describe_error
from nestor.autotune.records.record import CONDEMNED, KernelKey
from nestor.autotune.records.rows import (
    RECORD_COLUMNS,
    KeyCache,
    ascending,
    bounded,
    load_keys,
    read_rows,
    row_kernel,
    row_target,
)
from nestor.autotune.records.schema import kernel_table, record_table, target_table

if TYPE_CHECKING:
    from nestor.autotune.records.store import Records
    from nestor.autotune.records.summary import Summary

_CHUNK = 500
_MAX_PROBLEMS = 50


def summarize(records: Records) -> Summary:
    """Counts and sizes; see ``Records.summary``."""
    from nestor.autotune.records.summary import Summary

    t = record_table.c

    def ask(connection: sa.Connection) -> dict[str, Any]:
        def counts(column: sa.Column[Any]) -> dict[str, int]:
            query = sa.select(column, sa.func.count()).group_by(column).order_by(column)
            return {str(name): int(n) for name, n in connection.execute(query).all()}

        edges = sa.select(sa.func.count(), sa.func.min(t.created_ns), sa.func.max(t.created_ns))
        total, oldest, newest = connection.execute(edges).one()
        if connection.dialect.name == "postgresql":
            size = "SELECT pg_database_size(current_database())"
        else:
            size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        tables = (kernel_table, target_table)
        kernels, targets = (
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()
            for table in tables
        )
        return {
            "kernels": kernels,
            "targets": targets,
            "records": total,
            "statuses": counts(t.status),
            "generators": counts(t.generator),
            "oldest_ns": oldest,
            "newest_ns": newest,
            "size_bytes": connection.exec_driver_sql(size).scalar(),
        }

    nothing: dict[str, Any] = {"statuses": {}, "generators": {}}
    found = records.reading(ask, nothing)
    return Summary(place=records.place, usable=records.is_usable, **found)


# ------------------------------------------------------------------------------------ pruning


def prune_records(records: Records, *, before_ns: int, keep_best: int) -> int:
    """Remove records made before ``before_ns`` [ns since 1970]; returns how many.

    Of each kernel, target, thread count and generator the ``keep_best`` fastest schedules stay,
    however old. A record that condemns a schedule stays as long as a good time of it does, so that
    pruning never brings a wrong schedule back.
    """

    def remove(connection: sa.Connection) -> int:
        removed = connection.execute(_old_times(before_ns, keep_best)).rowcount
        removed += connection.execute(_old_failures(before_ns)).rowcount
        for table, column in (
            (kernel_table, record_table.c.kernel),
            (target_table, record_table.c.target),
        ):
            used = sa.exists().where(column == table.c.digest)
            connection.execute(sa.delete(table).where(~used))
        return int(removed)

    removed = records.writing(remove, 0)
    database = records.database
    if removed and database is not None:
        database.compact()
    return removed


def _condemns(condemning: sa.FromClause, other: Any) -> sa.ColumnElement[bool]:
    """Whether a row of the first rules out the schedule of a row of the second."""
    c = condemning.c
    return sa.and_(
        c.kernel == other.kernel,
        c.schedule_digest == other.schedule_digest,
        c.target == other.target,
        c.generator == other.generator,
        c.status.in_(CONDEMNED),
    )


def _old_times(before_ns: int, keep_best: int) -> sa.Delete:
    """Delete old measured records but for those of the fastest schedules that may be used."""
    t, bad = record_table.c, record_table.alias("bad")
    least = sa.func.min(t.ratio)
    group = (t.kernel, t.target, t.threads, t.generator)
    ranked = (
        sa.select(
            *group,
            t.schedule_digest,
            sa.func.row_number()
            .over(partition_by=group, order_by=(least, t.schedule_digest))
            .label("place"),
        )
        .where(t.status == "ok", ~sa.exists().where(_condemns(bad, t)))
        .group_by(*group, t.schedule_digest)
        .subquery()
    )
    kept = sa.exists().where(
        *(ranked.c[c.name] == c for c in (*group, t.schedule_digest)), ranked.c.place <= keep_best
    )
    return sa.delete(record_table).where(t.status == "ok", t.created_ns < before_ns, ~kept)


def _old_failures(before_ns: int) -> sa.Delete:
    """Delete old failures whose schedule has no measured record any more."""
    t, good = record_table.c, record_table.alias("good")
    needed = sa.exists().where(
        good.c.status == "ok",
        good.c.kernel == t.kernel,
        good.c.schedule_digest == t.schedule_digest,
    )
    return sa.delete(record_table).where(t.status != "ok", t.created_ns < before_ns, ~needed)


# ------------------------------------------------------------------------------------ verifying


@dataclass(slots=True, kw_only=True)
class Verification:
    """What a check of the whole database found.

    Attributes: bad: rows that break a rule. problems: the first of them, with the rule;
        ``integrity`` what the database says of its own pages, empty if they are sound.
    """

    place: str
    kernels: int = 0
    targets: int = 0
    records: int = 0
    bad: int = 0
    integrity: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Nothing at all is wrong."""
        return not (self.bad or self.integrity)

    def note(self, what: str, why: object) -> None:
        """Count a bad row; remember the first ones."""
        self.bad += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(f"{what}: {why}")


def verify_records(records: Records) -> Verification:
    """Check pages, rows, digests, and that every kernel parses. Changes nothing."""
    found = Verification(place=records.place)
    database = records.database
    if database is None:
        return found
    try:
        if database.path is not None:
            found.integrity = database.read(_integrity)
        _verify_keys(records, found)
        _verify_rows(records, found)
    except SQLAlchemyError as error:
        found.integrity.append(describe_error(error))
    return found


def _integrity(connection: sa.Connection) -> list[str]:
    """Complaints of SQLite about its file."""
    complaints: list[str] = []
    for pragma in ("integrity_check(20)", "foreign_key_check"):
        rows = connection.exec_driver_sql(f"PRAGMA {pragma}").all()
        complaints += [" ".join(map(str, row)) for row in rows if tuple(row) != ("ok",)]
    return complaints


def _verify_keys(records: Records, found: Verification) -> None:
    for table in (kernel_table, target_table):
        last = ""
        while True:
            query = sa.select(*bounded(table)).where(table.c.digest > last)
            query = query.order_by(table.c.digest).limit(20)
            rows = ascending(_rows(records, query), "digest", last)
            if not rows:
                break
            last = str(rows[-1]["digest"])
            for row in rows:
                try:
                    _verify_key(table, row)
                except BadRecord as error:
                    found.note(f"{table.name} {str(row['digest'])[:12]}", error)
            if table is kernel_table:
                found.kernels += len(rows)
            else:
                found.targets += len(rows)


def _verify_key(table: sa.Table, row: Mapping[str, Any]) -> None:
    if table is target_table:
        row_target(row)
        return
    kernel = row_kernel(row)
    if KernelKey.parsed(kernel.text) != kernel:
        raise BadRecord("family, statements or operations are not those of the text")


def _verify_rows(records: Records, found: Verification) -> None:
    database = records.database
    assert database is not None
    last = -1
    while True:
        query = sa.select(*RECORD_COLUMNS).where(record_table.c.id > last)
        query = query.order_by(record_table.c.id).limit(_CHUNK)
        rows = ascending(_rows(records, query), "id", last)
        if not rows:
            break
        last = int(rows[-1]["id"])
        keys = KeyCache()
        database.read(functools.partial(load_keys, rows=rows, cache=keys))
        for row in rows:
            found.records += 1
            try:
                keys.record(row)
            except BadRecord as error:
                found.note(f"record {row['id']}", error)


def _rows(records: Records, query: sa.Select[Any]) -> list[Mapping[str, Any]]:
    database = records.database
    assert database is not None
    return database.read(lambda connection: read_rows(connection, query))
