"""How one nest may run: shapes that suit what its loops are good for, and the steps they mean.

========== ======================================================================================
shape      for what
========== ======================================================================================
contract   ``C[i, j] += A[i, k] * B[k, j]``: a register tile of rows × vectors, k innermost
dot        ``C[i, j] += A[i, k] * B[j, k]``: only the summed loop runs along memory; lanes of it
panel      ``y[j] += A[i, j] * x[i]``: rows are read along memory, several at a time
stream     each element once: vectors along memory
jam        the inner loop is a recurrence, an outer one is not: several of them side by side
wavefront  every loop carries something, all may be tiled: tiles along diagonals run in parallel
plain      as it stands
========== ======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from nestor.ir.schedule import (
    Interchange,
    Parallel,
    Promote,
    Skew,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.passes.affine_nests import Nest
from nestor.passes.register_tile import choose_register_tile
from nestor.target.cpu import CpuTarget

REDUCED_TILE = 256
"""Steps of an accumulation between two visits of its register tile: a panel then fits level 2."""

WAVE_TILE = 64
PANEL_TILE = 512
PANEL_ROWS = 4
TIME_TILE = 16
JAM_ROWS = 8
MAX_WIDTH = 3
"""Vectors in a row of a register tile: wide tiles have ragged edges in the vector loop."""

MIN_REDUCED = 16
"""Fewer steps of an accumulation do not pay for a register tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to run a nest.

    Attributes:
        shape: see the module.
        tiles: loop → cache tile; 0 or absent: not tiled.
        rows: loops that are unrolled in register tiles, with the tile's size, outermost first.
        vector: the loop that runs in lanes, and how many; None: none does.
        is_split: the lanes sum apart and are added up at the end.
        order: the rest, between those and the register tile, outermost first; tiled loops of
            ``tile_order`` come again here.
        tile_order: loops whose cache tiles (or, untiled, they themselves) stand outside of
            ``order``, outermost first.
        wave: tile loops ``(first, second)`` of which diagonals run in parallel.
        parallel: the loop that runs on threads (its tiles if it is tiled); None: none does.
        promote: tensors kept in registers while a loop runs.
        is_apart: the innermost loop is run for one statement after the other; ``rows_apart``
            names the loops that this makes.
        reasons: why, for people: what was chosen and the reason.
    """

    shape: str
    tiles: Mapping[str, int] = field(default_factory=dict)
    rows: tuple[tuple[str, int], ...] = ()
    vector: tuple[str, int] | None = None
    is_split: bool = False
    order: tuple[str, ...] = ()
    tile_order: tuple[str, ...] = ()
    wave: tuple[str, str] | None = None
    parallel: str | None = None
    promote: tuple[tuple[str, str], ...] = ()
    is_apart: bool = False
    reasons: tuple[tuple[str, str], ...] = ()

    def register_size(self, loop: str) -> int:
        """Size of ``loop`` in the register tile; 0 if it is not part of it."""
        return dict((*self.rows, *([self.vector] if self.vector else []))).get(loop, 0)


@dataclass(frozen=True, slots=True)
class LoopNames:
    """What tiling makes of a loop: tile loop, loop over register tiles, loop within them."""

    outer: str | None
    middle: str
    inner: str | None


def names_of(choice: Choice, loop: str) -> LoopNames:
    """The names of ``loop`` after the tiling of ``choice``."""
    cache, register = choice.tiles.get(loop, 0), choice.register_size(loop)
    if cache and register:
        return LoopNames(f"{loop}.o", f"{loop}.i.o", f"{loop}.i.i")
    if cache:
        return LoopNames(f"{loop}.o", f"{loop}.i", None)
    if register:
        return LoopNames(None, f"{loop}.o", f"{loop}.i")
    return LoopNames(None, loop, None)


def rows_apart(nest: Nest, statement: str) -> str:
    """The innermost loop of a statement where the nest's statements run apart in it."""
    return f"{nest.loops[-1]}.{statement}"


