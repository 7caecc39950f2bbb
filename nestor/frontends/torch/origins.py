"""Where in the user's model an operator comes from."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nestor.ir.program import Origin

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_NOT_THE_MODEL = (
    # With the separator, for torchvision and the like lie beside torch and are a user's code.
    str(Path(torch.__file__).parent) + os.sep,
    str(Path(__file__).parents[2]) + os.sep,
)
_TYPED_IN = ("<stdin>", "<ipython-input", "<doctest")
"""What Python calls code that a user typed. Other names in ``<>`` are of generated code."""
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
        kept = [f for f in kept if is_users_file(f.filename)]
        found: traceback.StackSummary = original(self, summary)
        return traceback.StackSummary.from_list(kept) if kept else found

    with _LOCK:
        tracer._filter_traceback_frames = filter_frames
        try:
            yield
        finally:
            tracer._filter_traceback_frames = original


def is_users_file(file: str) -> bool:
    """Whether code of ``file`` is neither PyTorch's, nor Nestor's, nor generated."""
    if file.startswith("<"):
        return file.startswith(_TYPED_IN)
    return not file.startswith(_NOT_THE_MODEL)


def origin_of(node: Any) -> Origin:
    """The origin of an ``fx`` node: operator, innermost line outside PyTorch, module.

    A model of ``torch.nn`` modules alone, such as an ``nn.Sequential``, has no such line: what is
    left is the path of the module, with its class for a reader to know it by.
    """
    file, line = innermost_frame(node.meta.get("stack_trace") or "")
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = next(reversed(list(stack.values())), ("", "")) if stack else ("", "")
    name = kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]
    module = str(path)
    if not file and not name.startswith("_"):  # else a wrapper of Nestor's own around a function
        module = f"{path} ({name})" if path and name else str(path) or name
    return Origin(op=str(node.target), file=file, line=line, module=module)


def innermost_frame(trace: str) -> tuple[str, int]:
    """File and line of the innermost frame that is the user's; ``("", 0)`` if there is none."""
    frames = [(m["file"], int(m["line"])) for m in _FRAME.finditer(trace)]
    return next((f for f in reversed(frames) if is_users_file(f[0])), ("", 0))
