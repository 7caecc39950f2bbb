"""What people see of tuning: the live table, lines, the report and its plots, Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from nestor import tune_plots
from nestor.autotune.history import Trial
from nestor.autotune.records import KernelKey
from nestor.autotune.space import Space
from nestor.autotune.strategies import strategy_for
from nestor.autotune.task import Task
from nestor.autotune.tuner import Progress, Tuning
from nestor.cli import main
from nestor.cli_live import View, progress_table, progress_text
from nestor.compiler import ModelKernels
from nestor.cost_model import ranking
from nestor.cost_model.trees import TreeEnsemble
from nestor.ir.program import Program
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.target.cpu import parse_target
from nestor.tune_report import collect_report, rank_correlation, render_report
from tests.helpers import ir_programs as programs

TARGET = parse_target("avx512")
SECONDS = 300.0


def kernel(program: Program) -> FusedKernel:
    (part,) = partition_program(program, l2_bytes=1 << 20).parts
    assert isinstance(part, FusedKernel)
    return canonicalize_kernel(part)[0]


KERNELS = ModelKernels(
    kernels=(kernel(programs.matmul(64, 96, 70)), kernel(programs.layer_norm(5, 100))),
    calls=(3, 1),
    target=TARGET,
    threads=2,
)
VIEW = View(model="net", seconds=60.0, labels={"k0": "linear", "k1": "layer <norm>"})


def task(number: int, default_ns: float) -> Task:
    fused = KERNELS.kernels[number]
    space = Space(fused, TARGET)
    return Task(
        name=f"k{number}",
        key=KernelKey.of(fused.kernel),
        calls=KERNELS.calls[number],
        default=space.default(),
        strategy=strategy_for("random", space, 0, None),
        limit_ns=default_ns / 4,
        default_ns=default_ns,
    )


@pytest.fixture
def tuning() -> Tuning:
    """Twelve trials of the first kernel, four of which are remembered; one confirmation."""
    tasks = [task(0, 2e6), task(1, 1e5)]
    history = []
    ratios = iter([1.2, 0.9, None, 0.95, 0.8, 0.7, None, 0.75, 0.72, 0.71, 0.9, 1.5])
    for number, candidate in enumerate(tasks[0].strategy.propose(12)):
        ratio = next(ratios)
        tasks[0].tell(candidate, ratio)
        history.append(
            Trial(
                kernel="k0",
                schedule=candidate.schedule,
                status="ok" if ratio else "timeout",
                ratio=ratio,
                seconds=number * 0.5,
                is_remembered=number < 4,
            )
        )
    tasks[0].end_confirmation(0.74)
    best = tasks[0].best.schedule
    history.append(Trial(kernel="k0", schedule=best, status="ok", ratio=0.74, is_confirmation=True))
    return Tuning(tasks, trials=8, seconds=6.5, history=history, reason="the budget is spent")


def progress(tuning: Tuning, phase: str = "searching", name: str = "k1") -> Progress:
    known = tuning.tasks
    return Progress(
        phase=phase,
        seconds=20.0,
        trials=8,
        kernel=name,
        default_ns=sum(t.calls * t.default_ns for t in known),
        best_ns=sum(t.total_ns for t in known),
        expected_ns=1e5,
        remembered=tuning.remembered,
        tasks=tuple(known),
    )


def test_the_table_shows_each_kernel_and_the_whole(tuning: Tuning) -> None:
    table = progress_table(progress(tuning), VIEW)
    assert [row[0] for row in table.rows] == ["k0 linear", "k1 layer <norm>"]
    first = dict(zip((c.lstrip(">") for c in table.columns), table.rows[0], strict=True))
    assert first == {
        "kernel": "k0 linear",
        "calls": "3",
        "default": "6 ms",
        "share": "98%",
        "best": "1.429×",
        "of limit": "36%",
        "trials": "0",
        "status": "confirmed 1.351×",
    }
    assert table.rows[1][-1] == "searched now"
    assert "8 trials (0.4/s), 4 remembered, kernels 6.1 ms → 4.3 ms a call" in table.caption
    assert "40 s left" in table.caption and "Ctrl-C" in table.caption
    short = progress_table(progress(tuning), VIEW, 1)
    assert len(short.rows) == 1 and "and 1 more kernels" in short.caption
    tuning.tasks[1].default_ns = 0.0
    assert progress_table(progress(tuning, "timing", "k0"), VIEW).rows[1][-1] == "not timed yet"


def test_a_line_for_those_without_a_terminal(tuning: Tuning) -> None:
    view = View(model="net", peer="eager", peer_seconds=0.008)
    line = progress_text(progress(tuning), view)
    assert line.startswith("searching k1: 8 trials (0.4/s)")
    assert "eager 8 ms" in line and "left" not in line and "\n" not in line


class Checker(HTMLParser):
    """Tags that are opened are closed, and nothing is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                assert value is not None and value.startswith("#"), value

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_file_with_every_plot(
    tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rank(*given: object, sizes: object) -> Callable[[list[object]], np.ndarray]:
        return lambda schedules: 2.0 + np.arange(len(schedules), dtype=float)

    monkeypatch.setattr(ranking, "rank_schedules", rank)
    model = cast(TreeEnsemble, object())
    report = collect_report(VIEW, tuning, KERNELS, model)
    first, second = report.kernels
    assert [round(s, 3) for _, s in first.best] == [1.111, 1.25, 1.429]
    assert [n for n, _ in first.best] == [2, 5, 6]
    assert [n for n, _ in first.again] == [13]
    assert first.speed == pytest.approx(1 / 0.74)
    assert first.flops == 2 * 64 * 96 * 70
    assert first.flops / first.default_ns < report.peak_gflops
    assert [p for p, _ in first.predictions] == [1.5 + k / 2 for k in range(10)]
    assert not second.predictions and not second.best
    assert report.whole[0] == (0, 6.1e6)
    assert report.whole[-1] == (6, pytest.approx(3 * 2e6 * 0.7 + 1e5))
    assert report.statuses == {"ok": 11, "timeout": 2}
    text = render_report(report)
    assert text == render_report(report)
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert checker.seen.count("svg") == 3
    assert "layer &lt;norm&gt;" in text and "layer <norm>" not in text
    assert "13 trials, 4 of them by earlier runs" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert {i for i in ids if i.startswith(("p", "m"))}, "clip paths and marks have names"
    assert re.search(r"Rank correlation: k0 0\.\d\d", text)


def test_a_report_without_a_cost_model_or_a_measurement(tuning: Tuning) -> None:
    text = render_report(collect_report(VIEW, tuning, KERNELS, None))
    assert text.count("<svg") == 2 and "No cost model" in text
    empty = Tuning([task(0, 0.0)])
    assert render_report(collect_report(VIEW, empty, KERNELS, None)).count("<svg") == 2


def test_rank_correlation() -> None:
    assert rank_correlation([(1, 10), (2, 11), (30, 400)]) == pytest.approx(1)
    assert rank_correlation([(1, 3), (2, 2), (3, 1), (3, 1)]) == pytest.approx(-1)
    assert math.isnan(rank_correlation([(1, 1), (2, 2)]))
    assert rank_correlation([(1, 1), (1, 2), (1, 3)]) == 0


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Linear(48, 80).eval(), (torch.randn(64, 48),)\n"
    )
    monkeypatch.setenv("NESTOR_CACHE_DIR", str(tmp_path / "cache"))
    return f"{file}:make"


