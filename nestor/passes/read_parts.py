"""Contractions that read each element of a concatenation once or a few times read its parts.

One token is decoded against a cache of keys and values that it is appended to: to copy the cache
costs more than all that is computed from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Binary, Expr, IndexExpr, Load, Var, map_expr
from nestor.ir.program import (
    AnyStatement,
    Domain,
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
    is_functional,
    is_pointwise,
    program_facts,
)
from nestor.passes.context import PassContext
from nestor.passes.index_maps import is_within
from nestor.passes.rewriting import (
    in_order,
    index_ranges,
    map_expressions,
    map_statement_affines,
    names_of,
    renumber,
    replace_statements,
)
from nestor.passes.strides import typical
from nestor.passes.substitute import is_view, write_box

Span = tuple[Affine, Affine]
"""First and last place along a dimension."""

_NAME = "read_parts"

_MOST_READS = 8
"""Reads of each element up to which a copy costs more than loops of their own for each part. More
(many queries against the same keys) run as one fused kernel, beside which a copy is little."""


@dataclass(frozen=True, slots=True)
class _Part:
    """``size`` places of a joined dimension from ``start`` on.

    Attributes:
        writer: the statement that fills them.
        own: where that writes instead; None where it only moves what is elsewhere.
    """

    start: Affine
    size: Affine
    writer: Statement
    own: Tensor | None


@dataclass(frozen=True, slots=True)
class _Joined:
    """A tensor that statements fill part by part along dimension ``axis``."""

    tensor: Tensor
    axis: int
    parts: tuple[_Part, ...]


def read_parts(program: Program, ctx: PassContext) -> Program:
    """Cut contractions where the operands they stream are joined of parts.

    Rewrite: with ``T = [A; B]`` joined along ``j``, ``R[j] = Σ_k x[k] T[j,k]`` →
        ``R[j] = Σ_k x[k] T[j,k]`` for the ``j`` of ``A`` and for those of ``B``; and
        ``R = Σ_j x[j] T[j]`` → ``R = Σ_{j of A} x[j] T[j] + Σ_{j of B} x[j] T[j]``. A part that is
        computed is stored in a tensor of its own; the loads of others are left to
        ``inline_producers``, which takes them to where the part comes from.
    Legal when: the index of that dimension is one index of the contraction, whose range is the
        dimension. Sums over it are reassociated.
    """
    return _Reader(program, ctx).run()


class _Reader:
    def __init__(self, program: Program, ctx: PassContext):
        self.program = program
        self.ctx = ctx
        self.facts: ProgramFacts = program_facts(program)
        self.names = names_of(program)
        self.tensors = {t.name: t for t in program.tensors}
        self.replaced: dict[str, list[Statement]] = {}

    def run(self) -> Program:
        for name in self.facts.writers:
            self._take(name)
        if not self.replaced:
            return self.program
        out: list[AnyStatement] = []
        for s in in_order(self.program.statements):
            out += self.replaced.get(s.name, [s])
        return replace_statements(self.program, renumber(out), self.tensors.values())

    def _take(self, name: str) -> None:
        """Cut what reads ``name``, if all of it can be cut."""
        readers = [self.program.statements[n] for n in self.facts.readers.get(name, ())]
        joined = self._joined(name) if readers else None
        if joined is None:
            return
        whole: list[Statement] = []
        indices: list[tuple[Statement, str]] = []
        for s in readers:
            if not isinstance(s, Statement) or s.name in self.replaced:
                return
            index = self._index(s, joined)
            if index is not None:
                indices.append((s, index))
            elif self._reads_single_parts(s, joined):
                whole.append(s)
            else:
                return
        if not indices:
            return
        for s in whole:
            self.replaced[s.name] = [self._moved(s, joined)]
        for s, index in indices:
            self.replaced[s.name] = self._cut(s, index, joined)
        for part in joined.parts:
            if part.own is not None:
                self.tensors[part.own.name] = part.own
                self.replaced[part.writer.name] = [_into_own(part.writer, joined, part)]
        self.ctx.changed(_NAME, name, f"{len(joined.parts)} parts, read where they are")

    def _joined(self, name: str) -> _Joined | None:
        """A temp that statements fill one after the other, mostly with what is elsewhere."""
        tensor = self.tensors[name]
        writers = [self.program.statements[n] for n in self.facts.writers[name]]
        if len(writers) < 2 or not self.facts.is_private_temp(name):
            return None
        boxes: dict[str, tuple[Span, ...]] = {}
        for s in writers:
            if not isinstance(s, Statement) or not (is_pointwise(s) and is_functional(s)):
                return None
            if len(s.writes) != 1 or s.name in self.replaced:
                return None
            indices = tuple(i for i in s.writes[0].indices if isinstance(i, Affine))
            box = write_box(s.domain, indices)
            if box is None:
                return None
            boxes[s.name] = box
        whole = [
            all(box[d] == (affine(0), extent - 1) for box in boxes.values())
            for d, extent in enumerate(tensor.shape)
        ]
        if whole.count(False) != 1:
            return None
        axis = whole.index(False)
        spans = {n: box[axis] for n, box in boxes.items()}
        order = _in_line(spans, tensor.shape[axis])
        named = {s.name: s for s in writers if isinstance(s, Statement)}
        parts = tuple(self._part(named[n], tensor, axis, spans[n]) for n in order)
        moved = sum(domain_volume(p.writer.domain) for p in parts if p.own is None)
        if all(p.size == affine(1) for p in parts) or 2 * moved < element_count(tensor):
            return None
        return _Joined(tensor, axis, parts)

    def _part(self, writer: Statement, tensor: Tensor, axis: int, span: Span) -> _Part:
        start, size = span[0], span[1] + 1 - span[0]
        if is_view(writer.elements[0]):
            return _Part(start, size, writer, None)
        shape = tuple(size if d == axis else e for d, e in enumerate(tensor.shape))
        name = self.names.fresh(f"{tensor.name}_part")
        return _Part(start, size, writer, replace(tensor, name=name, shape=shape, layout=None))

    def _index(self, s: AnyStatement, joined: _Joined) -> str | None:
        """The index with which a contraction moves along the parts; None if it cannot be cut."""
        if not isinstance(s, Statement) or contraction_roles(s) is None:
            return None
        if not is_functional(s) or len(s.writes) != 1 or s.domain.constraints:
            return None
        loads = {x for x in s.loads if x.tensor == joined.tensor.name}
        if len(loads) != 1:
            return None
        (load,) = loads
        place = load.indices[joined.axis]
        others = [i for d, i in enumerate(load.indices) if d != joined.axis]
        index = next((n for n in s.domain.names if place == variable(n)), None)
        if index is None or load.predicate or not all(isinstance(i, Affine) for i in others):
            return None
        if any(isinstance(i, Affine) and index in i.variables() for i in others):
            return None
        r = s.domain.range_of(index)
        bounds = {v for x in s.domain.ranges for v in x.lower.variables() | x.upper.variables()}
        if (r.lower, r.upper) != (affine(0), joined.tensor.shape[joined.axis]):
            return None
        if bounds & set(s.domain.names):
            return None
        reads = domain_volume(s.domain) / max(1, element_count(joined.tensor))
        if reads > _MOST_READS:
            reason = f"'{s.name}' reads each element {reads:.3g} times"
            self.ctx.refused(_NAME, joined.tensor.name, reason)
            return None
        return index

    def _part_of(self, load: Load, s: Statement, joined: _Joined) -> _Part | None:
        """The part that holds all that a load reads."""
        place = load.indices[joined.axis]
        ranges = index_ranges(s.domain, self.program.symbol_ranges())
        if not isinstance(place, Affine):
            return None
        for part in joined.parts:
            last = part.start + part.size - 1
            if is_within(place, part.start, last, s.domain, ranges):
                return part
        return None

    def _reads_single_parts(self, s: Statement, joined: _Joined) -> bool:
        loads = [x for x in s.loads if x.tensor == joined.tensor.name]
        return all(self._part_of(x, s, joined) is not None for x in loads)

    def _moved(self, s: Statement, joined: _Joined) -> Statement:
        """A statement each of whose loads lies in one part, which reads the parts' own tensors."""

        def visit(node: Expr) -> Expr:
            if not isinstance(node, Load) or node.tensor != joined.tensor.name:
                return node
            part = self._part_of(node, s, joined)
            assert part is not None
            return _from_own(node, joined, part)

        return map_expressions(s, lambda e: map_expr(e, visit))

    def _cut(self, s: Statement, index: str, joined: _Joined) -> list[Statement]:
        """What computes the same part by part."""
        assert s.reduction is not None
        parts = sorted(joined.parts, key=lambda p: typical(p.size))
        cut = [_of_part(s, index, joined, part) for part in parts]
        if index in s.reduction.indices:
            return self._add_up(s, cut)
        return [replace(c, name=self.names.fresh(f"{s.name}_of_part")) for c in cut]

    def _add_up(self, s: Statement, cut: list[Statement]) -> list[Statement]:
        """Partial sums of all parts but the last, which adds them to its own."""
        r = cut[-1].reduction
        assert r is not None  # the longest part has several terms
        state = Var(name="s0", dtype=r.monoid.dtypes[0])
        total: Expr = state
        before: list[Statement] = []
        for part in cut[:-1]:
            value = part.elements[0]
            if part.reduction is not None:
                made, value = self._partial(part, s)
                before.append(made)
            total = Binary(op="add", a=total, b=value)
        final = tuple(map_expr(e, lambda n: total if n == state else n) for e in r.final)
        return [*before, replace(cut[-1], reduction=replace(r, final=final))]

    def _partial(self, part: Statement, s: Statement) -> tuple[Statement, Expr]:
        """A statement for the sums of one part, and what reads one of them."""
        r = part.reduction
        assert r is not None
        free = [x for x in part.domain.ranges if x.name not in r.indices]
        indices = tuple(variable(x.name) for x in free)
        made = Tensor(
            name=self.names.fresh(f"{s.writes[0].tensor}_of_part"),
            shape=tuple(x.upper for x in free),
            dtype=r.monoid.dtypes[0],
            role="temp",
        )
        self.tensors[made.name] = made
        part = replace(
            part,
            name=self.names.fresh(f"{s.name}_of_part"),
            writes=(Write(tensor=made.name, indices=indices),),
            reduction=replace(r, final=(Var(name="s0", dtype=made.dtype),)),
        )
        return part, Load(tensor=made.name, indices=indices, dtype=made.dtype)


