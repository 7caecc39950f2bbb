"""Tuning on a Ray cluster: two nodes, a lost worker, workers that do not fit."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nestor.autotune.measuring import Measurer
from nestor.autotune.options import TuneOptions
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.ray_pool import ClusterWarning, RayPool
from nestor.autotune.records import Records, TargetKey
from nestor.autotune.tuner import Progress, Tuner, Tuning
from nestor.config import Config
from nestor.errors import UserError
from nestor.target.cpu import host_target
from tests.faults.kill_tuning import model
from tests.helpers.record_samples import TARGET

pytest.importorskip("ray", reason="ray is not installed: no cluster is tested")

QUICK = PairPolicy(least=2, most=2, seconds=0.01, batch=2)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes of two cores each; both are this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    about = {"num_cpus": 2, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**about, "include_dashboard": False})
    cluster.add_node(**about)
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def pool(address: str, tmp_path: Path) -> Iterator[RayPool]:
    made = make_pool(address, tmp_path)
    yield made
    made.close()


def make_pool(address: str, folder: Path, **changes: Any) -> RayPool:
    def local() -> Measurer:
        config = Config.load(cache_dir=folder, workers=1)
        return Measurer(host_target(), threads=1, config=config, policy=QUICK, sample_seconds=2e-5)

    given: dict[str, Any] = {
        "target": "native",
        "key": TargetKey.of(host_target()),
        "threads": 1,
        "local": local,
        "policy": QUICK,
        "sample_seconds": 2e-5,
        "one_per_machine": False,
    }
    return RayPool(address, **{**given, **changes})


def tune(
    pool: RayPool, folder: Path, trials: int, report: Callable[[Progress], None] = lambda p: None
) -> Tuning:
    """Tune four kernels; what records keep must be what the run says."""
    options = TuneOptions(trials=trials, strategy="random")
    with Records.open(folder / "records.db", strict=True) as records:
        tuning = Tuner.of_model(model(), pool, records, options, report=report).run()
        kept = [r for t in tuning.tasks for r in records.history(t.key.digest)]
        searched = [r.trial for r in kept if r.strategy != "confirmed"]
        assert sorted(searched) == list(range(trials))
        assert records.verify().is_sound
    assert tuning.trials == sum(tuning.statuses.values()) == trials
    return tuning


def test_two_nodes_measure(pool: RayPool, tmp_path: Path) -> None:
    assert pool.slots == 2
    tuning = tune(pool, tmp_path, 32)
    assert tuning.statuses["ok"] > 16
    assert all(worker.batches >= 1 for worker in pool.workers)
    assert all(t.ratio <= 1 for t in tuning.tasks)


def test_lost_workers_cost_no_trial(pool: RayPool, tmp_path: Path) -> None:
    """One dies while it measures, later the other: then this machine goes on."""
    import ray

    killed: list[str] = []

    def report(progress: Progress) -> None:
        # That one was lost is known a little later.
        usable = [w for w in pool.workers if not w.refused and w.node not in killed]
        busy = [w for w in usable if w.is_busy]
        if progress.phase == "searching" and usable and len(killed) * 16 <= progress.trials:
            victim = (busy or usable)[0]
            killed.append(victim.node)
            os.kill(pids[victim.node], signal.SIGKILL)

    pids = {w.node: ray.get(w.actor.pid.remote()) for w in pool.workers}

    with pytest.warns(ClusterWarning) as told:
        tune(pool, tmp_path, 48, report)
    assert len(killed) == 2
    said = [str(t.message) for t in told if issubclass(t.category, ClusterWarning)]
    assert len(said) == 2 and all("lost: " in text for text in said)
    assert "no worker is left, so this machine measures" in said[1]
    assert pool.slots == 1


def test_two_nodes_of_one_machine_do_not_disturb_each_other(address: str, tmp_path: Path) -> None:
    with pytest.warns(ClusterWarning, match="another node of the same machine measures"):
        pool = make_pool(address, tmp_path, one_per_machine=True)
    try:
        assert pool.slots == 1
    finally:
        pool.close()


def test_machines_of_another_kind_are_refused_by_name(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no machine to measure on") as caught:
        make_pool(address, tmp_path, key=TARGET)
    text = str(caught.value)
    assert text.count("another kind of machine: ") == 2
    assert f"target cores is {host_target().cores} there and 4 here" in text


def test_from_the_command_line(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from nestor.cli import main

    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.LayerNorm(100).eval(), (torch.randn(5, 100),)\n"
    )
    monkeypatch.setenv("NESTOR_CACHE_DIR", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClusterWarning)  # two nodes, one machine
        words = ["tune", f"{file}:make", "--trials", "6", "--threads", "1", "--ray", address]
        assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["trials"] == sum(told["statuses"].values())


@pytest.mark.parametrize("where", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999999"])
def test_nobody_at_the_address(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=f"no Ray cluster answers at '{where}'"):
        make_pool(where, tmp_path)


def test_without_ray_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'nestor\[ray\]'"):
        make_pool("auto", tmp_path)
