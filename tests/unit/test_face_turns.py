"""Turn-taking: pairing, peers that fail, and the tables made of it."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.harness import CaseResult, failures, geometric_mean, to_markdown
from benchmarks.model_tables import read_results, speed_table, write_results
from benchmarks.roofline import Machine
from benchmarks.work import Work, work_of
from nestor.benchmarking import peers
from nestor.benchmarking.peers import Prepared
from nestor.benchmarking.turns import OtherInputs, PeerProcess, PeerResult, Spread, Timing, compare
from nestor.benchmarking.worker import measure_call_memory
from nestor.errors import UserError

HERE = str(Path(__file__).resolve().parent)
QUICK = Timing(rounds=3, turn_seconds=0.01, settle_seconds=0.0)


def load_numbers(count: int) -> tuple[Any, tuple[Any, ...]]:
    """A "model" that needs no PyTorch."""
    return (lambda x: (x + 1, {"twice": 2 * x})), (np.arange(count, dtype=np.float32),)


def fast(model: Any, inputs: Any, threads: int) -> Prepared:
    print("a model may print")  # must not get between the answers
    return Prepared(call=lambda: model(*inputs), note=f"{threads} threads")


def slow(model: Any, inputs: Any, threads: int) -> Prepared:
    def call() -> Any:
        time.sleep(0.004)
        return model(*inputs)

    return Prepared(call=call, compiles_at_first_call=True)


def refusing(model: Any, inputs: Any, threads: int) -> Prepared:
    raise UserError("not today")


def dying(model: Any, inputs: Any, threads: int) -> Prepared:
    import os

    os._exit(7)


@pytest.fixture
def own_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fast", "slow", "refusing", "dying"):
        monkeypatch.setitem(peers.PEERS, name, f"test_face_turns:{name}")


@pytest.mark.usefixtures("own_peers")
def test_turns_are_paired_and_failures_told() -> None:
    said: list[str] = []
    results = compare(
        ["dying", "slow", "refusing", "fast"],
        "test_face_turns:load_numbers",
        {"count": 4},
        threads=2,
        timing=QUICK,
        folders=[HERE],
        progress=lambda what, done: said.append(what),
    )
    dead, slow_one, refused, fast_one = results
    assert "status 7" in dead.failure
    assert refused.failure == "not today"
    assert not slow_one.failure and not fast_one.failure
    assert slow_one.ratios == [1.0, 1.0, 1.0]
    assert fast_one.ratio is not None and fast_one.ratio.median > 5
    assert slow_one.compile_seconds >= 0.004 and fast_one.compile_seconds == 0.0
    assert fast_one.note == "2 threads"
    np.testing.assert_array_equal(fast_one.outputs[1], 2 * np.arange(4, dtype=np.float32))
    assert "preparing slow" in said and "taking turns" in said
    json.dumps([r.to_dict() for r in results])


class Moody:
    """A gauge that says in turn what it is given, and then always yes."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.asked = 0

    def is_steady(self) -> bool:
        self.asked += 1
        return self.answers.pop(0) if self.answers else True


@pytest.mark.usefixtures("own_peers")
@pytest.mark.parametrize("patience, asked, unsteady", [(60.0, 2 + 9, 0), (0.0, 2 + 6, 1)])
def test_rounds_of_an_unsteady_machine_are_repeated(
    patience: float, asked: int, unsteady: int
) -> None:
    """Before each turn and after the last; no longer once a round is known not to count."""
    gauge = Moody(True, False)
    results = compare(
        ["slow", "fast"],
        "test_face_turns:load_numbers",
        {"count": 4},
        threads=1,
        timing=replace(QUICK, patience_seconds=patience),
        folders=[HERE],
        gauge=gauge,
    )
    assert [len(r.turns_ns) for r in results] == [3, 3]
    assert [r.unsteady for r in results] == [unsteady, unsteady]
    assert gauge.asked == asked


def hanging(model: Any, inputs: Any, threads: int) -> Prepared:
    time.sleep(60)
    return fast(model, inputs, threads)


def test_a_peer_that_hangs_is_ended() -> None:
    with PeerProcess(threads=1, folders=[HERE], patience_seconds=2.0) as process:
        start = time.monotonic()
        arguments = ("test_face_turns:load_numbers", {"count": 4}, "test_face_turns:hanging", 1)
        with pytest.raises(UserError, match="gave no answer to 'prepare' for 2 s"):
            process.ask("prepare", *arguments)
    assert time.monotonic() - start < 20


def test_memory_of_a_call_is_seen() -> None:
    size = 48 << 20
    _, peak = measure_call_memory(lambda: np.ones(size, dtype=np.uint8).sum())
    if peak is None:
        pytest.skip("this system does not let the high-water mark be reset")
    # The kernel counts pages in batches, so the mark is good to some hundred KiB.
    assert 0.97 * size <= peak < size + (8 << 20)


def load_some(count: int, first: int) -> tuple[Any, ...]:
    """Other inputs for ``load_numbers``."""
    return (np.arange(first, first + count, dtype=np.float32),)