def steps_of(nest: Nest, choice: Choice) -> tuple[Step, ...]:
    """The schedule steps that a choice means."""
    if choice.is_apart:
        return _steps_apart(nest, choice)
    steps: list[Step] = []
    names = {loop: names_of(choice, loop) for loop in nest.loops}
    current: list[str] = []
    lanes = choice.vector[0] if choice.vector else None
    for loop in nest.loops:
        n = names[loop]
        if n.outer:
            steps.append(Tile(loop=loop, size=choice.tiles[loop]))
        if n.inner:
            base = f"{loop}.i" if n.outer else loop
            size = choice.register_size(loop)
            if loop == lanes and choice.is_split:
                steps.append(SplitReduction(loop=base, lanes=size))
            else:
                steps.append(Tile(loop=base, size=size))
        current += [x for x in (n.outer, n.middle, n.inner) if x]
    inner = [names[loop].inner for loop, _ in choice.rows]
    inner += [names[lanes].inner] if lanes else []
    tiled = [names[loop].outer or names[loop].middle for loop in choice.tile_order]
    wanted = [x for x in (*tiled, *(names[n].middle for n in choice.order), *inner) if x]
    if wanted != current:
        steps.append(Interchange(loops=tuple(wanted)))
    if choice.wave:
        first, second = (names[n].outer or names[n].middle for n in choice.wave)
        steps.append(Skew(loop=first, by=second, factor=1))
    if choice.parallel:
        n = names[choice.parallel]
        steps.append(Parallel(loop=n.outer or n.middle))
    steps += [Unroll(loop=names[loop].inner or loop) for loop, _ in choice.rows]
    if lanes and not choice.is_split:
        steps.append(Vectorize(loop=names[lanes].inner or lanes))
    steps += [Promote(tensor=t, loop=names[loop].middle) for t, loop in choice.promote]
    return tuple(steps)


def _steps_apart(nest: Nest, choice: Choice) -> tuple[Step, ...]:
    """As ``steps_of`` for the loops around, and the same vectors for each statement's own loop."""
    last = nest.loops[-1]
    around = replace(nest, loops=nest.loops[:-1])
    order = tuple(n for n in choice.order if n != last)
    tile_order = tuple(n for n in choice.tile_order if n != last)
    outside = replace(
        choice, is_apart=False, vector=None, order=order, tile_order=tile_order, tiles={
            n: size for n, size in choice.tiles.items() if n != last
        }
    )  # fmt: skip
    steps = list(steps_of(around, outside))
    for view in nest.views:
        loop = rows_apart(nest, view.name)
        if choice.vector:
            steps.append(Tile(loop=loop, size=choice.vector[1]))
            steps.append(Vectorize(loop=f"{loop}.i"))
    return tuple(steps)


def choices_of(nest: Nest, target: CpuTarget, *, may_thread: bool = True) -> list[Choice]:
    """Every shape that fits ``nest``, the most promising first; ``plain`` always does."""
    found: list[Choice] = []
    for make in (_contract, _dot, _wavefront, _panel, _stream, _jam):
        choice = make(nest, target)
        if choice is not None:
            found.append(choice)
    found.append(_plain(nest))
    return found if may_thread else [_one_thread(c) for c in found]


def variants_of(nest: Nest, target: CpuTarget, choice: Choice) -> dict[str, Choice]:
    """Other loops in the roles that ``choice`` gives them, by a name each; the first is itself.

    Every one of them is what the shape's conditions allow.
    """
    found: list[Choice] = [choice]
    match choice.shape:
        case "contract":
            ranked = sorted(_contractions(nest), reverse=True)
            found += [_register_tiles(nest, target, *roles) for _, *roles in ranked]
        case "dot":
            for reduced in nest.tilable_suffix():
                found += _dots(nest, target, reduced)
        case "panel":
            found += _panels(nest, target)
        case "stream":
            found += _streams(nest, target)
        case "jam":
            found += _jams(nest)
        case "wavefront":
            found += _waves(nest, target)
    named: dict[str, Choice] = {}
    for one in found:
        named.setdefault(_roles(one), one)
    return named


def _roles(choice: Choice) -> str:
    """What distinguishes choices of one shape."""
    parts = ["×".join(n for n, _ in choice.rows)] if choice.rows else []
    parts += [choice.vector[0]] if choice.vector else []
    parts += ["over " + choice.order[-1]] if choice.promote else []
    parts += ["waves of " + "×".join(choice.wave)] if choice.wave else []
    parts += ["apart"] if choice.is_apart else []
    return " ".join(parts) or "as it is"


def _one_thread(choice: Choice) -> Choice:
    return replace(choice, parallel=None, wave=None)


