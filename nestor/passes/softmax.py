"""Cheaper normalisation around a contraction: divide the result, and take each exponential once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, Interval, variable
from nestor.ir.expr import (
    Binary,
    Const,
    Expr,
    Index,
    Load,
    Select,
    Unary,
    Var,
    binary,
    loads,
    map_affines,
    map_expr,
    substitute_vars,
)
from nestor.ir.program import AnyStatement, Program, Statement
from nestor.passes.analysis import (
    ProgramFacts,
    contraction_roles,
    expression_variables,
    expression_work,
    is_functional,
    is_pointwise,
    program_facts,
)
from nestor.passes.context import PassContext
from nestor.passes.index_maps import invert_map, is_within
from nestor.passes.rewriting import (
    first_position,
    in_order,
    index_ranges,
    map_expressions,
    renumber,
    replace_statements,
)

_DEFER = "defer_divisions"
_SHARE = "share_expensive_elements"
_EXPENSIVE = 15.0


@dataclass(frozen=True, slots=True)
class _Division:
    """``numerator / divisor``, or 0 where the divisor is 0 if ``guarded``."""

    numerator: Expr
    divisor: Expr
    guarded: Const | None


def defer_divisions(program: Program, ctx: PassContext) -> Program:
    """Divide a contraction's result instead of its operand.

    Rewrite: ``P[q,t] = E[q,t] / l[q]; O[q,d] = Σ_t P·V`` → ``P = E; O = (Σ_t P·V) / l[q]``;
        the same where a zero divisor gives 0.
    Legal when: the contraction alone reads ``P``, and ``l`` does not vary over what it sums. A sum
        of no terms stays 0, whatever ``l`` is (0, if that is a sum of no terms too). It
        reassociates a product (like folding a scale): results differ in the last bits, and where
        ``V`` is infinite or NaN against a weight that is 0 only after the division.
    Source: the deferred normalisation of online softmax; Milakov and Gimelshein 2018.
    """
    facts = program_facts(program)
    statements = list(program.statements)
    changed = False
    for number, statement in enumerate(program.statements):
        found = _find_division(statement, facts, statements)
        if found is None:
            continue
        division, reader_number = found
        assert isinstance(statement, Statement)
        reader = statements[reader_number]
        assert isinstance(reader, Statement)
        divisor = _in_reader(statement, division.divisor, reader, program)
        if divisor is None:
            ctx.refused(_DEFER, statement.name, "the divisor varies over what the reader sums")
            continue
        statements[number] = replace(statement, elements=(division.numerator,))
        symbols = program.symbol_ranges()
        statements[reader_number] = _divided(reader, divisor, division.guarded, symbols)
        changed = True
        ctx.changed(_DEFER, reader.name, f"divides instead of '{statement.name}'")
    return replace_statements(program, statements) if changed else program


def _find_division(
    statement: AnyStatement, facts: ProgramFacts, statements: list[AnyStatement]
) -> tuple[_Division, int] | None:
    """A pointwise division whose result one contraction alone reads."""
    if not isinstance(statement, Statement) or not is_pointwise(statement):
        return None
    if not is_functional(statement) or len(statement.writes) != 1:
        return None
    name = statement.writes[0].tensor
    if not facts.is_private_temp(name) or len(facts.writers[name]) != 1:
        return None
    division = _as_division(statement.elements[0])
    readers = facts.readers.get(name, [])
    if division is None or len(readers) != 1:
        return None
    reader = statements[readers[0]]
    roles = contraction_roles(reader)
    if roles is None or not isinstance(reader, Statement) or not is_functional(reader):
        return None
    position = first_position(reader)
    if not all(facts.is_written_before(x.tensor, position) for x in loads(division.divisor)):
        return None
    places = [x for x in reader.loads if x.tensor == name]
    plain = [x for x in (roles.a_expr, roles.b_expr) if isinstance(x, Load) and x.tensor == name]
    if len(places) != 1 or plain != places or places[0].predicate:
        return None
    return division, readers[0]


def _as_division(node: Expr) -> _Division | None:
    guarded: Const | None = None
    tested: Expr | None = None
    if isinstance(node, Select) and isinstance(node.condition, Binary):
        test = node.condition
        zero = isinstance(test.b, Const) and float(test.b.value) == 0.0
        if test.op != "eq" or not zero or not isinstance(node.a, Const) or node.a.value != 0:
            return None
        if not isinstance(node.b, Binary):
            return None
        guarded, tested, node = node.a, test.a, node.b
    if not isinstance(node, Binary) or not node.dtype.is_float:
        return None
    numerator, divisor = node.a, node.b
    if node.op == "mul" and isinstance(divisor, Unary) and divisor.op == "reciprocal":
        divisor = divisor.x
    elif node.op != "div":
        return None
    if not expression_variables(numerator) - expression_variables(divisor):
        return None  # nothing is repeated over the sum
    if tested is not None and divisor != tested:
        return None
    return _Division(numerator, divisor, guarded)


def _in_reader(
    producer: Statement, divisor: Expr, reader: Statement, program: Program
) -> Expr | None:
    """The divisor over the reader's indices, if none of them is reduced."""
    assert reader.reduction is not None
    name = producer.writes[0].tensor
    (place,) = [x for x in reader.loads if x.tensor == name]
    written = [i for i in producer.writes[0].indices if isinstance(i, Affine)]
    read = [i for i in place.indices if isinstance(i, Affine)]
    values = invert_map(written, producer.domain, read)
    if values is None:
        return None
    ranges = index_ranges(reader.domain, program.symbol_ranges())
    for r in producer.domain.ranges:
        if not is_within(values[r.name], r.lower, r.upper - 1, reader.domain, ranges):
            return None
    mapped = map_affines(divisor, lambda a: a.substitute(values).simplify(ranges))
    return None if expression_variables(mapped) & set(reader.reduction.indices) else mapped


