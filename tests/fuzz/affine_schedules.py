"""Random trees and random steps on them: some legal by construction, some likely, some wild.

Steps are proposed against the tree that the earlier ones left, so that most of them name loops that
exist. One that does not fit (``UserError``) is counted and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

from nestor.errors import LegalityUnknown, Unsupported, UserError
from nestor.ir.affine import Affine, affine, variable
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import (
    Arrange,
    Distribute,
    Fuse,
    Interchange,
    Parallel,
    Promote,
    Reverse,
    Schedule,
    Shift,
    Skew,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence, Tree, tree_bands
from nestor.passes.polyhedral.affine_nest import build_affine_nest
from nestor.passes.polyhedral.order_tree import program_tree
from nestor.passes.polyhedral.statement_times import statement_times
from nestor.passes.polyhedral.tree_steps import Arranged, apply_tree_step, apply_tree_steps

TILES = (1, 2, 2, 3, 3, 4, 4, 5, 8)


@dataclass(slots=True)
class Plan:
    """A schedule under construction; ``misfits``: proposed steps that could not be applied."""

    program: Program
    rng: Random
    state: Arranged
    steps: list[Step] = field(default_factory=list)
    misfits: int = 0

    def try_step(self, step: Step) -> bool:
        """Apply ``step`` if it fits."""
        state = self.state
        saved = replace(
            state,
            kinds=dict(state.kinds),
            tiles=dict(state.tiles),
            promotions=list(state.promotions),
            lanes=set(state.lanes),
        )
        try:
            apply_tree_step(state, step)
            if isinstance(step, (Vectorize, Unroll, SplitReduction)) and self.rng.random() < 0.9:
                statement_times(self.program, state)
        except UserError:
            self.misfits += 1
            self.state = saved
            return False
        self.steps.append(step)
        return True

    def bands(self) -> list[list[BandLoop]]:
        """The loops of every band."""
        return [list(band.loops) for band in tree_bands(self.state.tree)]

    def loop(self) -> BandLoop | None:
        """A random one."""
        loops = [x for band in self.bands() for x in band]
        return self.rng.choice(loops) if loops else None


def random_tree_schedule(program: Program, seed: str) -> tuple[Schedule, int, str]:
    """Steps, how many proposals did not fit, and of which kind the schedule is."""
    rng = Random(f"affine schedule {seed}")
    kind = rng.choice(["plain"] * 5 + ["likely"] * 4 + ["wild"] * 3 + ["bent"] * 3 + ["isl"])
    tree = program_tree(program)
    if kind == "bent":
        for _ in range(rng.choice([1, 1, 2, 3])):
            tree = bend(tree, program, rng)
    elif kind == "isl":
        tree = proposed(program, rng) or tree
    arrange = Arrange(tree=tree)
    plan = Plan(program, rng, apply_tree_steps(program, (arrange,)), [arrange])
    for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4]) if kind != "plain" else 0):
        rng.choice(WILD if kind != "likely" else LIKELY)(plan)
    finish = {"plain": 1.0, "likely": 0.7}.get(kind, 0.5)
    if rng.random() < finish:
        register_tiles(plan)
    for chance, more in ((0.25, parallel), (0.35, promotion)):
        if rng.random() < chance:
            more(plan)
    if plan.state.promotions and rng.random() < 0.9 and not does_apply(program, plan.steps):
        plan.steps = [s for s in plan.steps if not isinstance(s, Promote)]
    return tuple(plan.steps), plan.misfits, kind


def does_apply(program: Program, steps: list[Step]) -> bool:
    """Whether the nest can be built: only then is it known what can be promoted."""
    try:
        build_affine_nest(program, tuple(steps))
    except (UserError, Unsupported):
        return False
    return True


# --- trees -------------------------------------------------------------------------------------


def proposed(program: Program, rng: Random) -> Tree | None:
    """One of isl's proposals."""
    from nestor.passes.polyhedral.dependence_analysis import analyse_dependences
    from nestor.passes.polyhedral.isl_schedule import compute_tree
    from nestor.passes.polyhedral.proposals import STRATEGIES

    try:
        analysis = analyse_dependences(program)
        return compute_tree(analysis, STRATEGIES[rng.choice(sorted(STRATEGIES))])
    except LegalityUnknown:
        return None


