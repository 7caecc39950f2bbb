"""Copies of contraction operands that do not suit the inner loop: transposed, or in panels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

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
from nestor.ir.schedule import Pack
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
from nestor.passes.contraction import contraction_of
from nestor.passes.contraction_tile import contraction_tile
from nestor.passes.index_maps import invert_map
from nestor.passes.nest import pack_layout
from nestor.passes.register_tile import VectorUnit
from nestor.passes.rewriting import (
    Names,
    extent_of,
    in_order,
    map_expressions,
    names_of,
    renumber,
    replace_statements,
)
from nestor.passes.statement_facts import reuse_extent
from nestor.passes.strides import physical_indices

_NAME = "relayout_operands"

MIN_PANEL_ROWS = 64
"""Rows of the result that pay for a copy of an operand which could be read as it is."""

MIN_PANEL_ROW_BYTES = 1024
"""Length of the operand's rows from which they count as far apart."""

MIN_PANEL_BYTES = 1 << 18
"""Size of an operand, of one batch, from which it is copied into panels: a part of L2."""


def relayout_operands(program: Program, ctx: PassContext) -> Program:
    """Copy the operand that a contraction's vector loop reads with a stride, or from far apart.

    A contraction is vectorised along the index with unit stride in its result. The operand that
    moves with that index must have unit stride along it; a parameter is packed by the schedule, a
    tensor made at run time gets a copy here (K in q·kᵀ). A large one is copied into panels as wide
    as the register tile, as parameters are packed: each step of the sum would else touch another
    page, and rows at a power of two from each other share few sets of the caches.

    Rewrite: ``S[q,t] = Σ_d Q[q,d]·K[t,d]`` → ``K'[d,t] = K[t,d]; S[q,t] = Σ_d Q[q,d]·K'[d,t]``,
        where a large ``K'`` has the layout ``[t // b, d, t % b]``.
    Legal when: always (a copy of what the statement reads). Done when the operand is reused by at
        least ``min_relayout_rows`` rows of the result (``MIN_PANEL_ROWS`` where it has unit stride
        already), so the copy costs little beside the sum.
    Source: Goto, van de Geijn: Anatomy of High-Performance Matrix Multiplication, 2008.
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
        unit_stride = access_stride(self.tensors[operand.tensor], operand, vector) == 1
        panels = self._wants_panels(statement, operand, vector)
        if unit_stride and not panels:
            return None
        least = MIN_PANEL_ROWS if unit_stride else self.ctx.options.min_relayout_rows
        reason = self._refusal(statement, operand, rows, least)
        if reason is not None:
            self.ctx.refused(_NAME, statement.name, reason)
            return None
        copied = self._make_copy(statement, operand, vector)
        width = self._store_in_panels(*copied, vector) if panels else None
        how = "transposed" if width is None else f"copied into panels of {width}"
        self.ctx.changed(_NAME, statement.name, f"'{operand.tensor}' is {how} for '{vector}'")
        return copied

    def _wants_panels(self, statement: Statement, operand: Load, vector: str) -> bool:
        """Whether the operand is too large for a cache, in rows that are far apart."""
        assert statement.reduction is not None
        used = expression_variables(operand)
        columns = reuse_extent(statement, vector)
        summed = [n for n in statement.reduction.indices if n in used]
        terms = math.prod(reuse_extent(statement, n) for n in summed)
        size = columns * operand.dtype.bytes
        if size * terms < MIN_PANEL_BYTES:
            return False
        return size >= MIN_PANEL_ROW_BYTES or self._tile_columns(statement, vector) < columns

    def _tile_columns(self, statement: Statement, vector: str) -> int:
        """Columns of the reader's register tile: with several tiles, each skips through rows."""
        contraction = contraction_of(statement, self.tensors)
        if contraction is None or contraction.vector != vector:
            return reuse_extent(statement, vector)
        lanes = self.unit.lanes(max(statement.elements[0].dtype.bytes, 4))
        return lanes * contraction_tile(statement, contraction, self.unit)[2]

    @property
    def unit(self) -> VectorUnit:
        """The vectors of the target."""
        cpu = self.ctx.target
        return VectorUnit() if cpu is None else VectorUnit(cpu.vector_bits, cpu.vector_registers)

    def _store_in_panels(self, copy: Statement, reader: Statement, vector: str) -> int | None:
        """Lay the copy out as the reader's register tile wants it; its width, None if it fails."""
        contraction = contraction_of(reader, self.tensors)
        if contraction is None or contraction.vector != vector:
            return None
        lanes = self.unit.lanes(max(copy.elements[0].dtype.bytes, 4))
        _, _, vectors = contraction_tile(reader, contraction, self.unit)
        tensor = self.tensors[copy.writes[0].tensor]
        rank, width = len(tensor.shape), lanes * vectors
        last = rank - 1
        assert reader.reduction is not None
        inner = [d for d, n in enumerate(copy.domain.names) if n in reader.reduction.indices]
        outer = [d for d in range(last) if d not in inner]
        step = Pack(tensor=tensor.name, order=(*outer, last, *inner), dims=(last,), blocks=(width,))
        self.tensors[tensor.name] = replace(tensor, layout=pack_layout(tensor, step))
        return width

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

    def _refusal(
        self, statement: Statement, operand: Load, rows: tuple[str, ...], least: int
    ) -> str | None:
        used = expression_variables(operand) & set(statement.domain.names)
        ranges = [r for r in statement.domain.ranges if r.name in used]
        if expression_variables(replace(operand, predicate=(), other=None)) - used:
            return f"'{operand.tensor}' is read at places that depend on symbols"
        if any(expression_range_depends(r, statement) for r in ranges):
            return "the bounds of its indices depend on each other"
        reuse = domain_volume(statement.domain, frozenset(rows))
        if least == MIN_PANEL_ROWS:
            reuse = math.prod(reuse_extent(statement, n) for n in rows)
        if reuse < least:
            return f"'{operand.tensor}' is reused by {reuse} rows only: a copy would not pay"
        if operand.predicate:
            if not _is_one_to_one(operand, ranges):
                return f"'{operand.tensor}' is read more than once, under a predicate"
        elif domain_volume(statement.domain, used) > element_count(self.tensors[operand.tensor]):
            return f"'{operand.tensor}' is read more than once (a window)"
        return None

    def _make_copy(
        self, statement: Statement, operand: Load, vector: str
    ) -> tuple[Statement, Statement]:
        """The copy, ``vector`` its last index, and the statement that reads it."""
        used = expression_variables(operand) & set(statement.domain.names)
        ranges = [r for r in statement.domain.ranges if r.name in used and r.name != vector]
        ranges.append(statement.domain.range_of(vector))
        name = self.names.fresh(f"{operand.tensor}_t")
        places = tuple(variable(r.name) - r.lower for r in ranges)
        self.tensors[name] = Tensor(
            name=name, shape=tuple(map(extent_of, ranges)), dtype=operand.dtype, role="temp"
        )
        symbols = {s.name for s in self.program.symbols}
        bounds = [c for c in statement.domain.constraints if c.variables() <= used | symbols]
        copy = Statement(
            name=f"{name}_s",
            domain=Domain(ranges=tuple(ranges), constraints=tuple(bounds)),
            order=statement.order[:1],
            writes=(Write(tensor=name, indices=places),),
            elements=(operand,),
            origin=statement.origin,
        )
        new_load = Load(tensor=name, indices=places, dtype=operand.dtype)

        def visit(node: Expr) -> Expr:
            return new_load if node == operand else node

        return copy, map_expressions(statement, lambda e: map_expr(e, visit))


def _is_one_to_one(operand: Load, ranges: list[IndexRange]) -> bool:
    """Whether no element is read at two points of ``ranges``."""
    places = [i for i in operand.indices if isinstance(i, Affine)]
    wanted = [variable(f"%{d}") for d in range(len(places))]
    whole = len(places) == len(operand.indices)
    return whole and invert_map(places, Domain(ranges=tuple(ranges)), wanted) is not None


def expression_range_depends(r: IndexRange, statement: Statement) -> bool:
    """Whether an index's bounds hold other indices."""
    return bool((r.lower.variables() | r.upper.variables()) & set(statement.domain.names))
