"""Pictures: the points, tiles and arrows are those of the nest, and the file is sound."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from nestor.errors import Unsupported, UserError
from nestor.ir.schedule import Arrange, Interchange, Reverse, Schedule, Skew, Tile
from nestor.passes.affine_pipeline import prepare_affine
from nestor.passes.polyhedral.order_tree import program_tree
from nestor.picture import MAX_POINTS, Picture, picture_of
from nestor.picture_svg import outline, svg_text
from tests.helpers import explain_kernels as kernels


def draw(kernel: Any, *steps: Any, **options: Any) -> Picture:
    program = prepare_affine(kernel.program, reassociate=kernel.reassociate)
    return picture_of(program, (Arrange(tree=program_tree(program)), *steps), **options)


def skewed(**options: Any) -> Picture:
    return picture_of(kernels.jacobi.program, kernels.time_skewed(), **options)


CASES: list[tuple[Any, Schedule]] = [
    (kernels.seidel, ()),
    (kernels.seidel, (Interchange(loops=("j", "i")),)),
    (kernels.seidel, (Tile(loop="i", size=8), Tile(loop="j", size=8))),
    (kernels.product, (Tile(loop="k", size=8), Interchange(loops=("k.o", "j", "k.i")))),
    (kernels.triangle, ()),
]


@pytest.mark.parametrize(("kernel", "steps"), CASES)
def test_in_a_legal_order_every_arrow_goes_forward(kernel: Any, steps: Schedule) -> None:
    picture = draw(kernel, *steps)
    assert picture.arrows
    for arrow in picture.arrows:
        for a, b in arrow.ends:
            assert a < b or "reduction" in arrow.kinds
            p, q = picture.points[a], picture.points[b]
            assert tuple(y - x for x, y in zip(p.at, q.at)) == arrow.distance


def test_in_an_illegal_order_some_arrow_goes_backward() -> None:
    picture = draw(kernels.seidel, Reverse(loop="i"))
    assert any(a > b for arrow in picture.arrows for a, b in arrow.ends)


def test_the_points_are_the_domain() -> None:
    picture = draw(kernels.seidel, sizes={"N": 5, "M": 7})
    assert picture.axes == ("i", "j") and dict(picture.sizes) == {"N": 5, "M": 7}
    assert [p.at for p in picture.points] == [(i, j) for i in range(1, 5) for j in range(1, 7)]
    assert [p.wave for p in picture.points] == list(range(24))


def test_tiles_hold_what_the_schedule_puts_together() -> None:
    picture = skewed(sizes={"T": 8, "N": 12})
    assert picture.statements == ("S0", "S1") and picture.has_tiles and picture.has_waves
    for p in picture.points:
        t, i = p.at
        x = i + 2 * t + p.statement
        assert set(p.tiles[0]) == {t // 4 + x // 4, x // 4}
    tiles = {p.tiles[0] for p in picture.points}
    assert 4 < len(tiles) < len(picture.points) / 4
    # Tiles of one wave are those of one diagonal, and waves run in order.
    assert picture.is_tile_in_wave
    waves = [p.wave for p in picture.points]
    assert waves == sorted(waves)
    for wave in set(waves):
        assert len({p.tiles[0][0] for p in picture.points if p.wave == wave}) == 1


def test_dependences_cross_waves_in_order_only() -> None:
    picture = skewed()
    for arrow in picture.arrows:
        for a, b in arrow.ends:
            p, q = picture.points[a], picture.points[b]
            assert p.wave < q.wave or p.tiles[0] == q.tiles[0]


def test_uniform_distances_are_all_there() -> None:
    distances = {(a.source, a.target, a.distance) for a in skewed().arrows}
    assert {(0, 1, (0, d)) for d in (-1, 0, 1)} <= distances
    assert {(1, 0, (1, d)) for d in (-1, 0, 1)} <= distances


def test_what_may_be_reordered_is_told_from_what_may_not() -> None:
    (arrow,) = draw(kernels.product).arrows
    assert (arrow.kinds, arrow.distance) == (("reduction",), (0, 0, 1))
    program = kernels.product.program
    plain = picture_of(program, (Arrange(tree=program_tree(program)),))
    assert plain.arrows[0].kinds[0] == "flow"


@pytest.mark.parametrize("picture", [skewed(), draw(kernels.product), draw(kernels.triangle)])
def test_the_file_is_sound(picture: Picture) -> None:
    text = svg_text(picture)
    assert text == svg_text(picture)
    assert len(text.encode()) < 40_000
    assert not re.search(r"nan|inf|e-\d", re.sub(r"<text.*?</text>", "", text))
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", text):
        assert 0 <= float(x) <= width and 0 <= float(y) <= height
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    first = sum(p.statement == 0 for p in picture.points)
    assert len(circles) == first + 1  # and the one of the legend


def test_sizes_are_chosen_so_that_points_can_be_told_apart() -> None:
    for picture in (skewed(), draw(kernels.product), draw(kernels.triangle)):
        most = MAX_POINTS[len(picture.axes)]
        assert most / 3 < len(picture.points) <= most


def test_large_constant_loops_are_cut() -> None:
    picture = draw(kernels.seidel, Tile(loop="i", size=64), sizes={"N": 400, "M": 15})
    assert len(picture.points) == 14 * 14
    assert "only the first 14 iterations of each loop are drawn" in picture.notes
    assert "tiles are drawn smaller: i by 4 for 64" in picture.notes


def test_statements_that_find_no_room_are_named() -> None:
    picture = draw(kernels.crowd)
    assert picture.statements == ("S0", "S1", "S2", "S3")
    assert "not drawn: S4" in picture.notes
    assert draw(kernels.crowd, statement="S4").statements == ("S4",)


def test_an_outline_is_convex_and_holds_its_points() -> None:
    centres = [(0.0, 0.0), (30.0, 0.0), (0.0, 24.0), (60.0, 48.0), (15.0, 10.0)]
    corners = outline(centres, 5.0)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]]):
        for x, y in centres:
            assert (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0


def test_what_cannot_be_drawn_is_told() -> None:
    with pytest.raises(Unsupported, match="no statement of depth two or three"):
        draw(kernels.line)
    with pytest.raises(UserError, match="no statement 'S9'; it has S0"):
        draw(kernels.seidel, statement="S9")
    with pytest.raises(Unsupported, match="'S1' has a depth of 1"):
        draw(kernels.triangle, statement="S1")
    with pytest.raises(UserError, match="no size 'Q'"):
        draw(kernels.seidel, sizes={"Q": 3})
    with pytest.raises(UserError, match="no iteration to draw"):
        draw(kernels.seidel, sizes={"N": 1, "M": 1})
    with pytest.raises(UserError, match="more than 150 iterations"):
        draw(kernels.product, sizes={"N": 9, "M": 9, "K": 9})


def test_a_skewed_loop_moves_the_tiles() -> None:
    plain = draw(kernels.seidel, Tile(loop="j", size=4), sizes={"N": 9, "M": 9})
    slanted = draw(
        kernels.seidel,
        Skew(loop="j", by="i", factor=1),
        Tile(loop="j", size=4),
        sizes={"N": 9, "M": 9},
    )
    assert {p.at: p.tiles for p in plain.points}[2, 3] == ((0,),)
    assert {p.at: p.tiles for p in slanted.points}[2, 3] == ((1,),)
