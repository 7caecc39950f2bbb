"""The records database under kills, damage, full disks and folders that cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from nestor.autotune.records import Records, RecordsWarning
from nestor.autotune.records.database import describe_error
from nestor.autotune.records.rows import ascending
from nestor.errors import UserError
from tests.helpers.postgres import Server, postgres_server, server_folder
from tests.helpers.record_samples import GENERATOR, KERNEL, TARGET, sample

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import random, sys
from nestor.autotune.records import Records
from tests.helpers.record_samples import matmul, sample

where, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
chosen = random.Random(name)
with Records.open(where, strict=True) as records:
    print("ready", flush=True)
    for n in range(count):
        kernel = matmul(8, 8, chosen.choice((8, 16, 32)))
        record = sample(n + 1, kernel=kernel, strategy=name, detail="x" * chosen.randrange(3000))
        records.add(record)  # raises where it cannot
        # Only what was told after its commit counts as committed.
        print(record.digest, flush=True)
print("done", flush=True)
"""


class Writer:
    """A process that adds records and tells each after its commit."""

    def __init__(self, where: str, name: str, count: int, folder: Path) -> None:
        self.told = folder / f"{name}.told"
        with self.told.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WRITER, where, name, str(count)],
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.PIPE,
            )

    def lines(self) -> list[str]:
        """Whole lines told so far."""
        return self.told.read_text().rpartition("\n")[0].splitlines()

    def committed(self) -> set[str]:
        """Digests of records whose commit was told."""
        return {line for line in self.lines() if len(line) == 64}


def run_writers(
    where: str,
    folder: Path,
    *,
    kills: int,
    seed: int,
    disturb: Callable[[], None] | None = None,
) -> set[str]:
    """Eight writers at a time, killed at random moments and replaced; then some that finish.

    Args: disturb: called once, half-way through the kills.
    Returns: what was committed, by everyone's own word.
    """
    chosen = random.Random(seed)
    everyone = [Writer(where, f"w{seed}-{n}", 10**6, folder) for n in range(8)]
    running = list(everyone)
    deadline = time.monotonic() + 120
    while not all(w.lines() for w in running):
        assert all(w.process.poll() is None for w in running), errors(running)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for kill in range(kills):
        time.sleep(chosen.random() * 0.06)
        victim = running.pop(chosen.randrange(len(running)))
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        # Nobody had ended by itself: the kill met a writer at work.
        assert victim.process.returncode == -signal.SIGKILL, errors([victim])
        if kill % 4 == 3:
            fresh = [Writer(where, f"w{seed}-{len(everyone) + n}", 10**6, folder) for n in range(4)]
            everyone += fresh
            running += fresh
        if disturb is not None and kill == kills // 2:
            disturb()
    # The survivors go on: each commits more after the last kill, whatever locks the dead held.
    before = {w.told: len(w.lines()) for w in running}
    while not all(len(w.lines()) > before[w.told] + 1 for w in running):
        assert all(w.process.poll() is None for w in running), errors(running)
        assert time.monotonic() < deadline + 60
        time.sleep(0.05)
    for writer in running:
        writer.process.kill()
        writer.process.wait()
    last = Writer(where, f"w{seed}-last", 20, folder)
    assert last.process.wait(60) == 0, errors([last])
    assert last.lines()[-1] == "done"
    return set[str]().union(*(w.committed() for w in [*everyone, last]))


def errors(writers: list[Writer]) -> str:
    """What ended writers had to say."""
    done = [w for w in writers if w.process.poll() is not None]
    return "\n".join((w.process.stderr or sys.stdin).read().decode()[-800:] for w in done)  # type: ignore[union-attr]


def check_kept(where: str, committed: set[str]) -> None:
    """Every committed record is there, sound, once."""
    with Records.open(where, strict=True) as records:
        found = [r.digest for r in records.iterate()]
        assert len(found) == len(set(found))
        assert committed <= set(found)
        verdict = records.verify()
        assert verdict.is_sound, (verdict.integrity, verdict.problems)
        assert verdict.records == len(found)


