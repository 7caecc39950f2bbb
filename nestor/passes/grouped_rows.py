"""Rows of a softmax counted as the contractions around it count them: heads in groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nestor.ir.affine import Affine, AffineLike, affine, variable
from nestor.ir.expr import Expr, IndexExpr, Load, map_expr
from nestor.ir.monoid import is_builtin
from nestor.ir.program import Domain, IndexRange, Program, Statement, Tensor
from nestor.passes.analysis import contraction_roles, is_functional, program_facts
from nestor.passes.context import PassContext
from nestor.passes.points import is_private, plain_index
from nestor.passes.rewriting import (
    map_expressions,
    map_statement_affines,
    replace_statements,
)

_NAME = "group_rows"


def group_rows(program: Program, ctx: PassContext) -> Program:
    """Count the rows of a softmax in groups where what makes its scores does.

    Heads that share keys are read as ``K[h // 4]``; the contraction then runs over groups and
    members, and the softmax, which knows heads alone, would share no loop with it.

    Rewrite: ``S[4g+r, q, t] = Σ Q[4g+r, q, d]·K[g, t, d]; m[h, q] = max_t S[h, q, t]`` →
        ``S[g, r, q, t] = Σ …; m[4g+r, q] = max_t S[g, r, q, t]``; then the same for ``m``, and for
        all temps between.
    Legal when: ``h = 4g + r`` is one to one: the index runs from 0 to a constant multiple, is not
        reduced, and all accesses of a temp whose dimension is cut are known.
    Done for: what a maximum reads that a contraction has written in groups.
    """
    for _ in range(len(program.tensors)):
        changed: set[str] = set()
        for tensor, dimension, members, users in _cuts(program):
            if users & changed:
                continue  # looked at again once what it was found in is as it is now
            changed |= users
            ctx.changed(_NAME, tensor.name, f"dimension {dimension} counts groups of {members}")
            program = _cut(program, tensor, dimension, members)
        if not changed:
            break
    return program


def _cuts(program: Program) -> Iterator[tuple[Tensor, int, int, set[str]]]:
    """Dimensions of temps that can be cut: (temp, dimension, members of a group, who uses it)."""
    facts = program_facts(program)
    tensors = {t.name: t for t in program.tensors}
    near = _near_softmax(program)
    for s in program.statements:
        if not isinstance(s, Statement) or s.name not in near or not is_private(s, facts):
            continue
        tensor = tensors[s.writes[0].tensor]
        if tensor.layout is not None or any(t.alias_of == tensor.name for t in program.tensors):
            continue
        numbers = {*facts.readers.get(tensor.name, []), *facts.writers[tensor.name]}
        users = [program.statements[n] for n in sorted(numbers)]
        if not all(isinstance(u, Statement) and is_functional(u) for u in users):
            continue
        known = [u for u in users if isinstance(u, Statement)]
        for d in range(len(tensor.shape)):
            members = _members(known, tensor, d)
            if members is not None:
                yield tensor, d, members, {u.name for u in known}


def _near_softmax(program: Program) -> set[str]:
    """Statements that make or follow what a maximum reads that a contraction may have written."""
    statements = [s for s in program.statements if isinstance(s, Statement)]
    writers = {w.tensor: s for s in statements for w in s.writes}
    near: set[str] = set()
    for s in statements:
        r = s.reduction
        if r is None or r.monoid.name != "max" or not is_builtin(r.monoid) or r.scan:
            continue
        work = [s]
        while work:
            reader = work.pop()
            for load in reader.loads:
                writer = writers.get(load.tensor)
                if writer is None or writer.name in near:
                    continue
                near.add(writer.name)
                if contraction_roles(writer) is None:
                    work.append(writer)
    read_by: dict[str, list[Statement]] = {}
    for s in statements:
        for load in s.loads:
            read_by.setdefault(load.tensor, []).append(s)
    work = [s for s in statements if s.name in near]
    while work:
        s = work.pop()
        for w in s.writes:
            for reader in read_by.get(w.tensor, []):
                if reader.name not in near and contraction_roles(reader) is None:
                    near.add(reader.name)
                    work.append(reader)
    return near


def _accesses(s: Statement, tensor: str) -> Iterator[tuple[IndexExpr, ...]]:
    for w in s.writes:
        if w.tensor == tensor:
            yield w.indices
    for x in s.loads:
        if x.tensor == tensor:
            yield x.indices


def _members(users: list[Statement], tensor: Tensor, d: int) -> int | None:
    """Members of a group that some user of ``tensor`` counts and all users can."""
    places = [(u, a[d]) for u in users for a in _accesses(u, tensor.name)]
    if not tensor.shape[d].is_const or not all(isinstance(i, Affine) for _, i in places):
        return None
    extent = tensor.shape[d].const
    for user, index in places:
        assert isinstance(index, Affine)
        for atom, coefficient in index.terms:
            if coefficient != 1 or not isinstance(atom, str) or len(index.terms) < 2:
                continue
            if user.reduction is not None and atom in user.reduction.indices:
                continue  # what is summed is better counted as one
            members = _extent(user, atom)
            if members is None or members < 2 or extent % members:
                continue
            if all(isinstance(i, Affine) and _fits(u, i, extent, members) for u, i in places):
                return members
    return None


def _fits(user: Statement, index: Affine, extent: int, members: int) -> bool:
    """Whether ``index`` counts groups of ``members``, or is a plain index that can."""
    plain = plain_index(index)
    if plain is not None and plain in user.domain.names:
        reduction = user.reduction
        reduced = reduction is not None and (
            plain in reduction.indices or reduction.state_indices is not None
        )
        bounding = any(plain in (r.lower.variables() | r.upper.variables()) for r in _ranges(user))
        ordered = len(user.order) > 1
        return _extent(user, plain) == extent and not (reduced or bounding or ordered)
    return _parts(user, index, members) is not None


def _ranges(user: Statement) -> tuple[IndexRange, ...]:
    return user.domain.ranges


def _extent(user: Statement, name: str) -> int | None:
    """Extent of an index that runs from 0 to a constant; None for others."""
    if name not in user.domain.names:
        return None
    r = user.domain.range_of(name)
    return r.upper.const if r.lower == affine(0) and r.upper.is_const else None


def _parts(user: Statement, index: Affine, members: int) -> tuple[Affine, Affine] | None:
    """(group, member) of ``members * group + member``."""
    own = [a for a, c in index.terms if c == 1 and isinstance(a, str)]
    if len(own) != 1 or index.const or _extent(user, own[0]) != members:
        return None
    rest = index - variable(own[0])
    if any(c % members for _, c in rest.terms):
        return None
    return Affine(tuple((a, c // members) for a, c in rest.terms), 0), variable(own[0])


def _cut(program: Program, tensor: Tensor, d: int, members: int) -> Program:
    """``program`` with dimension ``d`` of ``tensor`` as groups and members."""
    groups = tensor.shape[d].const // members
    shape = (*tensor.shape[:d], affine(groups), affine(members), *tensor.shape[d + 1 :])
    made = replace(tensor, shape=shape)
    out = []
    for s in program.statements:
        if isinstance(s, Statement) and any(_accesses(s, tensor.name)):
            s = _with_groups(s, tensor.name, d, members)
            s = _with_places(s, made, d, members)
        out.append(s)
    return replace_statements(
        program, out, [made if t.name == tensor.name else t for t in program.tensors]
    )


def _with_groups(s: Statement, tensor: str, d: int, members: int) -> Statement:
    """``s`` with each plain index at dimension ``d`` of ``tensor`` split into group and member."""
    places = [indices[d] for indices in _accesses(s, tensor)]
    plain = [plain_index(index) for index in places if isinstance(index, Affine)]
    for name in dict.fromkeys(n for n in plain if n in s.domain.names):
        assert name is not None
        s = _split_index(s, name, members)
    return s


def _split_index(s: Statement, name: str, members: int) -> Statement:
    extent = _extent(s, name)
    assert extent is not None
    member = f"{name}r"
    while member in s.domain.names:
        member += "r"
    mapping: dict[str, AffineLike] = {name: variable(name) * members + variable(member)}
    ranges: list[IndexRange] = []
    for r in s.domain.ranges:
        if r.name != name:
            ranges.append(r)
            continue
        ranges.append(replace(r, upper=affine(extent // members)))
        ranges.append(IndexRange(name=member, lower=affine(0), upper=affine(members)))
    constraints = tuple(c.substitute(mapping) for c in s.domain.constraints)
    moved = map_statement_affines(s, lambda a: a.substitute(mapping))
    return replace(moved, domain=Domain(ranges=tuple(ranges), constraints=constraints))


def _with_places(s: Statement, tensor: Tensor, d: int, members: int) -> Statement:
    """``s`` with the accesses of ``tensor`` in its new shape."""

    def moved(indices: tuple[IndexExpr, ...]) -> tuple[IndexExpr, ...]:
        index = indices[d]
        assert isinstance(index, Affine)
        parts = _parts(s, index, members)
        assert parts is not None
        return (*indices[:d], *parts, *indices[d + 1 :])

    def visit(node: Expr) -> Expr:
        if isinstance(node, Load) and node.tensor == tensor.name:
            return replace(node, indices=moved(node.indices))
        return node

    s = map_expressions(s, lambda e: map_expr(e, visit))
    writes = tuple(
        replace(w, indices=moved(w.indices)) if w.tensor == tensor.name else w for w in s.writes
    )
    return replace(s, writes=writes)
