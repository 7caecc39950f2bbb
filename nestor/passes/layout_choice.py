"""Layouts of temps, chosen for the whole program: the exact least of an estimate's sum.

Each temp has a few candidate orders of its dimensions; each statement says what it costs for every
combination of its tensors' candidates (``layout_cost``), copies from inputs and to outputs
included, as those keep row-major order. ``min_sum`` finds the combination of the least sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from nestor.ir.affine import Affine
from nestor.ir.expr import Load
from nestor.ir.program import AnyStatement, Layout, Program, Statement, Tensor
from nestor.passes.analysis import (
    ProgramFacts,
    contraction_roles,
    is_copy,
    is_functional,
    is_window_reduction,
    program_facts,
    weight_tensors,
)
from nestor.passes.context import PassContext
from nestor.passes.layout_cost import StatementCost
from nestor.passes.layouts import dimension_of, permuted, statement_accesses, wished_orders
from nestor.passes.min_sum import CostTable, minimise_sum, total_cost
from nestor.passes.register_tile import VectorUnit
from nestor.passes.rewriting import is_sequential, replace_statements
from nestor.passes.strides import typical

_NAME = "assign_layouts"

MAX_CANDIDATES = 4
"""Orders of one tensor's dimensions that are compared."""

MAX_STATEMENT_CELLS = 256
"""Combinations of layouts for which one statement's cost is estimated."""

MIN_GAIN = 1.05
"""By how much an estimate must be less than that of the rule's layouts, which measured well."""

_NEVER = 1e9
"""A gain that no estimate promises."""

Order = tuple[int, ...]
Accesses = list[tuple[str, tuple[object, ...]]]


def assign_layouts(program: Program, ctx: PassContext) -> Program:
    """Give each temp the dimension order with which the program is estimated to cost least.

    Candidates of a temp are row-major order, the order that rules for convolutions and sums wish
    for (``layouts.wished_orders``), and each dimension innermost that moves together with what
    another tensor has innermost. The wishes are also the answer where the exact choice would take
    too long.

    Legal when: the tensor is a temp that no ``Extern`` and no alias names.
    """
    chooser = _Chooser(program, ctx)
    return write_outputs_directly(chooser.run(), ctx)


def write_outputs_directly(program: Program, ctx: PassContext) -> Program:
    """Undo the staging of an output whose temp got the output's own layout.

    Rewrite: ``T[n,o,y,x] = Σ …; Y = T`` → ``Y[n,o,y,x] = Σ …`` where both are row-major.
    Legal when: ``T`` is a temp with functional writers that nothing but the copy reads, and the
        copy alone writes ``Y``.
    """
    facts = program_facts(program)
    statements: list[AnyStatement | None] = list(program.statements)
    for number, copy in enumerate(program.statements):
        if not isinstance(copy, Statement) or not is_copy(copy) or not is_functional(copy):
            continue
        load, write = copy.elements[0], copy.writes[0]
        assert isinstance(load, Load)
        source, target = facts.tensors[load.tensor], facts.tensors[write.tensor]
        writers = facts.writers.get(source.name, [])
        if target.role != "output" or not facts.is_private_temp(source.name) or not writers:
            continue
        producers = [s for n in writers if isinstance(s := statements[n], Statement)]
        if len(producers) < len(writers) or not all(map(is_functional, producers)):
            continue
        if facts.readers[source.name] != [number] or target.name in facts.aliased:
            continue
        if len(facts.writers[target.name]) != 1 or target.name in facts.readers:
            continue
        if source.layout != target.layout or not _is_whole_copy(copy, load, source, target):
            continue
        for writer, producer in zip(writers, producers):
            writes = tuple(
                replace(w, tensor=target.name) if w.tensor == source.name else w
                for w in producer.writes
            )
            statements[writer] = replace(producer, writes=writes)
            ctx.changed(_NAME, producer.name, f"writes '{target.name}' itself")
        statements[number] = None
    kept = [s for s in statements if s is not None]
    return program if len(kept) == len(statements) else replace_statements(program, kept)


def _is_whole_copy(copy: Statement, load: Load, source: Tensor, target: Tensor) -> bool:
    """Whether each element is copied to where it stands in a tensor of the same shape."""
    plain = [i for i in load.indices if isinstance(i, Affine)]
    if load.indices != copy.writes[0].indices or copy.domain.constraints:
        return False
    ranges = [copy.domain.range_of(n) for i in plain for n in i.variables()]
    return (
        source.shape == target.shape
        and source.dtype is target.dtype
        and [str(i) for i in plain] == [r.name for r in ranges] == list(copy.domain.names)
        and all(r.lower == Affine() for r in ranges)
        and [r.upper for r in ranges] == list(source.shape)
    )


