"""Whether what a peer computed is right: one rule for every kernel, size and element type.

What is right is the C program in float64, every operation in its written order and rounded by
itself: no fused multiply-adds, no reassociation. All peers are timed with more freedom than that.
An answer is right when it is within ``ALLOWED`` of that reference; or else within ``FREEDOM`` times
what that freedom costs the C compilers themselves on the same input, which is what the kernel's
conditioning makes of it: a rounding anywhere in durbin at LARGE is amplified ten-million-fold.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.polybench import registry
from benchmarks.polybench.case import Case
from benchmarks.polybench.compare import relative_error
from benchmarks.polybench.native import C_PEERS, compile_c
from nestor.errors import UserError

STRICT = ("-O3", "-march=native", "-ffp-contract=off")
"""Flags of the reference: what optimisation leaves every result as it is."""

ALLOWED = {"float64": 1e-10, "float32": 1e-4}
"""Relative difference that rounding explains in a well-conditioned kernel."""

FREEDOM = 4.0

MOST = {"float64": 1e-6, "float32": 1.0}
"""A C compiler that is this far off does not compile the same program."""


def exact_outputs(
    case: Case, size: str, pristine: Mapping[str, Any], folder: Path
) -> dict[str, np.ndarray]:
    """The reference's outputs, in float64, from inputs of any element type.

    Raises: ``UserError`` if there is no C compiler.
    """
    return _outputs(case, size, "float64", pristine, folder)


def strict_error(
    case: Case,
    size: str,
    dtype: str,
    pristine: Mapping[str, Any],
    exact: Mapping[str, np.ndarray],
    folder: Path,
) -> float:
    """What the element type alone costs: the strict program in ``dtype`` against float64."""
    if dtype == "float64" or case.integer:
        return 0.0
    return relative_error(case.name, _outputs(case, size, dtype, pristine, folder), exact)


def _outputs(
    case: Case, size: str, dtype: str, pristine: Mapping[str, Any], folder: Path
) -> dict[str, np.ndarray]:
    commands = [c for peer in C_PEERS.values() for c in peer.commands]
    command = next(filter(shutil.which, commands), None)
    if command is None:
        raise UserError(f"no C compiler for the reference (looked for {', '.join(commands)})")
    program = registry.kernel(case.name, dtype).program
    arguments = {name: _as_type(value, dtype) for name, value in pristine.items()}
    symbols = case.symbols(size)
    compile_c(program, symbols, folder, command=command, flags=STRICT)({**symbols, **arguments})
    return {name: arguments[name] for name in case.outputs}


def _as_type(value: Any, dtype: str) -> Any:
    """A fresh copy; of floats, in ``dtype``."""
    if isinstance(value, np.ndarray):
        is_float = np.issubdtype(value.dtype, np.floating)
        return np.array(value, dtype if is_float else value.dtype, order="C")
    return np.dtype(dtype).type(value) if isinstance(value, np.floating) else value


def freedom_error(errors: Iterable[tuple[str, float]], strict: float) -> float:
    """How far the C compilers' own answers are from the reference.

    Args: errors: of every peer that ran, by name. strict: see ``strict_error``.
    """
    return max([strict, *(e for name, e in errors if name in C_PEERS and np.isfinite(e))])


def allowed_error(peer: str, dtype: str, freedom: float) -> float:
    """How far ``peer`` may be from the reference. ``freedom``: see ``freedom_error``."""
    if peer in C_PEERS:
        return MOST[dtype]
    # A C compiler that is wrong itself excuses nobody.
    return max(ALLOWED[dtype], FREEDOM * min(freedom, MOST[dtype]))
