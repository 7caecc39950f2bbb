"""Kernels of several kinds through the whole of measuring: results agree, pairs are taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nestor.autotune.measuring import Candidate, Limits, Measurer
from nestor.autotune.pairing import PairPolicy
from nestor.config import Config
from nestor.ir.parser import parse_program
from nestor.ir.program import Program
from nestor.target.cpu import host_target
from tests.helpers import ir_programs, measured

POLICY = PairPolicy(seconds=0.02, most=7)


@pytest.fixture(scope="module", params=["warm", "cold"])
def measurer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Measurer]:
    config = Config.load(cache_dir=tmp_path_factory.mktemp("cache"))
    with Measurer(
        host_target(),
        threads=2,
        config=config,
        cache=request.param,
        policy=POLICY,
        sample_seconds=1e-4,
    ) as made:
        yield made


KERNELS: dict[str, tuple[Program, dict[str, int]]] = {
    "gemm": (ir_programs.matmul(37, 70, 65), {}),
    "symbolic gemm": (ir_programs.matmul("N", 48, 33), {"N": 29}),
    "softmax": (ir_programs.softmax(12, 100), {}),
    "depthwise": (measured.depthwise(), {}),
    "convolution": (ir_programs.conv2d(1, 8, 16, 10, 3, 1, 1), {}),
    "gather": (ir_programs.embedding(30, 50, 20), {}),
    "scatter": (ir_programs.scatter_add(40, 9, 20), {}),
    "argmax": (ir_programs.argmax(9, 70), {}),
    "attention": (ir_programs.attention(9, 20, 16), {}),
    "cumsum": (ir_programs.cumsum(5, 40), {}),
    "bf16": (ir_programs.half_relu(100), {}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_default_schedules_are_right_and_timed(measurer: Measurer, name: str) -> None:
    """With vectors of two widths, whose weights have different layouts, and as written."""
    made, sizes = KERNELS[name]
    wide = measured.default(made)
    names = {s.name for s in wide.kernel.symbols}
    values = dict(zip(sorted(names), sizes.values()))
    narrow = measured.default(made, bits=256, registers=16)
    plain = replace(wide, schedule=())
    found = measurer.measure([wide, narrow, plain], wide, sizes=values)
    assert [m.status for m in found] == ["ok"] * 3, [m.detail for m in found]
    for m in found:
        assert all(c > 0 and r > 0 for c, r in m.samples_ns)
        assert set(m.seconds) == {"compile", "check", "run"}


def test_the_reference_as_large_kernels_have_it(tmp_path: object) -> None:
    """Results of the reference's code count where the interpreter would take too long."""
    made = measured.default(ir_programs.matmul(40, 64, 50))
    config = Config.load(cache_dir=tmp_path)
    limits = Limits(interpreted=10)
    with Measurer(host_target(), config=config, limits=limits, policy=POLICY) as one:
        found = one.measure([replace(made, schedule=())], made)
        assert [m.status for m in found] == ["ok"]
        confirmed = one.confirm(made, made, policy=POLICY)
        assert confirmed.agrees
        assert confirmed.ratio is not None
        assert confirmed.null is not None
        assert len(confirmed.measurement.samples_ns) >= 2
        assert confirmed.seeds == (1, 2)


PARTLY = """
program partly {
  input X: f32[9, 70]
  output V: f32[12]
  output I: i64[12]
  statement S0 over { 0 <= i < 9, 0 <= k < 70 }
    reduce argmax(f32) over k
    s0 <- X[i, k]
    s1 <- index(k)
    V[i + 2] = s0
    I[i + 2] = s1
}
"""


@pytest.mark.parametrize("interpreted", [10.0, 1e9])
def test_what_a_kernel_leaves_is_no_result(tmp_path: object, interpreted: float) -> None:
    """Another kernel writes the rest of the tensors, of floats and of integers."""
    made = measured.default(parse_program(PARTLY))
    config = Config.load(cache_dir=tmp_path)
    limits = Limits(interpreted=interpreted)
    with Measurer(host_target(), config=config, limits=limits, policy=POLICY) as one:
        found = one.measure([made, replace(made, schedule=())], made)
    assert [m.status for m in found] == ["ok", "ok"], [m.detail for m in found]


def test_a_race_orders_all_that_work(tmp_path: object) -> None:
    made = measured.default(ir_programs.matmul(40, 64, 50))
    config = Config.load(cache_dir=tmp_path)
    candidates = [
        replace(made, schedule=()),
        made,
        measured.default(ir_programs.matmul(40, 64, 50), 256, 16),
    ]
    with Measurer(host_target(), config=config, sample_seconds=1e-4) as one:
        found = one.race(candidates, made)
    assert sorted(found.order) == [0, 1, 2]
    assert all(m.status == "ok" and m.samples_ns for m in found.measurements)


def test_measuring_needs_no_torch() -> None:
    code = (
        "import sys, nestor.autotune.measuring, nestor.autotune.measure_worker\n"
        "import nestor.autotune.compile_candidates\n"
        "assert not {'torch', 'islpy', 'llvmlite'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_candidates_are_hashable_by_what_they_are() -> None:
    one = measured.default(ir_programs.matmul(8, 8, 8))
    assert one == Candidate(kernel=one.kernel, schedule=one.schedule)
