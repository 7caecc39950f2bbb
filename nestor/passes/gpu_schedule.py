"""The rule-based schedule of a kernel for a GPU: programs of a grid, each with tiles of elements.

Outer loops become the grid, a program takes a tile of a few thousand elements, and what is reduced
is looped over in tiles, or held whole where it fits. Sizes of tiles are powers of two; what a range
leaves over is masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

from nestor.errors import Unsupported
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import loads
from nestor.ir.program import Statement
from nestor.ir.schedule import (
    Accumulate,
    Bind,
    Collapse,
    ComputeAt,
    Fuse,
    PredicatedTile,
    Reorder,
    Schedule,
    Step,
    Unroll,
    Vectorize,
    Warps,
)
from nestor.ir.scores import visible
from nestor.passes.analysis import expression_variables, is_window_reduction
from nestor.passes.contraction import Contraction, contraction_of
from nestor.passes.fusion import FusedKernel
from nestor.passes.gpu_fusion import scatters
from nestor.passes.gpu_pipeline import ATTENTION
from nestor.passes.knobs import Choices
from nestor.passes.online_attention import is_online
from nestor.passes.statement_facts import extent_of, free_indices, is_constant, reduced_indices
from nestor.passes.strides import access_strides

WHOLE = 16384
"""Largest part of a row that a program holds at once [elements]."""

TILE = 1024
"""Elements of a program's tile, where nothing else asks for more."""

LONG = 1 << 16
"""Taken for the extent of what is only known at run time."""

WINDOW = 64
"""Terms of a window at most: they are summed one after the other, for many results at once."""

PROGRAMS = 128
"""That a kernel with windows has at least, if they have 128 results each: a chip's processors."""

PRODUCT = {2: (128, 128, 64), 4: (64, 64, 32), 8: (32, 32, 32)}
"""Rows, columns and terms of a product's tile at most, without a search, by bytes of an operand.
f32 is multiplied outside tensor cores, from registers, unless less than all of it is asked for."""

KEYS = {2: 16384, 4: 4096, 8: 2048}
"""Elements of a tile of keys at most, without a search, by bytes of one. One of queries, which make
as many results, may have twice as many."""

LARGE = 128 * 128
"""Results of a product's tile that eight warps share; fewer have four."""

MOST = (256, 256, 128)
"""The same, with one."""

LEAST = 16
"""Of each side of a product's tile: tensor cores take no less."""

LEAST_BYTES = 32
"""Of the terms of a tile [bytes]."""

SHARED_BYTES = 160 << 10
"""Of shared memory that the operands of a product's tile may take: what an A100 has [bytes]."""

GROUP = 8
"""Tiles of rows whose programs start together, where there are as many of rows and of columns."""

DESCRIPTORS = 90
"""Capability of the first chips that copy boxes."""

SPECIALIZED = range(100, 120)
"""Capability of the chips for which Triton divides a kernel's work among its warps: those that have
memory of their own for what tensor cores sum up."""

WARP_ELEMENTS = 256
"""Elements of a tile that a warp takes: eight a thread."""

Unit = tuple[str, ...]
"""Indices that make one loop, outermost first."""


@dataclass(slots=True)
class _Plan:
    """How one statement runs.

    Attributes: grid: loops of the grid, outermost first. shared: loops of a program that all
        statements are in. serial: its other loops. tile: loops of its tile, of ``elements``
        that make ``results`` of all that are ``written``.
        steps: that make them. notes: how they run.
    """

    statement: Statement
    grid: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    serial: list[str] = field(default_factory=list)
    tile: list[str] = field(default_factory=list)
    elements: int = 1
    results: int = 1
    written: int = 1
    steps: list[Step] = field(default_factory=list)
    notes: list[Step] = field(default_factory=list)

    def all_steps(self) -> list[Step]:
        """What makes the loops, orders them, and says how they run."""
        loops = (*self.grid, *self.shared, *self.serial, *self.tile)
        return [*self.steps, Reorder(statement=self.statement.name, loops=loops), *self.notes]


def gpu_schedule(
    fused: FusedKernel, choices: Choices | None = None, capability: int = 80
) -> Schedule:
    """A good legal schedule for any kernel on a GPU, without search.

    Args: choices: decisions of a search, and on return every knob that the rules asked for.
        capability: of the chip; newer ones have more knobs.
    """
    return _Rules(fused, choices or Choices(), capability).schedule()


