"""Tables of the records database, and the steps that lead to them from any older version.

A new database is made by the same steps that bring an old one up to date, so there is one way to
each version. Steps are frozen once released: they name their own columns, not those of ``tables``.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from nestor.autotune.records.checking import digest_of
from nestor.errors import UserError

metadata = sa.MetaData()

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""SQLite counts rows by itself only under this type."""

schema_table = sa.Table("nestor_schema", metadata, sa.Column("version", sa.Integer, nullable=False))

kernel_table = sa.Table(
    "nestor_kernel",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("family", sa.String(64), nullable=False),
    sa.Column("statements", sa.Integer, nullable=False),
    sa.Column("operations", sa.BigInteger, nullable=False),
)

target_table = sa.Table(
    "nestor_target",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("facts", sa.Text, nullable=False),
)

record_table = sa.Table(
    "nestor_record",
    metadata,
    sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("kernel", sa.ForeignKey("nestor_kernel.digest"), nullable=False),
    sa.Column("target", sa.ForeignKey("nestor_target.digest"), nullable=False),
    sa.Column("threads", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("ratio", sa.Double),
    sa.Column("schedule", sa.Text, nullable=False),
    sa.Column("point", sa.Text),
    sa.Column("samples_ns", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("strategy", sa.Text, nullable=False),
    sa.Column("trial", sa.Integer, nullable=False),
    sa.Column("generator", sa.Text, nullable=False),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("schedule_digest", sa.String(64), nullable=False, server_default=""),
)


def _create_tables(connection: sa.Connection) -> None:
    """Version 1."""
    counted = (
        "BIGSERIAL PRIMARY KEY"
        if connection.dialect.name == "postgresql"
        else "INTEGER PRIMARY KEY AUTOINCREMENT"
    )
    for statement in (
        "CREATE TABLE nestor_kernel (digest VARCHAR(64) PRIMARY KEY, text TEXT NOT NULL, "
        "family VARCHAR(64) NOT NULL, statements INTEGER NOT NULL, operations BIGINT NOT NULL)",
        "CREATE INDEX nestor_kernel_family ON nestor_kernel (family)",
        "CREATE TABLE nestor_target (digest VARCHAR(64) PRIMARY KEY, facts TEXT NOT NULL)",
        f"CREATE TABLE nestor_record (id {counted}, digest VARCHAR(64) NOT NULL UNIQUE, "
        "kernel VARCHAR(64) NOT NULL REFERENCES nestor_kernel (digest), "
        "target VARCHAR(64) NOT NULL REFERENCES nestor_target (digest), "
        "threads INTEGER NOT NULL, status VARCHAR(16) NOT NULL, ratio DOUBLE PRECISION, "
        "schedule TEXT NOT NULL, point TEXT, samples_ns TEXT NOT NULL, detail TEXT NOT NULL, "
        "strategy TEXT NOT NULL, trial INTEGER NOT NULL, generator TEXT NOT NULL, "
        "package TEXT NOT NULL, created_ns BIGINT NOT NULL)",
        "CREATE INDEX nestor_record_key ON nestor_record (kernel, target, threads, status)",
    ):
        connection.exec_driver_sql(statement)


def _add_schedule_digest(connection: sa.Connection) -> None:
    """Version 2: the schedule's digest, so that records of one schedule are found together, and an
    index from which alone schedules are ranked."""
    connection.exec_driver_sql(
        "ALTER TABLE nestor_record ADD COLUMN schedule_digest VARCHAR(64) NOT NULL DEFAULT ''"
    )
    table = sa.table("nestor_record", *map(sa.column, ("id", "schedule", "schedule_digest")))
    change = (
        sa.update(table)
        .where(table.c.id == sa.bindparam("row"))
        .values(schedule_digest=sa.bindparam("found"))
    )
    last = -1
    while True:
        some = sa.select(table.c.id, table.c.schedule).where(table.c.id > last)
        rows = connection.execute(some.order_by(table.c.id).limit(500)).all()
        if not rows:
            break
        last = rows[-1][0]
        found = [{"row": row, "found": digest_of(str(text))} for row, text in rows]
        connection.execute(change, found)
    for statement in (
        "DROP INDEX nestor_record_key",
        "CREATE INDEX nestor_record_ranking ON nestor_record "
        "(kernel, target, threads, generator, status, schedule_digest, ratio)",
        "CREATE INDEX nestor_record_schedule ON nestor_record (kernel, schedule_digest, status)",
    ):
        connection.exec_driver_sql(statement)


Step = Callable[[sa.Connection], None]

STEPS: tuple[Step, ...] = (_create_tables, _add_schedule_digest)
"""Step ``n`` leads from version ``n`` to ``n + 1``; 0 is an empty database."""

SCHEMA_VERSION = len(STEPS)


def schema_version(connection: sa.Connection) -> int:
    """The database's version; 0 for an empty one."""
    if not sa.inspect(connection).has_table(schema_table.name):
        return 0
    return int(connection.execute(sa.select(sa.func.max(schema_table.c.version))).scalar() or 0)


def migrate(connection: sa.Connection, label: str) -> None:
    """Bring the database up to date; the caller's transaction makes it all or nothing.

    Args: label: what to call the database in messages.
    Raises: ``UserError`` if a newer Nestor wrote it; nothing is changed.
    """
    if connection.dialect.name == "postgresql":
        # Two processes that start at once must not both make the tables. Any number will do.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7308604897068083558)")
    version = schema_version(connection)
    check_version(version, label)
    if version == SCHEMA_VERSION:
        return
    if version == 0:
        schema_table.create(connection)
        connection.execute(sa.insert(schema_table).values(version=0))
    for step in STEPS[version:]:
        step(connection)
    connection.execute(sa.update(schema_table).values(version=SCHEMA_VERSION))


def check_version(version: int, label: str) -> None:
    """Raise ``UserError`` for a version that a newer Nestor wrote."""
    if version > SCHEMA_VERSION:
        raise UserError(
            f"the records in {label} were written by a newer Nestor (schema {version}; this one "
            f"knows {SCHEMA_VERSION}); nothing was changed\n"
            "  fix: upgrade Nestor, or set NESTOR_CACHE to another database"
        )
