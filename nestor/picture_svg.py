"""A ``Picture`` as SVG text: points, tiles and arrows on a plain background, and a caption.

The first of two indices runs downward and the second to the right, as a program runs through them.
Of three, the first counts slices that stand side by side. Several statements of one iteration stand
below each other. Equal pictures give equal text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from nestor.picture import Arrow, Picture, Point

XY = tuple[float, float]

PITCH_X, PITCH_Y = 30.0, 30.0
LINE_Y = 24.0
"""Between statements of one iteration [px]."""

RADIUS = 5.0
TILE_PAD = 10.5
MARGIN = 46.0
SLICE_GAP = 58.0
SLICES_A_ROW = 5
TEXT_Y = 17.0
CHARACTER = 6.7
"""Width of a character of the caption [px], to know how wide the picture must be."""

COLOURS = ("#2f6db3", "#d9822b", "#3d9970", "#b5489b", "#8a6d3b", "#5b5fc7", "#c0392b", "#4f8f9d")
"""Of tiles that follow each other in time."""

FIRST, LAST = (49, 104, 189), (238, 160, 40)
"""Colours of the first and the last iteration, where there are no tiles."""

STEPS = 12
HEAD = 7.5
"""Length of an arrow's head [px]."""

_STROKES = {
    "flow": ("", "#222"),
    "reduction": ("2 3", "#222"),
    "anti": ("6 3", "#777"),
    "output": ("6 3", "#777"),
}
"""Dashes and colour of arrows."""


def svg_text(picture: Picture) -> str:
    """The whole file."""
    layout = _Layout(picture)
    body = [*_slices(picture, layout), *_tiles(picture, layout), *_axes(picture, layout)]
    body += [*_arrows(picture, layout), *_points(picture, layout)]
    caption, bottom, right = _caption(picture, layout)
    width, height = math.ceil(max(layout.width, right)), math.ceil(bottom + 12)
    title = escape(f"Iterations of {picture.kernel}")
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" '
        'font-family="ui-sans-serif, system-ui, Helvetica, Arial, sans-serif" font-size="12">',
        f"<title>{title}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    return "\n".join([*head, *body, *caption, "</svg>"]) + "\n"


class _Layout:
    """Where an iteration is on the page."""

    def __init__(self, picture: Picture):
        points = picture.points
        self.depth = len(picture.axes)
        # Statements whose iterations never coincide need no lines of their own.
        is_shared = len({p.at for p in points}) < len(points)
        self.lines = len(picture.statements) if is_shared else 1
        self.low = [min(p.at[d] for p in points) for d in range(self.depth)]
        self.high = [max(p.at[d] for p in points) for d in range(self.depth)]
        self.pitch_y = PITCH_Y if self.lines == 1 else LINE_Y * self.lines
        columns = self.high[-1] - self.low[-1] + 1
        rows = self.high[-2] - self.low[-2] + 1
        self.slice_width, self.slice_height = columns * PITCH_X, rows * self.pitch_y
        self.slices = self.high[0] - self.low[0] + 1 if self.depth == 3 else 1
        across = min(self.slices, SLICES_A_ROW)
        down = math.ceil(self.slices / SLICES_A_ROW)
        self.width = 2 * MARGIN + across * self.slice_width + (across - 1) * SLICE_GAP
        self.height = 2 * MARGIN + down * self.slice_height + (down - 1) * SLICE_GAP

    def corner(self, slice_: int) -> XY:
        """Where a slice begins."""
        across, down = slice_ % SLICES_A_ROW, slice_ // SLICES_A_ROW
        x = MARGIN + 14 + across * (self.slice_width + SLICE_GAP)
        return x, MARGIN + down * (self.slice_height + SLICE_GAP)

    def slice_of(self, p: Point) -> int:
        """Which slice holds ``p``."""
        return p.at[0] - self.low[0] if self.depth == 3 else 0

    def place(self, p: Point) -> XY:
        """The centre of ``p``."""
        x, y = self.corner(self.slice_of(p))
        x += (p.at[-1] - self.low[-1] + 0.5) * PITCH_X
        y += (
            p.at[-2] - self.low[-2] + (p.statement % self.lines + 0.5) / self.lines
        ) * self.pitch_y
        return x, y


# Parts of the picture


def _slices(picture: Picture, layout: _Layout) -> Iterable[str]:
    """A faint ground, with the first index where there are several."""
    for k in range(layout.slices):
        x, y = layout.corner(k)
        yield (
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(layout.slice_width)}" '
            f'height="{_n(layout.slice_height)}" fill="#f6f7f9"/>'
        )
        if layout.depth == 3:
            text = f"{picture.axes[0]} = {layout.low[0] + k}"
            yield _text(x + layout.slice_width / 2, y - 24, text, "middle", weight="600")


