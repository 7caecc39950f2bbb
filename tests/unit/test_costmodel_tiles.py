"""Whole and smaller tiles, lines that push each other out, chains that hide in the next one's."""

from __future__ import annotations

from math import prod

import pytest

from nestor.cost_model.features import KernelFeatures
from nestor.cost_model.kernel_facts import kernel_facts
from nestor.cost_model.loop_structure import loop_structure
from nestor.cost_model.statement_profile import (
    StatementProfile,
    profile_statement,
    thrashing_bytes,
)
from nestor.cost_model.tile_parts import tile_parts
from nestor.ir.parser import parse_program
from nestor.ir.schedule import Accumulate, Reorder, Schedule, Tile, Unroll, Vectorize
from nestor.target.cpu import CpuTarget
from tests.unit.test_costmodel_features import TARGET

GEMM = """
program kernel {{
  input t0: f32[{m}, {pitch}]
  input t1: f32[{k}, {n}]
  output t2: f32[{m}, {n}]

  statement S0 over {{ 0 <= i0 < {m}, 0 <= i1 < {n}, 0 <= i2 < {k} }}
    reduce sum(f32) over i2
    s0 <- t0[i0, i2] * t1[i2, i1]
    t2[i0, i1] = s0
}}
"""


def gemm(m: int, n: int, k: int, pitch: int | None = None) -> str:
    return GEMM.format(m=m, n=n, k=k, pitch=pitch or k)


def tiled(rows: int, vectors: int) -> Schedule:
    """A register tile of so many rows and vectors of 16."""
    return (
        Tile(loop="S0.i1", size=16),
        Tile(loop="S0.i1.o", size=vectors),
        Tile(loop="S0.i0", size=rows),
        Reorder(
            statement="S0",
            loops=("S0.i0.o", "S0.i1.o.o", "S0.i2", "S0.i0.i", "S0.i1.o.i", "S0.i1.i"),
        ),
        Unroll(loop="S0.i0.i"),
        Unroll(loop="S0.i1.o.i"),
        Vectorize(loop="S0.i1.i"),
        Accumulate(statement="S0", scope="register"),
    )


def profile(text: str, schedule: Schedule, target: CpuTarget = TARGET) -> StatementProfile:
    facts = kernel_facts(parse_program(text))
    structure = loop_structure(facts, schedule)
    return profile_statement(facts, structure, structure.statements[0], target)


def shape(part: StatementProfile) -> tuple[int, ...]:
    return tuple(x.trips for x in part.levels[part.body :] if x.kind == "unroll")


def test_a_range_is_taken_apart_into_whole_tiles_and_the_rest() -> None:
    whole = profile(gemm(20, 112, 64), tiled(8, 4))
    parts = {shape(p): p.bodies for p in tile_parts(whole)}
    # 20 rows: two of 8 and one of 4; 7 vectors: one of 4 and one of 3.
    assert parts == {(8, 4): 2 * 64, (8, 3): 2 * 64, (4, 4): 64, (4, 3): 64}
    assert sum(p.bodies * p.body_ops for p in tile_parts(whole)) == pytest.approx(
        whole.bodies * whole.body_ops
    )
    assert sum(p.bodies * prod(shape(p)) for p in tile_parts(whole)) == 20 * 7 * 64


def test_tiles_that_divide_stay_together() -> None:
    whole = profile(gemm(24, 128, 64), tiled(8, 4))
    assert list(tile_parts(whole)) == [whole]
    fewer = profile(gemm(3, 32, 64), tiled(8, 4))
    assert len(list(tile_parts(fewer))) == 1


def test_small_tiles_wait_for_their_sums() -> None:
    parts = {shape(p): p for p in tile_parts(profile(gemm(9, 32, 512), tiled(8, 2)))}
    small, large = parts[1, 2], parts[8, 2]
    assert small.accumulators == 2
    assert small.latency_slots() > small.slots
    assert large.latency_slots() < large.slots


@pytest.mark.parametrize(
    ("rows", "pitch", "is_thrashing"),
    [(4, 1024, False), (24, 1024, True), (24, 1040, False), (24, 512, True), (16, 512, False)],
)
def test_rows_a_page_apart_share_a_set(rows: int, pitch: int, is_thrashing: bool) -> None:
    p = profile(gemm(48, 64, 256, pitch), tiled(rows, 1))
    lost = thrashing_bytes(p, TARGET)
    assert (lost > 0) == is_thrashing
    if is_thrashing:
        assert lost == 64 * rows * p.bodies


def test_short_chains_hide_in_the_next() -> None:
    """One sum after the other: a long one waits for itself, of short ones several are under way."""

    def waits(k: int) -> float:
        values = KernelFeatures(parse_program(gemm(64, 64, k)), TARGET, 1).describe(tiled(1, 1))
        return values["core"] - values["compute"]

    assert waits(8) < waits(32) < waits(2048)
