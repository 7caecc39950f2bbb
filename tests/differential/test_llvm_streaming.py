"""Stores past the caches: the same results whatever the outputs' alignment and the sizes."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from nestor.codegen.llvm import parallel
from nestor.codegen.llvm.streaming import depends_on_caches, stream_limit
from nestor.ir.interpreter import run_program
from nestor.ir.parser import parse_program
from nestor.ir.program import Program
from nestor.passes.default_schedule import default_schedule
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.passes.register_tile import VectorUnit
from nestor.target.cpu import CpuTarget, parse_target
from tests.helpers import ir_programs as programs
from tests.helpers.llvm_native import NativeNest, services
from tests.helpers.nests import LEVELS

TRANSPOSE = """
program t(R: 1..) {
  input x: f32[%s, 40]
  output y: f32[40, %s]

  statement S over { 0 <= i < 40, 0 <= j < %s }
    y[i, j] = x[j, i]
}
"""
ADD = """
program add(N: 1..) {
  input a: f32[%s, 32]
  input b: f32[32]
  output c: f32[%s, 32]

  statement S over { 0 <= i < %s, 0 <= j < 32 }
    c[i, j] = a[i, j] + b[j]
}
"""
TWICE = """
program twice() {
  input a: f32[300, 32]
  output c: f32[300, 32]
  output d: f32[300, 32]

  statement S over { 0 <= i < 300, 0 <= j < 32 }
    c[i, j] = a[i, j] * a[i, j]
  statement T over { 0 <= i < 300, 0 <= j < 32 }
    d[i, j] = c[i, j] + 1.0:f32
}
"""


def parsed(text: str, size: str) -> Program:
    text = text.replace("%s", size)
    return parse_program(
        text if size in "NR" else text.replace(f"({'R' if 'R:' in text else 'N'}: 1..)", "()")
    )


PROGRAMS = {
    "add": parsed(ADD, "1000"),
    "add of any size": parsed(ADD, "N"),
    "transpose": parsed(TRANSPOSE, "96"),
    "layer_norm": programs.layer_norm(40, 64),
    "softmax": programs.softmax(40, 80),
    "running sums": programs.cumsum(24, 64),
    "embedding": programs.embedding(50, 10, 48),
    "read again": parse_program(TWICE),
}


PLAIN = {
    "odd rows": programs.softmax(40, 70),
    "odd rows, transposed": parsed(TRANSPOSE, "89"),
    "rows of any size, transposed": parsed(TRANSPOSE, "R"),
}


def small_caches(level: str) -> CpuTarget:
    return replace(parse_target(level), l3_bytes=1024)


def fused(program: Program) -> FusedKernel:
    (part,) = partition_program(program, l2_bytes=1 << 20).parts
    assert isinstance(part, FusedKernel)
    return part


def native(program: Program, target: CpuTarget) -> tuple[Program, NativeNest]:
    part = fused(program)
    unit = VectorUnit(target.vector_bits, target.vector_registers)
    nest = apply_schedule(part.kernel, default_schedule(part, unit))
    check_nest(part.kernel, nest)
    return part.kernel, NativeNest(nest, target)


def placed(value: np.ndarray, offset: int) -> np.ndarray:
    """A copy that starts ``offset`` bytes after a cache line."""
    raw = np.zeros(value.nbytes + 192, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    found = raw[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    found[...] = value
    return found


def call(
    nest: NativeNest, arrays: dict[str, np.ndarray], sizes: dict[str, int], threads: int
) -> None:
    pointers = (ctypes.c_void_p * 8)(*(arrays[t.name].ctypes.data for t in nest.nest.tensors))
    values = (ctypes.c_int64 * 8)(*(sizes[s.name] for s in nest.nest.symbols))
    own = services(threads)
    code = nest.function(
        ctypes.addressof(pointers), ctypes.addressof(values), ctypes.addressof(own)
    )
    assert code == 0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_streamed_outputs_are_right(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "SERIAL_BELOW", 0)
    target = small_caches(level)
    kernel, nest = native(PROGRAMS[name], target)
    assert "!nontemporal" in nest.ir
    assert nest.ir.count("sfence()") >= 2  # the declaration, and at the end of a region
    rng = np.random.default_rng(3)
    for size in (3, 500) if kernel.symbols else (0,):
        sizes = {s.name: size for s in kernel.symbols}
        given: dict[str, np.ndarray] = {}
        for t in nest.nest.tensors:
            shape = [int(e.evaluate(sizes)) for e in t.shape]
            if t.dtype.is_float:
                given[t.name] = rng.standard_normal(shape).astype(np.float32)
            else:
                given[t.name] = rng.integers(0, 10, shape)
        expected = run_program(kernel, {n: a.copy() for n, a in given.items()}, sizes)
        for offset in (0, 4, 32):
            for threads in (1, 2):
                arrays = {n: placed(a, offset // a.itemsize * a.itemsize) for n, a in given.items()}
                call(nest, arrays, sizes, threads)
                for n, want in expected.items():
                    if n in arrays:
                        np.testing.assert_allclose(
                            arrays[n], want, rtol=3e-5, atol=3e-6, err_msg=f"{n} at {offset}"
                        )


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_outputs_without_whole_lines_have_one_version(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "SERIAL_BELOW", 0)
    _, nest = native(PLAIN[name], small_caches(LEVELS[-1]))
    assert "!nontemporal" not in nest.ir
    assert nest.ir.count("define internal void @kernel.region0") == 2  # region and thread


def test_what_the_kernel_reads_again_is_not_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "SERIAL_BELOW", 0)
    _, nest = native(PROGRAMS["read again"], small_caches(LEVELS[0]))
    lines = [x for x in nest.ir.splitlines() if "!nontemporal" in x]
    scopes = {x.split("!alias.scope ")[1].split(",")[0] for x in lines}
    assert len(scopes) == 1  # of ``d`` alone


def test_small_kernels_have_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "SERIAL_BELOW", 0)
    target = parse_target(LEVELS[0])
    _, nest = native(PROGRAMS["add"], target)
    assert "!nontemporal" not in nest.ir
    assert depends_on_caches(PROGRAMS["add"].tensors, target) is None
    assert depends_on_caches(PROGRAMS["add of any size"].tensors, target) == stream_limit(target)
