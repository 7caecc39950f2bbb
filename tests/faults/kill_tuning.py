"""Several processes tune one model into one database, and are killed again and again.

``python -m tests.faults.kill_tuning --kills 200 --processes 8`` runs it at length; ``--server``
into a PostgreSQL server that is shut down twice meanwhile, in order and at once. Each process is
the real tuner (``tune_kernels``) with its real workers; only fewer times are taken of each
candidate. After every commit it appends the digests of the records to a log of its own and has the
log written to the disk: what a log names must be in the database at the end, whatever happened.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nestor.autotune import measuring, records
from nestor.autotune.choosing import tune_kernels
from nestor.autotune.measuring import Measurer
from nestor.autotune.options import TuneOptions
from nestor.autotune.pairing import PairPolicy
from nestor.autotune.records import Record, Records
from nestor.compiler import ModelKernels
from nestor.config import Config
from nestor.ir.program import Program
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel, partition_program
from nestor.target.cpu import host_target
from tests.helpers import ir_programs, measured
from tests.helpers.postgres import postgres_server

QUICK = PairPolicy(least=2, most=2, seconds=0.01, batch=2)


class QuickMeasurer(Measurer):
    """The real measurer, content with little."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{**more, "policy": QUICK, "sample_seconds": 2e-5})

    def confirm(self, *args: Any, **more: Any) -> Any:
        return super().confirm(*args, **{**more, "seeds": 1, "policy": QUICK})


class LoggedRecords(Records):
    """Records that tell in ``log`` what was committed, and in a pipe what is about to be."""

    log: int = -1
    pipe: int = -1
    name: int = 0
    untold: ClassVar[list[Record]] = []

    def add_many(self, given: Iterable[Record]) -> int:
        batch = list(given)
        os.write(self.pipe, bytes([self.name]))
        added = super().add_many(batch)
        assert self.is_usable or self.pending, "the records are lost"
        self.untold.extend(batch)
        self.tell()
        return added

    def tell(self) -> None:
        """Log what was committed, unless it waits for a server."""
        if not self.pending:
            os.write(self.log, "".join(r.digest + "\n" for r in self.untold).encode())
            os.fsync(self.log)
            self.untold.clear()

    def close(self) -> None:
        super().close()
        self.tell()
        assert not self.untold, "the records are lost"


def model() -> ModelKernels:
    """Four kernels with a few thousand schedules together."""

    def kernel(program: Program) -> FusedKernel:
        (part,) = partition_program(program, l2_bytes=1 << 20).parts
        assert isinstance(part, FusedKernel)
        return canonicalize_kernel(part)[0]

    programs = (
        ir_programs.matmul(48, 64, 40),
        ir_programs.matmul(64, 96, 70),
        ir_programs.matmul(33, 64, 50),
        measured.depthwise(),
    )
    return ModelKernels(
        kernels=tuple(map(kernel, programs)), calls=(1, 2, 3, 1), target=host_target(), threads=1
    )


def tune(config: Config, log: Path, pipe: int, name: int, seed: int, trials: int) -> None:
    """One run of the tuner, with its words in ``log`` and ``pipe``."""
    LoggedRecords.log = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    LoggedRecords.pipe, LoggedRecords.name = pipe, name
    measuring.Measurer = QuickMeasurer  # type: ignore[misc]
    records.Records = LoggedRecords  # type: ignore[misc]
    options = TuneOptions(trials=trials, strategy="random", seed=seed)
    tuning = tune_kernels(model(), config, options)
    assert tuning.trials == trials or tuning.reason != "the budget is spent", tuning


@dataclass
class Herd:
    """Processes that tune, by number; each is a fork of this one, which has loaded the modules.

    Attributes: ended: how many ended by themselves. logs: of all that ever ran.
    """

    config: Config
    folder: Path
    trials: int
    chosen: random.Random
    running: dict[int, int] = field(default_factory=dict)
    started: int = 0
    ended: int = 0

    def __post_init__(self) -> None:
        self.listen, self._speak = os.pipe()

    def start(self, number: int) -> None:
        """Start process ``number``."""
        self.started += 1
        log, seed = self.folder / f"{self.started}.log", self.chosen.randrange(1 << 30)
        sys.stdout.flush()
        child = os.fork()
        if child:
            self.running[number] = child
            return
        status = 1
        try:
            os.dup2(os.open(self.folder / f"{self.started}.err", os.O_CREAT | os.O_WRONLY), 2)
            tune(self.config, log, self._speak, number, seed, self.trials)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)

    def collect(self, restart: bool) -> None:
        """Note who ended by itself; raise if in any other way than well."""
        for number, child in list(self.running.items()):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                assert status == 0, self.complaints()
                del self.running[number]
                self.ended += 1
                if restart:
                    self.start(number)

    def kill(self, number: int) -> bool:
        """Kill a process and start another in its place; False if it had just ended."""
        child = self.running.pop(number)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        self.start(number)
        if not os.WIFSIGNALED(status):
            assert status == 0, self.complaints()
            self.ended += 1
            return False
        return True

    def about_to_commit(self, seconds: float) -> int | None:
        """Who says so next; None if nobody does for so long."""
        if not select.select([self.listen], [], [], seconds)[0]:
            return None
        return os.read(self.listen, 4096)[-1]

    def logged(self) -> list[str]:
        """Digests of all that was committed, by everyone's own word."""
        texts = (p.read_text().rpartition("\n")[0] for p in self.folder.glob("*.log"))
        return [line for text in texts for line in text.splitlines()]

    def complaints(self) -> str:
        """What processes had to say."""
        return "\n".join(p.read_text()[-2000:] for p in self.folder.glob("*.err"))