@pytest.mark.usefixtures("own_peers")
def test_answers_at_other_inputs_leave_the_first_ones_alone() -> None:
    others = OtherInputs(
        loader="test_face_turns:load_some",
        arguments=({"count": 4, "first": 10}, {"count": 4, "first": 20}),
    )
    loader, maker = "test_face_turns:load_numbers", "test_face_turns:fast"
    numbers = np.arange(4, dtype=np.float32)
    with PeerProcess(threads=1, folders=[HERE]) as process:
        process.ask("prepare", loader, {"count": 4}, maker, 1)
        found = process.fetch_others(others)
        assert [len(f) for f in found] == [2, 2]
        np.testing.assert_array_equal(found[0][0], 11 + numbers)
        np.testing.assert_array_equal(found[1][1], 2 * (20 + numbers))
        assert process.fetch_others(OtherInputs()) == []
        again = OtherInputs(loader=others.loader, arguments=({"count": 3, "first": 0},))
        with pytest.raises(UserError, match="broadcast"):
            process.fetch_others(again)
    (result,) = compare(
        ["fast"], loader, {"count": 4}, threads=1, timing=QUICK, folders=[HERE], others=others
    )
    np.testing.assert_array_equal(result.outputs[0], 1 + numbers)
    assert len(result.others) == 2


WAKING_BYTES = 48 << 20


def _waking(compiles: bool) -> Prepared:
    """A peer whose first call takes memory for good and whose second takes half of it."""
    kept: list[Any] = []

    def call() -> Any:
        kept.append(np.ones(WAKING_BYTES >> min(len(kept), 6), dtype=np.uint8))
        return kept[-1][:1]

    return Prepared(call=call, compiles_at_first_call=compiles)


def waking(model: Any, inputs: Any, threads: int) -> Prepared:
    return _waking(compiles=False)


def waking_compiler(model: Any, inputs: Any, threads: int) -> Prepared:
    return _waking(compiles=True)


def test_memory_is_of_the_first_call_that_only_runs_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One rule for every peer: the first call, or the second where the first one compiles."""
    for name in ("waking", "waking_compiler"):
        monkeypatch.setitem(peers.PEERS, name, f"test_face_turns:{name}")
    first, second = compare(
        ["waking", "waking_compiler"],
        "test_face_turns:load_numbers",
        {"count": 4},
        threads=1,
        timing=QUICK,
        folders=[HERE],
    )
    if first.peak_bytes is None or second.peak_bytes is None:
        pytest.skip("this system does not let the high-water mark be reset")
    assert 0.97 * WAKING_BYTES <= first.peak_bytes < 1.2 * WAKING_BYTES
    assert 0.47 * WAKING_BYTES <= second.peak_bytes < 0.7 * WAKING_BYTES
    assert second.compile_seconds > 0.0 == first.compile_seconds


def test_unknown_and_repeated_peers() -> None:
    with pytest.raises(UserError, match="no peer 'egaer'; there are: eager"):
        compare(["egaer"], "x:y", {}, threads=1)
    with pytest.raises(UserError, match="stands twice"):
        compare(["eager", "eager"], "x:y", {}, threads=1)


def test_spread_and_mean() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert math.isnan(geometric_mean([]))


def _result(model: str, factor: float) -> CaseResult:
    eager = PeerResult(name="eager", turns_ns=[1e6] * 3, ratios=[1.0] * 3)
    own = PeerResult(name="nestor", turns_ns=[1e6 / factor] * 3, ratios=[factor] * 3)
    broken = PeerResult(name="compile", failure="no compiler\nat all")
    return CaseResult(
        model=model,
        batch=1,
        threads=2,
        peers=(eager, broken, own),
        verdicts={},
        work=Work(operations=1e6, moved_bytes=1),
    )


def test_tables_have_a_row_a_model_and_the_mean() -> None:
    results = [_result("one", 2.0), _result("two", 0.5)]
    order = ("eager", "compile", "nestor")
    table = speed_table(results, order)
    assert [row[0] for row in table.rows] == ["one", "two", "geometric mean"]
    assert table.rows[0][2:4] == ("failed", "2.00× (2.00–2.00)")
    assert table.rows[2][2:4] == ("–", "1.00× of 2")
    failed = failures(results)
    assert failed == ["one: compile: no compiler", "two: compile: no compiler"]
    text = to_markdown(table, failed, {"cpu": "x"})
    assert "| one | 1 ms | failed | 2.00× (2.00–2.00) |" in text
    assert "* two: compile: no compiler" in text


def test_tables_hold_times_against_the_best_peer_and_the_limit() -> None:
    machine = Machine(flops=1e10, bandwidth=1e10)
    table = speed_table([_result("one", 2.0)], ("eager", "compile", "nestor"), machine)
    assert table.columns[4:6] == (">nestor : best", ">of limit")
    assert table.rows[0][4:6] == ("2.00× (2.00–2.00)", "20%")


def test_a_run_goes_on_from_the_results_of_an_earlier_one(tmp_path: Path) -> None:
    order, data = ["eager", "compile", "nestor"], tmp_path / "models.json"
    assert read_results(data, order) == []
    given = [_result("one", 2.0)]
    write_results(given, order, {"cpu": "x"}, None, tmp_path / "models.md", data)
    assert read_results(data, order) == given
    with pytest.raises(UserError, match="leave out --resume"):
        read_results(data, ["eager", "nestor"])
    data.write_text("{}")
    with pytest.raises(UserError, match="cannot be gone on from"):
        read_results(data, order)


def test_work_counts_products_and_what_moves_once() -> None:
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 4, bias=False))
    work = work_of(model, (torch.zeros(3, dtype=torch.int64),))
    assert work == Work(operations=2.0 * 3 * 8 * 4, moved_bytes=4 * (8 * 4 + 3 * 4) + 8 * 3)
