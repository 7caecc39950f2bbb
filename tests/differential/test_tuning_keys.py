"""Under which keys records are found: what a time depends on, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nestor.autotune.choosing import chosen_schedules
from nestor.autotune.measuring import Candidate
from nestor.autotune.records import KernelKey, Record, Records, TargetKey
from nestor.autotune.tuner import CONFIRMED
from nestor.config import Config
from tests.unit import test_autotune_tuner as made_up

ROOT = Path(__file__).resolve().parents[2]

MODEL = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width))
        self.shift = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return x * self.gain + self.shift

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(24, width)
        self.scale = Scale(width)
        self.second = nn.Linear(width, 8)

    def forward(self, x):
        return torch.softmax(self.second(torch.tanh(self.scale(self.first(x)))), -1)

def make():
    return Net(40).eval(), (torch.zeros(6, 24),)

def wider():
    return Net(48).eval(), (torch.zeros(6, 24),)
"""

REORDERED = """
import torch
from torch import nn

class Aardvark(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.b = nn.Parameter(torch.rand(n))
        self.a = nn.Parameter(torch.rand(n))

    def forward(self, value):
        return value * self.a + self.b

class Unused(nn.Module):
    pass

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.z_last = nn.Linear(40, 8)
        self.middle = Aardvark(40)
        self.a_first = nn.Linear(24, 40)
        self.never_called = Unused()

    def forward(self, given):
        hidden = self.a_first(given)
        hidden = self.middle(hidden)
        return torch.softmax(self.z_last(hidden.tanh()), dim=1)

def make():
    return Model().eval(), (torch.ones(6, 24),)
"""

SCRIPT = """
import contextlib, io, json, os, platform, socket, sys
sys.argv, (host, task, *models) = sys.argv[:1], sys.argv[1:]
uname = os.uname()
socket.gethostname = platform.node = lambda: host
os.uname = lambda: os.uname_result((uname[0], host, *uname[2:]))
from nestor import cli
from nestor.autotune.records import KernelKey, Record, Records, TargetKey
from nestor.building import model_kernels
from nestor.cli_models import load_model
from nestor.config import Config

out = {}
for words in models:
    model, *more = words.split()
    if task == "add":
        config = Config.load(threads=2)
        named = load_model(model)
        found = model_kernels(named.model, named.inputs, {}, config)
        with Records.open(config, strict=True) as records:
            records.add_many(
                Record(kernel=KernelKey.of(k.kernel), target=TargetKey.of(found.target),
                       threads=2, schedule=(), status="ok", samples_ns=((1.0, 2.0),))
                for k in found.kernels)
        continue
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert cli.main(["cache", "why", model, "--json", *(more or ["--threads", "2"])]) == 0
    out[words] = json.loads(text.getvalue())
print(json.dumps(out))
"""


def run(place: Path, folder: Path, host: str, task: str, *models: str) -> dict[str, Any]:
    """Add records of models, or ask why there are none, as another user on another host."""
    home = folder / f"home-{host}"
    home.mkdir()
    environ = {n: os.environ[n] for n in ("PATH", "LD_LIBRARY_PATH") if n in os.environ}
    environ |= {
        "HOME": str(home),
        "USER": f"user-{host}",
        "LOGNAME": f"user-{host}",
        "PYTHONHASHSEED": str(len(host)),
        "PYTHONPATH": str(ROOT),
        "TZ": "Asia/Tokyo" if host == "elsewhere" else "UTC",
        "NESTOR_CACHE": f"sqlite:///{place}",
        f"UNRELATED_{host.upper()}": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, host, task, *models],
        cwd=home,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def fields(answer: dict[str, Any]) -> list[set[str]]:
    """What differs, kernel by kernel; nothing for one that has a record."""
    return [
        {d["field"] for d in k["differences"]} if k["record"] is None else set()
        for k in answer["kernels"]
    ]


