"""Kernels whose polyhedra are too much for isl: an answer in time, the right result, and Ctrl-C."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from nestor.errors import IllegalSchedule, LegalityUnknown
from nestor.ir.program import Program
from nestor.ir.schedule import Arrange, Interchange, Step, Tile
from nestor.ir.schedule_tree import tree_bands
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.passes.polyhedral.order_tree import program_tree

MAX_SECONDS = 10.0
"""Of the processor's time, for building and checking one nest."""

NAMES = [f"i{k}" for k in range(8)]


def deep_source(statements: int, seed: int) -> str:
    """A kernel of depth 8: some loops shared, triangles, divisions, moduli, conditions."""
    rng = Random(f"deep {seed}")
    lines = [
        "import nestor", "", "@nestor.kernel",
        'def deep(A: nestor.f64["N", "N", "N"], B: nestor.f64["N", "N", "N"]):',
    ]  # fmt: skip

    def loops(first: int, last: int) -> None:
        for k in range(first, last):
            bounds = ["N"] * 4
            if k:
                o = rng.choice(NAMES[:k])
                bounds += [f"{o} + 1", f"{o}, N", f"{o} // 2, ({o} + N) // 2", f"{o} % 3, N"]
            lines.append("    " * (k + 1) + f"for {NAMES[k]} in range({rng.choice(bounds)}):")

    def access() -> str:
        index = [n + (" // 2" if rng.random() < 0.3 else "") for n in rng.sample(NAMES, 3)]
        return f"{rng.choice('AB')}[{', '.join(index)}]"

    shared = rng.randrange(2, 5)
    loops(0, shared)
    while statements > 0:
        loops(shared, 8)
        for _ in range(min(statements, rng.choice([1, 1, 2, 3]))):
            pad = "    " * 9
            if rng.random() < 0.4:
                lines.append(pad + f"if ({NAMES[0]} + {NAMES[7]}) % 3 == 0:")
                pad += "    "
            lines.append(pad + f"{access()} = 0.5 * {access()} + 0.25 * {access()}")
            statements -= 1
    return "\n".join(lines) + "\n"


def load(folder: Path, source: str) -> Any:
    """The kernel of a file with this text."""
    path = folder / "deep_kernel.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("deep_kernel", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.deep


def tiled(program: Program) -> tuple[Step, ...]:
    """All loops of every band cut, the cuts outside."""
    tree = program_tree(program)
    steps: list[Step] = [Arrange(tree=tree)]
    for band in tree_bands(tree):
        names = [x.name for x in band.loops]
        steps += [Tile(loop=n, size=32) for n in names]
        if len(names) > 1:
            order = tuple(f"{n}.{part}" for part in "oi" for n in names)
            steps.append(Interchange(loops=order))
    return tuple(steps)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("statements", [1, 12])
@pytest.mark.parametrize("is_tiled", [False, True])
def test_building_and_checking_end_in_time(
    seed: int, statements: int, is_tiled: bool, tmp_path: Path
) -> None:
    program = load(tmp_path, deep_source(statements, seed)).program
    steps = tiled(program) if is_tiled else (Arrange(tree=program_tree(program)),)
    started = time.process_time()
    try:
        check_nest(program, apply_schedule(program, steps), max_seconds=5)
    except (LegalityUnknown, IllegalSchedule) as refusal:
        assert is_tiled or not isinstance(refusal, IllegalSchedule), str(refusal)
    assert time.process_time() - started < MAX_SECONDS


@pytest.mark.parametrize("seed", range(2))
def test_the_kernel_runs_all_the_same(seed: int, tmp_path: Path) -> None:
    kernel = load(tmp_path, deep_source(12, seed))
    rng = np.random.default_rng(seed)
    given = [rng.random((2, 2, 2)) for _ in range(2)]
    wanted = [x.copy() for x in given]
    started = time.process_time()
    kernel(*given)
    assert time.process_time() - started < 2 * MAX_SECONDS  # with LLVM, in this process
    kernel.interpret(*wanted)
    for a, b in zip(given, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-12)


CHILD = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("deep_kernel", sys.argv[1])
module = importlib.util.module_from_spec(spec)
print("ready", flush=True)
try:
    spec.loader.exec_module(module)
    module.deep(np.ones((2, 2, 2)), np.ones((2, 2, 2)))
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.mark.parametrize("delay_s", [0.3, 1.0, 2.0, 3.0, 4.5])
def test_ctrl_c_works_at_any_moment(delay_s: float, tmp_path: Path) -> None:
    path = tmp_path / "deep_kernel.py"
    path.write_text(deep_source(12, 1))
    environ = {**os.environ, "NESTOR_CACHE_DIR": str(tmp_path / "cache")}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], env=environ, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay_s)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=MAX_SECONDS) in (0, 7)  # 0: it had finished by then
    finally:
        child.kill()
        child.wait()
