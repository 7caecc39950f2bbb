"""What schedule steps mean on a schedule tree.

Every step rewrites the tree or notes something about one of its loops. Nothing here proves
anything: the checker judges the nest that results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nestor.errors import UserError
from nestor.ir.affine import Affine
from nestor.ir.loopnest import LoopKind
from nestor.ir.program import Program
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
from nestor.ir.schedule_tree import (
    Band,
    BandLoop,
    Leaf,
    Sequence,
    Tree,
    tree_bands,
    tree_statements,
)
from nestor.passes.polyhedral.order_tree import loop_names, normalize, program_tree


@dataclass(slots=True, kw_only=True)
class Arranged:
    """A tree and what steps said about its loops.

    Attributes:
        tree: the order of statement instances.
        kinds: loops that are not serial.
        tiles: inner loop of a tile → its outer loop and its size.
        promotions: in the order of the steps.
        lanes: reduced loops whose lanes sum apart.
    """

    tree: Tree
    kinds: dict[str, LoopKind] = field(default_factory=dict)
    tiles: dict[str, tuple[str, int]] = field(default_factory=dict)
    promotions: list[Promote] = field(default_factory=list)
    lanes: set[str] = field(default_factory=set)

    def names(self) -> list[str]:
        """Every loop, outer ones first."""
        return [loop.name for band in tree_bands(self.tree) for loop in band.loops]


def apply_tree_steps(program: Program, schedule: Schedule) -> Arranged:
    """Apply ``schedule`` to its ``Arrange`` tree, or to the program's own order if it has none.

    Raises: ``UserError`` for a step that names nothing or cannot be applied as written.
    """
    steps = list(schedule)
    tree = program_tree(program)
    if steps and isinstance(steps[0], Arrange):
        _check_arrangement(program, steps[0])
        tree = normalize(steps.pop(0).tree)  # type: ignore[union-attr]
    state = Arranged(tree=tree)
    for step in steps:
        apply_tree_step(state, step)
    return state


def _check_arrangement(program: Program, step: Arrange) -> None:
    given = tree_statements(step.tree)
    wanted = [s.name for s in program.statements]
    if sorted(given) != sorted(wanted):
        raise UserError(f"Arrange: its tree holds {', '.join(given)}; the kernel {wanted}")
    names = [loop.name for band in tree_bands(step.tree) for loop in band.loops]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"Arrange: several loops are called {', '.join(twice)}")


def apply_tree_step(state: Arranged, step: Step) -> None:
    """Apply one step. Raises: ``UserError`` if that cannot be done."""
    match step:
        case Tile():
            _tile(state, step)
        case Interchange():
            _rewrite(state, step, step.loops[0], lambda band: _interchange(band, step))
        case Skew():
            _skew(state, step)
        case Shift():
            _change_rows(
                state, step, step.loop, lambda s, row: row + step.amount * (s == step.statement)
            )
        case Reverse():
            _change_rows(state, step, step.loop, lambda _, row: -row)
        case Distribute():
            _distribute(state, step)
        case Fuse():
            _fuse(state, step)
        case Parallel() | Vectorize() | Unroll():
            _annotate(state, step)
        case SplitReduction():
            _tile(state, Tile(loop=step.loop, size=step.lanes))
            state.lanes.add(f"{step.loop}.i")
            state.kinds[f"{step.loop}.i"] = "vector"
        case Promote():
            _require(state, step, step.loop)
            state.promotions.append(step)
        case _:
            raise UserError(f"{step}: this step does not apply to a schedule tree")


def _require(state: Arranged, step: Step, loop: str) -> None:
    if loop not in state.names():
        raise UserError(f"{step}: no loop is called '{loop}'; there are {', '.join(state.names())}")


def _rewrite(state: Arranged, step: Step, loop: str, change: Callable[[Band], Tree]) -> None:
    """Replace the band that holds ``loop``."""
    _require(state, step, loop)

    def visit(tree: Tree) -> Tree:
        match tree:
            case Leaf():
                return tree
            case Sequence():
                return Sequence(children=tuple(map(visit, tree.children)))
            case Band():
                if any(item.name == loop for item in tree.loops):
                    return change(tree)
                return replace(tree, child=visit(tree.child))

    state.tree = normalize(visit(state.tree))


def _position(band: Band, loop: str) -> int:
    return next(k for k, item in enumerate(band.loops) if item.name == loop)


def _tile(state: Arranged, step: Tile) -> None:
    if step.size < 1:
        raise UserError(f"{step}: the size must be positive")
    if step.loop in state.kinds:
        raise UserError(f"{step}: '{step.loop}' is {state.kinds[step.loop]} already")
    taken = {f"{step.loop}.o", f"{step.loop}.i"} & set(_spoken_for(state))
    if taken:
        raise UserError(f"{step}: another loop is called '{min(taken)}' already")

    def change(band: Band) -> Band:
        k = _position(band, step.loop)
        rows = band.loops[k].rows
        outer = BandLoop(
            name=f"{step.loop}.o", rows=tuple((s, row // step.size) for s, row in rows)
        )
        inner = BandLoop(name=f"{step.loop}.i", rows=rows)
        return replace(band, loops=(*band.loops[:k], outer, inner, *band.loops[k + 1 :]))

    _rewrite(state, step, step.loop, change)
    # The inside keeps the loop's values: what was a tile of the loop is one of the inside.
    _rename_outer(state, step.loop, f"{step.loop}.i")
    state.tiles[f"{step.loop}.i"] = (f"{step.loop}.o", step.size)


def _rename_outer(state: Arranged, old: str, new: str) -> None:
    """Tiles whose outer loop was ``old`` now have ``new``."""
    for inner, (outer, size) in state.tiles.items():
        if outer == old:
            state.tiles[inner] = (new, size)


def _interchange(band: Band, step: Interchange) -> Band:
    names = [item.name for item in band.loops]
    if len(set(step.loops)) != len(step.loops) or not set(step.loops) <= set(names):
        raise UserError(f"{step}: the loops of one perfect nest are {', '.join(names)}")
    wanted = iter(step.loops)
    order = [next(wanted) if n in step.loops else n for n in names]
    by_name = {item.name: item for item in band.loops}
    return replace(band, loops=tuple(by_name[n] for n in order))


def _change_rows(
    state: Arranged, step: Step, loop: str, change: Callable[[str, Affine], Affine]
) -> None:
    if loop in state.tiles or any(outer == loop for outer, _ in state.tiles.values()):
        if not isinstance(step, Skew):
            raise UserError(f"{step}: '{loop}' is part of a tile; do this before tiling")
        if loop in state.tiles:
            raise UserError(f"{step}: '{loop}' is the inside of a tile; skew before tiling")

    def rewritten(band: Band) -> Band:
        k = _position(band, loop)
        rows = tuple((s, change(s, row)) for s, row in band.loops[k].rows)
        new = BandLoop(name=loop, rows=rows)
        return replace(band, loops=(*band.loops[:k], new, *band.loops[k + 1 :]))

    _rewrite(state, step, loop, rewritten)


def _skew(state: Arranged, step: Skew) -> None:
    _require(state, step, step.by)
    by = next(x for b in tree_bands(state.tree) for x in b.loops if x.name == step.by)
    rows = dict(by.rows)

    def change(statement: str, row: Affine) -> Affine:
        if statement not in rows:
            raise UserError(f"{step}: '{statement}' is in '{step.loop}' and not in '{step.by}'")
        return row + rows[statement] * step.factor

    _change_rows(state, step, step.loop, change)


def _distribute(state: Arranged, step: Distribute) -> None:
    names = loop_names(_spoken_for(state))

    def change(band: Band) -> Tree:
        k = _position(band, step.loop)
        inside = band.child
        children = inside.children if isinstance(inside, Sequence) else (inside,)
        cut = next(
            (n for n, c in enumerate(children) if tree_statements(c)[0] == step.statement), 0
        )
        if cut == 0:
            raise UserError(
                f"{step}: no statement of '{step.loop}' comes before '{step.statement}' in a "
                "sequence of its own"
            )
        parts: list[Tree] = []
        for number, part in enumerate((children[:cut], children[cut:])):
            below = {s for c in part for s in tree_statements(c)}
            loops = []
            for item in band.loops[k:]:
                name = names.fresh(item.name) if number else item.name
                rows = tuple((s, row) for s, row in item.rows if s in below)
                loops.append(BandLoop(name=name, rows=rows))
                _inherit(state, item.name, name)
            child = part[0] if len(part) == 1 else Sequence(children=tuple(part))
            parts.append(Band(loops=tuple(loops), child=child, permutable=band.permutable))
        return Band(
            loops=band.loops[:k], child=Sequence(children=tuple(parts)), permutable=band.permutable
        )

    _rewrite(state, step, step.loop, change)


def _spoken_for(state: Arranged) -> list[str]:
    """Names that no new loop may have: of loops, of loops that were tiled, of what steps noted."""
    names = {*state.names(), *state.kinds, *state.tiles, *(p.loop for p in state.promotions)}
    names.update(outer for outer, _ in state.tiles.values())
    for name in list(names):
        while name.endswith((".o", ".i")):
            name = name[:-2]
            names.add(name)
    return sorted(names)


def _inherit(state: Arranged, old: str, new: str) -> None:
    """What was said about loop ``old`` holds for its copy ``new``."""
    if new == old:
        return
    if old in state.kinds:
        state.kinds[new] = state.kinds[old]
    if old in state.tiles or any(outer == old for outer, _ in state.tiles.values()):
        raise UserError(f"Distribute: '{old}' is part of a tile; distribute before tiling")


def _fuse(state: Arranged, step: Fuse) -> None:
    _require(state, step, step.first)
    _require(state, step, step.second)
    for loop in (step.first, step.second):
        if loop in state.tiles:
            raise UserError(f"{step}: '{loop}' is the inside of a tile; fuse before tiling")
    if state.kinds.get(step.first) != state.kinds.get(step.second):
        raise UserError(f"{step}: one of the two is parallel and the other is not")
    done = False

    def visit(tree: Tree) -> Tree:
        nonlocal done
        match tree:
            case Leaf():
                return tree
            case Band():
                return replace(tree, child=visit(tree.child))
            case Sequence():
                children = [visit(c) for c in tree.children]
                for k in range(len(children) - 1):
                    a, b = children[k], children[k + 1]
                    if not (isinstance(a, Band) and isinstance(b, Band)):
                        continue
                    if (a.loops[0].name, b.loops[0].name) == (step.first, step.second):
                        done = True
                        children[k : k + 2] = [_fused(a, b)]
                        break
                return Sequence(children=tuple(children))

    state.tree = normalize(visit(state.tree))
    if not done:
        raise UserError(f"{step}: these loops do not follow each other in one sequence")
    _rename_outer(state, step.second, step.first)


def _fused(a: Band, b: Band) -> Band:
    loop = BandLoop(name=a.loops[0].name, rows=(*a.loops[0].rows, *b.loops[0].rows))
    rest = tuple(Band(loops=x.loops[1:], child=x.child, permutable=x.permutable) for x in (a, b))
    return Band(loops=(loop,), child=Sequence(children=rest))


def _annotate(state: Arranged, step: Parallel | Vectorize | Unroll) -> None:
    _require(state, step, step.loop)
    if step.loop in state.kinds:
        raise UserError(f"{step}: '{step.loop}' is {state.kinds[step.loop]} already")
    if isinstance(step, Parallel):
        state.kinds[step.loop] = "parallel"
        return
    if step.loop not in state.tiles:
        raise UserError(f"{step}: only the inside of a tile has a constant extent; tile it first")
    state.kinds[step.loop] = "vector" if isinstance(step, Vectorize) else "unroll"