def bend(tree: Tree, program: Program, rng: Random) -> Tree:
    """One random change somewhere in ``tree``."""
    spots = list(subtrees(tree))
    path, spot = rng.choice(spots)
    return replaced(tree, path, bent(spot, program, rng))


def subtrees(tree: Tree, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Tree]]:
    """Every subtree and where it is."""
    yield path, tree
    match tree:
        case Band():
            yield from subtrees(tree.child, (*path, 0))
        case Sequence():
            for k, child in enumerate(tree.children):
                yield from subtrees(child, (*path, k))


def replaced(tree: Tree, path: tuple[int, ...], new: Tree) -> Tree:
    """``tree`` with another subtree at ``path``."""
    if not path:
        return new
    if isinstance(tree, Band):
        return replace(tree, child=replaced(tree.child, path[1:], new))
    assert isinstance(tree, Sequence)
    children = list(tree.children)
    children[path[0]] = replaced(children[path[0]], path[1:], new)
    return Sequence(children=tuple(children))


def bent(tree: Tree, program: Program, rng: Random) -> Tree:
    match tree:
        case Leaf():
            return tree
        case Sequence():
            children = list(tree.children)
            if rng.random() < 0.5:
                rng.shuffle(children)
                return Sequence(children=tuple(children))
            if len(children) < 2:
                return tree
            k = rng.randrange(len(children) - 1)
            fused = merged(children[k], children[k + 1])
            return Sequence(children=(*children[:k], fused, *children[k + 2 :]))
        case Band():
            if not tree.loops:
                return tree
            return replace(tree, loops=bent_loops(tree.loops, program, rng))


def merged(a: Tree, b: Tree) -> Tree:
    """Both in the loops of the first, as many as there are; the rest in sequence."""
    if not (isinstance(a, Band) and isinstance(b, Band)):
        return Sequence(children=(a, b))
    count = min(len(a.loops), len(b.loops))
    pairs = zip(a.loops[:count], b.loops[:count])
    loops = tuple(BandLoop(name=x.name, rows=(*x.rows, *y.rows)) for x, y in pairs)
    rest = tuple(Band(loops=x.loops[count:], child=x.child) for x in (a, b))
    return Band(loops=loops, child=Sequence(children=rest))


def bent_loops(loops: tuple[BandLoop, ...], program: Program, rng: Random) -> tuple[BandLoop, ...]:
    """Rows of one statement, or of all, are shifted, skewed, reversed, swapped, dropped."""
    k = rng.randrange(len(loops))
    loop = loops[k]
    kind = rng.choice(["shift", "shift", "skew", "skew", "back", "swap", "swap", "const", "drop",
                       "scale", "div", "mod"])  # fmt: skip
    if kind == "swap" and len(loops) > 1:
        order = rng.sample(range(len(loops)), len(loops))
        return tuple(loops[i] for i in order)
    if kind == "drop" and rng.random() < 0.3:
        return (*loops[:k], *loops[k + 1 :])
    rows = []
    chosen = rng.choice([s for s, _ in loop.rows])
    everyone = rng.random() < 0.5
    for statement, row in loop.rows:
        if everyone or statement == chosen:
            if kind == "shift":
                symbols = [variable(s.name) for s in program.symbols]
                row = row + rng.choice([affine(-1), affine(1), affine(2), *symbols])
            elif kind == "skew":
                row = row + own_index(program, statement, rng) * rng.choice([1, 1, -1, 2])
            elif kind == "back":
                row = -row
            elif kind == "const":
                row = affine(rng.choice([0, 1, 3]))
            elif kind == "scale":
                row = row * 2
            elif kind == "div":
                row = row // 2
            elif kind == "mod":
                row = row % 3
        rows.append((statement, row))
    return (*loops[:k], replace(loop, rows=tuple(rows)), *loops[k + 1 :])


