"""Random schedules, and random damage to loop nests: what the fuzz tests feed the checker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from nestor.errors import UserError
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Load, map_affines, map_expr
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node
from nestor.ir.program import Program, Statement
from nestor.ir.schedule import (
    Accumulate,
    ComputeAt,
    Fuse,
    Parallel,
    Reorder,
    Schedule,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.passes.nest import apply_step, initial_state
from nestor.passes.nest_builder import build_nest

Path = tuple[int, ...]


def random_schedule(kernel: Program, rng: Random, steps: int) -> tuple[Schedule, LoopNest] | None:
    """Up to ``steps`` random steps that fit, and their nest; None if it cannot be written."""
    state = initial_state(kernel)
    chosen: list[Step] = []
    for _ in range(steps):
        step = _random_step(kernel, state, rng)
        try:
            apply_step(state, step)
            chosen.append(step)
        except UserError:
            continue
    try:
        return tuple(chosen), build_nest(state)
    except UserError:
        return None


def _random_step(kernel: Program, state: object, rng: Random) -> Step:
    loops = [n for n, x in state.loops.items() if not x.tiled]  # type: ignore[attr-defined]
    name = rng.choice([s.name for s in kernel.statements])
    user = state.statements[name]  # type: ignore[attr-defined]
    loop = rng.choice(loops)
    kinds = "tile tile fuse fuse fuse reorder parallel vector unroll at acc split"
    kind = rng.choice(kinds.split())
    if kind == "tile":
        return Tile(loop=loop, size=rng.choice([2, 3, 4]))
    if kind == "fuse":
        return _random_fuse(kernel, state, loops, rng)
    if kind == "reorder":
        order = list(user.loops)
        rng.shuffle(order)
        return Reorder(statement=name, loops=tuple(order))
    if kind == "parallel":
        return Parallel(loop=loop)
    if kind == "vector":
        return Vectorize(loop=user.loops[-1] if user.loops else loop)
    if kind == "unroll":
        return Unroll(loop=loop)
    if kind == "at":
        return ComputeAt(tensor=rng.choice([t.name for t in kernel.tensors]), scope="local")
    if kind == "split":
        reduced = [n for u in state.statements.values() for n in u.reduced]  # type: ignore[attr-defined]
        return SplitReduction(loop=rng.choice(sorted(reduced) or [loop]), lanes=rng.choice([2, 4]))
    return Accumulate(statement=name, scope=rng.choice(["register", "local"]))


def _random_fuse(kernel: Program, state: object, loops: list[str], rng: Random) -> Step:
    """Loops of the same depth and extent of different statements, where there are any."""
    users = list(state.statements.values())  # type: ignore[attr-defined]
    options = [
        Fuse(first=a.loops[d], second=b.loops[d])
        for x, a in enumerate(users)
        for b in users[x + 1 :]
        for d in range(min(len(a.loops), len(b.loops)))
        if a.loops[:d] == b.loops[:d] and a.loops[d] != b.loops[d]
    ]
    return rng.choice(options or [Fuse(first=rng.choice(loops), second=rng.choice(loops))])


# Damage


def nodes_of(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    yield path, node
    for k, child in enumerate(_children(node)):
        yield from nodes_of(child, (*path, k))


def _children(node: Node) -> tuple[Node, ...]:
    match node:
        case Loop() | Alloc():
            return (node.body,)
        case Guard():
            return (node.body,) if node.orelse is None else (node.body, node.orelse)
        case Block():
            return node.body
    return ()


def _with_children(node: Node, new: tuple[Node, ...]) -> Node:
    match node:
        case Loop() | Alloc():
            return replace(node, body=new[0])
        case Guard():
            return replace(node, body=new[0], orelse=new[1] if len(new) > 1 else None)
        case Block():
            return Block(body=new)
    return node


def replaced(node: Node, path: Path, f: Callable[[Node], Node]) -> Node:
    """The tree with ``f`` applied to the node at ``path``."""
    if not path:
        return f(node)
    new = list(_children(node))
    new[path[0]] = replaced(new[path[0]], path[1:], f)
    return _with_children(node, tuple(new))


def mutate(nest: LoopNest, rng: Random) -> LoopNest | None:
    """One small random change; None if the chosen kind does not apply."""
    kind = rng.choice(list(_MUTATIONS))
    body = _MUTATIONS[kind](nest, rng)
    return None if body is None or body == nest.body else replace(nest, body=body)


def _pick(nest: LoopNest, rng: Random, wanted: type) -> tuple[Path, Node] | None:
    found = [(p, x) for p, x in nodes_of(nest.body) if isinstance(x, wanted)]
    return rng.choice(found) if found else None


def _change(
    nest: LoopNest, rng: Random, wanted: type, f: Callable[[Node], Node | None]
) -> Node | None:
    picked = _pick(nest, rng, wanted)
    if picked is None:
        return None
    new = f(picked[1])
    return None if new is None else replaced(nest.body, picked[0], lambda _: new)


def _bound(nest: LoopNest, rng: Random) -> Node | None:
    def f(x: Node) -> Node | None:
        assert isinstance(x, Loop)
        return replace(x, upper=(x.upper[0] + rng.choice([-1, 1]), *x.upper[1:]))

    return _change(nest, rng, Loop, f)


def _kind(nest: LoopNest, rng: Random) -> Node | None:
    def f(x: Node) -> Node | None:
        assert isinstance(x, Loop)
        constant = x.upper[0].is_const and x.lower == (affine(0),)
        return replace(x, kind=rng.choice(["serial", "parallel", "vector"][: 3 if constant else 2]))  # type: ignore[arg-type]

    return _change(nest, rng, Loop, f)


def _swap_loops(nest: LoopNest, rng: Random) -> Node | None:
    found = [
        (p, x) for p, x in nodes_of(nest.body) if isinstance(x, Loop) and isinstance(x.body, Loop)
    ]
    if not found:
        return None
    path, outer = rng.choice(found)
    assert isinstance(outer, Loop) and isinstance(outer.body, Loop)
    inner = outer.body
    new = replace(inner, body=replace(outer, body=inner.body))
    return replaced(nest.body, path, lambda _: new)


def _distribute(nest: LoopNest, rng: Random) -> Node | None:
    def f(x: Node) -> Node | None:
        assert isinstance(x, Loop)
        if not isinstance(x.body, Block):
            return None
        return Block(body=tuple(replace(x, body=b) for b in x.body.body))

    return _change(nest, rng, Loop, f)


def _fuse_siblings(nest: LoopNest, rng: Random) -> Node | None:
    def f(x: Node) -> Node | None:
        assert isinstance(x, Block)
        for k, (a, b) in enumerate(zip(x.body, x.body[1:])):
            if isinstance(a, Loop) and isinstance(b, Loop) and a.upper == b.upper:
                body = renamed(b.body, {b.index: affine(a.index)})
                both = replace(a, body=Block(body=(a.body, body)))
                return Block(body=(*x.body[:k], both, *x.body[k + 2 :]))
        return None

    return _change(nest, rng, Block, f)


def _shuffle(nest: LoopNest, rng: Random) -> Node | None:
    def f(x: Node) -> Node | None:
        assert isinstance(x, Block)
        order = list(x.body)
        if not order:
            return None
        a, b = rng.randrange(len(order)), rng.randrange(len(order))
        order[a], order[b] = order[b], order[a]
        return Block(body=tuple(order))

    return _change(nest, rng, Block, f)


def _drop_or_repeat(nest: LoopNest, rng: Random) -> Node | None:
    def f(x: Node) -> Node | None:
        assert isinstance(x, Block)
        if not x.body:
            return None
        at = rng.randrange(len(x.body))
        middle = () if rng.random() < 0.5 else (x.body[at],) * 2
        return Block(body=x.body[:at] + middle + x.body[at + 1 :])

    return _change(nest, rng, Block, f)


def _reverse(nest: LoopNest, rng: Random) -> Node | None:
    def f(x: Node) -> Node | None:
        assert isinstance(x, Loop)
        if len(x.lower) > 1 or len(x.upper) > 1:
            return None
        turned = x.upper[0] - 1 + x.lower[0] - affine(x.index)
        return replace(x, body=renamed(x.body, {x.index: turned}))

    return _change(nest, rng, Loop, f)


def _sink_alloc(nest: LoopNest, rng: Random) -> Node | None:
    """``Alloc(Loop(b)) → Loop(Alloc(b))`` or the other way round."""

    def f(x: Node) -> Node | None:
        if isinstance(x, Alloc) and isinstance(x.body, Loop):
            return replace(x.body, body=replace(x, body=x.body.body))
        if isinstance(x, Loop) and isinstance(x.body, Alloc):
            return replace(x.body, body=replace(x, body=x.body.body))
        return None

    return _change(nest, rng, rng.choice([Alloc, Loop]), f)


def _buffer_shape(nest: LoopNest, rng: Random) -> Node | None:
    def f(x: Node) -> Node | None:
        assert isinstance(x, Alloc)
        at = rng.randrange(len(x.buffers))
        old = x.buffers[at]
        if not old.shape:
            return None
        d = rng.randrange(len(old.shape))
        shape = (*old.shape[:d], old.shape[d] + rng.choice([-1, 1]), *old.shape[d + 1 :])
        buffers = (*x.buffers[:at], replace(old, shape=shape), *x.buffers[at + 1 :])
        return replace(x, buffers=buffers)

    return _change(nest, rng, Alloc, f)


def _guard(nest: LoopNest, rng: Random) -> Node | None:
    def f(x: Node) -> Node | None:
        assert isinstance(x, Guard)
        at = rng.randrange(len(x.conditions))
        new = x.conditions[at] + rng.choice([-1, 1])
        return replace(x, conditions=(*x.conditions[:at], new, *x.conditions[at + 1 :]))

    return _change(nest, rng, Guard, f)


def _compute_part(nest: LoopNest, rng: Random) -> Node | None:
    """Shift an index of a load, a store or the instance map, or drop a dependence on a loop."""

    def f(x: Node) -> Node | None:
        assert isinstance(x, Compute)
        what = rng.choice(["value", "store", "instance", "collapse", "predicate"])
        if what == "value":
            at = rng.randrange(len(x.values))
            new = map_affines(x.values[at], lambda a: _nudged(a, rng))
            return replace(x, values=(*x.values[:at], new, *x.values[at + 1 :]))
        if what == "predicate":
            at = rng.randrange(len(x.values))
            new = map_expr(
                x.values[at],
                lambda e: replace(e, predicate=(), other=None) if isinstance(e, Load) else e,
            )
            return replace(x, values=(*x.values[:at], new, *x.values[at + 1 :]))
        if what == "store":
            at = rng.randrange(len(x.stores))
            old = x.stores[at]
            indices = tuple(_nudged(i, rng) if isinstance(i, Affine) else i for i in old.indices)
            new_store = replace(old, indices=indices)
            return replace(x, stores=(*x.stores[:at], new_store, *x.stores[at + 1 :]))
        if what == "instance":
            if x.phase in ("init", "merge", "copy", "writeback"):
                return None  # the oracle does not look at these
            instance = tuple((n, _nudged(a, rng)) for n, a in x.instance)
            return replace(x, instance=instance)
        names = sorted({v for _, a in x.instance for v in a.variables()})
        if not names:
            return None
        return renamed(x, {rng.choice(names): affine(0)})

    return _change(nest, rng, Compute, f)


def _nudged(a: Affine, rng: Random) -> Affine:
    return a + rng.choice([-1, 1]) if rng.random() < 0.4 else a


def _shift_consistently(nest: LoopNest, rng: Random) -> Node | None:
    """Everything below a loop uses ``index + 1``: as a wrongly shifted fusion."""

    def f(x: Node) -> Node | None:
        assert isinstance(x, Loop)
        return replace(x, body=renamed(x.body, {x.index: affine(x.index) + rng.choice([-1, 1])}))

    return _change(nest, rng, Loop, f)


def renamed(node: Node, mapping: dict[str, Affine]) -> Node:
    """Substitute loop indices below ``node``."""

    def sub(a: Affine) -> Affine:
        return a.substitute(mapping)

    match node:
        case Compute():
            return replace(
                node,
                instance=tuple((n, sub(a)) for n, a in node.instance),
                stores=tuple(
                    replace(
                        s,
                        indices=tuple(
                            sub(i) if isinstance(i, Affine) else map_affines(i, sub)
                            for i in s.indices
                        ),
                    )
                    for s in node.stores
                ),
                values=tuple(map_affines(v, sub) for v in node.values),
            )
        case Loop():
            node = replace(
                node, lower=tuple(map(sub, node.lower)), upper=tuple(map(sub, node.upper))
            )
        case Guard():
            node = replace(node, conditions=tuple(map(sub, node.conditions)))
    return _with_children(node, tuple(renamed(c, mapping) for c in _children(node)))


_MUTATIONS: dict[str, Callable[[LoopNest, Random], Node | None]] = {
    "bound": _bound, "kind": _kind, "kind again": _kind, "swap": _swap_loops,
    "distribute": _distribute, "fuse": _fuse_siblings, "shuffle": _shuffle,
    "drop or repeat": _drop_or_repeat, "reverse": _reverse, "alloc": _sink_alloc,
    "buffer": _buffer_shape, "guard": _guard, "compute": _compute_part,
    "compute again": _compute_part, "shift": _shift_consistently,
}  # fmt: skip


def statement_count(kernel: Program) -> int:
    """How many statements a kernel has."""
    return sum(isinstance(s, Statement) for s in kernel.statements)
