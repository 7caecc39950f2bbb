"""Models tuned for some seconds: the same answers, schedules found again, hostile records."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import nestor
from nestor.autotune.records import KernelKey, Record, Records, TargetKey
from nestor.autotune.tuner import CONFIRMED
from nestor.building import model_kernels
from nestor.config import Config
from nestor.ir.schedule import Parallel, Reorder, Schedule, Vectorize


class Net(nn.Module):
    """A window, a product, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 24, 3, padding=1, stride=2)
        self.linear = nn.Linear(24, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        return torch.softmax(self.linear(y), -1)


@pytest.fixture
def net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.randn(2, 8, 18, 18)


def check(compiled: object, model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(x.double())
        torch.testing.assert_close(compiled(x).double(), wanted, rtol=1e-5, atol=1e-6)  # type: ignore[operator]


def test_a_tuned_model_gives_the_same_answers(
    net: tuple[nn.Module, torch.Tensor], tmp_path: Path
) -> None:
    model, x = net
    compiled = nestor.compile(model, (x,), tune="6s", threads=1, cache_dir=tmp_path)
    check(compiled, model, x)
    report = compiled.report()
    assert report.tuning_trials > 0
    with Records.open(tmp_path / "records.db") as records:
        assert records.summary().records >= report.tuning_trials
        confirmed = {
            r.schedule
            for k in records.kernels()
            for r in records.history(k.kernel.digest)
            if r.strategy == CONFIRMED
        }
    again = nestor.compile(model, (x,), threads=1, cache_dir=tmp_path)
    check(again, model, x)
    assert again.report().tuning_trials == 0
    assert again.report().tuned_kernels <= len(confirmed)


def test_a_model_of_any_batch_is_tuned_at_its_example(
    net: tuple[nn.Module, torch.Tensor], tmp_path: Path
) -> None:
    """What is found is for the example's sizes, right at others, and missed by other examples."""
    model, x = net
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    config = Config.load(threads=1, cache_dir=tmp_path)
    kernels = model_kernels(model, (x,), {}, config, dynamic_shapes=dynamic)
    symbolic = [n for n, fused in enumerate(kernels.kernels) if fused.kernel.symbols]
    assert symbolic
    assert all(set((kernels.sizes_of(n) or {}).values()) == {2} for n in symbolic)

    compiled = nestor.compile(
        model, (x,), dynamic_shapes=dynamic, tune="6s", threads=1, cache_dir=tmp_path
    )
    assert compiled.report().tuning_trials > 0
    with Records.open(tmp_path / "records.db") as records:
        known = {k.kernel.digest for k in records.kernels()}
    keys = {KernelKey.of(kernels.kernels[n].kernel, kernels.sizes_of(n)).digest for n in symbolic}
    assert keys & known
    other = {
        KernelKey.of(kernels.kernels[n].kernel, dict.fromkeys(kernels.sizes_of(n) or {}, 5)).digest
        for n in symbolic
    }
    assert not other & known
    again = nestor.compile(model, (x,), dynamic_shapes=dynamic, threads=1, cache_dir=tmp_path)
    assert again.report().tuning_trials == 0
    for batch in (1, 2, 5, 64):
        y = torch.randn(batch, *x.shape[1:])
        check(compiled, model, y)
        check(again, model, y)


def record_for_every_kernel(
    model: nn.Module, x: torch.Tensor, folder: Path, schedule: Schedule
) -> int:
    """Pretend that ``schedule`` was confirmed as ten times as fast for all kernels."""
    config = Config.load(threads=1, cache_dir=folder)
    kernels = model_kernels(model, (x,), {}, config)
    with Records.open(config) as records:
        return records.add_many(
            Record(
                kernel=KernelKey.of(fused.kernel),
                target=TargetKey.of(kernels.target),
                threads=kernels.threads,
                schedule=schedule,
                status="ok",
                samples_ns=((1.0, 10.0),) * 9,
                strategy=CONFIRMED,
            )
            for fused in kernels.kernels
        )


@pytest.mark.parametrize(
    "schedule",
    [
        (Parallel(loop="S0.k0"), Vectorize(loop="S0.k0")),  # a sum's own loop
        (Reorder(statement="nobody", loops=("a", "b")),),
        (Vectorize(loop="S0.i1"),),
    ],
)
def test_records_are_not_trusted(
    net: tuple[nn.Module, torch.Tensor], tmp_path: Path, schedule: Schedule
) -> None:
    model, x = net
    assert record_for_every_kernel(model, x, tmp_path, schedule) > 1
    compiled = nestor.compile(model, (x,), threads=1, cache_dir=tmp_path)
    check(compiled, model, x)
    plain = nestor.compile(model, (x,), threads=1, cache_dir=tmp_path / "other")
    refused = [k for k in compiled.report().kernels if k.refused]
    defaults = {k.statements: k.schedule for k in plain.report().kernels}
    assert refused
    assert all(k.schedule == defaults[k.statements] for k in refused)


def test_the_same_trials_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from nestor.cli import main

    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Linear(48, 80).eval(), (torch.randn(64, 48),)\n"
    )
    monkeypatch.setenv("NESTOR_CACHE_DIR", str(tmp_path / "cache"))
    arguments = ["tune", f"{file}:make", "--trials", "9", "--threads", "1", "--strategy", "random"]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trials"] == sum(told["statuses"].values()) == 9
    assert main(arguments) == 0
    assert "9 trials" in capsys.readouterr().out
    assert main(["tune", f"{file}:make", "--time", "soon"]) != 0
    assert "60s, 10m or 1h" in capsys.readouterr().err