@dataclass(slots=True)
class _Chooser:
    program: Program
    ctx: PassContext
    facts: ProgramFacts = field(init=False)
    unit: VectorUnit = field(init=False)
    wishes: dict[str, Order] = field(init=False)
    channels_last: dict[str, Order] = field(init=False)
    candidates: dict[str, list[Order]] = field(default_factory=dict)
    versions: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    tables: list[tuple[str, CostTable]] = field(default_factory=list)
    least_gain: float = MIN_GAIN

    def __post_init__(self) -> None:
        self.facts = program_facts(self.program)
        cpu = self.ctx.target
        self.unit = (
            VectorUnit() if cpu is None else VectorUnit(cpu.vector_bits, cpu.vector_registers)
        )
        self.wishes = wished_orders(self.program, self.ctx)
        self.channels_last = wished_orders(self.program, self.ctx, keep_rows=False)

    def run(self) -> Program:
        self._collect_candidates()
        self.least_gain = self._choose_gain()
        self._limit_statements()
        for statement in self.program.statements:
            if isinstance(statement, Statement):
                self._add_table(statement)
        values = {n: len(c) for n, c in self.candidates.items() if len(c) > 1}
        tables = [t for _, t in self.tables]
        chosen = minimise_sum(values, tables)
        if chosen is None:
            self.ctx.refused(_NAME, self.program.name, "too entangled: layouts follow the rules")
            chosen = dict.fromkeys(values, 0)
        layouts: dict[str, Layout] = {}
        for name, orders in self.candidates.items():
            order = orders[chosen.get(name, 0)]
            layout = permuted(self.facts.tensors[name], order)
            if layout is not None:
                layouts[name] = layout
            if layout is not None or chosen.get(name, 0):
                self.ctx.changed(
                    _NAME, name, f"dimensions in the order {order}{self._why(name, chosen)}"
                )
        if not layouts:
            return self.program
        tensors = (
            replace(t, layout=layouts[t.name]) if t.name in layouts else t
            for t in self.program.tensors
        )
        return replace(self.program, tensors=tuple(tensors))

    def _choose_gain(self) -> float:
        """How far the estimate is trusted against the rules' layouts. Knob: ``layouts``."""
        ways = {"rules": _NEVER, "both": MIN_GAIN, "estimate": 1.0}
        meaning = "layouts of temps: as rules wish, as the estimate has it, or where both agree"
        return ways[self.ctx.choices.word("layouts", tuple(ways), "both", meaning)]

    # ------------------------------------------------------------------------------ candidates

    def _collect_candidates(self) -> None:
        """The wish (or row-major) first, then row-major, channels last where a rule keeps rows,
        then what statements move along."""
        weights, votes = weight_tensors(self.program), self._count_votes()
        for tensor in self.program.tensors:
            if not self.facts.is_private_temp(tensor.name) or tensor.layout is not None:
                continue
            rank = len(tensor.shape)
            if tensor.name in weights or rank == 0:
                continue
            plain = tuple(range(rank))
            orders = [self.wishes.get(tensor.name, plain), plain]
            orders += [self.channels_last[n] for n in (tensor.name,) if n in self.channels_last]
            if self._is_sequential(tensor.name):
                del orders[1:]
            elif not self._is_row(tensor.name):
                least = self.ctx.options.min_channels
                wanted = votes.get(tensor.name, {})
                dims = sorted(wanted, key=lambda d: (-wanted[d], -typical(tensor.shape[d]), d))
                orders += [_innermost(d, rank) for d in dims if typical(tensor.shape[d]) >= least]
            self.candidates[tensor.name] = list(dict.fromkeys(orders))[:MAX_CANDIDATES]

    def _is_sequential(self, name: str) -> bool:
        """Whether a recurrence touches the tensor: its steps come one at a time."""
        numbers = (*self.facts.readers.get(name, ()), *self.facts.writers.get(name, ()))
        return any(is_sequential(self.program.statements[n]) for n in numbers)

    def _is_row(self, name: str) -> bool:
        """Whether a reduction (no sum of products) runs along the tensor's rows: its statements
        become one kernel, which has a row near at hand however it lies."""
        for number in self.facts.readers.get(name, ()):
            statement = self.program.statements[number]
            if not isinstance(statement, Statement) or statement.reduction is None:
                continue
            if contraction_roles(statement) is not None or is_window_reduction(statement):
                continue
            for load in statement.loads:
                last = load.indices[-1] if load.tensor == name and load.indices else None
                if isinstance(last, Affine) and last.variables() & {*statement.reduction.indices}:
                    return True
        return False

    def _count_votes(self) -> dict[str, dict[int, int]]:
        """Tensor → dimension → in how many statements it moves together with what another tensor
        has innermost, in row-major order or by a wish."""
        votes: dict[str, dict[int, int]] = {}
        for statement in self.program.statements:
            if not isinstance(statement, Statement) or is_sequential(statement):
                continue
            accesses = list(dict.fromkeys(statement_accesses(statement)))
            inner = {(index, name) for name, index in self._inner_indices(accesses)}
            for name, indices in accesses:
                counts = votes.setdefault(name, {})
                for index in {i for i, other in inner if other != name}:
                    d = dimension_of(indices, index)
                    if d is not None:
                        counts[d] = counts.get(d, 0) + 1
        return votes

    def _inner_indices(self, accesses: Accesses) -> Iterator[tuple[str, str]]:
        """(tensor, index) where the index moves the tensor's innermost dimension."""
        for name, indices in accesses:
            if not indices:
                continue
            wish = self.wishes.get(name, ())
            for d in {len(indices) - 1, *wish[-1:]}:
                place = indices[d]
                if isinstance(place, Affine):
                    for atom, c in place.terms:
                        if isinstance(atom, str) and c == 1:
                            yield name, atom

    def _limit_statements(self) -> None:
        """Fewer candidates for the tensors of statements that touch very many."""
        for statement in self.program.statements:
            if not isinstance(statement, Statement):
                continue
            names = dict.fromkeys(n for n, _ in statement_accesses(statement))
            own = [self.candidates[n] for n in names if n in self.candidates]
            for most in (2, 1):
                if math.prod(map(len, own)) <= MAX_STATEMENT_CELLS:
                    break
                reason = f"touches {len(own)} tensors: {most} layouts of each are compared"
                self.ctx.refused(_NAME, statement.name, reason)
                for orders in own:
                    del orders[most:]

    # ---------------------------------------------------------------------------------- costs

    def _add_table(self, statement: Statement) -> None:
        """What the statement costs for all combinations of its tensors' candidates."""
        touched = dict.fromkeys(name for name, _ in statement_accesses(statement))
        names = [n for n in touched if len(self.candidates.get(n, ())) > 1]
        if not names:
            return
        shape = [len(self.candidates[n]) for n in names]
        estimate = StatementCost(statement, self.unit)
        cost = np.empty(shape)
        for place in itertools.product(*map(range, shape)):
            picked = dict(zip(names, place))
            tensors = {n: self._version(n, picked.get(n, 0)) for n in touched}
            cost[place] = estimate.cycles(tensors) * (self.least_gain if any(place) else 1.0)
        self.tables.append((statement.name, CostTable(tuple(names), cost)))

    def _version(self, name: str, candidate: int) -> Tensor:
        """The tensor in one of its candidates' layouts."""
        tensor = self.facts.tensors[name]
        if name not in self.candidates:
            return tensor
        key = (name, candidate)
        if key not in self.versions:
            layout = permuted(tensor, self.candidates[name][candidate])
            self.versions[key] = replace(tensor, layout=layout)
        return self.versions[key]

    def _why(self, name: str, chosen: dict[str, int]) -> str:
        """The statements that gain or lose most by it, held against row-major order."""
        orders = self.candidates[name]
        plain = tuple(range(len(orders[0])))
        if name not in chosen or plain not in orders or orders[chosen[name]] == plain:
            return ""
        other = {**chosen, name: orders.index(plain)}
        gains = {
            statement: total_cost([table], other) / max(1.0, total_cost([table], chosen))
            for statement, table in self.tables
            if name in table.names
        }
        changed = sorted(((g, s) for s, g in gains.items() if g != 1.0), reverse=True)[:3]
        listed = ", ".join(f"'{s}' {g:.2f} times" for g, s in changed)
        return f" (row-major would cost {listed})" if listed else ""


def _innermost(d: int, rank: int) -> Order:
    return (*(x for x in range(rank) if x != d), d)
