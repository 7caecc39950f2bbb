"""Time one benchmark by its peers in strict turns, and compare what they compute."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.polybench import judge, peers
from benchmarks.polybench.case import Case
from benchmarks.polybench.compare import relative_error
from benchmarks.polybench.floor import floor_seconds
from benchmarks.roofline import Machine
from nestor.benchmarking.turns import Spread
from nestor.errors import NestorError

SETTLE_SECONDS = 0.05
"""Pause before a turn, so that the last peer's threads go to sleep."""

TURN_SECONDS = 0.05
"""A turn calls a fast kernel again and again for about as long; the median counts."""

MOST_CALLS = 20

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
"""Ratios of gcc, Polly and Pluto to clang, measured once; see its ``source``."""

Tell = Callable[[str, float], None]


@dataclass(slots=True, kw_only=True)
class PeerTimes:
    """One peer's part.

    Attributes:
        name: the peer.
        seconds: of each turn [s].
        ratios: the first peer's time over this one's, turn by turn.
        compile_seconds: from source to machine code [s].
        error: the largest relative difference from the reference (``judge``).
        failure: why it did not take part; empty if it did.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    compile_seconds: float = 0.0
    error: float = 0.0
    failure: str = ""

    @property
    def median(self) -> float:
        """Median time of a call [s]."""
        return float(np.median(self.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "ratios": self.ratios,
            "compile_seconds": self.compile_seconds,
            "error": self.error,
            "failure": self.failure,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One benchmark's figures.

    Attributes:
        case: which.
        size: one of ``SIZES``.
        dtype: float64 or float32.
        peers: in the order asked for; ratios are against the first that works.
        floor_seconds: least time on this machine [s].
        operations: arithmetic operations.
        strict_error: what the element type alone costs (``judge.strict_error``).
    """

    case: Case
    size: str
    dtype: str
    peers: list[PeerTimes]
    floor_seconds: float
    operations: float
    strict_error: float = 0.0

    @property
    def freedom_error(self) -> float:
        """How far the C compilers' own answers are from the reference."""
        errors = [(p.name, p.error) for p in self.peers if not p.failure]
        return judge.freedom_error(errors, self.strict_error)

    def is_wrong(self, peer: PeerTimes) -> bool:
        """Whether the peer's outputs differ from the reference by more than rounding explains."""
        return not peer.error <= judge.allowed_error(peer.name, self.dtype, self.freedom_error)

    def is_sensitive(self, peer: PeerTimes) -> bool:
        """Whether the peer is right only by what the C compilers' freedom costs them."""
        return not self.is_wrong(peer) and peer.error > judge.ALLOWED[self.dtype]

    def peer(self, name: str) -> PeerTimes | None:
        """The peer called ``name``, if it took part."""
        return next((p for p in self.peers if p.name == name and not p.failure), None)

    def published(self) -> tuple[str, float] | None:
        """The best of the published peers and its ratio to clang; None at another size or type."""
        if (self.size, self.dtype) != (PUBLISHED["size"], PUBLISHED["dtype"]):
            return None
        ratios = PUBLISHED["kernels"][self.case.name]
        found = [(p, ratios[p]) for p in PUBLISHED["peers"] if ratios[p] is not None]
        return max(found, key=lambda item: item[1])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kernel": self.case.name,
            "size": self.size,
            "dtype": self.dtype,
            "floor_seconds": self.floor_seconds,
            "operations": self.operations,
            "strict_error": self.strict_error,
            "freedom_error": self.freedom_error,
            "published": self.published(),
            "peers": [p.to_dict() for p in self.peers],
        }


class Bench:
    """The arrays of one benchmark, restored before every call; restoring is not timed."""

    def __init__(self, case: Case, size: str, dtype: str) -> None:
        self.case, self.size, self.dtype = case, size, dtype
        self.pristine = case.make_inputs(size, dtype)
        self.arguments = {n: peers.aligned_copy(v) for n, v in self.pristine.items()}

    def restore(self) -> None:
        """Give every array its initial values again."""
        for name, value in self.pristine.items():
            if isinstance(value, np.ndarray):
                self.arguments[name][...] = value

    def timed(self, call: Callable[[], None]) -> float:
        """One call on fresh data [s]."""
        self.restore()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def outputs(self) -> dict[str, np.ndarray]:
        """Copies of what the last call computed."""
        return {name: self.arguments[name].copy() for name in self.case.outputs}


