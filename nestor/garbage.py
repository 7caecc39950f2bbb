"""Python's garbage collector, kept from looking while a model is compiled."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterator

_lock = threading.Lock()
_users = 0
_was_enabled = False
_next_look = float("inf")

_SHARE = 20.0
"""Collections between compilations take at most one part in so many of the time."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No collection meanwhile, in any thread; also a decorator.

    A collection visits every object of the process: 0.3 s where PyTorch and a model are loaded,
    while a compilation makes hardly any garbage that counting references leaves. There is one
    before a later compilation begins, if the last was long ago: models of earlier times may still
    lie about, and they are large. Collections that were off before stay off; what others switch
    meanwhile is undone.
    """
    is_first = _enter()
    try:
        if is_first and _was_enabled:
            _look()
        yield
    finally:
        _leave()


def _look() -> None:
    """Collect what earlier compilations left, now and then."""
    global _next_look
    start = time.monotonic()
    if _next_look == float("inf"):
        _next_look = start  # there was no compilation before
    elif start >= _next_look:
        gc.collect()
        end = time.monotonic()
        _next_look = end + _SHARE * (end - start)


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """Within ``uncollected``, collections as ever: for what may take minutes."""
    _leave()
    try:
        yield
    finally:
        _enter()


def _enter() -> bool:
    """One user more; whether it is the only one."""
    global _users, _was_enabled
    with _lock:
        is_first, _users = _users == 0, _users + 1
        if is_first:
            _was_enabled = gc.isenabled()
            gc.disable()
        return is_first


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0 and _was_enabled:
            gc.enable()


def _after_fork() -> None:
    """A child has none of the threads that were compiling."""
    global _lock, _users
    _lock = threading.Lock()
    if _users and _was_enabled:
        gc.enable()
    _users = 0


os.register_at_fork(after_in_child=_after_fork)
