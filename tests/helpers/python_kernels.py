"""Run a loop kernel in three ways: as plain Python, in the interpreter, as native code."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import nestor


def run_plain(kernel: nestor.Kernel, *args: Any) -> None:
    """Run the Python function itself on NumPy arrays, with the names of sizes defined."""
    bound = kernel.bind(*args)
    function = kernel.function
    names = {**function.__globals__, **bound.symbols}
    for name, value in list(names.items()):
        if isinstance(value, nestor.Kernel):
            names[name] = _as_plain(value)
    plain = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    given = [
        bound.scalars[p.name][()] if p.kind == "scalar" and not p.weak else a
        for p, a in zip(kernel.__nestor_kernel__.parameters, args)
    ]
    with np.errstate(all="ignore"):
        plain(*given)


def _as_plain(kernel: nestor.Kernel) -> Callable[..., None]:
    def run(*args: Any, **kwargs: Any) -> None:
        given = kernel.signature.bind(*args, **kwargs)
        run_plain(kernel, *given.args)

    return run


def arrays_of(args: tuple[Any, ...]) -> list[np.ndarray]:
    """The arrays among arguments."""
    return [a for a in args if isinstance(a, np.ndarray)]


def copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments with arrays of their own."""
    return tuple(a.copy() if isinstance(a, np.ndarray) else a for a in args)


def assert_same(kernel: nestor.Kernel, *args: Any) -> Mapping[str, list[np.ndarray]]:
    """All three ways give the same bits. The kernel has ``contract=False``.

    Returns: the arrays after each.
    """
    results: dict[str, list[np.ndarray]] = {}
    ways: dict[str, Callable[..., None]] = {
        "python": lambda *a: run_plain(kernel, *a),
        "interpreter": kernel.interpret,
        "native": kernel,
    }
    for way, run in ways.items():
        given = copies(args)
        run(*given)
        results[way] = arrays_of(given)
    for way in ("interpreter", "native"):
        for expected, got in zip(results["python"], results[way]):
            np.testing.assert_array_equal(got, expected, err_msg=f"{kernel.name}: {way}")
    return results
