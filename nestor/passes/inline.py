"""Vertical fusion in the Program: pointwise producers move into the statements that read them.

Legality (``substitute.inline_load``): the producer's write map can be inverted at the load, what it
reads is not written later, and nothing outside the load's predicate is read. Profit: views always;
other work only where it is not repeated, or is cheaper to repeat than to store and read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, Interval
from nestor.ir.expr import Expr, Load, loads, map_children
from nestor.ir.program import AnyStatement, Extern, Program, Statement
from nestor.passes.analysis import (
    ProgramFacts,
    contraction_roles,
    domain_volume,
    element_count,
    expression_work,
    is_functional,
    is_pointwise,
    is_window_reduction,
    node_count,
    program_facts,
)
from nestor.passes.context import PassContext
from nestor.passes.delinearize import delinearize_statement, division_count
from nestor.passes.rewriting import (
    first_position,
    in_order,
    index_ranges,
    map_expressions,
    replace_statements,
)
from nestor.passes.simplify import simplify_statement
from nestor.passes.substitute import Piece, has_gather, inline_load, is_view, write_box

_NAME = "inline_producers"
_CHEAP_WORK = 4.0
"""Extra work per element [additions] that costs less than storing it and reading it back."""
_PADDING_GROWTH = 0.5
"""Repetition below which any work may be done again: what a border adds to a tensor."""
_CHEAP_WITHOUT_LOADS = 8.0
"""Work up to which a producer that reads nothing (index arithmetic, masks) is always repeated."""


def inline_producers(program: Program, ctx: PassContext) -> Program:
    """Replace loads of pointwise results by the expressions that make them.

    Rewrite: ``t[i] = f(x[i]); y[j] = g(t[j + 1])`` → ``y[j] = g(f(x[j + 1]))``; what is no longer
        read is left to ``remove_dead_code``.
    Legal when: the producer is pointwise and outside ``seq`` regions; its write map can be inverted
        at the load; every tensor it reads is written before it only; the result is a temp (for pure
        views also an output) with no alias.
    """
    return _Inliner(program, ctx).run()


@dataclass(slots=True)
class _Producer:
    """How a tensor is made; ``view``: every piece only moves elements."""

    pieces: list[Piece]
    view: bool


class _Inliner:
    def __init__(self, program: Program, ctx: PassContext):
        self.program = program
        self.ctx = ctx
        self.facts: ProgramFacts = program_facts(program)
        self.symbols = program.symbol_ranges()
        self.shapes = {t.name: t.shape for t in program.tensors}
        self.producers: dict[str, _Producer] = {}
        self.pending: dict[str, list[Piece]] = {}
        self.weight_like = {t.name for t in program.tensors if t.role in ("parameter", "constant")}

    def run(self) -> Program:
        statements: list[AnyStatement] = []
        for statement in in_order(self.program.statements):
            if isinstance(statement, Statement):
                statement = self._rewrite(statement)
                self._note_weight_like(statement)
                self._offer(statement)
            statements.append(statement)
        return replace_statements(self.program, statements)

    def _note_weight_like(self, statement: Statement) -> None:
        """Results of parameters and constants alone; those without any load are not meant."""
        names = {x.tensor for x in statement.loads}
        if names and names <= self.weight_like:
            self.weight_like |= {w.tensor for w in statement.writes}

    # ------------------------------------------------------------------------------- rewriting

    def _rewrite(self, statement: Statement) -> Statement:
        """Inline all decided producers into one statement."""
        if not any(x.tensor in self.producers for x in statement.loads):
            return statement
        ranges = index_ranges(statement.domain, self.symbols)
        is_contraction = contraction_roles(statement, self.facts.tensors) is not None
        divisions = division_count(statement)
        skipped: set[str] = set()

        def visit(node: Expr) -> Expr:
            node = map_children(node, visit)
            if not isinstance(node, Load) or node.tensor not in self.producers:
                return node
            producer = self.producers[node.tensor]
            if is_contraction and not producer.view:
                return node
            new = inline_load(node, producer.pieces, statement.domain, ranges, self.shapes)
            if new is None:
                skipped.add(node.tensor)
                return node
            return new

        new = map_expressions(statement, visit)
        if new is statement:
            return statement
        new = simplify_statement(new, self.symbols, self.shapes)
        new = delinearize_statement(new, self.symbols, self.shapes)
        if is_contraction and not self._is_good_contraction(new, divisions):
            reason = "its views would leave // or % in the contraction"
            self.ctx.refused(_NAME, statement.name, reason)
            return statement
        for name in sorted(skipped):
            self.ctx.refused(_NAME, statement.name, f"cannot invert the writes of '{name}'")
        return new

    def _is_good_contraction(self, new: Statement, divisions: int) -> bool:
        still = contraction_roles(new, self.facts.tensors) is not None
        return still and division_count(new) <= divisions

    # ----------------------------------------------------------------------------- producers

    def _offer(self, statement: Statement) -> None:
        """Decide whether readers of what ``statement`` writes take its expression instead."""
        if not is_pointwise(statement) or not is_functional(statement):
            return
        position = first_position(statement)
        for number, write in enumerate(statement.writes):
            element = statement.elements[number]
            name = write.tensor
            if not self._may_leave(name, element, position):
                continue
            indices = tuple(i for i in write.indices if isinstance(i, Affine))
            box = write_box(statement.domain, indices)
            piece = Piece(statement.name, statement.domain, indices, element, box)
            pieces = self.pending.setdefault(name, [])
            pieces.append(piece)
            if len(pieces) < len(self.facts.writers[name]):
                continue
            reason = self._refusal(name, pieces)
            if reason is None:
                view = all(is_view(p.element) for p in pieces)
                self.producers[name] = _Producer(pieces, view)
                self.ctx.changed(_NAME, name, "its readers compute it themselves")
            else:
                self.ctx.refused(_NAME, name, reason)

    def _may_leave(self, name: str, element: Expr, position: int) -> bool:
        """Legality that does not depend on the reader."""
        tensor = self.facts.tensors[name]
        if name in self.facts.aliased or name not in self.facts.readers:
            return False
        if tensor.role != "temp" and not (tensor.role == "output" and is_view(element)):
            return False
        return all(self.facts.is_written_before(x.tensor, position) for x in loads(element))

    def _refusal(self, name: str, pieces: list[Piece]) -> str | None:
        """None if inlining pays, else the reason why not."""
        readers = [self.program.statements[n] for n in self.facts.readers[name]]
        last = self.facts.last_write[name]
        if any(first_position(r) <= last for r in readers):
            return "a reader stands before its last write"
        if all(is_view(p.element) for p in pieces):
            return None
        if any(isinstance(r, Extern) for r in readers) or self.facts.tensors[name].role != "temp":
            return "it is needed in memory anyway"
        statements = [r for r in readers if isinstance(r, Statement)]
        if all(not list(loads(p.element)) for p in pieces):
            work = max(expression_work(p.element) for p in pieces)
            if work > _CHEAP_WITHOUT_LOADS:
                return "a costly constant: computed once"
            if any(contraction_roles(r) is not None for r in statements):
                return "a contraction reads its operands from memory"
        elif name in self.weight_like and not all(self._is_weight_work(r) for r in statements):
            return "depends on parameters alone: computed once, beforehand"
        else:
            reason = self._profit(name, pieces, statements)
            if reason is not None:
                return reason
        if not all(self._is_replaceable(name, pieces, r) for r in statements):
            return "a reader's access cannot be mapped to the producer's indices"
        return None

    def _is_weight_work(self, statement: Statement) -> bool:
        return all(x.tensor in self.weight_like for x in statement.loads)

    def _profit(self, name: str, pieces: list[Piece], readers: list[Statement]) -> str | None:
        count = max(1, element_count(self.facts.tensors[name]))
        work = max(expression_work(p.element) for p in pieces)
        streams = max(self._streams(p.element, count) for p in pieces)
        nodes = max(node_count(p.element) for p in pieces)
        epilogue = any(self._is_epilogue(p.element, count) for p in pieces)
        evaluations = 0
        for reader in readers:
            if contraction_roles(reader) is not None:
                return "a contraction reads its operands many times"
            if has_gather_of(reader, name) and work > 0:
                return "a gather reads it"
            if reader.reduction is not None and (epilogue or is_window_reduction(reader)):
                return "a reduction would take it from the epilogue of what made its input"
            distinct = {x for x in reader.loads if x.tensor == name}
            evaluations += len(distinct) * domain_volume(reader.domain)
            size = sum(node_count(e) for e in reader.elements)
            if size + nodes * len(distinct) > self.ctx.options.max_inline_nodes:
                return "the expression would grow too large"
        repeated = max(0.0, evaluations / count - 1)
        if len(readers) > 1 and (epilogue or streams > 1):
            return "several statements read it, and each would read its operands again"
        if work * repeated > _CHEAP_WORK and repeated > _PADDING_GROWTH:
            return f"its work of {work:g} would be done {1 + repeated:.3g} times"
        return None

    def _streams(self, element: Expr, count: int) -> int:
        """Distinct tensors of full size that the element reads."""
        tensors = self.facts.tensors
        names = {x.tensor for x in loads(element)}
        return sum(1 for n in names if 2 * element_count(tensors[n]) >= count)

    def _is_epilogue(self, element: Expr, count: int) -> bool:
        """It reads a contraction's result of its own size: the contraction's kernel can take it."""
        for load in loads(element):
            writers = self.facts.writers.get(load.tensor, ())
            if len(writers) == 1 and element_count(self.facts.tensors[load.tensor]) == count:
                writer = self.program.statements[writers[0]]
                if contraction_roles(writer) is not None:
                    return True
        return False

    def _is_replaceable(self, name: str, pieces: list[Piece], reader: Statement) -> bool:
        """Every load of the tensor in this reader can be written in the producer's terms."""
        ranges: Mapping[str, Interval] = index_ranges(reader.domain, self.symbols)
        return all(
            inline_load(x, pieces, reader.domain, ranges, self.shapes) is not None
            for x in reader.loads
            if x.tensor == name
        )


def has_gather_of(statement: Statement, name: str) -> bool:
    """Whether a statement reads the tensor at an index that is not affine."""
    return any(
        has_gather(replace(x, predicate=(), other=None))
        for x in statement.loads
        if x.tensor == name
    )
