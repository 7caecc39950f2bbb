"""Give a fused kernel canonical names, so that equal work has equal text wherever it stands.

Twelve layers of a transformer have the same twelve kernels; with names normalised by position they
compile once.
"""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.hashing import canonicalize
from nestor.ir.program import Program, Statement
from nestor.passes.delinearize import statement_affines
from nestor.passes.fusion import FusedKernel


def canonicalize_kernel(fused: FusedKernel) -> tuple[FusedKernel, dict[str, str]]:
    """Rename tensors, statements, indices and symbols; drop symbols that nothing uses.

    Returns: the renamed kernel, and canonical → original name of each tensor and symbol.
    """
    used = _used_symbols(fused.kernel)
    kernel = replace(fused.kernel, symbols=tuple(s for s in fused.kernel.symbols if s.name in used))
    renamed, names = canonicalize(kernel)
    shared: dict[str, tuple[str, ...]] = {}
    for statement in kernel.statements:
        assert isinstance(statement, Statement)
        place = {n: f"i{p}" for p, n in enumerate(statement.domain.names)}
        rows = fused.shared[statement.name]
        shared[names[statement.name]] = tuple(place[n] for n in rows)
    outside = {t.name for t in kernel.tensors} | used
    originals = {new: old for old, new in names.items() if old in outside}
    return FusedKernel(renamed, shared), originals


def _used_symbols(kernel: Program) -> set[str]:
    symbols = {s.name for s in kernel.symbols}
    used: set[str] = set()
    for t in kernel.tensors:
        for e in t.shape:
            used |= e.variables()
    for s in kernel.statements:
        assert isinstance(s, Statement)
        for r in s.domain.ranges:
            used |= r.lower.variables() | r.upper.variables()
        for a in (*s.domain.constraints, *statement_affines(s)):
            used |= a.variables()
    return used & symbols
