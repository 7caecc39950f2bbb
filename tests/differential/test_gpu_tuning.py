"""Search over schedules of a GPU's kernels; they run in Triton's interpreter."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nestor.autotune.choosing import tune_kernels
from nestor.autotune.gpu_bench import GpuBench
from nestor.autotune.measure_bench import BadCall
from nestor.autotune.measure_session import Variant
from nestor.autotune.measure_worker import Failed, Session
from nestor.autotune.measuring import Candidate, Measurer
from nestor.autotune.options import TuneOptions
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.records import Record, Records, TargetKey
from nestor.autotune.records.record import KernelKey
from nestor.autotune.space import GpuSpace, space_of
from nestor.autotune.tuner import CONFIRMED
from nestor.cli_live import View
from nestor.compiler import ModelKernels, kernel_arguments
from nestor.config import Config
from nestor.errors import RefusedByTriton
from nestor.frontends.torch import import_model
from nestor.gpu_building import BuiltGpuModel, build_gpu_model
from nestor.gpu_compiler import prepare_model_for_gpu
from nestor.gpu_device import gpu_device
from nestor.gpu_job import GpuCode, GpuKernelJob
from nestor.ir.schedule import Bind, Schedule
from nestor.target.gpu import parse_gpu_target
from nestor.tune_report import collect_report, write_report
from tests.helpers.triton_cases import Of, R
from tests.helpers.triton_runs import is_interpreting

TARGET = parse_gpu_target("sm_90")
QUICK = PairPolicy(least=1, most=2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 33), nn.Linear(33, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(self.first(x).relu()).softmax(1)
        return found


def kernels_of(module: nn.Module, *inputs: torch.Tensor) -> ModelKernels:
    assert is_interpreting()
    return prepare_model_for_gpu(import_model(module.eval(), inputs), TARGET).kernels()


def built(module: nn.Module, inputs: Any, config: Config, **more: Any) -> BuiltGpuModel:
    return build_gpu_model(module, inputs, {}, config, [TARGET], torch.device("cpu"), **more)


def configured(folder: Path) -> Config:
    return Config.load(cache_dir=folder, cache=f"sqlite:///{folder / 'records.db'}")


def schedules(model: BuiltGpuModel) -> list[Schedule]:
    return [k.schedule for k in model._program.kernels.values()]


def test_a_search_measures_and_records(tmp_path: Path) -> None:
    module, x, config = Net().eval(), R(30, 40), configured(tmp_path)
    options = TuneOptions(trials=8, strategy="random", seed=1)
    made = built(module, (x,), config, tune=lambda k: tune_kernels(k, config, options))
    assert made.tuning is not None
    assert made.tuning.trials == 8
    assert made.tuning.statuses.get("ok", 0) >= 6, [t.status for t in made.tuning.history]
    torch.testing.assert_close(made.executable(x), module(x))
    with Records.open(config) as records:
        assert sum(1 for _ in records.iterate()) >= 8


def test_a_report_of_it(tmp_path: Path) -> None:
    config = configured(tmp_path)
    kernels = kernels_of(Net(), R(30, 40))
    tuning = tune_kernels(kernels, config, TuneOptions(trials=4, strategy="random"))
    report = collect_report(View(model="net"), tuning, kernels, None)
    assert report.cpu == "sm_90"
    assert sum(k.trials for k in report.kernels) == len(tuning.history) >= 4
    assert all(k.limit_ns > 0 and k.bytes > 0 for k in report.kernels)
    write_report(str(tmp_path / "report.html"), report)
    assert "sm_90" in (tmp_path / "report.html").read_text()


def test_where_arguments_lie() -> None:
    on_gpu = SimpleNamespace(device=torch.device("cuda", 1))
    assert gpu_device((torch.zeros(2), 3), {}) is None
    assert gpu_device((1, [{"x": (on_gpu,)}]), {}) == on_gpu.device
    assert gpu_device((), {"x": on_gpu}) == on_gpu.device


def confirm(config: Config, module: nn.Module, x: torch.Tensor) -> Schedule:
    """Put another schedule of a model's first kernel on record as the best."""
    fused = kernels_of(module, x).kernels[0]
    space = GpuSpace(fused, TARGET)
    knob = next(k for k in space.knobs() if k.name.endswith("tile"))
    other = space.at({knob.name: next(v for v in knob.values if v != knob.default)})
    with Records.open(config) as records:
        records.add(
            Record(
                kernel=KernelKey.of(fused.kernel, {}),
                target=TargetKey.of(replace(TARGET, tf32="convolutions")),
                threads=1,
                schedule=other.schedule,
                point=other.point,
                status="ok",
                samples_ns=((50.0, 100.0),) * 9,
                detail="",
                strategy=CONFIRMED,
                trial=0,
            )
        )
    return other.schedule


def test_what_was_confirmed_is_used_by_later_compilations(tmp_path: Path) -> None:
    module, x, config = Net().eval(), R(30, 40), configured(tmp_path)
    plain = built(module, (x,), config)
    other = confirm(config, module, x)
    made = built(module, (x,), config)
    assert other in schedules(made)
    assert other not in schedules(plain)
    torch.testing.assert_close(made.executable(x), module(x))


