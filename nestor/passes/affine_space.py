"""The choices of an affine kernel's schedule as a space of knobs: what a search walks.

A point gives each knob a value of its domain; ``schedule_of`` makes it a schedule. Every point is a
schedule that can be applied, if not one that the checker accepts: it alone judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Union

from nestor.errors import UserError
from nestor.ir.affine import Affine, affine_sum, variable
from nestor.ir.program import Program
from nestor.ir.schedule import Arrange, Parallel, Schedule, Step
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence, Tree, tree_statements
from nestor.passes.affine_access import statement_views
from nestor.passes.affine_choices import Choice, choices_of, rows_apart, steps_of
from nestor.passes.affine_facts import AffineFacts, Proposal
from nestor.passes.affine_nests import Nest, find_nests
from nestor.target.cpu import CpuTarget

Value = Union[int, str, None]
Point = Mapping[str, Value]

ORDER = "order"
TILE_SIZES = (0, 8, 16, 32, 64, 128, 256, 512)
ROW_SIZES = (2, 3, 4, 6, 8, 10, 12)
VECTORS = (1, 2, 3, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One choice: its values and which one the heuristic takes."""

    name: str
    domain: tuple[Value, ...]
    default: Value
    meaning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A proposal with what may be done to each of its nests.

    ``outer``: loops of bands around nests that may run in parallel, outer ones first.
    """

    proposal: Proposal
    nests: tuple[Nest, ...]
    choices: tuple[tuple[Choice, ...], ...]
    outer: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All knobs, in a fixed order.

    ``plans``: by the proposal's origin. The knob ``order`` picks one; knobs of the other plans,
    which start with their origin, then do nothing.
    """

    program: Program
    target: CpuTarget
    plans: Mapping[str, Plan]
    knobs: tuple[Knob, ...]

    def default(self) -> dict[str, Value]:
        """The heuristic's point."""
        return {k.name: k.default for k in self.knobs}

    def check_point(self, point: Point) -> None:
        """Raises: ``UserError`` for a missing or unknown knob, or a value out of its domain."""
        names = {k.name for k in self.knobs}
        if names != set(point):
            raise UserError(
                f"schedule point: missing {sorted(names - set(point))}, "
                f"unknown {sorted(set(point) - names)}"
            )
        for knob in self.knobs:
            if point[knob.name] not in knob.domain:
                raise UserError(f"knob '{knob.name}': {point[knob.name]!r} is not in {knob.domain}")

    def active(self, point: Point) -> tuple[str, ...]:
        """Names of the knobs that change something at ``point``."""
        origin = point[ORDER]
        found = [ORDER]
        for knob in self.knobs[1:]:
            plan, _, rest = knob.name.partition("/")
            parts = rest.split("/")
            if plan == origin and (len(parts) < 3 or point[f"{plan}/{parts[0]}/shape"] == parts[1]):
                found.append(knob.name)
        return tuple(found)


def make_plan(
    program: Program,
    target: CpuTarget,
    proposal: Proposal,
    sizes: Mapping[str, int] | None = None,
) -> Plan:
    """What may be done to the nests of ``proposal``."""
    views = statement_views(program, proposal.tree)
    nests = find_nests(program, proposal.tree, proposal.bands, views, sizes)
    choices = tuple(tuple(choices_of(nest, target)) for nest in nests)
    return Plan(
        proposal=proposal, nests=tuple(nests), choices=choices, outer=_parallel_outer(proposal)
    )


def _parallel_outer(proposal: Proposal) -> tuple[str, ...]:
    """Loops of bands with bands below that no dependence crosses where they stand."""
    found: list[str] = []

    def visit(tree: Tree) -> bool:
        match tree:
            case Leaf():
                return False
            case Sequence():
                return sum(visit(child) for child in tree.children) > 0  # visits all of them
            case Band():
                names = [loop.name for loop in tree.loops]
                facts = proposal.band_of(names[0])
                at = len(found)
                if visit(tree.child):
                    own = [n for k, n in enumerate(names) if not facts.carried(n, names[:k])]
                    found[at:at] = own[:1]
                return True

    visit(proposal.tree)
    return tuple(found)


