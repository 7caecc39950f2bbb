"""Features: complete, finite, cheap to compare, and moving the way that the schedule does."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.cost_model.feature_table import FEATURE_NAMES, FEATURES
from nestor.cost_model.features import KernelFeatures, extract_features
from nestor.cost_model.kernel_facts import kernel_facts
from nestor.cost_model.loop_structure import loop_structure
from nestor.cost_model.op_counts import instance_ops
from nestor.cost_model.roofline import roofline
from nestor.cost_model.workload_texts import FAMILIES
from nestor.cost_model.workloads import draw_program, program_kernels
from nestor.errors import UserError
from nestor.ir.parser import parse_program
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import (
    Accumulate,
    Pack,
    Parallel,
    Reorder,
    Schedule,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.passes.default_schedule import default_schedule
from nestor.passes.register_tile import VectorUnit
from nestor.target.cpu import CpuTarget

TARGET = CpuTarget(
    cpu="x86-64-v4", features=(), vector_bits=512, vector_registers=32, fma_bits_per_cycle=512,
    cores=4,
)  # fmt: skip
UNIT = VectorUnit(bits=512, registers=32)

GEMM = """program kernel {
  input A: f32[512, 256]
  parameter B: f32[256, 384]
  output C: f32[512, 384]
  statement S over { 0 <= i < 512, 0 <= j < 384, 0 <= k < 256 }
    reduce sum(f32) over k
    s0 <- A[i, k] * B[k, j]
    C[i, j] = s0
}"""


def gemm_schedule(rows: int, columns: int, *more: Step) -> Schedule:
    return (
        Tile(loop="S.i", size=rows),
        Tile(loop="S.j", size=columns),
        Tile(loop="S.j.i", size=16),
        Reorder(statement="S", loops=("S.i.o", "S.j.o", "S.k", "S.i.i", "S.j.i.o", "S.j.i.i")),
        Unroll(loop="S.i.i"),
        Unroll(loop="S.j.i.o"),
        Vectorize(loop="S.j.i.i"),
        Accumulate(statement="S"),
        *more,
    )


def describe(text: str, schedule: Schedule, threads: int = 1) -> dict[str, float]:
    return KernelFeatures(parse_program(text), TARGET, threads).describe(schedule)


def statement(text: str) -> Statement:
    s = parse_program(text).statements[0]
    assert isinstance(s, Statement)
    return s


def test_names_are_unique_and_explained() -> None:
    assert len(set(FEATURE_NAMES)) == len(FEATURES)
    assert all(f.unit and len(f.meaning) > 5 for f in FEATURES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_every_feature(family: str) -> None:
    for fused in program_kernels(draw_program(family, 3, 0), TARGET):
        for schedule in ((), default_schedule(fused, UNIT)):
            features = KernelFeatures(fused.kernel, TARGET, 2)
            values = features.describe(schedule)
            assert set(FEATURE_NAMES) <= set(values)
            vector = features.extract(schedule)
            assert vector.shape == (len(FEATURES),) and vector.dtype == np.float32
            assert np.isfinite(vector).all()
            again = extract_features(fused.kernel, schedule, TARGET, 2)
            np.testing.assert_array_equal(vector, again)


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_hold_every_instance(family: str) -> None:
    for fused in program_kernels(draw_program(family, 4, 1), TARGET):
        facts = kernel_facts(fused.kernel)
        structure = loop_structure(facts, default_schedule(fused, UNIT))
        for loops in structure.statements:
            total = np.prod([x.count for x in loops.levels])
            box = np.prod(list(facts.statements[loops.name].extents.values()))
            assert total == pytest.approx(box, rel=1e-6)


def test_operations_are_counted_by_kind() -> None:
    ops = instance_ops(statement(GEMM))
    assert (ops.fma, ops.add, ops.mul) == (1, 0, 0)
    text = """program p {
      input X: f32[8]
      output Y: f32[8]
      statement S over { 0 <= i < 8 }
        Y[i] = select(X[i] > 0.0:f32, exp(X[i]) / 3.0:f32, X[i] * 2.0:f32 + 1.0:f32)
    }"""
    ops = instance_ops(statement(text))
    assert (ops.transcendental, ops.div, ops.fma, ops.select) == (1, 1, 1, 2)
    assert ops.flops == 4


def test_accumulators_and_loads_of_a_register_tile() -> None:
    d = describe(GEMM, gemm_schedule(6, 64))
    assert 2 ** d["main_accumulators"] - 1 == pytest.approx(24)
    assert d["main_spilled"] == 0
    assert d["main_loads_per_op"] == pytest.approx((6 + 4) / 24, rel=0.02)
    assert d["main_efficiency"] == pytest.approx(1.0)
    assert (d["main_unit"], d["main_broadcast"]) == (0.5, 0.5)
    assert d["main_inner_reduced"] == 1 and d["main_inner_trip"] == pytest.approx(np.log2(257))


def test_a_tile_beyond_the_registers_is_seen() -> None:
    small, large = describe(GEMM, gemm_schedule(6, 64)), describe(GEMM, gemm_schedule(16, 64))
    assert large["main_pressure"] > 1 > small["main_pressure"]
    assert large["main_spilled"] > 0.4
    assert large["estimate"] > small["estimate"]


def test_chains_of_few_accumulators_wait() -> None:
    one, many = describe(GEMM, gemm_schedule(1, 16)), describe(GEMM, gemm_schedule(6, 64))
    assert one["latency"] > one["compute"] and many["latency"] < many["compute"]


def test_what_is_not_vectorised_costs_lanes() -> None:
    plain = describe(GEMM, ())
    assert plain["main_efficiency"] == 1 / 16
    assert plain["compute"] == pytest.approx(4.0, abs=0.1)
    assert plain["estimate"] > describe(GEMM, gemm_schedule(6, 64))["estimate"] + 2


def test_tails_of_vectors_are_idle_lanes() -> None:
    text = GEMM.replace("384", "392")
    assert describe(text, gemm_schedule(6, 64))["main_efficiency"] == pytest.approx(392 / 400, 0.1)


def test_packing_turns_columns_into_rows() -> None:
    transposed = GEMM.replace("B: f32[256, 384]", "B: f32[384, 256]").replace("B[k, j]", "B[j, k]")
    pack = Pack(tensor="B", order=(0, 1), dims=(0,), blocks=(64,))
    strided = describe(transposed, gemm_schedule(6, 64))
    packed = describe(transposed, gemm_schedule(6, 64, pack))
    assert (strided["main_strided"], packed["main_strided"]) == (0.5, 0.0)
    assert packed["main_unit"] == 0.5 and packed["packed"] > 10 and packed["padding"] == 0
    assert packed["l1_time"] < strided["l1_time"] - 1


def test_packing_pads_what_does_not_divide() -> None:
    pack = Pack(tensor="B", order=(1, 0), dims=(1,), blocks=(80,))
    d = describe(GEMM, gemm_schedule(6, 80, pack))
    assert d["padding"] == pytest.approx(1 - 384 / 400)


def test_traffic_is_at_least_compulsory_and_tiles_lower_it() -> None:
    text = GEMM.replace("512", "2048").replace("384", "4096").replace("256", "2048")
    naive, tiled = describe(text, ()), describe(text, gemm_schedule(8, 64))
    assert naive["l2_reuse"] > tiled["l2_reuse"] > 0
    assert tiled["memory_reuse"] >= 0


def test_parallel_loops_share_the_work() -> None:
    serial = describe(GEMM, gemm_schedule(6, 64), threads=4)
    shared = describe(GEMM, gemm_schedule(6, 64, Parallel(loop="S.i.o")), threads=4)
    assert (serial["serial_share"], shared["serial_share"]) == (1, 0)
    assert serial["imbalance"] == 4  # one thread does everything
    assert shared["imbalance"] == pytest.approx(22 * 4 / (512 / 6))  # the last tile has 2 rows
    assert shared["estimate"] < serial["estimate"] - 1
    assert shared["parallel"] == pytest.approx(np.log2(87)) and shared["regions"] == 1


def test_a_parallel_loop_inside_starts_threads_often() -> None:
    inner = describe(GEMM, gemm_schedule(6, 64, Parallel(loop="S.j.o")), threads=4)
    outer = describe(GEMM, gemm_schedule(6, 64, Parallel(loop="S.i.o")), threads=4)
    assert inner["regions"] > outer["regions"] + 5 and inner["estimate"] > outer["estimate"]


ROWS = """program kernel {
  input X: f32[64, 512]
  output Y: f32[64]
  statement S over { 0 <= i < 64, 0 <= j < 512 }
    reduce sum(f32) over j
    s0 <- X[i, j]
    Y[i] = s0
}"""


def test_split_reductions_have_a_vector_of_states() -> None:
    d = describe(
        ROWS,
        (
            SplitReduction(loop="S.j", lanes=64),
            Reorder(statement="S", loops=("S.i", "S.j.o", "S.j.i")),
            Vectorize(loop="S.j.i"),
            Accumulate(statement="S"),
        ),
    )
    assert d["main_vector_loop_reduced"] == 1
    assert 2 ** d["main_accumulators"] - 1 == pytest.approx(4)
    assert d["main_reduced"] == pytest.approx(np.log2(513))


def test_triangles_count_half() -> None:
    text = """program kernel {
      input A: f32[256, 256]
      output B: f32[256, 256]
      statement S over { 0 <= i < 256, 0 <= j < i + 1 }
        B[i, j] = A[i, j] * 2.0:f32
    }"""
    facts = kernel_facts(parse_program(text)).statements["S"]
    assert facts.instances == pytest.approx(256 * 257 / 2, rel=0.1)
    text = text.replace("j < i + 1 }", "j < 256 : i - j >= 0 }")
    facts = kernel_facts(parse_program(text)).statements["S"]
    assert facts.density == pytest.approx(0.5, abs=0.1)
    values = describe(text, ())
    assert values["main_density"] == facts.density


def test_symbols_take_given_sizes() -> None:
    text = ROWS.replace("kernel {", "kernel(N: 1..4096) {").replace("64", "N")
    program = parse_program(text)
    assert kernel_facts(program, {"N": 100}).statements["S"].instances == 51200
    assert kernel_facts(program).statements["S"].instances > 0


def test_gathers_jump() -> None:
    text = """program kernel {
      input I: i64[64]
      parameter E: f32[10000, 32]
      output Y: f32[64, 32]
      statement S over { 0 <= i < 64, 0 <= j < 32 }
        Y[i, j] = E[I[i], j]
    }"""
    order = Reorder(statement="S", loops=("S.j", "S.i"))
    d = describe(text, (order, Vectorize(loop="S.i")))
    assert d["main_gather"] == pytest.approx(1 / 3)
    # 64 rows of two lines, not the whole table.
    facts = KernelFeatures(parse_program(text), TARGET, 1)
    assert facts.compulsory < 64 * (128 + 128) + 2048


def test_the_roofline_is_a_bound_of_both_kinds() -> None:
    facts = kernel_facts(parse_program(GEMM))
    one, four = roofline(facts, TARGET, 1), roofline(facts, TARGET, 4)
    cycles = 512 * 384 * 256 / 16
    assert one.compute_ns == pytest.approx(cycles / TARGET.ghz)
    assert four.compute_ns == pytest.approx(one.compute_ns / 4)
    assert one.ns == one.compute_ns > one.memory_ns


def test_loops_of_one_iteration_do_not_count() -> None:
    text = GEMM.replace("512, 256", "1, 512, 256").replace("A[i, k]", "A[n, i, k]")
    text = text.replace("512, 384", "1, 512, 384").replace("C[i, j]", "C[n, i, j]")
    text = text.replace("{ 0 <= i", "{ 0 <= n < 1, 0 <= i")
    assert describe(text, ())["main_depth"] == 3


def test_empty_kernels_have_features() -> None:
    for schedule in ((), gemm_schedule(6, 64)):
        values = describe(GEMM.replace("512", "0"), schedule, threads=2)
        assert np.isfinite([values[n] for n in FEATURE_NAMES]).all()
    assert np.isfinite(describe(GEMM.replace("256", "0"), ())["estimate"])


def test_a_step_that_does_not_fit_is_the_users() -> None:
    with pytest.raises(UserError, match="no loop"):
        describe(GEMM, (Tile(loop="S.q", size=4),))


def test_externs_are_refused() -> None:
    text = """program p {
      input X: f32[8]
      output Y: f32[8]
      extern S = "aten.sort"(%X) reads [X] writes [Y]
    }"""
    program: Program = parse_program(text)
    with pytest.raises(UserError, match="extern"):
        kernel_facts(program)
