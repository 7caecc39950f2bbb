"""Tuning of loop kernels: what their spaces hold is refused or right, and what is found is kept."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nestor
from benchmarks.polybench import registry
from nestor.autotune.loop_tuning import LoopProblem, loop_task
from nestor.autotune.measure_bench import Bench
from nestor.autotune.measure_native import HELPER_IR, NativeHelper
from nestor.autotune.measuring import Candidate, Limits, Measurer
from nestor.autotune.options import TuneOptions
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.records import Records
from nestor.autotune.space import distinct
from nestor.autotune.tuner import CONFIRMED
from nestor.codegen.llvm import compile_ir
from nestor.config import Config
from nestor.errors import UserError
from nestor.loop_kernel import Kernel

POINTS = 5
KERNELS = ("jacobi-2d", "cholesky", "gramschmidt", "trisolv", "nussinov", "durbin")

SOURCE = """
import nestor

@nestor.kernel(reassociate=True, threads=1)
def product(A: nestor.f64["N", "N"], B: nestor.f64["N", "N"], C: nestor.f64["N", "N"]):
    for i in range(N):
        for j in range(N):
            for k in range(N):
                C[i, j] += A[i, k] * B[k, j]
"""


@nestor.kernel(threads=1)
def doubled(x: nestor.f64["N"]) -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
    for i in range(N):  # type: ignore[name-defined]  # noqa: F821
        x[i] = x[i] * 2.0


def problem_of(kernel: Kernel, arguments: dict[str, Any], config: Config) -> LoopProblem:
    """What ``Kernel.tune`` makes of its arguments."""
    bound = kernel.bind(**arguments)
    native = kernel._variants.untuned(bound.symbols)
    inputs = {n: a.given for n, a in bound.arrays.items()}
    return LoopProblem(
        program=native.program,
        sizes=bound.symbols,
        inputs={**inputs, **bound.scalars},
        schedule=native.compiled.schedule,
        target=native.target,
        threads=native.options.thread_count(config),
        is_small=True,
        reassociate=kernel.reassociate,
        contract=kernel.contract,
    )


@pytest.mark.parametrize("name", KERNELS)
def test_points_are_refused_or_right(name: str, tmp_path: Path) -> None:
    config = Config(cache_dir=tmp_path)
    kernel = registry.kernel(name, reassociate=True, threads=2)
    problem = problem_of(kernel, registry.CASES[name].make_inputs("MINI"), config)
    task = loop_task(problem, TuneOptions(trials=1))
    space, rng = task.strategy.space, random.Random(3)
    assert space.size(200) == 200
    drawn = distinct([space.sample(rng) for _ in range(POINTS)])
    default = Candidate(kernel=task.kernel, schedule=task.default.schedule)
    policy = PairPolicy(least=1, most=1)
    with Measurer(problem.target, threads=2, config=config, limits=Limits(slower=50)) as measurer:
        found = measurer.measure(
            [Candidate(kernel=task.kernel, schedule=c.schedule) for c in drawn],
            default,
            sizes=task.sizes,
            inputs=task.inputs,
            policy=policy,
        )
    ends = [m.status for m in found]
    assert set(ends) <= {"ok", "illegal", "unknown", "timeout"}, [m.detail for m in found]
    assert ends.count("ok") >= 2, [m.detail for m in found]


@pytest.mark.parametrize("name", ["jacobi-1d", "jacobi-2d"])
def test_every_point_means_a_schedule(name: str, tmp_path: Path) -> None:
    config = Config(cache_dir=tmp_path)
    kernel = registry.kernel(name, reassociate=True, threads=2)
    problem = problem_of(kernel, registry.CASES[name].make_inputs("MINI"), config)
    space, rng = loop_task(problem, TuneOptions(trials=1)).strategy.space, random.Random(5)
    point = space.sample(rng).point
    for _ in range(200):
        made = space.mutate(point, rng)
        assert made.schedule
        point = made.point if rng.random() < 0.5 else space.sample(rng).point


def doubling_bench(folder: Path) -> tuple[Bench, LoopProblem]:
    """``doubled`` on 1, 2, …, 1000, as "k"."""
    config = Config(cache_dir=folder)
    given = np.arange(1.0, 1001.0)
    problem = problem_of(doubled, {"x": given}, config)
    native = doubled._variants.untuned({"N": 1000})
    helper = NativeHelper(compile_ir(HELPER_IR, problem.target))

    class Silent:
        def begin(self, arrays: object) -> None: ...

        def end(self) -> None: ...

    bench = Bench(
        problem.program, {"N": 1000}, helper=helper, threads=1, memory_bytes=1 << 30,
        watcher=Silent(),
    )  # fmt: skip
    bench.inputs = {"x": given}
    made = native.compiled
    bench.load("k", made.code, made.function_name, tuple(native._tensors))
    return bench, problem


def test_a_sample_runs_on_what_was_given(tmp_path: Path) -> None:
    """An array that is overwritten is restored: each sample is one call on the caller's values."""
    bench, problem = doubling_bench(tmp_path)
    bench.prepare("k", sample_ns=1.0, cold_bytes=0)
    for _ in range(3):
        bench.sample("k")
    (x,) = (t for t in problem.program.tensors if t.name == "x")
    found = bench._block(x)[0].view.view(np.float64)
    np.testing.assert_array_equal(found, 2 * np.arange(1.0, 1001.0))


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_results_of_a_run_last_until_the_next(
    kept_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where arrays are too large to be kept."""
    monkeypatch.setattr("nestor.autotune.measure_bench.KEPT_FENCES_BYTES", kept_bytes)
    bench, _ = doubling_bench(tmp_path)
    for side in ("start", "end", "start"):
        results, damage = bench.run_fenced("k", side)
        gc.collect()
        np.testing.assert_array_equal(results["x"], 2 * np.arange(1.0, 1001.0))
        assert not damage


def run_elsewhere(folder: Path, size: int) -> str:
    """The schedule that a process of its own runs the kernel with; it must not try any."""
    code = f"""
import numpy as np
from unittest.mock import patch
import loops
A, B, C = (np.random.default_rng(k).standard_normal(({size}, {size})) for k in range(3))
wanted = C + A @ B
with patch("nestor.autotune.measuring.Measurer", side_effect=AssertionError("a trial")):
    loops.product(A, B, C)
np.testing.assert_allclose(C, wanted, rtol=1e-10)
print(loops.product.report().kernels[0].schedule)
"""
    root = Path(nestor.__file__).parents[1]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(folder)]),
        "NESTOR_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_confirmed_is_used_by_later_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loops.py").write_text(SOURCE)
    monkeypatch.setenv("NESTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NESTOR_CACHE", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    import loops  # type: ignore[import-not-found]

    untuned = run_elsewhere(tmp_path, 96)
    arrays = [np.random.default_rng(k).standard_normal((96, 96)) for k in range(3)]
    before = [a.copy() for a in arrays]
    # Times do not decide a test: whatever is right counts as faster.
    monkeypatch.setattr("nestor.autotune.tuner._LEAST_GAIN", -1e9)
    monkeypatch.setattr(
        "nestor.autotune.measuring.Confirmation.is_faster", property(lambda self: self.agrees)
    )
    found = loops.product.tune(*arrays, trials=6, strategy="random", seed=1)
    (task,) = found.tasks
    assert found.trials == 6
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    with Records.open(Config.load()) as records:
        kept = records.history(task.key.digest)
    assert [r.strategy for r in kept].count(CONFIRMED) == 1
    assert "96" in task.key.text
    loops.product(*arrays)
    np.testing.assert_allclose(arrays[2], before[2] + before[0] @ before[1], rtol=1e-10)
    if task.ratio < 1:  # else the default is the best, and stays
        assert run_elsewhere(tmp_path, 96) != untuned
    assert run_elsewhere(tmp_path, 95) == untuned


def test_budgets_and_strategies_that_there_cannot_be() -> None:
    x = np.ones(10)
    with pytest.raises(UserError, match="no strategy 'luck'"):
        doubled.tune(x, strategy="luck")
    with pytest.raises(UserError, match="0 trials"):
        doubled.tune(x, trials=0)
    with pytest.raises(UserError, match="no span of time"):
        doubled.tune(x, seconds="soon")