@pytest.mark.parametrize(
    ("path", "said"), [("{0}/none/r.html", "no folder"), ("{0}", "it is a folder")]
)
def test_a_place_that_cannot_be_written_is_told_first(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, said: str
) -> None:
    assert main(["tune", net, "--time", "10h", "--report", path.format(tmp_path)]) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_missing_library_is_told_first(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_plots.importlib.util, "find_spec", lambda name: None)
    assert main(["tune", net, "--time", "10h", "--report", str(tmp_path / "r.html")]) == 2
    assert "pip install 'nestor[plot]'" in capsys.readouterr().err


def test_no_report_without_records(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "report", net, str(tmp_path / "r.html")]) == 2
    assert f"fix: nestor tune {net}" in capsys.readouterr().err


def test_ctrl_c_keeps_the_best_and_the_next_run_goes_on(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", net, "--strategy", "random", "--threads", "1", "--json"]
    run = subprocess.Popen(
        [sys.executable, "-m", "nestor", *arguments, "--time", "1h"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stderr is not None
    lines = []
    for line in run.stderr:
        lines.append(line)
        if line.startswith("searching"):
            break
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: its whole group
    out, err = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, err
    first = json.loads(out)
    assert first["interrupted"] and first["reason"] == "stopped"
    assert first["trials"] > 0 and first["remembered"] == 0
    assert any(re.match(r"searching k0: \d+ trials \([\d.]+/s\), kernels ", s) for s in lines)

    report = tmp_path / "run.html"
    assert main([*arguments, "--trials", "2", "--report", str(report)]) == 0
    told = capsys.readouterr()
    second = json.loads(told.out)
    assert second["trials"] == 2
    assert second["remembered"] >= first["trials"]
    assert f"{second['remembered']} remembered" in told.err
    assert report.read_text().count("<svg") >= 2
    again = tmp_path / "records.html"
    assert main(["cache", "report", net, str(again), "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] >= second["remembered"] + 2
    assert "trials" in again.read_text()
