"""How many rows default schedules take side by side: what is shared, near, and waited for."""

from __future__ import annotations

import pytest

from nestor.autotune.space import Space
from nestor.ir.parser import parse_program
from nestor.ir.program import Extern
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import partition_program
from nestor.target.cpu import parse_target
from tests.helpers import ir_programs as programs


def default_of(tensors: str, statement: str, knob: str) -> object:
    made = parse_program(f"program p {{\n {tensors}\n statement {statement}\n}}")
    (part,) = partition_program(made, l2_bytes=1 << 20).parts
    assert not isinstance(part, Extern)
    space = Space(canonicalize_kernel(part)[0], parse_target("avx512"))
    return dict(space.default().point).get(knob)


def stencil(n: int) -> object:
    return default_of(
        f"input A: f32[{n + 2}, {n}]\n output B: f32[{n}, {n}]",
        f"""S over {{ 0 <= i < {n}, 0 <= j < {n} }}
        B[i, j] = A[i, j] + A[i + 1, j] + A[i + 2, j]""",
        "S0.tile",
    )


def sums(rows: int, width: int) -> object:
    return default_of(
        f"input A: f32[{rows}, {width}]\n output B: f32[{rows}]",
        f"""S over {{ 0 <= i < {rows}, 0 <= k < {width} }}
        reduce sum(f32) over k
        s0 <- A[i, k]
        B[i] = s0""",
        "S0.tile",
    )


def test_rows_of_a_stencil_share_what_they_read() -> None:
    assert stencil(256) == (4, 1)
    # From memory, fewer lines at once.
    assert stencil(4096) == (2, 1)


def test_pointwise_rows_share_nothing() -> None:
    shape = "f32[256, 256]"
    tile = default_of(
        f"input A: {shape}\n input b: f32[256]\n output B: {shape}",
        "S over { 0 <= i < 256, 0 <= j < 256 }\n B[i, j] = A[i, j] + b[j]",
        "S0.tile",
    )
    assert tile == (1, 1)


@pytest.mark.parametrize(
    ("rows", "width", "beside"),
    [
        (4096, 64, 4),
        (4096, 20, 4),
        (32, 64, 4),
        (33, 64, 1),
        (5, 64, 1),
        (1 << 20, 64, 1),
        (1 << 20, 20, 4),
        (512, 65536, 1),
    ],
)
def test_short_sums_wait_together(rows: int, width: int, beside: int) -> None:
    """Unless they are few, long, leave some over, or wait for memory anyway."""
    assert sums(rows, width) == (beside, 1)


def test_rows_of_a_softmax() -> None:
    for rows, width, beside in (
        (512, 64, 4),
        (511, 32, 4),
        (511, 256, 1),
        (512, 1024, 1),
        (5, 64, 1),
    ):
        (part,) = partition_program(programs.softmax(rows, width), l2_bytes=1 << 20).parts
        assert not isinstance(part, Extern)
        space = Space(canonicalize_kernel(part)[0], parse_target("avx512"))
        assert dict(space.default().point)["rows"] == beside
