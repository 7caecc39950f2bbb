"""Attention as one reduction: the softmax runs along with the sum that it weighs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nestor.ir.affine import Affine, AffineLike
from nestor.ir.expr import Const, Expr, Load, Var, const, loads, map_expr, substitute_vars
from nestor.ir.monoid import online_softmax_of
from nestor.ir.program import Program, Reduction, Statement
from nestor.passes.analysis import contraction_roles, program_facts
from nestor.passes.attention import Attention, find_attention
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code


def merge_attention(program: Program, ctx: PassContext) -> Program:
    """Weigh and sum the values of an attention while its scores are made.

    Rewrite: ``m[q] = max_t X[q,t]; E = exp(X - m); l[q] = Σ_t E; O[q,d] = (Σ_t E·V[t,d]) / l[q]`` →
        ``(m, l, a)[q,d] = ⊕_t (X[q,t], 1, V[t,d]); O[q,d] = a / l`` with the monoid of online
        softmax, so that no weight is ever stored.
    Legal when: nobody else reads m, E and l. It reassociates: results differ in the last bits.
    Source: Dao et al., "FlashAttention", NeurIPS 2022.
    """
    facts = program_facts(program)
    for number in range(len(program.statements)):
        statement = program.statements[number]
        if not isinstance(statement, Statement):
            continue
        found = find_attention(statement, program, facts)
        merged = None if found is None else _merged(found)
        if merged is None:
            continue
        ctx.changed("merge_attention", statement.name, "its softmax runs along with its sum")
        statements = list(program.statements)
        statements[number] = merged
        program = replace(program, statements=tuple(statements))
        facts = program_facts(program)
    return remove_dead_code(program, ctx)


def is_online(s: Statement) -> bool:
    """Whether it weighs by a softmax that runs along with it, term by term."""
    if s.reduction is None or s.reduction.monoid.name != "online_softmax":
        return False
    total = s.elements[1]
    return isinstance(total, Const) and total.value == 1


def _merged(found: Attention) -> Statement | None:
    """The one statement; None where a final map cannot be taken over."""
    result, total, source = found.result, found.total, found.scores[-1]
    assert result.reduction is not None and total.reduction is not None
    dtype = result.elements[0].dtype
    values = _values(found)
    if values is None or any(True for f in total.reduction.final for _ in loads(f)):
        return None
    own: dict[str, AffineLike] = dict(found.names[result.name])
    at = tuple(i.substitute(own) for i in source.writes[0].indices if isinstance(i, Affine))
    if len(at) != len(source.writes[0].indices):
        return None
    score = Load(tensor=source.writes[0].tensor, indices=at, dtype=dtype)
    summed = Var(name="s1", dtype=dtype)
    weight = substitute_vars(total.reduction.final[0], {"s0": summed})
    name = total.writes[0].tensor

    def visit(node: Expr) -> Expr:
        if isinstance(node, Load) and node.tensor == name:
            return weight
        return Var(name="s2", dtype=dtype) if isinstance(node, Var) and node.name == "s0" else node

    rows = tuple(n for k, n in found.names[result.name].items() if k != found.key)
    reduction = Reduction(
        indices=result.reduction.indices,
        monoid=online_softmax_of(dtype),
        final=tuple(map_expr(f, visit) for f in result.reduction.final),
        state_indices=(rows, rows, None),
    )
    elements = (score, const(1, dtype), values)
    return replace(result, elements=elements, reduction=reduction)


def _values(found: Attention) -> Expr | None:
    """The factor of the last product that is not the weights."""
    roles = contraction_roles(found.result)
    assert roles is not None
    name = found.weights.writes[0].tensor

    def others() -> Iterator[Expr]:
        for operand in (roles.a_expr, roles.b_expr):
            if not any(load.tensor == name for load in loads(operand)):
                yield operand

    found_values = list(others())
    return found_values[0] if len(found_values) == 1 else None