def kill_sqlite(folder: Path, kills: int, seed: int) -> None:
    path = folder / "records.db"
    committed = run_writers(f"sqlite:///{path}", folder, kills=kills, seed=seed)
    assert len(committed) > 40
    with contextlib.closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check_kept(f"sqlite:///{path}", committed)


def test_kills_lose_nothing_committed(tmp_path):
    kill_sqlite(tmp_path, 40, 1)


@pytest.mark.slow
def test_many_kills_lose_nothing_committed(tmp_path):
    for seed in range(2, 8):
        (tmp_path / str(seed)).mkdir()
        kill_sqlite(tmp_path / str(seed), 80, seed)


def test_processes_that_start_at_once_make_one_database(tmp_path):
    path = tmp_path / "records.db"
    writers = [Writer(f"sqlite:///{path}", f"s{n}", 5, tmp_path) for n in range(6)]
    assert [w.process.wait(60) for w in writers] == [0] * 6, errors(writers)
    check_kept(f"sqlite:///{path}", set[str]().union(*(w.committed() for w in writers)))


# ------------------------------------------------------------------------------------- a server


@pytest.fixture(scope="module")
def server():
    if server_folder() is None:
        pytest.skip("no PostgreSQL server is installed (postgres and initdb)")
    with postgres_server() as running:
        yield running


def test_a_server_keeps_what_was_committed(server: Server, tmp_path):
    def restart() -> None:
        server.stop(signal.SIGQUIT)
        time.sleep(0.3)
        server.start()

    committed = run_writers(server.url, tmp_path, kills=16, seed=11, disturb=restart)
    assert len(committed) > 20
    check_kept(server.url, committed)


def test_a_server_holds_the_same_as_a_file(server: Server, tmp_path):
    given = [
        sample(8, 0.123456789012345678, detail="ä🙂\n", strategy="same"),
        sample(16, status="crashed", samples_ns=(), strategy="same"),
        sample(16, 0.1, strategy="same"),
    ]
    with (
        Records.open(server.url, strict=True) as records,
        Records.open(tmp_path / "a.db", strict=True) as file,
    ):
        records.add_many(given)
        assert records.add_many(given) == 0
        assert [r for r in records.iterate() if r.strategy == "same"] == given
        best = records.best(KERNEL.digest, TARGET.digest, 2, generator=GENERATOR)
        assert best == given[0]
        assert records.summary().size_bytes > 0
        added, known, refused = file.merge(server.url)
        assert (known, refused) == (0, 0)
        assert records.merge(tmp_path / "a.db") == (0, added, 0)
        kept = records.summary().records - records.prune(before_ns=2**62, keep_best=1)
        assert records.summary().records == kept > 0
        assert records.best(KERNEL.digest, TARGET.digest, 2, generator=GENERATOR) == best
        assert records.kernel(KERNEL.digest[:10]) == KERNEL
        assert records.verify().is_sound


def test_writers_of_the_same_kernels_do_not_stand_still(server: Server, tmp_path):
    """While kernels are pruned away under them, too."""
    writers = [Writer(server.url, f"p{n}", 30, tmp_path) for n in range(4)]
    with Records.open(server.url, strict=True) as records:
        while any(w.process.poll() is None for w in writers):
            records.prune(before_ns=2**62, keep_best=0)
    assert [w.process.wait() for w in writers] == [0] * 4, errors(writers)


def test_no_server_means_a_warning():
    with pytest.warns(RecordsWarning, match="postgresql://me:") as told:
        records = Records.open("postgresql+psycopg://me:secret@localhost:1/db")
    assert "secret" not in str(told[0].message)
    assert not records.is_usable and not records.add(sample(8))


