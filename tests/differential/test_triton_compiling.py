"""How often a kernel is compiled, and which of its codes is taken."""

from __future__ import annotations

import pytest

from nestor.errors import RefusedByTriton

from tests.helpers import triton_runs  # isort: skip  # noqa: F401  before Triton is imported
from nestor.codegen.triton import TritonKernel, cubin
from nestor.codegen.triton.cubin import Cubin, CubinJob, compile_cubin

KERNEL = TritonKernel(
    name="kernel", source="", tensors=(), dtypes=(), written=(), symbols=(), checks=False, grid=()
)
Way = tuple[int, int, int | None]


def code(
    monkeypatch: pytest.MonkeyPatch,
    *,
    registers: dict[Way, tuple[int, int]],
    shared_kb: int = 30,
    job: tuple[int, int] = (4, 3),
    added: int = 0,
) -> tuple[Cubin, list[Way]]:
    """The code that is taken, and the ways in which the kernel was compiled.

    Args: registers: of a thread, and how many bytes spill, by warps, stages and registers at most;
        Triton refuses all others. shared_kb: that a stage takes. job: warps and stages asked for.
        added: warps that Triton adds.
    """
    asked: list[Way] = []

    def compiled(job: CubinJob, warps: int, stages: int, most: int | None = None) -> Cubin:
        way = (warps, stages, most)
        asked.append(way)
        if way not in registers:
            raise RefusedByTriton("no")
        own, spilled = registers[way]
        return Cubin(
            code=b"", function="kernel", warps=warps + added, stages=stages, parameters=0,
            scratch_bytes=0, shared_bytes=stages * shared_kb << 10, registers=own,
            spilled_bytes=spilled,
        )  # fmt: skip

    monkeypatch.setattr(cubin, "_compiled", compiled)
    warps, stages = job
    asking = CubinJob(
        kernel=KERNEL, capability=86, shared_bytes=99 << 10, warps=warps, stages=stages
    )
    return compile_cubin(asking), asked


def test_what_fits_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = code(monkeypatch, registers={(4, 3, None): (96, 0)})
    assert (found.warps, asked) == (4, [(4, 3, None)])


def test_few_bytes_take_more_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = code(monkeypatch, registers={(4, 3, None): (96, 8), (4, 3, 255): (104, 0)})
    assert (found.registers, asked) == (104, [(4, 3, None), (4, 3, 255)])


def test_many_bytes_take_more_warps(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {(4, 3, None): (255, 800), (8, 3, None): (255, 200), (16, 3, None): (90, 0)}
    found, asked = code(monkeypatch, registers=ways)
    assert (found.warps, asked) == (16, list(ways))


def test_registers_are_shared_by_all_warps(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {(16, 3, None): (80, 8), (16, 3, 128): (100, 0)}
    found, asked = code(monkeypatch, registers=ways, job=(16, 3))
    assert (found.registers, asked) == (100, list(ways))


def test_the_least_counts_if_all_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {(4, 3, None): (255, 800), (8, 3, None): (255, 200), (16, 3, None): (128, 300)}
    found, _ = code(monkeypatch, registers=ways)
    assert found.spilled_bytes == 200


def test_warps_that_triton_adds_have_registers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {(8, 3, None): (168, 8), (16, 3, None): (80, 0)}
    found, asked = code(monkeypatch, registers=ways, job=(8, 3), added=4)
    assert (found.warps, asked) == (20, list(ways))


def test_what_triton_refuses_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {(4, 3, None): (96, 32), (16, 3, None): (90, 0)}
    found, asked = code(monkeypatch, registers=ways)
    assert (found.warps, asked) == (16, [(4, 3, None), (4, 3, 255), (8, 3, None), (16, 3, None)])
    with pytest.raises(RefusedByTriton):
        code(monkeypatch, registers={})


def test_shared_memory_takes_fewer_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {(4, n, None): (96, 0) for n in (1, 2, 3)}
    found, asked = code(monkeypatch, registers=ways, shared_kb=40)
    assert (found.shared_bytes, asked) == (80 << 10, [(4, 3, None), (4, 2, None)])
    with pytest.raises(RefusedByTriton, match=r"takes 102400 bytes .* sm_86 has 101376"):
        code(monkeypatch, registers=ways, shared_kb=100)
