"""Strangers' records, from a server, a file or an export: bounded, parsed, proved, never run."""

from __future__ import annotations

import ast
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nestor
from nestor.autotune.records import KernelKey, Record, Records, TargetKey
from nestor.autotune.tuner import CONFIRMED
from nestor.building import model_kernels
from nestor.config import Config
from nestor.ir.schedule import Parallel, Reorder, Schedule, Tile, Unroll, Vectorize
from tests.helpers.postgres import Server, postgres_server, server_folder
from tests.helpers.record_samples import GENERATOR, KERNEL, TARGET, sample

ROOT = Path(__file__).resolve().parents[2]

HOSTILE: list[Schedule] = [
    (Tile(loop="S0.i0", size=2**31 - 1),),
    (Tile(loop="S0.i1", size=7), Unroll(loop="S0.i1.i")) * 500,
    (Parallel(loop="S0.k0"), Vectorize(loop="S0.k0")),
    (Reorder(statement="'; DROP TABLE nestor_record; --", loops=("a", "b")),),
]
"""Each a record as records are; none a schedule that may run."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if server_folder() is None:
        pytest.skip("no PostgreSQL server is installed (postgres and initdb)")
    with postgres_server() as running:
        yield running


ROWS = {
    "giant JSON": ("schedule", "[" + "[]," * 400_000 + "[]]"),
    "deep JSON": ("schedule", "[" * 20_000 + "]" * 20_000),
    "a schedule of another type": ("schedule", '{"step":"Tile"}'),
    "an unknown step": ("schedule", '[{"step":"os.system","loop":"true"}]'),
    "a size that is a text": ("schedule", '[{"loop":"S0.i1","size":"8","step":"Tile"}]'),
    "no JSON": ("schedule", "__import__('os').system('true')"),
    "a point with an object": ("point", '[["a",{}]]'),
    "samples without end": ("samples_ns", "[" + "[1.0,2.0]," * 300_000 + "[1.0,2.0]]"),
    "samples that are no numbers": ("samples_ns", "[[NaN,1.0]]"),
    "threads out of range": ("threads", -5),
    "a ratio that nobody measured": ("ratio", 1e-9),
    "a status that is none": ("status", "best"),
    "a detail without end": ("detail", "x" * 1_000_000),
}


def test_a_servers_rows_are_read_strictly(server: Server) -> None:
    """Whoever may write to the team's server can put anything into a row."""
    import psycopg

    good = sample(8, 0.5, strategy="trust")
    bad = [sample(100 + n, 0.1, strategy="trust") for n in range(len(ROWS))]
    plain_url = server.url.replace(
        "postgresql://test@/postgres?host=", "user=test dbname=postgres host="
    )
    with Records.open(server.url, strict=True) as records:
        records.add_many([good, *bad])
        with psycopg.connect(plain_url.replace("%2F", "/")) as plain:
            for record, (column, value) in zip(bad, ROWS.values()):
                plain.execute(
                    f"UPDATE nestor_record SET {column} = %s WHERE digest = %s",  # type: ignore[arg-type]
                    (value, record.digest),
                )
        assert records.history(KERNEL.digest) == [good]
        assert records.skipped >= len(ROWS) - 1  # a status that is none is not even asked for
        assert list(records.iterate()) == [good]
        best = records.best(KERNEL.digest, TARGET.digest, 2, generator=GENERATOR)
        assert best == good
        verdict = records.verify()
        assert verdict.bad == len(ROWS), verdict.problems


