"""Scales of a contraction's large operand move to its small one: ``Σ (x·s)·w = Σ x·(s·w)``.

Squeeze-and-excitation is the case at hand: every channel of an image is scaled before a product of
1x1 that has far fewer weights than the image has elements. Like ``fold_scales`` this reassociates:
results differ in the last bits, and where ``x·s`` or ``s·w`` alone overflows or is 0·∞.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nestor.ir.affine import Affine
from nestor.ir.expr import Binary, Expr, Load
from nestor.ir.program import Program, Statement
from nestor.passes.analysis import (
    ContractionRoles,
    ProgramFacts,
    contraction_roles,
    element_count,
    expression_variables,
    is_functional,
    is_pointwise,
    program_facts,
    weight_tensors,
)
from nestor.passes.context import PassContext
from nestor.passes.replacing import Replacements
from nestor.passes.rewriting import (
    extent_of,
    first_position,
    in_order,
    index_ranges,
)
from nestor.passes.substitute import Piece, inline_load, write_box
from nestor.passes.weight_copies import filled_temp

_NAME = "move_scales"

_MIN_GAIN = 2
"""Elements of the large operand for one of the scaled small one, from which on the move pays: both
are read and written once, and the small one's kernel needs a start of its own."""


def move_scales(program: Program, ctx: PassContext) -> Program:
    """Scale the operand of a contraction that has fewer elements.

    Rewrite: ``t[n,c,p] = x[n,c,p]·s[n,c]; C[n,o,p] = Σ_c t·w[o,c]`` →
        ``w'[n,o,c] = w[o,c]·s[n,c]; C[n,o,p] = Σ_c x[n,c,p]·w'[n,o,c]``.
    Legal when: ``t`` is a temp that one pointwise statement makes and the contraction alone reads,
        at one place that the maker's indices can be found for; one factor of it, ``s``, is a load
        over fewer indices than ``x``; ``w`` is a weight; all have the same float type. Done when
        ``w'`` has at most half of ``t``'s elements.
    Source: the reassociation of ``fold_scales``, for scales that are known at run time.
    """
    replacements = Replacements(program, ctx)
    facts, weights = program_facts(program), weight_tensors(program)
    for statement in in_order(program.statements):
        roles = contraction_roles(statement, facts.tensors)
        if roles is None or not isinstance(statement, Statement):
            continue
        if roles.b.tensor not in weights or roles.a.tensor in weights or roles.b.predicate:
            continue
        if not is_functional(statement):
            continue
        scaled = _scaled_operand(program, facts, statement, roles)
        if scaled is None:
            continue
        new = _with_scaled_weight(replacements, facts, statement, roles, scaled)
        if isinstance(new, str):
            ctx.refused(_NAME, statement.name, new)
            continue
        replacements.placed[statement.name] = new
        replacements.gone |= {statement.name, scaled.maker.name}
        ctx.changed(_NAME, statement.name, f"'{roles.b.tensor}' takes the scale of the other side")
    return replacements.program()


@dataclass(frozen=True, slots=True)
class _Scaled:
    """An operand ``x·scale`` in the contraction's indices, and the statement that made it."""

    maker: Statement
    x: Load
    scale: Load


def _scaled_operand(
    program: Program, facts: ProgramFacts, statement: Statement, roles: ContractionRoles
) -> _Scaled | None:
    load = roles.a
    if load != roles.a_expr or load.predicate or not load.dtype.is_float:
        return None
    if load.dtype.is_storage_only or roles.b_expr.dtype is not load.dtype:
        return None
    if not facts.is_private_temp(load.tensor):
        return None
    if len(facts.writers[load.tensor]) != 1 or len(facts.readers[load.tensor]) != 1:
        return None
    maker = program.statements[facts.writers[load.tensor][0]]
    if not isinstance(maker, Statement) or len(maker.writes) != 1:
        return None
    if not is_pointwise(maker) or not is_functional(maker):
        return None
    # What it reads is still there where the contraction stands.
    position = first_position(maker)
    if not all(facts.is_written_before(x.tensor, position) for x in maker.loads):
        return None
    factors = _factors_at(program, facts, statement, maker, load)
    if factors is None:
        return None
    a, b = factors
    many, few = (a, b) if expression_variables(b) < expression_variables(a) else (b, a)
    if not expression_variables(few) < expression_variables(many):
        return None
    return _Scaled(maker, many, few)


def _factors_at(
    program: Program, facts: ProgramFacts, statement: Statement, maker: Statement, load: Load
) -> tuple[Load, Load] | None:
    """Both factors of what ``load`` reads, over the contraction's indices."""
    written = maker.writes[0].indices
    indices = tuple(i for i in written if isinstance(i, Affine))
    if len(indices) != len(written):
        return None
    box = write_box(maker.domain, indices)
    piece = Piece(maker.name, maker.domain, indices, maker.elements[0], box)
    ranges = index_ranges(statement.domain, program.symbol_ranges())
    shapes = {name: t.shape for name, t in facts.tensors.items()}
    value = inline_load(load, [piece], statement.domain, ranges, shapes)
    if not isinstance(value, Binary) or value.op != "mul":
        return None
    a, b = value.a, value.b
    if not isinstance(a, Load) or not isinstance(b, Load) or a.predicate or b.predicate:
        return None
    return a, b


def _with_scaled_weight(
    replacements: Replacements,
    facts: ProgramFacts,
    statement: Statement,
    roles: ContractionRoles,
    scaled: _Scaled,
) -> list[Statement] | str:
    """The statements that scale the weight and use it, or why they are not made."""
    used = expression_variables(roles.b) | expression_variables(scaled.scale)
    ranges = [r for r in statement.domain.ranges if r.name in used]
    if len(ranges) != len(used) or not all(r.lower.is_const and r.upper.is_const for r in ranges):
        return "its scale depends on symbols"
    count = 1
    for r in ranges:
        count *= extent_of(r).const
    if count * _MIN_GAIN > element_count(facts.tensors[roles.a.tensor]):
        return "its weight has too many elements to be scaled for every image"
    reduced = expression_variables(scaled.scale) & set(roles.k)
    own = [r for r in ranges if r.name in expression_variables(roles.b)]
    # Results run along the weight's free indices: vectors of it too.
    own.sort(key=lambda r: r.name not in reduced)
    ranges = [*(r for r in ranges if r not in own), *own]
    names = replacements.names
    turned = filled_temp(statement, names.fresh(f"{roles.b.tensor}_turned"), own, roles.b_expr)
    element = Binary(op="mul", a=turned.load, b=scaled.scale)
    copy = filled_temp(statement, names.fresh(f"{roles.b.tensor}_scaled"), ranges, element)
    replacements.tensors += [turned.tensor, copy.tensor]
    product: Expr = Binary(op="mul", a=scaled.x, b=copy.load)
    for other in roles.others:
        product = Binary(op="mul", a=product, b=other)
    return [turned.maker, copy.maker, replace(statement, elements=(product,))]
