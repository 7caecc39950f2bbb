"""Random affine Programs before and after each rule from Program to Program, interpreted.

``pytest tests/fuzz/test_fuzz_program_rules.py --fuzz-seed 7 --fuzz-cases 5000`` tries other cases
than the default ones; ``--fuzz-only`` repeats one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import pytest

from nestor.ir import print_program, run_program, verify_program
from nestor.ir.program import Program
from nestor.passes.accumulations import recognize_accumulations
from nestor.passes.affine_pipeline import is_empty, prepare_affine
from nestor.passes.polyhedral.expansion import expand_arrays
from nestor.passes.self_copies import drop_self_copies
from nestor.passes.separate_sums import separate_sums
from nestor.passes.split_statements import split_at_own_reads
from tests.fuzz.affine_programs import random_affine_case
from tests.fuzz.generate_inputs import make_inputs
from tests.helpers.affine_programs import affine_program

Arrays = dict[str, np.ndarray]
Rule = Callable[[Program], Program]

EXACT: dict[str, Rule] = {
    "separate sums": separate_sums,
    "split statements": lambda p: split_at_own_reads(p, is_empty),
    "drop self-copies": drop_self_copies,
    "expand arrays": expand_arrays,
    "all of them": lambda p: prepare_affine(p, reassociate=False),
}
"""Rules that change no bit of the result."""


def random_scratch(seed: int) -> Program:
    """``x`` is written and read within the iterations of a loop: what expansion looks for."""
    rng = Random(f"scratch {seed}")

    def index() -> str:
        return rng.choice(("j", "j", "j", "N - 1 - j", "0", "N - 1"))

    def statement() -> str:
        x, whole = f"x[{index()}]", rng.choice(("j", "j", "N - 1 - j", index()))
        return rng.choice(
            (
                f"x[{whole}] = A[i, {index()}] * 0.5;",
                f"x[{whole}] = A[i, {index()}] * 0.5;",
                f"B[i, {index()}] = B[i, {index()}] + {x};",
                f"x[{index()}] = {x} + A[i, {index()}];",
                f"B[i, {index()}] = {x} - x[{index()}];",
                f"y[{index()}] = {x};",
            )
        )

    loops = []
    for _ in range(rng.randint(2, 3)):
        bounds = rng.choice(("0..N", "0..N", "0..N", "1..N", "0..N - 1", "i..N"))
        body = " ".join(statement() for _ in range(rng.choice((1, 1, 2))))
        loops.append(f"for j in {bounds} {{ {body} }}")
    text = f"for i in {rng.choice(('0..M', '0..M', '1..M'))} {{ {' '.join(loops)} }}"
    if rng.random() < 0.2:
        after = rng.choice(("y[j] = x[j];", "x[j] = y[j];"))
        text += f" for j in 0..N {{ {after} }}"
    arrays = {"x": "N", "y": "N", "A": "M, N", "B": "M, N"}
    return affine_program("scratch", "M N", arrays, text, inputs="A")


def scratch_runs(program: Program, seed: int) -> Iterator[tuple[Arrays, dict[str, int]]]:
    """Inputs and sizes of a scratch program."""
    for m, n in ((1, 1), (3, 4), (4, 3), (2, 1), (1, 3)):
        rng = np.random.default_rng(seed)
        sizes = {"M": m, "N": n}
        yield (
            {
                t.name: rng.standard_normal([int(d.evaluate(sizes)) for d in t.shape])
                for t in program.tensors
            },
            sizes,
        )


def run(program: Program, inputs: Arrays, sizes: dict[str, int]) -> Arrays:
    with np.errstate(all="ignore"):
        return run_program(program, {n: a.copy() for n, a in inputs.items()}, sizes, exact=True)


def check(
    name: str,
    rule: Rule,
    program: Program,
    runs: list[tuple[Arrays, dict[str, int]]],
    counts: Counter[str],
    rtol: float = 0.0,
) -> None:
    """The rule keeps what the program computes; ``counts`` says how often it changed one."""
    made = rule(program)
    if made == program:
        return
    counts[name] += 1
    verify_program(made)
    for inputs, sizes in runs:
        want, got = (run(p, inputs, sizes) for p in (program, made))
        for key in want:
            np.testing.assert_allclose(
                got[key],
                want[key],
                rtol=rtol,
                atol=rtol,
                err_msg=f"{name}, {sizes}:\n{print_program(program)}\n{print_program(made)}",
            )


def seeds(request: pytest.FixtureRequest, fuzz_seed: int, fuzz_cases: int) -> list[int]:
    only = request.config.getoption("--fuzz-only")
    return [fuzz_seed * 1_000_000 + k for k in ([only] if only is not None else range(fuzz_cases))]


def assert_enough(counts: Counter[str], cases: int, wanted: dict[str, float]) -> None:
    """Each rule changed its share of the programs, so that the test says something."""
    print(dict(counts))
    if cases >= 100:
        missing = {n: counts[n] for n, share in wanted.items() if counts[n] < share * cases}
        assert not missing, f"rules that hardly ever applied in {cases} cases: {missing}"


def test_rules_on_affine_programs(
    fuzz_seed: int, fuzz_cases: int, request: pytest.FixtureRequest
) -> None:
    counts: Counter[str] = Counter()
    numbers = seeds(request, fuzz_seed, fuzz_cases)
    for seed in numbers:
        case = random_affine_case(seed)
        runs = [(make_inputs(case), case.symbols)]
        for name, rule in EXACT.items():
            check(name, rule, case.program, runs, counts)
    share = {"separate sums": 0.01, "split statements": 0.005, "drop self-copies": 0.02}
    assert_enough(counts, len(numbers), share)


def test_accumulations_of_affine_programs(
    fuzz_seed: int, fuzz_cases: int, request: pytest.FixtureRequest
) -> None:
    """Sums in the order of the loops, which is how the interpreter evaluates a reduction."""
    counts: Counter[str] = Counter()
    numbers = seeds(request, fuzz_seed, fuzz_cases)
    for seed in numbers:
        case = random_affine_case(seed)
        runs = [(make_inputs(case), case.symbols)]
        check("accumulations", recognize_accumulations, case.program, runs, counts, rtol=1e-3)
    assert_enough(counts, len(numbers), {"accumulations": 0.03})


def test_rules_on_scratch_arrays(
    fuzz_seed: int, fuzz_cases: int, request: pytest.FixtureRequest
) -> None:
    counts: Counter[str] = Counter()
    numbers = seeds(request, fuzz_seed, fuzz_cases)
    for seed in numbers:
        program = random_scratch(seed)
        runs = list(scratch_runs(program, seed))
        for name in ("expand arrays", "all of them"):
            check(name, EXACT[name], program, runs, counts)
    assert_enough(counts, len(numbers), {"expand arrays": 0.05})
