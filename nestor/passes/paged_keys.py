"""Attention over keys that lie in pages: counted as one, and read where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nestor.ir.affine import Affine, AffineLike, affine, variable
from nestor.ir.expr import Expr, Load, map_expr
from nestor.ir.names import Names
from nestor.ir.program import Domain, IndexRange, Program, Statement, Tensor
from nestor.passes.analysis import (
    ProgramFacts,
    contraction_roles,
    is_functional,
    is_pointwise,
    program_facts,
)
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.online_attention import is_online
from nestor.passes.rewriting import (
    first_position,
    index_ranges,
    map_expressions,
    map_statement_affines,
    replace_statements,
)
from nestor.passes.simplify import simplify_statement
from nestor.passes.substitute import Piece, has_gather, inline_load, write_box

_LINEAR, _INLINE = "count_keys_as_one", "read_pages_in_place"


# ------------------------------------------------------------------------------ one index


def count_keys_as_one(program: Program, ctx: PassContext) -> Program:
    """Make scores key by key where they are made page by page, as the softmax that follows has it.

    Rewrite: ``Y[q,p,s] = …K[p,s]; X[q,S*p + s] = f(Y[q,p,s]); m[q] = max_t X[q,t]`` →
        ``Y[q,t] = …K[t//S,t%S]; X[q,t] = f(Y[q,t])``
    Legal when: ``s`` runs over all below the constant ``S``, ``p`` from 0 on, and nothing but
        accesses tells them apart; what is made of ``Y`` alone is made of private temps.
    """
    counter = _Counter(program)
    for name in [s.name for s in program.statements if isinstance(s, Statement)]:
        if counter.makes_scores(name) and counter.count(name):
            ctx.changed(_LINEAR, name, "its keys are counted as one")
    return counter.result()


class _Counter:
    """Statements and temps while indices are merged."""

    def __init__(self, program: Program):
        self.program = program
        self.facts = program_facts(program)
        self.tensors = dict(self.facts.tensors)
        self.statements = {s.name: s for s in program.statements}
        self.names = [s.name for s in program.statements]

    def result(self) -> Program:
        """The Program with what changed."""
        found = [self.statements[name] for name in self.names]
        if found == list(self.program.statements):
            return self.program
        symbols = self.program.symbol_ranges()
        shapes = {t.name: t.shape for t in self.tensors.values()}
        simple = [
            s
            if s is old or not isinstance(s, Statement)
            else simplify_statement(s, symbols, shapes)
            for s, old in zip(found, self.program.statements)
        ]
        return replace_statements(self.program, simple, self.tensors.values())

    def makes_scores(self, name: str) -> bool:
        """Whether a maximum is taken of what a statement makes."""
        s = self.statements[name]
        if not isinstance(s, Statement) or len(s.writes) != 1 or not is_functional(s):
            return False
        tensor = s.writes[0].tensor
        if not self.facts.is_private_temp(tensor):
            return False
        for number in self.facts.readers.get(tensor, ()):
            reader = self.program.statements[number]
            r = reader.reduction if isinstance(reader, Statement) else None
            if r is not None and r.monoid.name == "max":
                return True
        return False

    def count(self, name: str) -> bool:
        """Merge two indices that a statement writes at one place; whether there were any."""
        s = self.statements[name]
        assert isinstance(s, Statement)
        pair = next(_pairs(s), None)
        if pair is None:
            return False
        own = {r.name: r for r in s.domain.ranges}
        taken = [*own, *(x.name for x in self.program.symbols)]
        t = Names(taken).fresh("t")
        self.statements[name] = s = _counted(s, *pair, t)
        size = own[pair[1]].upper.const
        for tensor in dict.fromkeys(load.tensor for load in s.loads):
            d = self._place(name, tensor, t, size)
            if d is not None:
                self._merge(tensor, name, d, t)
        return True

    def _place(self, reader: str, name: str, t: str, size: int) -> int | None:
        """The first of two dimensions of a private temp that are read as ``t`` wherever the only
        reader reads it, and made as two."""
        user, tensor, facts = self.statements[reader], self.tensors[name], self.facts
        assert isinstance(user, Statement)
        if not facts.is_private_temp(name) or tensor.layout is not None:
            return None
        wanted = (variable(t) // size, variable(t) % size)
        reads = {load.indices for load in user.loads if load.tensor == name}
        pairs = range(len(tensor.shape) - 1)
        dims = [d for d in pairs if all(i[d : d + 2] == wanted for i in reads)]
        if len(dims) != 1:
            return None
        (d,) = dims
        writers, readers = facts.writers.get(name, ()), facts.readers.get(name, ())
        if len(writers) != 1 or len(readers) != 1 or tensor.shape[d + 1] != affine(size):
            return None
        maker = self.statements[self.names[writers[0]]]
        if not isinstance(maker, Statement) or not is_functional(maker) or len(maker.writes) != 1:
            return None
        outer, inner = maker.writes[0].indices[d : d + 2]
        if not isinstance(outer, Affine) or not isinstance(inner, Affine):
            return None
        merged = _written(maker, d, outer * size + inner)
        return d if next(_pairs(merged), None) == (str(outer), str(inner)) else None

    def _merge(self, tensor: str, reader: str, d: int, t: str) -> None:
        """Store two dimensions of a temp as one."""
        old = self.tensors[tensor]
        size = old.shape[d + 1].const
        self.tensors[tensor] = replace(
            old, shape=(*old.shape[:d], old.shape[d] * size, *old.shape[d + 2 :])
        )

        def visit(node: Expr) -> Expr:
            if not isinstance(node, Load) or node.tensor != tensor:
                return node
            indices = (*node.indices[:d], variable(t), *node.indices[d + 2 :])
            return replace(node, indices=indices)

        user = self.statements[reader]
        assert isinstance(user, Statement)
        self.statements[reader] = map_expressions(user, lambda e: map_expr(e, visit))
        name = self.names[self.facts.writers[tensor][0]]
        maker = self.statements[name]
        assert isinstance(maker, Statement)
        outer, inner = maker.writes[0].indices[d : d + 2]
        assert isinstance(outer, Affine) and isinstance(inner, Affine)
        self.statements[name] = _written(maker, d, outer * size + inner)
        self.count(name)


def _written(s: Statement, d: int, index: Affine) -> Statement:
    """A statement that writes two dimensions as one."""
    (write,) = s.writes
    indices = (*write.indices[:d], index, *write.indices[d + 2 :])
    return replace(s, writes=(replace(write, indices=indices),))


def _pairs(s: Statement) -> Iterator[tuple[str, str]]:
    """Indices that a statement writes at one place, as ``S*outer + inner``."""
    r = s.reduction
    if len(s.order) != 1 or (r is not None and (r.scan or r.state_indices is not None)):
        return
    own = {r.name: r for r in s.domain.ranges}
    bounds = [b for r in s.domain.ranges for b in (r.lower, r.upper)]
    bounding = {n for a in (*bounds, *s.domain.constraints) for n in a.variables()}
    for index in s.writes[0].indices:
        if not isinstance(index, Affine) or index.const or len(index.terms) != 2:
            continue
        (inner, one), (outer, size) = sorted(index.terms, key=_factor)
        if one != 1 or not isinstance(inner, str) or not isinstance(outer, str):
            continue
        if not {inner, outer} <= own.keys() - bounding:
            continue
        if own[inner].upper == affine(size) and own[inner].lower == own[outer].lower == affine(0):
            yield outer, inner


def _factor(term: tuple[object, int]) -> int:
    return term[1]


def _counted(s: Statement, outer: str, inner: str, t: str) -> Statement:
    """A statement with the index ``t`` for two."""
    own = {r.name: r for r in s.domain.ranges}
    size = own[inner].upper.const
    apart: dict[str, AffineLike] = {outer: variable(t) // size, inner: variable(t) % size}
    together: dict[str, AffineLike] = {outer: affine(0), inner: variable(t)}

    def moved(a: Affine) -> Affine:
        first, second = a.coefficient(outer), a.coefficient(inner)
        rest = a - variable(outer) * first - variable(inner) * second
        is_whole = first == size * second and not rest.variables() & {outer, inner}
        return a.substitute(together if is_whole else apart)

    s = map_statement_affines(s, moved)
    merged = IndexRange(name=t, lower=affine(0), upper=own[outer].upper * size)
    ranges = [merged if r.name == outer else r for r in s.domain.ranges]
    domain = Domain(
        ranges=tuple(r for r in ranges if r.name != inner), constraints=s.domain.constraints
    )
    return replace(s, domain=domain)


# ------------------------------------------------------------------------------ in place


def read_pages_in_place(program: Program, ctx: PassContext) -> Program:
    """Let products read what is gathered for them alone where it lies.

    Rewrite: ``G[t,d] = C[P[t//S], t%S, d]; Y[q,t] = Σ_d Q[q,d]·G[t,d]`` →
        ``Y[q,t] = Σ_d Q[q,d]·C[P[t//S], t%S, d]``
    Legal when: ``G`` is a private temp that one product or attention reads, and what it is gathered
        from is not written later.
    """
    facts = program_facts(program)
    tensors: dict[str, Tensor] = facts.tensors
    shapes = {t.name: t.shape for t in program.tensors}
    symbols = program.symbol_ranges()
    statements = list(program.statements)
    for number, s in enumerate(statements):
        if not isinstance(s, Statement) or not _reads_tiles(s):
            continue
        ranges = index_ranges(s.domain, symbols)

        def visit(node: Expr, s: Statement = s, ranges: object = ranges) -> Expr:
            if not isinstance(node, Load) or node.tensor not in tensors:
                return node
            piece = _gathered(node.tensor, program, facts)
            if piece is None:
                return node
            found = inline_load(node, [piece], s.domain, ranges, shapes)  # type: ignore[arg-type]
            return node if found is None else found

        new = map_expressions(s, lambda e: map_expr(e, visit))
        if new is not s:
            ctx.changed(_INLINE, s.name, "reads what it gathers where it lies")
            statements[number] = new
    if statements == list(program.statements):
        return program
    return remove_dead_code(replace_statements(program, statements), ctx)


def _reads_tiles(s: Statement) -> bool:
    return is_online(s) or contraction_roles(s) is not None


def _gathered(name: str, program: Program, facts: ProgramFacts) -> Piece | None:
    """How a tensor is gathered, where one statement alone reads it and nothing is computed."""
    if not facts.is_private_temp(name) or facts.tensors[name].role != "temp":
        return None
    if len(facts.writers.get(name, ())) != 1 or len(facts.readers.get(name, ())) != 1:
        return None
    maker = program.statements[facts.writers[name][0]]
    if not isinstance(maker, Statement) or not is_pointwise(maker) or not is_functional(maker):
        return None
    element = maker.elements[0]
    if len(maker.writes) != 1 or not isinstance(element, Load) or not has_gather(element):
        return None
    position = first_position(maker)
    if not all(facts.is_written_before(x.tensor, position) for x in maker.loads):
        return None
    indices = tuple(i for i in maker.writes[0].indices if isinstance(i, Affine))
    if len(indices) != len(maker.writes[0].indices):
        return None
    return Piece(maker.name, maker.domain, indices, element, write_box(maker.domain, indices))
