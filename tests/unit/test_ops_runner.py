"""The operator benchmarks: what is counted, which peer is best, tables, files, choices."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import CaseResult
from benchmarks.ops import __main__ as main
from benchmarks.ops import memory, registry, tables
from benchmarks.ops.runner import Measured
from benchmarks.roofline import Machine
from benchmarks.work import Work
from nestor.benchmarking.turns import PeerResult
from nestor.errors import UserError
from nestor.target.cpu import host_target

MACHINE = Machine(flops=1e9, bandwidth=1e9)


def result(name: str, *turns_ns: float, **others: Any) -> PeerResult:
    return PeerResult(name=name, turns_ns=list(turns_ns), **others)


def measured(*peers: PeerResult, name: str = "gemm_1024", moved: int = 0) -> Measured:
    for peer in peers:
        peer.ratios = [b / t for b, t in zip(peers[0].turns_ns, peer.turns_ns)]
    return Measured(
        case=dataclasses.replace(registry.OPS[name], operations=2e6),
        shapes=((3, 3),),
        result=CaseResult(
            model=name,
            batch=1,
            threads=2,
            peers=peers,
            verdicts={},
            work=Work(operations=0.0, moved_bytes=moved),
        ),
        moved_bytes=moved,
        machine=MACHINE,
    )


@pytest.mark.parametrize("name", [c.name for c in registry.OPS.values() if c.group == "product"])
def test_products_count_what_torch_counts(name: str) -> None:
    case = registry.OPS[name]
    module, inputs = registry.load(name, 0)
    with FlopCounterMode(display=False) as counter:
        outputs = module(*inputs)
    extra = outputs.numel() if name.startswith("linear") else 0
    assert case.operations == counter.get_total_flops() + extra


@pytest.mark.parametrize("name", [n for n, c in registry.OPS.items() if c.group == "convolution"])
def test_convolutions_count_what_torch_counts(name: str) -> None:
    """Torch counts a transposed convolution's taps outside of its output too."""
    module, inputs = registry.load(name, 0)
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    counted = counter.get_total_flops()
    share = registry.OPS[name].operations / counted
    assert share == 1.0 if "transposed" not in name else 0.95 < share < 1.0


def test_memory_bound_working_sets_are_beyond_the_caches() -> None:
    target = dataclasses.replace(host_target(), l3_bytes=1 << 16, l2_bytes=1 << 14, cores=4)
    for case in memory.cases(target):
        inputs = case.make_inputs(0)
        moved = case.moved_bytes(case.module(), inputs, [case.module()(*inputs)])
        repeated = 0.8 if case.name == "embedding" else 1.0  # rows asked for twice are read once
        assert moved >= repeated * 4 * (1 << 17), case.name


def test_inputs_and_weights_depend_on_the_seed_alone() -> None:
    (first, a), (again, b) = (registry.load("linear_128x768x3072", 3) for _ in range(2))
    assert torch.equal(a[0], b[0])
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(a[0], registry.load_inputs("linear_128x768x3072", 4)[0])


def test_the_best_peer_is_the_fastest_other_that_works() -> None:
    m = measured(
        result("eager", 40, 40, 40),
        result("ort", 20, 30, 20),
        result("openvino", 1, 1, 1, failure="no such operator\nand more"),
        result("nestor", 10, 10, 40, externs=2),
    )
    assert m.best is not None and m.best.name == "ort"
    assert m.versus_best is not None
    assert (m.versus_best.median, m.versus_best.low) == (2.0, 1.25)
    row = tables.speed_table([m], ["eager", "ort", "openvino", "nestor"]).rows[0]
    assert row[1] == "ort 20 ns"
    assert row[4] == "failed"
    assert row[6].startswith("2.00× (1.25–2.50) 2 extern")
    assert tables.summary([m])["externs"] == {"gemm_1024": 2}


def test_the_limit_is_the_slower_of_work_and_traffic() -> None:
    compute = measured(result("nestor", 4e6), moved=1000)
    assert (compute.limit_seconds, compute.limit_by) == (2e-3, "compute")
    assert compute.share_of_limit(compute.result.peers[0]) == pytest.approx(0.5)
    assert compute.flops(compute.result.peers[0]) == pytest.approx(0.5e9)
    traffic = measured(result("nestor", 4e6), moved=4_000_000)
    assert (traffic.limit_seconds, traffic.limit_by) == (4e-3, "memory")


def test_summary_counts_wins_and_losses() -> None:
    speeds = {"gemm_1024": 20, "softmax": 5, "argmax": 9}
    found = tables.summary(
        [measured(result("ort", ns), result("nestor", 10), name=n) for n, ns in speeds.items()]
    )
    assert found["at_least_best"] == 1
    assert found["behind"] == ["softmax"]
    assert found["geometric_mean"] == pytest.approx((2 * 0.5 * 0.9) ** (1 / 3))


def test_names_groups_and_patterns_choose() -> None:
    assert [c.name for c in registry.choose(["softmax", "gemm*"])] == ["gemm_1024", "softmax"]
    assert {c.group for c in registry.choose(["attention"])} == {"attention"}
    assert len(registry.choose([])) == len(registry.OPS)
    with pytest.raises(UserError, match="no operator 'gem'"):
        registry.choose(["gem"])


def test_only_a_whole_run_replaces_the_figures() -> None:
    whole = main._arguments([])
    peers = main.PEERS.split(",")
    assert main._output(whole, len(registry.OPS), peers) == main.RESULTS / "ops.md"
    assert main._output(whole, 1, peers) is None
    assert main._output(whole, len(registry.OPS), peers[:2]) is None


def test_command_writes_a_table_and_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real run of one small operator by eager alone."""
    monkeypatch.setattr(main, "peak_meter", lambda *a, **k: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the command sets it; this puts it back
    line = ["conv3x3_512_7", "--peers", "eager", "--rounds", "1", "--json"]
    given = main._arguments([*line, "--output", str(tmp_path / "out.md")])
    assert main.run(given) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["results"][0]["verdicts"]["eager"]["correct"]
    assert printed["results"][0]["versus_best"] is None
    assert "| conv3x3_512_7 | eager " in (tmp_path / "out.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == printed


def test_a_run_goes_on_from_the_results_of_an_earlier_one(tmp_path: Path) -> None:
    names, markdown = ["eager", "nestor"], tmp_path / "ops.md"
    given = [measured(result("eager", 2e6, 2e6), result("nestor", 1e6, 1e6), moved=8)]
    tables.write_results(given, names, {"cpu": "x"}, markdown)
    (found,) = tables.read_results(markdown.with_suffix(".json"), names, MACHINE)
    assert found.case is registry.OPS["gemm_1024"]
    assert (found.result, found.moved_bytes) == (given[0].result, 8)
    with pytest.raises(UserError, match="leave out --resume"):
        tables.read_results(markdown.with_suffix(".json"), ["eager"], MACHINE)