def vector_lanes(nest: Nest, target: CpuTarget) -> int:
    """Elements in a vector of the widest type that the deep statements touch."""
    widest = max(s.element_bytes for v in nest.deep for s in v.streams)
    return max(1, target.lanes(8 * widest))


def _row_lanes(nest: Nest, loop: str, target: CpuTarget) -> int:
    """Lanes of a vector loop: several vectors where neighbours are read, which then share loads.

    Deep nests have shorter rows, of which wide vectors waste more at the ends.
    """
    lanes = vector_lanes(nest, target)
    for view in nest.deep:
        reads = [s for s in view.streams if not s.is_write and s.strides.get(loop)]
        rows = [(s.tensor, tuple(sorted(s.strides.items()))) for s in reads]
        if len(set(rows)) < len(rows):
            return (4 if len(nest.loops) <= 2 else 2) * lanes
    return lanes


def _rest(nest: Nest, *used: str) -> tuple[str, ...]:
    return tuple(n for n in nest.loops if n not in used)


def _reused(nest: Nest, loop: str) -> bool:
    """Every deep statement accumulates into an element that ``loop`` does not move."""
    return all(v.accumulates() and v.target.strides[loop] == 0 for v in nest.deep)


def _contract(nest: Nest, target: CpuTarget) -> Choice | None:
    best: tuple[int, str, str, str] | None = None
    for found in _contractions(nest):
        if best is None or found[0] > best[0]:
            best = found
    if best is None or nest.extents[best[3]] < MIN_REDUCED:
        return None
    return _register_tiles(nest, target, *best[1:])


def _contractions(nest: Nest) -> Iterator[tuple[int, str, str, str]]:
    """(promise, row, vector, reduced) of the loops that can have these roles."""
    free = nest.tilable_suffix()
    for vector in free:
        if not nest.is_stride_one(vector):
            continue
        for reduced in free:
            if reduced == vector or not _reused(nest, reduced):
                continue
            for row in free:
                if row in (vector, reduced) or not _shares(nest, row, vector):
                    continue
                if nest.can_vectorize(vector, [row]):
                    score = nest.extents[row] + nest.contiguous(vector)
                    yield score, row, vector, reduced


def _shares(nest: Nest, row: str, vector: str) -> bool:
    """A tile of ``row`` and ``vector`` reads vectors once for all its rows."""
    return all(
        v.target.strides[row] != 0
        and any(s.strides[row] == 0 and s.strides[vector] for s in v.streams if not s.is_write)
        for v in nest.deep
    )


