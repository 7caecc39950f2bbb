"""What a search is asked for: spans of time, and how to tune."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nestor.errors import UserError

BACKGROUND_SECONDS = 600.0
"""How long ``tune="background"`` searches [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """How to tune.

    Attributes:
        seconds: budget of wall-clock time [s]; None: none. trials: candidates in all; None: no
            limit. strategy: see ``strategies.STRATEGIES``. seed: of what strategies draw.
        only: names of kernels; empty: all.
        confirm_every: winners are confirmed after so long during the search too, and then after
            ever longer spans [s]; None: only at its end.
    """

    seconds: float | None = None
    trials: int | None = None
    strategy: str = "bayesian"
    seed: int = 0
    only: tuple[str, ...] = ()
    confirm_every: float | None = None


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def parse_seconds(text: str | float) -> float:
    """A span of time, ``"90s"``, ``"1.5m"``, ``"2h"`` or a number of seconds [s].

    Raises: ``UserError`` for anything else, and for spans that are not positive.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", str(text))
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not found or not seconds > 0:
        raise UserError(f"{text!r} is no span of time; give it as 60s, 10m or 1h")
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """What ``tune=`` asks for: a search of ``seconds``, before the model serves or beside it."""

    seconds: float
    in_background: bool = False


def parse_tune(given: str | float) -> TuneRequest:
    """The meaning of ``tune=``: a span of time, ``"background"`` or ``"background:10m"``.

    Raises: ``UserError`` for anything else.
    """
    text = str(given).strip()
    place, colon, span = text.partition(":")
    if place.strip() == "background":
        return TuneRequest(
            seconds=parse_seconds(span) if colon else BACKGROUND_SECONDS, in_background=True
        )
    try:
        return TuneRequest(seconds=parse_seconds(given))
    except UserError:
        raise UserError(
            f"tune={given!r} is neither a span of time nor 'background'\n"
            "fix: tune='60s' searches for a minute before the model serves, tune='background' or "
            "'background:10m' while it does"
        ) from None
