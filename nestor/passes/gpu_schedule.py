"""The rule-based schedule of a kernel for a GPU: programs of a grid, each with tiles of elements.

Outer loops become the grid, a program takes a tile of a few thousand elements, and what is reduced
is looped over in tiles, or held whole where it fits. Sizes of tiles are powers of two; what a range
leaves over is masked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from nestor.ir.affine import Affine, affine
from nestor.ir.expr import loads
from nestor.ir.program import Statement
from nestor.ir.schedule import (
    Accumulate,
    Bind,
    ComputeAt,
    Fuse,
    PredicatedTile,
    Reorder,
    Schedule,
    Step,
    Unroll,
    Vectorize,
)
from nestor.passes.analysis import expression_variables
from nestor.passes.contraction import Contraction, contraction_of
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_fusion import is_online, scatters
from nestor.passes.knobs import Choices
from nestor.passes.statement_facts import extent_of, free_indices, is_constant, reduced_indices
from nestor.passes.strides import access_strides

WHOLE = 16384
"""Largest part of a row that a program holds at once [elements]."""

TILE = 1024
"""Elements of a program's tile, where nothing else asks for more."""

LONG = 1 << 16
"""Taken for the extent of what is only known at run time."""

PRODUCT = (128, 128, 32)
"""Rows, columns and terms of a product's tile at most."""

ATTENTION = (64, 64)
"""Queries and keys of an attention's tile at most."""

LEAST = 16
"""Of each side of a product's tile: tensor cores take no less."""


@dataclass(slots=True)
class _Plan:
    """How one statement runs.

    Attributes: grid: loops of the grid, outermost first. shared: loops of a program that all
        statements are in. serial: its other loops. tile: loops of its tile. steps: that make
        them. notes: how they run.
    """

    statement: Statement
    grid: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    serial: list[str] = field(default_factory=list)
    tile: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    notes: list[Step] = field(default_factory=list)

    def all_steps(self) -> list[Step]:
        """What makes the loops, orders them, and says how they run."""
        loops = (*self.grid, *self.shared, *self.serial, *self.tile)
        return [*self.steps, Reorder(statement=self.statement.name, loops=loops), *self.notes]


def gpu_schedule(fused: FusedKernel, choices: Choices | None = None) -> Schedule:
    """A good legal schedule for any kernel on a GPU, without search.

    Args: choices: decisions of a search, and on return every knob that the rules asked for.
    """
    return _Rules(fused, choices or Choices()).schedule()


