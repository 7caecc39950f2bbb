"""Give contractions weights of their own shape, one plain index per dimension: easy to pack."""

from __future__ import annotations

from collections.abc import Sequence
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
    ProgramFacts,
    contraction_roles,
    domain_volume,
    element_count,
    expression_variables,
    program_facts,
    tensor_bytes,
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
from nestor.passes.strides import typical

_NAME = "plain_weights"


@dataclass(frozen=True, slots=True)
class WeightCopy:
    """A statement that makes a weight over a contraction's own indices, and the load of it."""

    tensor: Tensor
    maker: Statement
    load: Load


def copy_weight(
    statement: Statement, load: Load, element: Expr, name: str, tensors: dict[str, Tensor]
) -> WeightCopy | str:
    """A weight ``name`` that holds ``element`` at each point of the indices that ``load`` uses.

    Args:
        statement: the reader. load: its load of the old weight. element: over the reader's indices.
    Returns: the copy, or why there can be none.
    """
    used = expression_variables(load)
    ranges = [r for r in statement.domain.ranges if r.name in used]
    if len(ranges) != len(used) or not all(_is_static(r) for r in ranges):
        return f"'{load.tensor}' is read at symbolic places"
    volume = 1
    for r in ranges:
        volume *= typical(extent_of(r))
    if volume > element_count(tensors[load.tensor]):
        return f"'{load.tensor}' is read more than once"
    return filled_temp(statement, name, ranges, element)


def filled_temp(
    statement: Statement, name: str, ranges: Sequence[IndexRange], element: Expr
) -> WeightCopy:
    """A temp ``name`` that a statement before ``statement`` fills with ``element`` over ``ranges``,
    indices of ``statement``."""
    places = tuple(variable(r.name) - r.lower for r in ranges)
    tensor = Tensor(
        name=name, shape=tuple(map(extent_of, ranges)), dtype=element.dtype, role="temp"
    )
    maker = Statement(
        name=f"{name}_s",
        domain=Domain(ranges=tuple(ranges)),
        order=statement.order[:1],
        writes=(Write(tensor=name, indices=places),),
        elements=(element,),
        origin=statement.origin,
    )
    return WeightCopy(tensor, maker, Load(tensor=name, indices=places, dtype=element.dtype))


def _is_static(r: IndexRange) -> bool:
    return r.lower.is_const and r.upper.is_const


def plain_weights(program: Program, ctx: PassContext) -> Program:
    """Reshape weights that a contraction reads at merged or strided places.

    Rewrite: ``Σ x[h,d]·W[n, 64*h + d]`` → ``W'[n,h,d] = W[n, 64*h + d]; Σ x[h,d]·W'[n,h,d]``. The
        copy moves into the weight program, and schedules can pack ``W'``.
    Legal when: always; done for weights that are not large and used elsewhere too.
    """
    return _WeightReshaper(program, ctx).run()


@dataclass(slots=True)
class _WeightReshaper:
    program: Program
    ctx: PassContext
    facts: ProgramFacts = field(init=False)
    names: Names = field(init=False)
    weights: set[str] = field(init=False)
    tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.facts = program_facts(self.program)
        self.names = names_of(self.program)
        weights = weight_tensors(self.program)
        # A statement that also makes something else stays where it is: a copy of its weight, which
        # goes before everything, would come too early.
        mixed = {
            w.tensor
            for s in self.program.statements
            if isinstance(s, Statement) and not _writes_only(s, weights)
            for w in s.writes
        }
        self.weights = weights - mixed
        self.tensors = dict(self.facts.tensors)

    def run(self) -> Program:
        makers: list[AnyStatement] = []
        out: list[AnyStatement] = []
        for statement in in_order(self.program.statements):
            roles = contraction_roles(statement, self.tensors)
            if roles is not None and isinstance(statement, Statement):
                for load in {roles.a, roles.b}:
                    copy = self._copy_of(statement, load)
                    if copy is None:
                        continue
                    self.tensors[copy.tensor.name] = copy.tensor
                    makers.append(copy.maker)
                    statement = _with_load(statement, load, copy.load)
                    self.ctx.changed(_NAME, statement.name, f"reads '{copy.tensor.name}'")
            out.append(statement)
        if not makers:
            return self.program
        # What makes weights depends on weights alone: it may stand before everything.
        names = {id(s) for s in out if _writes_only(s, self.weights)}
        early = [s for s in out if id(s) in names]
        late = [s for s in out if id(s) not in names]
        return replace_statements(
            self.program, renumber([*early, *makers, *late]), self.tensors.values()
        )

    def _copy_of(self, statement: Statement, load: Load) -> WeightCopy | None:
        if load.tensor not in self.weights or load.predicate or is_plain_access(load):
            return None
        if self._is_kept_too(load.tensor) and tensor_bytes(self.tensors[load.tensor]) > (
            self.ctx.options.max_scaled_copy_bytes
        ):
            self.ctx.refused(_NAME, statement.name, f"'{load.tensor}' is used elsewhere too")
            return None
        copy = copy_weight(
            statement, load, load, self.names.fresh(f"{load.tensor}_plain"), self.tensors
        )
        if isinstance(copy, str):
            self.ctx.refused(_NAME, statement.name, copy)
            return None
        return copy

    def _is_kept_too(self, name: str) -> bool:
        """Whether the weight stays in memory beside its copies, or copies overlap.

        The phases of a transposed convolution each take their own part of one weight.
        """
        volume = 0
        for number in self.facts.readers[self.facts.roots[name]]:
            reader = self.program.statements[number]
            roles = contraction_roles(reader)
            if roles is None or not isinstance(reader, Statement):
                return True
            for load in reader.loads:
                if load.tensor != name:
                    continue
                if is_plain_access(load):
                    return True
                volume += domain_volume(reader.domain, expression_variables(load))
        return volume > element_count(self.tensors[name])


def is_plain_access(load: Load) -> bool:
    """Whether every dimension is a constant or one index with step 1 from 0."""
    for index in load.indices:
        if not isinstance(index, Affine):
            return False
        if index.is_const:
            continue
        if index.const or len(index.terms) != 1:
            return False
        atom, c = index.terms[0]
        if c != 1 or not isinstance(atom, str):
            return False
    return True


def _with_load(statement: Statement, old: Load, new: Load) -> Statement:
    def visit(node: Expr) -> Expr:
        return new if node == old else node

    return map_expressions(statement, lambda e: map_expr(e, visit))


def _writes_only(statement: AnyStatement, names: set[str]) -> bool:
    return isinstance(statement, Statement) and {w.tensor for w in statement.writes} <= names
