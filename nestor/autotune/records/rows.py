"""Rows of the database to records and back; a row that breaks a rule is ``BadRecord``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from nestor.autotune.records.checking import (
    MAX_DETAIL_CHARS,
    MAX_FACTS_CHARS,
    MAX_KERNEL_CHARS,
    MAX_NAME_CHARS,
    MAX_POINT_CHARS,
    MAX_SAMPLES_CHARS,
    MAX_SCHEDULE_CHARS,
    BadRecord,
    canonical_json,
    check_digest,
    check_int,
    check_text,
    parse_json,
)
from nestor.autotune.records.record import KernelKey, Record, TargetKey
from nestor.autotune.records.schema import kernel_table, record_table, target_table

_LIMITS = {
    "schedule": MAX_SCHEDULE_CHARS,
    "point": MAX_POINT_CHARS,
    "samples_ns": MAX_SAMPLES_CHARS,
    "detail": MAX_DETAIL_CHARS,
    "strategy": MAX_NAME_CHARS,
    "generator": MAX_NAME_CHARS,
    "package": MAX_NAME_CHARS,
    "text": MAX_KERNEL_CHARS,
    "facts": MAX_FACTS_CHARS,
}


def bounded(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    """The table's columns; a text beyond its limit stays in the database, NULL comes instead."""
    return [
        sa.case((sa.func.length(c) <= _LIMITS[c.name], c)).label(c.name) if c.name in _LIMITS else c
        for c in table.columns
    ]


def record_row(record: Record) -> dict[str, Any]:
    """The values of ``record_table`` but for ``id``."""
    return {
        "digest": record.digest,
        "kernel": record.kernel.digest,
        "target": record.target.digest,
        "threads": record.threads,
        "status": record.status,
        "ratio": record.ratio,
        "schedule": record.schedule_text,
        "schedule_digest": record.schedule_digest,
        "point": record.point_text,
        "samples_ns": canonical_json(record.samples_ns),
        "detail": record.detail,
        "strategy": record.strategy,
        "trial": record.trial,
        "generator": record.generator,
        "package": record.package,
        "created_ns": record.created_ns,
    }


def row_record(row: Mapping[str, Any], kernel: KernelKey, target: TargetKey) -> Record:
    """The record of a row of ``bounded(record_table)``. Raises: ``BadRecord``."""
    point = row["point"]
    data = {
        "kernel": row["kernel"],
        "target": row["target"],
        "threads": row["threads"],
        "schedule": parse_json("schedule", row["schedule"], MAX_SCHEDULE_CHARS),
        "point": None if point is None else parse_json("point", point, MAX_POINT_CHARS),
        "status": row["status"],
        "samples_ns": parse_json("samples", row["samples_ns"], MAX_SAMPLES_CHARS),
        "detail": row["detail"],
        "strategy": row["strategy"],
        "trial": row["trial"],
        "generator": row["generator"],
        "package": row["package"],
        "created_ns": row["created_ns"],
    }
    record = Record.from_json(data, kernel, target)
    if record.digest != row["digest"]:
        raise BadRecord("record does not fit its digest: it was altered")
    if record.ratio != row["ratio"]:
        raise BadRecord("ratio is not that of the samples")
    if record.schedule_digest != row["schedule_digest"]:
        raise BadRecord("schedule does not fit its digest")
    return record


def kernel_row(kernel: KernelKey) -> dict[str, Any]:
    """The values of ``kernel_table``."""
    return {c.name: getattr(kernel, c.name) for c in kernel_table.columns}


def row_kernel(row: Mapping[str, Any]) -> KernelKey:
    """The kernel of a row of ``bounded(kernel_table)``, not parsed. Raises: ``BadRecord``."""
    key = KernelKey(
        text=check_text("kernel text", row["text"], MAX_KERNEL_CHARS),
        family=check_digest("family", row["family"]),
        statements=check_int("statements", row["statements"], 0),
        operations=row["operations"],
    )
    if key.digest != row["digest"]:
        raise BadRecord("kernel does not fit its digest: it was altered")
    return key


def row_target(row: Mapping[str, Any]) -> TargetKey:
    """The target of a row of ``bounded(target_table)``. Raises: ``BadRecord``."""
    key = TargetKey.parsed(row["facts"])
    if key.digest != row["digest"]:
        raise BadRecord("target does not fit its digest: it was altered")
    return key


def add_row(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless one of its digest is there; whether it was inserted."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as pg_insert

        change = pg_insert(table).values(values).on_conflict_do_nothing()
        return connection.execute(change.returning(table.c.digest)).first() is not None
    from sqlalchemy.dialects.sqlite import insert as lite_insert

    done = connection.execute(lite_insert(table).values(values).on_conflict_do_nothing())
    return done.rowcount == 1


def load_keys(
    connection: sa.Connection, rows: Iterable[Mapping[str, Any]], cache: KeyCache
) -> None:
    """Bring into ``cache`` the kernels and targets that ``rows`` of records name."""
    rows = list(rows)
    cache.load(connection, kernel_table, {str(r["kernel"]) for r in rows})
    cache.load(connection, target_table, {str(r["target"]) for r in rows})


class KeyCache:
    """Kernels and targets by digest, so that a thousand records share one text."""

    def __init__(self) -> None:
        self._known: dict[str, KernelKey | TargetKey | None] = {}

    def load(self, connection: sa.Connection, table: sa.Table, digests: set[str]) -> None:
        """Read those not known yet; damaged or missing ones are remembered as None."""
        wanted = sorted(digests - self._known.keys())
        for first in range(0, len(wanted), 100):
            some = wanted[first : first + 100]
            self._known.update(dict.fromkeys(some))
            query = sa.select(*bounded(table)).where(table.c.digest.in_(some))
            for row in read_rows(connection, query):
                try:
                    key = row_kernel(row) if table is kernel_table else row_target(row)
                except BadRecord:
                    continue
                self._known[key.digest] = key

    def record(self, row: Mapping[str, Any]) -> Record:
        """The record of ``row``, whose keys were loaded. Raises: ``BadRecord``."""
        kernel, target = self._known.get(str(row["kernel"])), self._known.get(str(row["target"]))
        if not isinstance(kernel, KernelKey) or not isinstance(target, TargetKey):
            raise BadRecord("the record's kernel or target is missing or damaged")
        return row_record(row, kernel, target)

    def kernel(self, digest: str) -> KernelKey | None:
        """A kernel that was loaded and is sound."""
        key = self._known.get(digest)
        return key if isinstance(key, KernelKey) else None

    def target(self, digest: str) -> TargetKey | None:
        """A target that was loaded and is sound."""
        key = self._known.get(digest)
        return key if isinstance(key, TargetKey) else None


def read_rows(connection: sa.Connection, query: sa.Select[Any]) -> list[Mapping[str, Any]]:
    """All rows of ``query`` as mappings."""
    return [dict(row) for row in connection.execute(query).mappings()]


def ascending(
    rows: list[Mapping[str, Any]], column: str, after: int | str
) -> list[Mapping[str, Any]]:
    """The first rows whose ``column`` grows from ``after`` on: all that were asked for in that
    order, unless damaged pages lead back to each other and would be read for ever."""
    for n, row in enumerate(rows):
        if not (type(row[column]) is type(after) and row[column] > after):
            return rows[:n]
        after = row[column]
    return rows


RECORD_COLUMNS = bounded(record_table)
