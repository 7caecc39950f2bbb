"""Programs printed as C, compiled, and run: bit by bit what the interpreter computes."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks.polybench.native import EXACT, compile_c
from nestor.codegen.c import print_c
from nestor.errors import Unsupported
from nestor.ir.affine import Affine, affine, affine_sum, modulo
from nestor.ir.expr import (
    COMPARE,
    Binary,
    Cast,
    Expr,
    Index,
    Load,
    Select,
    Unary,
    binary,
    const,
)
from nestor.ir.interpreter import run_program
from nestor.ir.numeric import numpy_dtype
from nestor.ir.parser import parse_program
from nestor.ir.printer import print_program
from nestor.ir.program import Domain, IndexRange, Order, Program, Statement, Symbol, Tensor, Write
from nestor.ir.types import DType
from nestor.ir.verifier import verify_program
from tests.helpers import every_operation, ir_programs
from tests.helpers.c_programs import BY_HAND

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")

FLAGS = (
    *EXACT,
    "-fwrapv",
    "-Wall",
    "-Werror",
    "-Wno-unused-function",
    "-Wno-unused-but-set-variable",
)


def run_both(
    program: Program, inputs: dict[str, np.ndarray], symbols: dict[str, int], folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Results of the exact interpreter and of the C program."""
    verify_program(program)
    expected = run_program(program, inputs, symbols, exact=True)
    arrays = {
        t.name: np.array(inputs[t.name])
        if t.name in inputs
        else np.zeros([int(d.evaluate(symbols)) for d in t.shape], numpy_dtype(t.dtype))
        for t in program.tensors
        if t.role != "temp"
    }
    compile_c(program, symbols, folder, command="gcc", flags=FLAGS)(arrays)
    return expected, {name: arrays[name] for name in expected}


def assert_same(
    program: Program, inputs: dict[str, np.ndarray], symbols: dict[str, int], folder: Path
) -> None:
    expected, got = run_both(program, inputs, symbols, folder)
    for name, value in expected.items():
        np.testing.assert_array_equal(
            got[name],
            value,
            err_msg=f"{name}\n{print_program(program)}\n{print_c(program, 'f', symbols=symbols)}",
        )


# ------------------------------------------------------------------------------ random nests


class RandomNest:
    """A random Program of nested loops: shared loops, triangles, strips, guards, wrapped indices.

    Every subscript is taken modulo the size of its dimension, so every access is in bounds.
    """

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.dtype = self.rng.choice([DType.f64, DType.f64, DType.f32, DType.i64, DType.i32])
        self.symbols = {"N": self.rng.randint(1, 7), "M": self.rng.randint(1, 7)}
        self.shapes = {
            name: tuple(affine(self.rng.choice(["N", "M", 4, 5])) for _ in range(rank))
            for name, rank in (("A", 2), ("B", 1), ("C", 3), ("s", 0), ("T", 2), ("t", 0))
        }
        self.statements: list[Statement] = []

    def program(self) -> Program:
        self._sequence((), (), (), ())
        roles = {"T": "temp", "t": "temp", "B": "input"}
        tensors = tuple(
            Tensor(name=n, shape=s, dtype=self.dtype, role=roles.get(n, "inout"))  # type: ignore[arg-type]
            for n, s in self.shapes.items()
        )
        return Program(
            name="random",
            symbols=tuple(Symbol(name=n, lower=1) for n in self.symbols),
            tensors=tensors,
            statements=(*self._initialise(), *self.statements),
        )

    def _initialise(self) -> list[Statement]:
        """Temporaries have a value before anything reads them."""
        first = self.shapes["T"]
        ranges = tuple(
            IndexRange(name=n, lower=affine(0), upper=e) for n, e in zip("ij", first, strict=True)
        )
        return [
            self._statement("clear", ranges, (), (0,), "T", tuple(affine(n) for n in "ij")),
            self._statement("zero", (), (), (1,), "t", ()),
        ]

    def _statement(
        self,
        name: str,
        ranges: tuple[IndexRange, ...],
        constraints: tuple[Affine, ...],
        order: Order,
        target: str,
        indices: tuple[Affine, ...],
        element: Expr | None = None,
    ) -> Statement:
        return Statement(
            name=name,
            domain=Domain(ranges=ranges, constraints=constraints),
            order=order,
            writes=(Write(tensor=target, indices=indices),),
            elements=(element or const(1, self.dtype),),
        )

    def _sequence(
        self,
        order: Order,
        ranges: tuple[IndexRange, ...],
        constraints: tuple[Affine, ...],
        names: tuple[str, ...],
    ) -> None:
        start = 2 if not order else 0
        for position in range(start, start + self.rng.choice([1, 2, 2, 3])):
            here = (*order, position)
            guard = constraints
            if names and self.rng.random() < 0.3:
                guard = (*guard, self._affine(names))
            if len(names) < 3 and self.rng.random() < (0.9 if not names else 0.5):
                name = f"i{len(names)}"
                lower, upper = self._bounds(names)
                more = (self._affine((*names, name)),) if self.rng.random() < 0.3 else ()
                loop = IndexRange(name=name, lower=lower, upper=upper)
                self._sequence((*here, name), (*ranges, loop), (*guard, *more), (*names, name))
            else:
                target = self.rng.choice(["A", "C", "s", "T", "t"])
                self.statements.append(
                    self._statement(
                        f"S{len(self.statements)}",
                        ranges,
                        guard,
                        here,
                        target,
                        self._indices(target, names),
                        self._element(target, names, 3),
                    )
                )

    def _bounds(self, names: tuple[str, ...]) -> tuple[Affine, Affine]:
        rng = self.rng
        lower = affine(rng.choice([0, 0, 1, *names]))
        upper = affine(rng.choice(["N", "M", "N", *names])) + rng.choice([0, 0, 1])
        if rng.random() < 0.2:
            upper = upper // 2 + 1
        return lower, upper

    def _affine(self, names: tuple[str, ...]) -> Affine:
        rng = self.rng
        parts = [(affine(n), rng.choice([-2, -1, -1, 0, 1, 1, 2])) for n in (*names, "N")]
        return affine_sum(parts, rng.randint(-2, 2))

    def _indices(self, tensor: str, names: tuple[str, ...]) -> tuple[Affine, ...]:
        out = []
        for extent in self.shapes[tensor]:
            size = extent.const if extent.is_const else self.symbols[str(extent)]
            out.append(modulo(self._affine(names), size))
        return tuple(out)

    def _load(self, tensor: str, names: tuple[str, ...]) -> Expr:
        other = const(3, self.dtype) if names and self.rng.random() < 0.2 else None
        predicate = (self._affine(names),) if other is not None else ()
        indices = self._indices(tensor, names)
        return Load(
            tensor=tensor, indices=indices, dtype=self.dtype, predicate=predicate, other=other
        )

    def _element(self, target: str, names: tuple[str, ...], depth: int) -> Expr:
        rng = self.rng
        choice = rng.random()
        if depth == 0 or choice < 0.15:
            return self._load(rng.choice(list(self.shapes)), names)
        if choice < 0.25:
            return const(rng.choice([2, 3, -1, 7]) / (1 if self.dtype.is_int else 4), self.dtype)
        if choice < 0.35:
            index: Expr = Index(value=self._affine(names))
            return index if self.dtype is DType.i64 else Cast(x=index, dtype=self.dtype)
        a, b = (self._element(target, names, depth - 1) for _ in range(2))
        if choice < 0.45:
            return Select(condition=binary(rng.choice(sorted(COMPARE)), a, b), a=a, b=b)
        if choice < 0.5:
            return Unary(op="neg", x=a)
        ops = ["add", "sub", "mul", "min", "max", "floordiv", "mod"]
        if self.dtype.is_float:
            ops = ["add", "sub", "mul", "min", "max", "add", "sub", "div"]
        return Binary(op=rng.choice(ops), a=a, b=b)

    def inputs(self) -> dict[str, np.ndarray]:
        data = np.random.default_rng(self.rng.randint(0, 2**31))
        out = {}
        for name in ("A", "B", "C", "s"):
            shape = [int(e.evaluate(self.symbols)) for e in self.shapes[name]]
            values = data.integers(-8, 9, shape)
            out[name] = np.asarray(values, numpy_dtype(self.dtype))
        return out


