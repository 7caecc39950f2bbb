"""What a benchmark is: sizes, initial data, what to compare, how much work it is at least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Union

import numpy as np

SIZES = ("MINI", "SMALL", "MEDIUM", "LARGE", "EXTRALARGE")

Real = type[np.floating[Any]]
"""``np.float32`` or ``np.float64``."""

Value = Union[np.ndarray, np.floating[Any], int]
"""An argument of a kernel: an array, a scalar, or a loop bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One benchmark.

    Attributes:
        name: PolyBench's name.
        function: the kernel's name in ``benchmarks/polybench/kernels/``.
        parameters: names of its sizes.
        sizes: their values for each of ``SIZES``.
        fill: sizes and element type → arguments by name, PolyBench's initial data; arrays that
            PolyBench leaves alone are zero.
        outputs: the arrays that PolyBench prints at the end, and so what is compared.
        operations: sizes → arithmetic operations of the algorithm as written, common
            subexpressions and loop-invariant products counted once.
        elements: sizes → elements that must come from memory or go there: each array cell that is
            read at first counts once, each that is written counts once.
        integer: whether it computes in int32 whatever the element type.
    """

    name: str
    function: str
    parameters: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]
    fill: Callable[[SimpleNamespace, Real], dict[str, Value]]
    outputs: tuple[str, ...]
    operations: Callable[[SimpleNamespace], float]
    elements: Callable[[SimpleNamespace], float]
    integer: bool = False

    def symbols(self, size: str) -> dict[str, int]:
        """The sizes' names with their values at ``size``; KeyError if there is no such size."""
        if size not in SIZES:
            raise KeyError(f"no size {size!r}; there are: {', '.join(SIZES)}")
        return dict(zip(self.parameters, self.sizes[SIZES.index(size)], strict=True))

    def make_inputs(self, size: str, dtype: str = "float64") -> dict[str, Value]:
        """Fresh arguments of the kernel by name, in its order. dtype: float64 or float32."""
        real = {"float64": np.float64, "float32": np.float32}[dtype]
        return self.fill(SimpleNamespace(**self.symbols(size)), real)

    def work(self, size: str) -> float:
        """Arithmetic operations at ``size``."""
        return float(self.operations(SimpleNamespace(**self.symbols(size))))

    def floor_bytes(self, size: str, dtype: str = "float64") -> float:
        """Bytes that must move between memory and processor at ``size`` [bytes]."""
        width = 8 if dtype == "float64" and not self.integer else 4
        return float(self.elements(SimpleNamespace(**self.symbols(size)))) * width


def grid(*extents: int) -> list[np.ndarray]:
    """Index arrays ``i, j, …`` of an array of that shape, to compute with by broadcasting."""
    return list(np.ogrid[tuple(slice(0, n) for n in extents)])


def share(values: np.ndarray, of: int, real: Real) -> np.ndarray:
    """``values / of`` as PolyBench computes it: the integers cast to ``real``, then divided."""
    return np.ascontiguousarray(values.astype(real) / real(of))
