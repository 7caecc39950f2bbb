"""Sizes that depend on shape symbols: integers, or small expressions evaluated at the call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Union

from nestor.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Quotient:
    """``times * (of // by)``, or ``times * (of % by)`` with ``is_modulus``."""

    of: Dim
    by: int
    times: int = 1
    is_modulus: bool = False


@dataclass(frozen=True, slots=True)
class DimExpr:
    """``const + Σ factor·monomial + Σ quotients``.

    ``terms`` holds ``("N", 2)`` or, for products of symbols, ``("N*S", 1)``. JSON:
    ``{"const": 1, "terms": {"N": 2}, "quotients": [{"of": …, "by": 2, "times": 1,
    "mod": false}]}``.
    """

    const: int = 0
    terms: tuple[tuple[str, int], ...] = ()
    quotients: tuple[Quotient, ...] = ()

    def __str__(self) -> str:
        parts = [n if f == 1 else f"{f}*{n}" for n, f in self.terms]
        for q in self.quotients:
            text = f"({q.of}) {'%' if q.is_modulus else '//'} {q.by}"
            parts.append(text if q.times == 1 else f"{q.times}*({text})")
        return " + ".join(parts + ([str(self.const)] if self.const or not parts else []))

    def to_json(self) -> dict[str, Any]:
        """See the class."""
        data: dict[str, Any] = {"const": self.const, "terms": dict(self.terms)}
        if self.quotients:
            data["quotients"] = [
                {"of": dim_to_json(q.of), "by": q.by, "times": q.times, "mod": q.is_modulus}
                for q in self.quotients
            ]
        return data

    @classmethod
    def from_json(cls, data: Any, where: str) -> DimExpr:
        """Inverse of ``to_json``. Raises ArtifactError."""
        if not isinstance(data, dict) or set(data) - {"const", "terms", "quotients"}:
            raise ArtifactError(f"{where}: not a size")
        const, terms, quotients = (
            data.get("const", 0), data.get("terms", {}), data.get("quotients", []),
        )  # fmt: skip
        if not _is_int(const) or not isinstance(terms, dict) or not isinstance(quotients, list):
            raise ArtifactError(f"{where}: not a size")
        if not all(isinstance(n, str) and _is_int(f) for n, f in terms.items()):
            raise ArtifactError(f"{where}.terms: not integers by symbol")
        return cls(const, tuple(terms.items()), tuple(_quotient(q, where) for q in quotients))


Dim = Union[int, DimExpr]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _quotient(data: Any, where: str) -> Quotient:
    if not isinstance(data, dict) or set(data) != {"of", "by", "times", "mod"}:
        raise ArtifactError(f"{where}.quotients: not a quotient")
    if not _is_int(data["by"]) or data["by"] <= 0 or not _is_int(data["times"]):
        raise ArtifactError(f"{where}.quotients: the divisor must be a positive integer")
    of = dim_from_json(data["of"], where)
    return Quotient(of, data["by"], data["times"], bool(data["mod"]))


def dim_from_json(data: Any, where: str) -> Dim:
    """Inverse of ``dim_to_json``. Raises: ``ArtifactError``."""
    return data if _is_int(data) else DimExpr.from_json(data, where)


def dim_to_json(dim: Dim) -> Any:
    """An int, or the object that ``DimExpr`` describes."""
    return dim if isinstance(dim, int) else dim.to_json()


def dim_symbols(dim: Dim) -> frozenset[str]:
    """Names of the symbols that ``dim`` depends on."""
    if isinstance(dim, int):
        return frozenset()
    own = {n for term, _ in dim.terms for n in term.split("*")}
    return frozenset(own.union(*(dim_symbols(q.of) for q in dim.quotients)))


def evaluate(dim: Dim, symbols: Mapping[str, int]) -> int:
    """Value of ``dim``; KeyError for an unknown symbol."""
    if isinstance(dim, int):
        return dim
    total = dim.const
    for term, factor in dim.terms:
        total += factor * prod(symbols[n] for n in term.split("*"))
    for q in dim.quotients:
        value = evaluate(q.of, symbols)
        total += q.times * (value % q.by if q.is_modulus else value // q.by)
    return total


def evaluate_all(dims: Iterable[Dim], symbols: Mapping[str, int]) -> tuple[int, ...]:
    """Values of several sizes."""
    return tuple(d if isinstance(d, int) else evaluate(d, symbols) for d in dims)


def solve(dim: Dim, symbol: str, size: int) -> int | None:
    """The value of ``symbol`` at which ``dim`` equals ``size``; None if there is none.

    Only for ``dim = factor * symbol + const``; others are not solved (None).
    """
    if isinstance(dim, int) or dim.quotients or len(dim.terms) != 1 or dim.terms[0][0] != symbol:
        return None
    factor = dim.terms[0][1]
    if factor == 0 or (size - dim.const) % factor:
        return None
    return (size - dim.const) // factor


def is_solvable(dim: Dim, symbol: str) -> bool:
    """Whether ``solve`` handles this form."""
    return (
        isinstance(dim, DimExpr) and not dim.quotients and len(dim.terms) == 1
        and dim.terms[0][0] == symbol and dim.terms[0][1] != 0
    )  # fmt: skip


def format_shape(dims: Sequence[Dim]) -> str:
    """``(3, N, 2*N + 1)``."""
    return "(" + ", ".join(map(str, dims)) + ("," if len(dims) == 1 else "") + ")"
