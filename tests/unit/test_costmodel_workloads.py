"""Drawn workloads: reproducible, bounded, varied; what they say is what their family computes."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.cost_model.kernel_facts import kernel_facts
from nestor.cost_model.roofline import roofline
from nestor.cost_model.workload_texts import FAMILIES, Draw, conv2d, conv_transposed
from nestor.cost_model.workloads import (
    COPY_FAMILY,
    MAX_ROOFLINE_NS,
    draw_program,
    generate_workloads,
)
from nestor.errors import UserError
from nestor.ir.interpreter import run_program
from nestor.ir.parser import parse_program
from nestor.ir.verifier import verify_program
from nestor.target.cpu import CpuTarget

TARGET = CpuTarget(
    cpu="x86-64-v4", features=(), vector_bits=512, vector_registers=32, fma_bits_per_cycle=512,
    cores=2,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_programs_are_valid_small_and_the_same_again(family: str) -> None:
    seen = set()
    for number in range(5):
        program = draw_program(family, 7, number)
        verify_program(program)
        assert roofline(kernel_facts(program), TARGET, 1).ns <= 2 * MAX_ROOFLINE_NS
        assert draw_program(family, 7, number) == program
        seen.add(program)
    assert len(seen) >= 4
    assert draw_program(family, 8, 0) not in seen


def test_kernels_of_all_families_come_out() -> None:
    made = list(generate_workloads(120, 1, TARGET))
    families = {w.family for w in made}
    assert len({w.fused.kernel for w in made}) == len(made) == 120
    assert set(FAMILIES) <= families | {COPY_FAMILY}
    assert sum(w.family == COPY_FAMILY for w in made) < 30
    again = list(generate_workloads(120, 1, TARGET))
    assert [w.fused.kernel for w in again] == [w.fused.kernel for w in made]


def test_chosen_families_only() -> None:
    made = list(generate_workloads(4, 1, TARGET, ["matmul", "stencil"]))
    assert {w.family for w in made} == {"matmul", "stencil"}


def test_unknown_families_are_refused() -> None:
    with pytest.raises(UserError, match="no family"):
        draw_program("fft", 0, 0)


class Small(Draw):
    """Draws the least of every list, so that the interpreter is quick."""

    def size(self, options: object, odd: float = 0.2) -> int:
        return min(5, *options)  # type: ignore[misc]


def run(text: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    program = parse_program(text)
    rng = np.random.default_rng(0)
    arrays = {
        t.name: rng.normal(size=[e.const for e in t.shape]).astype(np.float32)
        for t in program.by_role("input", "parameter")
    }
    out = run_program(program, dict(arrays))
    return arrays, next(np.asarray(out[t.name]) for t in program.by_role("output"))


def test_transposed_convolutions_are_the_adjoint_of_strided_ones() -> None:
    """⟨W*x, y⟩ counted over the forward windows: x[2y - 1 + …] has the taps of the definition."""
    text = conv_transposed(Small("a"))
    arrays, got = run(text)
    x, w = arrays["X"], arrays["W"]
    taps = w.shape[-1]
    want = np.zeros_like(got, dtype=np.float64)
    for r in range(taps):
        for s in range(taps):
            for y in range(x.shape[2]):
                for z in range(x.shape[3]):
                    a, b = 2 * y + r - 1, 2 * z + s - 1
                    if 0 <= a < got.shape[2] and 0 <= b < got.shape[3]:
                        want[:, :, a, b] += np.einsum("nc,co->no", x[:, :, y, z], w[:, :, r, s])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_convolutions_keep_the_image_under_stride_one() -> None:
    for number in range(20):
        arrays, got = run(conv2d(Small(str(number))))
        assert got.shape[0] == arrays["X"].shape[0] and got.shape[1] == arrays["W"].shape[0]
        assert np.isfinite(got).all()
