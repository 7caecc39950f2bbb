"""What candidates may do wrong: each is told apart, and the next one is measured all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nestor.autotune import measuring
from nestor.autotune.compile_candidates import CandidateCompiler, Compiled
from nestor.autotune.measure_native import HELPER_IR
from nestor.autotune.measure_process import CandidateFault, Runner
from nestor.autotune.measure_session import (
    REFERENCE,
    MeasureSession,
    Problem,
    RunSettings,
)
from nestor.autotune.measuring import Candidate, Limits, Measurer
from nestor.autotune.pairing import PairPolicy
from nestor.codegen.llvm import compile_ir
from nestor.config import Config
from nestor.errors import InternalError, UserError
from nestor.ir.schedule import Parallel
from nestor.kernel_job import KernelJob
from nestor.target.cpu import host_target
from tests.helpers import ir_programs, measured
from tests.helpers.measured import variant

MEMORY = 512 << 20
RUN_SECONDS = 1.0


@pytest.fixture(scope="module")
def kernel() -> Candidate:
    return measured.default(measured.doubled())


@pytest.fixture(scope="module")
def helper() -> bytes:
    return compile_ir(HELPER_IR, host_target())


def make_session(kernel: Candidate, helper: bytes, folder: Path, body: str) -> MeasureSession:
    session = MeasureSession(
        RunSettings(
            helper=helper,
            threads=2,
            run_seconds=RUN_SECONDS,
            memory_bytes=MEMORY,
            sample_ns=1e5,
            cold_bytes=0,
            folder=folder,
        )
    )
    reference = replace(variant(body, kernel), name=REFERENCE)
    session.open(
        Problem(kernel=kernel.kernel, sizes={}, seed=0, reference=reference, interpret=True)
    )
    return session


@pytest.fixture(scope="module")
def session(
    kernel: Candidate, helper: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MeasureSession]:
    made = make_session(kernel, helper, tmp_path_factory.mktemp("measure"), "good")
    yield made
    made.close()


FAULTS = [
    ("wrong element", "wrong", "1 of 1000 elements"),
    ("null", "crashed", "SIGSEGV at address 0x0"),
    ("just past the end", "wrong", "bytes 0 to 3 past its end"),
    ("just before the start", "wrong", "bytes -4 to -1 before its start"),
    ("far past the end", "crashed", "bytes past the end of '"),
    ("far before the start", "crashed", "bytes before the start of '"),
    ("writes its input", "crashed", "at byte 12, which it may only read"),
    ("reads past the end", "crashed", "bytes past the end of '"),
    ("endless", "timeout", "longer than 1 s"),
    ("maps and touches", "memory", "of memory where"),
    ("maps only", "memory", "of memory where"),
    ("overflows its stack", "crashed", "SIGSEGV"),
    ("exits", "crashed", "exit status 0"),
    ("garbles answers", "crashed", "garbled"),
    ("traps", "crashed", "SIGILL"),
    ("index out of range", "wrong", "out of range"),
    ("wrong at the third call", "wrong", "called repeatedly"),
]


@pytest.mark.parametrize(("body", "status", "words"), FAULTS, ids=[f[0] for f in FAULTS])
def test_each_fault_has_its_status_and_the_next_one_is_measured(
    session: MeasureSession, kernel: Candidate, body: str, status: str, words: str
) -> None:
    with pytest.raises(CandidateFault) as caught:
        session.admit(variant(body, kernel))
    assert caught.value.status == status, str(caught.value)
    assert words in str(caught.value)
    good = variant("good", kernel)
    session.admit(good)
    pairs = session.pairs(good, 3, 0)
    assert len(pairs) == 3
    assert all(c > 0 and r > 0 for c, r in pairs)
    session.drop(good)


def test_a_hang_while_times_are_taken_spares_the_other_variants(
    session: MeasureSession, kernel: Candidate
) -> None:
    good, bad = variant("good", kernel), variant("endless in the long run", kernel)
    session.admit(good)
    session.admit(bad)
    with pytest.raises(CandidateFault) as caught:
        for k in range(10_000):
            session.pairs(bad, 10, 10 * k)
    assert caught.value.status == "timeout"
    assert len(session.pairs(good, 2, 0)) == 2
    session.drop(good)


def test_a_runner_that_is_killed_from_outside_is_replaced(
    session: MeasureSession, kernel: Candidate
) -> None:
    good = variant("good", kernel)
    session.admit(good)
    first = session.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert len(session.pairs(good, 2, 0)) == 2
    assert session.pid != first
    session.drop(good)


@pytest.mark.parametrize("body", ["wrong element", "null", "just past the end"])
def test_a_reference_that_fails_is_our_fault(
    kernel: Candidate, helper: bytes, tmp_path: Path, body: str
) -> None:
    session = make_session(kernel, helper, tmp_path, body)
    try:
        with pytest.raises(InternalError, match="reference schedule of kernel"):
            session.admit(variant("good", kernel))
    finally:
        session.close()


def test_a_candidate_with_too_large_arrays_is_over_memory(helper: bytes, tmp_path: Path) -> None:
    kernel = measured.default(measured.doubled())
    session = make_session(kernel, helper, tmp_path, "good")
    huge = replace(kernel.kernel.tensors[0], name="extra", shape=(ir_programs.affine(MEMORY),))
    one = variant("good", kernel)
    try:
        with pytest.raises(CandidateFault) as caught:
            session.admit(replace(one, tensors=(*one.tensors, huge)))
        assert caught.value.status == "memory"
    finally:
        session.close()


def test_statuses_of_a_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Candidate
) -> None:
    """``measure`` goes on after each kind of failure, also those of compilation."""
    reduction = measured.default(ir_programs.matmul(16, 24, 32))
    loop = next(s for s in reduction.kernel.statements).domain.names[-1]
    injected = {
        "null": variant("null", kernel),
        "endless": variant("endless", kernel),
        "wrong element": variant("wrong element", kernel),
    }
    names = list(injected)
    limits = Limits(run_seconds=RUN_SECONDS, memory_bytes=MEMORY)
    policy = PairPolicy(seconds=0.05, most=6)
    config = Config.load(cache_dir=tmp_path)
    with Measurer(
        host_target(), threads=1, compile_workers=1, limits=limits, config=config, policy=policy
    ) as measurer:
        illegal = replace(
            reduction, schedule=(Parallel(loop=f"{reduction.kernel.statements[0].name}.{loop}"),)
        )
        found = measurer.measure([illegal, reduction], reduction)
        assert [m.status for m in found] == ["illegal", "ok"]
        assert found[0].detail
        assert found[1].samples_ns

        compile_ = measuring.Measurer._compile
        fakes = [replace(kernel, schedule=(name,)) for name in names]  # type: ignore[arg-type]

        def inject(self: Measurer, candidates: object, reference: Candidate) -> object:
            done = compile_(self, [reference], reference)
            for fake, name in zip(fakes, names):
                done[fake.schedule] = Compiled(status="ok", object=injected[name].object)
            return done

        real = measuring.Measurer._variant

        def tensors(self: Measurer, made: object, candidate: Candidate, name: str) -> object:
            if candidate.schedule and candidate.schedule[0] in injected:
                return replace(injected[str(candidate.schedule[0])], name=name)
            return real(self, made, candidate, name)  # type: ignore[arg-type]

        monkeypatch.setattr(measuring.Measurer, "_compile", inject)
        monkeypatch.setattr(measuring.Measurer, "_variant", tensors)
        batch = [kernel, *fakes, kernel]
        found = measurer.measure(batch, kernel)
        assert [m.status for m in found] == ["ok", "crashed", "timeout", "wrong", "ok"]
        assert all(m.samples_ns == () for m in found[1:4])
        race = measurer.race(batch, kernel)
        assert sorted(race.order) == [0, 4]
        assert race.measurements[1].status == "crashed"
        confirmed = measurer.confirm(fakes[2], kernel)
        assert not confirmed.agrees
        assert not confirmed.is_faster


def test_compiling_over_the_limits(kernel: Candidate) -> None:
    job = KernelJob(
        kernel=kernel.kernel,
        schedule=kernel.schedule,
        target=host_target(),
        function_name="kernel",
    )
    found: dict[str, Compiled] = {}
    compiler = CandidateCompiler(1, seconds=1e-3, memory_bytes=4 << 30)
    try:
        compiler.compile({"a": job, "b": job}, found.__setitem__)
    finally:
        compiler.close()
    assert {k: c.status for k, c in found.items()} == {"a": "timeout", "b": "timeout"}


def test_a_candidate_of_another_kernel_is_refused(tmp_path: Path, kernel: Candidate) -> None:
    other = measured.default(ir_programs.matmul(4, 4, 4))
    config = Config.load(cache_dir=tmp_path)
    with (
        Measurer(host_target(), config=config) as measurer,
        pytest.raises(UserError, match="another kernel"),
    ):
        measurer.measure([other], kernel)


def test_nothing_is_measured_while_something_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    compile_, ask = CandidateCompiler._run, Runner.ask

    def compiles(self: CandidateCompiler, slot: int, job: KernelJob) -> Compiled:
        events.append("compile begins")
        try:
            return compile_(self, slot, job)
        finally:
            events.append("compile ends")

    def asks(self: Runner, command: str, **arguments: object) -> object:
        events.append("run")
        return ask(self, command, **arguments)

    monkeypatch.setattr(CandidateCompiler, "_run", compiles)
    monkeypatch.setattr(Runner, "ask", asks)
    made = measured.default(ir_programs.matmul(16, 24, 32))
    batch = [
        made,
        replace(made, schedule=()),
        measured.default(ir_programs.matmul(16, 24, 32), 256),
    ]
    config = Config.load(cache_dir=tmp_path)
    with Measurer(host_target(), threads=1, compile_workers=2, config=config) as measurer:
        measurer.measure(batch, made)
    first = events.index("run")
    assert events[:first].count("compile begins") == events[:first].count("compile ends") == 3
    assert set(events[first:]) == {"run"}


ORPHAN = """
import sys
from pathlib import Path
from nestor.codegen.llvm import compile_ir
from nestor.autotune.measure_native import HELPER_IR
from nestor.target.cpu import host_target
from tests.faults import test_measure_candidates as t
kernel = t.measured.default(t.measured.doubled())
session = t.make_session(kernel, compile_ir(HELPER_IR, host_target()), Path(sys.argv[1]), "good")
session.admit(t.variant("good", kernel))
print(session.pid, flush=True)
session.admit(t.variant("endless", kernel))
"""


def test_a_runner_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """Even in an endless kernel, where it does not notice that nobody listens."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)  # it is in the endless kernel by now, or will be: both must end
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _is_running(pid):
        assert time.monotonic() < deadline, "the runner still runs"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
