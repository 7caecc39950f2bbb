"""Compile workers: crashes, limits, noise, dying parents, users without a main guard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nestor import _worker, workers
from nestor.errors import ArtifactError, IllegalSchedule, InternalError, UserError
from nestor.workers import WorkerPool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pool(tmp_path: Path):
    made = WorkerPool(1, timeout_s=20, reproducer_dir=tmp_path)
    yield made
    made.close()


def ask(**job: object) -> bytes:
    return json.dumps(job).encode()


def wait_gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_worker_is_another_process_and_is_reused(pool):
    first = pool.submit("selftest", ask(do="echo")).result()
    second = pool.submit("selftest", ask(do="echo")).result()
    assert first == second
    assert int(first) != os.getpid()
    assert pool.pids() == (int(first),)


def test_two_workers_run_at_once(tmp_path):
    pool = WorkerPool(2, reproducer_dir=tmp_path)
    try:
        jobs = [pool.submit("selftest", ask(do="sleep", seconds=0.5)) for _ in range(2)]
        assert [j.result() for j in jobs] == [b"done", b"done"]
        assert len(pool.pids()) == 2
    finally:
        pool.close()


def test_no_workers_runs_here():
    pool = WorkerPool(0)
    assert int(pool.submit("selftest", ask(do="echo")).result()) == os.getpid()
    with pytest.raises(UserError, match="mine"):
        pool.submit("selftest", ask(do="raise", error="UserError", message="mine")).result()
    assert workers.shared_pool(0) is None


def test_unknown_kind_is_refused_before_it_is_sent(pool):
    with pytest.raises(ValueError, match="unknown kind"):
        pool.submit("os:system", b"")


def test_noise_on_stdout_does_not_disturb(pool):
    assert pool.submit("selftest", ask(do="print")).result() == b"done"
    assert pool.submit("selftest", ask(do="echo")).result().isdigit()


def test_own_errors_come_back_by_class(pool):
    with pytest.raises(ArtifactError, match="text of it"):
        pool.submit(
            "selftest", ask(do="raise", error="ArtifactError", message="text of it")
        ).result()


def test_witness_survives_the_pipe():
    error = IllegalSchedule("no", question="bounds", witness={"S": {"i": 3}})
    back = _worker.decode_error(_worker.encode_error(error))
    assert isinstance(back, IllegalSchedule)
    assert (str(back), back.question, back.witness) == ("no", "bounds", {"S": {"i": 3}})


def test_other_errors_become_internal_with_a_reproducer_that_reproduces(pool):
    with pytest.raises(InternalError, match="selftest cannot do") as caught:
        pool.submit("selftest", ask(do="fly")).result()
    folder = caught.value.reproducer
    assert folder is not None
    assert f"--replay {folder}" in str(caught.value)
    replay = subprocess.run(
        [sys.executable, "-m", "nestor._worker", "--replay", folder],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert replay.returncode != 0
    assert "selftest cannot do" in replay.stderr


def test_crash_is_tried_twice_then_reported(pool):
    with pytest.raises(InternalError, match="2 compile workers: exit status 9; exit status 9") as e:
        pool.submit("selftest", ask(do="exit", status=9)).result()
    assert (Path(e.value.reproducer or "") / "payload").read_bytes() == ask(do="exit", status=9)
    assert pool.submit("selftest", ask(do="echo")).result().isdigit()


def test_worker_killed_during_a_job_is_replaced(pool):
    first = int(pool.submit("selftest", ask(do="echo")).result())
    job = pool.submit("selftest", ask(do="sleep", seconds=1.0))
    time.sleep(0.3)
    os.kill(first, signal.SIGKILL)
    assert job.result() == b"done"
    assert pool.pids() != (first,)


def test_worker_killed_between_jobs_costs_no_try(pool):
    first = int(pool.submit("selftest", ask(do="echo")).result())
    os.kill(first, signal.SIGKILL)
    assert wait_gone(first)
    assert int(pool.submit("selftest", ask(do="echo")).result()) != first


def test_time_limit(tmp_path):
    pool = WorkerPool(1, timeout_s=0.7, reproducer_dir=tmp_path)
    try:
        with pytest.raises(InternalError, match=r"longer than 0\.7 s"):
            pool.submit("selftest", ask(do="sleep", seconds=60)).result(timeout=20)
    finally:
        pool.close()


def test_memory_limit(tmp_path):
    pool = WorkerPool(1, memory_bytes=1 << 30, reproducer_dir=tmp_path)
    try:
        with pytest.raises(InternalError, match="MemoryError"):
            pool.submit("selftest", ask(do="allocate", bytes=2 << 30)).result()
    finally:
        pool.close()


def test_idle_worker_is_stopped_and_started_again(tmp_path):
    pool = WorkerPool(1, idle_s=0.2, reproducer_dir=tmp_path)
    try:
        first = int(pool.submit("selftest", ask(do="echo")).result())
        assert wait_gone(first)
        assert int(pool.submit("selftest", ask(do="echo")).result()) != first
    finally:
        pool.close()


def test_many_jobs_around_the_idle_moment_are_all_answered(tmp_path):
    pool = WorkerPool(1, idle_s=0.005, reproducer_dir=tmp_path)
    try:
        for _ in range(15):
            assert pool.submit("selftest", ask(do="echo")).result(timeout=20).isdigit()
            time.sleep(0.005)
    finally:
        pool.close()


def test_close_fails_what_runs_and_cancels_what_waits(tmp_path):
    pool = WorkerPool(1, reproducer_dir=tmp_path)
    running = pool.submit("selftest", ask(do="sleep", seconds=60))
    waiting = pool.submit("selftest", ask(do="echo"))
    time.sleep(0.5)
    pids = pool.pids()
    pool.close()
    with pytest.raises(InternalError):
        running.result(timeout=10)
    assert waiting.cancelled()
    assert all(wait_gone(p) for p in pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit("selftest", ask(do="echo"))


SCRIPT = """
import json, os, sys
sys.path.insert(0, {root!r})
open({marker!r}, "a").write("x")  # once an execution of this file; it has no main guard
from nestor.workers import WorkerPool, shared_pool
pool = shared_pool(1)
print(pool.submit("selftest", json.dumps({{"do": "echo"}}).encode()).result().decode(), flush=True)
{rest}
"""


def run_script(tmp_path: Path, rest: str) -> tuple[subprocess.Popen[str], int]:
    text = SCRIPT.format(root=str(ROOT), marker=str(tmp_path / "runs"), rest=textwrap.dedent(rest))
    (tmp_path / "user.py").write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "user.py")], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_script_without_guard_runs_once_and_leaves_no_worker(tmp_path):
    process, worker = run_script(tmp_path, "")
    assert process.wait(20) == 0
    assert (tmp_path / "runs").read_text() == "x"
    assert wait_gone(worker)


def test_workers_die_with_a_killed_parent_even_during_a_job(tmp_path):
    rest = """
    pool.submit("selftest", json.dumps({"do": "sleep", "seconds": 60}).encode())
    import time; time.sleep(60)
    """
    process, worker = run_script(tmp_path, rest)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert wait_gone(worker)


def test_module_in_the_current_folder_does_not_shadow(tmp_path):
    (tmp_path / "nestor.py").write_text("raise SystemExit('wrong module')")
    (tmp_path / "queue.py").write_text("raise SystemExit('wrong module')")
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from nestor.workers import WorkerPool;"
        "print(WorkerPool(1).submit('selftest', b'{\"do\": \"echo\"}').result().decode())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().isdigit()


def test_forked_child_gets_its_own_pool():
    code = (
        "import json, os, sys\n"
        "from nestor.workers import shared_pool\n"
        "ask = json.dumps({'do': 'echo'}).encode()\n"
        "first = shared_pool(1).submit('selftest', ask).result()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    other = shared_pool(1).submit('selftest', ask).result(timeout=20)\n"
        "    os._exit(0 if other != first else 3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "assert shared_pool(1).submit('selftest', ask).result(timeout=20) == first\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_worker_count_variable(monkeypatch):
    monkeypatch.setenv("NESTOR_WORKERS", "3")
    assert workers.default_worker_count() == 3
    monkeypatch.setenv("NESTOR_WORKERS", "many")
    with pytest.raises(UserError, match="NESTOR_WORKERS is 'many'"):
        workers.default_worker_count()


def test_system_that_starts_no_process_compiles_here(pool, monkeypatch):
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.warns(RuntimeWarning, match="compiling in this process"):
        assert int(pool.submit("selftest", ask(do="echo")).result()) == os.getpid()