def own_index(program: Program, statement: str, rng: Random):  # type: ignore[no-untyped-def]
    """A random index of a statement."""
    s = next(x for x in program.statements if x.name == statement)
    assert isinstance(s, Statement)
    names = s.domain.names
    return variable(rng.choice(names)) if names else affine(1)


# --- steps -------------------------------------------------------------------------------------


def tile(plan: Plan) -> None:
    """Cut one loop, and perhaps bring its inside to the end of the band."""
    loop = plan.loop()
    if loop is None or not plan.try_step(Tile(loop=loop.name, size=plan.rng.choice(TILES))):
        return
    if plan.rng.random() < 0.5:
        sink(plan, f"{loop.name}.i")


def sink(plan: Plan, loop: str) -> None:
    """Make ``loop`` the innermost of its band."""
    for band in plan.bands():
        names = [x.name for x in band]
        if loop in names and names[-1] != loop:
            k = names.index(loop)
            plan.try_step(Interchange(loops=(*names[k + 1 :], loop)))


def tile_band(plan: Plan) -> None:
    """Cut all loops of a band, and run the cuts outside."""
    bands = [b for b in plan.bands() if b]
    if not bands:
        return
    band = plan.rng.choice(bands)
    names = []
    for x in band:
        if plan.try_step(Tile(loop=x.name, size=plan.rng.choice(TILES))):
            names.append(x.name)
    if names and plan.rng.random() < 0.8:
        order = [f"{n}.{part}" for part in "oi" for n in names]
        plan.try_step(Interchange(loops=tuple(order)))


def interchange(plan: Plan) -> None:
    bands = [b for b in plan.bands() if len(b) > 1]
    if bands:
        names = [x.name for x in plan.rng.choice(bands)]
        plan.try_step(Interchange(loops=tuple(plan.rng.sample(names, 2))))


def skew(plan: Plan) -> None:
    bands = [b for b in plan.bands() if len(b) > 1]
    if bands:
        by, loop = sorted(plan.rng.sample(range(2), 2)) if plan.rng.random() < 0.7 else (1, 0)
        band = plan.rng.choice(bands)
        factor = plan.rng.choice([1, 1, 2, -1])
        plan.try_step(Skew(loop=band[loop].name, by=band[by].name, factor=factor))


def shift(plan: Plan) -> None:
    loop = plan.loop()
    if loop is not None:
        statement = plan.rng.choice([s for s, _ in loop.rows])
        amount = plan.rng.choice([1, 1, 2, -1, 3])
        plan.try_step(Shift(loop=loop.name, statement=statement, amount=amount))


def reverse(plan: Plan) -> None:
    loop = plan.loop()
    if loop is not None:
        plan.try_step(Reverse(loop=loop.name))


def distribute(plan: Plan) -> None:
    loops = [x for band in plan.bands() for x in band if len(x.rows) > 1]
    if loops:
        loop = plan.rng.choice(loops)
        statement = plan.rng.choice([s for s, _ in loop.rows[1:]])
        plan.try_step(Distribute(loop=loop.name, statement=statement))


def fuse(plan: Plan) -> None:
    """Two loops that follow each other, and perhaps the loops within."""
    pairs = list(neighbours(plan.state.tree))
    if pairs:
        first, second = plan.rng.choice(pairs)
        if plan.try_step(Fuse(first=first, second=second)) and plan.rng.random() < 0.5:
            pairs = list(neighbours(plan.state.tree))
            if pairs:
                first, second = plan.rng.choice(pairs)
                plan.try_step(Fuse(first=first, second=second))


def neighbours(tree: Tree) -> Iterator[tuple[str, str]]:
    """Loops that follow each other in a sequence."""
    for _, spot in subtrees(tree):
        if isinstance(spot, Sequence):
            for a, b in zip(spot.children, spot.children[1:]):
                if isinstance(a, Band) and isinstance(b, Band):
                    yield a.loops[0].name, b.loops[0].name


