"""Tuners that are killed, and a server that goes away: nothing committed is lost, all go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nestor.autotune import scratch
from nestor.autotune.records import Records, RecordsWarning, store
from tests.helpers.postgres import Server, postgres_server, server_folder
from tests.helpers.record_samples import sample

ROOT = Path(__file__).resolve().parents[2]


def run_kills(*words: str) -> dict[str, float]:
    """What ``kill_tuning`` found, which checks everything itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill_tuning", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_killed_tuners_lose_nothing_committed() -> None:
    found = run_kills(*("--kills", "20", "--processes", "4", "--trials", "16", "--interval", "0.4"))
    assert found["kills"] == 20
    assert found["survivors"] > 0
    assert found["logged"] > 50


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if server_folder() is None:
        pytest.skip("no PostgreSQL server is installed (postgres and initdb)")
    with postgres_server() as running:
        yield running


@pytest.mark.slow
def test_tuners_and_their_server_are_killed() -> None:
    if server_folder() is None:
        pytest.skip("no PostgreSQL server is installed (postgres and initdb)")
    found = run_kills(
        *("--kills", "12", "--processes", "3", "--trials", "16", "--server", "--down", "8")
    )
    assert found["kills"] == 12
    assert found["survivors"] > 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_what_a_server_misses_is_written_later(
    server: Server, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr(store, "_WRITE_PATIENCE_S", 0.2)
    monkeypatch.setattr(store, "_RETRY_S", 0.1)
    given = [sample(int(how) * 100 + n) for n in range(5)]
    with Records.open(server.url) as records:
        assert records.add(given[0])
        server.stop(how)
        with pytest.warns(RecordsWarning, match="do not answer") as told:
            assert records.add_many(given[1:3]) == 0
            time.sleep(0.15)
            assert not records.add(given[3])
            assert records.history(given[0].kernel.digest) == []
        assert len(told) == 1
        assert (records.is_usable, records.pending) == (True, 3)
        server.start()
        time.sleep(0.15)
        assert records.add(given[4])
        assert records.pending == 0
    with Records.open(server.url, strict=True) as records:
        kept = {r.digest for r in records.iterate()}
    assert {r.digest for r in given} <= kept


def test_what_is_pending_is_written_at_the_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_WRITE_PATIENCE_S", 0.1)
    monkeypatch.setattr(store, "_LAST_PATIENCE_S", 0.5)
    records = Records.open(server.url)
    lost = Records.open(server.url)
    records.kernels(), lost.kernels()
    server.stop(signal.SIGINT)
    with pytest.warns(RecordsWarning, match="do not answer"):
        records.add(sample(4242)), lost.add(sample(4343))
    with pytest.warns(RecordsWarning, match="1 records are lost: postgresql://"):
        lost.close()
    server.start()
    records.close()
    with Records.open(server.url, strict=True) as again:
        kept = {r.digest for r in again.iterate()}
    assert sample(4242).digest in kept
    assert sample(4343).digest not in kept


def test_a_server_that_starts_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_RETRY_S", 0.0)
    server.stop(signal.SIGINT)
    with pytest.warns(RecordsWarning, match="do not answer") as told:
        records = Records.open(server.url)
        assert not records.is_usable and not records.add(sample(4444))
    assert (len(told), records.pending) == (1, 1)
    server.start()
    assert records.add(sample(4545))
    assert (records.is_usable, records.pending) == (True, 0)
    assert len(records.history(sample(4444).kernel.digest)) >= 2
    records.close()


ORPHAN = """
import sys
from pathlib import Path
from nestor.autotune.measure_native import HELPER_IR
from nestor.codegen.llvm import compile_ir
from nestor.target.cpu import host_target
from tests.faults import test_measure_candidates as t
t.RUN_SECONDS = 300.0  # its own alarm comes much later
kernel = t.measured.default(t.measured.doubled())
session = t.make_session(kernel, compile_ir(HELPER_IR, host_target()), Path(sys.argv[1]), "good")
print(session.pid, flush=True)
session.admit(t.variant("good", kernel))
print(session.pid, flush=True)
session.admit(t.variant("endless", kernel))
"""


def test_a_candidate_ends_when_its_tuner_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    status = Path(f"/proc/{int(parent.stdout.readline())}/stat")
    busy = ticks(status)
    deadline = time.monotonic() + 30
    while ticks(status) < busy + 20:  # hundredths of a second: it is in the endless kernel
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while is_running(status):
        assert time.monotonic() < deadline, "the candidate still runs"
        time.sleep(0.02)


def ticks(status: Path) -> int:
    """Processor time that a process has taken [1/100 s]."""
    fields = status.read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def is_running(status: Path) -> bool:
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_folders_without_an_owner_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = scratch.ScratchFolder()
    (mine.path / "results.npz").write_bytes(b"x")
    abandoned = tmp_path / f"{scratch.PREFIX}old"
    (abandoned / "inner").mkdir(parents=True)
    young = tmp_path / f"{scratch.PREFIX}young"
    young.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"{scratch.PREFIX}link").symlink_to(elsewhere)
    for old in (mine.path, abandoned, elsewhere):
        os.utime(old, (0, 0))
    assert scratch.remove_abandoned(tmp_path) == 1
    assert not abandoned.exists()
    assert (mine.path / "results.npz").exists() and young.exists() and elsewhere.exists()
    mine.close()
    mine.close()
    assert not mine.path.exists()
