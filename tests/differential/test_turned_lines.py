"""Products whose results are stored plane by plane: line by line, in one kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from nestor.ir import parse_program
from nestor.ir.program import Program
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral.checker import check_nest
from nestor.passes.register_tile import VectorUnit
from nestor.target.cpu import parse_target
from tests.helpers.llvm_native import NativeNest
from tests.helpers.nests import LEVELS


@dataclass(frozen=True)
class Turned:
    """A convolution made channels last and stored channels first."""

    out: int = 40
    batch: int = 1
    height: int = 16
    width: int = 20
    channels: int = 3
    taps: int = 3
    step: int = 2
    residual: bool = False
    read_twice: bool = False

    def program(self) -> Program:
        """As the pipeline leaves it, the border already there."""
        b, o, h, w, c, k = (
            self.batch, self.out, self.height, self.width, self.channels, self.taps
        )  # fmt: skip
        high, wide = (h - 1) * self.step + k, (w - 1) * self.step + k
        results = f"0 <= n < {b}, 0 <= o < {o}, 0 <= y < {h}, 0 <= x < {w}"
        n = "n" if b > 1 else "0"
        old = " + z[n, o, y, x]" if self.residual else ""
        twice = f"""
  statement T over {{ {results} }}
    twice[n, o, y, x] = t[n, o, y, x] * 2.0:f32"""
        return parse_program(f"""program turned {{
  input x: f32[{b}, {c}, {high}, {wide}]
  parameter w: f32[{o}, {c}, {k}, {k}]
  parameter g: f32[{o}]
  input z: f32[{b}, {o}, {h}, {w}] layout [d0, d2, d3, d1] of [{b}, {h}, {w}, {o}]
  temp t: f32[{b}, {o}, {h}, {w}] layout [d0, d2, d3, d1] of [{b}, {h}, {w}, {o}]
  output y: f32[{b}, {o}, {h}, {w}]
  output twice: f32[{b}, {o}, {h}, {w}]

  statement S over {{ {results}, 0 <= c < {c}, 0 <= r < {k}, 0 <= q < {k} }}
    reduce sum(f32) over c, r, q
    s0 <- x[{n}, c, {self.step}*y + r, {self.step}*x + q] * w[o, c, r, q]
    t[{n}, o, y, x] = s0 + g[o]
  statement Y over {{ {results} }}
    y[n, o, y, x] = max(t[n, o, y, x], 0.0:f32){old}{twice if self.read_twice else ""}
}}""")

    def expected(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """``y`` in double precision."""
        a = {name: v.astype(np.float64) for name, v in arrays.items()}
        windows = np.lib.stride_tricks.sliding_window_view(a["x"], (self.taps, self.taps), (2, 3))
        windows = windows[:, :, :: self.step, :: self.step]
        t = np.einsum("ncyxij,ocij->noyx", windows, a["w"]) + a["g"][None, :, None, None]
        return np.maximum(t, 0) + (a["z"] if self.residual else 0.0)


def parts_of(case: Turned, l2_bytes: int = 1 << 20) -> list[FusedKernel]:
    parts = partition_program(case.program(), l2_bytes=l2_bytes, cores=2).parts
    kernels = [p for p in parts if isinstance(p, FusedKernel)]
    assert len(kernels) == len(parts)
    return kernels


CASES = {
    "one image": Turned(),
    "images": Turned(batch=2),
    "edges": Turned(width=21, out=37, height=18),
    "old values": Turned(residual=True, step=1),
    "long lines": Turned(height=8, width=100, out=64),
    "products of pixels": Turned(taps=1, step=1, channels=20),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(CASES))
def test_lines_are_stored_by_the_kernel_that_makes_them(name: str, level: str) -> None:
    case = CASES[name]
    (part,) = parts_of(case)
    target = parse_target(level)
    unit = VectorUnit(target.vector_bits, target.vector_registers)
    nest = apply_schedule(part.kernel, default_schedule(part, unit))
    check_nest(part.kernel, nest)
    native = NativeNest(nest, target)
    assert "scatter" not in native.ir and "gather" not in native.ir
    rng = np.random.default_rng(5)
    shapes = {t.name: tuple(e.const for e in t.shape) for t in nest.tensors}
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    results = []
    for threads in (1, 2):
        got = {n: a.copy() for n, a in arrays.items()}
        assert native.run(got, threads=threads) == 0
        results.append(got["y"])
    np.testing.assert_allclose(results[0], case.expected(arrays), rtol=2e-5, atol=2e-5)
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize(
    "case, l2_bytes",
    [
        (Turned(read_twice=True), 1 << 20),
        (Turned(height=7), 1 << 20),  # an eighth of two cores would be idle
        (Turned(), 1 << 12),  # the weights leave the cache with every line
        (Turned(width=8), 1 << 20),  # half a cache line
    ],
)
def test_other_results_are_stored_apart(case: Turned, l2_bytes: int) -> None:
    with_lines = [p for p in parts_of(case, l2_bytes) if p.shared and _shares_lines(p)]
    assert not with_lines


def _shares_lines(part: FusedKernel) -> bool:
    """Whether the product and what stores its results share lines, but no pixels."""
    return len(part.shared) == 2 and "y" in part.shared["S"] and "x" not in part.shared["S"]
