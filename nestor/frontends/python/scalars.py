"""Scalars of a kernel: each becomes an expression where it is used, or a temporary.

First, unrelated lives of one name are told apart (``split_lives``). Then a scalar that is assigned
at one place is substituted where that is exact (``substitute_scalars``): nothing that its value
reads changes in between. What is left becomes a temporary (``program``), with one cell for each
iteration of the loops in which every read sees a write of the same iteration: array privatisation.
Source: Feautrier, "Array expansion", ICS 1988; Tu and Padua, "Automatic array privatization", 1993.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nestor.frontends.python.tree import (
    Assign,
    Branch,
    Loop,
    Node,
    assigns,
    branches,
    read_exprs,
    rewrite,
    scalars_read,
    surely_runs,
    tensors_read,
)
from nestor.ir.affine import Affine
from nestor.ir.expr import Binary, Call, Expr, Select, Unary, Var, distinct_nodes
from nestor.ir.types import DType

MAX_COPIES = 4
"""Operations that substitution may repeat: cheap ones only, and not many."""

_DEAR = frozenset(("div", "pow", "mod", "rem", "floordiv", "truncdiv", "atan2"))


@dataclass(slots=True)
class Life:
    """One life of a scalar: ``name`` is unique; ``loops`` are those around all of it."""

    name: str
    dtype: DType
    loops: tuple[Loop, ...]


# ---------------------------------------------------------------------------------- lives


def split_lives(nodes: list[Node], types: dict[str, DType]) -> list[Life]:
    """Give every life of every scalar a name of its own.

    Raises: a located error for a scalar that may be read before it has a value.
    """
    lives: list[Life] = []
    for scalar in dict.fromkeys(a.target for a in assigns(nodes) if a.is_scalar):
        if _flow(nodes, scalar)[0]:
            _refuse_unassigned(nodes, scalar)
        _split(nodes, scalar, (), types[scalar], lives)
    return lives


def _flow(nodes: Sequence[Node], scalar: str) -> tuple[bool, bool]:
    """Whether ``nodes`` may read ``scalar`` from before, and whether they surely assign it."""
    for node in nodes:
        exposed, assigned = _flow_of(node, scalar)
        if exposed or assigned:
            return exposed, assigned
    return False, False


def _flow_of(node: Node, scalar: str) -> tuple[bool, bool]:
    match node:
        case Assign():
            return scalar in scalars_read(node), node.is_scalar and node.target == scalar
        case Loop():
            exposed, assigned = _flow(node.body, scalar)
            return exposed, assigned and surely_runs(node)
        case Branch():
            if node.test == scalar:
                return True, False
            first, second = _flow(node.then, scalar), _flow(node.otherwise, scalar)
            return first[0] or second[0], first[1] and second[1]


def _refuse_unassigned(nodes: list[Node], scalar: str) -> None:
    """Point at a read of ``scalar`` that no assignment surely precedes."""
    name = scalar.rsplit(".", 1)[-1]
    for node in nodes:
        exposed, _ = _flow_of(node, scalar)
        if not exposed:
            continue
        match node:
            case Assign():
                raise node.source.wrong(
                    node.at,
                    f"'{name}' may be read before it has a value (a loop may run zero times, "
                    "an `if` may not be taken)",
                    f"assign to {name} first",
                )
            case Loop():
                _refuse_unassigned(node.body, scalar)
            case Branch():
                _refuse_unassigned(node.then, scalar)
                _refuse_unassigned(node.otherwise, scalar)


def mentions_scalar(node: Node, scalar: str) -> bool:
    """Whether ``scalar`` is read or assigned in ``node``."""
    if any(b.test == scalar for b in branches([node])):
        return True
    return any(
        scalar in scalars_read(a) or (a.is_scalar and a.target == scalar) for a in assigns([node])
    )


def _split(
    nodes: list[Node], scalar: str, loops: tuple[Loop, ...], dtype: DType, lives: list[Life]
) -> None:
    """Cut ``nodes`` where the scalar's value is needed no longer; a piece that is one loop is cut
    further inside. The scalar is dead before and after ``nodes``."""
    live = False
    is_live_before = [False] * len(nodes)
    for k in reversed(range(len(nodes))):
        exposed, assigned = _flow_of(nodes[k], scalar)
        live = exposed or (live and not assigned)
        is_live_before[k] = live
    start = 0
    for end in range(1, len(nodes) + 1):
        if end < len(nodes) and is_live_before[end]:
            continue
        piece = [n for n in nodes[start:end] if mentions_scalar(n, scalar)]
        start = end
        if len(piece) == 1 and isinstance(piece[0], Loop):
            _split(piece[0].body, scalar, (*loops, piece[0]), dtype, lives)
        elif len(piece) == 1 and isinstance(piece[0], Branch) and piece[0].test != scalar:
            _split(piece[0].then, scalar, loops, dtype, lives)
            _split(piece[0].otherwise, scalar, loops, dtype, lives)
        elif piece:
            name = f"{scalar}#{len(lives)}"
            lives.append(Life(name, dtype, loops))
            _rename(piece, scalar, name)


def _rename(nodes: list[Node], scalar: str, name: str) -> None:
    for branch in branches(nodes):
        if branch.test == scalar:
            branch.test = name
    for assign in assigns(nodes):
        rewrite(
            assign,
            lambda e: (
                Var(name=name, dtype=e.dtype) if isinstance(e, Var) and e.name == scalar else e
            ),
        )
        if assign.is_scalar and assign.target == scalar:
            assign.target = name


def is_written_by(loop: Loop) -> bool:
    """Whether some array element written in the loop depends on its index."""
    return any(
        isinstance(i, Affine) and loop.index in i.variables()
        for a in assigns(loop.body)
        if a.indices is not None
        for i in a.indices
    )


# ---------------------------------------------------------------------------------- substitution


def substitute_scalars(nodes: list[Node], lives: list[Life]) -> list[Life]:
    """Substitute the scalars for which that is exact and cheap; the lives that are left."""
    left: list[Life] = []
    for life in lives:
        definitions = [a for a in assigns(nodes) if a.is_scalar and a.target == life.name]
        if len(definitions) == 1 and _substitute(nodes, definitions[0]):
            continue
        left.append(life)
    return left


def _substitute(nodes: list[Node], definition: Assign) -> bool:
    block = next(b for b in _blocks(nodes) if any(n is definition for n in b))
    at = next(k for k, n in enumerate(block) if n is definition)
    name = definition.target
    users = [k for k in range(at + 1, len(block)) if mentions_scalar(block[k], name)]
    if users and not _is_unchanged(definition, block[at + 1 : users[-1] + 1]):
        return False
    uses = [a for k in users for a in assigns([block[k]]) if name in scalars_read(a)]
    if len(uses) != sum(name in scalars_read(a) for a in assigns(nodes)):
        return False  # used outside the block, after a loop that surely runs
    is_local = all(isinstance(block[k], Assign) for k in users)
    if not _is_worth_it(definition.value, uses, name, is_local):
        return False
    for use in uses:
        rewrite(use, lambda e: definition.value if isinstance(e, Var) and e.name == name else e)
    del block[at]
    return True


def _blocks(nodes: list[Node]) -> Iterator[list[Node]]:
    yield nodes
    for node in nodes:
        match node:
            case Loop():
                yield from _blocks(node.body)
            case Branch():
                yield from _blocks(node.then)
                yield from _blocks(node.otherwise)


def _is_unchanged(definition: Assign, region: list[Node]) -> bool:
    """Nothing that the value reads is written in ``region``, but by its last node when that is an
    assignment, which reads before it writes."""
    tensors, scalars = tensors_read(definition), scalars_read(definition)
    writers = list(assigns(region))
    if isinstance(region[-1], Assign):
        writers.pop()
    return all(w.target not in scalars if w.is_scalar else w.target not in tensors for w in writers)


def _is_worth_it(value: Expr, uses: list[Assign], name: str, is_local: bool) -> bool:
    """One use beside the definition, or a value that is cheap to compute again."""
    count = sum(
        isinstance(n, Var) and n.name == name for u in uses for e in read_exprs(u) for n in _all(e)
    )
    if is_local and count <= 1:
        return True
    operations = 0
    for node in distinct_nodes(value):
        match node:
            case Binary(op=op):
                operations += MAX_COPIES + 1 if op in _DEAR else 1
            case Unary(op=op):
                operations += 1 if op in ("neg", "abs", "not") else MAX_COPIES + 1
            case Select():
                operations += 1
            case Call():
                operations += MAX_COPIES + 1
    return operations * max(count, 1) <= 4 * MAX_COPIES and operations <= MAX_COPIES


def _all(node: Expr) -> Iterator[Expr]:
    from nestor.ir.expr import walk

    return walk(node)
