"""Export, import, merge, migrations, and why there is no record."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from nestor.autotune.records import Records, TargetKey, find_difference
from nestor.autotune.records.mounts import file_system_of, is_network_file_system
from nestor.autotune.records.rows import kernel_row, record_row
from nestor.autotune.records.schema import SCHEMA_VERSION, metadata
from nestor.errors import OutputError, UserError
from tests.helpers.record_samples import CPU, GENERATOR, KERNEL, TARGET, matmul, sample

GIVEN = [
    sample(8, 0.5),
    sample(16, status="illegal", samples_ns=(), detail="no: ä\n🙂"),
    sample(8, 0.7, kernel=matmul(3, 4, 5), threads=1),
    sample(8, target=TargetKey.of(dataclasses.replace(CPU, cores=9))),
]


def opened(path: Path) -> Records:
    return Records.open(path, strict=True)


@pytest.fixture
def full(tmp_path: Path):
    with opened(tmp_path / "full.db") as records:
        records.add_many(GIVEN)
        yield records


# ------------------------------------------------------------------------------------- files


def test_export_and_import(full, tmp_path):
    file = tmp_path / "out.gz"
    assert full.export(file) == len(GIVEN)
    with opened(tmp_path / "new.db") as new:
        assert new.import_(file) == (len(GIVEN), 0, 0)
        assert list(new.iterate()) == GIVEN
        assert new.import_(file) == (0, len(GIVEN), 0)
        again = tmp_path / "again.gz"
        new.export(again)
        assert again.read_bytes() == file.read_bytes()
    assert [p.name for p in tmp_path.glob("*.part")] == []


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def write_lines(file: Path, lines: list[object]) -> Path:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    file.write_bytes(gzip.compress(text.encode()))
    return file


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(threads=0),
        lambda r: r.update(more=1),
        lambda r: r.pop("detail"),
        lambda r: r.update(kernel="0" * 64),
        lambda r: r.update(samples_ns=[[1, -1]]),
        lambda r: r.update(status=["ok"]),
        lambda r: r.update(schedule=[{"step": "os.system", "loop": "a"}]),
        lambda r: r.update(schedule="[]"),
        lambda r: r.update(detail="x" * 5000),
        lambda r: r.update(created_ns=1e9),
        lambda r: r.update(point=[["a", {}]]),
    ],
)
def test_a_hostile_record_is_left_out_and_counted(full, tmp_path, change):
    full.export(tmp_path / "out.gz")
    lines = lines_of(tmp_path / "out.gz")
    change(next(line["record"] for line in lines if "record" in line))
    with opened(tmp_path / "new.db") as new:
        added, known, refused = new.import_(write_lines(tmp_path / "bad.gz", lines))
        assert (added, known, refused) == (len(GIVEN) - 1, 0, 1)
        assert new.verify().is_sound


@pytest.mark.parametrize(
    "odd", ["[" * 10_000 + "\n", '{"record": NaN}\n', "{}\n", "7\n", "\n", '{"x":1}\n']
)
def test_odd_lines_are_left_out(full, tmp_path, odd):
    full.export(tmp_path / "out.gz")
    lines = lines_of(tmp_path / "out.gz")
    with opened(tmp_path / "new.db") as new:
        given = write_lines(tmp_path / "bad.gz", [lines[0], odd, *lines[1:]])
        assert new.import_(given) == (len(GIVEN), 0, 1)


def test_a_cut_file_says_so(full, tmp_path):
    file = tmp_path / "out.gz"
    full.export(file)
    whole = file.read_bytes()
    lines = lines_of(file)
    with opened(tmp_path / "new.db") as new:
        for keep in (0, 5, len(whole) // 2, len(whole) - 4):
            file.write_bytes(whole[:keep])
            with pytest.raises(UserError, match=r"no file of records|is cut"):
                new.import_(file)
        file.write_bytes(whole + gzip.compress(b"more"))
        with pytest.raises(UserError, match="something follows"):
            new.import_(file)
        with pytest.raises(UserError, match="is cut"):
            new.import_(write_lines(file, lines[:-1]))
        with pytest.raises(UserError, match="lines are missing"):
            new.import_(write_lines(file, [*lines[:-2], lines[-1]]))
    with opened(tmp_path / "other.db") as other:
        with pytest.raises(UserError, match="is cut"):
            other.import_(write_lines(file, lines[:-2]))
        # What came before the cut was sound, and is kept.
        assert list(other.iterate()) == GIVEN[:-1]


def test_other_files_are_refused(full, tmp_path):
    head = {"format": {"name": "nestor-records", "version": 2}}
    for content, message in (
        (b"plain text", "no file of records"),
        (gzip.compress(b"{}\n"), "no file of records"),
        (gzip.compress(json.dumps(head).encode() + b"\n"), "newer Nestor"),
    ):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(UserError, match=message):
            full.import_(tmp_path / "x")
    with pytest.raises(UserError, match="cannot read"):
        full.import_(tmp_path / "absent")
    with pytest.raises(OutputError, match="cannot write"):
        full.export(tmp_path / "no" / "such" / "folder")


# ------------------------------------------------------------------------------------- merging


def test_merging_adds_nothing_twice(full, tmp_path):
    with opened(tmp_path / "other.db") as other:
        other.add_many([GIVEN[0], sample(32)])
        assert other.merge(tmp_path / "full.db") == (3, 1, 0)
        assert other.merge(f"sqlite:///{tmp_path}/full.db") == (0, 4, 0)
        assert full.merge(tmp_path / "other.db") == (1, 4, 0)
        order = lambda r: r.digest  # noqa: E731
        assert sorted(full.iterate(), key=order) == sorted(other.iterate(), key=order)
        with pytest.raises(UserError, match="no records at"):
            full.merge(tmp_path / "absent.db")
        assert not (tmp_path / "absent.db").exists()
        (tmp_path / "text.db").write_text("some text, no database" * 9)
        with pytest.raises(UserError, match="no database"):
            full.merge(tmp_path / "text.db")
        assert (tmp_path / "text.db").read_text().startswith("some text")


def test_a_damaged_source_gives_what_is_sound(full, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "full.db")) as plain:
        plain.execute("UPDATE nestor_record SET threads = 7 WHERE id = 1")
        plain.commit()
    with opened(tmp_path / "new.db") as new:
        assert new.merge(tmp_path / "full.db") == (3, 0, 1)
        assert new.verify().is_sound


# ------------------------------------------------------------------------------------- migrations

VERSION_1 = """
CREATE TABLE nestor_schema (version INTEGER NOT NULL);
INSERT INTO nestor_schema VALUES (1);
CREATE TABLE nestor_kernel (digest VARCHAR(64) PRIMARY KEY, text TEXT NOT NULL,
  family VARCHAR(64) NOT NULL, statements INTEGER NOT NULL, operations BIGINT NOT NULL);
