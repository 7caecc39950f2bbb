"""``nestor cache``: what it prints, for people and for programs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from nestor import cli
from nestor.autotune.records import KernelKey, Records, TargetKey
from nestor.building import model_kernels
from nestor.cli_cache import parse_age
from nestor.cli_models import load_model
from nestor.config import Config
from nestor.errors import UserError
from tests.helpers.record_samples import KERNEL, matmul, sample

ACTIONS = ("info", "ls", "show", "why", "export", "import", "merge", "prune", "verify")

MODEL = """
import torch

def make():
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Tanh(), torch.nn.Linear(40, 8))
    return model.eval(), (torch.zeros(6, 24),)

def wider():
    model = torch.nn.Sequential(torch.nn.Linear(24, 48), torch.nn.Tanh(), torch.nn.Linear(48, 8))
    return model.eval(), (torch.zeros(6, 24),)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "records.db"
    monkeypatch.setenv("NESTOR_CACHE", f"sqlite:///{path}")
    return path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]):
    def call(*words: str, status: int = 0) -> str:
        found = cli.main(["cache", *words])
        captured = capsys.readouterr()
        assert found == status, captured.err
        return captured.out if status in (0, 1) else captured.err

    return call


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_help_with_an_example(action, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["cache", action, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    example = shlex.split(text.strip().splitlines()[-1])
    assert example[:3] == ["nestor", "cache", action]
    parsed = cli.build_parser().parse_args(example[1:])
    assert parsed.action == action and parsed.handler == "nestor.cli_cache:cache_command"


def test_without_records_nothing_is_made(run, place):
    assert f"{place} (–)" in run("info")
    assert "0 kernels" in run("ls")
    assert json.loads(run("ls", "--json"))["kernels"] == []
    assert json.loads(run("verify", "--json"))["sound"] is True
    assert not place.exists()


def test_the_round_through_all_commands(run, place, tmp_path):
    with Records.open(place) as records:
        records.add_many([sample(8, 0.5), sample(16, 0.25), sample(1, kernel=matmul(2, 3, 4))])
        records.add(sample(32, status="crashed", samples_ns=(), detail="signal 11\nmore"))
    info = json.loads(run("info", "--json"))["records"]
    assert (info["kernels"], info["records"], info["place"]) == (2, 4, str(place))
    assert info["statuses"] == {"crashed": 1, "ok": 3}
    assert f"records: {place} (" in run("info") and "by llvm test" in run("info")

    listed = json.loads(run("ls", "--json"))["kernels"]
    assert {k["kernel"] for k in listed} == {KERNEL.digest, matmul(2, 3, 4).digest}
    assert KERNEL.digest[:12] in run("ls")
    assert len(json.loads(run("ls", "--json", "--limit", "1"))["kernels"]) == 1

    text = run("show", KERNEL.digest[:8])
    assert "input t0: f32[64, 128]" in text and "signal 11" in text and "0.250" in text
    assert "best schedule:\nTile(loop='S0.i1', size=16)" in text
    shown = json.loads(run("show", KERNEL.digest, "--json"))
    assert len(shown["records"]) == 3 and len(shown["targets"]) == 1

    file = tmp_path / "out.gz"
    assert json.loads(run("export", str(file), "--json"))["records"] == 4
    assert "0 records added" in run("import", str(file))
    other = tmp_path / "other.db"
    with Records.open(other) as records:
        records.add(sample(64))
    merged = json.loads(run("merge", str(other), "--json"))
    assert (merged["added"], merged["known"], merged["refused"]) == (1, 0, 0)
    assert "5 records, 2 kernels, 1 targets: sound" in run("verify")
    assert "3 records removed" in run("prune", "--older-than", "1d", "--keep-best", "1")
    assert json.loads(run("info", "--json"))["records"]["records"] == 2


def test_verify_fails_where_something_is_wrong(run, place):
    import sqlite3

    with Records.open(place) as records:
        records.add(sample(8))
    plain = sqlite3.connect(place)
    plain.execute("UPDATE nestor_record SET threads = 9")
    plain.commit()
    plain.close()
    text = run("verify", status=1)
    assert "record 1: record does not fit its digest" in text and "not sound: 1 bad" in text
    assert json.loads(run("verify", "--json", status=1))["bad"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "zz"), "'zz' is not the beginning of a kernel's digest"),
        (("show", "ab"), "no kernel's digest begins with 'ab'; see `nestor cache ls`"),
        (("ls", "--limit", "0"), "--limit 0 is not at least 1"),
        (("prune", "--older-than", "soon"), "--older-than: 'soon' is not an age; give a number"),
        (("prune", "--older-than", "1d", "--keep-best", "-1"), "--keep-best -1 is not at least 0"),
        (("import", "absent.gz"), "cannot read 'absent.gz': No such file"),
        (("export", "no/such/file"), "cannot write 'no/such/file': No such file"),
        (("merge", "absent.db"), "no records at absent.db"),
        (("merge", "oracle://x"), "records in 'oracle' are not supported"),
        (("why", "net.nst"), "'net.nst' is compiled already; give a model"),
    ],
)
def test_what_is_wrong_is_told(run, words, message):
    assert message in run(*words, status=2)


def test_a_file_that_is_no_database_is_told(run, place):
    place.write_bytes(bytes(4096))
    assert f"the records cannot be used: {place}: is no database" in run("ls", status=2)
    assert place.read_bytes() == bytes(4096)


def test_ages():
    assert parse_age("--x", "90d") == 90 * 86400
    assert parse_age("--x", "12h") == 43200
    for text in ("", "d", "1", "-1d", "1y", "1.5d"):
        with pytest.raises(UserError):
            parse_age("--x", text)


def test_why_a_model_has_no_records(run, place, tmp_path):
    net = tmp_path / "net.py"
    net.write_text(MODEL)
    config = Config.load(threads=2)
    named = load_model(f"{net}:make")
    found = model_kernels(named.model, named.inputs, {}, config)
    assert len(found.kernels) == len(found.calls) >= 2
    spec = ("why", f"{net}:make", "--threads", str(found.threads))
    empty = json.loads(run(*spec, "--json"))["kernels"]
    assert [k["nearest"] for k in empty] == [None] * len(found.kernels)
    assert "no kernel like it was ever measured" in " ".join(run(*spec).split())

    keys = [KernelKey.of(k.kernel) for k in found.kernels]
    target = TargetKey.of(found.target)
    current = {"target": target, "threads": found.threads, "schedule": ()}
    with Records.open(place) as records:
        for key in keys:
            # With the generator of today, which the sample leaves open on purpose.
            fields = {**current, "kernel": key}
            given = sample(8, **fields)
            records.add(type(given)(**fields, status="ok", samples_ns=((1.0, 2.0),)))
    hits = json.loads(run(*spec, "--json"))["kernels"]
    assert [k["ratio"] for k in hits] == [0.5] * len(keys)
    assert f"{len(keys)} of {len(keys)} kernels have a record" in " ".join(run(*spec).split())
    fewer = json.loads(run("why", f"{net}:make", "--threads", "1", "--json"))["kernels"]
    assert [[d["field"] for d in k["differences"]] for k in fewer] == [["threads"]] * len(keys)
    wider = json.loads(run("why", f"{net}:wider", *spec[2:], "--json"))["kernels"]
    missed = [d for k in wider for d in k["differences"]]
    assert missed and {d["field"] for d in missed} == {"size"}
    assert any("48" in d["wanted"] and "40" in d["found"] for d in missed)
