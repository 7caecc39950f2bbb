"""A Program's own order as a schedule tree: the nest as written."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as List

from nestor.errors import UserError
from nestor.ir.affine import variable
from nestor.ir.names import Names
from nestor.ir.program import Extern, Program, Statement
from nestor.ir.schedule_tree import Band, BandLoop, Leaf, Sequence, Tree


def program_tree(program: Program) -> Tree:
    """The tree that runs ``program`` in the order of its statements.

    A loop is called by the index of its first statement; a name that is taken gets ``.2``, ``.3``…
    Indices that are in no order (unordered, or reduced) become inner loops of their statement.
    Raises: ``UserError`` for an ``Extern``, which has no instances.
    """
    statements = []
    for s in program.statements:
        if isinstance(s, Extern):
            raise UserError(f"kernel '{program.name}': extern '{s.name}' has no loops")
        statements.append(s)
    return normalize(_build(statements, 0, loop_names()))


def loop_names(taken: Iterable[str] = ()) -> Names:
    """Names of loops that are not ``taken``."""
    return Names(taken, separator=".", first=2)


def _build(statements: List[Statement], depth: int, names: Names) -> Tree:
    """The tree of statements whose orders agree before position ``depth`` (an even number)."""
    groups: dict[int, list[Statement]] = {}
    for s in statements:
        position = s.order[depth]
        assert isinstance(position, int)
        groups.setdefault(position, []).append(s)
    children: list[Tree] = []
    for position in sorted(groups):
        ending = [s for s in groups[position] if len(s.order) == depth + 1]
        going_on = [s for s in groups[position] if len(s.order) > depth + 1]
        children += [_leaf(s, names) for s in ending]
        if going_on:
            loop = BandLoop(
                name=names.fresh(str(going_on[0].order[depth + 1])),
                rows=tuple((s.name, variable(str(s.order[depth + 1]))) for s in going_on),
            )
            children.append(Band(loops=(loop,), child=_build(going_on, depth + 2, names)))
    return children[0] if len(children) == 1 else Sequence(children=tuple(children))


def _leaf(statement: Statement, names: Names) -> Tree:
    """The statement, within loops over what its order leaves open."""
    leaf = Leaf(statement=statement.name)
    rest = [n for n in statement.domain.names if n not in statement.order]
    if not rest:
        return leaf
    loops = tuple(
        BandLoop(name=names.fresh(n), rows=((statement.name, variable(n)),)) for n in rest
    )
    return Band(loops=loops, child=leaf)


def normalize(tree: Tree) -> Tree:
    """The same order with perfect nests as one band, and no sequence in a sequence or of one."""
    match tree:
        case Leaf():
            return tree
        case Band():
            child = normalize(tree.child)
            if not tree.loops:
                return child
            if isinstance(child, Band):
                permutable = tree.permutable and child.permutable
                loops = (*tree.loops, *child.loops)
                return Band(loops=loops, child=child.child, permutable=permutable)
            return Band(loops=tree.loops, child=child, permutable=tree.permutable)
        case Sequence():
            children: list[Tree] = []
            for item in map(normalize, tree.children):
                children += item.children if isinstance(item, Sequence) else (item,)
            return children[0] if len(children) == 1 else Sequence(children=tuple(children))