CREATE INDEX nestor_kernel_family ON nestor_kernel (family);
CREATE TABLE nestor_target (digest VARCHAR(64) PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE nestor_record (id INTEGER PRIMARY KEY AUTOINCREMENT,
  digest VARCHAR(64) NOT NULL UNIQUE,
  kernel VARCHAR(64) NOT NULL REFERENCES nestor_kernel (digest),
  target VARCHAR(64) NOT NULL REFERENCES nestor_target (digest),
  threads INTEGER NOT NULL, status VARCHAR(16) NOT NULL, ratio DOUBLE PRECISION,
  schedule TEXT NOT NULL, point TEXT, samples_ns TEXT NOT NULL, detail TEXT NOT NULL,
  strategy TEXT NOT NULL, trial INTEGER NOT NULL, generator TEXT NOT NULL,
  package TEXT NOT NULL, created_ns BIGINT NOT NULL);
CREATE INDEX nestor_record_key ON nestor_record (kernel, target, threads, status);
"""
"""The first schema, frozen: how files of that time look."""


def version_1(path: Path, count: int) -> list:
    """A file of version 1 with ``count`` records of two schedules."""
    given = [sample(8 + n % 2, 0.5, created_ns=n) for n in range(count)]
    with contextlib.closing(sqlite3.connect(path)) as plain:
        plain.executescript(VERSION_1)
        row = kernel_row(KERNEL)
        plain.execute("INSERT INTO nestor_kernel VALUES (?, ?, ?, ?, ?)", list(row.values()))
        plain.execute("INSERT INTO nestor_target VALUES (?, ?)", (TARGET.digest, TARGET.text))
        for record in given:
            row = record_row(record)
            del row["schedule_digest"]
            marks = ", ".join("?" * len(row))
            plain.execute(
                f"INSERT INTO nestor_record ({', '.join(row)}) VALUES ({marks})", list(row.values())
            )
        plain.commit()
    return given


def version_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as plain:
        return int(plain.execute("SELECT version FROM nestor_schema").fetchone()[0])


def test_an_old_file_is_brought_up_to_date(tmp_path):
    path = tmp_path / "records.db"
    given = version_1(path, 1203)  # more than one batch
    with opened(path) as records:
        assert list(records.iterate()) == given
        assert records.skipped == 0
        assert records.best(KERNEL.digest, TARGET.digest, 2, generator=GENERATOR) in given
        assert records.add(sample(64))
        assert records.verify().is_sound
    assert version_of(path) == SCHEMA_VERSION


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "records.db"
    given = version_1(path, 3)
    from nestor.autotune.records import schema

    def fails(connection: sa.Connection) -> None:
        connection.exec_driver_sql("DROP TABLE nestor_record")
        raise OSError("no more room")

    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, fails))
    with pytest.raises(UserError, match="no more room"):
        Records.open(path, strict=True)
    assert version_of(path) == 1
    monkeypatch.undo()
    with opened(path) as records:
        assert list(records.iterate()) == given


def test_a_newer_file_is_refused_and_left_alone(full, tmp_path):
    path = tmp_path / "full.db"
    full.close()
    with contextlib.closing(sqlite3.connect(path)) as plain:
        plain.execute("UPDATE nestor_schema SET version = 99")
        plain.commit()
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"newer Nestor \(schema 99.*nothing was changed"):
        Records.open(path)
    assert path.read_bytes() == before


def test_steps_lead_to_the_tables_in_use(full):
    database = full.database
    assert database is not None
    found = sa.inspect(database.engine)
    for table in metadata.tables.values():
        columns = {c["name"]: bool(c["nullable"]) for c in found.get_columns(table.name)}
        # SQLite's primary keys of text are nullable unless said otherwise; ours are never NULL.
        wanted = {c.name: bool(c.nullable) for c in table.columns if not c.primary_key}
        assert {n: v for n, v in columns.items() if n in wanted} == wanted
        assert set(columns) == {c.name for c in table.columns}


# ------------------------------------------------------------------------------------- verify


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE nestor_record SET threads = 7 WHERE id = 1", "does not fit its digest"),
        ("UPDATE nestor_record SET ratio = 0.001 WHERE id = 1", "ratio is not"),
        ("UPDATE nestor_record SET schedule_digest = 'a' WHERE id = 1", "schedule does not fit"),
        ("UPDATE nestor_record SET schedule = '[]' WHERE id = 1", "does not fit its digest"),
        ("UPDATE nestor_record SET schedule = zeroblob(9) WHERE id = 1", "schedule"),
        ("UPDATE nestor_record SET detail = CAST(x'ff' AS TEXT) WHERE id = 1", "digest"),
        (
            "UPDATE nestor_record SET detail = printf('%.*c', 9000000, 'x') WHERE id = 1",
            "detail is a NoneType",
        ),
        ("UPDATE nestor_record SET samples_ns = '[[1,1e999]]' WHERE id = 1", "not a time"),
        ("UPDATE nestor_record SET trial = 'many' WHERE id = 1", "trial"),
        ("UPDATE nestor_record SET target = 'x' WHERE id = 1", "missing or damaged"),
        ("UPDATE nestor_kernel SET text = text || ' '", "kernel does not fit its digest"),
        ("UPDATE nestor_kernel SET operations = 5", "not those of the text"),
        ("UPDATE nestor_target SET facts = '{}'", "facts are not in order"),
    ],
)
def test_verify_names_what_is_wrong(full, tmp_path, change, message):
    assert full.verify().is_sound
    assert full.verify().records == len(GIVEN)
    with contextlib.closing(sqlite3.connect(tmp_path / "full.db")) as plain:
        plain.execute(change)
        plain.commit()
    found = full.verify()
    assert not found.is_sound and found.bad >= 1
    assert any(message in problem for problem in found.problems), found.problems
    # Whatever else is asked for works on the rest.
    full.kernels(), full.summary(), full.history(KERNEL.digest)
    full.best(KERNEL.digest, TARGET.digest, 2, generator=GENERATOR)


def test_a_false_ratio_wins_nothing(full, tmp_path):
    full.add(sample(64, 0.9))
    with contextlib.closing(sqlite3.connect(tmp_path / "full.db")) as plain:
        plain.execute("UPDATE nestor_record SET ratio = 0.001 WHERE trial = 64")
        plain.commit()
    found = full.best(KERNEL.digest, TARGET.digest, 2, generator=GENERATOR)
    assert found == GIVEN[0]


# ------------------------------------------------------------------------------------- why


def why(records, kernel=KERNEL, target=TARGET, threads=2, generator=GENERATOR):
    return find_difference(records, kernel, target, threads, generator=generator)


def fields(finding):
    return [(d.field, d.wanted, d.found) for d in finding.differences]


def test_why_finds_the_record(full):
    found = why(full)
    assert found.record == GIVEN[0] and not found.differences


def test_why_names_the_field(full):
    assert fields(why(full, threads=4)) == [("threads", "4", "2")]
    assert fields(why(full, generator="llvm 9")) == [("code generator", "llvm 9", GENERATOR)]
    faster = TargetKey.of(dataclasses.replace(CPU, l2_bytes=7, features=("avx", "avx512f")))
    assert fields(why(full, target=faster)) == [
        ("target features", "+avx512f", "+avx2 +fma"),
        ("target l2_bytes", "7", str(CPU.l2_bytes)),
    ]
    nine = TargetKey.of(dataclasses.replace(CPU, cores=9))
    assert fields(why(full, target=nine, threads=3)) == [("threads", "3", "2")]


def test_why_finds_another_size(full):
    found = why(full, kernel=matmul(64, 96, 130))
    assert found.nearest is not None and found.nearest.kernel == KERNEL
    sizes = fields(found)
    assert ("size", "input t0: f32[64, 130]", "input t0: f32[64, 128]") in sizes
    assert {name for name, *_ in sizes} == {"size"}
    assert why(full, kernel=matmul(1, 1, 1)).nearest is None


def test_why_tells_of_failures(tmp_path):
    with opened(tmp_path / "r.db") as records:
        records.add(sample(8, status="illegal", samples_ns=(), detail="S[1] before S[0]\nmore"))
        assert fields(why(records)) == [("status", "ok", "illegal: S[1] before S[0]")]
        records.add(sample(8))
        assert fields(why(records))[0][2].startswith(("illegal", "elsewhere"))


# ------------------------------------------------------------------------------------- mounts

MOUNTS = r"""
/dev/sda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb /home/me/local\040disk xfs rw 0 0
me@host:/ /mnt/far fuse.sshfs rw 0 0
/dev/sdc /mnt/usb fuseblk rw 0 0
share /mnt/w 9p rw 0 0
tmpfs /mnt/w tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/var/cache", "ext4", False),
        ("/home/me/.cache/nestor", "nfs4", True),
        ("/homes/me", "ext4", False),
        ("/home/me/local disk/x", "xfs", False),
        ("/mnt/far/x", "fuse.sshfs", True),
        ("/mnt/usb/x", "fuseblk", False),
        ("/mnt/w/x", "tmpfs", False),
    ],
)
def test_network_file_systems_are_told_from_disks(path, kind, network):
    assert file_system_of(Path(path), MOUNTS) == kind
    assert is_network_file_system(kind) == network


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    from nestor.autotune.records import database

    monkeypatch.setattr(database, "file_system_of", lambda path: "nfs4")
    with pytest.raises(UserError, match=r"network file system \(nfs4\)[^$]*postgresql://"):
        Records.open(tmp_path / "records.db")
    assert list(tmp_path.iterdir()) == []
