"""Transposed copies of contraction operands that would be read with a stride in the inner loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from nestor.ir.affine import Affine, variable
from nestor.ir.expr import Expr, Load, map_expr
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Program,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.analysis import (
    ContractionRoles,
    access_stride,
    contraction_roles,
    domain_volume,
    element_count,
    expression_variables,
    is_functional,
    weight_tensors,
)
from nestor.passes.context import PassContext
from nestor.passes.rewriting import (
    Names,
    extent_of,
    in_order,
    map_expressions,
    names_of,
    renumber,
    replace_statements,
)
from nestor.passes.strides import physical_indices

_NAME = "relayout_operands"


def relayout_operands(program: Program, ctx: PassContext) -> Program:
    """Transpose the operand that a contraction's vector loop reads with a stride.

    A contraction is vectorised along the index with unit stride in its result. The operand that
    moves with that index must have unit stride along it; a parameter is packed by the schedule, a
    tensor made at run time gets a copy here (K in q·kᵀ).

    Rewrite: ``S[q,t] = Σ_d Q[q,d]·K[t,d]`` → ``K'[d,t] = K[t,d]; S[q,t] = Σ_d Q[q,d]·K'[d,t]``.
    Legal when: always (a copy of what the statement reads). Done when the operand is reused by at
        least ``min_relayout_rows`` rows of the result, so the copy costs little beside the sum.
    """
    return _Relayouter(program, ctx).run()


@dataclass(slots=True)
class _Relayouter:
    program: Program
    ctx: PassContext
    names: Names = field(init=False)
    weights: set[str] = field(init=False)
    tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.names = names_of(self.program)
        self.weights = weight_tensors(self.program)
        self.tensors = {t.name: t for t in self.program.tensors}

    def run(self) -> Program:
        out: list[AnyStatement] = []
        for statement in in_order(self.program.statements):
            roles = contraction_roles(statement, self.tensors)
            if roles is not None and isinstance(statement, Statement) and is_functional(statement):
                copied = self._copy_operand(statement, roles)
                if copied is not None:
                    out += copied
                    continue
            out.append(statement)
        if len(out) == len(self.program.statements):
            return self.program
        return replace_statements(self.program, renumber(out), self.tensors.values())

    def _copy_operand(
        self, statement: Statement, roles: ContractionRoles
    ) -> tuple[Statement, Statement] | None:
        vector = self.vector_index(statement)
        if vector is None:
            return None
        if vector in roles.m:
            operand, rows = roles.a, roles.n
        elif vector in roles.n:
            operand, rows = roles.b, roles.m
        else:
            return None
        if operand.tensor in self.weights:
            return None
        if access_stride(self.tensors[operand.tensor], operand, vector) == 1:
            return None
        reason = self._refusal(statement, operand, rows)
        if reason is not None:
            self.ctx.refused(_NAME, statement.name, reason)
            return None
        self.ctx.changed(_NAME, statement.name, f"'{operand.tensor}' is transposed for '{vector}'")
        return self._make_copy(statement, operand, vector)

    def vector_index(self, statement: Statement) -> str | None:
        """The index with unit stride in the result."""
        write = statement.writes[0]
        plain = [i for i in write.indices if isinstance(i, Affine)]
        if len(plain) != len(write.indices):
            return None
        last = physical_indices(self.tensors[write.tensor], plain)
        if not last:
            return None
        names = [a for a, c in last[-1].terms if isinstance(a, str) and c == 1]
        return names[0] if len(names) == 1 else None

    def _refusal(self, statement: Statement, operand: Load, rows: tuple[str, ...]) -> str | None:
        if operand.predicate:
            return f"'{operand.tensor}' is read under a predicate"
        used = expression_variables(operand)
        ranges = [r for r in statement.domain.ranges if r.name in used]
        if len(ranges) != len(used):
            return f"'{operand.tensor}' is read at places that depend on symbols"
        if any(expression_range_depends(r, statement) for r in ranges):
            return "the bounds of its indices depend on each other"
        reuse = domain_volume(statement.domain, frozenset(rows))
        if reuse < self.ctx.options.min_relayout_rows:
            return f"'{operand.tensor}' is reused by {reuse} rows only: a copy would not pay"
        if domain_volume(statement.domain, used) > element_count(self.tensors[operand.tensor]):
            return f"'{operand.tensor}' is read more than once (a window)"
        return None

    def _make_copy(
        self, statement: Statement, operand: Load, vector: str
    ) -> tuple[Statement, Statement]:
        used = expression_variables(operand)
        ranges = [r for r in statement.domain.ranges if r.name in used and r.name != vector]
        ranges.append(statement.domain.range_of(vector))
        name = self.names.fresh(f"{operand.tensor}_t")
        places = tuple(variable(r.name) - r.lower for r in ranges)
        self.tensors[name] = Tensor(
            name=name, shape=tuple(map(extent_of, ranges)), dtype=operand.dtype, role="temp"
        )
        copy = Statement(
            name=f"{name}_s",
            domain=Domain(ranges=tuple(ranges)),
            order=statement.order[:1],
            writes=(Write(tensor=name, indices=places),),
            elements=(operand,),
            origin=statement.origin,
        )
        new_load = Load(tensor=name, indices=places, dtype=operand.dtype)

        def visit(node: Expr) -> Expr:
            return new_load if node == operand else node

        return copy, map_expressions(statement, lambda e: map_expr(e, visit))


def expression_range_depends(r: IndexRange, statement: Statement) -> bool:
    """Whether an index's bounds hold other indices."""
    return bool((r.lower.variables() | r.upper.variables()) & set(statement.domain.names))