def make_knobs(
    plans: Mapping[str, Plan],
    order: str,
    shapes: Mapping[tuple[str, int], str],
    outer: Mapping[str, frozenset[str]],
    threads: Mapping[tuple[str, int], bool],
) -> tuple[Knob, ...]:
    """Knobs of ``plans``.

    Args: the defaults: order: of the plan. shapes, threads: of a plan's nest. outer: of a plan.
    """
    knobs = [
        Knob(name=ORDER, domain=tuple(plans), default=order, meaning="which proposal for the order")
    ]
    for origin, plan in plans.items():
        for loop in plan.outer:
            name, meaning = f"{origin}/parallel {loop}", "whether a loop around nests is parallel"
            default = int(loop in outer[origin])
            knobs.append(Knob(name=name, domain=(0, 1), default=default, meaning=meaning))
        for k, choices in enumerate(plan.choices):
            knobs += _nest_knobs(f"{origin}/{k}", choices, shapes[origin, k], threads[origin, k])
    return tuple(knobs)


def _nest_knobs(
    prefix: str, choices: tuple[Choice, ...], shape: str, is_threaded: bool
) -> list[Knob]:
    knobs = [
        Knob(
            name=f"{prefix}/shape",
            domain=tuple(c.shape for c in choices),
            default=shape,
            meaning="how the nest runs",
        ),
        Knob(
            name=f"{prefix}/threads",
            domain=(0, 1),
            default=int(is_threaded),
            meaning="whether the nest's parallel loop runs on threads",
        ),
    ]
    for c in choices:
        base = f"{prefix}/{c.shape}"
        for loop in dict.fromkeys((*c.tile_order, *c.tiles)):
            # A wave needs the tiles that it runs over.
            sizes = [s for s in TILE_SIZES if s or not (c.wave and loop in c.wave)]
            sizes += [c.tiles.get(loop, 0)]
            is_tilable = c.shape != "stream" and (loop in c.tiles or loop in c.order)
            if is_tilable:
                domain = tuple(sorted(set(sizes)))
                knobs.append(_knob(f"{base}/tile {loop}", domain, c.tiles.get(loop, 0)))
        for loop, size in c.rows:
            knobs.append(_knob(f"{base}/rows {loop}", tuple(sorted({*ROW_SIZES, size})), size))
        if c.vector:
            size = c.vector[1]
            lanes = _one_vector(size)
            domain = tuple(sorted({*(lanes * n for n in VECTORS), size}))
            knobs.append(_knob(f"{base}/vector {c.vector[0]}", domain, size))
        if c.promote:
            knobs.append(_knob(f"{base}/promote", (0, 1), 1))
    return knobs


def _one_vector(size: int) -> int:
    """The largest power of two that divides ``size``, at most 16."""
    return min(16, size & -size)


def _knob(name: str, domain: tuple[Value, ...], default: Value) -> Knob:
    return Knob(name=name, domain=domain, default=default)


def schedule_of(space: Space, point: Point) -> Schedule:
    """The schedule at ``point``. Raises: ``UserError`` if it is no point of ``space``."""
    space.check_point(point)
    origin = str(point[ORDER])
    plan = space.plans[origin]
    tree = plan.proposal.tree
    steps: list[Step] = []
    around = parallel_around(space, point)
    for k, nest in enumerate(plan.nests):
        choice = choice_at(space, point, k)
        if around & set(nest.outer):
            choice = replace(choice, parallel=None, wave=None)
        steps += steps_of(nest, choice)
        if choice.is_apart:
            tree = _split_rows(tree, nest)
    steps += [Parallel(loop=loop) for loop in plan.outer if loop in around]
    return (Arrange(tree=tree), *steps)


