"""Give a fused kernel canonical names, so that equal work has equal text wherever it stands.

Twelve layers of a transformer have the same twelve kernels; with names normalised by position they
compile once.
"""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import Expr, Load, map_affines, map_expr
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Program,
    Reduction,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.fusion import FusedKernel


def canonicalize_kernel(fused: FusedKernel) -> tuple[FusedKernel, dict[str, str]]:
    """Rename tensors ``t0…``, statements ``S0…``, indices ``i0…``; positions become ranks.

    Returns: the renamed kernel, and canonical → original name for each tensor.
    """
    kernel = fused.kernel
    tensors = {t.name: f"t{n}" for n, t in enumerate(kernel.tensors)}
    ranks = _position_ranks(kernel.statements)
    statements: list[AnyStatement] = []
    shared: dict[str, tuple[str, ...]] = {}
    for number, statement in enumerate(kernel.statements):
        assert isinstance(statement, Statement)
        indices = {n: f"i{p}" for p, n in enumerate(statement.domain.names)}
        statements.append(_rename_statement(statement, f"S{number}", indices, tensors, ranks))
        shared[f"S{number}"] = tuple(indices[n] for n in fused.shared[statement.name])
    used = _used_symbols(kernel)
    renamed = Program(
        name="kernel",
        symbols=tuple(s for s in kernel.symbols if s.name in used),
        tensors=tuple(_rename_tensor(t, tensors) for t in kernel.tensors),
        statements=tuple(statements),
    )
    return FusedKernel(renamed, shared), {new: old for old, new in tensors.items()}


def _rename_tensor(tensor: Tensor, names: dict[str, str]) -> Tensor:
    # An alias of a tensor that the kernel does not touch is an array of its own to the kernel.
    alias = names.get(tensor.alias_of) if tensor.alias_of is not None else None
    return replace(tensor, name=names[tensor.name], alias_of=alias)


def _rename_statement(
    s: Statement,
    name: str,
    indices: dict[str, str],
    tensors: dict[str, str],
    ranks: dict[tuple[object, ...], int],
) -> Statement:
    mapping = {old: variable(new) for old, new in indices.items()}

    def index(value: Affine | Expr) -> Affine | Expr:
        return value.substitute(mapping) if isinstance(value, Affine) else expr(value)

    def expr(value: Expr) -> Expr:
        renamed = map_affines(value, lambda a: a.substitute(mapping))
        return map_expr(
            renamed, lambda n: replace(n, tensor=tensors[n.tensor]) if isinstance(n, Load) else n
        )

    domain = Domain(
        ranges=tuple(
            IndexRange(
                name=indices[r.name],
                lower=r.lower.substitute(mapping),
                upper=r.upper.substitute(mapping),
            )
            for r in s.domain.ranges
        ),
        constraints=tuple(c.substitute(mapping) for c in s.domain.constraints),
    )
    reduction = s.reduction
    if reduction is not None:
        reduction = _rename_reduction(reduction, indices, expr)
    return Statement(
        name=name,
        domain=domain,
        order=tuple(
            ranks[tuple(p if isinstance(p, int) else "" for p in s.order[: n + 1])]
            if isinstance(o, int)
            else indices[o]
            for n, o in enumerate(s.order)
        ),
        writes=tuple(
            Write(tensor=tensors[w.tensor], indices=tuple(index(i) for i in w.indices))
            for w in s.writes
        ),
        elements=tuple(expr(e) for e in s.elements),
        reduction=reduction,
        scatter=s.scatter,
    )


def _rename_reduction(r: Reduction, indices: dict[str, str], expr) -> Reduction:  # type: ignore[no-untyped-def]
    states = r.state_indices
    if states is not None:
        states = tuple(None if c is None else tuple(indices[n] for n in c) for c in states)
    return replace(
        r,
        indices=tuple(indices[n] for n in r.indices),
        final=tuple(expr(f) for f in r.final),
        state_indices=states,
    )


def _position_ranks(statements: tuple[AnyStatement, ...]) -> dict[tuple[object, ...], int]:
    """Each prefix of positions → its rank among its siblings."""
    siblings: dict[tuple[object, ...], set[int]] = {}
    for s in statements:
        for n, o in enumerate(s.order):
            if isinstance(o, int):
                prefix = tuple(p if isinstance(p, int) else "" for p in s.order[:n])
                siblings.setdefault(prefix, set()).add(o)
    return {
        (*prefix, value): rank
        for prefix, values in siblings.items()
        for rank, value in enumerate(sorted(values))
    }


def _used_symbols(kernel: Program) -> set[str]:
    used: set[str] = set()
    for t in kernel.tensors:
        for e in t.shape:
            used |= e.variables()
    for s in kernel.statements:
        assert isinstance(s, Statement)
        for r in s.domain.ranges:
            used |= r.lower.variables() | r.upper.variables()
    return used
