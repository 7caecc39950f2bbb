"""Attention of few queries in parts of its keys, which a GPU's processors take at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Expr, Load, Var, loads, map_expr
from nestor.ir.names import Names
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Program,
    Reduction,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.analysis import ProgramFacts, is_functional, program_facts
from nestor.passes.context import PassContext
from nestor.passes.online_attention import is_online
from nestor.passes.rewriting import (
    in_order,
    map_expressions,
    map_statement_affines,
    names_of,
    renumber,
    replace_statements,
)
from nestor.target.gpu import GpuTarget

_NAME = "cut_keys"

TILE = 64
"""Queries of a program, and what numbers of keys are multiples of."""

LEAST_KEYS = 256
"""Of a part: fewer take no longer than combining parts does."""


@dataclass(frozen=True, slots=True)
class _Scores:
    """A statement that makes scores, or weighs by them; its name for the keys, and of each tensor
    of scores that it touches the dimension along which these are."""

    statement: Statement
    key: str
    places: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Part:
    """Keys ``first * size + u`` for ``u`` below ``count``, for each of ``parts`` values of a
    statement's own index ``first``, or for the one that it is."""

    number: int
    parts: int | None
    size: int
    count: int


def cut_keys(program: Program, ctx: PassContext) -> Program:
    """Cut the keys of attentions whose queries alone do not feed a GPU's processors.

    Rewrite: ``X[q,t] = …; O[q,d] = f(⊕_t (X[q,t], 1, V[t,d]))`` → for parts b of ``size`` keys
        ``X[q,b,u] = …; P[b,q,d] = ⊕_u (X[q,b,u], 1, V[b*size + u,d])``, then
        ``O[q,d] = f(⊕_b P[b,q,d])``; what ``size`` does not divide is one more part.
    Legal when: nobody else reads X. It reassociates, as the processors of the target demand.
    Source: Dao et al., "Flash-Decoding for long-context inference", 2023.
    """
    target = ctx.target
    assert isinstance(target, GpuTarget)
    for number in range(len(program.statements)):
        s = program.statements[number]
        if not isinstance(s, Statement) or not is_online(s):
            continue
        parts = _parts(s, target.processors)
        scores = _scores_of(s, program, program_facts(program)) if parts else None
        if scores is not None:
            program = _rewritten(program, scores, parts)
            ctx.changed(_NAME, s.name, f"{sum(p.parts or 1 for p in parts)} parts of its keys")
    return program


