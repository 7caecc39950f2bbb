"""What a picture of a nest shows, as plain data: iterations, tiles, dependences.

A small instance of the kernel is enumerated: sizes are chosen so that the points can be told apart,
and tiles are shrunk with them. Which iteration depends on which is found by running through the
accesses in the Program's order, so the arrows are of single values, not of summaries.
``picture_svg`` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nestor.errors import Unsupported, UserError
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import Schedule, SplitReduction, Step, Tile
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Tree, tree_bands
from nestor.ir.schedule_tree import Sequence as TreeSequence
from nestor.picture_edges import Edge, find_edges
from nestor.picture_instances import WINDOW, Instances, enumerate_instances, index_order

MAX_POINTS = {2: 260, 3: 150}
"""More points than this are not told apart, by depth."""

MAX_STATEMENTS = 4
MAX_ARROWS = {2: 8, 3: 6}
"""Different distance vectors that are drawn, by depth; the shortest ones."""

TILE_SIZES = (4, 2, 2)
"""Sizes that tiles are drawn with, by how deep they are nested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An iteration of a statement.

    Attributes:
        statement: position among the picture's statements.
        at: values of its indices.
        tiles: the tile that it is in, as numbers for each level, outer level first.
        wave: points and tiles of one wave may run at the same time; waves run in order.
    """

    statement: int
    at: tuple[int, ...]
    tiles: tuple[tuple[int, ...], ...]
    wave: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """Some dependences of one distance; ``ends`` are positions of points.

    ``kinds``: those of ``flow``, ``anti``, ``output``, ``reduction`` that have this distance.
    """

    source: int
    target: int
    distance: tuple[int, ...]
    kinds: tuple[str, ...]
    count: int
    ends: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of statements of one depth, 2 or 3.

    Attributes:
        kernel: its name; statements: their names; axes: index names, outermost first.
        sizes: of the symbols in the picture.
        points, arrows: what is drawn.
        has_tiles: points are in tiles. has_waves: some loop is parallel, and there are several
            waves. is_tile_in_wave: all of a tile is in one wave.
        schedule: lines that describe the order, for the caption.
        notes: further lines: what was left out, or drawn smaller.
    """

    kernel: str
    statements: tuple[str, ...]
    axes: tuple[str, ...]
    sizes: Mapping[str, int]
    points: tuple[Point, ...]
    arrows: tuple[Arrow, ...]
    has_tiles: bool
    has_waves: bool
    is_tile_in_wave: bool
    schedule: tuple[str, ...]
    notes: tuple[str, ...]