def run_kills(
    config: Config,
    folder: Path,
    *,
    kills: int,
    processes: int,
    trials: int = 40,
    seed: int = 0,
    interval: float = 0.6,
    disturb: dict[int, Callable[[], None]] | None = None,
    show: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Kill ``kills`` times, let the survivors finish, and check everything.

    Half of the kills come at a random moment, half within milliseconds of a commit.

    Args: folder: receives logs and temporary files. trials: of each run of the tuner.
        interval: random kills come so far apart at most [s]. disturb: called after so many kills.
    Returns: counts, for the report.
    """
    begin = time.monotonic()
    chosen = random.Random(seed)
    scratch = folder / "tmp"
    scratch.mkdir(parents=True)
    # Also names this run in the environment of whatever it starts.
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    herd = Herd(config, folder, trials, chosen)
    for number in range(processes):
        herd.start(number)
    done = near = 0
    while done < kills:
        herd.collect(restart=True)
        victim = chosen.randrange(processes)
        if chosen.random() < 0.5 and (told := herd.about_to_commit(10.0)) is not None:
            victim = told
            near += 1
            time.sleep(chosen.random() * 0.008)
        else:
            time.sleep(chosen.random() * interval)
            herd.collect(restart=True)
        done += herd.kill(victim)
        if disturb and done in disturb:
            disturb.pop(done)()
        if done % 20 == 0:
            show(f"{done} kills, {len(herd.logged())} records logged, {herd.ended} runs finished")
    before = herd.ended
    deadline = time.monotonic() + 300
    while herd.running:
        herd.collect(restart=False)
        herd.about_to_commit(0.05)  # nobody may wait for a pipe that is full
        assert time.monotonic() < deadline, herd.complaints()
    counts = check(config, herd, scratch)
    return {
        "kills": done,
        "near a commit": near,
        "runs": herd.started,
        "finished": herd.ended,
        "survivors": herd.ended - before,
        **counts,
        "seconds": round(time.monotonic() - begin, 1),
    }


def check(config: Config, herd: Herd, scratch: Path) -> dict[str, int]:
    """Nothing committed is lost, nothing is corrupt, nobody and nothing is left behind."""
    logged = herd.logged()
    with Records.open(config, strict=True) as found:
        kept = [r.digest for r in found.iterate()]
        verdict = found.verify()
        path = found.database.path if found.database else None
    lost = set(logged) - set(kept)
    assert not lost, f"{len(lost)} of {len(logged)} committed records are lost"
    assert verdict.is_sound, (verdict.integrity, verdict.problems)
    assert found.skipped == 0
    if path is not None:
        with contextlib.closing(sqlite3.connect(path)) as plain:
            assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert not list(path.parent.glob("*damaged*"))
    deadline = time.monotonic() + 30
    while orphans := processes_of(scratch):
        assert time.monotonic() < deadline, f"still running: {orphans}"
        time.sleep(0.1)
    left = list(scratch.glob("nestor-measure-*"))
    for folder in left:
        os.utime(folder, (0, 0))  # as if they had been there for long
    with Measurer(host_target(), config=config):
        pass
    assert not list(scratch.glob("nestor-measure-*"))
    return {"logged": len(logged), "records": len(kept), "folders swept": len(left)}


def processes_of(scratch: Path) -> list[str]:
    """Command lines of our workers whose environment names ``scratch``."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(place.name) != os.getpid():
                # A process that has ended but was not collected has no environment any more.
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                is_here = f"TMPDIR={scratch}\0".encode() in (place / "environ").read_bytes()
                if is_here and "-m nestor" in command:
                    found.append(command)
    return found


def main() -> None:
    """Entry point of ``python -m tests.faults.kill_tuning``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--interval", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", action="store_true", help="PostgreSQL, not a SQLite file")
    parser.add_argument("--down", type=float, default=1.0, help="how long it is away [s]")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nestor-kills-")))
        url = f"sqlite:///{folder}/records.db"
        disturb: dict[int, Callable[[], None]] = {}
        if given.server:
            server = stack.enter_context(postgres_server())
            url = server.url

            def restart(how: signal.Signals) -> None:
                server.stop(how)
                time.sleep(given.down)
                server.start()

            disturb[given.kills // 3] = lambda: restart(signal.SIGINT)
            disturb[2 * given.kills // 3] = lambda: restart(signal.SIGQUIT)
        counts = run_kills(
            Config.load(cache_dir=folder / "cache", cache=url, workers=1),
            folder / "logs",
            kills=given.kills,
            processes=given.processes,
            trials=given.trials,
            interval=given.interval,
            seed=given.seed,
            disturb=disturb,
            show=lambda line: print(line, flush=True),
        )
        tempfile.tempdir = None
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
