"""Promoted tiles and strided vectors as native code, against the interpreter."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nestor.codegen.llvm.compile import compile_assembly
from nestor.codegen.llvm.emit import emit_kernel
from nestor.ir.loopnest import LoopNest
from nestor.ir.nest_interpreter import run_nest
from nestor.ir.parser import parse_nest
from nestor.ir.program import Program
from nestor.passes.promotion import promote
from nestor.target.cpu import parse_target
from tests.helpers.llvm_native import NativeNest
from tests.helpers.nests import LEVELS
from tests.legality.promoted import PROMOTED


def as_kernel(nest: LoopNest) -> Program:
    """Enough of a kernel for ``promote``."""
    return Program(name=nest.name, symbols=nest.symbols, tensors=nest.tensors)


def update(dtype: str, rows: int, columns: int, n: str, guards: str) -> LoopNest:
    """``A[i, j] -= A[i, k] * A[k, j]`` for the rows and columns from ``n - n % …`` on."""
    tile = f"A[{rows}*io + ii, {columns}*jo + jj]"
    symbols = "(N: 1..)" if n == "N" else ""
    nest = parse_nest(
        f"""\
nest lu{symbols} {{
  inout A: {dtype}[{n}, {n}]
  for io in 0 .. ({n} + {rows - 1 if guards else 0})//{rows} {{
    for jo in 0 .. ({n} + {columns - 1 if guards else 0})//{columns} {{
      for k in 0 .. min({rows}*io, {columns}*jo) {{
        unroll ii in 0 .. {rows} {{ vector jj in 0 .. {columns} {{ {guards}
          point S(k=k, i={rows}*io + ii, j={columns}*jo + jj) {{
            {tile} = {tile} - A[{rows}*io + ii, k] * A[k, {columns}*jo + jj]
          }}
        {"}" if guards else ""} }} }}
      }}
    }}
  }}
}}
"""
    )
    return promote(nest, as_kernel(nest), "A", "k")


def same_bits(
    nest: LoopNest, arrays: dict[str, np.ndarray], n: int, level: str, threads: int = 1
) -> None:
    """Without contraction native code gives the interpreter's bits; with it, close values."""
    symbols = {s.name: n for s in nest.symbols}
    wanted = {k: v.copy() for k, v in arrays.items()}
    run_nest(nest, wanted, symbols)
    for contract in (False, True):
        got = {k: v.copy() for k, v in arrays.items()}
        target = parse_target(level)
        assert (
            NativeNest(nest, target, fp_contract=contract).run(got, symbols, threads=threads) == 0
        )
        for name, value in wanted.items():
            if contract:
                np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("n", ["N", "13"])
