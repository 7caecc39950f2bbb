"""CPU targets: names, JSON, fingerprints, features of the host."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nestor.errors import UserError
from nestor.target import cpu
from nestor.target.cpu import CpuTarget, host_target, parse_target


def test_levels_are_equal_under_both_names() -> None:
    assert parse_target("avx2") == parse_target("x86-64-v3")
    assert parse_target("avx512") == parse_target("x86-64-v4")


def test_vector_widths_and_registers() -> None:
    small, large = parse_target("avx2"), parse_target("avx512")
    assert (small.vector_bits, small.vector_registers, small.has_masks) == (256, 16, False)
    assert (large.vector_bits, large.vector_registers, large.has_masks) == (512, 32, True)
    assert small.lanes(32) == 8 and large.lanes(64) == 8
    assert large.llvm_features.endswith("-prefer-256-bit")
    assert "prefer" not in small.llvm_features


def test_an_unknown_name_says_which_exist() -> None:
    with pytest.raises(UserError, match=r"'sse9'.*native, auto, x86-64-v3"):
        parse_target("sse9")


def test_json_round_trip_and_refusals() -> None:
    target = host_target()
    assert CpuTarget.from_json(target.to_json()) == target
    data = target.to_json()
    del data["cores"]
    with pytest.raises(UserError, match="cores"):
        CpuTarget.from_json(data)
    with pytest.raises(UserError, match="colour"):
        CpuTarget.from_json({**target.to_json(), "colour": 1})


def test_fingerprints_depend_on_what_matters() -> None:
    from dataclasses import replace

    base = parse_target("avx2")
    assert base.fingerprint() == replace(base, ghz=9.0, memory_gbps=1.0).fingerprint()
    assert base.fingerprint() != replace(base, cores=base.cores + 1).fingerprint()
    assert base.isa_fingerprint() == replace(base, cores=99, l2_bytes=1).isa_fingerprint()
    assert base.isa_fingerprint() != parse_target("avx512").isa_fingerprint()


def test_required_features_are_flags_of_the_operating_system() -> None:
    assert set(host_target().required_features) <= cpu.host_flags()
    assert {"avx2", "fma", "bmi1", "abm", "f16c"} <= set(parse_target("avx2").required_features)


def test_a_cpu_without_avx2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "host_flags", lambda: frozenset({"sse4_2", "fma"}))
    host_target.cache_clear()
    try:
        with pytest.raises(UserError, match="avx2"):
            host_target()
    finally:
        host_target.cache_clear()


def test_flags_come_from_llvm_where_the_system_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "_cpuinfo", dict)
    if "avx2" not in cpu.host_flags():
        pytest.skip("this CPU has no AVX2")
    assert {"fma", "bmi1", "abm"} <= cpu.host_flags()


def test_roofline() -> None:
    target = parse_target("avx2")
    assert target.peak_flops_per_cycle(32) == 2 * target.fma_bits_per_cycle // 32
    assert target.peak_gflops(64, 1) * 2 == target.peak_gflops(32, 1)
    assert target.peak_gflops(32, 1 << 20) == target.peak_gflops(32, target.cores)


def test_the_module_loads_no_llvm() -> None:
    code = (
        "import sys; from nestor.target.cpu import host_target; host_target(); "
        "sys.exit('llvmlite' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
