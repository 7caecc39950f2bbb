"""Merge shape symbols that an operator needs to be equal though export left them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import map_affines
from nestor.ir.program import AnyStatement, Extern, Program, Statement


class EqualSymbols:
    """Symbols known to be equal; a union-find that keeps the first name of each class."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The representative of ``name``."""
        while name in self._parent:
            name = self._parent[name]
        return name

    def equate(self, a: Affine, b: Affine) -> bool:
        """Record ``a = b`` if both are one symbol (times the same factor); False otherwise."""
        if a.const or b.const or len(a.terms) != 1 or len(b.terms) != 1:
            return a == b
        (x, c), (y, d) = a.terms[0], b.terms[0]
        if c != d or not isinstance(x, str) or not isinstance(y, str):
            return False
        x, y = self.find(x), self.find(y)
        if x != y:
            first, second = sorted((x, y))
            self._parent[second] = first
        return True

    def mapping(self) -> dict[str, Affine]:
        """Every merged name and what it becomes."""
        return {name: variable(self.find(name)) for name in self._parent}


def merge_symbols(program: Program, mapping: Mapping[str, Affine]) -> Program:
    """``program`` with merged symbols renamed everywhere."""
    if not mapping:
        return program

    def rename(a: Affine) -> Affine:
        return a.substitute(mapping) if a.terms else a

    return replace(
        program,
        symbols=tuple(s for s in program.symbols if s.name not in mapping),
        tensors=tuple(replace(t, shape=tuple(rename(e) for e in t.shape)) for t in program.tensors),
        statements=tuple(_rename_statement(s, rename) for s in program.statements),
    )


def _rename_statement(s: AnyStatement, rename: Callable[[Affine], Affine]) -> AnyStatement:
    if isinstance(s, Extern):
        return s
    domain = replace(
        s.domain,
        ranges=tuple(
            replace(r, lower=rename(r.lower), upper=rename(r.upper)) for r in s.domain.ranges
        ),
        constraints=tuple(rename(c) for c in s.domain.constraints),
    )
    writes = tuple(
        replace(
            w,
            indices=tuple(
                rename(i) if isinstance(i, Affine) else map_affines(i, rename) for i in w.indices
            ),
        )
        for w in s.writes
    )
    out: Statement = replace(
        s,
        domain=domain,
        writes=writes,
        elements=tuple(map_affines(e, rename) for e in s.elements),
    )
    if s.reduction is not None:
        final = tuple(map_affines(e, rename) for e in s.reduction.final)
        out = replace(out, reduction=replace(s.reduction, final=final))
    return out
