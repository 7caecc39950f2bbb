"""Which instruction sets this machine has, and whether code made for a target runs on it."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

from nestor.errors import ArtifactError
from nestor.runtime.manifest import TargetInfo

_CPUINFO_NAMES = {
    "sse3": "pni", "lzcnt": "abm", "bmi": "bmi1", "pclmul": "pclmulqdq", "sahf": "lahf_lm",
    "rdrnd": "rdrand", "prfchw": "3dnowprefetch",
}  # fmt: skip
"""LLVM's names that differ from the kernel's by more than punctuation."""


def _plain(name: str) -> str:
    return re.sub(r"[._-]", "", name.lower())


@functools.cache
def machine_features() -> frozenset[str] | None:
    """Flags of ``/proc/cpuinfo`` without punctuation; None where they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(_plain(f) for f in found[1].split()) if found else None


def missing_features(target: TargetInfo) -> tuple[str, ...]:
    """What this machine lacks to run code for ``target``; empty when it can run it.

    Names are the kernel's or LLVM's. Where the machine cannot be read, nothing counts as missing.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return (f"an x86-64 processor (this is {platform.machine()})",)
    have = machine_features()
    if have is None:
        return ()
    return tuple(
        f for f in target.features
        if _plain(f) not in have and _plain(_CPUINFO_NAMES.get(f, f)) not in have
    )  # fmt: skip


def choose_variant(targets: list[TargetInfo], where: str) -> int:
    """The position of the best target that this machine runs: the one with the most features.

    Raises:
        ArtifactError: it runs none; names what is missing and how to compile for it.
    """
    lacking = [missing_features(t) for t in targets]
    runnable = [i for i, missing in enumerate(lacking) if not missing]
    if runnable:
        return max(runnable, key=lambda i: (len(targets[i].features), -i))
    least = min(range(len(targets)), key=lambda i: len(lacking[i]))
    name = targets[least].name or targets[least].triple
    raise ArtifactError(
        f"{where}: its code is for {name}, and this CPU lacks {', '.join(lacking[least])}\n"
        "  fix: compile it again with --target x86-64-v3 (or on this machine)"
    )
