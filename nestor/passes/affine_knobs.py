"""What is open about one nest of an affine kernel: its shape, and how that is filled in.

Whatever is listed keeps to what the nest's facts allow: tiles of loops that may be tiled, orders of
loops that may change places, threads over loops that no dependence crosses, register tiles that the
target's registers hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nestor.passes.affine_choices import Choice, variants_of, vector_lanes
from nestor.passes.affine_nests import Nest
from nestor.passes.knobs import Choices
from nestor.target.cpu import CpuTarget

TILE_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
ROW_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
VECTORS = (1, 2, 3, 4, 6, 8)

SPARE_REGISTERS = 2
"""Of a register tile: for an operand in lanes, and one that is the same in all of them."""

MOST_ORDERS = 6
"""Of more loops than have so many orders, only neighbours change places."""

SERIAL = "no loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the heuristic decides for a nest.

    Attributes: options: one choice a shape. shape: of them. is_threaded: its parallel loop runs on
        threads. keeps_sums: sums stay in their order.
    """

    options: tuple[Choice, ...]
    shape: str
    is_threaded: bool
    keeps_sums: bool


def decide_choice(
    choices: Choices, name: str, nest: Nest, target: CpuTarget, defaults: Defaults
) -> Choice:
    """How ``nest`` runs. Args: name: that knobs start with."""
    shapes = {c.shape: c for c in defaults.options}
    shape = choices.word(f"{name}/shape", tuple(shapes), defaults.shape, "how the nest runs")
    name = f"{name}/{shape}"
    found = shapes[shape]
    if not defaults.is_threaded:
        found = replace(found, parallel=None, wave=None)
    variants = variants_of(nest, target, shapes[shape])
    if defaults.keeps_sums:
        variants = {n: c for n, c in variants.items() if not c.is_split} or variants
    first = next(iter(variants))
    roles = choices.word(f"{name}/roles", tuple(variants), first, "which loops do what")
    if roles != first:
        found = variants[roles]
    found = _decide_registers(choices, name, nest, target, found)
    found = _decide_threads(choices, name, nest, found)
    found = _decide_tiles(choices, name, nest, found)
    found = _decide_orders(choices, name, nest, found)
    if found.promote:
        wanted = choices.size(
            f"{name}/promote", (0, 1), 1, "whether what is summed stays in registers"
        )
        found = found if wanted else replace(found, promote=())
    return found


# Register tiles


