"""Where in the user's model an operator comes from."""

from __future__ import annotations

import contextlib
import re
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nestor.ir.program import Origin

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH = str(Path(torch.__file__).parent)
_NESTOR = str(Path(__file__).parents[2])
_NOT_THE_MODEL = (_TORCH, _NESTOR, "<")
_LOCK = threading.RLock()


@contextlib.contextmanager
def whole_stack_traces(caller: str) -> Iterator[None]:
    """Within, traced nodes keep the frames of helper functions too, not only of ``forward``.

    Args: caller: name of the function around the export; frames outside it are dropped.
    """
    tracer: Any = torch.fx.proxy.TracerBase
    original = getattr(tracer, "_filter_traceback_frames", None)
    if original is None:  # a version that keeps what it has
        yield
        return

    def filter_frames(self: Any, summary: traceback.StackSummary) -> traceback.StackSummary:
        starts = [k for k, f in enumerate(summary) if f.name == caller]
        kept = summary[starts[-1] + 1 :] if starts else []
        kept = [f for f in kept if not f.filename.startswith(_NOT_THE_MODEL)]
        found: traceback.StackSummary = original(self, summary)
        return traceback.StackSummary.from_list(kept) if kept else found

    with _LOCK:
        tracer._filter_traceback_frames = filter_frames
        try:
            yield
        finally:
            tracer._filter_traceback_frames = original


def origin_of(node: Any) -> Origin:
    """The origin of an ``fx`` node: operator, innermost line outside PyTorch, module."""
    file, line = innermost_frame(node.meta.get("stack_trace") or "")
    stack = node.meta.get("nn_module_stack") or {}
    module = next(reversed(list(stack.values())), ("", ""))[0] if stack else ""
    return Origin(op=str(node.target), file=file, line=line, module=str(module))


def innermost_frame(trace: str) -> tuple[str, int]:
    """File and line of the innermost frame that is not PyTorch's own; the innermost otherwise."""
    frames = [(m["file"], int(m["line"])) for m in _FRAME.finditer(trace)]
    own = [f for f in frames if not f[0].startswith(_NOT_THE_MODEL)]
    return (own or frames or [("", 0)])[-1]
