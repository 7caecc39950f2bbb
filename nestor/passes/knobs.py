"""Knobs: what the rules of a kernel's schedule leave open, each with its values and its default.

A rule that could as well decide otherwise asks for a knob by name. Without further word it gets the
default; a search gives other values. So the space of a kernel's schedules is what its own rules ask
for on the way, and a constraint is stated once, where the values of a knob are listed: they are
those that make sense, and what one decision leaves over for the next follows from running the
rules. Source: schedules as traces of decisions, Shao et al., Tensor Program Optimization with
Probabilistic Programs, NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

Value = Union[int, str, tuple[int, ...]]
"""Of a knob: a size, the name of an order, sizes that are decided together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One open decision.

    Attributes:
        name: statement and decision, e.g. ``S0.tile``; unique in a kernel.
        values: all that make sense, in an order in which neighbours are alike.
        default: what the rules take without search.
        meaning: one line, with the unit.
    """

    name: str
    values: tuple[Value, ...]
    default: Value
    meaning: str

    def __post_init__(self) -> None:
        if self.default not in self.values:
            raise ValueError(f"knob '{self.name}': {self.default!r} is none of its values")

    def neighbours(self, value: Value) -> tuple[Value, ...]:
        """The values beside ``value``; of sizes decided together those that differ in one of them
        by one step."""
        if not isinstance(value, tuple):
            at = self.values.index(value)
            return tuple(self.values[p] for p in (at - 1, at + 1) if 0 <= p < len(self.values))
        found: list[Value] = []
        for place in range(len(value)):
            line = sorted(
                v for v in self.values if isinstance(v, tuple) and _same_but(v, value, place)
            )
            at = line.index(value)
            found += [line[p] for p in (at - 1, at + 1) if 0 <= p < len(line)]
        return tuple(found)


def _same_but(a: tuple[int, ...], b: tuple[int, ...], place: int) -> bool:
    return all(x == y for p, (x, y) in enumerate(zip(a, b)) if p != place)


class Choices:
    """Decisions given beforehand, and the knobs that the rules asked for on their way.

    Args: given: value by name of a knob. Names that are not asked for do nothing, and a value that
        the knob does not have gives way to the default: decisions outlive the rules they are for.
    """

    def __init__(self, given: Mapping[str, Value] | None = None):
        self._given = dict(given or {})
        self.asked: dict[str, Knob] = {}
        self._decided: dict[str, Value] = {}

    def choose(self, name: str, values: Sequence[Value], default: Value, meaning: str) -> Value:
        """Decide; what has a single value is no knob."""
        every = tuple(dict.fromkeys(values))
        if default not in every:
            every = (*every, default)
        if len(every) == 1:
            return default
        knob = Knob(name=name, values=every, default=default, meaning=meaning)
        self.asked[name] = knob
        self._decided[name] = self._decide(knob)
        return self._decided[name]

    def given(self) -> tuple[tuple[str, Value], ...]:
        """What was decided beforehand."""
        return tuple(self._given.items())

    def point(self) -> tuple[tuple[str, Value], ...]:
        """Every knob that was asked for and what was decided, in the order of asking."""
        return tuple(self._decided.items())

    def otherwise(self) -> tuple[tuple[str, Value], ...]:
        """What was asked for and decided otherwise than by default."""
        return tuple((n, v) for n, v in self._decided.items() if v != self.asked[n].default)

    def _decide(self, knob: Knob) -> Value:
        value = self._given.get(knob.name, knob.default)
        return value if value in knob.values else knob.default

    def size(self, name: str, values: Sequence[int], default: int, meaning: str) -> int:
        """A size or a count; its values in ascending order."""
        value = self.choose(name, sorted({*values, default}), default, meaning)
        assert isinstance(value, int)
        return value

    def word(self, name: str, values: Sequence[str], default: str, meaning: str) -> str:
        """One of several names."""
        value = self.choose(name, values, default, meaning)
        assert isinstance(value, str)
        return value

    def sizes(
        self, name: str, values: Sequence[tuple[int, ...]], default: tuple[int, ...], meaning: str
    ) -> tuple[int, ...]:
        """Several sizes at once, which depend on each other."""
        value = self.choose(name, sorted({*values, default}), default, meaning)
        assert isinstance(value, tuple)
        return value