def test_records_are_found_from_anywhere_and_for_nothing_else(tmp_path: Path) -> None:
    place, here, there = tmp_path / "records.db", tmp_path / "here", tmp_path / "there"
    for folder, text in ((here, MODEL), (there, REORDERED)):
        folder.mkdir()
        (folder / f"{folder.name}_net.py").write_text(text)
    own, other = f"{here}/here_net.py", f"{there}/there_net.py"
    run(place, tmp_path, "home", "add", f"{own}:make")
    answers = run(
        *(place, tmp_path, "elsewhere", "why"),
        f"{own}:make",
        f"{other}:make",
        f"{own}:make --threads 1",
        f"{own}:wider",
        f"{own}:make --threads 2 --target x86-64-v3",
    )
    same, reordered, threads, wider, isa = answers.values()
    assert len(same["kernels"]) > 1
    assert fields(same) == [set()] * len(same["kernels"])
    assert fields(reordered) == [set()] * len(same["kernels"])
    assert fields(threads) == [{"threads"}] * len(same["kernels"])
    assert all(found <= {"size"} for found in fields(wider)) and {"size"} in fields(wider)
    if same["target"]["cpu"] != "x86-64-v3":
        for found in fields(isa):
            assert {"target cpu", "target features"} <= found
            assert all(name.startswith("target ") for name in found)


class Watching(made_up.Machine):
    """Notes the schedules of each batch."""

    def measure(self, candidates: Sequence[Candidate], reference: Candidate, **more: Any) -> Any:
        self.__dict__.setdefault("batches", []).append([c.schedule for c in candidates])
        return super().measure(candidates, reference, **more)


def test_what_another_code_generator_found_is_tried_first_and_never_used_as_it_is(
    tmp_path: Path,
) -> None:
    search, records = made_up.tuner(tmp_path, made_up.Machine(), (made_up.LARGE, 1), trials=40)
    (task,) = search.run().tasks
    history = records.history(task.key.digest)
    assert any(r.strategy == CONFIRMED for r in history)
    records.close()
    folder = tmp_path / "later"
    with Records.open(folder / "records.db") as later:
        later.add_many(replace(r, generator="llvm 0") for r in history)
    both = made_up.kernels((made_up.LARGE, 1))
    assert chosen_schedules(lambda: both, Config(cache_dir=folder)) == {}
    machine = Watching()
    again, records = made_up.tuner(folder, machine, (made_up.LARGE, 1), trials=8)
    result = again.run()
    timing, first = machine.__dict__["batches"][:2]
    assert timing == [task.default.schedule]  # measured again, like every default
    assert first[0] == task.best.schedule
    assert result.trials == 8
    ours = [r for r in records.history(task.key.digest) if r.generator != "llvm 0"]
    assert task.best.schedule in {r.schedule for r in ours}
    assert chosen_schedules(lambda: both, Config(cache_dir=folder)) != {}
    key = (KernelKey.of(made_up.LARGE.kernel), TargetKey.of(made_up.TARGET))
    assert records.best(key[0].digest, key[1].digest, 2) in ours


@pytest.mark.parametrize("change", [{"threads": 1}, {"target": made_up.parse_target("avx2")}])
def test_other_threads_and_targets_seed_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    """A time with other vectors or threads says nothing here: such records are not even tried."""
    search, records = made_up.tuner(tmp_path, made_up.Machine(), (made_up.LARGE, 1), trials=16)
    (task,) = search.run().tasks
    if "target" in change:
        change = {"target": TargetKey.of(change["target"])}
    moved: list[Record] = [replace(r, **change) for r in records.history(task.key.digest)]
    folder = tmp_path / "moved"
    with Records.open(folder / "records.db") as later:
        later.add_many(moved)
    both = made_up.kernels((made_up.LARGE, 1))
    assert chosen_schedules(lambda: both, Config(cache_dir=folder)) == {}
    again, _ = made_up.tuner(folder, made_up.Machine(), (made_up.LARGE, 1), trials=8)
    again.recall()
    assert again.tasks[0].ratio == 1.0 and not again.tasks[0].default_ns