def _split_rows(tree: Tree, nest: Nest) -> Tree:
    """The innermost loop of ``nest`` for each of its statements by itself."""
    match tree:
        case Leaf():
            return tree
        case Sequence():
            return Sequence(children=tuple(_split_rows(c, nest) for c in tree.children))
        case Band():
            if tuple(loop.name for loop in tree.loops) != nest.loops:
                return replace(tree, child=_split_rows(tree.child, nest))
            last = tree.loops[-1]
            rows = tuple(
                Band(
                    loops=(BandLoop(name=rows_apart(nest, s), rows=((s, row),)),),
                    child=Leaf(statement=s),
                )
                for s in tree_statements(tree.child)
                for row in [_unskewed(nest, s, last)]
            )
            return replace(tree, loops=tree.loops[:-1], child=Sequence(children=rows))


def _unskewed(nest: Nest, statement: str, last: BandLoop) -> Affine:
    """The statement's row in ``last`` less what the loops around hold still.

    A skewed row would start at another lane of its vectors in each iteration around.
    """
    row = last.row(statement)
    view = next(v for v in nest.views if v.name == statement)
    moving = {index for index, by_loop in view.moves.items() if by_loop.get(last.name)}
    own = [(variable(n), c) for n in sorted(moving) if (c := row.coefficient(n))]
    is_known = all(view.moves.values()) and all(isinstance(atom, str) for atom, _ in row.terms)
    return affine_sum(own) if own and is_known else row


def parallel_around(space: Space, point: Point) -> frozenset[str]:
    """The parallel loops around nests; of one within another the outer one counts."""
    origin = str(point[ORDER])
    plan = space.plans[origin]
    wanted = [n for n in plan.outer if point[f"{origin}/parallel {n}"] == 1]
    hidden: set[str] = set()
    for nest in plan.nests:
        hidden |= set([n for n in nest.outer if n in wanted][1:])
    return frozenset(wanted) - hidden


def choice_at(space: Space, point: Point, nest: int) -> Choice:
    """How the nest of that number runs at ``point``."""
    origin = str(point[ORDER])
    prefix = f"{origin}/{nest}"
    shape = point[f"{prefix}/shape"]
    choice = next(c for c in space.plans[origin].choices[nest] if c.shape == shape)
    base = f"{prefix}/{shape}"

    def number(name: str, default: int) -> int:
        value = point.get(f"{base}/{name}", default)
        assert isinstance(value, int)
        return value

    loops = dict.fromkeys((*choice.tiles, *choice.tile_order))
    tiles = {n: number(f"tile {n}", choice.tiles.get(n, 0)) for n in loops}
    tiles = {n: _fitting(choice, point, base, n, size) for n, size in tiles.items() if size}
    vector = choice.vector
    if vector:
        vector = (vector[0], number(f"vector {vector[0]}", vector[1]))
    threaded = point[f"{prefix}/threads"] == 1
    return replace(
        choice,
        tiles=tiles,
        rows=tuple((n, number(f"rows {n}", size)) for n, size in choice.rows),
        vector=vector,
        promote=choice.promote if number("promote", 1) else (),
        parallel=choice.parallel if threaded else None,
        wave=choice.wave if threaded else None,
        tile_order=tuple(n for n in choice.tile_order if n in tiles or n not in choice.order),
    )


def _fitting(choice: Choice, point: Point, base: str, loop: str, size: int) -> int:
    """A cache tile of whole register tiles."""
    register = choice.register_size(loop)
    for kind in ("rows", "vector"):
        value = point.get(f"{base}/{kind} {loop}")
        if isinstance(value, int):
            register = value
    return size if not register else -(-size // register) * register


def plans_of(
    program: Program,
    target: CpuTarget,
    facts: AffineFacts,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Plan]:
    """A plan for each proposal, by its origin."""
    return {p.origin: make_plan(program, target, p, sizes) for p in facts.proposals}