class _Rules:
    def __init__(self, fused: FusedKernel, choices: Choices):
        self.fused, self.choices = fused, choices
        self.kernel = fused.kernel
        self.tensors = {t.name: t for t in self.kernel.tensors}
        self.statements = [s for s in self.kernel.statements if isinstance(s, Statement)]

    def schedule(self) -> Schedule:
        """All steps."""
        product = contraction_of(self.statements[0], self.tensors)
        if is_online(self.statements[-1]):
            plans = self._attention(self.statements[-1])
        elif scatters(self.statements[0]):
            plans = [self._scatter(s) for s in self.statements]
        elif product is not None and self._is_tiled_alike():
            plans = self._product(product)
        else:
            plans = self._rows()
        return tuple(self._steps(plans))

    def _is_tiled_alike(self) -> bool:
        """Whether all statements have the first one's free indices, so that one tile serves all."""
        rest = self.statements[1:]
        every = all(len(self.fused.shared[s.name]) == len(free_indices(s)) for s in self.statements)
        return not rest or (every and all(s.reduction is None for s in rest))

    # ------------------------------------------------------------------------------ plans

    def _product(self, c: Contraction) -> list[_Plan]:
        """Tiles of rows and columns, summed in tiles of terms."""
        s = c.statement
        row = max(c.rows, key=lambda n: self._extent(s, n), default=None)
        terms = max(c.reduced, key=lambda n: self._extent(s, n))
        sides = [(n, size) for n, size in zip((row, c.vector, terms), PRODUCT) if n is not None]
        shared = self.fused.shared[s.name]
        plans = []
        for user in self.statements:
            own = dict(zip(shared, self.fused.shared[user.name]))
            sizes: dict[str, int] = {}
            for name, most in sides:
                index = name if user is s else own.get(name)
                if index is not None:
                    sizes[index] = max(LEAST, self._power(user, index, most))
            order = list(self.fused.shared[user.name])
            free = [*order, *(n for n in free_indices(user) if n not in order)]
            plans.append(self._plan(user, free, sizes))
        return plans

    def _attention(self, last: Statement) -> list[_Plan]:
        """Tiles of queries; keys in tiles, one after the other, for scores and sums alike."""
        assert last.reduction is not None
        (key,) = last.reduction.indices
        shared = self.fused.shared[last.name]
        query = max(shared, key=lambda n: self._extent(last, n))
        queries, keys = (
            max(LEAST, self._power(last, n, most)) for n, most in zip((query, key), ATTENTION)
        )
        plans = []
        for s in self.statements:
            rows = list(self.fused.shared[s.name])
            places = dict(zip(shared, rows))
            keyed = key if s is last else self._keyed(s, last, key)
            sizes = {n: self._power(s, n, LONG) for n in self._others(s) if n != keyed}
            sizes[places[query]] = queries
            plan = self._plan(s, rows, {**sizes, keyed: keys})
            # Keys come first of what a program loops over, so that all statements can share them.
            loop = f"{s.name}.{keyed}.o"
            plan.serial.remove(loop)
            plan.shared.append(loop)
            plans.append(plan)
        return plans

    def _keyed(self, s: Statement, last: Statement, key: str) -> str:
        """What a statement that makes scores calls the keys: the index of what it writes where the
        next statement's load has them."""
        readers = {s.name: key for s in (last,)}
        for reader in reversed(self.statements):
            name = readers.get(reader.name)
            if name is None:
                continue
            for element in reader.elements:
                for load in loads(element):
                    for writer in self.statements:
                        for write in writer.writes:
                            if write.tensor != load.tensor:
                                continue
                            for w, r in zip(write.indices, load.indices):
                                if r == affine(name) and isinstance(w, Affine) and w.terms:
                                    readers.setdefault(writer.name, str(w))
        return readers[s.name]

    def _scatter(self, s: Statement) -> _Plan:
        """Side by side what surely goes to different places; the rest in order."""
        together: set[str] = set()
        if s.scatter != "unique":
            gathered = (i for w in s.writes for i in w.indices if not isinstance(i, Affine))
            together = {n for i in gathered for n in expression_variables(i)}
            together |= set(reduced_indices(s))
        apart = [n for n in s.domain.names if n not in together]
        return self._plan(s, apart, self._tile_of(s, apart, TILE))

    def _rows(self) -> list[_Plan]:
        """Rows of all statements side by side; of each, what is left of its indices as a tile."""
        widths = [prod(self._power(s, n, LONG) for n in self._others(s)) for s in self.statements]
        is_whole = max(widths) <= WHOLE
        last = self.statements[-1]
        rows = self._tile_of(last, list(self.fused.shared[last.name]), TILE // max(widths))
        plans = []
        for s in self.statements:
            shared = self.fused.shared[s.name]
            sizes = self._tile_of(s, self._others(s), LONG if is_whole else TILE)
            for name, like in zip(shared, self.fused.shared[last.name]):
                sizes[name] = rows.get(like, 1)
            plans.append(self._plan(s, list(shared), sizes))
        return plans

    def _others(self, s: Statement) -> list[str]:
        shared = self.fused.shared[s.name]
        return [n for n in s.domain.names if n not in shared]

    def _tile_of(self, s: Statement, names: list[str], most: int) -> dict[str, int]:
        """A tile of ``names``, the nearest in memory first."""
        found: dict[str, int] = {}
        for name in self._by_stride(s, names):
            if most > 1:
                found[name] = self._power(s, name, most)
                most //= found[name]
        return found

    def _by_stride(self, s: Statement, names: list[str]) -> list[str]:
        """The nearest in what is written, or else read, first."""
        write = s.writes[0]
        strides = access_strides(self.tensors[write.tensor], write.indices, s.domain.names)

        def distance(name: str) -> tuple[int, int]:
            stride = strides.get(name)
            return (1, 0) if not stride else (0, abs(stride))

        return sorted(names, key=distance)

    def _extent(self, s: Statement, name: str) -> int:
        return extent_of(s, name) if is_constant(s, name) else LONG

    def _power(self, s: Statement, name: str, most: int) -> int:
        """The least power of two that covers an index, or ``most``."""
        return min(most, 1 << max(0, self._extent(s, name) - 1).bit_length())

    def _plan(self, s: Statement, shared: list[str], sizes: dict[str, int]) -> _Plan:
        """Loops of a statement that is tiled by ``sizes``."""
        plan = _Plan(s)
        reduced = reduced_indices(s)
        inside: list[str] = []
        for name in [*shared, *(n for n in s.domain.names if n not in shared)]:
            loop = f"{s.name}.{name}"
            outer = plan.grid if name in shared else plan.serial
            size = sizes.get(name, 1)
            if size > 1:
                plan.steps.append(PredicatedTile(loop=loop, size=size))
                outer.append(f"{loop}.o")
                inside.append(name)
            else:
                outer.append(loop)
        kept = [n for n in inside if n not in reduced]
        summed = [n for n in inside if n in reduced]
        plan.tile = [f"{s.name}.{n}.i" for n in (*kept, *summed)]
        plan.notes += [Vectorize(loop=f"{s.name}.{n}.i") for n in kept]
        plan.notes += [Unroll(loop=f"{s.name}.{n}.i") for n in summed]
        if s.reduction is not None and not s.reduction.into:
            plan.notes.append(Accumulate(statement=s.name, scope="register"))
        return plan

    def _steps(self, plans: list[_Plan]) -> list[Step]:
        """Everything, with the grid's loops shared."""
        steps = [step for plan in plans for step in plan.all_steps()]
        first = plans[0]
        for plan in plans[1:]:
            pairs = zip((*first.grid, *first.shared), (*plan.grid, *plan.shared))
            steps += [Fuse(first=a, second=b) for a, b in pairs]
        steps += [Bind(loop=loop) for loop in first.grid]
        if len(plans) > 1:
            steps += [
                ComputeAt(tensor=t.name, scope="register")
                for t in self.kernel.tensors
                if t.role == "temp"
            ]
        return steps