def warps_of(schedule: Schedule) -> Warps:
    """How a GPU runs the programs of a scheduled kernel."""
    return next((s for s in schedule if isinstance(s, Warps)), Warps(count=4, stages=3))


class _Rules:
    def __init__(self, fused: FusedKernel, choices: Choices, capability: int):
        self.fused, self.choices, self.capability = fused, choices, capability
        self.kernel = fused.kernel
        self.tensors = {t.name: t for t in self.kernel.tensors}
        self.statements = [s for s in self.kernel.statements if isinstance(s, Statement)]

    def schedule(self) -> Schedule:
        """All steps."""
        contraction = self._contraction()
        if self._is_attention(self.statements[-1]):
            plans = self._attention(self.statements[-1])
        elif scatters(self.statements[0]):
            plans = [self._scatter(s) for s in self.statements]
        elif contraction is not None and self._is_tiled_alike():
            plans = self._product(contraction)
        else:
            plans = self._rows()
        return (*self._steps(plans), self._warps(plans))

    def _contraction(self) -> Contraction | None:
        """The first statement as a product: of many terms, or with rows of one operand and columns
        of the other for a whole tile. A depthwise convolution has neither: its channels are in
        both, and those that it makes of one are few."""
        c = contraction_of(self.statements[0], self.tensors, takes_bytes=True)
        if c is None or c.row_moves:
            return None
        sides = (self._extent(c.statement, side) for side in (c.rows, (*c.spread, c.vector)))
        is_long = self._extent(c.statement, c.reduced) > WINDOW
        return c if is_long or min(sides) >= LEAST else None

    def _is_tiled_alike(self) -> bool:
        """Whether all statements have the first one's free indices, so that one tile serves all."""
        rest = self.statements[1:]
        every = all(len(self.fused.shared[s.name]) == len(free_indices(s)) for s in self.statements)
        return not rest or (every and all(s.reduction is None for s in rest))

    def _is_attention(self, last: Statement) -> bool:
        """Whether the last statement sums over keys, and the others make scores of its queries."""
        made = (len(s.writes) == 1 for s in self.statements[:-1])
        shared = self.fused.shared[last.name]
        return is_online(last) and len(reduced_indices(last)) == 1 and bool(shared) and all(made)

    # ------------------------------------------------------------------------------ plans

    def _product(self, c: Contraction) -> list[_Plan]:
        """Tiles of rows and columns, summed in tiles of terms."""
        s = c.statement
        rows = tuple(reversed(c.rows))
        columns = (*reversed(c.spread), c.vector)
        sides = self._side(s, rows), self._side(s, columns), self._term_unit(c)
        tile = self._product_tile(s, sides)
        shared = self.fused.shared[s.name]
        plans = []
        for user in self.statements:
            own = dict(zip(shared, self.fused.shared[user.name]))
            sizes: dict[Unit, int] = {}
            for unit, size in zip(sides, tile):
                mine = unit if user is s else tuple(own[n] for n in unit if n in own)
                if mine:
                    sizes[mine] = size
            free = [*self.fused.shared[user.name], *free_indices(user)]
            merged = {n: unit for unit in sizes for n in unit}
            units = list(dict.fromkeys(merged.get(n, (n,)) for n in free))
            summed = [sides[2]] if user is s else []
            plans.append(self._plan(user, units, sizes, summed))
        return plans

    def _side(self, s: Statement, names: Unit) -> Unit:
        """The indices that make the rows, or the columns, of a product's tile: all of them, as a
        convolution has the pixels of all images; the longest where others read the tile, which
        then has to be a box of the tensor."""
        if len(self.statements) == 1 and all(is_constant(s, n) for n in names[1:]):
            return names
        return (max(names, key=lambda n: self._extent(s, (n,))),) if names else ()

    def _term_unit(self, c: Contraction) -> Unit:
        """The indices that make the terms of a product's tile: one, or all if they are few."""
        s = c.statement
        most = max(c.reduced, key=lambda n: self._extent(s, (n,)))
        is_short = self._extent(s, (most,)) < 2 * LEAST
        return c.reduced if is_short and all(is_constant(s, n) for n in c.reduced) else (most,)

    def _product_tile(self, s: Statement, sides: tuple[Unit, Unit, Unit]) -> tuple[int, ...]:
        """Rows, columns and terms of a tile."""
        item = max(x.dtype.bytes for e in s.elements for x in loads(e))
        usual = PRODUCT[min(8, max(2, item))]
        least = (LEAST, LEAST, max(LEAST, LEAST_BYTES // item))
        default = tuple(
            max(few, self._power(s, unit, n)) for unit, n, few in zip(sides, usual, least)
        )
        ranges = [
            [n for k in range(4, 9) if few <= (n := 1 << k) <= max(few, self._power(s, unit, most))]
            for unit, most, few in zip(sides, MOST, least)
        ]
        fitting = [
            (rows, columns, terms)
            for rows, columns, terms in product(*ranges)
            if rows * columns <= 256 * 128 and 2 * (rows + columns) * terms * item <= SHARED_BYTES
        ]
        meaning = "rows, columns and terms of a product's tile"
        return self.choices.sizes(f"{s.name}.tile", fitting, default, meaning)

    def _attention(self, last: Statement) -> list[_Plan]:
        """Tiles of queries; keys in tiles, one after the other, for scores and sums alike."""
        assert last.reduction is not None
        (key,) = last.reduction.indices
        shared = self.fused.shared[last.name]
        # Rows that the same values are summed for share them; a single one is no tile.
        alone = expression_variables(last.elements[2])
        rows = [n for n in shared if n not in alone and self._extent(last, (n,)) > 1]
        query = max(rows, key=lambda n: self._extent(last, (n,)), default="")
        keys = self._most_keys(last, key)
        default = tuple(
            max(LEAST, self._power(last, (n,), min(usual, most))) if n else 1
            for n, usual, most in zip((query, key), ATTENTION, (2 * keys, keys))
        )
        ranges = [[n for n in (16, 32, 64, 128) if n <= 2 * d] if d > 1 else [1] for d in default]
        meaning = "queries and keys of a tile"
        tile = self.choices.sizes("tile", list(product(*ranges)), default, meaning)
        plans = []
        for s in self.statements:
            own = list(self.fused.shared[s.name])
            keyed = self._key_of(s, last, key)
            others = [n for n in self._others(s) if n != keyed]
            sizes: dict[Unit, int] = {(n,): self._power(s, (n,), LONG) for n in others}
            sizes[(keyed,)] = tile[1]
            if query:
                sizes[(own[shared.index(query)],)] = tile[0]
            plan = self._plan(s, [(n,) for n in own], sizes)
            # Keys come first of what a program loops over, so that all statements can share them.
            loop = f"{s.name}.{keyed}.o"
            plan.serial.remove(loop)
            plan.shared.append(loop)
            plans.append(plan)
        return plans

    def _most_keys(self, last: Statement, key: str) -> int:
        """How many keys, or values, may make a tile."""
        most = LONG
        for s in self.statements:
            own = [n for n in self._others(s) if n != self._key_of(s, last, key)]
            width = prod(self._power(s, (n,), LONG) for n in own)
            given = (self.tensors[x.tensor] for e in s.elements for x in loads(e))
            item = max((t.dtype.bytes for t in given if t.role != "temp"), default=2)
            most = min(most, KEYS[max(2, item)] // width)
        return most

    def _key_of(self, s: Statement, last: Statement, key: str) -> str:
        """What a statement that makes scores calls the keys: its index where those who read the
        scores have theirs."""
        if s is last:
            return key
        (write,) = s.writes
        for reader in self.statements:
            for load in (x for e in reader.elements for x in loads(e) if x.tensor == write.tensor):
                theirs = affine(self._key_of(reader, last, key))
                for mine, index in zip(write.indices, load.indices):
                    if index == theirs and isinstance(mine, Affine):
                        return str(mine)
        raise Unsupported(f"'{s.name}' makes no scores of '{last.name}'")

    def _scatter(self, s: Statement) -> _Plan:
        """Side by side what surely goes to different places; the rest in order."""
        together: set[str] = set()
        if s.scatter != "unique":
            gathered = (i for w in s.writes for i in w.indices if not isinstance(i, Affine))
            together = {n for i in gathered for n in expression_variables(i)}
            together |= set(reduced_indices(s))
        apart = [n for n in s.domain.names if n not in together]
        return self._plan(s, [(n,) for n in apart], self._tile_of(s, apart, TILE))

    def _rows(self) -> list[_Plan]:
        """Rows of all statements side by side; of each, what is left of its indices as a tile."""
        windows = [self._is_window(s) for s in self.statements]
        widths = [
            prod(self._power(s, (n,), LONG) for n in (self._in_tile(s) if w else self._others(s)))
            for s, w in zip(self.statements, windows)
        ]
        is_whole = max(widths) <= WHOLE
        last = self.statements[-1]
        most = max(1, TILE // max(widths))
        if any(windows):
            results = self._extent(last, tuple(free_indices(last)))
            few = 1 << (results // PROGRAMS).bit_length()
            most = min(most, max(few, TILE // 8))
        sizes = [n for k in range(15) if (n := 1 << k) * min(max(widths), TILE) <= 4 * WHOLE]
        most = self.choices.size("rows", sizes, most, "rows or elements side by side")
        rows = self._tile_of(last, list(self.fused.shared[last.name]), most)
        fixed = {
            like
            for s in self.statements
            for name, like in zip(self.fused.shared[s.name], self.fused.shared[last.name])
            if name in _bounding(s)
        }
        plans = []
        for s in self.statements:
            shared = self.fused.shared[s.name]
            own = self._tile_of(s, self._in_tile(s), LONG if is_whole else TILE)
            for name, like in zip(shared, self.fused.shared[last.name]):
                own[(name,)] = 1 if like in fixed else rows.get((like,), 1)
            plans.append(self._plan(s, [(n,) for n in shared], own))
        return plans

    def _others(self, s: Statement) -> list[str]:
        shared = self.fused.shared[s.name]
        return [n for n in s.domain.names if n not in shared]

    def _is_window(self, s: Statement) -> bool:
        """Whether few terms are reduced, and neighbours have most of them in common. Terms that the
        kernel itself makes are a tile already."""
        if _is_ordered(s) or self._extent(s, tuple(reduced_indices(s))) > WINDOW:
            return False
        given = (self.tensors[x.tensor] for e in s.elements for x in loads(e))
        return is_window_reduction(s) and all(t.role != "temp" for t in given)

    def _in_tile(self, s: Statement) -> list[str]:
        """The own indices that may be a tile: of what is reduced in order, none, but for the
        innermost of a scan; of a window, none."""
        if self._is_window(s):
            return [n for n in self._others(s) if n not in reduced_indices(s)]
        r = s.reduction
        if r is None or not _is_ordered(s):
            return self._others(s)
        serial = r.indices[: -1 if r.scan else None]
        return [n for n in self._others(s) if n not in serial]

    def _tile_of(self, s: Statement, names: list[str], most: int) -> dict[Unit, int]:
        """A tile of ``names``, the nearest in memory first; what bounds another loop stays out."""
        bounding = _bounding(s)
        found: dict[Unit, int] = {}
        for name in self._by_stride(s, names):
            if most > 1 and name not in bounding:
                size = found[(name,)] = self._power(s, (name,), most)
                most //= size
        return found

    def _by_stride(self, s: Statement, names: list[str]) -> list[str]:
        """The nearest in what is written, or else read, first."""
        write = s.writes[0]
        strides = access_strides(self.tensors[write.tensor], write.indices, s.domain.names)

        def distance(name: str) -> tuple[int, int]:
            stride = strides.get(name)
            return (1, 0) if not stride else (0, abs(stride))

        return sorted(names, key=distance)

    def _extent(self, s: Statement, unit: Unit) -> int:
        return prod(extent_of(s, n) if is_constant(s, n) else LONG for n in unit)

    def _power(self, s: Statement, unit: Unit, most: int) -> int:
        """The least power of two that covers a loop, or ``most``."""
        return min(most, 1 << max(0, self._extent(s, unit) - 1).bit_length())

    # ------------------------------------------------------------------------------ steps

    def _plan(
        self,
        s: Statement,
        shared: Sequence[Unit],
        sizes: Mapping[Unit, int],
        summed: Sequence[Unit] = (),
    ) -> _Plan:
        """Loops of a statement that is tiled by ``sizes``.

        Args: shared: loops of the grid. summed: reduced ones, where several indices make one.
        """
        plan = _Plan(s)
        reduced = reduced_indices(s)
        plan.written = self._extent(s, tuple(free_indices(s)))
        taken = {n for unit in (*shared, *summed) for n in unit}
        ordered = s.domain.names
        if s.reduction is not None and _is_ordered(s):
            ordered = (*free_indices(s), *s.reduction.indices)
        units = [*shared, *((n,) for n in ordered if n not in taken), *summed]
        if any(len(unit) > 1 for unit in units):
            loops = tuple(f"{s.name}.{n}" for unit in units for n in unit)
            plan.steps.append(Reorder(statement=s.name, loops=loops))
        indices = {*s.domain.names}
        varying = {
            r.name for r in s.domain.ranges if (r.lower.variables() | r.upper.variables()) & indices
        }
        kept: list[str] = []
        over: list[str] = []
        for unit in units:
            loop = f"{s.name}.{unit[0]}"
            for n in unit[1:]:
                plan.steps.append(Collapse(outer=loop, inner=f"{s.name}.{n}"))
                loop = f"{loop}_{n}"
            outer = plan.grid if unit in shared else plan.serial
            if outer is plan.grid and varying & {*unit}:
                outer = plan.shared
            size = sizes.get(unit, 1)
            if size > 1:
                plan.steps.append(PredicatedTile(loop=loop, size=size))
                outer.append(f"{loop}.o")
                (over if unit[0] in reduced else kept).append(f"{loop}.i")
                plan.elements *= size
                plan.results *= 1 if unit[0] in reduced else size
            else:
                outer.append(loop)
        plan.tile = [*kept, *over]
        plan.notes += [Vectorize(loop=loop) for loop in kept]
        plan.notes += [Unroll(loop=loop) for loop in over]
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

    def _warps(self, plans: list[_Plan]) -> Warps:
        """As many warps as keep a thread's share of the largest tile small."""
        tiles = [p.elements for p in plans]
        contraction = self._contraction()
        if contraction is not None or is_online(self.statements[-1]):
            # Addresses of what several indices make take registers as well.
            gathers = any(isinstance(step, Collapse) for p in plans for step in p.steps)
            # So do numbers of 64 bits that decide which scores count.
            tests = any(_may_hide(s, least_bytes=8) for s in self.statements)
            is_large = max(p.results for p in plans) >= LARGE
            wanted = 8 if gathers or tests or is_large else 4
        else:
            wanted = max(tiles) // WARP_ELEMENTS
        counts = (1, 2, 4, 8, 16)
        default = max(n for n in counts if n <= max(4, wanted))
        count = self.choices.size("warps", counts, default, "warps of a program")
        meaning = "iterations of a loop whose loads are under way"
        stages = self.choices.size("stages", (1, 2, 3, 4, 5), 3, meaning)
        group = 1
        if contraction is not None and len(plans[0].grid) > 1:
            default = GROUP if plans[0].results * GROUP**2 <= plans[0].written else 1
            meaning = "tiles of rows whose programs start together"
            group = self.choices.size("group", (1, 2, 4, 8, 16), default, meaning)
        if is_online(self.statements[-1]):
            skip = 0
            if any(_may_hide(s) for s in self.statements):
                meaning = "1: tiles that the mask hides are left out as the kernel finds them"
                skip = self.choices.size("skip", (0, 1), 0, meaning)
            return Warps(count=count, stages=stages, group=group, skip=skip)
        if contraction is None:
            return Warps(count=count, stages=stages, group=group)
        meaning = "programs of a processor that take tile after tile; 0: each tile has its own"
        persistent = self.choices.size("persistent", (0, 1, 2), 0, meaning)
        descriptors = specialize = 0
        if self.capability >= DESCRIPTORS:
            meaning = "1: operands are copied as boxes"
            descriptors = self.choices.size("descriptors", (0, 1), 0, meaning)
        if self.capability in SPECIALIZED and descriptors:
            meaning = "1: some warps copy and others multiply"
            specialize = self.choices.size("specialize", (0, 1), 0, meaning)
        return Warps(
            count=count,
            stages=stages,
            group=group,
            persistent=persistent,
            descriptors=descriptors,
            specialize=specialize,
        )


def _may_hide(s: Statement, least_bytes: int = 1) -> bool:
    """Whether data, of so many bytes an element, decide which scores that it makes are −∞."""
    (value, *_) = s.elements if s.reduction is None else s.reduction.final
    test = visible(value)
    return test is not None and any(x.dtype.bytes >= least_bytes for x in loads(test))


def _is_ordered(s: Statement) -> bool:
    """Whether terms are combined one after the other, as the reduced indices are named."""
    return s.reduction is not None and (s.reduction.scan or not s.reduction.monoid.commutative)


def _bounding(s: Statement) -> set[str]:
    """Indices that bounds of other loops mention."""
    bounds = (b for r in s.domain.ranges for b in (r.lower, r.upper))
    return {n for b in bounds for n in b.variables()}
