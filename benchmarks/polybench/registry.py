"""The benchmarks by name, and their kernels in the element type asked for."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from types import FunctionType
from typing import Any

from benchmarks.polybench.case import Case
from benchmarks.polybench.cases import blas, datamining, medley, products, solvers, stencils

GROUPS: dict[str, tuple[Case, ...]] = {
    "datamining": datamining.CASES,
    "blas": blas.CASES,
    "products": products.CASES,
    "solvers": solvers.CASES,
    "stencils": stencils.CASES,
    "medley": medley.CASES,
}
"""File of ``kernels/`` and ``cases/`` → its benchmarks."""

CASES: dict[str, Case] = {case.name: case for group in GROUPS.values() for case in group}
"""All 30 by PolyBench's name, in its order of groups."""


def group_of(name: str) -> str:
    """The group of benchmark ``name``; KeyError if there is none."""
    return next(g for g, cases in GROUPS.items() if CASES[name] in cases)


def kernel(name: str, dtype: str = "float64", **options: Any) -> Any:
    """The ``@nestor.kernel`` of benchmark ``name`` with ``real`` read as ``dtype``.

    Args: name: PolyBench's name; dtype: float64 or float32; options: of ``nestor.kernel``.
    Raises: KeyError if there is no such benchmark or element type.
    """
    import nestor

    types: dict[str, Any] = {"float64": nestor.f64, "float32": nestor.f32}
    module = importlib.import_module(f"benchmarks.polybench.kernels.{group_of(name)}")
    written = getattr(module, CASES[name].function)
    if dtype == "float64" and not options:
        return written
    return nestor.kernel(**options)(_with_real(written.__wrapped__, types[dtype]))


def _with_real(function: FunctionType, real: Any) -> FunctionType:
    """A copy of ``function`` in whose annotations ``real`` is another type."""
    scope = {**function.__globals__, "real": real}
    copy = FunctionType(function.__code__, scope, function.__name__)
    copy.__doc__, copy.__module__ = function.__doc__, function.__module__
    copy.__qualname__ = function.__qualname__
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    copy.__annotations__ = {
        a.arg: eval(compile(ast.Expression(a.annotation), "<annotation>", "eval"), scope)
        for a in definition.args.args
        if a.annotation is not None
    }
    return copy
