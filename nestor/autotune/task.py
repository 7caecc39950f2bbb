"""A kernel in tuning: what is known of it, and what the next trials may gain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nestor.autotune.kernel_inputs import Array
from nestor.autotune.records.record import KernelKey
from nestor.autotune.space import Candidate
from nestor.autotune.strategies import Strategy
from nestor.ir.program import Program

_FIRST_GAIN = 0.2
"""Part of its time that a kernel nobody tried yet is hoped to lose."""

_FADING = 1.5
"""Hope falls with this power of the number of batches: later ones find less."""

_LEAST_ROOM = 0.01
"""Part of its time that any kernel may lose: the limit rests on a guess at the machine's speed."""

_RECENT = 3
"""Batches over which a kernel's progress is looked at."""


@dataclass(slots=True)
class Task:
    """One kernel, of a model or by itself.

    Attributes:
        name: for people.
        key: of its records.
        calls: how often the model calls it.
        default: its schedule without search.
        strategy: what proposes schedules, and knows how they did.
        limit_ns: no schedule takes less [ns].
        sizes: values of the kernel's symbols, which ``key`` has bound to them.
        inputs: what it is measured with, by tensor; None: drawn at random.
        default_ns: time of a call with the default, as measured last [ns]; 0: not yet.
        trials: candidates measured in this run. seconds: what they took [s].
        best, ratio: the fastest schedule, and its time over the default's.
        progress: ``ratio`` after each batch of this run.
        is_exhausted: the strategy has no further candidates.
        confirmed: what the winner's confirmation gave: its time over the default's; None: not yet.
        winner: the candidate that was confirmed. asked: the one that a confirmation was asked for
            last.
    """

    name: str
    key: KernelKey
    calls: int
    default: Candidate
    strategy: Strategy
    limit_ns: float
    sizes: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, Array] | None = None
    default_ns: float = 0.0
    trials: int = 0
    seconds: float = 0.0
    best: Candidate = field(init=False)
    ratio: float = 1.0
    progress: list[float] = field(default_factory=list)
    is_exhausted: bool = False
    confirmed: float | None = None
    winner: Candidate | None = None
    asked: Candidate | None = None

    def __post_init__(self) -> None:
        self.best = self.default

    @property
    def kernel(self) -> Program:
        """What is tuned, in canonical form."""
        return self.strategy.space.kernel

    @property
    def total_ns(self) -> float:
        """Time of all calls of the model's, with the best schedule so far [ns]."""
        return self.calls * self.default_ns * self.ratio

    def tell(self, candidate: Candidate, ratio: float | None) -> None:
        """What became of a candidate: its time over the default's, or None if it failed."""
        self.strategy.tell(candidate, None if ratio is None else 1 / ratio)
        if ratio is not None and ratio < self.ratio:
            self.best, self.ratio = candidate, ratio

    def end_batch(self, trials: int, seconds: float) -> None:
        """Note that a batch of trials is over."""
        self.trials += trials
        self.seconds += seconds
        self.progress.append(self.ratio)

    def end_confirmation(self, ratio: float | None) -> None:
        """Note what ``best`` gave when it was measured once more; None: it was no faster."""
        self.asked = self.best
        if ratio is not None and (self.confirmed is None or ratio < self.confirmed):
            self.confirmed, self.winner = ratio, self.best

    def expected_gain_ns(self) -> float:
        """What a model's call is hoped to lose by the next batch [ns].

        The better of two guesses: as much a batch as the last ones gave; and a hope that fades with
        every batch. Neither more than what separates the kernel from its limit.
        Source: the gradients of Ansor's task scheduler, Zheng et al., OSDI 2020, section 6.
        """
        if self.is_exhausted:
            return 0.0
        batches = len(self.progress)
        hope = _FIRST_GAIN * math.pow(1 + batches, -_FADING)
        if batches:
            window = min(_RECENT, batches)
            before = self.progress[-window - 1] if batches > window else 1.0
            hope = max(hope, (before - self.ratio) / before / window)
        now = self.default_ns * self.ratio
        room = max(_LEAST_ROOM, 1 - self.limit_ns / now) if now else 1.0
        return self.total_ns * min(hope, room)

    def expected_seconds(self, guess: float) -> float:
        """How long a batch takes [s]; ``guess`` before the first one."""
        batches = len(self.progress)
        return max(0.01, self.seconds / batches) if batches else guess
