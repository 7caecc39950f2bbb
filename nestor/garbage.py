"""Python's garbage collector, kept from looking while a model is compiled."""

from __future__ import annotations

import contextlib
import gc
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
    are large.
    """
    _enter()
    try:
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


def _enter() -> None:
    global _users, _was_enabled, _has_run
    with _lock:
        if _users == 0:
            _was_enabled = gc.isenabled()
            if _was_enabled and _has_run:
                gc.collect()
            gc.disable()
            _has_run = True
        _users += 1


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0 and _was_enabled:
            gc.enable()
