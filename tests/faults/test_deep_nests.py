"""Kernels whose polyhedra are too much for isl: an answer in time, the right result, and Ctrl-C."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from nestor import isl_stages
from nestor._worker import ALARM_SECONDS, write_message
from nestor.errors import IllegalSchedule, LegalityUnknown
from nestor.ir.program import Program
from nestor.ir.schedule import Arrange, Interchange, Step, Tile
from nestor.ir.schedule_tree import tree_bands
from nestor.isl_helper import shared_helper
from nestor.isl_stages import ISL_SECONDS
from nestor.passes.nest import apply_schedule
from nestor.passes.polyhedral import check_nest
from nestor.passes.polyhedral.order_tree import program_tree

MAX_SECONDS = 10.0
"""Of the processor's time, for building and checking one nest."""

CHILDREN_SECONDS = MAX_SECONDS + 6.0
"""Of the processor's time, for isl, LLVM, and helpers that start again."""

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


def remainders_source() -> str:
    """Subscripts and conditions of nested divisions and moduli, twelve statements, depth 8."""
    lines = [
        "import nestor", "", "@nestor.kernel",
        'def deep(A: nestor.f64["N", "N", "N"], B: nestor.f64["N", "N", "N"]):',
    ]  # fmt: skip
    lines += ["    " * (k + 1) + f"for {n} in range(N):" for k, n in enumerate(NAMES)]
    pad = "    " * 9
    for k in range(12):
        a, b, c, d = (NAMES[(k + j) % 8] for j in range(4))
        cell = f"({a} + {b}) // 2, ({b} // 3 + {c} % 2) // 2, ({c} // 2 + {d} // 2) // 2"
        lines.append(pad + f"if ({a} + 3 * {b}) % 5 < 4 and ({c} // 2 + {d}) % 3 != 1:")
        lines.append(pad + f"    {'AB'[k % 2]}[{cell}] += 0.5 * B[{d} // 2, {c} // 4, {a}]")
    return "\n".join(lines) + "\n"


def chains_source() -> str:
    """Bounds and values of many minima and maxima."""
    lines = [
        "import nestor", "", "@nestor.kernel",
        'def deep(A: nestor.f64["N", "N", "N"], B: nestor.f64["N", "N", "N"]):',
    ]  # fmt: skip
    for k, name in enumerate(NAMES):
        outer = NAMES[:k]
        low = "0" if k < 2 else f"max(0, {outer[-1]} - 1, {outer[-2]} - 2)"
        high = "N" if k < 2 else f"min(N, {outer[-1]} + 2, {outer[-2]} + 3)"
        lines.append("    " * (k + 1) + f"for {name} in range({low}, {high}):")
    chain = "A[i0, i1, i2]"
    for k in range(60):
        x, y, z = NAMES[k % 8], NAMES[(k + 3) % 8], NAMES[(k + 5) % 8]
        chain = f"{'min' if k % 2 else 'max'}({chain}, B[{x}, {y}, {z}])"
    lines.append("    " * 9 + f"B[i5, i6, i7] = 0.5 * {chain}")
    return "\n".join(lines) + "\n"


def sizes_source() -> str:
    """Many sizes that must fit each other in many ways."""
    sizes = [f"N{k}" for k in range(8)]
    shape = ", ".join(f'"{n}"' for n in sizes[:4])
    other = ", ".join(f'"{n}"' for n in sizes[4:])
    lines = [
        "import nestor", "", "@nestor.kernel",
        f"def deep(A: nestor.f64[{shape}], B: nestor.f64[{other}]):",
    ]  # fmt: skip
    lines += ["    " * (k + 1) + f"for {n} in range(N{k}):" for k, n in enumerate(NAMES)]
    for k in range(12):
        a, b, c, d = (NAMES[(k + j) % 8] for j in range(4))
        cell = f"({a} + {b}) // 2, ({c} + 2 * {d}) // 3, ({a} + {c}) // 2, ({b} + {d}) // 3"
        lines.append("    " * 9 + f"{'AB'[k % 2]}[{cell}] += 1.0")
    return "\n".join(lines) + "\n"


