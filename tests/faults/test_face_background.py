"""Models that are tuned while they serve: swaps under load, forks, states, crashes, ends."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nestor
from nestor.api import CompiledModel
from nestor.autotune import background
from nestor.autotune.records import KernelKey, Record, Records, TargetKey
from nestor.autotune.tuner import CONFIRMED
from nestor.building import model_kernels
from nestor.config import Config
from nestor.errors import InputError, UserError

SECONDS = 120.0
"""For what takes a second or two where nothing else runs [s]."""


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "NICENESS", 0)


@pytest.fixture
def mlp() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 80), nn.ReLU(), nn.Linear(80, 24), nn.Softmax(-1))
    return model.eval(), torch.randn(33, 48)


class Counting(nn.Module):
    """Adds up what it is called with, as a cache does."""

    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 24)
        self.register_buffer("total", torch.zeros(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total += 1.0
        return self.linear(x) + self.total


def wanted(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-5))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def held(
    model: nn.Module, x: torch.Tensor, folder: Path, budget: str = "5s"
) -> Iterator[CompiledModel]:
    """A model whose search waits until this ends, and then finds a record for every kernel: that
    the loops as written were confirmed as ten times as fast.
    """
    with background._turn:
        compiled = nestor.compile(
            model, (x,), tune=f"background:{budget}", threads=1, cache_dir=folder
        )
        assert compiled.tuning is not None and compiled.tuning.state == "waiting"
        config = Config.load(threads=1, cache_dir=folder)
        kernels = model_kernels(model, (x,), {}, config)
        with Records.open(config) as records:
            records.add_many(
                Record(
                    kernel=KernelKey.of(fused.kernel),
                    target=TargetKey.of(kernels.target),
                    threads=kernels.threads,
                    schedule=(),
                    status="ok",
                    samples_ns=((1.0, 10.0),) * 9,
                    strategy=CONFIRMED,
                )
                for fused in kernels.kernels
            )
        yield compiled


def decide(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Let the whole model with other kernels take ``ratio`` times as long; both are called."""

    def time_ratio(call: Any, other: Any, *more: Any) -> float:
        call(), other()
        return ratio

    monkeypatch.setattr(background, "time_ratio", time_ratio)


def schedules(compiled: CompiledModel) -> set[str]:
    return {k.schedule for k in compiled.report().kernels}


def swapped(compiled: CompiledModel) -> bool:
    assert compiled.tuning is not None
    assert compiled.tuning.state != "failed", compiled.tuning.report()
    return compiled.tuning.report().swaps > 0


