"""Collections stop during a compilation, and go on after it."""

from __future__ import annotations

import gc
import weakref

import pytest

from nestor import garbage
from nestor.garbage import collected, uncollected


def test_within_each_other() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
        with collected():
            assert gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_was_off_stays_off() -> None:
    gc.disable()
    try:
        with uncollected(), collected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_errors_end_it() -> None:
    @uncollected()
    def fail() -> None:
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):
            fail()
        assert gc.isenabled()


class Node:
    """A model that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_earlier_ones_left_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(garbage.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(garbage, "_next_look", float("inf"))
    with uncollected():
        left = weakref.ref(Node())
    with uncollected():
        assert left() is None


def test_looking_takes_a_small_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [100.0], []

    def collect() -> None:
        looks.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(garbage.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(garbage, "_next_look", float("inf"))
    monkeypatch.setattr(garbage.gc, "collect", collect)
    for _ in range(50):
        with uncollected():
            now[0] += 2.0
    assert 2 <= len(looks) <= 6
    assert looks[0] == 102.0