NASTY = {
    "deep0": lambda: deep_source(12, 0),
    "deep1": lambda: deep_source(12, 1),
    "remainders": remainders_source,
    "chains": chains_source,
}


@pytest.mark.parametrize("name", NASTY)
def test_the_kernel_runs_all_the_same(name: str, tmp_path: Path) -> None:
    kernel = load(tmp_path, NASTY[name]())
    rng = np.random.default_rng(0)
    given = [rng.random((2, 2, 2)) for _ in range(2)]
    wanted = [x.copy() for x in given]
    shared_helper().close()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    kernel(*given)
    shared_helper().close()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < CHILDREN_SECONDS
    assert all(0 < form.isl_seconds <= ISL_SECONDS for form in kernel._variants.compiled)
    kernel.interpret(*wanted)
    for a, b in zip(given, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_sizes_that_isl_cannot_tell_in_time_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isl_stages, "SIZES_SECONDS", 1e-3)
    with pytest.raises(LegalityUnknown, match=r"kernel 'deep': the step 'sizes' was given up"):
        load(tmp_path, sizes_source()).compile()
    monkeypatch.undo()
    load(tmp_path, sizes_source()).compile()


def test_loops_as_written_are_proved_without_dependences(tmp_path: Path) -> None:
    """Nothing is reordered: isl is asked for no pair of accesses, however many there are."""
    program = load(tmp_path, deep_source(12, 1)).program
    assert check_nest(program, apply_schedule(program, ())).pairs == 0


def test_a_step_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing and proposing get no time at all: the loops run as written, and that is said."""
    monkeypatch.setattr(isl_stages, "PREPARE_SECONDS", 1e-3)
    monkeypatch.setattr(isl_stages, "PLAIN_SECONDS", isl_stages.ISL_SECONDS)
    kernel = load(tmp_path, deep_source(1, 0))
    given = [np.ones((2, 2, 2)) for _ in range(2)]
    wanted = [x.copy() for x in given]
    kernel(*given)
    kernel.interpret(*wanted)
    np.testing.assert_allclose(given[0], wanted[0], rtol=1e-12)
    (report,) = kernel.report().kernels
    assert "'prepare' was given up" in report.refused
    assert "are used up" in report.refused
    assert report.schedule == ""


CHILD = """
import importlib.util, signal, sys
import numpy as np
# Ignored where the tests themselves run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)
spec = importlib.util.spec_from_file_location("deep_kernel", sys.argv[1])
module = importlib.util.module_from_spec(spec)
print("ready", flush=True)
try:
    spec.loader.exec_module(module)
    module.deep(np.ones((2, 2, 2)), np.ones((2, 2, 2)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Done: what is left is the interpreter's end.
except KeyboardInterrupt:
    sys.exit(7)
"""


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("delay_s", [0.3, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
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
        helpers = children(child.pid) if child.poll() is None else []
        signalled = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=MAX_SECONDS) in (0, 7)  # 0: it had finished by then
        assert time.monotonic() - signalled < 6.0  # about 0.1 s where nothing else runs
        while any(map(is_running, helpers)) and time.monotonic() - signalled < 6.0:
            time.sleep(0.05)
        assert not any(map(is_running, helpers))
    finally:
        child.kill()
        child.wait()


def test_a_worker_whose_parent_forgot_it_ends_by_its_alarm() -> None:
    job = json.dumps({"do": "sleep", "seconds": 60}).encode()
    worker = subprocess.Popen(
        [sys.executable, "-m", "nestor._worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert worker.stdin is not None
        write_message(worker.stdin, "selftest 0.2", job)
        assert worker.wait(timeout=MAX_SECONDS + ALARM_SECONDS) == -signal.SIGALRM
    finally:
        worker.kill()
        worker.communicate()