def _decide_registers(
    choices: Choices, name: str, nest: Nest, target: CpuTarget, found: Choice
) -> Choice:
    """Rows and vectors side by side, as many as registers hold."""
    lanes = vector_lanes(nest, target)
    if not found.rows:
        found = _decide_unrolled(choices, name, nest, found)
    if not found.rows and found.vector is None:
        return found
    default = (*(size for _, size in found.rows), *([found.vector[1]] if found.vector else []))
    whole = VECTORS if found.shape != "wavefront" else (*VECTORS, 16)
    widths = {max(1, lanes // 2), *(lanes * n for n in whole)} if found.vector else set()
    # Above the extent a register tile would be all tail.
    rows = [[s for s in ROW_SIZES if s == 1 or s <= nest.extents[loop]] for loop, _ in found.rows]
    lists = [*rows, *([sorted(widths)] if found.vector else [])]
    limit = target.vector_registers - SPARE_REGISTERS
    values = [
        sizes
        for sizes in itertools.product(*lists)
        if _registers(found, sizes, lanes) <= limit or not found.rows
    ]
    meaning = "sizes of the register tile: rows, then elements in lanes"
    sizes = choices.sizes(f"{name}/registers", values, default, meaning)
    kept = tuple((loop, size) for (loop, _), size in zip(found.rows, sizes) if size > 1)
    vector = (found.vector[0], sizes[-1]) if found.vector else None
    return replace(found, rows=kept, vector=vector)


def _registers(found: Choice, sizes: Sequence[int], lanes: int) -> int:
    """How many vectors the results of a register tile are."""
    total = 1
    for size in sizes[: len(found.rows)]:
        total *= size
    if found.vector and not found.is_split:
        total *= max(1, sizes[-1] // lanes)
    return total


def _decide_unrolled(choices: Choices, name: str, nest: Nest, found: Choice) -> Choice:
    """A loop of which several iterations run side by side, where the shape asks for none."""
    if found.vector is None or found.is_split or found.is_apart:
        return found
    lanes = found.vector[0]
    able = [n for n in nest.tilable_suffix() if n != lanes and nest.can_vectorize(lanes, [n])]
    loop = choices.word(
        f"{name}/unrolled", (SERIAL, *able), SERIAL, "of which loop several steps run at once"
    )
    return found if loop == SERIAL else replace(found, rows=((loop, 2),))


# Threads


def _decide_threads(choices: Choices, name: str, nest: Nest, found: Choice) -> Choice:
    """Which loop runs on threads; of a wavefront, whether its diagonals do."""
    if found.wave is not None:
        wanted = choices.word(
            f"{name}/threads", (SERIAL, found.wave[1]), found.parallel or SERIAL, "on threads"
        )
        return found if wanted != SERIAL else replace(found, wave=None, parallel=None)
    able = [n for n in nest.loops if nest.is_parallel_tile(n)]
    if not able:
        # One that only loops around it make parallel has to stay where it is.
        lines = (*found.tile_order, *(n for n in found.order if n not in found.tile_order))
        able = [n for k, n in enumerate(lines) if nest.is_parallel_at(n, lines[:k])][:1]
    if found.is_split and found.vector:
        able = [n for n in able if n != found.vector[0]]
    values = dict.fromkeys((SERIAL, *able, found.parallel or SERIAL))
    wanted = choices.word(
        f"{name}/threads", tuple(values), found.parallel or SERIAL, "which loop runs on threads"
    )
    return replace(found, parallel=None if wanted == SERIAL else wanted)


# Cache tiles and orders


def _decide_tiles(choices: Choices, name: str, nest: Nest, found: Choice) -> Choice:
    """Sizes of cache tiles. A tiled loop stands in ``tile_order`` by its tiles and in ``order``
    within them."""
    free = nest.tilable_suffix()
    prefix = tuple(n for n in nest.loops if n not in free)
    shared = {*found.order, *found.tile_order}
    # Loops that the order has moved out of the suffix, or in front of loops that may not be tiled.
    line = [n for n in (*found.tile_order, *found.order) if n in shared]
    if list(dict.fromkeys(line))[: len(prefix)] != list(prefix):
        return found
    last = nest.loops[-1]
    tiles: dict[str, int] = {}
    for loop in free:
        if found.is_apart and loop == last:
            continue
        default = found.tiles.get(loop, 0)
        least = max(1, found.register_size(loop))
        sizes = [s for s in TILE_SIZES if least < s < nest.extents[loop]]
        if not (found.wave and loop in found.wave):
            sizes.append(0)  # a wave needs the tiles that it runs over
        size = choices.size(
            f"{name}/tile {loop}", sizes, default, "iterations of a cache tile; 0: no tiles"
        )
        if size:
            tiles[loop] = -(-size // least) * least
    if tiles == dict(found.tiles) and all(found.tiles.values()):
        return found
    outside = [n for n in found.tile_order if n in tiles or n not in found.order]
    outside = [n for n in prefix if n not in outside] + outside
    outside += [n for n in free if n in tiles and n not in outside]
    inside = [n for n in found.order if n not in prefix]
    inside = [n for n in free if n in tiles and n not in inside] + inside
    return replace(found, tiles=tiles, tile_order=tuple(outside), order=tuple(inside))


def _decide_orders(choices: Choices, name: str, nest: Nest, found: Choice) -> Choice:
    """Which of the loops that may change places stand outside of which."""
    free = set(nest.tilable_suffix())
    outside = found.tile_order
    if found.wave is None:
        outside = _decide_order(choices, f"{name}/tiles", outside, free, keep_last=False)
    keep_last = bool(found.promote) or found.is_split
    if found.is_apart:
        return replace(found, tile_order=outside)
    inside = _decide_order(choices, f"{name}/loops", found.order, free, keep_last=keep_last)
    return replace(found, tile_order=outside, order=inside)


def _decide_order(
    choices: Choices, name: str, loops: tuple[str, ...], free: Iterable[str], *, keep_last: bool
) -> tuple[str, ...]:
    """An order of ``loops``; those that are not ``free`` stay in front."""
    head = len(loops)
    while head and loops[head - 1] in free:
        head -= 1
    moving = loops[head:-1] if keep_last else loops[head:]
    tail = loops[head + len(moving) :]
    words = {" ".join(o): (*loops[:head], *o, *tail) for o in _orders(moving)}
    default = " ".join(moving)
    return words[choices.word(f"{name} order", tuple(words), default, "outermost first")]


def _orders(loops: tuple[str, ...]) -> list[tuple[str, ...]]:
    if len(loops) <= 3:
        return list(itertools.permutations(loops))[:MOST_ORDERS]
    found = [loops]
    for k in range(len(loops) - 1):
        found.append((*loops[:k], loops[k + 1], loops[k], *loops[k + 2 :]))
    return found
