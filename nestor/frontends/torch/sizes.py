"""Symbolic sizes: SymPy expressions of ``torch.export`` as ``Affine``, and their products.

A size that a tensor can have is an ``Affine`` of the shape symbols. Products of symbols (a
flattened batch × time) are not affine; ``Size`` holds them as a coefficient times a bag of affine
factors, which is what matching the two sides of a reshape needs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nestor.errors import Unsupported
from nestor.ir.affine import Affine, affine, floor_div, modulo, variable


@dataclass(frozen=True, slots=True)
class Size:
    """``coefficient * product(factors)``; each factor is primitive (content 1) and not constant."""

    coefficient: int
    factors: tuple[Affine, ...] = ()

    def __mul__(self, other: Size) -> Size:
        factors = tuple(sorted(self.factors + other.factors, key=str))
        return Size(self.coefficient * other.coefficient, factors)

    def divide(self, other: Size) -> Size | None:
        """``self / other`` where it is certainly an integer, else None."""
        if other.coefficient == 0 or self.coefficient % other.coefficient:
            return None
        rest = Counter(self.factors)
        rest.subtract(Counter(other.factors))
        if any(n < 0 for n in rest.values()):
            return None
        return Size(self.coefficient // other.coefficient, tuple(sorted(rest.elements(), key=str)))

    @property
    def is_one(self) -> bool:
        """True for the constant 1."""
        return self.coefficient == 1 and not self.factors

    @property
    def is_zero(self) -> bool:
        """True for the constant 0."""
        return self.coefficient == 0

    @property
    def constant(self) -> int | None:
        """The value if there is no symbol, else None."""
        return None if self.factors else self.coefficient

    def as_affine(self) -> Affine | None:
        """The size as one affine expression; None for a product of symbols."""
        if not self.factors:
            return affine(self.coefficient)
        return self.factors[0] * self.coefficient if len(self.factors) == 1 else None

    def __str__(self) -> str:
        parts = [] if self.coefficient == 1 and self.factors else [str(self.coefficient)]
        return "*".join(parts + [f"({f})" for f in self.factors])


ONE_SIZE = Size(1)


def size_of(extent: Affine | int) -> Size:
    """Factor an affine extent into its content and a primitive part."""
    extent = affine(extent)
    if extent.is_const:
        return Size(extent.const)
    content = math.gcd(extent.const, *(c for _, c in extent.terms))
    primitive = Affine(tuple((a, c // content) for a, c in extent.terms), extent.const // content)
    return Size(content, (primitive,))


def product(extents: Iterable[Affine | int]) -> Size:
    """The size of a box with these extents."""
    total = ONE_SIZE
    for extent in extents:
        total = total * size_of(extent)
    return total


def size_from_torch(value: Any) -> Size:
    """A size of a (fake) tensor, int or ``SymInt``, as a ``Size``.

    Raises: Unsupported when it is neither affine in the shape symbols nor a product of such.
    """
    if isinstance(value, int):
        return Size(int(value))
    return _convert(_sympy_of(value))


def affine_from_torch(value: Any) -> Affine:
    """An int or ``SymInt`` as an ``Affine``.

    Raises: Unsupported when it is not quasi-affine (a product of two symbols, …).
    """
    if isinstance(value, Affine):
        return value
    result = size_from_torch(value).as_affine()
    if result is None:
        raise Unsupported(
            f"the size {value} is a product of symbolic sizes; make one of them static"
        )
    return result


def _sympy_of(value: Any) -> Any:
    node = getattr(value, "node", None)
    if node is None:
        raise Unsupported(f"{value!r} is not an integer size")
    return node.expr


def _convert(expr: Any) -> Size:
    """SymPy expression → ``Size``; the function names are those of ``torch.utils._sympy``."""
    if expr.is_Integer:
        return Size(int(expr))
    if expr.is_Symbol:
        return size_of(variable(str(expr)))
    if expr.is_Mul:
        total = ONE_SIZE
        for argument in expr.args:
            total = total * _convert(argument)
        return total
    if expr.is_Pow and expr.exp.is_Integer and int(expr.exp) > 0:
        total = ONE_SIZE
        for _ in range(int(expr.exp)):
            total = total * _convert(expr.base)
        return total
    if expr.is_Add:
        return size_of(sum((_affine(a, expr) for a in expr.args), start=affine(0)))
    name = type(expr).__name__
    if name in ("FloorDiv", "CleanDiv", "IntTrueDiv", "Mod", "PythonMod") and len(expr.args) == 2:
        numerator, denominator = _convert(expr.args[0]), _affine(expr.args[1], expr)
        if name not in ("Mod", "PythonMod"):
            exact = numerator.divide(size_of(denominator))
            if exact is not None:
                return exact
        if denominator.is_const and denominator.const > 0:
            whole = _affine(expr.args[0], expr)
            rule = modulo if name in ("Mod", "PythonMod") else floor_div
            return size_of(rule(whole, denominator.const))
    raise Unsupported(f"the size {expr} is not affine in the shape symbols; make it static")


def _affine(expr: Any, whole: Any) -> Affine:
    result = _convert(expr).as_affine()
    if result is None:
        raise Unsupported(f"the size {whole} is not affine in the shape symbols; make it static")
    return result
