"""How the accesses of a statement move with the loops of a schedule tree: strides and extents.

Pure arithmetic on rows of the tree; the heuristic asks here what each loop reuses and what it
walks through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from nestor.ir.affine import Affine
from nestor.ir.expr import Const, Index, loads, walk
from nestor.ir.program import Program, Statement
from nestor.ir.schedule_tree import Band, Leaf, Sequence, Tree

TYPICAL_SIZE = 1000
"""Taken for a symbol whose value is not known."""

OTHER = 1 << 20
"""Stands for a stride that is neither 0 nor ±1 element."""

Rows = tuple[tuple[str, Affine], ...]
"""A statement's loops, outermost first, with its value in each."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One access of a statement, seen from its loops.

    ``strides``: elements that it moves when a loop advances by one: 0, 1, −1 or ``OTHER``.
    """

    tensor: str
    is_write: bool
    strides: Mapping[str, int]
    dimensions: int
    element_bytes: int


@dataclass(frozen=True, slots=True)
class StatementView:
    """A statement with its place in the tree.

    Attributes:
        rows: the loops around it.
        moves: index → how much it changes with each loop.
        streams: its accesses.
        operations: of one instance, roughly.
        position: among the leaves of the tree.
    """

    statement: Statement
    rows: Rows
    moves: Mapping[str, Mapping[str, Fraction]]
    streams: tuple[Stream, ...]
    operations: int
    position: int

    @property
    def name(self) -> str:
        """The statement's name."""
        return self.statement.name

    @property
    def depth(self) -> int:
        """How many indices it has."""
        return len(self.statement.domain.names)

    @property
    def target(self) -> Stream:
        """What it writes."""
        return next(s for s in self.streams if s.is_write)

    @property
    def reduced(self) -> tuple[str, ...]:
        """The reduced indices of a sum into its target."""
        r = self.statement.reduction
        return r.indices if r is not None and r.into and r.monoid.commutative else ()

    def accumulates(self) -> bool:
        """Whether it adds to what it writes: ``x[f] = x[f] + e``."""
        if self.statement.reduction is not None:
            return self.statement.reduction.into
        write = self.statement.writes[0]
        return any(
            load.tensor == write.tensor and load.indices == write.indices
            for element in self.statement.elements
            for load in loads(element)
        )

    def index_of(self, loop: str) -> str | None:
        """The index that runs with ``loop`` and with no other loop."""
        for index, by_loop in self.moves.items():
            if [name for name, step in by_loop.items() if step] == [loop]:
                return index
        return None


def statement_views(program: Program, tree: Tree) -> dict[str, StatementView]:
    """Every statement of ``tree``, by name."""
    statements = {s.name: s for s in program.statements if isinstance(s, Statement)}
    rank = {t.name: len(t.shape) for t in program.tensors}
    size = {t.name: t.dtype.bytes for t in program.tensors}
    found: dict[str, StatementView] = {}
    for name, rows in _paths(tree, ()):
        s = statements[name]
        moves = _moves(s, rows)
        loops = [loop for loop, _ in rows]
        streams = tuple(_streams(s, loops, moves, rank, size))
        operations = max(1, sum(_operations(s)))
        found[name] = StatementView(s, rows, moves, streams, operations, len(found))
    return found


def _paths(tree: Tree, rows: Rows) -> Iterator[tuple[str, Rows]]:
    match tree:
        case Leaf():
            own = tuple((loop, row) for loop, row in rows if loop is not None)
            yield tree.statement, own
        case Sequence():
            for child in tree.children:
                yield from _paths(child, rows)
        case Band():
            for name, path in _paths(tree.child, ()):
                here = tuple((loop.name, loop.row(name)) for loop in tree.loops)
                yield name, (*rows, *here, *path)


def _operations(s: Statement) -> Iterator[int]:
    for element in s.elements:
        yield sum(not isinstance(x, (Const, Index)) for x in walk(element))


