"""The runner of the loop benchmarks: turns, fresh data for each call, verdicts, tables, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.polybench import __main__ as main
from benchmarks.polybench import judge, peers, registry, runner, tables
from benchmarks.polybench.floor import floor_seconds
from benchmarks.polybench.native import compile_c
from benchmarks.polybench.registry import CASES
from benchmarks.roofline import Machine
from nestor.errors import UserError

MACHINE = Machine(flops=1e11, bandwidth=1e10)
Work = Callable[[dict[str, Any]], None]


def measure(
    monkeypatch: pytest.MonkeyPatch, works: dict[str, Work], rounds: int = 4
) -> runner.Measured:
    """Time gemm at MINI by made-up peers."""

    def prepare(peer: str, case: Any, size: str, dtype: str, arguments: Any, **_: Any) -> Any:
        if peer == "absent":
            raise UserError("no absent here; install it\nand more")
        return peers.Ready(call=lambda: works[peer](arguments), compile_seconds=0.25)

    def exact(case: Any, size: str, pristine: Any, folder: Path) -> dict[str, Any]:
        given = {name: np.array(value) for name, value in pristine.items()}
        right(given)
        return {"C": given["C"]}

    monkeypatch.setattr(peers, "prepare", prepare)
    monkeypatch.setattr(judge, "exact_outputs", exact)
    monkeypatch.setattr(runner, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(runner, "TURN_SECONDS", 0.001)
    names = list(works)
    return runner.measure(
        CASES["gemm"],
        "MINI",
        "float64",
        names,
        MACHINE,
        threads=2,
        rounds=rounds,
        tell=lambda what, done: None,
    )


def right(a: dict[str, Any]) -> None:
    a["C"][...] = a["alpha"] * a["A"] @ a["B"] + a["beta"] * a["C"]


def wrong(a: dict[str, Any]) -> None:
    right(a)
    a["C"][3, 4] *= 1.001


def test_every_call_sees_fresh_data(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(a: dict[str, Any]) -> None:
        seen.append(a["C"].copy())
        assert a["C"].ctypes.data % peers.ALIGNMENT == 0
        right(a)

    result = measure(monkeypatch, {"one": spy, "two": spy})
    fresh = CASES["gemm"].make_inputs("MINI")["C"]
    assert len(seen) > 8
    assert all(np.array_equal(c, fresh) for c in seen)
    assert [len(p.seconds) for p in result.peers] == [4, 4]
    assert [p.error for p in result.peers] == [0, 0]
    base, other = result.peers
    assert other.ratios == [a / b for a, b in zip(base.seconds, other.seconds, strict=True)]


def test_wrong_answers_and_absent_peers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    works: dict[str, Work] = {"good": right, "bad": wrong, "absent": right}
    result = measure(monkeypatch, works)
    assert tables.failures([result]) == [
        f"gemm: bad is wrong: relative error {result.peers[1].error:.1e}",
        "gemm: absent: no absent here; install it",
    ]
    assert result.peers[1].error > 1e-5
    table = tables.speed_table([result], list(works), 2)
    assert table.rows[0][0] == "gemm"
    assert table.rows[0][3] == "failed"
    wide = tables.speed_table([result], ["good", "bad"], 2)
    assert wide.rows[0][-2].endswith("WRONG")


def test_sensitive_kernels_may_differ_as_c_compilers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(a: dict[str, Any]) -> None:
        right(a)
        a["C"] *= 1 + 2e-9

    for names, expected in ((("clang", "gcc", "nestor"), []), (("clang", "nestor"), ["nestor"])):
        works = {n: right if n == "clang" else off for n in names}
        result = measure(monkeypatch, works)
        assert [p.name for p in result.peers if result.is_wrong(p)] == expected
        caption = tables.speed_table([result], names, 2).caption
        assert caption.endswith("clause: none." if expected else "clause: gemm.")


def test_a_wrong_c_compiler_excuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measure(monkeypatch, {"clang": right, "gcc": wrong, "nestor": wrong})
    assert [p.name for p in result.peers if result.is_wrong(p)] == ["gcc", "nestor"]


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")
def test_float32_is_held_against_float64_of_the_same_input(tmp_path: Path) -> None:
    case = CASES["trisolv"]
    inputs = case.make_inputs("MINI", "float32")
    exact = judge.exact_outputs(case, "MINI", inputs, tmp_path)
    assert exact["x"].dtype == np.float64
    strict = judge.strict_error(case, "MINI", "float32", inputs, exact, tmp_path)
    assert 1e-9 < strict < 1e-5
    assert judge.strict_error(case, "MINI", "float64", inputs, exact, tmp_path) == 0


def test_slow_kernels_get_fewer_turns() -> None:
    assert [runner.rounds_for(s, 9) for s in (0.01, 2.0, 6.0, 30.0)] == [9, 5, 2, 1]
    assert runner.rounds_for(6.0, 1) == 1


def test_first_calls_of_slow_kernels_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"one": 0, "two": 0}
    monkeypatch.setattr(runner.Bench, "timed", lambda self, call: (call(), 20.0)[1])

    def count(name: str) -> Work:
        def work(a: dict[str, Any]) -> None:
            calls[name] += 1
            right(a)

        return work

    result = measure(monkeypatch, {"one": count("one"), "two": count("two")}, rounds=9)
    assert calls == {"one": 1, "two": 1}
    assert result.peers[1].ratios == [1.0]


def test_published_figures_cover_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(runner.PUBLISHED["kernels"]) == set(CASES)
    result = measure(monkeypatch, {"one": right})
    assert result.published() is None  # they are of LARGE
    large = runner.Measured(
        case=CASES["gemm"],
        size="LARGE",
        dtype="float64",
        peers=[],
        floor_seconds=1.0,
        operations=1.0,
    )
    assert large.published() == ("gcc", 1.05)


def test_floor_is_the_slower_of_work_and_traffic() -> None:
    gemm, mvt = CASES["gemm"], CASES["mvt"]
    assert floor_seconds(MACHINE, gemm, "LARGE", "float64") == gemm.work("LARGE") / 1e11
    traffic = mvt.floor_bytes("LARGE", "float32") / 1e10
    assert floor_seconds(MACHINE, mvt, "LARGE", "float32") == traffic


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")
def test_c_programs_leave_denormal_numbers_alone(tmp_path: Path) -> None:
    case = CASES["trisolv"]
    program = registry.kernel("trisolv").program
    compile_c(program, case.symbols("MINI"), tmp_path, command="gcc")(case.make_inputs("MINI"))
    assert np.float64(1e-310) * np.float64(0.5) > 0


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")
def test_command_writes_a_table_and_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "measure_machine", lambda *a, **k: MACHINE)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the command sets it; this puts it back
    data = tmp_path / "out.json"
    line = ["trisolv", "durbin", "--size", "MINI", "--peers", "gcc", "--rounds", "2"]
    given = main._arguments([*line, "--json", str(data), "--md", str(tmp_path / "out.md")])
    assert main.run(given) == 0
    assert "trisolv" in capsys.readouterr().out
    assert "| durbin |" in (tmp_path / "out.md").read_text(encoding="utf-8")
    content = json.loads(data.read_text(encoding="utf-8"))
    assert [r["kernel"] for r in content["results"]] == ["trisolv", "durbin"]
    assert all(min(r["peers"][0]["seconds"]) > 0 for r in content["results"])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="no kernel 'gem'"):
        main.run(main._arguments(["gem"]))
    with pytest.raises(UserError, match="no peer 'icc'"):
        main.run(main._arguments(["gemm", "--peers", "icc"]))
