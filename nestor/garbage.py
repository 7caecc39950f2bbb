"""Python's garbage collector, kept from looking while a model is compiled."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_users = 0
_was_enabled = False
_has_run = False


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No collection meanwhile, in any thread; also a decorator.

    A collection visits every object of the process: 0.3 s where PyTorch and a model are loaded,
    while a compilation makes hardly any garbage that counting references leaves. From the second
    time on there is one before it begins: models of earlier times may still lie about, and they
    are large. Collections that were off before stay off; what others switch meanwhile is undone.
    """
    is_later = _enter()
    try:
        if is_later:
            gc.collect()
        yield
    finally:
        _leave()


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """Within ``uncollected``, collections as ever: for what may take minutes."""
    _leave()
    try:
        yield
    finally:
        _enter()


def _enter() -> bool:
    """One user more; whether earlier ones may have left something."""
    global _users, _was_enabled, _has_run
    with _lock:
        is_first, _users = _users == 0, _users + 1
        if is_first:
            _was_enabled = gc.isenabled()
            gc.disable()
        is_later = is_first and _was_enabled and _has_run
        _has_run = True
        return is_later


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