# ------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("content", [bytes(8192), b"not a database at all " * 100, b"SQLite"])
def test_what_is_no_database_is_set_aside(tmp_path, content):
    path = tmp_path / "records.db"
    path.write_bytes(content)
    path.with_name("records.db-wal").write_bytes(b"old")
    with pytest.warns(RecordsWarning) as told:
        records = Records.open(path)
    assert len(told) == 1
    aside = tmp_path / "records.db.damaged-1"
    assert str(path) in str(told[0].message) and str(aside) in str(told[0].message)
    assert aside.read_bytes() == content
    assert aside.with_name(aside.name + "-wal").read_bytes() == b"old"
    with records:
        assert records.add(sample(8))
    path.write_bytes(content)
    with pytest.warns(RecordsWarning, match="damaged-2"):
        Records.open(path).close()
    assert aside.read_bytes() == content


def assert_same(found, given):
    """Records are equal; what a kernel's row says beside its text only ``verify`` works out."""
    assert found.kernel.text == given.kernel.text
    assert replace(found, kernel=given.kernel) == given


def test_rows_in_a_circle_end():
    """As pages do that lead back to each other."""
    rows = [{"id": n} for n in (3, 4, 7, 3, 4)]
    assert ascending(rows, "id", 2) == rows[:3]
    assert ascending(rows, "id", 3) == []
    assert ascending([{"id": "4"}], "id", 3) == []


def test_a_query_that_never_ends_is_stopped(tmp_path):
    with Records.open(tmp_path / "records.db") as records:
        endless = sa.text(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
        )
        database = records.database
        with pytest.raises(DBAPIError) as caught:
            database.read(lambda connection: connection.execute(endless).all())
        assert describe_error(caught.value) == "its pages lead round in circles"
        records.add(sample(1))
        assert records.summary().records == 1


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_never_crash(tmp_path, seed):
    """Whatever byte is wrong: records are right or left out, and the file is not thrown away."""
    path = tmp_path / "records.db"
    given = {}
    with Records.open(path) as records:
        for n in range(30):
            given[sample(n + 1).digest] = sample(n + 1)
        records.add_many(given.values())
    whole = path.read_bytes()
    chosen = random.Random(seed)
    for _ in range(25):
        data = bytearray(whole)
        for _ in range(chosen.choice((1, 3, 30))):
            data[chosen.randrange(16, len(data))] ^= 1 << chosen.randrange(8)
        path.write_bytes(bytes(data))
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordsWarning)
            try:
                records = Records.open(path)
            except UserError as error:
                assert "newer Nestor" in str(error)  # its version was hit
                continue
            with records:
                for record in [*records.iterate(), *records.history(KERNEL.digest)]:
                    assert_same(record, given[record.digest])
                best = records.best(KERNEL.digest, TARGET.digest, 2, generator=GENERATOR)
                if best is not None:
                    assert_same(best, given[best.digest])
                records.kernels(), records.summary(), records.verify(), records.add(sample(99))
        assert path.exists() and not list(tmp_path.glob("*damaged*"))


