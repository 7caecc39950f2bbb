"""Proposals come within their limit whatever the nest, and Ctrl-C gets through."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from nestor import proposing
from nestor.ir.program import Program
from tests.helpers.affine_programs import KERNELS, affine_program


def deep(depth: int, statements: int) -> Program:
    """Triangular loops, subscripts with ``//`` and ``%``, everything in one component."""
    names = [f"i{k}" for k in range(depth)]
    bounds = ["0" if k % 2 == 0 else names[k - 1] for k in range(depth)]
    loops = " ".join(f"for {n} in {b}..N {{" for n, b in zip(names, bounds))
    cell = f"B[{', '.join(names)}]"
    body = ""
    for c in range(statements // 2):
        left = f"A[{names[0]} + {names[1]}, ({names[2]} + 2*{names[-1]})//3, ({names[3]} + {c})%4]"
        right = f"A[{names[1]}, ({names[0]} + {c})%5, {names[-2]}//2]"
        body += f"{loops} {left} = {left} + {right} * {cell}; {cell} = {right}; {'}' * depth}"
    shape = ", ".join("N" * depth)
    return affine_program("deep", "N", {"A": "999, 999, 999", "B": shape}, body)


@pytest.mark.parametrize("depth, statements", [(4, 4), (6, 6), (8, 12)])
def test_monsters(depth: int, statements: int) -> None:
    program = deep(depth, statements)
    proposing.propose(KERNELS["gemm"]())  # the helper is there
    clock = time.monotonic()
    found = proposing.propose(program, limit_seconds=1.5)
    assert time.monotonic() - clock < 4.0  # killing and an overloaded machine take a little more
    assert found.proposals[0].origin == "original"
    assert found.unfinished


def test_the_helper_recovers() -> None:
    proposing.propose(deep(8, 12), limit_seconds=0.3)
    found = proposing.propose(KERNELS["gemm"](), limit_seconds=10.0)
    assert not found.unfinished and len(found.proposals) > 2
    assert found.dependences


def test_the_helper_gives_what_this_process_gives() -> None:
    from nestor.passes.polyhedral.proposals import propose_here

    for name in ("lu", "atax"):
        there, here = proposing.propose(KERNELS[name]()), propose_here(KERNELS[name]())
        assert [p.tree for p in there.proposals] == [p.tree for p in here.proposals]
        assert [p.bands for p in there.proposals] == [p.bands for p in here.proposals]
        assert there.dependences == here.dependences


def test_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NESTOR_WORKERS", "0")
    assert len(proposing.propose(KERNELS["gemm"]()).proposals) > 2


def test_several_threads_share_the_helper() -> None:
    found: list[int] = []

    def ask(name: str) -> None:
        found.append(len(proposing.propose(KERNELS[name](), limit_seconds=20.0).proposals))

    threads = [threading.Thread(target=ask, args=(n,)) for n in ("gemm", "lu", "mvt", "atax")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and min(found) > 2


def test_the_keyboard_interrupts() -> None:
    code = """
        import signal
        # Ignored where the tests themselves run in the background of a shell.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from tests.faults.test_proposals_limit import deep
        from nestor import proposing
        from nestor.isl_helper import shared_helper
        from tests.helpers.affine_programs import KERNELS
        program = deep(8, 12)
        proposing.propose(KERNELS["gemm"]())
        print("ready", flush=True)
        try:
            proposing.propose(program, limit_seconds=60.0)
        except KeyboardInterrupt:
            assert not shared_helper().is_alive()
            print("interrupted", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    clock = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert rest == "interrupted\n"
    assert time.monotonic() - clock < 5.0