def _register_tiles(nest: Nest, target: CpuTarget, row: str, vector: str, reduced: str) -> Choice:
    lanes = vector_lanes(nest, target)
    height, width = choose_register_tile(
        _settled(nest.extents[row]), _settled(nest.extents[vector]), lanes, target.vector_registers
    )
    if width > MAX_WIDTH:
        width = MAX_WIDTH
        height = min(8, nest.extents[row], (target.vector_registers - 1 - width) // width)
    wide = width * lanes
    rest = _rest(nest, row, vector, reduced)
    tiles = {reduced: REDUCED_TILE} if nest.extents[reduced] > 1.5 * REDUCED_TILE else {}
    reasons = [
        (f"tile {height} × {wide} of {row} × {vector} in registers",
         f"the target stands still while {reduced} runs"),
        (f"vector {vector}", "every access runs along memory in it or stands still"),
    ]  # fmt: skip
    parallel = next((n for n in rest if nest.is_parallel_tile(n)), None)
    wave = None
    if parallel is None:
        parallel = next((n for n in (row, vector) if nest.is_parallel_tile(n)), None)
        if parallel == row:
            tiles[row] = max(1, min(128, nest.extents[row] // (4 * target.cores)) // height)
            tiles[row] *= height
        elif parallel == vector:
            share = max(1, min(8, nest.extents[vector] // (4 * target.cores) // wide))
            tiles[vector] = share * wide
        else:
            tiles[row] = -(-WAVE_TILE // height) * height
            tiles[vector] = -(-WAVE_TILE // wide) * wide
            wave, parallel = (row, vector), vector
            # Tiles are many already, and what stands between them is costly to scan and to prove.
            tiles.pop(reduced, None)
            reasons.append((f"diagonals of {row} and {vector}", "each of them carries something"))
    if wave is None and parallel:
        reasons.append((f"parallel {parallel}", "no dependence crosses its iterations"))
    outside = tuple(n for n in (row, vector, reduced) if tiles.get(n))
    if parallel == vector and wave is None:
        outside = tuple(n for n in (vector, row, reduced) if tiles.get(n))
    promote = tuple(dict.fromkeys((v.target.tensor, reduced) for v in nest.deep))
    return Choice(
        shape="contract",
        tiles=tiles,
        rows=((row, height),),
        vector=(vector, wide),
        order=(vector, row, reduced),
        tile_order=(*rest, *outside),
        wave=wave,
        parallel=parallel,
        promote=promote,
        reasons=tuple(reasons),
    )


def _settled(extent: int) -> int:
    """An extent for choosing a register tile: of long loops, which are estimates, no tail."""
    return extent if extent <= 4 * WAVE_TILE else 1680


def _dot(nest: Nest, target: CpuTarget) -> Choice | None:
    found = (c for reduced in nest.tilable_suffix() for c in _dots(nest, target, reduced))
    return next(found, None)


def _dots(nest: Nest, target: CpuTarget, reduced: str) -> Iterator[Choice]:
    """Lanes of ``reduced``, beside up to two loops that may stand in a register tile."""
    indices = [v.index_of(reduced) for v in nest.deep]
    if not all(i in v.reduced for i, v in zip(indices, nest.deep)):
        return
    if nest.gathers(reduced) or not nest.contiguous(reduced):
        return
    free = nest.tilable_suffix()
    able = [n for n in free if n != reduced and all(v.target.strides[n] for v in nest.deep)]
    lanes = vector_lanes(nest, target)
    parallel = next((n for n in nest.loops if n != reduced and nest.is_parallel_tile(n)), None)
    for rows in (able[-2:], able[-1:], able[-2:-1], []):
        if not _can_split(nest, reduced, rows):
            continue
        sizes = {0: (), 1: (8,), 2: (4, 4)}[len(rows)]
        yield Choice(
            shape="dot",
            rows=tuple(zip(rows, sizes, strict=True)),
            vector=(reduced, lanes if rows else _sum_chains(nest) * lanes),
            is_split=True,
            order=(*_rest(nest, reduced), reduced),
            parallel=parallel,
            reasons=((f"sum lanes of {reduced} apart", "only it runs along memory"),),
        )


def _sum_chains(nest: Nest) -> int:
    """Vectors that a sum without rows keeps apart.

    Two hide an addition behind the bytes of a matrix that no near cache holds, and are soon added
    up; where all is near it takes four.
    """
    streams = [s for v in nest.deep for s in v.streams]
    return 2 if any(s.dimensions > 1 for s in streams) else 4


def _can_split(nest: Nest, loop: str, unrolled: list[str]) -> bool:
    """As ``can_vectorize``, but updates of one accumulator may be reordered."""
    vectors = tuple(v for v in nest.facts.vectors if not v.is_reduction)
    return replace(nest, facts=replace(nest.facts, vectors=vectors)).can_vectorize(loop, unrolled)


def _wavefront(nest: Nest, target: CpuTarget) -> Choice | None:
    free = nest.tilable_suffix()
    prefix = tuple(n for n in nest.loops if n not in free)
    if len(free) < 2 or any(nest.is_parallel_tile(n) for n in nest.loops):
        return None
    if any(_reused(nest, n) for n in free):
        return None  # an accumulation: the other shapes know more of it
    last = free[-1]
    vector = None
    if nest.is_stride_one(last) and nest.can_vectorize(last):
        vector = (last, _row_lanes(nest, last, target))
    is_apart = vector is not None and len(nest.views) > 1 and len(free) > 2
    sizes = {2: (TIME_TILE * 4, 1024), 3: (TIME_TILE, 32, 512), 4: (8, 16, 16, 256)}
    tiles = dict(zip(free, sizes.get(len(free), (8,) * len(free))))
    tiles = {n: s for n, s in tiles.items() if n in free[:2] or nest.extents[n] > 1.5 * s}
    if is_apart:
        tiles.pop(last, None)
    return Choice(
        shape="wavefront",
        tiles=tiles,
        vector=vector,
        order=free,
        tile_order=(*prefix, *(n for n in free if n in tiles)),
        wave=(free[0], free[1]),
        parallel=free[1],
        is_apart=is_apart,
        reasons=(
            (f"tiles of {', '.join(tiles)}", "every dependence goes forward in all of them"),
            (f"diagonals of {free[0]} and {free[1]}", "each of them carries something"),
        ),
    )


def _waves(nest: Nest, target: CpuTarget) -> Iterator[Choice]:
    """A wavefront with statements together or apart, in lanes or not, over other tiles."""
    first = _wavefront(nest, target)
    if first is None:
        return
    free = nest.tilable_suffix()
    if first.vector:
        yield replace(first, vector=None, is_apart=False)
    if first.is_apart:  # needs a loop inside the diagonals
        yield replace(first, is_apart=False)
    for second in free[2:]:
        if second in first.tiles:
            yield replace(first, wave=(free[0], second), parallel=second)


def _panel(nest: Nest, target: CpuTarget) -> Choice | None:
    return next(_panels(nest, target), None)


def _panels(nest: Nest, target: CpuTarget) -> Iterator[Choice]:
    free = nest.tilable_suffix()
    for vector in reversed(free):
        if not nest.is_stride_one(vector):
            continue
        reduced = next((n for n in free if n != vector and _reused(nest, n)), None)
        if reduced is None or not nest.can_vectorize(vector, [reduced]):
            continue
        rest = _rest(nest, vector, reduced)
        lanes = vector_lanes(nest, target)
        tiles = {}
        parallel = next((n for n in rest if nest.is_parallel_tile(n)), None)
        if parallel is None and nest.is_parallel_tile(vector):
            parallel = vector
            if nest.extents[vector] > PANEL_TILE:
                tiles[vector] = PANEL_TILE
        yield Choice(
            shape="panel",
            tiles=tiles,
            rows=((reduced, PANEL_ROWS),),
            vector=(vector, lanes),
            order=(reduced, vector),
            tile_order=(*rest, *tiles),
            parallel=parallel if parallel != vector or tiles else None,
            reasons=(
                (f"vector {vector}", "memory is read along it"),
                (f"{PANEL_ROWS} steps of {reduced} at a time", "what is summed stays in registers"),
            ),
        )


def _stream(nest: Nest, target: CpuTarget) -> Choice | None:
    return next(_streams(nest, target), None)


def _streams(nest: Nest, target: CpuTarget) -> Iterator[Choice]:
    candidates = [n for n in nest.loops if nest.is_stride_one(n) and nest.can_vectorize(n)]
    for vector in reversed(candidates):
        order = (*_rest(nest, vector), vector)
        if not nest.facts.can_order(order):
            continue
        lanes = _row_lanes(nest, vector, target)
        parallel = next((n for k, n in enumerate(order) if nest.is_parallel_at(n, order[:k])), None)
        yield Choice(
            shape="stream",
            vector=(vector, lanes),
            order=order,
            parallel=parallel,
            reasons=((f"vector {vector}", "every access runs along memory or stands still"),),
        )


def _jam(nest: Nest, target: CpuTarget) -> Choice | None:
    return next(_jams(nest), None)


def _jams(nest: Nest) -> Iterator[Choice]:
    free = nest.tilable_suffix()
    last = nest.loops[-1]
    if len(free) < 2 or not nest.facts.carried(last, nest.loops[:-1]):
        return
    for row in free[:-1]:
        if not (nest.is_parallel_tile(row) and nest.moves_in(row)):
            continue
        rest = _rest(nest, row, last)
        parallel = next((n for n in (*rest, row) if nest.is_parallel_tile(n)), None)
        stays = [v.target.tensor for v in nest.deep] if _reused(nest, last) else []
        what = f"{JAM_ROWS} of {row} side by side"
        yield Choice(
            shape="jam",
            rows=((row, JAM_ROWS),),
            order=(row, last),
            tile_order=rest,
            parallel=parallel,
            promote=tuple((tensor, last) for tensor in dict.fromkeys(stays)),
            reasons=((what, f"each waits for its own {last} before"),),
        )


def _plain(nest: Nest) -> Choice:
    parallel = None
    for k, loop in enumerate(nest.loops):
        if nest.is_parallel_at(loop, nest.loops[:k]):
            parallel = loop
            break
    reasons = () if parallel is None else ((f"parallel {parallel}", "it carries no dependence"),)
    return Choice(shape="plain", order=nest.loops, parallel=parallel, reasons=reasons)