class Net(nn.Module):
    """A product and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.linear(x), -1)


@pytest.mark.parametrize("way", ["server", "import"])
def test_hostile_schedules_never_run(way: str, tmp_path: Path, request: Any) -> None:
    """Each claims to be confirmed as a thousand times as fast."""
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(16, 24)
    url = request.getfixturevalue("server").url if way == "server" else None
    config = Config.load(threads=1, cache_dir=tmp_path / "cache", cache=url)
    kernels = model_kernels(model, (x,), {}, config)
    source = config if way == "server" else tmp_path / "theirs.db"
    with Records.open(source, strict=True) as records:
        records.add_many(
            Record(
                kernel=KernelKey.of(fused.kernel),
                target=TargetKey.of(kernels.target),
                threads=kernels.threads,
                schedule=schedule,
                status="ok",
                samples_ns=((1.0, 1000.0 + number),) * 9,
                strategy=CONFIRMED,
            )
            for fused in kernels.kernels
            for number, schedule in enumerate(HOSTILE)
        )
        count = records.summary().records if way == "import" else 0
        if way == "import":
            records.export(tmp_path / "theirs.gz")
    if way == "import":
        with Records.open(config, strict=True) as own:
            assert own.import_(tmp_path / "theirs.gz") == (count, 0, 0)
    compiled = nestor.compile(
        model, (x,), threads=1, cache_dir=tmp_path / "cache", **({"cache": url} if url else {})
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    refused = [k.refused for k in compiled.report().kernels if k.refused]
    assert refused


# ------------------------------------------------------------------------------- nothing runs

SEALED = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "code")
CALLS = {"eval", "exec", "compile", "__import__", "PickleType", "loads_pickle"}


def imported_files() -> set[Path]:
    """The records package, and every module of ours that it loads, at once or later."""
    waiting = list((ROOT / "nestor" / "autotune" / "records").glob("*.py"))
    # Schedules and kernels are read by these; the rest of the package gives names only.
    found = set(waiting)
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            else:
                continue
            for module in modules:
                if not module.startswith(("nestor.ir", "nestor.target", "nestor.autotune.records")):
                    continue
                file = ROOT / Path(*module.split(".")).with_suffix(".py")
                if file.exists() and file not in found:
                    found.add(file)
                    waiting.append(file)
    return found


def test_nothing_that_reads_records_can_run_them() -> None:
    files = imported_files()
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [a.name.split(".")[0] for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module.split(".")[0]]
            assert not set(names) & set(SEALED), f"{file.name}:{node.lineno}"  # type: ignore[attr-defined]
            if isinstance(node, ast.Call):
                called = node.func
                bare = called.id if isinstance(called, ast.Name) else ""
                attribute = called.attr if isinstance(called, ast.Attribute) else ""
                assert bare not in CALLS and attribute != "PickleType", f"{file.name}:{node.lineno}"


WATCHED = """
import sys
from pathlib import Path
from nestor.autotune.records import Records

good, bad, place = map(Path, sys.argv[1:])
events = []
watching = False
WANTED = ("pickle.find_class", "marshal.loads", "exec", "compile", "import", "os.system", "os.exec",
          "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen", "socket.connect")

def hook(event, arguments):
    if watching and event in WANTED:
        events.append(event)

sys.addaudithook(hook)
for file in (good, bad):
    records = Records.open(place, strict=True)
    print(records.import_(file))
    for record in records.iterate():
        key = record.kernel.digest, record.target.digest, record.threads
        records.best(*key), records.seeds(*key), records.history(key[0])
        records.similar(record.kernel, *key[1:])
    records.close()
    watching = True  # from the second file on: every module that is needed has been loaded
print(events)
eval("1")
print(events)
"""


def test_reading_a_hostile_export_runs_nothing(tmp_path: Path) -> None:
    """Python's own audit events say so; the last ones show that they would."""
    good, bad = tmp_path / "good.gz", tmp_path / "bad.gz"
    with Records.open(tmp_path / "a.db", strict=True) as records:
        records.add_many([sample(n + 1) for n in range(len(ROWS) + 1)])
        records.export(good)
    lines = [json.loads(line) for line in gzip.decompress(good.read_bytes()).splitlines()]
    entries = [line["record"] for line in lines if "record" in line]
    for entry, (column, value) in zip(entries, ROWS.values()):
        if column != "ratio":
            entry[column] = value
    entries[-1]["detail"] = "cos\\nsystem\\n(S'true'\\ntR."  # a pickle, to those who unpickle
    text = "".join(json.dumps(line) + "\n" for line in lines)
    bad.write_bytes(gzip.compress(text.encode()))
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(good), str(bad), str(tmp_path / "b.db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, quiet, loud = done.stdout.splitlines()
    assert first == f"({len(ROWS) + 1}, 0, 0)"
    assert second == f"(1, 1, {len(ROWS) - 1})"
    assert quiet == "[]"
    assert "exec" in loud
