"""A Program's own decisions: every one gives right results, and records of them are only data."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nestor
from benchmarks.criterion import judge
from nestor.autotune import choosing
from nestor.autotune.choosing import known_point
from nestor.autotune.pairing import Pair
from nestor.autotune.program_search import PROGRAM, ProgramTuner, program_record
from nestor.autotune.program_space import ProgramPoint, ProgramSpace
from nestor.autotune.records import Records
from nestor.building import build_model
from nestor.config import Config
from nestor.frontends.torch import import_model
from nestor.target.cpu import parse_target


class Net(nn.Module):
    """A window of three, an inverted residual, attention over its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 5, padding=2, groups=32)
        self.narrow = nn.Conv2d(32, 16, 1)
        self.queries, self.keys, self.values = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = x + self.narrow(torch.relu(self.depthwise(torch.relu(self.wide(x)))))
        rows = x.flatten(2).transpose(1, 2)
        operands = (self.queries(rows), self.keys(rows), self.values(rows))
        return nn.functional.scaled_dot_product_attention(*operands)


@pytest.fixture
def net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.randn(4, 8, 16, 16)


def space_of(model: nn.Module, x: torch.Tensor, config: Config) -> ProgramSpace:
    program = import_model(model, (x,)).program
    return ProgramSpace(program, parse_target(config.target), config)