def _divided(
    reader: Statement, divisor: Expr, guarded: Const | None, symbols: Mapping[str, Interval]
) -> Statement:
    assert reader.reduction is not None
    s0 = Var(name="s0", dtype=reader.reduction.monoid.dtypes[0])
    zero = Const(value=0, dtype=s0.dtype)
    value: Expr = binary("div", s0, divisor)
    if guarded is not None:
        is_zero = binary("eq", divisor, Const(value=0, dtype=divisor.dtype))
        value = Select(condition=is_zero, a=zero, b=value)
    for name in reader.reduction.indices:
        r = reader.domain.range_of(name)
        least = (r.upper - r.lower).bounds(symbols)[0]
        if least is None or least < 1:
            extent = Index(value=r.upper - r.lower)
            has_terms = binary("gt", extent, Const(value=0, dtype=extent.dtype))
            value = Select(condition=has_terms, a=value, b=zero)
    final = tuple(substitute_vars(f, {"s0": value}) for f in reader.reduction.final)
    return replace(reader, reduction=replace(reader.reduction, final=final))


def share_expensive_elements(program: Program, ctx: PassContext) -> Program:
    """Take an expensive element from memory where another statement computes it anyway.

    Rewrite: ``l[i] = Σ_j exp(x[i,j] - m[i]); P[i,j] = exp(x[i,j] - m[i])`` →
        ``P[i,j] = exp(x[i,j] - m[i]); l[i] = Σ_j P[i,j]``.
    Legal when: a pointwise statement writes the element, unchanged, to a temp at the indices of its
        domain; the reduction runs over the same domain; what the element reads is written before
        the reduction. The pointwise statement moves before it.
    """
    facts = program_facts(program)
    made = _expensive_elements(program, facts)
    if not made:
        return program
    moved: dict[int, list[Statement]] = {}
    rewritten: dict[str, Statement] = {}
    taken: set[str] = set()
    for number, statement in enumerate(program.statements):
        if not isinstance(statement, Statement) or statement.reduction is None:
            continue
        if not is_functional(statement):
            continue
        source = _source_of(statement, made, facts)
        if source is None:
            continue
        rewritten[statement.name] = _take(statement, source)
        if first_position(source) > first_position(statement) and source.name not in taken:
            moved.setdefault(number, []).append(source)
            taken.add(source.name)
        ctx.changed(_SHARE, statement.name, f"reads what '{source.name}' computes")
    if not rewritten:
        return program
    out: list[AnyStatement] = []
    numbers = {s.name: n for n, s in enumerate(program.statements)}
    for statement in in_order(program.statements):
        out += moved.get(numbers[statement.name], [])
        if statement.name not in taken:
            out.append(rewritten.get(statement.name, statement))
    return replace_statements(program, renumber(out))


def _expensive_elements(program: Program, facts: ProgramFacts) -> dict[Hashable, Statement]:
    """Canonical element → the pointwise statement that stores it."""
    made: dict[Hashable, Statement] = {}
    for statement in program.statements:
        if not isinstance(statement, Statement) or not is_pointwise(statement):
            continue
        if not is_functional(statement) or len(statement.writes) != 1:
            continue
        name = statement.writes[0].tensor
        if not facts.is_private_temp(name) or len(facts.writers[name]) != 1:
            continue
        if expression_work(statement.elements[0]) < _EXPENSIVE:
            continue
        free = {i for i in statement.writes[0].indices if isinstance(i, Affine) and i.terms}
        if free == {variable(n) for n in statement.domain.names}:
            made.setdefault(_key(statement, statement.elements[0]), statement)
    return made


def _key(statement: Statement, element: Expr) -> Hashable:
    names = {n: variable(f"%{p}") for p, n in enumerate(statement.domain.names)}
    ranges = tuple(
        (r.lower.substitute(names), r.upper.substitute(names)) for r in statement.domain.ranges
    )
    constraints = tuple(c.substitute(names) for c in statement.domain.constraints)
    return map_affines(element, lambda a: a.substitute(names)), ranges, constraints


def _source_of(
    statement: Statement, made: dict[Hashable, Statement], facts: ProgramFacts
) -> Statement | None:
    position = first_position(statement)
    for element in statement.elements:
        if expression_work(element) < _EXPENSIVE:
            continue
        source = made.get(_key(statement, element))
        if source is not None and all(
            facts.is_written_before(x.tensor, position) for x in source.loads
        ):
            return source
    return None


def _take(statement: Statement, source: Statement) -> Statement:
    """Load the source's result in place of its element."""
    names = dict(zip(source.domain.names, map(variable, statement.domain.names)))
    element = map_affines(source.elements[0], lambda a: a.substitute(names))
    indices = tuple(i.substitute(names) for i in source.writes[0].indices if isinstance(i, Affine))
    load = Load(tensor=source.writes[0].tensor, indices=indices, dtype=element.dtype)

    def visit(node: Expr) -> Expr:
        return load if node == element else node

    return map_expressions(statement, lambda e: map_expr(e, visit))