def _in_line(spans: Mapping[str, Span], extent: Affine) -> list[str]:
    """The names of spans as they follow one another; none if they do not."""
    begins = {first: name for name, (first, _) in spans.items()}
    order: list[str] = []
    place = affine(0)
    while place in begins:
        order.append(begins.pop(place))
        place = spans[order[-1]][1] + 1
    return order if len(order) == len(spans) and place == extent else []


def _into_own(s: Statement, joined: _Joined, part: _Part) -> Statement:
    """The writer of a part, which writes the part's own tensor."""
    assert part.own is not None
    indices = _shifted(s.writes[0].indices, joined.axis, part.start)
    return replace(s, writes=(Write(tensor=part.own.name, indices=indices),))


def _shifted(indices: tuple[IndexExpr, ...], axis: int, start: Affine) -> tuple[IndexExpr, ...]:
    return tuple(
        i - start if d == axis and isinstance(i, Affine) else i for d, i in enumerate(indices)
    )


def _from_own(load: Load, joined: _Joined, part: _Part) -> Load:
    """The same element, where the part is stored."""
    if part.own is None:
        return load
    indices = _shifted(load.indices, joined.axis, part.start)
    return replace(load, tensor=part.own.name, indices=indices)


def _of_part(s: Statement, index: str, joined: _Joined, part: _Part) -> Statement:
    """The instances of a part's places; of a single one, those without the index."""
    r = s.reduction
    assert r is not None
    single = part.size == affine(1)
    place = part.start if single else variable(index) + part.start
    kept = [x for x in s.domain.ranges if not (single and x.name == index)]
    ranges = tuple(replace(x, upper=part.size) if x.name == index else x for x in kept)
    left = tuple(n for n in r.indices if not (single and n == index))

    def source(node: Expr) -> Expr:
        if isinstance(node, Load) and node.tensor == joined.tensor.name:
            return _from_own(node, joined, part)
        return node

    moved = map_statement_affines(s, lambda a: a.substitute({index: place}))
    moved = map_expressions(moved, lambda e: map_expr(e, source))
    r = moved.reduction
    assert r is not None
    return replace(
        moved,
        domain=Domain(ranges=ranges),
        reduction=replace(r, indices=left) if left else None,
    )