def check(compiled: Any, model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        verdict = judge(compiled(x), model(x), exact)
    assert verdict.correct, verdict.reason


def record(space: ProgramSpace, point: ProgramPoint, *, gain: float = 2.0) -> None:
    """Pretend that a point was confirmed."""
    with Records.open(space.config) as records:
        records.add(program_record(space, point, [(1.0, gain)] * 9))


def test_there_are_decisions_of_each_kind(
    net: tuple[nn.Module, torch.Tensor], tmp_path: Path
) -> None:
    default = space_of(*net, Config.load(threads=1, cache_dir=tmp_path)).at()
    kinds = {knob.name.split()[0] for knob in default.knobs}
    assert {"windows", "lines", "border", "layouts", "keys", "images"} <= kinds
    assert default.point == ()


def test_every_decision_gives_right_results(
    net: tuple[nn.Module, torch.Tensor], tmp_path: Path
) -> None:
    model, x = net
    config = Config.load(threads=1, cache_dir=tmp_path)
    space = space_of(model, x, config)
    default = space.at()
    seen = {frozenset(default.calls())}
    for knob in default.knobs:
        for value in knob.values:
            candidate = space.at(((knob.name, value),))
            kernels = frozenset(candidate.calls())
            if kernels in seen:
                continue
            seen.add(kernels)
            record(space, candidate.point)
            built = build_model(model, (x,), {}, config)
            assert built.point == candidate.point == ((knob.name, value),)
            check(built.executable, model, x)
            (tmp_path / "records.db").unlink()
    assert len(seen) > 5


def test_a_recorded_point_is_used(net: tuple[nn.Module, torch.Tensor], tmp_path: Path) -> None:
    model, x = net
    config = Config.load(threads=1, cache_dir=tmp_path)
    space = space_of(model, x, config)
    knob = next(k for k in space.at().knobs if k.name.startswith("windows"))
    other = next(v for v in knob.values if v != knob.default)
    record(space, ((knob.name, other),))
    built = build_model(model, (x,), {}, config)
    assert built.point == ((knob.name, other),)
    wanted = space.at(built.point).calls().keys()
    assert set(built._compiled.key_of) == set(wanted) != set(space.at().calls())
    plain = build_model(model, (x,), {}, Config.load(threads=1, cache_dir=tmp_path / "other"))
    assert plain.point == ()
    other_threads = build_model(model, (x,), {}, Config.load(threads=2, cache_dir=tmp_path))
    assert other_threads.point == ()
    # A later measurement of the same point overrules the first one.
    record(space, ((knob.name, other),), gain=0.5)
    assert build_model(model, (x,), {}, config).point == ()


HOSTILE: list[Any] = [
    (("nobody asks for this", "near"),),
    (("layouts", "sideways"), ("images", 3)),
    (("images", -1),),
    (("images", "all"), ("layouts", 7)),
    (("layouts", True), ("images", 1.0)),
    (("layouts", ("rules",)), ("images", None)),
    (("layouts", "x" * 900),),
]


def test_hostile_and_stale_points_do_nothing(
    net: tuple[nn.Module, torch.Tensor], tmp_path: Path
) -> None:
    model, x = net
    config = Config.load(threads=1, cache_dir=tmp_path)
    space = space_of(model, x, config)
    default = space.at()
    for point in HOSTILE:
        record(space, point)
        assert space.at(known_point(space)).point == ()
    compiled = nestor.compile(model, (x,), threads=1, cache_dir=tmp_path)
    check(compiled, model, x)
    assert set(compiled._current()._compiled.key_of) == set(default.calls())


def test_another_generator_s_points_do_nothing(
    net: tuple[nn.Module, torch.Tensor], tmp_path: Path
) -> None:
    model, x = net
    config = Config.load(threads=1, cache_dir=tmp_path)
    made = program_record(space_of(model, x, config), (("layouts", "rules"),), [(1.0, 2.0)] * 9)
    with Records.open(config) as records:
        records.add(replace(made, generator="llvm old"))
    assert build_model(model, (x,), {}, config).point == ()


class Stopwatch:
    """A measurer with times of its own: every kernel takes what ``ns`` says."""

    def __init__(self, real: Any, ns: Any):
        self.target, self.threads, self.ns = real.target, real.threads, ns

    def measure(self, candidates: Sequence[Any], reference: Any, **more: Any) -> list[Any]:
        from nestor.autotune.measuring import Measurement

        time = self.ns(reference.kernel)
        return [Measurement(status="ok", samples_ns=((time, time),) * 3) for _ in candidates]


def test_the_whole_model_decides(
    net: tuple[nn.Module, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgramSpace, "at", functools.cache(ProgramSpace.at))
    space = space_of(*net, Config.load(threads=1, cache_dir=tmp_path))
    for verdict in ("faster", "slower", "wrong"):
        let_decide(net, space, verdict)
        (tmp_path / "records.db").unlink()


def let_decide(net: tuple[nn.Module, torch.Tensor], space: ProgramSpace, verdict: str) -> None:
    """Search with a stopwatch that makes everything look better, and a whole model that is as
    ``verdict`` says."""
    config = space.config
    default = set(space.at().calls())
    asked: list[ProgramPoint] = []

    def compare(point: ProgramPoint, seconds: float) -> list[Pair]:
        asked.append(point)
        times = {"faster": [(8.0, 10.0)] * 9, "slower": [(11.0, 10.0)] * 9, "wrong": []}
        return times[verdict]

    # Kernels of the default take long: whatever changes one looks better.
    watch = Stopwatch(space.at().kernels, lambda kernel: 9e5 if kernel in default else 1e3)
    with Records.open(config) as records:
        tuner = ProgramTuner(space, watch, records, compare, seconds=60.0)  # type: ignore[arg-type]
        found = tuner.run()
    assert len(found.trials) > 4 and asked
    assert all(dict(p) for p in asked)
    assert (found.point != ()) == (verdict == "faster")
    again = build_model(net[0], (net[1],), {}, config)
    assert again.point == found.point
    with Records.open(config) as records:
        kept = [r for k in records.kernels() for r in records.history(k.kernel.digest)]
    assert all(r.strategy == PROGRAM for r in kept)
    assert bool(kept) == (verdict != "wrong")


def test_a_model_is_tuned_with_its_program(
    net: tuple[nn.Module, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "_LEAST_SECONDS", 1.0)
    model, x = net
    compiled = nestor.compile(model, (x,), tune="6s", threads=1, cache_dir=tmp_path)
    check(compiled, model, x)
    found = compiled._current().decisions
    assert found is not None and found.knobs > 4 and found.trials
    again = nestor.compile(model, (x,), threads=1, cache_dir=tmp_path)
    check(again, model, x)
    assert again._current().point == found.point
    assert again._current().decisions is None