def _axes(picture: Picture, layout: _Layout) -> Iterable[str]:
    """Names and values of the last two indices."""
    for k in range(layout.slices):
        x, y = layout.corner(k)
        yield '<g fill="#555" font-size="10.5">'
        for value in range(layout.low[-1], layout.high[-1] + 1):
            at = x + (value - layout.low[-1] + 0.5) * PITCH_X
            yield _text(at, y - 6, str(value), "middle")
        for value in range(layout.low[-2], layout.high[-2] + 1):
            at = y + (value - layout.low[-2] + 0.5) * layout.pitch_y + 4
            yield _text(x - 6, at, str(value), "end")
        yield "</g>"
        right = x + layout.slice_width + 4
        yield _text(right, y - 6, f"{picture.axes[-1]} →", "start", weight="600")
        below = y + layout.slice_height + 15
        yield _text(x - 6, below, f"{picture.axes[-2]} ↓", "end", weight="600")


def _tiles(picture: Picture, layout: _Layout) -> Iterable[str]:
    """Outlines of tiles: the first level filled, the second one thin."""
    for level in (0, 1):
        groups: dict[tuple[tuple[int, ...], int], list[Point]] = {}
        for p in picture.points:
            if len(p.tiles) > level:
                groups.setdefault((p.tiles[level], layout.slice_of(p)), []).append(p)
        if level == 1:
            groups = {key: own for key, own in groups.items() if len(own) > 1}
            yield '<g fill="none" stroke="#666" stroke-width="0.7" stroke-dasharray="2 2">'
        else:
            yield '<g fill-opacity="0.13" stroke-width="1.3" stroke-opacity="0.75">'
        for own in groups.values():
            is_plain = picture.has_waves and not picture.is_tile_in_wave
            colour = "#999" if is_plain else _colour(picture, own[0])
            paint = f' fill="{colour}" stroke="{colour}"' if level == 0 else ""
            pad = TILE_PAD - 3 * level
            path = "L".join(f"{_n(x)} {_n(y)}" for x, y in outline(map(layout.place, own), pad))
            yield f'<path d="M{path}z"{paint}/>'
        yield "</g>"


def _points(picture: Picture, layout: _Layout) -> Iterable[str]:
    groups: dict[str, list[Point]] = {}
    for p in picture.points:
        groups.setdefault(_colour(picture, p), []).append(p)
    for colour, own in groups.items():
        yield f'<g fill="{colour}">'
        yield from (_mark(p.statement, layout.place(p)) for p in own)
        yield "</g>"


def _mark(statement: int, at: XY) -> str:
    """A circle, square, diamond or triangle."""
    x, y = at
    if statement == 0:
        return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(RADIUS)}"/>'
    r = RADIUS
    shapes = (
        ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
        ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    )
    corners = ((x + r * dx, y + r * dy) for dx, dy in shapes[(statement - 1) % 3])
    return f'<path d="M{"L".join(f"{_n(a)} {_n(b)}" for a, b in corners)}z"/>'


def _colour(picture: Picture, p: Point) -> str:
    """By wave, or tile; without either by time, from the first to the last."""
    if picture.has_waves:
        return COLOURS[p.wave % len(COLOURS)]
    if picture.has_tiles:
        # Neighbours differ in one number of their tile, and so in colour.
        steps = (1, 3, 5, 2)
        return COLOURS[sum(v * steps[k % 4] for k, v in enumerate(p.tiles[0])) % len(COLOURS)]
    last = max(1, max(q.wave for q in picture.points))
    share = (p.wave * STEPS // (last + 1)) / (STEPS - 1)
    mixed = (round(a + share * (b - a)) for a, b in zip(FIRST, LAST))
    return "#" + "".join(f"{v:02x}" for v in mixed)


def _arrows(picture: Picture, layout: _Layout) -> Iterable[str]:
    """Each with a light border, so that it can be followed over points."""
    curves: dict[str, list[tuple[str, str]]] = {}
    for arrow in picture.arrows:
        for a, b in arrow.ends:
            ends = layout.place(picture.points[a]), layout.place(picture.points[b])
            curves.setdefault(arrow.kinds[0], []).append(_curve(*ends))
    yield '<g fill="none" stroke="#fff" stroke-width="3.6" stroke-opacity="0.85">'
    yield from (f'<path d="{line}"/>' for own in curves.values() for line, _ in own)
    yield "</g>"
    for kind, own in curves.items():
        dashes, colour = _STROKES[kind]
        extra = f' stroke-dasharray="{dashes}"' if dashes else ""
        yield f'<g fill="none" stroke="{colour}" stroke-width="1.4"{extra}>'
        yield from (f'<path d="{line}"/>' for line, _ in own)
        yield "</g>"
        # Heads are drawn, not markers, which viewers orient in different ways.
        yield f'<path fill="{colour}" d="{"".join(head for _, head in own)}"/>'


def _curve(a: XY, b: XY) -> tuple[str, str]:
    """A line from the edge of one point to that of another, and its head.

    Longer ones bend around what is between.
    """
    length = math.dist(a, b) or 1.0
    ux, uy = (b[0] - a[0]) / length, (b[1] - a[1]) / length
    bend = 0.0 if length < 1.6 * PITCH_X else min(0.28 * length, 44.0)
    middle = (a[0] + b[0]) / 2 - uy * bend, (a[1] + b[1]) / 2 + ux * bend
    start, tip = _towards(a, middle, RADIUS), _towards(b, middle, RADIUS + 1)
    base = _towards(tip, middle, HEAD)
    side = (base[1] - tip[1]) * 0.42, (tip[0] - base[0]) * 0.42
    corners = (tip, (base[0] + side[0], base[1] + side[1]), (base[0] - side[0], base[1] - side[1]))
    head = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in corners) + "z"
    if not bend:
        return f"M{_n(start[0])} {_n(start[1])}L{_n(base[0])} {_n(base[1])}", head
    through = f"{_n(middle[0])} {_n(middle[1])}"
    return f"M{_n(start[0])} {_n(start[1])}Q{through} {_n(base[0])} {_n(base[1])}", head