def test_better_kernels_take_over_between_the_calls_of_many_threads(
    mlp: tuple[nn.Module, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = mlp
    decide(monkeypatch, 0.5)
    expected = wanted(model, x)
    wrong: list[torch.Tensor] = []
    calls = [0, 0]
    over = threading.Event()
    with held(model, x, tmp_path) as compiled:
        before = schedules(compiled)
        executable = compiled._current().executable

        def serve() -> None:
            while not over.is_set():
                found = compiled(x)
                calls[swapped(compiled)] += 1
                if not close(found, expected):
                    wrong.append(found)

        threads = [threading.Thread(target=serve) for _ in range(3)]
        for thread in threads:
            thread.start()
    try:
        until(lambda: swapped(compiled))
        enough = calls[1] + 20
        until(lambda: calls[1] > enough)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert calls[0] > 0
    assert schedules(compiled) != before
    assert compiled._current().executable is not executable
    tuning = compiled.tuning
    assert tuning is not None
    assert tuning.wait(SECONDS)
    report = compiled.report()
    assert report.tuning is not None
    assert report.tuning.state == "finished" and report.tuning.reason
    assert report.tuning.gain == 2.0**report.tuning.swaps > 1
    assert type(report).from_dict(report.to_dict()) == report
    assert f"{report.tuning.gain:.3f}× the first calls" in " ".join(str(report).split())
    compiled.save(tmp_path / "net.nst")
    assert close(torch.from_numpy(nestor.load(tmp_path / "net.nst")(x.numpy())), expected)


def test_weights_are_the_same_ones_and_changes_are_seen(
    mlp: tuple[nn.Module, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = mlp
    decide(monkeypatch, 0.9)
    with held(model, x, tmp_path) as compiled:
        compiled(x)
        with torch.no_grad():
            model[0].weight.mul_(1.5)  # before the swap, seen by no call
    until(lambda: swapped(compiled))
    assert close(compiled(x), wanted(model, x))
    first = compiled._current()
    again = first.with_kernels(first._compiled)
    for key, array in first.executable._arrays().items():
        assert again.executable._arrays()[key] is array
    with torch.no_grad():
        model[2].weight.mul_(0.5)
    assert close(compiled(x), wanted(model, x))
    assert close(again.executable(x), wanted(model, x))
    assert compiled.tuning is not None
    compiled.tuning.stop()


def test_states_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Counting().eval(), torch.randn(5, 16)
    bare = wanted(model.linear, x)
    decide(monkeypatch, 0.9)
    seen: list[float] = []
    over = threading.Event()
    with held(model, x, tmp_path) as compiled:
        start = float(model.total[0])

        def serve() -> None:
            while not over.is_set():
                seen.append(float((compiled(x) - bare).mean()) - start)

        threads = [threading.Thread(target=serve) for _ in range(3)]
        for thread in threads:
            thread.start()
    try:
        until(lambda: swapped(compiled))
        enough = len(seen) + 20
        until(lambda: len(seen) > enough)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    # Each call saw what the one before it wrote, and timing the model changed nothing.
    assert [round(s) for s in sorted(seen)] == list(range(1, len(seen) + 1))
    assert float(model.total[0]) - start == len(seen)
    assert compiled.tuning is not None
    compiled.tuning.stop()
    assert compiled.tuning.state == "stopped"


def test_kernels_that_make_the_whole_model_slower_are_refused(
    mlp: tuple[nn.Module, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = mlp
    decide(monkeypatch, 1.1)
    with held(model, x, tmp_path) as compiled:
        before = schedules(compiled)
    tuning = compiled.tuning
    assert tuning is not None
    until(lambda: tuning.report().refused > 0)
    assert schedules(compiled) == before
    assert close(compiled(x), wanted(model, x))
    # The process that searches dies: calls do not notice, and the report says so.
    assert tuning._process is not None
    os.kill(tuning._process.pid, signal.SIGKILL)
    assert tuning.wait(SECONDS)
    assert tuning.state == "failed"
    assert "killed by signal 9" in str(compiled.report().tuning)
    assert close(compiled(x), wanted(model, x))


def test_nothing_that_fails_reaches_a_call(
    mlp: tuple[nn.Module, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = mlp

    def fail(*given: Any) -> float:
        raise MemoryError("no room for two")

    monkeypatch.setattr(background, "time_ratio", fail)
    with held(model, x, tmp_path) as compiled:
        pass
    tuning = compiled.tuning
    assert tuning is not None
    until(lambda: bool(tuning.report().warning))
    assert "MemoryError: no room for two" in tuning.report().warning
    assert close(compiled(x), wanted(model, x))
    process = tuning._process
    assert process is not None and process.poll() is None
    del compiled
    gc.collect()
    until(lambda: process.poll() is not None)


def test_a_real_search_measures(mlp: tuple[nn.Module, torch.Tensor], tmp_path: Path) -> None:
    model, x = mlp
    compiled = nestor.compile(model, (x,), tune="background", threads=1, cache_dir=tmp_path)
    tuning = compiled.tuning
    assert tuning is not None
    while not tuning.report().trials:
        assert close(compiled(x), wanted(model, x))
        assert not tuning.wait(0.05), tuning.report()
    tuning.stop()
    with Records.open(tmp_path / "records.db") as records:
        assert records.summary().records >= tuning.report().trials > 0


def test_a_forked_child_serves_and_leaves_the_search_alone(
    mlp: tuple[nn.Module, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = mlp
    decide(monkeypatch, 0.9)
    expected = wanted(model, x)
    with held(model, x, tmp_path, "60s") as compiled:
        pass
    tuning = compiled.tuning
    assert tuning is not None
    statuses = []
    forks = 0
    while forks < 3 or not swapped(compiled):  # before, while and after the model is swapped
        forks += 1
        child = os.fork()
        if child == 0:
            is_right = close(compiled(x), expected) and tuning.state == "stopped"
            tuning.stop()
            os._exit(0 if is_right and tuning.wait(0) else 1)
        statuses.append(os.waitpid(child, 0)[1])
    assert not any(statuses)
    assert tuning.state != "stopped"
    assert tuning._process is not None and tuning._process.poll() is None
    tuning.stop()
    assert tuning._process.poll() is not None


def test_the_search_ends_with_its_process_though_a_child_lives_on(tmp_path: Path) -> None:
    script = f"""
        import os, signal, time, torch, nestor
        from nestor.autotune import background
        background.NICENESS = 0
        model, x = torch.nn.Linear(48, 80).eval(), torch.randn(33, 48)
        compiled = nestor.compile(model, (x,), tune="background:10m", threads=1,
                                  cache_dir={str(tmp_path)!r})
        while compiled.tuning.state != "searching" or not compiled.tuning._process:
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            time.sleep(600)
        print(compiled.tuning._process.pid, child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    searching, child = map(int, run.stdout.readline().split())
    try:
        run.wait(SECONDS)
        until(lambda: not is_running(searching))
        assert is_running(child)
    finally:
        os.kill(child, signal.SIGKILL)
        run.stdout.close()


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status not in "ZX"


def test_graphs_of_torch_compile(mlp: tuple[nn.Module, torch.Tensor], tmp_path: Path) -> None:
    from nestor import dynamo

    model, x = mlp
    options = {"tune": "background:1s", "threads": 1, "cache_dir": str(tmp_path)}
    others = set(background._alive)
    compiled = torch.compile(model, backend=dynamo.backend, options=options)
    with torch.inference_mode():
        assert close(compiled(x), wanted(model, x))
    (tuning,) = set(background._alive) - others
    assert tuning.wait(SECONDS)
    assert tuning.state == "finished"
    with torch.inference_mode():
        assert close(compiled(x), wanted(model, x))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "tune",
    ["backgroud", "background:", "background:soon", "background:-3s", True, 0, -1, "", "1e3"],
)
def test_wrong_requests_are_told(mlp: tuple[nn.Module, torch.Tensor], tune: Any) -> None:
    model, x = mlp
    with pytest.raises(UserError, match=r"60s.*10m"):
        nestor.compile(model, (x,), tune=tune)


def test_released_weights_cannot_be_packed_again(mlp: tuple[nn.Module, torch.Tensor]) -> None:
    model, x = mlp
    with pytest.raises(InputError, match="tune='background' with release_weights"):
        nestor.compile(model, (x,), tune="background", release_weights=True)