def test_what_triton_refuses_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule on record that was proved, but has no code here."""
    module, x, config = Net().eval(), R(30, 40), configured(tmp_path)
    other = confirm(config, module, x)
    plain = BuiltGpuModel.code

    def refuse(self: BuiltGpuModel, target: Any) -> Any:
        if other in schedules(self):
            raise RefusedByTriton("Triton refuses a kernel: no\nits source")
        return plain(self, target)

    monkeypatch.setattr(BuiltGpuModel, "code", refuse)
    monkeypatch.setattr("nestor.gpu_store.compile_cubins", lambda jobs, config: {})
    monkeypatch.setattr(BuiltGpuModel, "_manifest", lambda self, target, code: None)
    with pytest.warns(UserWarning, match="left out\n.*: no\n"):
        made = build_gpu_model(module, (x,), {}, config, [TARGET], None)
    assert other not in schedules(made)


def test_schedules_that_are_refused_give_way(tmp_path: Path) -> None:
    kernels = kernels_of(Net(), R(30, 40))
    fused = kernels.kernels[0]
    default = space_of(fused, TARGET).default()
    wrong = (*default.schedule, Bind(loop="S0.nowhere"))
    with Measurer(TARGET, threads=1, config=configured(tmp_path)) as measurer:
        candidates = [Candidate(kernel=fused.kernel, schedule=s) for s in (wrong, default.schedule)]
        found = measurer.measure(candidates, candidates[1], sizes={}, policy=QUICK)
    assert [m.status for m in found] == ["illegal", "ok"]
    assert found[1].ratio is not None


def test_a_winner_is_measured_beside_a_second_default(tmp_path: Path) -> None:
    kernels = kernels_of(Net(), R(30, 40))
    fused = kernels.kernels[0]
    default = Candidate(kernel=fused.kernel, schedule=space_of(fused, TARGET).default().schedule)
    with Measurer(TARGET, threads=1, config=configured(tmp_path)) as measurer:
        done = measurer.confirm(
            default, default, sizes={}, seeds=1, policy=PairPolicy(least=6, most=6)
        )
    assert done.agrees
    assert done.ratio is not None and done.null is not None


# ------------------------------------------------------------------------------- faults


def opened(fused: Any) -> tuple[Session, GpuCode, tuple[Any, ...]]:
    """A worker's session, as if it were a process of its own, with the default as reference."""
    schedule = GpuSpace(fused, TARGET).default().schedule
    made = GpuKernelJob(
        kernel=fused.kernel, schedule=schedule, target=TARGET, is_interpreted=True
    ).compile()
    named = {t.name: t for t in kernel_arguments(fused.kernel, schedule)}
    variant = Variant(name="reference", object=made, tensors=tuple(named[n] for n in made.tensors))
    session = Session(0, io.BytesIO())
    session.start(
        helper=b"", threads=1, memory_bytes=1 << 30, run_seconds=60.0, device="interpreter"
    )
    session.open(program=fused.kernel, sizes={})
    session.load(
        name="reference", code=made.code, function=made.function_name, tensors=variant.tensors
    )
    session.judge(name="reference", file="/nonexistent/file", seed=0, interpret=True, given="")
    return session, GpuCode.decode(made.code), variant.tensors


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("tl.load(t0 +", "2.0 * tl.load(t0 +", "elements of"),
        ("tl.store(t1 +", "tl.store(t1 + 4096 + 0 *", "past its end"),
        ("tl.store(t1 +", "tl.store(t1 - 100 + 0 *", "before its start"),
    ],
)
def test_wrong_candidates_are_found(before: str, after: str, complaint: str) -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2.0 + 1.0

    (fused,) = kernels_of(Doubled(), R(64, 64)).kernels
    session, code, tensors = opened(fused)
    assert before in code.source
    bad = replace(code, source=code.source.replace(before, after))
    session.load(name="bad", code=bad.encode(), function=code.function, tensors=tensors)
    with pytest.raises(Failed, match=complaint) as caught:
        session.check(name="bad", sides=1)
    assert caught.value.status == "wrong"
    assert session.check(name="reference", sides=1)["worst"] <= 1


def test_indices_out_of_range_are_told() -> None:
    table = nn.Embedding(10, 20)
    (fused,) = kernels_of(table, torch.tensor([1, 2, 3])).kernels
    session, _, _ = opened(fused)
    bench = session.bench
    assert isinstance(bench, GpuBench)
    index = next(n for n, a in bench.inputs.items() if a.dtype.kind == "i")
    moved = {**bench.inputs, index: bench.inputs[index] + 100}
    with pytest.raises(BadCall, match="out of range"):
        bench.run_fenced("reference", "end", moved)
    bench.run_fenced("reference", "end")


def test_what_is_overwritten_gets_its_values_back() -> None:
    def adds(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.index_add(0, torch.tensor([3, 0, 3]), y)

    kernels = kernels_of(Of(adds), R(5, 7), R(3, 7)).kernels
    fused = next(k for k in kernels if any(t.role == "inout" for t in k.kernel.tensors))
    session, _, _ = opened(fused)
    bench = session.bench
    assert bench.overwrites
    session.prepare(name="reference", sample_ns=1.0, cold_bytes=0)
    first, _ = bench.run_fenced("reference", "end")
    wanted = {n: a.copy() for n, a in first.items()}
    for _ in range(3):
        bench.sample("reference")
    again, _ = bench.run_fenced("reference", "end")
    for name, array in wanted.items():
        assert (again[name] == array).all()


def test_a_target_is_told_apart() -> None:
    key = TargetKey.of(TARGET)
    assert key == TargetKey.of(replace(TARGET, memory_gbps=1.0))
    assert key != TargetKey.of(replace(TARGET, tf32="all"))
    assert key != TargetKey.of(replace(TARGET, processors=1))
