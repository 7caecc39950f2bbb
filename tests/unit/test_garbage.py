"""Collections stop during a compilation, and go on after it."""

from __future__ import annotations

import gc
import weakref

import pytest

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


def test_what_earlier_ones_left_goes() -> None:
    with uncollected():
        left = weakref.ref(Node())
    with uncollected():
        assert left() is None
