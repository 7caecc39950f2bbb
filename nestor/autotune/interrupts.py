"""Ctrl-C that is not lost.

Python raises ``KeyboardInterrupt`` wherever the main thread happens to be; in a finalizer or a
callback from C it is printed and forgotten. A search that then went on for its hour would be what
nobody asked for, so its loop asks again.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupts:
    """A context in which Ctrl-C is remembered until it was heeded.

    Where somebody else handles the signal, or in another thread than the main one, nothing changes.
    """

    def __init__(self) -> None:
        self._is_pressed = self._is_ours = False

    def __enter__(self) -> Interrupts:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._press)
            self._is_ours = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        self._is_pressed = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises: ``KeyboardInterrupt`` if one was raised that nobody heeded."""
        if self._is_pressed:
            raise KeyboardInterrupt

    def heed(self) -> None:
        """The last one was seen."""
        self._is_pressed = False
