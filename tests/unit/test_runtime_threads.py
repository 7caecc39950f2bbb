"""OpenMP: one libgomp a process in whatever order things are loaded, thread counts, forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nestor.errors import UserError
from nestor.runtime import threads

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import os, sys, warnings
from pathlib import Path
def mapped():
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({l.split(None, 5)[5] for l in lines if "libgomp" in l})
"""


def run(code: str, **environ: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **environ}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pytorchs_libgomp_is_used_when_it_is_loaded():
    out = run(
        "import torch\n"
        "from nestor.runtime.threads import openmp\n"
        "found = openmp()\n"
        "assert found.parallel and found.thread_num and found.num_threads\n"
        "assert mapped() == [found.path], (mapped(), found)\n"
        "print('torch' in found.path)"
    )
    assert out == "True"


def test_one_libgomp_when_pytorch_is_imported_later():
    run(
        "from nestor.runtime.threads import openmp\n"
        "found = openmp()\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "torch.ones(100000).sum()\n"
        "assert len(mapped()) == 1, mapped()"
    )


def test_no_libgomp_means_serial_with_one_warning():
    out = run(
        "import ctypes, struct\n"
        "from nestor.runtime import threads\n"
        "threads._candidates = lambda: ['/nowhere/libgomp.so.1']\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3):\n"
        "        services = threads.Services()\n"
        "        services.update(4)\n"
        "print(len(seen), 'libgomp1' in str(seen[0].message))\n"
        "print(struct.unpack('<QQQq', ctypes.string_at(services.address, 32)))"
    )
    assert out.splitlines() == ["1 True", "(0, 0, 0, 1)"]


def test_one_thread_needs_no_libgomp():
    out = run(
        "from nestor.runtime import threads\n"
        "threads.Services().update(1)\n"
        "print(mapped(), threads.openmp.cache_info().currsize)"
    )
    assert out == "[] 0"


def test_forked_child_does_not_hang():
    code = (
        "import torch\n"
        "from tests.unit.test_runtime_executable_calls import marks\n"
        "assert marks(2)[1] == 2\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    with warnings.catch_warnings(record=True) as seen:\n"
        "        warnings.simplefilter('always')\n"
        "        team = marks(2)[1]\n"
        "        team = marks(2)[1]\n"
        "    told = len(seen) == 1 and 'forked' in str(seen[0].message)\n"
        "    os._exit(0 if team == 1 and told else 5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "assert marks(2)[1] == 2\n"
    )
    assert run(code) == "0"


@pytest.mark.parametrize(
    ("variable", "want"), [("3", "3"), ("5,2", "5"), ("zero", "cpus"), ("0", "cpus"), ("", "cpus")]
)
def test_count_without_pytorch(variable, want):
    code = (
        "from nestor.runtime.threads import thread_count, available_cpus\n"
        "print(thread_count(), available_cpus())"
    )
    count, cpus = run(code, OMP_NUM_THREADS=variable).split()
    assert count == (cpus if want == "cpus" else want)


def test_count_respects_affinity():
    code = (
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from nestor.runtime.threads import thread_count\n"
        "print(thread_count())"
    )
    assert run(code, OMP_NUM_THREADS="") == "1"


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "4"])
def test_bad_option(bad):
    with pytest.raises(UserError, match="give a number of threads"):
        threads.thread_count(bad)


def test_option_wins():
    assert threads.thread_count(7) == 7
