"""Random Programs as Triton kernels, in Triton's interpreter.

``pytest tests/fuzz/test_fuzz_triton.py --fuzz-seed 7 --fuzz-cases 500`` tries other cases than the
default ones; ``--fuzz-first`` and ``--fuzz-only`` work as in ``test_fuzz_schedules``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from nestor.codegen.triton import emit_kernel
from nestor.errors import Unsupported
from nestor.ir import print_program, verify_nest, verify_program
from nestor.ir.program import Extern
from nestor.ir.schedule import Warps
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_fusion import GpuPartition, partition_for_gpu
from nestor.passes.gpu_schedule import gpu_schedule, warps_of
from nestor.passes.knobs import Choices
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from tests.fuzz.generate_programs import Case, random_case
from tests.fuzz.harness import make_reference, program_arrays
from tests.fuzz.program_passes import find_wrong_result
from tests.helpers.triton_runs import is_interpreting, run_kernel

CHUNK = 10
SHARE = 4
"""Of this many of the suite's cases one is tried here: the interpreter is slow."""

TOLERANCE = 1e-5
"""Of the largest value: functions of f32 are good to a few units more than on a CPU."""


@pytest.fixture(scope="module")
def refused() -> Counter[str]:
    """What has no code, and how often; ``""``: everything had."""
    return Counter()


def numbers(config: pytest.Config) -> range:
    """The cases that the options ask for."""
    first = config.getoption("--fuzz-first")
    return range(first, first + max(1, config.getoption("--fuzz-cases") // SHARE))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first_case" not in metafunc.fixturenames:
        return
    only = metafunc.config.getoption("--fuzz-only")
    starts = [only] if only is not None else numbers(metafunc.config)[::CHUNK]
    metafunc.parametrize("first_case", starts)


def test_programs(
    first_case: int,
    fuzz_seed: int,
    request: pytest.FixtureRequest,
    refused: Counter[str],
    tmp_path: Path,
) -> None:
    """Every kernel is proved, and what they leave is what the Program says."""
    assert is_interpreting()
    if request.config.getoption("--fuzz-only") is not None:
        run_case(first_case, refused, tmp_path)
        return
    last = numbers(request.config).stop
    for number in range(first_case, min(first_case + CHUNK, last)):
        run_case(fuzz_seed * 1_000_000 + number, refused, tmp_path)


def test_nearly_everything_has_code(refused: Counter[str]) -> None:
    print(dict(refused))
    if refused.total() >= 20:
        assert refused[""] >= 0.8 * refused.total(), dict(refused)


def run_case(seed: int, refused: Counter[str], folder: Path) -> None:
    """Check one case."""
    case = random_case(seed)
    try:
        wrong = find_fault(case, folder)
    except Unsupported as reason:
        refused[str(reason)] += 1
        return
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    refused[""] += 1
    if wrong is not None:
        again = f"again: pytest tests/fuzz/test_fuzz_triton.py --fuzz-only {seed}"
        pytest.fail(f"case {seed}: {wrong}\n{again}\n{print_program(case.program)}", pytrace=False)


def find_fault(case: Case, folder: Path) -> str | None:
    """What is wrong about a case's kernels. Raises: ``Unsupported``."""
    reference = make_reference(case)
    memory = program_arrays(case.program, reference)
    partition = partition_for_gpu(case.program, l2_bytes=1 << 20, processors=8)
    draw = Random(case.seed)
    for part, steps in in_order(partition, case.symbols):
        run_part(part, {**case.symbols, **steps}, memory, draw, folder)
    wrong = find_wrong_result(case.program, memory, reference.memory, TOLERANCE)
    return None if wrong is None else str(wrong)


def in_order(
    partition: GpuPartition, symbols: dict[str, int]
) -> Iterator[tuple[FusedKernel, dict[str, int]]]:
    """Every kernel as often as it runs, and the values of the steps."""
    starts = {first: (loop, last) for loop, first, last in partition.loops}
    position = 0
    while position < len(partition.parts):
        loop, last = starts.get(position, (None, position + 1))
        count = 1 if loop is None else int(loop.extent.evaluate(symbols))
        for step in range(count):
            for part in partition.parts[position:last]:
                assert not isinstance(part, Extern)
                yield part, {} if loop is None else {loop.symbol: step}
        position = last


def run_part(
    part: FusedKernel,
    symbols: dict[str, int],
    memory: dict[str, np.ndarray],
    draw: Random,
    folder: Path,
) -> None:
    """Prove one kernel and run it on ``memory``."""
    fused, names = canonicalize_kernel(part)
    verify_program(fused.kernel)
    probe = Choices()
    gpu_schedule(fused, probe)
    decided = {k: draw.choice(knob.values) for k, knob in probe.asked.items()}
    schedule = gpu_schedule(fused, Choices(decided if draw.random() < 0.5 else {}))
    most = 0
    if draw.random() < 0.3:  # programs that take several turns, of any kernel
        schedule = tuple(
            replace(s, persistent=1, descriptors=1) if isinstance(s, Warps) else s for s in schedule
        )
        most = draw.choice((1, 2, 5))
    nest = apply_schedule(fused.kernel, schedule)
    verify_nest(nest)
    check_nest(fused.kernel, nest)
    kernel = emit_kernel(nest, warps=warps_of(schedule))
    sizes = {s.name: symbols[names[s.name]] for s in fused.kernel.symbols}
    given = {t.name: memory[names[t.name]] for t in fused.kernel.tensors if t.alias_of is None}
    found = run_kernel(kernel, nest, given, folder, sizes, most)
    for t in fused.kernel.tensors:
        if t.role in ("output", "inout", "state") and t.name in found:
            memory[names[t.name]][...] = found[t.name]