def picture_of(
    program: Program,
    schedule: Schedule,
    *,
    statement: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Picture:
    """A picture of ``program`` under ``schedule``.

    Args:
        statement: which to draw; None: those of the greatest depth up to three that share a loop.
        sizes: of symbols; others are chosen.
    Raises: ``UserError`` for an unknown statement or size, or too many points; ``Unsupported`` if
        no statement has a depth of two or three.
    """
    from nestor.passes.polyhedral.tree_steps import apply_tree_steps

    drawn, shrunk = _shrink(schedule)
    arranged = apply_tree_steps(program, drawn)
    chosen = _choose_statements(program, arranged.tree, statement)
    hidden = [s.name for s in chosen[MAX_STATEMENTS:]]
    chosen = chosen[:MAX_STATEMENTS]
    instances = _fitting_instances(program, chosen, dict(sizes or {}))
    paths = _paths(arranged.tree, ())
    outers = _tile_loops(arranged.tiles)
    timed = [
        (k, at, _values(paths[s.name], s, at, instances.sizes))
        for k, s in enumerate(chosen)
        for at in instances.points[s.name]
    ]
    timed.sort(key=lambda item: item[2])
    parallel = {n for n, kind in arranged.kinds.items() if kind == "parallel"}
    points = _points(chosen, paths, timed, outers, parallel)
    edges = find_edges(program, instances)
    arrows, left_out = _arrows(chosen, points, edges)
    around = {n for s in chosen for n, _ in _loops(paths[s.name])}
    smaller = [text for loop, text in shrunk.items() if f"{loop}.o" in around]
    notes = [f"tiles are drawn smaller: {', '.join(smaller)}"] if smaller else []
    notes += [f"{left_out} longer distances have no arrow"] if left_out else []
    notes += [f"not drawn: {', '.join(hidden)}"] if hidden else []
    notes += [instances.note] if instances.note else []
    return Picture(
        kernel=program.name,
        statements=tuple(s.name for s in chosen),
        axes=index_order(chosen[0]),
        sizes=instances.sizes,
        points=points,
        arrows=arrows,
        has_tiles=any(p.tiles for p in points),
        has_waves=bool(parallel & around) and len({p.wave for p in points}) > 1,
        is_tile_in_wave=len({(p.tiles[:1], p.wave) for p in points})
        == len({p.tiles[:1] for p in points}),
        schedule=_caption(arranged.tree, arranged.kinds, {s.name for s in chosen}),
        notes=tuple(notes),
    )


# What is drawn


def _shrink(schedule: Schedule) -> tuple[Schedule, dict[str, str]]:
    """The same steps with tiles that a small picture has room for; what changed, by loop."""
    depth_of: dict[str, int] = {}
    steps: list[Step] = []
    changed: dict[str, str] = {}
    for step in schedule:
        if not isinstance(step, (Tile, SplitReduction)):
            steps.append(step)
            continue
        size = step.size if isinstance(step, Tile) else step.lanes
        depth = depth_of.get(step.loop, 0)
        depth_of[f"{step.loop}.i"] = depth + 1
        small = min(size, TILE_SIZES[min(depth, len(TILE_SIZES) - 1)])
        if small != size:
            changed[step.loop] = f"{step.loop} by {small} for {size}"
        if isinstance(step, Tile):
            steps.append(Tile(loop=step.loop, size=small))
        else:
            steps.append(SplitReduction(loop=step.loop, lanes=small))
    return tuple(steps), changed


def _choose_statements(program: Program, tree: Tree, wanted: str | None) -> list[Statement]:
    """The statements of the picture, all of one depth."""
    statements = [s for s in program.statements if isinstance(s, Statement)]
    if wanted is not None:
        found = [s for s in statements if s.name == wanted]
        if not found:
            names = ", ".join(s.name for s in statements)
            raise UserError(f"kernel '{program.name}' has no statement '{wanted}'; it has {names}")
        if len(found[0].domain.names) not in (2, 3):
            raise Unsupported(
                f"statement '{wanted}' has a depth of {len(found[0].domain.names)}; pictures are "
                "of statements of depth two and three"
            )
        return found
    fitting = [s for s in statements if len(s.domain.names) in (2, 3)]
    if not fitting:
        raise Unsupported(f"kernel '{program.name}' has no statement of depth two or three to draw")
    depth = max(len(s.domain.names) for s in fitting)
    first, *others = [s for s in fitting if len(s.domain.names) == depth]
    shared = [s for s in others if _share_a_loop(tree, first, s)]
    return [first, *shared]


def _share_a_loop(tree: Tree, a: Statement, b: Statement) -> bool:
    """In the order written or in that of ``tree``."""
    if a.order[:1] == b.order[:1] and len(a.order) > 1 and len(b.order) > 1:
        return True
    return any({a.name, b.name} <= {s for s, _ in band.loops[0].rows} for band in tree_bands(tree))


def _fitting_instances(
    program: Program, chosen: Sequence[Statement], sizes: dict[str, int]
) -> Instances:
    """The instances for the greatest equal sizes whose points fit into a picture."""
    known = [s.name for s in program.symbols]
    for name in sizes:
        if name not in known:
            have = f"its sizes are {', '.join(known)}" if known else "it has no sizes"
            raise UserError(f"kernel '{program.name}' has no size '{name}'; {have}")
    most = MAX_POINTS[len(chosen[0].domain.names)]
    best: Instances | None = None
    for value in range(2, WINDOW + 1):
        trial = {
            s.name: sizes.get(s.name, min(max(value, s.lower), s.upper or value))
            for s in program.symbols
        }
        found = enumerate_instances(program, trial, chosen)
        count = sum(len(found.points[s.name]) for s in chosen)
        if count > most:
            break
        best = found if count or best is None else best
        if not trial or trial.keys() == sizes.keys():
            break
    if best is None:
        raise UserError(
            f"more than {most} iterations cannot be told apart; give smaller sizes, or one "
            "statement"
        )
    if not any(best.points[s.name] for s in chosen):
        text = ", ".join(f"{n}={v}" for n, v in best.sizes.items())
        raise UserError(f"with {text} there is no iteration to draw")
    return best


# When it runs

_Path = tuple["int | BandLoop", ...]
_Time = tuple[int, ...]


def _paths(tree: Tree, around: _Path) -> dict[str, _Path]:
    """Places in sequences and loops around each statement."""
    match tree:
        case Leaf():
            return {tree.statement: around}
        case Band():
            return _paths(tree.child, (*around, *tree.loops))
        case TreeSequence():
            out: dict[str, _Path] = {}
            for k, child in enumerate(tree.children):
                out |= _paths(child, (*around, k))
            return out


def _loops(path: _Path) -> list[tuple[str, int]]:
    """Names of the loops in a path, and where they are."""
    return [(x.name, k) for k, x in enumerate(path) if isinstance(x, BandLoop)]


def _values(path: _Path, s: Statement, at: tuple[int, ...], sizes: Mapping[str, int]) -> _Time:
    env = {**sizes, **dict(zip(index_order(s), at))}
    return tuple(x if isinstance(x, int) else int(x.row(s.name).evaluate(env)) for x in path)


def _tile_loops(tiles: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """Outer loops of tiles → how deep the tile is nested in others."""

    def level(outer: str) -> int:
        # ``i.i.o`` is the outside of a tile of ``i.i``, which is the inside of one of ``i``.
        base = outer.removesuffix(".o")
        return level(tiles[base][0]) + 1 if base in tiles else 0

    return {outer: level(outer) for outer, _ in tiles.values()}


def _points(
    chosen: Sequence[Statement],
    paths: Mapping[str, _Path],
    timed: Sequence[tuple[int, tuple[int, ...], _Time]],
    outers: Mapping[str, int],
    parallel: set[str],
) -> tuple[Point, ...]:
    """Points in the order in which they run."""
    levels = sorted({outers[n] for s in chosen for n, _ in _loops(paths[s.name]) if n in outers})
    waves: dict[_Time, int] = {}
    points = []
    for k, at, values in timed:
        loops = _loops(paths[chosen[k].name])
        tiles = tuple(
            tuple(values[p] for n, p in loops if n in outers and outers[n] <= level)
            for level in levels[:2]
        )
        # What runs one after the other: all outside the first parallel loop; without one, tiles
        # of the first level, or single iterations.
        cut = next((p for n, p in loops if n in parallel), None)
        before = values[:cut] if cut is not None else (tiles[0] if tiles else values)
        points.append(
            Point(statement=k, at=at, tiles=tiles, wave=waves.setdefault(before, len(waves)))
        )
    return tuple(points)


# Arrows


def _arrows(
    chosen: Sequence[Statement], points: Sequence[Point], edges: Sequence[Edge]
) -> tuple[tuple[Arrow, ...], int]:
    """The most frequent distances, each with two dependences; and how many are left out."""
    place = {(chosen[p.statement].name, p.at): n for n, p in enumerate(points)}
    names = [s.name for s in chosen]
    groups: dict[tuple[int, int, tuple[int, ...]], dict[str, list[tuple[int, int]]]] = {}
    for e in edges:
        source, target = place.get(e.source), place.get(e.target)
        if source is None or target is None:
            continue
        distance = tuple(b - a for a, b in zip(e.source[1], e.target[1]))
        key = (names.index(e.source[0]), names.index(e.target[0]), distance)
        groups.setdefault(key, {}).setdefault(e.kind, []).append((source, target))
    arrows = []
    for (a, b, distance), kinds in groups.items():
        ends = sorted({pair for pairs in kinds.values() for pair in pairs})
        arrows.append(
            Arrow(
                source=a,
                target=b,
                distance=distance,
                kinds=tuple(sorted(kinds, key=("flow", "reduction", "anti", "output").index)),
                count=len(ends),
                ends=_representatives(points, ends),
            )
        )
    # Long arrows, of which some kernels have one a distance, hide the rest.
    arrows.sort(key=_rank)
    most = MAX_ARROWS[len(chosen[0].domain.names)]
    return tuple(arrows[:most]), max(0, len(arrows) - most)


def _rank(a: Arrow) -> tuple[object, ...]:
    """What is drawn first: values handed on, short ones, frequent ones."""
    length = sum(map(abs, a.distance))
    is_weak = a.kinds[0] not in ("flow", "reduction")
    return is_weak, length, -a.count, a.source, a.target, a.distance


def _representatives(
    points: Sequence[Point], ends: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Two dependences: from near the middle of the points, and from nearer to their beginning."""
    depth = len(points[0].at)
    low = [min(p.at[d] for p in points) for d in range(depth)]
    high = [max(p.at[d] for p in points) for d in range(depth)]
    found = []
    for share in (0.55, 0.2):
        anchor = [a + share * (b - a) for a, b in zip(low, high)]
        found.append(
            min(
                ends,
                key=lambda e: (
                    sum((x - y) ** 2 for x, y in zip(points[e[0]].at, anchor)),
                    e,
                ),
            )
        )
    return tuple(dict.fromkeys(found))


# Caption


def _caption(tree: Tree, kinds: Mapping[str, str], shown: set[str]) -> tuple[str, ...]:
    """A line for each loop around a statement that is drawn."""
    lines = []
    for band in tree_bands(tree):
        for loop in band.loops:
            rows = [(s, row) for s, row in loop.rows if s in shown]
            if rows:
                kind = f" ({kinds[loop.name]})" if loop.name in kinds else ""
                values = ", ".join(f"{s} at {row}" for s, row in rows)
                lines.append(f"{loop.name}{kind}: {values}")
    return tuple(lines)
