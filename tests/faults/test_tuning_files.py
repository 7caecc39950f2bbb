"""``nestor.compile(tune=…)`` and ``nestor tune`` where the cache cannot be kept or read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

MODEL = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.LayerNorm(100).eval(), (torch.randn(5, 100),)
"""

SCRIPT = """
import contextlib, io, json, resource, sys, warnings
from pathlib import Path
import torch
import nestor
from nestor import cli

folder, file, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, str(Path(file).parent))
import net
told = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, *_: told.append(str(message))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
model, inputs = net.make()
compiled = nestor.compile(model, inputs, tune="8s", threads=1, cache_dir=folder, workers=1)
with torch.no_grad():
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
report = compiled.report()
out = io.StringIO()
with contextlib.redirect_stdout(out):
    status = cli.main(["tune", file + ":make", "--trials", "4", "--threads", "1", "--json"])
print(json.dumps({"told": told, "status": status, "trials": report.tuning_trials,
                  "cli": json.loads(out.getvalue())}))
"""


def tune_twice(folder: Path, tmp_path: Path, limit: int = 0, *prefix: str) -> dict[str, Any]:
    """What Python's and the command line's way to tune say, with the cache in ``folder``."""
    net = tmp_path / "net.py"
    net.write_text(MODEL)
    done = subprocess.run(
        [*prefix, sys.executable, "-c", SCRIPT, str(folder), str(net), str(limit)],
        cwd=ROOT,
        env={**os.environ, "NESTOR_CACHE_DIR": str(folder), "NESTOR_WORKERS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0
    assert found["trials"] > 0
    return found


def about_records(found: dict[str, Any]) -> list[str]:
    return [t for t in found["told"] if "records" in t]


def test_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    found = tune_twice(folder, tmp_path, 1500)
    told = about_records(found)
    assert any("cannot be used" in t and str(folder / "records.db") in t for t in told), found
    assert any("objects" in t and "going on without a cache" in t for t in found["told"]), found
    assert found["cli"]["remembered"] == 0  # without records, each begins anew


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o555)
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:  # who may write everywhere
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root writes everywhere, and there is no setpriv to forbid it")
        prefix = (setpriv, "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    found = tune_twice(folder, tmp_path, 0, *prefix)
    assert any("cannot be used" in t and str(folder) in t for t in about_records(found)), found
    assert list(folder.iterdir()) == []
    assert found["cli"]["remembered"] == 0


def test_zeros_in_place_of_the_records(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "records.db").write_bytes(bytes(16384))
    found = tune_twice(folder, tmp_path)
    aside = folder / "records.db.damaged-1"
    told = about_records(found)
    assert any("was no database" in t and str(aside) in t for t in told), found
    assert aside.read_bytes() == bytes(16384)
    # What was begun anew is used: the second search knows what the first one tried.
    assert found["cli"]["remembered"] >= found["trials"] > 0
    assert not (folder / "records.db.damaged-2").exists()


def test_zeros_are_left_alone_by_those_who_only_read(tmp_path: Path) -> None:
    import torch

    import nestor
    from nestor.autotune.records import RecordsWarning

    path = tmp_path / "records.db"
    path.write_bytes(bytes(16384))
    x = torch.ones(3, 4)
    with pytest.warns(RecordsWarning, match="is no database"):
        compiled = nestor.compile(torch.nn.ReLU(), (x,), cache_dir=tmp_path, threads=1)
    assert torch.equal(compiled(x), x)
    assert path.read_bytes() == bytes(16384)
