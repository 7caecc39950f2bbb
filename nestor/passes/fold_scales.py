"""Fold scales into weights: ``(Σ x·w)·a = Σ x·(w·a)``, for any contraction.

The product is reassociated, so results differ in the last bits (and where ``a`` is infinite or the
product overflows); within the accuracy of a contraction's own rounding it is the same number.
Batch normalisation after a convolution or a linear layer is the case at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nestor.ir.affine import Affine
from nestor.ir.expr import (
    Binary,
    Expr,
    Load,
    Unary,
    Var,
    const,
    loads,
    map_affines,
    map_children,
    map_expr,
    walk,
)
from nestor.ir.program import (
    AnyStatement,
    Domain,
    Program,
    Statement,
    Tensor,
)
from nestor.ir.types import DType
from nestor.passes.analysis import (
    ContractionRoles,
    ProgramFacts,
    contraction_roles,
    expression_variables,
    is_functional,
    is_pointwise,
    program_facts,
    tensor_bytes,
    weight_tensors,
    written_tensors,
)
from nestor.passes.context import PassContext
from nestor.passes.index_maps import invert_map, is_within
from nestor.passes.rewriting import (
    in_order,
    index_ranges,
    names_of,
    renumber,
    replace_statements,
)
from nestor.passes.simplify_expr import simplify_expr
from nestor.passes.weight_copies import copy_weight

_NAME = "fold_scales"


def fold_scales(program: Program, ctx: PassContext) -> Program:
    """Move a scale that follows a contraction into the contraction's weights.

    Rewrite: ``C[i] = Σ_k x·w; y = f(C·a + b)`` → ``w' = w·a; C'[i] = Σ_k x·w'; y = f(C' + b)``.
    Legal when: ``C`` is a temp that one pointwise statement alone reads, at one place; every use of
        it there is affine in it with the same ``a``; ``a`` depends on weights only, and only on
        indices of ``w``'s access that are not reduced; ``w`` is a weight.
    Source: the folding of batch normalisation, stated for any contraction.
    """
    return _ScaleFolder(program, ctx).run()


@dataclass(frozen=True, slots=True)
class _AffineForm:
    """``scale * z + offset``; None stands for 1 and 0."""

    scale: Expr | None
    offset: Expr | None


@dataclass(slots=True)
class _ScaleFolder:
    program: Program
    ctx: PassContext
    facts: ProgramFacts = field(init=False)
    weights: set[str] = field(init=False)
    tensors: dict[str, Tensor] = field(init=False)
    statements: list[AnyStatement] = field(init=False)
    makers: list[Statement] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.facts = program_facts(self.program)
        self.weights = weight_tensors(self.program)
        self.tensors = dict(self.facts.tensors)
        # As rewritten so far: one reader may take the results of several contractions.
        self.statements = list(self.program.statements)

    def run(self) -> Program:
        names = names_of(self.program)
        statements = self.statements
        for number, statement in enumerate(self.program.statements):
            roles = contraction_roles(statement)
            if roles is None or not isinstance(statement, Statement):
                continue
            found = _Fold(self, statement, roles).find()
            if found is None:
                continue
            reader_number, reader, scale = found
            operand = self._weight_of(roles, scale, statement)
            if operand is None:
                continue
            load, expression = operand
            product = Binary(op="mul", a=expression, b=scale)
            name = names.fresh(f"{load.tensor}_scaled")
            copy = copy_weight(statement, load, product, name, self.tensors)
            if isinstance(copy, str):
                self.ctx.refused(_NAME, statement.name, copy)
                continue
            self.tensors[name] = copy.tensor
            element = _replace_once(statement.elements[0], expression, copy.load)
            self.makers.append(copy.maker)
            final = self._scaled_final(statement, scale)
            assert statement.reduction is not None
            statements[number] = replace(
                statement, elements=(element,), reduction=replace(statement.reduction, final=final)
            )
            statements[reader_number] = reader
            self.ctx.changed(_NAME, statement.name, f"a scale moved into '{load.tensor}'")
        if not self.makers:
            return self.program
        return replace_statements(
            self.program, renumber(self._weights_first(statements)), self.tensors.values()
        )

    def _weights_first(self, statements: list[AnyStatement]) -> list[AnyStatement]:
        """All weight work, then the new weights, then the rest: a scale may be made late."""
        ordered = in_order(statements)
        early = [s for s in ordered if set(written_tensors(s)) <= self.weights]
        late = [s for s in ordered if not set(written_tensors(s)) <= self.weights]
        return [*early, *self.makers, *late]

    def _scaled_final(self, statement: Statement, scale: Expr) -> tuple[Expr, ...]:
        """``s0 + bias`` → ``s0 + bias*scale``."""
        assert statement.reduction is not None
        (final,) = statement.reduction.final
        if isinstance(final, Var):
            return (final,)
        assert isinstance(final, Binary)
        return (Binary(op="add", a=final.a, b=Binary(op="mul", a=final.b, b=scale)),)

    def _weight_of(
        self, roles: ContractionRoles, scale: Expr, statement: Statement
    ) -> tuple[Load, Expr] | None:
        """The operand that can take the scale, with the reason for a refusal in the log."""
        assert statement.reduction is not None
        reduced = set(statement.reduction.indices)
        wanted = expression_variables(scale)
        if wanted & reduced:
            return None
        for load, expression in ((roles.b, roles.b_expr), (roles.a, roles.a_expr)):
            if load.tensor not in self.weights or expression.dtype is not scale.dtype:
                continue
            if not wanted <= expression_variables(load):
                self.ctx.refused(
                    _NAME, statement.name, "the scale varies where the weight does not"
                )
                continue
            size = tensor_bytes(self.tensors[load.tensor])
            shared = len(self.facts.readers[self.facts.roots[load.tensor]]) > 1
            if shared and size > self.ctx.options.max_scaled_copy_bytes:
                self.ctx.refused(_NAME, statement.name, f"'{load.tensor}' is used elsewhere too")
                continue
            return load, expression
        if not any(x.tensor in self.weights for x in (roles.a, roles.b)):
            self.ctx.refused(_NAME, statement.name, "neither operand is a weight")
        return None


@dataclass(slots=True)
class _Fold:
    """The search for one contraction's scale."""

    folder: _ScaleFolder
    statement: Statement
    roles: ContractionRoles

    def find(self) -> tuple[int, Statement, Expr] | None:
        """(number of the reader, the reader without the scale, the scale in our indices)."""
        facts, statement = self.folder.facts, self.statement
        if not is_functional(statement) or len(statement.writes) != 1 or not self._final_is_sum():
            return None
        name = statement.writes[0].tensor
        if not facts.is_private_temp(name) or len(facts.writers[name]) != 1:
            return None
        readers = facts.readers.get(name, [])
        if len(readers) != 1:
            return None
        reader = self.folder.statements[readers[0]]
        if not isinstance(reader, Statement) or not is_pointwise(reader):
            return None
        places = {x for x in reader.loads if x.tensor == name}
        if len(places) != 1:
            return None
        (place,) = places
        if place.predicate or not place.dtype.is_float or place.dtype.is_storage_only:
            return None
        split = self._split_reader(reader, place)
        if split is None:
            return None
        new_reader, scale = split
        mapped = self._in_our_indices(reader, place, scale)
        return None if mapped is None else (readers[0], new_reader, mapped)

    def _final_is_sum(self) -> bool:
        """The final map is ``s0``, or ``s0 + b`` with ``b`` from weights."""
        assert self.statement.reduction is not None
        final = self.statement.reduction.final[0]
        if isinstance(final, Var):
            return True
        if not isinstance(final, Binary) or final.op != "add" or not isinstance(final.a, Var):
            return False
        return self._is_weight(final.b) and not any(isinstance(n, Var) for n in walk(final.b))

    def _is_weight(self, node: Expr) -> bool:
        return all(x.tensor in self.folder.weights for x in loads(node))

    def _split_reader(self, reader: Statement, place: Load) -> tuple[Statement, Expr] | None:
        """The reader with ``z + b`` for ``z*a + b`` everywhere, and ``a`` if all have the same."""
        scales: list[Expr | None] = []

        def visit(node: Expr) -> Expr:
            if not _mentions(node, place):
                return node
            form = self._affine_form(node, place)
            if form is None:
                return map_children(node, visit)
            scales.append(form.scale)
            return place if form.offset is None else Binary(op="add", a=place, b=form.offset)

        elements = tuple(visit(e) for e in reader.elements)
        if not scales or scales[0] is None or any(s != scales[0] for s in scales):
            return None
        return replace(reader, elements=elements), scales[0]

    def _affine_form(self, node: Expr, z: Load) -> _AffineForm | None:
        """``node`` as ``scale*z + offset`` with a scale from weights alone; None if it is not."""
        if node == z:
            return _AffineForm(None, None)
        if isinstance(node, Unary) and node.op == "neg":
            form = self._affine_form(node.x, z)
            return None if form is None else _negated(form, node.dtype)
        if not isinstance(node, Binary) or node.op not in ("add", "sub", "mul", "div"):
            return None
        in_a, in_b = _mentions(node.a, z), _mentions(node.b, z)
        if in_a and in_b:
            return None
        inner, other = (node.a, node.b) if in_a else (node.b, node.a)
        form = self._affine_form(inner, z)
        if form is None or (node.op == "div" and not in_a):
            return None
        if node.op == "add":
            return _AffineForm(form.scale, _sum(form.offset, other))
        if node.op == "sub" and in_a:
            negative = Unary(op="neg", x=other)
            offset = negative if form.offset is None else Binary(op="sub", a=form.offset, b=other)
            return _AffineForm(form.scale, offset)
        if node.op == "sub":
            turned = _negated(form, node.dtype)
            return _AffineForm(turned.scale, _sum(other, turned.offset))
        offset_ok = form.offset is None or self._is_weight(form.offset)
        if not self._is_weight(other) or not offset_ok:
            return None
        return _AffineForm(
            _scaled(form.scale, node.op, other), _offset(form.offset, node.op, other)
        )

    def _in_our_indices(self, reader: Statement, place: Load, scale: Expr) -> Expr | None:
        """The scale over the contraction's indices instead of the reader's."""
        statement = self.statement
        ranges = index_ranges(statement.domain, self.folder.program.symbol_ranges())
        indices = [i for i in place.indices if isinstance(i, Affine)]
        written = [i for i in statement.writes[0].indices if isinstance(i, Affine)]
        if len(indices) != len(place.indices) or len(written) != len(indices):
            return None
        used = {v for i in indices for v in i.variables()}
        if not expression_variables(scale) <= used:
            return None
        moving = Domain(ranges=tuple(r for r in reader.domain.ranges if r.name in used))
        values = invert_map(indices, moving, written)
        if values is None:
            return None
        for r in moving.ranges:
            if not is_within(values[r.name], r.lower, r.upper - 1, statement.domain, ranges):
                return None
        shapes = {t.name: t.shape for t in self.folder.program.tensors}
        mapped = map_affines(scale, lambda a: a.substitute(values))
        return simplify_expr(mapped, ranges, shapes)


def _mentions(node: Expr, z: Load) -> bool:
    return any(n == z for n in walk(node))


def _negated(form: _AffineForm, dtype: DType) -> _AffineForm:
    scale: Expr = const(-1, dtype) if form.scale is None else Unary(op="neg", x=form.scale)
    return _AffineForm(scale, None if form.offset is None else Unary(op="neg", x=form.offset))


def _sum(a: Expr | None, b: Expr | None) -> Expr | None:
    if a is None or b is None:
        return b if a is None else a
    return Binary(op="add", a=a, b=b)


def _scaled(scale: Expr | None, op: str, other: Expr) -> Expr:
    if op == "mul":
        return other if scale is None else Binary(op="mul", a=scale, b=other)
    return Binary(op="div", a=const(1, other.dtype) if scale is None else scale, b=other)


def _offset(offset: Expr | None, op: str, other: Expr) -> Expr | None:
    return None if offset is None else Binary(op=op, a=offset, b=other)


def _replace_once(element: Expr, old: Expr, new: Expr) -> Expr:
    """Replace the factor ``old``; a contraction holds it once."""
    done = False

    def visit(node: Expr) -> Expr:
        nonlocal done
        if not done and node == old:
            done = True
            return new
        return node

    return map_expr(element, visit)
