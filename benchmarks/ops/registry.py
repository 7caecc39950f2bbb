"""Every operator of the collection by name, and how names and patterns choose among them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from benchmarks.ops import compute, memory, reduced
from benchmarks.ops.case import Inputs, OpCase
from nestor.errors import UserError
from nestor.target.cpu import host_target

OPS: dict[str, OpCase] = {
    c.name: c for c in (*compute.cases(), *reduced.cases(), *memory.cases(host_target()))
}


def choose(asked: Sequence[str]) -> list[OpCase]:
    """The operators that names, groups or patterns (``conv*``) stand for, in the registry's order.

    Args: asked: ``all`` stands for every one, as nothing does.
    Raises: ``UserError`` for a name or pattern that fits none.
    """
    if not asked or "all" in asked:
        return list(OPS.values())
    wanted: set[str] = set()
    for pattern in asked:
        found = {c.name for c in OPS.values() if c.group == pattern}
        found |= set(fnmatch.filter(OPS, pattern))
        if not found:
            raise UserError(f"no operator {pattern!r}; there are: {', '.join(OPS)}")
        wanted |= found
    return [c for c in OPS.values() if c.name in wanted]


def load(name: str, seed: int) -> tuple[Any, Inputs]:
    """An operator's module and inputs, for a peer's process."""
    return OPS[name].module(), OPS[name].make_inputs(seed)


def load_inputs(name: str, seed: int) -> Inputs:
    """An operator's inputs alone, for a peer's process."""
    return OPS[name].make_inputs(seed)