def test_tiles_in_registers(dtype: str, n: str, level: str) -> None:
    guards = f"if {n} - 1 - 3*io - ii >= 0, {n} - 1 - 10*jo - jj >= 0 {{"
    nest = update(dtype, 3, 10, n, guards)
    a = np.random.default_rng(0).uniform(-1, 1, (13, 13)).astype(dtype.replace("f", "float"))
    same_bits(nest, {"A": a}, 13, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", PROMOTED)
def test_promoted_kernels(name: str, level: str) -> None:
    kernel, nest = PROMOTED[name]()
    rng = np.random.default_rng(1)
    for n in (1, 6, 7) if kernel.symbols else (1,):
        env = {s.name: n for s in kernel.symbols}
        arrays = {
            t.name: rng.uniform(0.5, 1, [int(d.evaluate(env)) for d in t.shape]).astype("f4")
            for t in kernel.tensors
        }
        for threads in (1, 2):
            same_bits(nest, arrays, n, level, threads)


def inner_loops(assembly: str) -> list[list[str]]:
    """The instructions of each loop of one block: from its label to the jump back to it."""
    found: list[list[str]] = []
    label, code = "", list[str]()
    for line in assembly.splitlines():
        start = re.match(r"(\.\w+):", line)
        if start:
            label, code = start[1], []
        elif line.startswith("\t") and not line.startswith("\t."):
            code.append(line.strip())
            if line.startswith("\tj") and line.split()[-1] == label:
                found.append(code)
                code = []
    return found


@pytest.mark.parametrize(
    ("level", "dtype", "rows", "columns"),
    [("avx512", "f64", 8, 24), ("avx512", "f32", 12, 32), ("avx2", "f64", 4, 12)],
)
@pytest.mark.parametrize("n", ["N", "480"])
def test_one_fused_operation_a_row_and_vector(
    level: str, dtype: str, rows: int, columns: int, n: str
) -> None:
    """The reduced loop of a full tile: nothing but broadcasts, loads of a row, and the FMAs."""
    nest = update(dtype, rows, columns, n, "")
    target = parse_target(level)
    assembly = compile_assembly(emit_kernel(nest, target, function_name="kernel"), target)
    (loop,) = [x for x in inner_loops(assembly) if any("vfnmadd" in i for i in x)]
    lanes = target.lanes(int(dtype[1:]))
    fused = [x for x in loop if x.startswith("vfnmadd")]
    assert len(fused) == rows * columns // lanes
    assert not any("vmovup" in x.split()[0] and x.rstrip().endswith(")") for x in loop)
    assert not any("sp)" in x for x in loop if x.startswith("v"))
    # A run-time row length costs up to one addition a row: too few registers for all pointers.
    assert len(loop) <= len(fused) + columns // lanes + 2 * rows + 8


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", ["N", "19"])
@pytest.mark.parametrize("masked", [False, True])
def test_lanes_at_a_distance(n: str, masked: bool, level: str) -> None:
    """Columns of a row-major array, read and written; an accumulation down a column."""
    guard = f"if {n} - 4 - jj >= 0 {{" if masked else ""
    end = "}" if masked else ""
    symbols = "(N: 16..)" if n == "N" else ""
    nest = parse_nest(
        f"""\
nest columns{symbols} {{
  input A: f32[{n}, {n}]
  inout B: f32[{n}, {n}]
  inout C: f32[{n}, {n}]
  for k in 0 .. {n} - 16 {{
    vector jj in 0 .. 16 {{ {guard}
      point S(k=k, j=jj) {{ B[k, jj] = A[jj, k] * 2.0:f32 }}
    {end} }}
    vector jj in 0 .. 16 {{ {guard}
      point T(k=k, j=jj) {{ C[15 - jj + k, k] = B[k, jj] + A[jj + k, jj] }}
    {end} }}
    vector jj in 0 .. 16 {{ {guard}
      update U(k=k, j=jj) with sum(f32) {{ C[jj, k + 1] = A[jj, 2*k] }}
    {end} }}
  }}
}}
"""
    )
    rng = np.random.default_rng(2)
    arrays = {t.name: rng.standard_normal((19, 19)).astype("f4") for t in nest.tensors}
    same_bits(nest, arrays, 19, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", [0, 3, 17])
@pytest.mark.parametrize("conditions", ["N - k - 1 - jj >= 0", "N - k - 1 - jj >= 0, jj - k >= 0"])
def test_what_no_iteration_reads_is_not_touched(conditions: str, n: int, level: str) -> None:
    """The same element for all lanes, far outside of the tensor where no lane is under the mask."""
    nest = parse_nest(
        f"""\
nest edges(N: 0..20) {{
  input A: f32[8]
  inout B: f32[20, 24]
  for k in 0 .. 20 {{
    vector jj in 0 .. 24 {{ if {conditions} {{
      point S(k=k, j=jj) {{
        B[k, jj] = B[k, jj] * A[4000000000*((k + 19 - N)//20)]EXTRA
      }}
    }} }}
  }}
}}
""".replace("EXTRA", "" if n > 8 else " + A[4000000000*(jj//8)]")
    )
    rng = np.random.default_rng(3)
    arrays = {"A": rng.random(8, "f4"), "B": rng.random((20, 24), "f4")}
    same_bits(nest, arrays, n, level)