@pytest.mark.parametrize("seed", range(60))
def test_random_nests(seed: int, tmp_path: Path) -> None:
    nest = RandomNest(seed)
    program = nest.program()
    assert_same(program, nest.inputs(), nest.symbols, tmp_path)


def test_random_nests_cover_the_printer() -> None:
    """Among the random nests there are shared loops, guards, hulls and folded bounds."""
    text = "\n".join(
        print_c(nest.program(), "f", symbols=nest.symbols) for nest in map(RandomNest, range(60))
    )
    for part in ("if (", "max_i64(", "min_i64(", "floordiv_i64(", " && ", " ? ", "+= ", "static "):
        assert part in text, part


# ------------------------------------------------------------------------------ operations


@pytest.mark.parametrize("dtype", every_operation.DTYPES, ids=str)
def test_every_operation(dtype: DType, tmp_path: Path) -> None:
    program = every_operation.program_of(dtype, affine("N"))
    inputs = every_operation.operands(dtype)
    expected, got = run_both(program, inputs, {"N": len(inputs["x"])}, tmp_path)
    every_operation.compare(dtype, got, expected)


# ------------------------------------------------------------------------------ by hand


def test_scalars_gathers_and_two_writes(tmp_path: Path) -> None:
    data = np.random.default_rng(0)
    n = 9
    inputs = {
        "A": data.normal(size=(n, n)),
        "pick": np.minimum(data.integers(0, n, n), np.arange(n)),
        "x": data.normal(size=n),
    }
    assert_same(parse_program(BY_HAND), inputs, {"N": n}, tmp_path)


def test_sizes_as_parameters_compile(tmp_path: Path) -> None:
    import ctypes
    import subprocess

    source = tmp_path / "f.c"
    source.write_text(print_c(parse_program(BY_HAND), "by_hand"), encoding="utf-8")
    target = tmp_path / "f.so"
    line = ["gcc", "-std=c99", "-shared", "-fPIC", *FLAGS, str(source), "-o", str(target)]
    subprocess.run(line, check=True)
    data = np.random.default_rng(1)
    n = 5
    inputs = {
        "A": data.normal(size=(n, n)),
        "pick": np.minimum(data.integers(0, n, n), np.arange(n)),
        "x": data.normal(size=n),
    }
    expected = run_program(parse_program(BY_HAND), inputs, exact=True)
    arrays = {**{k: v.copy() for k, v in inputs.items()}, "low": np.empty(n), "high": np.empty(n)}
    pointers = [
        arrays[k].ctypes.data_as(ctypes.c_void_p) for k in ("A", "pick", "x", "low", "high")
    ]
    ctypes.CDLL(str(target)).by_hand(ctypes.c_int64(n), *pointers)
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value)


def test_what_has_no_c_is_refused() -> None:
    for name, reason in (("softmax", "reduction"), ("half_relu", "f16")):
        with pytest.raises(Unsupported, match=reason):
            print_c(ir_programs.ALL[name](), "f")
    with pytest.raises(KeyError, match="no size for N"):
        print_c(parse_program(BY_HAND), "f", symbols={})
