"""Take turns: start one process a peer, let them run one after the other, pair the times."""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nestor.benchmarking.peers import PEERS, check_peer_names
from nestor.errors import InternalError, UserError

Progress = Callable[[str, float], None]
"""Told what is being done, and how much of the whole is done (0 to 1)."""


_WAIT_SECONDS = 0.5
"""Pause after a round that does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How turns are taken.

    Attributes:
        rounds: how many turns each peer gets.
        turn_seconds: about how long a turn calls the model [s].
        least_calls: how many calls a turn makes at least.
        settle_seconds: pause before each turn, so that the last peer's threads go to sleep [s].
        patience_seconds: how long rounds are repeated, in all, that a gauge finds unsteady [s].
    """

    rounds: int = 15
    turn_seconds: float = 0.15
    least_calls: int = 3
    settle_seconds: float = 0.05
    patience_seconds: float = 120.0


class Gauge(Protocol):
    """Tells whether the machine gives what it has: others on its host may take a core's half."""

    def is_steady(self) -> bool:
        """Whether it does now; takes some milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of ``values``, at least one."""
        low, median, high = (float(q) for q in np.quantile(np.asarray(values), (0.25, 0.5, 0.75)))
        return cls(median=median, low=low, high=high)

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return {"median": self.median, "low": self.low, "high": self.high}


