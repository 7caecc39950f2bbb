"""Gathers and scatters with an index out of range: reported by everybody, and nothing breaks."""

from __future__ import annotations

from random import Random

import pytest

from nestor.errors import IndexOutOfRange
from nestor.ir import numeric, run_nest, run_program
from nestor.ir.loopnest import LoopNest
from nestor.passes.default_schedule import VectorUnit, default_schedule
from nestor.passes.nest import apply_schedule
from tests.fuzz import harness
from tests.fuzz.generate_inputs import make_inputs
from tests.fuzz.generate_programs import Case, random_case
from tests.helpers.llvm_native import NativeNest

CASES = 16
"""Programs that gather or scatter; about one in eight does."""


def gathering_cases(seed: int) -> list[Case]:
    """The first cases of ``seed`` whose inputs hold indices."""
    found: list[Case] = []
    number = seed * 1_000_000
    while len(found) < CASES:
        case = random_case(number)
        if case.indexes:
            found.append(case)
        number += 1
    return found


def spoiled(case: Case) -> harness.Reference:
    """Inputs with one index out of its range."""
    rng = Random(f"spoil {case.seed}")
    inputs = make_inputs(case)
    name = rng.choice(sorted(case.indexes))
    flat = inputs[name].reshape(-1)
    if flat.size:
        bound = case.indexes[name][0]
        flat[rng.randrange(flat.size)] = rng.choice([-1, bound, bound + 7, -(2**31)])
    return harness.Reference(inputs, case.symbols, {})


def is_reported(case: Case, reference: harness.Reference) -> bool:
    """Whether the reference interpreter meets the bad index."""
    try:
        run_program(case.program, reference.inputs, case.symbols, exact=True)
    except IndexOutOfRange:
        return True
    return False


def test_bad_indices_are_reported(fuzz_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestor.codegen.llvm.parallel.SERIAL_BELOW", 0)
    met = 0
    for case in gathering_cases(fuzz_seed):
        reference = spoiled(case)
        expected = is_reported(case, reference)
        met += expected
        for target in harness.targets():
            unit = VectorUnit(target.vector_bits, target.vector_registers)
            arrays = harness.program_arrays(case.program, reference)
            codes = []
            for part, names in harness.default_parts(case.program):
                nest = apply_schedule(part.kernel, default_schedule(part, unit))
                native = NativeNest(nest, target)
                own = {t.name: arrays[names[t.name]] for t in nest.tensors}
                symbols = {s.name: case.symbols[names[s.name]] for s in nest.symbols}
                assert is_reported_by_nest(nest, own, symbols) == (
                    run_native(native, own, symbols, codes) != 0
                )
            assert any(codes) == expected, f"case {case.seed}: {codes}"
    assert met >= CASES // 2


def run_native(
    native: NativeNest, arrays: dict[str, object], symbols: dict[str, int], codes: list[int]
) -> int:
    """Run on the arrays themselves, and note the code."""
    with numeric.quiet():
        code = native.run(arrays, symbols, threads=2)  # type: ignore[arg-type]
    codes.append(code)
    return code


def is_reported_by_nest(nest: LoopNest, arrays: dict[str, object], symbols: dict[str, int]) -> bool:
    """Whether the nest's interpreter meets the bad index; works on copies."""
    copies = {n: a.copy() for n, a in arrays.items()}  # type: ignore[attr-defined]
    for t in nest.tensors:
        if t.alias_of in copies:
            del copies[t.name]
    try:
        run_nest(nest, copies, symbols)
    except IndexOutOfRange:
        return True
    return False