def _parts(s: Statement, processors: int) -> list[_Part]:
    """How the keys of ``s`` are cut; nothing where they are better left alone."""
    r = s.reduction
    assert r is not None and r.state_indices is not None and r.state_indices[0] is not None
    ranges = {x.name: x for x in s.domain.ranges}
    if s.domain.constraints or len(r.indices) != 1 or not is_functional(s):
        return []
    if not all(x.upper.is_const and x.lower == affine(0) for x in ranges.values()):
        return []
    extents = {n: x.upper.const for n, x in ranges.items()}
    rows = [extents[n] for n in r.state_indices[0]]
    keys, queries = extents[r.indices[0]], max(rows, default=1)
    programs = prod(rows) // queries * -(-queries // TILE)
    wanted = min(2 * processors // programs, keys // LEAST_KEYS)
    if wanted < 2:
        return []
    size = -(-keys // wanted)
    size += -size % TILE
    parts, rest = divmod(keys, size)
    found = [_Part(0, parts, size, size)]
    return [*found, _Part(parts, None, size, rest)] if rest else found


def _scores_of(s: Statement, program: Program, facts: ProgramFacts) -> list[_Scores] | None:
    """All that makes the scores of ``s`` and nothing else, and ``s``; None where others read them
    or they are not made key by key."""
    assert s.reduction is not None
    writers: dict[str, list[Statement]] = {}
    for other in program.statements:
        if isinstance(other, Statement):
            for w in other.writes:
                writers.setdefault(w.tensor, []).append(other)
    (key,) = s.reduction.indices
    found = [_Scores(s, key, {})]
    queue = [(found[0], load) for load in loads(s.elements[0])]
    while queue:
        user, load = queue.pop()
        if load.tensor in user.places or not facts.is_private_temp(load.tensor):
            continue
        places = [d for d, i in enumerate(load.indices) if i == affine(user.key)]
        made, readers = writers[load.tensor], facts.readers[facts.roots[load.tensor]]
        if len(places) != 1 or len(made) != 1 or len(readers) != 1 or load.predicate:
            if user.statement is s:
                return None
            continue
        maker = _maker(made[0], load.tensor, places[0])
        if maker is None:
            if user.statement is s:
                return None
            continue
        user.places[load.tensor] = maker.places[load.tensor] = places[0]
        found.append(maker)
        if maker.statement.reduction is None:
            queue += [(maker, x) for e in maker.statement.elements for x in loads(e)]
    return found if len(found) > 1 else None


def _maker(s: Statement, tensor: str, place: int) -> _Scores | None:
    """How a statement makes scores, if it makes all of them, each key by itself."""
    if not is_functional(s) or s.domain.constraints or len(s.writes) != 1:
        return None
    index = s.writes[0].indices[place]
    if not isinstance(index, Affine) or str(index) not in s.domain.names:
        return None
    key = s.domain.range_of(str(index))
    if key.lower != affine(0) or not key.upper.is_const:
        return None
    if s.reduction is not None and (s.reduction.scan or key.name in s.reduction.indices):
        return None
    bounds = (b for x in s.domain.ranges for b in (x.lower, x.upper))
    if any(key.name in b.variables() for b in bounds):
        return None
    if any(x.tensor == tensor for x in s.loads):
        return None
    return _Scores(s, key.name, {})


def _rewritten(program: Program, scores: list[_Scores], parts: list[_Part]) -> Program:
    names = names_of(program)
    tensors = {t.name: t for t in program.tensors}
    last, makers = scores[0], {x.statement.name: x for x in scores[1:]}
    s, r = last.statement, last.statement.reduction
    assert r is not None
    count = sum(p.parts or 1 for p in parts)
    free = tuple(x for x in s.domain.ranges if x.name not in r.indices)
    made = tuple(
        Tensor(
            name=names.fresh(f"{s.writes[0].tensor}_part"),
            shape=(affine(count), *(x.upper for x in free)),
            dtype=dtype,
            role="temp",
        )
        for dtype in r.monoid.dtypes
    )
    tensors.update({t.name: t for t in made})
    renamed = [_tensors_of(part, scores, tensors, names) for part in parts]
    out: list[AnyStatement] = []
    for statement in in_order(program.statements):
        if statement.name in makers:
            maker = makers[statement.name]
            out += [
                _part_of(maker, part, new, names)[0]
                for part, new in zip(parts, renamed, strict=True)
            ]
        elif statement is s:
            for part, new in zip(parts, renamed, strict=True):
                out.append(_weighed(last, part, new, made, names))
            out.append(_combined(s, count, made))
        else:
            out.append(statement)
    gone = {name for x in scores for name in x.places}
    kept = [t for t in tensors.values() if t.name not in gone]
    return replace_statements(program, renumber(out), kept)


def _tensors_of(
    part: _Part, scores: list[_Scores], tensors: dict[str, Tensor], names: Names
) -> dict[str, str]:
    """Scores of a part alone: their tensors' new names by the old ones."""
    new: dict[str, str] = {}
    for name, place in {n: p for x in scores for n, p in x.places.items()}.items():
        old = tensors[name]
        new[name] = names.fresh(f"{name}_part")
        own = (affine(part.count),) if part.parts is None else map(affine, (part.parts, part.count))
        shape = (*old.shape[:place], *own, *old.shape[place + 1 :])
        tensors[new[name]] = replace(old, name=new[name], shape=shape, layout=None)
    return new


def _part_of(
    scores: _Scores, part: _Part, renamed: dict[str, str], names: Names
) -> tuple[Statement, str | None]:
    """A statement for one part of the keys, and its index over parts."""
    s, key = scores.statement, scores.key
    b = None if part.parts is None else Names(list(s.domain.names)).fresh("b")
    first = affine(part.number) if b is None else variable(b)
    moved = map_statement_affines(
        s, lambda a: a.substitute({key: first * part.size + variable(key)})
    )
    own = (variable(key),) if b is None else (variable(b), variable(key))

    def place(node: Expr) -> Expr:
        if not isinstance(node, Load) or node.tensor not in scores.places:
            return node
        at = scores.places[node.tensor]
        indices = (*node.indices[:at], *own, *node.indices[at + 1 :])
        return replace(node, tensor=renamed[node.tensor], indices=indices)

    moved = map_expressions(moved, lambda e: map_expr(e, place))
    writes = []
    for w in moved.writes:
        at = scores.places.get(w.tensor)
        if at is not None:
            indices = (*w.indices[:at], *own, *w.indices[at + 1 :])
            w = Write(tensor=renamed[w.tensor], indices=indices)
        writes.append(w)
    ranges = tuple(
        replace(x, upper=affine(part.count)) if x.name == key else x for x in s.domain.ranges
    )
    if b is not None:
        assert part.parts is not None
        ranges = (IndexRange(name=b, lower=affine(0), upper=affine(part.parts)), *ranges)
    made = replace(
        moved, name=names.fresh(s.name), domain=Domain(ranges=ranges), writes=tuple(writes)
    )
    return made, b


def _weighed(
    last: _Scores, part: _Part, renamed: dict[str, str], made: tuple[Tensor, ...], names: Names
) -> Statement:
    """The states that a part of the keys leaves."""
    s, b = _part_of(last, part, renamed, names)
    r = s.reduction
    assert r is not None and r.state_indices is not None
    first = affine(part.number) if b is None else variable(b)
    free = [n for n in last.statement.domain.names if n not in r.indices]
    states = tuple(None if own is None or b is None else (*own, b) for own in r.state_indices)
    return replace(
        s,
        writes=tuple(
            Write(tensor=t.name, indices=(first, *(variable(n) for n in free))) for t in made
        ),
        reduction=Reduction(
            indices=r.indices,
            monoid=r.monoid,
            final=tuple(Var(name=f"s{k}", dtype=t.dtype) for k, t in enumerate(made)),
            state_indices=r.state_indices if b is None else states,
        ),
    )


def _combined(s: Statement, count: int, made: tuple[Tensor, ...]) -> Statement:
    """All parts' states as one."""
    r = s.reduction
    assert r is not None
    free = tuple(x for x in s.domain.ranges if x.name not in r.indices)
    b = Names(list(s.domain.names)).fresh("b")
    indices = (variable(b), *(variable(x.name) for x in free))
    return replace(
        s,
        domain=Domain(ranges=(*free, IndexRange(name=b, lower=affine(0), upper=affine(count)))),
        elements=tuple(Load(tensor=t.name, indices=indices, dtype=t.dtype) for t in made),
        reduction=replace(r, indices=(b,), state_indices=None),
    )
