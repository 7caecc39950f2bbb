"""Candidates that crash, hang, take all memory or write elsewhere, through the whole tuner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nestor.autotune.compile_candidates import Compiled
from nestor.autotune.measuring import Candidate, Limits, Measurer
from nestor.autotune.options import TuneOptions
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.records import Records
from nestor.autotune.tuner import CONFIRMED, Tuner
from nestor.compiler import ModelKernels
from nestor.config import Config
from nestor.ir.schedule import Schedule
from nestor.target.cpu import host_target
from tests.helpers import ir_programs, measured
from tests.helpers.measured import BODIES

HOSTILE = {
    "null": "crashed",
    "far past the end": "crashed",
    "endless": "timeout",
    "maps and touches": "memory",
    "just past the end": "wrong",
}


def hostile_object(body: str, result: int, count: int) -> bytes:
    """A kernel that does one of ``BODIES`` to its argument ``result``, of ``count`` elements."""
    import llvmlite.binding as llvm

    text = measured._DOUBLE.replace("call void @double(ptr %args)", "")
    text = text.replace("getelementptr ptr, ptr %args, i64 1\n  %py", "RESULT\n  %py").replace(
        "RESULT", f"getelementptr ptr, ptr %args, i64 {result}"
    )
    lines = BODIES[body].replace(f"i64 {measured.COUNT + 1500}", f"i64 {count + 1500}")
    lines = lines.replace(f"i64 {measured.COUNT}\n", f"i64 {count}\n")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(
        cpu="x86-64", reloc="pic", codemodel="small"
    )
    return bytes(machine.emit_object(llvm.parse_assembly(text + lines)))


def test_the_tuner_survives_hostile_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Results of 2976 bytes end within a cache line: there is room to damage before the fence.
    fused = measured.fused(ir_programs.matmul(24, 31, 40))
    kernels = ModelKernels(kernels=(fused,), calls=(1,), target=host_target(), threads=1)
    waiting = list(HOSTILE)
    made: dict[Schedule, str] = {}
    compile_ = Measurer._compile

    def inject(
        self: Measurer, candidates: Sequence[Candidate], reference: Candidate
    ) -> dict[Schedule, Compiled]:
        found = dict(compile_(self, candidates, reference))
        for candidate in candidates:
            one = found[candidate.schedule]
            if candidate.schedule == reference.schedule or one.object is None:
                continue
            if waiting and candidate.schedule not in made:
                made[candidate.schedule] = waiting.pop()
            if body := made.get(candidate.schedule):
                outputs = {t.name for t in fused.kernel.tensors if t.role == "output"}
                place = next(k for k, n in enumerate(one.object.tensors) if n in outputs)
                code = hostile_object(body, place, 24 * 31)
                found[candidate.schedule] = replace(one, object=replace(one.object, code=code))
        return found

    monkeypatch.setattr(Measurer, "_compile", inject)
    config = Config.load(cache_dir=tmp_path)
    with (
        Records.open(config, strict=True) as records,
        Measurer(
            host_target(),
            threads=1,
            compile_workers=1,
            limits=Limits(run_seconds=1.0, memory_bytes=512 << 20),
            config=config,
            policy=PairPolicy(least=2, most=2, seconds=0.01),
            sample_seconds=2e-5,
        ) as measurer,
    ):
        options = TuneOptions(trials=len(HOSTILE) + 6, strategy="random")
        tuning = Tuner.of_model(kernels, measurer, records, options).run()
        history = records.history(tuning.tasks[0].key.digest)
    assert len(made) == len(HOSTILE)
    assert tuning.trials == sum(tuning.statuses.values()) == options.trials
    assert tuning.statuses["ok"] == 6
    found = {made[r.schedule]: r for r in history if r.schedule in made}
    assert {body: r.status for body, r in found.items()} == HOSTILE
    assert all(r.detail and not r.samples_ns for r in found.values())
    assert all(r.schedule not in made for r in history if r.strategy == CONFIRMED)
    assert tuning.tasks[0].best.schedule not in made
