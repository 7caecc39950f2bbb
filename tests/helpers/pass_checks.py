"""Run a Program before and after passes, and compare all that can be seen from outside."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nestor.ir.interpreter import run_program
from nestor.ir.narrow_floats import MEMORY, round_to
from nestor.ir.numeric import numpy_dtype
from nestor.ir.program import Program
from nestor.ir.types import DType
from nestor.passes.context import PassContext
from nestor.passes.pipeline import PipelineResult

Arrays = dict[str, np.ndarray]


def random_inputs(
    program: Program, seed: int = 0, symbols: dict[str, int] | None = None, special: bool = False
) -> Arrays:
    """Arrays for every tensor that a run needs; ``special`` sprinkles NaN, infinities and −0."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for t in program.by_role("input", "inout", "parameter", "constant", "state"):
        if t.alias_of is not None:
            continue
        shape = tuple(int(e.evaluate(symbols or {})) for e in t.shape)
        dtype = numpy_dtype(t.dtype)
        if t.dtype.is_float:
            values = rng.standard_normal(shape).astype(dtype)
            if special and values.size:
                flat = values.reshape(-1)
                for value in (np.nan, np.inf, -np.inf, -0.0, 0.0):
                    flat[rng.integers(flat.size)] = value
            arrays[t.name] = round_to(values, t.dtype) if t.dtype in MEMORY else values
        elif t.dtype is DType.bool:
            arrays[t.name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            arrays[t.name] = rng.integers(0, 4, shape).astype(dtype)
    return arrays


def assert_same_results(
    before: Program,
    after: Program,
    *,
    symbols: dict[str, int] | None = None,
    seeds: int = 2,
    tolerance: float = 0.0,
    special: bool = False,
    prepare: Callable[[Arrays], Arrays] | None = None,
) -> None:
    """Both Programs give equal outputs (bit by bit without ``tolerance``; −0 and NaN count)."""
    for seed in range(seeds):
        arrays = random_inputs(before, seed, symbols, special)
        wanted = run_program(before, arrays, symbols)
        given = arrays if prepare is None else prepare(arrays)
        needed = after.by_role("input", "inout", "parameter", "constant", "state")
        got = run_program(
            after, {t.name: given[t.name] for t in needed if t.name in given}, symbols
        )
        assert wanted.keys() == got.keys()
        for name, value in wanted.items():
            assert value.shape == got[name].shape, name
            if tolerance:
                scale = float(np.nanmax(np.abs(value), initial=1.0)) if value.size else 1.0
                np.testing.assert_allclose(
                    got[name], value, rtol=tolerance, atol=tolerance * scale, err_msg=name
                )
            else:
                np.testing.assert_array_equal(got[name], value, err_msg=name)
                if value.dtype.kind == "f":
                    known = ~np.isnan(value)
                    signs = np.signbit(value)[known], np.signbit(got[name])[known]
                    np.testing.assert_array_equal(*signs, err_msg=f"signs of {name}")


def run_checked(
    pass_function: Callable[[Program, PassContext], Program],
    program: Program,
    ctx: PassContext | None = None,
    **options: object,
) -> Program:
    """Run one pass, compare, and return the new Program."""
    after = pass_function(program, ctx or PassContext())
    assert_same_results(program, after, **options)  # type: ignore[arg-type]
    return after


def assert_same_pipeline(
    program: Program, result: PipelineResult, *, tolerance: float, **options: object
) -> None:
    """The pipeline's main program, fed by its weight program, gives what ``program`` gives."""

    def prepare(arrays: Arrays) -> Arrays:
        weights = result.weight_program
        if not weights.statements:
            return arrays
        needed = weights.by_role("parameter", "constant")
        made = run_program(weights, {t.name: arrays[t.name] for t in needed})
        return {**arrays, **made}

    assert_same_results(
        program,
        result.main,
        tolerance=tolerance,
        prepare=prepare,
        **options,  # type: ignore[arg-type]
    )