def _towards(a: XY, b: XY, distance: float) -> XY:
    """``distance`` on the way from ``a`` to ``b``."""
    length = math.dist(a, b) or 1.0
    return a[0] + (b[0] - a[0]) / length * distance, a[1] + (b[1] - a[1]) / length * distance


def outline(centres: Iterable[XY], pad: float) -> list[XY]:
    """The convex outline of discs of radius ``pad`` around ``centres``, as an octagon each."""
    around = [(math.cos(k * math.pi / 4 + 0.3927), math.sin(k * math.pi / 4 + 0.3927))
              for k in range(8)]  # fmt: skip
    points = sorted({(x + pad * dx, y + pad * dy) for x, y in centres for dx, dy in around})

    def half(ordered: Sequence[XY]) -> list[XY]:
        chain: list[XY] = []
        for p in ordered:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], p) <= 1e-6:
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return half(points) + half(points[::-1])


def _turn(a: XY, b: XY, c: XY) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


# Caption


def _caption(picture: Picture, layout: _Layout) -> tuple[list[str], float, float]:
    """The lines below the picture, where they end, and how wide they are."""
    x, y = 14.0, layout.height
    sizes = ", ".join(f"{n}={v}" for n, v in picture.sizes.items())
    head = f"{picture.kernel}, {sizes}" if sizes else picture.kernel
    out, widest = [_text(x, y, head, "start", weight="600")], len(head) * CHARACTER
    y += TEXT_Y
    at = x
    for k, name in enumerate(picture.statements):
        out.append(f'<g fill="#555">{_mark(k, (at + 6, y - 4))}</g>')
        out.append(_text(at + 17, y, name, "start"))
        at += 34 + len(name) * CHARACTER
    out.append(_text(at, y, _colour_meaning(picture), "start"))
    widest = max(widest, at + len(_colour_meaning(picture)) * CHARACTER)
    lines = [*picture.schedule, *map(arrow_text, _grouped(picture.arrows, picture)), *picture.notes]
    for line in lines:
        y += TEXT_Y
        out.append(_text(x, y, line, "start"))
        widest = max(widest, len(line) * CHARACTER)
    return out, y, x + widest + 10


def _colour_meaning(picture: Picture) -> str:
    if picture.has_waves:
        what = "tiles" if picture.has_tiles and picture.is_tile_in_wave else "iterations"
        return f"{what} of one colour may run at the same time (colours repeat)"
    if picture.has_tiles:
        return "each outline is a tile"
    return "blue runs first, orange last"


def _grouped(arrows: Sequence[Arrow], picture: Picture) -> list[tuple[str, list[Arrow]]]:
    """Arrows of the same statements and kinds."""
    groups: dict[str, list[Arrow]] = {}
    names = picture.statements
    for a in arrows:
        head = f"{names[a.source]} → {names[a.target]}, {' and '.join(a.kinds)}"
        groups.setdefault(head, []).append(a)
    return list(groups.items())


def arrow_text(group: tuple[str, list[Arrow]]) -> str:
    """``S1 → S0, flow: distances (1, 0), (1, 1)``."""
    head, arrows = group
    distances = ", ".join(f"({', '.join(map(str, a.distance))})" for a in arrows)
    return f"{head}: {distances}"


def _text(x: float, y: float, text: str, anchor: str, *, weight: str = "") -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_n(x)}" y="{_n(y)}"{place}{bold}>{escape(text)}</text>'


def _n(value: float) -> str:
    """A coordinate with one decimal at most; equal on every machine."""
    return f"{round(value * 10) / 10:g}"
