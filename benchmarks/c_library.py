"""C sources compiled by the machine's compilers to shared objects."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nestor.errors import UserError

COMPILE_LIMIT = 300
"""A compiler that takes longer has failed [s]."""

CLANG = ("clang-22", "clang-21", "clang-20", "clang-19", "clang")
"""Commands that may be clang, the newest first."""


def find_command(commands: Sequence[str]) -> str | None:
    """The first of ``commands`` that is installed."""
    return next((command for command in commands if shutil.which(command)), None)


def build_library(
    source: Path,
    target: Path,
    *,
    command: str,
    flags: Sequence[str],
    libraries: Sequence[str] = ("-lm",),
) -> None:
    """Compile ``source`` to a shared object.

    Linking is a step of its own, without ``flags``: at ``-ffast-math`` compilers link start-up code
    that lets the whole process that loads the object flush denormal numbers to zero.
    Raises: ``UserError`` with the compiler's words if it refuses, or takes too long.
    """
    unit = target.with_suffix(".o")
    steps = (
        [command, "-std=gnu99", "-fPIC", *flags, "-c", str(source), "-o", str(unit)],
        [command, "-shared", str(unit), "-o", str(target), *libraries],
    )
    for line in steps:
        try:
            done = subprocess.run(
                line, capture_output=True, text=True, check=False, timeout=COMPILE_LIMIT
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{command} took over {COMPILE_LIMIT} s for {source.name}") from None
        if done.returncode:
            raise UserError(f"{command} refused {source.name}:\n{done.stderr.strip()}")
