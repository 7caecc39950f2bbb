"""Random kernels: Python, the interpreter and native code give the same bits.

``pytest tests/fuzz/test_fuzz_python_kernels.py --fuzz-seed 7 --fuzz-cases 2000`` tries others.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nestor
from nestor.errors import InputError, UserError
from nestor.ir import run_program, verify_program
from nestor.passes.accumulations import recognize_accumulations
from tests.fuzz.generate_python_kernels import Writer
from tests.helpers.python_kernels import assert_same, copies, run_plain

NATIVE_EVERY = 20
"""One in so many kernels is compiled too: interpreting is what checks the parser."""


def make_kernel(seed: int, folder: Path) -> tuple[nestor.Kernel, str]:
    """The kernel of a seed. Raises: what its decoration raises."""
    text = Writer(seed).text()
    path = folder / f"kernel_{seed}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.made, text


def arguments(seed: int) -> tuple[Any, ...]:
    """Arguments for a random small size."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(0, 6)) + 8
    arrays = [rng.standard_normal(s).round(2) for s in ((size, size), (size,), (size,))]
    indices = rng.integers(0, size, (size,))
    return (int(rng.integers(0, 6)), *arrays, indices, 0.75, 1.25)


def run_case(seed: int, folder: Path, *, native: bool) -> str:
    """What became of a case: equal, refused, or unassigned (Python raises)."""
    try:
        kernel, _ = make_kernel(seed, folder)
    except UserError as error:
        if "before it has a value" in str(error) or "has no value here" in str(error):
            return "refused"
        raise
    args = arguments(seed)
    try:
        run_plain(kernel, *copies(args))
    except UnboundLocalError:
        return "unassigned"
    if native:
        try:
            assert_same(kernel, *args)
        except InputError as error:
            # Under a condition on data everything is evaluated: bounds may be stricter than needed.
            assert "leaves its array" in str(error)
            return "refused"
        return "equal"
    given, expected = copies(args), copies(args)
    run_plain(kernel, *expected)
    kernel.interpret(*given)
    for a, b in zip(given, expected):
        np.testing.assert_array_equal(a, b)
    return "equal"


def test_random_kernels(
    fuzz_seed: int, fuzz_cases: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """All agree, and most run."""
    only = request.config.getoption("--fuzz-only")
    seeds = range(fuzz_cases) if only is None else [only]
    outcomes: Counter[str] = Counter()
    for number in seeds:
        seed = fuzz_seed * 1_000_000 + number
        try:
            outcomes[run_case(seed, tmp_path, native=number % NATIVE_EVERY == 0)] += 1
        except Exception as error:
            raise AssertionError(
                f"--fuzz-seed {fuzz_seed} --fuzz-only {number}\n{Writer(seed).text()}"
            ) from error
    assert only is not None or outcomes["equal"] >= 0.25 * len(seeds), outcomes
    print(dict(outcomes))


def test_accumulations_of_random_kernels(
    fuzz_seed: int, fuzz_cases: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Sums as reductions give nearly what the loops give, however they are evaluated."""
    only = request.config.getoption("--fuzz-only")
    rewritten = 0
    for number in range(fuzz_cases) if only is None else [only]:
        seed = fuzz_seed * 1_000_000 + number
        try:
            kernel, text = make_kernel(seed, tmp_path)
        except UserError:
            continue
        program = recognize_accumulations(kernel.program)
        if program is kernel.program:
            continue
        rewritten += 1
        verify_program(program)
        bound = kernel.bind(*arguments(seed))
        inputs = {n: a.given for n, a in bound.arrays.items()} | bound.scalars
        want = run_program(kernel.program, inputs, bound.symbols, exact=True)
        for exact in (True, False):
            got = run_program(program, inputs, bound.symbols, exact=exact)
            for name in want:
                np.testing.assert_allclose(
                    got[name], want[name], rtol=1e-6, atol=1e-9, err_msg=f"seed {seed}\n{text}"
                )
    assert only is not None or rewritten >= fuzz_cases // 50
