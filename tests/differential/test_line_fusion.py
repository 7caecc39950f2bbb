"""Products that take lines of a depthwise convolution: kernels, proofs, and native code."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest

from nestor.ir import parse_program
from nestor.ir.loopnest import Alloc, LoopNest, Node, node_children
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
class Pair:
    """A depthwise convolution of ``channels`` with a border already there, and its product."""

    channels: int = 40
    out: int = 24
    batch: int = 1
    height: int = 16
    width: int = 16
    taps: int = 3
    step: int = 1
    act: bool = True
    residual: bool = False
    read_twice: bool = False

    def program(self) -> Program:
        """As the pipeline leaves an inverted residual: channels last, the first half's border
        written by whoever made ``x``."""
        c, n, b, h, w, k = (
            self.channels, self.out, self.batch, self.height, self.width, self.taps
        )  # fmt: skip
        high, wide = (h - 1) * self.step + k, (w - 1) * self.step + k
        last = "layout [d0, d2, d3, d1] of"
        over = f"0 <= b < {b}, 0 <= y < {h}, 0 <= x < {w}"
        act = f"""
  statement A over {{ {over}, 0 <= c < {c} }}
    m[b, c, y, x] = min(max(d[b, c, y, x] + bd[c], 0.0:f32), 6.0:f32)"""
        twice = f"""
  statement T over {{ {over}, 0 <= c < {c} }}
    twice[b, c, y, x] = m[b, c, y, x] * 2.0:f32"""
        middle = "m" if self.act else "d"
        old = " + z[b, n, y, x]" if self.residual else ""
        text = f"""program pair {{
  input x: f32[{b}, {c}, {high}, {wide}] {last} [{b}, {high}, {wide}, {c}]
  parameter wd: f32[{c}, {k}, {k}]
  parameter bd: f32[{c}]
  temp d: f32[{b}, {c}, {h}, {w}] {last} [{b}, {h}, {w}, {c}]
  temp m: f32[{b}, {c}, {h}, {w}] {last} [{b}, {h}, {w}, {c}]
  parameter wp: f32[{n}, {c}]
  parameter bp: f32[{n}]
  temp p: f32[{b}, {n}, {h}, {w}] {last} [{b}, {h}, {w}, {n}]
  input z: f32[{b}, {n}, {h}, {w}] {last} [{b}, {h}, {w}, {n}]
  output twice: f32[{b}, {c}, {h}, {w}] {last} [{b}, {h}, {w}, {c}]
  output r: f32[{b}, {n}, {h}, {w}] {last} [{b}, {h}, {w}, {n}]

  statement D over {{ {over}, 0 <= c < {c}, 0 <= i < {k}, 0 <= j < {k} }}
    reduce sum(f32) over i, j
    s0 <- x[b, c, {self.step}*y + i, {self.step}*x + j] * wd[c, i, j]
    d[b, c, y, x] = s0{act if self.act else ""}
  statement P over {{ {over}, 0 <= n < {n}, 0 <= c < {c} }}
    reduce sum(f32) over c
    s0 <- {middle}[b, c, y, x] * wp[n, c]
    p[b, n, y, x] = s0
  statement R over {{ {over}, 0 <= n < {n} }}
    r[b, n, y, x] = p[b, n, y, x] + bp[n]{old}{twice if self.read_twice else ""}
}}"""
        return parse_program(text)

    def expected(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """``r`` in double precision."""
        a = {name: v.astype(np.float64) for name, v in arrays.items()}
        windows = np.lib.stride_tricks.sliding_window_view(a["x"], (self.taps, self.taps), (2, 3))
        windows = windows[:, :, :: self.step, :: self.step]
        middle = np.einsum("bcyxij,cij->bcyx", windows, a["wd"])
        if self.act:
            middle = np.clip(middle + a["bd"][None, :, None, None], 0, 6)
        result = np.einsum("bcyx,nc->bnyx", middle, a["wp"]) + a["bp"][None, :, None, None]
        return result + a["z"] if self.residual else result


def parts_of(pair: Pair, l2_bytes: int = 1 << 20, cores: int = 2) -> list[FusedKernel]:
    parts = partition_program(pair.program(), l2_bytes=l2_bytes, cores=cores).parts
    kernels = [p for p in parts if isinstance(p, FusedKernel)]
    assert len(kernels) == len(parts)
    return kernels


def proved_nest(part: FusedKernel, level: str = "avx512") -> LoopNest:
    target = parse_target(level)
    unit = VectorUnit(target.vector_bits, target.vector_registers)
    nest = apply_schedule(part.kernel, default_schedule(part, unit))
    check_nest(part.kernel, nest)
    return nest


def check_result(pair: Pair) -> None:
    """One kernel, proved, and right on both instruction sets with one thread and with two."""
    (part,) = parts_of(pair)
    rng = np.random.default_rng(pair.channels)
    for level in LEVELS:
        nest = proved_nest(part, level)
        native = NativeNest(nest, parse_target(level))
        shapes = {t.name: tuple(e.const for e in t.shape) for t in nest.tensors}
        arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        for name in ("x", "wd", "bd", "wp", "bp", "z"):
            arrays.setdefault(name, np.zeros(1, np.float32))
        want = pair.expected(arrays)
        for threads in (1, 2):
            got = {n: a.copy() for n, a in arrays.items()}
            assert native.run(got, threads=threads) == 0
            np.testing.assert_allclose(got["r"], want, rtol=1e-5, atol=5e-7 * np.abs(want).max())


@pytest.mark.parametrize(
    "pair",
    [
        Pair(),
        Pair(step=2),
        Pair(taps=5, residual=True),
        Pair(taps=5, step=2, width=13),
        Pair(channels=37, out=19, batch=3, height=8, width=7),
        Pair(channels=96, out=100, height=10, width=30, act=False),
        Pair(channels=600, out=48, height=8, width=7, residual=True),
    ],
    ids=str,
)
def test_results_are_those_of_float64(pair: Pair) -> None:
    check_result(pair)


@pytest.mark.parametrize("seed", range(8))
def test_results_of_random_shapes(seed: int) -> None:
    chance = random.Random(seed)
    check_result(
        Pair(
            channels=chance.randrange(17, 140),
            out=chance.randrange(9, 90),
            batch=chance.randrange(1, 4) * 2,
            height=chance.randrange(8, 20),
            width=chance.randrange(5, 40),
            taps=chance.choice((3, 5)),
            step=chance.choice((1, 2)),
            act=chance.random() < 0.8,
            residual=chance.random() < 0.5,
        )
    )


def scopes_of(node: Node) -> dict[str, str]:
    """What each buffer of a nest holds, and where it is."""
    found: dict[str, str] = {}
    if isinstance(node, Alloc):
        found |= {str(b.holds): b.scope for b in node.buffers}
    for child in node_children(node):
        found |= scopes_of(child)
    return found


def test_a_line_stays_in_a_local_buffer() -> None:
    pair = Pair(channels=40, width=14)
    (part,) = parts_of(pair)
    nest = proved_nest(part)
    scopes = scopes_of(nest.body)
    assert scopes["m"] == "local"
    assert scopes["d"] == scopes["p"] == "register"
    assert {"d", "m", "p"}.isdisjoint(t.name for t in nest.tensors)


@pytest.mark.parametrize(
    ("pair", "l2_bytes", "cores"),
    [
        (Pair(), 1 << 12, 2),  # the weights would be read from memory for every line
        (Pair(height=7), 1 << 20, 2),  # one core of two has four lines of seven
        (Pair(height=14), 1 << 20, 4),  # three cores have four lines, one has two
        (Pair(width=500), 1 << 20, 2),  # a line of 80 KB
        (Pair(read_twice=True), 1 << 20, 2),  # the results go to memory anyway
    ],
    ids=["weights", "few lines", "uneven lines", "long lines", "other readers"],
)
def test_what_gains_nothing_stays_apart(pair: Pair, l2_bytes: int, cores: int) -> None:
    for part in parts_of(pair, l2_bytes, cores):
        names = {s.name for s in part.kernel.statements}
        assert not {"D", "P"} <= names


def test_two_images_of_seven_lines_keep_two_cores_busy() -> None:
    assert len(parts_of(Pair(height=7, batch=2))) == 1
    assert len(parts_of(replace(Pair(height=7), batch=1))) > 1