def rounds_for(seconds: float, asked: int) -> int:
    """How many turns a kernel gets whose first peer takes ``seconds``."""
    if seconds > 15:
        return 1
    if seconds > 5:
        return min(asked, 2)
    return min(asked, 5) if seconds > 1 else asked


def measure(
    case: Case,
    size: str,
    dtype: str,
    names: Sequence[str],
    machine: Machine,
    *,
    threads: int,
    rounds: int,
    tell: Tell,
    restrict: bool = True,
) -> Measured:
    """Compile ``case`` by every peer, check the answers, take turns.

    A peer that cannot compile or run it gets a ``failure``; its answer is judged by the caller.
    Args: names: of peers; the first is what the others are timed against. rounds: turns of each, at
        most; fewer for slow kernels (``rounds_for``). tell: told what is done and how much of all.
        restrict: whether C compilers are told that arrays do not overlap.
    """
    bench = Bench(case, size, dtype)
    found = [PeerTimes(name=name) for name in names]
    ready: dict[str, peers.Ready] = {}
    with tempfile.TemporaryDirectory(prefix="nestor-polybench-") as folder:
        tell(f"{case.name}: reference", 0.0)
        exact = judge.exact_outputs(case, size, bench.pristine, Path(folder))
        strict = judge.strict_error(case, size, dtype, bench.pristine, exact, Path(folder))
        for k, peer in enumerate(found):
            tell(f"{case.name}: {peer.name} compiles", 0.3 * k / len(found))
            try:
                ready[peer.name] = peers.prepare(
                    peer.name,
                    case,
                    size,
                    dtype,
                    bench.arguments,
                    threads=threads,
                    folder=Path(folder),
                    restrict=restrict,
                )
                peer.compile_seconds = ready[peer.name].compile_seconds
                # The first call warms caches up and, of slow kernels, counts.
                peer.seconds.append(bench.timed(ready[peer.name].call))
            except NestorError as error:
                peer.failure = str(error)
                continue
            peer.error = relative_error(case.name, bench.outputs(), exact)
        working = [p for p in found if not p.failure]
        if working:
            _take_turns(bench, working, ready, rounds, tell)
    return Measured(
        case=case,
        size=size,
        dtype=dtype,
        peers=found,
        floor_seconds=floor_seconds(machine, case, size, dtype),
        operations=case.work(size),
        strict_error=strict,
    )


def _take_turns(
    bench: Bench,
    working: Sequence[PeerTimes],
    ready: Mapping[str, peers.Ready],
    asked: int,
    tell: Tell,
) -> None:
    """Fill in times and ratios; the calls that were made for the answers count for slow kernels."""
    base = working[0]
    rounds = rounds_for(base.seconds[0], asked)
    if base.seconds[0] <= 5:
        for peer in working:
            peer.seconds.clear()
    gc.collect()
    gc.disable()
    try:
        while len(base.seconds) < rounds:
            tell(f"{bench.case.name}: turns", 0.3 + 0.7 * len(base.seconds) / rounds)
            for peer in working:
                time.sleep(SETTLE_SECONDS)
                peer.seconds.append(_turn(bench, ready[peer.name].call))
    finally:
        gc.enable()
    for peer in working:
        peer.ratios = [b / t for b, t in zip(base.seconds, peer.seconds, strict=True)]


def _turn(bench: Bench, call: Callable[[], None]) -> float:
    """Median time of the calls of one turn [s]."""
    times: list[float] = []
    while not times or (sum(times) < TURN_SECONDS and len(times) < MOST_CALLS):
        times.append(bench.timed(call))
    return float(np.median(times))


def spread(peer: PeerTimes) -> Spread:
    """Median ratio with its quartiles."""
    return Spread.of(peer.ratios)
