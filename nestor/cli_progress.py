"""Progress on standard error: drawn by rich on a terminal, silent elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def status(what: str) -> Iterator[None]:
    """Show that something goes on, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    try:
        from rich.console import Console
    except ImportError:
        print(f"{what} …", file=sys.stderr)
        yield
        return
    with Console(stderr=True).status(what):
        yield


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on a terminal; silence elsewhere."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda what, done: None
        return
    if not sys.stderr.isatty():
        yield lambda what, done: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def tell(what: str, done: float) -> None:
            bar.update(task, description=what, completed=math.floor(done * 1000) / 1000)

        yield tell