def test_a_forked_process_has_connections_of_its_own(tmp_path):
    script = (
        "import os, sys\n"
        "from nestor.autotune.records import Records\n"
        "from tests.helpers.record_samples import KERNEL, sample\n"
        "records = Records.open(sys.argv[1], strict=True)\n"
        "records.add(sample(1))\n"
        "child = os.fork()\n"
        "for n in range(20):\n"
        "    records.add(sample(100 * (child > 0) + n + 2))\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    print(len(records.history(KERNEL.digest)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "r.db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "41", done.stderr


def test_an_empty_file_is_a_new_database(tmp_path):
    path = tmp_path / "records.db"
    path.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Records.open(path) as records:
            assert records.add(sample(8))


@pytest.mark.parametrize("keep", [0.5, 0.1])
def test_a_broken_database_stays_where_it_is(tmp_path, keep):
    """Its pages may be all that is left of a tuning run: they are not ours to throw away."""
    path = tmp_path / "records.db"
    with Records.open(path) as records:
        records.add_many(sample(n + 1, detail="x" * 2000) for n in range(200))
    whole = path.read_bytes()
    size = int(len(whole) * keep)
    broken = whole[:100] + bytes(size - 100)
    path.write_bytes(broken)
    with pytest.warns(RecordsWarning, match="cannot be used") as told:
        records = Records.open(path)
        assert records.history(KERNEL.digest) == []
        assert not records.add(sample(8))
        assert records.best(KERNEL.digest, TARGET.digest, 2, generator=GENERATOR) is None
    assert len(told) == 1 and str(path) in str(told[0].message)
    assert path.read_bytes() == broken
    with pytest.raises(UserError, match="cannot be used"):
        Records.open(path, strict=True).kernels()


def test_damage_inside_is_found(tmp_path):
    path = tmp_path / "records.db"
    with Records.open(path) as records:
        records.add_many(sample(n + 1, detail="x" * 2000) for n in range(200))
    data = bytearray(path.read_bytes())
    for page in range(len(data) // 4096 // 2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = bytes(64)
    path.write_bytes(bytes(data))
    with Records.open(path) as records:
        assert not records.verify().is_sound


@pytest.mark.parametrize(
    "what",
    [
        "TRIGGER t AFTER INSERT ON nestor_record BEGIN SELECT 1; END",
        "VIEW v AS SELECT 1",
        "VIRTUAL TABLE t USING fts5(x)",
    ],
)
def test_programs_inside_a_database_are_refused(tmp_path, what):
    path = tmp_path / "records.db"
    Records.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as plain:
        plain.execute(f"CREATE {what}")
    with pytest.warns(RecordsWarning, match="triggers, views or virtual tables"):
        assert not Records.open(path).is_usable


# ------------------------------------------------------------------------------------- no room

LIMITED = """
import json, os, resource, sys, tempfile, warnings
from nestor.autotune.records import Records
from tests.helpers.record_samples import KERNEL, sample

path, limit, user = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with tempfile.TemporaryDirectory() as folder:
    Records.open(folder + "/first.db").add(sample(1))  # loads every module
if user:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
told = []
warnings.showwarning = lambda message, *_: told.append(str(message))
warnings.simplefilter("always")
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
records = Records.open(path)
kept = [records.add(sample(n + 1, detail="x" * 3000)) for n in range(400)]
print(json.dumps({"told": told, "kept": sum(kept), "prefix": kept == sorted(kept, reverse=True),
                  "usable": records.is_usable, "read": len(records.history(KERNEL.digest))}))
"""


def limited(path: Path, limit: int, user: int = 0) -> dict:
    """What became of 400 records where files end at ``limit`` [bytes], as another user."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(limit), str(user)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("limit", [300_000, 40_000, 1000])
def test_a_full_disk_means_one_warning(tmp_path, limit):
    path = tmp_path / "records.db"
    with Records.open(path) as records:
        records.add(sample(4096))
    found = limited(path, limit)
    assert len(found["told"]) == 1 and str(path) in found["told"][0]
    assert found["kept"] < 400 and found["prefix"] and not found["usable"]
    # What was kept before, and what was said to be kept, is there when there is room again.
    with Records.open(path, strict=True) as records:
        assert len(records.history(KERNEL.digest)) == found["kept"] + 1
        assert records.verify().is_sound
        assert records.add(sample(5000))


@pytest.fixture
def readable_folder():
    """A folder that other users may enter: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="nst-closed-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_that_cannot_be_written_means_one_warning(readable_folder):
    folder = readable_folder / "closed"
    folder.mkdir()
    # Root may write everywhere: then somebody else tries.
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else 0
    folder.chmod(0o555)
    found = limited(folder / "records.db", 0, user)
    assert len(found["told"]) == 1 and str(folder) in found["told"][0]
    assert found["kept"] == 0 and found["read"] == 0 and not found["usable"]
    assert list(folder.iterdir()) == []
