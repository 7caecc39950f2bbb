"""Peers limited to AVX2: what is set, who is refused, and that AVX-512 is noticed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import isa, peers
from nestor.benchmarking import peers as known
from nestor.errors import UserError

ROOT = Path(__file__).parents[2]

CODE = """
import ctypes, pathlib, sys
from benchmarks import isa
from benchmarks.c_library import build_library
folder = pathlib.Path(sys.argv[1])
source = "void wide(void) {{ __asm__ volatile(\\"{body}\\" ::: \\"memory\\"); }}"
(folder / "wide.c").write_text(source)
build_library(folder / "wide.c", folder / "wide.so", command="gcc", flags=("-O1",))
before = isa.uses_avx512()
ctypes.CDLL(str(folder / "wide.so")).wide()
print(before, isa.uses_avx512())
"""


def _run(body: str, folder: Path) -> str:
    environ = {**os.environ, **isa.VARIABLES, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", CODE.format(body=body), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, env=environ, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(
    "avx512f" not in Path("/proc/cpuinfo").read_text() or shutil.which("gcc") is None,
    reason="needs AVX-512 and gcc",
)
def test_avx512_is_noticed_and_avx2_is_not(tmp_path: Path) -> None:
    assert _run("vpcmpeqd %%ymm1, %%ymm1, %%ymm1", tmp_path) == "False False"
    assert _run("vpternlogd $255, %%zmm17, %%zmm17, %%zmm17", tmp_path) == "False True"


def test_peers_without_a_switch_are_left_out_or_refused() -> None:
    assert isa.default_peers("avx2", "eager,ort,nestor") == "eager,nestor"
    assert isa.default_peers("native", "eager,ort,nestor") == "eager,ort,nestor"
    with pytest.raises(UserError, match="ort cannot be limited to avx2"):
        isa.limit_peers("avx2", ["eager", "ort"], {})


def test_limits_are_set_for_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "PEERS", dict(known.PEERS))
    peers.register()
    environ: dict[str, str] = {}
    isa.limit_peers("native", ["eager", "ort"], environ)
    assert not environ
    isa.limit_peers("avx2", ["eager", "nestor"], environ)
    assert environ["ATEN_CPU_CAPABILITY"] == "avx2"
    assert environ["NESTOR_TARGET"] == "x86-64-v3"
    for name in ("eager", "compile", "ov", "openvino", "nestor"):
        assert known.PEERS[name] == f"benchmarks.isa:{name}"
        assert callable(known.resolve(known.PEERS[name]))