@dataclass(slots=True, kw_only=True)
class PeerResult:
    """What was measured of one peer.

    Attributes:
        name: the peer.
        failure: why it could not take part; empty if it did.
        compile_seconds: time to prepare the model [s].
        peak_bytes: how far the first call after preparing raises memory above the loaded model's
            [bytes].
        turns_ns: the median call of each turn [ns].
        ratios: per round, the first peer's turn over this one's: above 1 is faster than it.
        outputs: what the model returned, flattened.
        others: what it returned at each of the other inputs asked for, flattened.
        note: what the peer says about itself.
        externs: operators of one call that it leaves to PyTorch.
        unsteady: turns that count although a gauge found the machine unsteady in their round.
    """

    name: str
    failure: str = ""
    compile_seconds: float = 0.0
    peak_bytes: int | None = None
    turns_ns: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    outputs: list[NDArray[Any]] = field(default_factory=list)
    others: list[list[NDArray[Any]]] = field(default_factory=list)
    note: str = ""
    externs: int = 0
    unsteady: int = 0

    @property
    def call_seconds(self) -> Spread | None:
        """The spread of its turns' medians [s]; None if it took none."""
        return Spread.of([t * 1e-9 for t in self.turns_ns]) if self.turns_ns else None

    @property
    def ratio(self) -> Spread | None:
        """The spread of its paired ratios; None if there are none."""
        return Spread.of(self.ratios) if self.ratios else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the outputs."""
        call, ratio = self.call_seconds, self.ratio
        return {
            "name": self.name,
            "failure": self.failure,
            "compile_seconds": self.compile_seconds,
            "peak_bytes": self.peak_bytes,
            "call_seconds": call.to_dict() if call else None,
            "ratio": ratio.to_dict() if ratio else None,
            "turns_ns": self.turns_ns,
            "note": self.note,
            "externs": self.externs,
            "unsteady": self.unsteady,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PeerResult:
        """From ``to_dict``'s data; ``ratios`` are left to ``pair_turns``."""
        names = ("name", "failure", "compile_seconds", "peak_bytes", "turns_ns", "note", "externs")
        return cls(**{name: data[name] for name in names}, unsteady=data.get("unsteady", 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherInputs:
    """Inputs beside those that are timed, of the same shapes, to judge more answers of a peer.

    Attributes:
        loader: ``module:function`` that returns inputs, in each process.
        arguments: its keywords, plain data; one mapping an input.
    """

    loader: str = ""
    arguments: tuple[Mapping[str, Any], ...] = ()


class PeerProcess:
    """One peer in a process of its own; a context manager that ends it."""

    def __init__(
        self, *, threads: int, folders: Sequence[str] = (), patience_seconds: float = 1800.0
    ):
        """Start the process.

        Args:
            threads: for OpenMP.
            folders: put on the module search path.
            patience_seconds: how long an answer may take before the process is ended [s].
        """
        self._patience_seconds = patience_seconds
        environ = dict(os.environ)
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NESTOR_THREADS"):
            environ[variable] = str(threads)
        environ["PYTHONPATH"] = os.pathsep.join(
            [*folders, *filter(None, [environ.get("PYTHONPATH")])]
        )
        # A file, not a pipe: nobody reads it meanwhile, and a full pipe would stop the process.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nestor.benchmarking.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environ,
            text=True,
        )

    def ask(self, do: str, *arguments: Any) -> Any:
        """Give a command, wait for its answer.

        Raises: UserError when the model or the peer refuses; InternalError when the process ends.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"do": do, "arguments": arguments}) + "\n")
            process.stdin.flush()
            # Each command is answered by one line, so nothing waits in Python's own buffer.
            if not select.select([process.stdout], [], [], self._patience_seconds)[0]:
                process.kill()
                raise UserError(f"gave no answer to {do!r} for {self._patience_seconds:.0f} s")
            line = process.stdout.readline()
        if not line:
            raise InternalError(f"the process ended with status {process.wait()}\n{self._tail()}")
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply["ok"]

    def fetch_outputs(self) -> list[NDArray[Any]]:
        """What the prepared model returned, flattened."""
        return self._fetch("save_outputs")

    def fetch_others(self, others: OtherInputs) -> list[list[NDArray[Any]]]:
        """What the prepared model returns at each of ``others``, flattened."""
        if not others.arguments:
            return []
        found = self._fetch("save_others", others.loader, [dict(a) for a in others.arguments])
        each = len(found) // len(others.arguments)
        return [found[i : i + each] for i in range(0, len(found), each)] if each else []

    def _fetch(self, do: str, *arguments: Any) -> list[NDArray[Any]]:
        """The arrays that a command writes to the file it is given."""
        with tempfile.TemporaryDirectory(prefix="nestor-bench-") as folder:
            file = Path(folder) / "outputs.npz"
            count = self.ask(do, str(file), *arguments)["count"]
            with np.load(file) as data:
                return [data[f"arr_{i}"] for i in range(count)]

    def _tail(self) -> str:
        """The last lines that the process wrote to standard error."""
        self._log.seek(0)
        return "\n".join(self._log.read().splitlines()[-8:])

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process: its commands end, and it is killed if it does not notice."""
        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._log.close()


def compare(
    peers: Sequence[str],
    loader: str,
    arguments: Mapping[str, Any],
    *,
    threads: int,
    timing: Timing | None = None,
    folders: Sequence[str] = (),
    progress: Progress | None = None,
    others: OtherInputs | None = None,
    gauge: Gauge | None = None,
) -> list[PeerResult]:
    """Run one model by several peers in turns.

    Args:
        peers: names of ``PEERS``; ratios are against the first that works.
        loader: ``module:function`` that returns ``(model, inputs)`` in each process.
        arguments: its keywords, plain data.
        threads: threads of each peer.
        others: inputs whose outputs are wanted too.
        gauge: asked between turns; a round in which it says no is taken again.
    Returns: one result a peer, in order; a peer that cannot take part says why in ``failure``.
    Raises: UserError for an unknown peer.
    """
    check_peer_names(peers)
    timing = timing or Timing()
    tell = progress or (lambda what, done: None)
    results = [PeerResult(name=name) for name in peers]
    running: dict[str, PeerProcess] = {}
    try:
        for i, result in enumerate(results):
            tell(f"preparing {result.name}", 0.5 * i / len(results))
            running[result.name] = PeerProcess(threads=threads, folders=folders)
            _prepare(running[result.name], result, loader, arguments, threads)
            _ask_others(running[result.name], result, others or OtherInputs())
        _take_rounds(running, results, timing, tell, gauge)
    finally:
        for process in running.values():
            process.close()
    pair_turns(results)
    return results


def _prepare(
    process: PeerProcess,
    result: PeerResult,
    loader: str,
    arguments: Mapping[str, Any],
    threads: int,
) -> None:
    """Prepare the model in a peer's process and fetch its outputs."""
    try:
        answer = process.ask("prepare", loader, dict(arguments), PEERS[result.name], threads)
        result.compile_seconds = answer["compile_seconds"]
        result.peak_bytes = answer["peak_bytes"]
        result.note = answer["note"]
        result.externs = answer["externs"]
        result.outputs = process.fetch_outputs()
    except (UserError, InternalError) as error:
        result.failure = str(error)


def _ask_others(process: PeerProcess, result: PeerResult, others: OtherInputs) -> None:
    """Fetch a peer's outputs at the other inputs."""
    if result.failure:
        return
    try:
        result.others = process.fetch_others(others)
    except (UserError, InternalError) as error:
        result.failure = str(error)


def _take_rounds(
    running: Mapping[str, PeerProcess],
    results: Sequence[PeerResult],
    timing: Timing,
    tell: Progress,
    gauge: Gauge | None,
) -> None:
    """All rounds; those in which the machine was not steady are repeated while there is time."""
    patience_ends = time.monotonic() + timing.patience_seconds
    taken = 0
    while taken < timing.rounds and (working := [r for r in results if not r.failure]):
        tell("taking turns", 0.5 + 0.5 * taken / timing.rounds)
        is_steady = True
        for result in [*working, None]:
            # The last peer's threads sleep before the gauge is asked.
            time.sleep(timing.settle_seconds)
            is_steady = is_steady and (gauge is None or gauge.is_steady())
            if not is_steady and time.monotonic() < patience_ends:
                break
            if result is not None:
                _take_turn(running[result.name], result, timing)
        else:
            taken += 1
            for result in working:
                result.unsteady += not is_steady
            continue
        tell("waiting for the machine", 0.5 + 0.5 * taken / timing.rounds)
        for result in working:
            del result.turns_ns[taken:]
        time.sleep(_WAIT_SECONDS)


def _take_turn(process: PeerProcess, result: PeerResult, timing: Timing) -> None:
    """One turn of one peer."""
    try:
        answer = process.ask("turn", timing.turn_seconds, timing.least_calls)
        result.turns_ns.append(statistics.median(answer["times_ns"]))
    except (UserError, InternalError) as error:
        result.failure = str(error)


def pair_turns(results: Sequence[PeerResult]) -> None:
    """Fill the ratios, each against the first working peer's turn of the same round."""
    base = next((r for r in results if r.turns_ns and not r.failure), None)
    for result in results:
        if base is not None and not result.failure:
            result.ratios = [b / t for b, t in zip(base.turns_ns, result.turns_ns, strict=False)]
