"""Python's garbage collector, kept from looking while a model is compiled."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_users = 0
_was_enabled = False


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No collection meanwhile, in any thread; also a decorator.

    A collection visits every object of the process: 0.3 s where PyTorch and a model are loaded,
    while a compilation makes hardly any garbage that counting references leaves.
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
    global _users, _was_enabled
    with _lock:
        if _users == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _users += 1


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0 and _was_enabled:
            if gc.get_freeze_count() == 0:
                # What was made is old from now on; as young objects the first look would visit all.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
