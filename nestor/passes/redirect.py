"""Let a statement write where its result is wanted, so that no copy has to move it there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace

from nestor.ir.affine import Affine, Interval, affine, variable
from nestor.ir.expr import Expr, Load, map_expr
from nestor.ir.program import AnyStatement, Domain, IndexRange, Program, Statement, Tensor, Write
from nestor.passes.analysis import (
    ProgramFacts,
    is_copy,
    is_functional,
    is_pointwise,
    program_facts,
)
from nestor.passes.context import PassContext
from nestor.passes.delinearize import count_divisions
from nestor.passes.index_maps import invert_map, is_within
from nestor.passes.rewriting import (
    extent_of,
    index_ranges,
    map_expressions,
    names_of,
    replace_statements,
    same_volume,
)
from nestor.passes.simplify_expr import simplify_affine

_NAME = "redirect_writes"


def redirect_writes(program: Program, ctx: PassContext) -> Program:
    """Write a reduction's result directly in the arrangement that its only reader wants.

    Rewrite: ``T[b,h,s,d] = Σ …; U[b,s,e] = T[b, e//D, s, e%D]`` → ``U[b, s, h*D + d] = Σ …``. The
        copy ``U`` may be a statement, or implied by loads of ``T`` that all have this form.
    Legal when: the copy's map is one to one and onto all that is written to ``T``, ``T`` is a temp
        that nothing else reads, and the copy alone writes ``U``.
    """
    return _Redirector(program, ctx).run()


class _Redirector:
    def __init__(self, program: Program, ctx: PassContext):
        self.program = program
        self.ctx = ctx
        self.facts: ProgramFacts = program_facts(program)
        self.symbols = program.symbol_ranges()
        self.names = names_of(program)
        self.statements: list[AnyStatement | None] = list(program.statements)
        self.added: list[Tensor] = []

    def run(self) -> Program:
        for number, statement in enumerate(self.program.statements):
            if isinstance(statement, Statement) and is_copy(statement):
                self._merge_copy(number, statement)
        for name in self.facts.readers:
            self._merge_loads(name)
        kept = [s for s in self.statements if s is not None]
        tensors = (*self.program.tensors, *self.added)
        return replace_statements(self.program, kept, tensors)

    def _producer(self, name: str) -> tuple[int, Statement] | None:
        """The single reduction that writes the private temp ``name``."""
        writers = self.facts.writers.get(name, ())
        if not self.facts.is_private_temp(name) or len(writers) != 1:
            return None
        statement = self.statements[writers[0]]
        if not isinstance(statement, Statement) or not is_functional(statement):
            return None
        return None if is_pointwise(statement) else (writers[0], statement)

    def _merge_copy(self, number: int, copy: Statement) -> None:
        load, write = copy.elements[0], copy.writes[0]
        assert isinstance(load, Load)
        target = self.facts.tensors[write.tensor]
        producer = self._producer(load.tensor)
        if producer is None or self.facts.readers[load.tensor] != [number]:
            return
        if target.role not in ("temp", "output") or target.name in self.facts.aliased:
            return
        if len(self.facts.writers[target.name]) != 1 or not is_functional(copy):
            return
        if target.dtype is not load.dtype or not _is_affine(write.indices):
            return
        new = self._redirected(producer[1], load.tensor, copy.domain, load, write)
        if new is None:
            self.ctx.refused(_NAME, copy.name, f"'{producer[1].name}' cannot write its target")
            return
        self.statements[producer[0]] = new
        self.statements[number] = None
        self.facts.writers[target.name] = [producer[0]]
        self.ctx.changed(_NAME, producer[1].name, f"writes '{target.name}' itself")

    def _merge_loads(self, name: str) -> None:
        """Loads that all read the temp through one reshaping map read a temp of that shape."""
        producer = self._producer(name)
        if producer is None:
            return
        readers = [(n, self.statements[n]) for n in self.facts.readers[name]]
        patterns: dict[Hashable, Load] = {}
        domain: Domain | None = None
        for _, reader in readers:
            if not isinstance(reader, Statement):
                return
            for load in reader.loads:
                if load.tensor == name:
                    box = _load_box(load, reader.domain)
                    if box is None or not count_divisions(_affines(load)):
                        return
                    patterns.setdefault(_pattern(load, box), load)
                    domain = box
        if domain is None or len(patterns) != 1:
            return
        (load,) = patterns.values()
        shape = tuple(extent_of(r) for r in domain.ranges)
        fresh = self.names.fresh(f"{name}_r")
        target = replace(self.facts.tensors[name], name=fresh, shape=shape, layout=None)
        identity = Write(tensor=target.name, indices=tuple(variable(n) for n in domain.names))
        new = self._redirected(producer[1], name, domain, load, identity)
        if new is None:
            return
        self.added.append(target)
        self.statements[producer[0]] = new
        for number, reader in readers:
            assert isinstance(reader, Statement)
            self.statements[number] = _read_plainly(reader, name, target.name)
        self.ctx.changed(_NAME, producer[1].name, f"writes '{name}' in its readers' shape")

    def _redirected(
        self, producer: Statement, name: str, domain: Domain, load: Load, write: Write
    ) -> Statement | None:
        """``producer`` with its write to ``name`` sent through the copy ``write = load``."""
        old = [w for w in producer.writes if w.tensor == name]
        if len(old) != 1 or domain.constraints or producer.domain.constraints:
            return None
        if not _is_affine(old[0].indices) or not _is_affine(load.indices):
            return None
        written = [i for i in old[0].indices if isinstance(i, Affine)]
        read = [i for i in load.indices if isinstance(i, Affine)]
        reduction = producer.reduction
        reduced = set() if reduction is None or reduction.scan else set(reduction.indices)
        free = [r for r in producer.domain.ranges if r.name not in reduced]
        if not same_volume(map(extent_of, free), map(extent_of, domain.ranges)):
            return None
        ranges = index_ranges(producer.domain, self.symbols)
        values = invert_map(read, domain, written)
        if values is None or not _is_onto(values, domain, read, written, producer.domain, ranges):
            return None
        indices = tuple(
            simplify_affine(i.substitute(values), ranges)
            for i in write.indices
            if isinstance(i, Affine)
        )
        if count_divisions(indices):
            return None
        new = replace(old[0], tensor=write.tensor, indices=indices)
        return replace(producer, writes=tuple(new if w is old[0] else w for w in producer.writes))


def _is_onto(
    values: Mapping[str, Affine],
    domain: Domain,
    read: list[Affine],
    written: list[Affine],
    over: Domain,
    ranges: Mapping[str, Interval],
) -> bool:
    """Every element written is one that the copy reads: ``read(values) = written``, in range."""
    for r in domain.ranges:
        if not is_within(values[r.name], r.lower, r.upper - 1, over, ranges):
            return False
    return all(
        simplify_affine(a.substitute(values), ranges) == simplify_affine(b, ranges)
        for a, b in zip(read, written)
    )


def _is_affine(indices: tuple[object, ...]) -> bool:
    return all(isinstance(i, Affine) for i in indices)


def _affines(load: Load) -> list[Affine]:
    return [i for i in load.indices if isinstance(i, Affine)]


def _load_box(load: Load, domain: Domain) -> Domain | None:
    """The zero-based, independent ranges of the indices that a load moves with."""
    if not _is_affine(load.indices):
        return None
    used = {v for i in load.indices if isinstance(i, Affine) for v in i.variables()}
    ranges: list[IndexRange] = []
    for r in domain.ranges:
        if r.name not in used:
            continue
        if r.lower != affine(0) or r.upper.variables() & set(domain.names):
            return None
        ranges.append(r)
    return Domain(ranges=tuple(ranges))


def _pattern(load: Load, box: Domain) -> Hashable:
    names = {n: variable(f"%{p}") for p, n in enumerate(box.names)}
    indices = tuple(i.substitute(names) for i in load.indices if isinstance(i, Affine))
    return indices, tuple(r.upper for r in box.ranges)


def _read_plainly(reader: Statement, old: str, new: str) -> Statement:
    def visit(node: Expr) -> Expr:
        if not isinstance(node, Load) or node.tensor != old:
            return node
        box = _load_box(node, reader.domain)
        assert box is not None
        return replace(node, tensor=new, indices=tuple(variable(n) for n in box.names))

    return map_expressions(reader, lambda e: map_expr(e, visit))
