"""Where in the user's model an operator comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from nestor.ir.program import Origin

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH = str(Path(torch.__file__).parent)


def origin_of(node: Any) -> Origin:
    """The origin of an ``fx`` node: operator, innermost line outside PyTorch, module."""
    file, line = innermost_frame(node.meta.get("stack_trace") or "")
    stack = node.meta.get("nn_module_stack") or {}
    module = next(reversed(list(stack.values())), ("", ""))[0] if stack else ""
    return Origin(op=str(node.target), file=file, line=line, module=str(module))


def innermost_frame(trace: str) -> tuple[str, int]:
    """File and line of the innermost frame that is not PyTorch's own; the innermost otherwise."""
    frames = [(m["file"], int(m["line"])) for m in _FRAME.finditer(trace)]
    own = [f for f in frames if not f[0].startswith(_TORCH)]
    return (own or frames or [("", 0)])[-1]