def _moves(s: Statement, rows: Rows) -> dict[str, dict[str, Fraction]]:
    """For each index, its change with each loop while the other loops stand still.

    The rows are solved for the indices; of rows that depend on others the outer one is left out. An
    index that the loops do not determine moves with none.
    """
    names = list(s.domain.names)
    work: list[tuple[list[Fraction], dict[str, Fraction]]] = []
    for loop, row in rows:
        coefficients = [Fraction(row.coefficient(n)) for n in names]
        work.append((coefficients, {loop: Fraction(1)}))
    solved: list[tuple[int, list[Fraction], dict[str, Fraction]]] = []
    for coefficients, source in reversed(work):
        for at, other, other_source in solved:
            factor = coefficients[at]
            if factor:
                coefficients = [c - factor * o for c, o in zip(coefficients, other)]
                source = _less(source, other_source, factor)
        at = next((k for k, c in enumerate(coefficients) if c), -1)
        if at < 0:
            continue
        scale = coefficients[at]
        coefficients = [c / scale for c in coefficients]
        source = {k: v / scale for k, v in source.items()}
        solved = [
            (
                p,
                [c - other[at] * d for c, d in zip(other, coefficients)],
                _less(other_source, source, other[at]),
            )
            for p, other, other_source in solved
        ]
        solved.append((at, coefficients, source))
    found: dict[str, dict[str, Fraction]] = {n: {} for n in names}
    for at, _, source in solved:
        found[names[at]] = {k: v for k, v in source.items() if v}
    return found


def _less(
    a: Mapping[str, Fraction], b: Mapping[str, Fraction], factor: Fraction
) -> dict[str, Fraction]:
    return {k: a.get(k, Fraction(0)) - factor * b.get(k, Fraction(0)) for k in {**a, **b}}


def _streams(
    s: Statement,
    loops: list[str],
    moves: Mapping[str, Mapping[str, Fraction]],
    rank: Mapping[str, int],
    size: Mapping[str, int],
) -> Iterator[Stream]:
    accesses = [(w.tensor, w.indices, True) for w in s.writes]
    accesses += [(x.tensor, x.indices, False) for e in s.elements for x in loads(e)]
    for tensor, indices, is_write in dict.fromkeys(accesses):
        strides: dict[str, int] = {}
        for loop in loops:
            steps = [
                _step(i, loop, moves) if isinstance(i, Affine) else Fraction(OTHER) for i in indices
            ]
            if not any(steps):
                strides[loop] = 0
            elif not any(steps[:-1]) and abs(steps[-1]) == 1:
                strides[loop] = int(steps[-1])
            else:
                strides[loop] = OTHER
        yield Stream(tensor, is_write, strides, rank[tensor], size[tensor])


def _step(index: Affine, loop: str, moves: Mapping[str, Mapping[str, Fraction]]) -> Fraction:
    total = Fraction(0)
    for atom, c in index.terms:
        if isinstance(atom, str):
            total += c * moves.get(atom, {}).get(loop, Fraction(0))
        elif any(moves.get(v, {}).get(loop) for v in atom.num.variables()):
            return Fraction(OTHER)
    return total


def typical_extents(
    program: Program, statement: Statement, sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Length of each index' range, with the indices around it in their middle."""
    env: dict[str, int] = {s.name: max(s.lower, TYPICAL_SIZE) for s in program.symbols}
    env.update(sizes or {})
    extents: dict[str, int] = {}
    for r in statement.domain.ranges:
        lower, upper = int(r.lower.evaluate(env)), int(r.upper.evaluate(env))
        extents[r.name] = max(1, upper - lower)
        env[r.name] = (lower + upper) // 2
    return extents


def tensor_bytes(program: Program, tensor: str, sizes: Mapping[str, int] | None = None) -> int:
    """Size of a tensor [bytes]; unknown symbols are taken as ``TYPICAL_SIZE``."""
    env: dict[str, int] = {s.name: max(s.lower, TYPICAL_SIZE) for s in program.symbols}
    env.update(sizes or {})
    t = program.tensor(tensor)
    total = t.dtype.bytes
    for extent in t.shape:
        total *= max(1, int(extent.evaluate(env)))
    return total