def parallel(plan: Plan) -> None:
    loop = plan.loop()
    if loop is not None:
        plan.try_step(Parallel(loop=loop.name))


def promotion(plan: Plan) -> None:
    """Around a serial loop, mostly of a tensor that is written at one place throughout."""
    rng = plan.rng
    loops = [x for band in plan.bands() for x in band if x.name not in plan.state.kinds]
    if not loops:
        return
    pairs = [(x.name, t) for x in loops for t in kept_throughout(plan.program, x)]
    if pairs and rng.random() < 0.85:
        loop, tensor = rng.choice(pairs)
    else:
        loop, tensor = rng.choice(loops).name, rng.choice(plan.program.tensors).name
    scope = rng.choice(["register", "register", "local"])
    plan.try_step(Promote(tensor=tensor, loop=loop, scope=scope))


def kept_throughout(program: Program, loop: BandLoop) -> Iterator[str]:
    """Tensors of which a statement in ``loop`` writes the same element in all iterations."""
    rows = dict(loop.rows)
    for s in program.statements:
        if isinstance(s, Statement) and s.name in rows:
            for w in s.writes:
                used = {v for i in w.indices if isinstance(i, Affine) for v in i.variables()}
                if used.isdisjoint(rows[s.name].variables()):
                    yield w.tensor


def register_tiles(plan: Plan) -> None:
    """Cut inner loops of some bands; the insides run innermost, unrolled or as vectors."""
    for k in range(len(plan.bands())):
        bands = plan.bands()
        if k >= len(bands) or plan.rng.random() < 0.25:
            continue
        band = bands[k]
        reduced = {
            n
            for s in plan.program.statements
            if isinstance(s, Statement) and s.reduction and s.name in dict(band[-1].rows)
            for n in s.reduction.indices
        }
        count = plan.rng.choice([1, 1, 1, 2, 2, 3])
        cut = []
        for x in band[-count:]:
            if x.name in plan.state.tiles or x.name in plan.state.kinds:
                continue
            size = plan.rng.choice((2, 2, 3, 4, 4))
            if x is band[-1] and x.name in reduced and plan.rng.random() < 0.6:
                if plan.try_step(SplitReduction(loop=x.name, lanes=size)):
                    cut.append(x.name)
            elif plan.try_step(Tile(loop=x.name, size=size)):
                cut.append(x.name)
        for name in cut:
            sink(plan, f"{name}.i")
        for name in cut:
            inner = f"{name}.i"
            if inner in plan.state.kinds:
                continue
            is_last = name == cut[-1]
            step = (
                Vectorize(loop=inner) if is_last and plan.rng.random() < 0.6 else Unroll(loop=inner)
            )
            plan.try_step(step)


def vectorize(plan: Plan) -> None:
    """The inside of any tile, wherever it is."""
    insides = [n for n in plan.state.tiles if n not in plan.state.kinds]
    if insides:
        plan.try_step(Vectorize(loop=plan.rng.choice(insides)))


def unroll(plan: Plan) -> None:
    insides = [n for n in plan.state.tiles if n not in plan.state.kinds]
    if insides:
        plan.try_step(Unroll(loop=plan.rng.choice(insides)))


def split(plan: Plan) -> None:
    loop = plan.loop()
    if loop is not None:
        plan.try_step(SplitReduction(loop=loop.name, lanes=plan.rng.choice((2, 3, 4))))


Move = Callable[[Plan], None]
WILD: list[Move] = [
    tile, tile, tile_band, interchange, interchange, skew, shift, reverse, distribute, fuse, fuse,
    parallel, vectorize, unroll, promotion, split, register_tiles,
]  # fmt: skip
LIKELY: list[Move] = [tile, tile, tile, skew, shift, promotion, distribute, tile_band, fuse]
