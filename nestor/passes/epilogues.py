"""What is done to a reduction's results, element by element, as a part of the reduction."""

from __future__ import annotations

from dataclasses import replace

from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, Load, map_expr
from nestor.ir.names import Names
from nestor.ir.program import Program, Statement
from nestor.passes.context import PassContext
from nestor.passes.dead_code import remove_dead_code
from nestor.passes.rewriting import (
    alias_roots,
    in_order,
    is_sequential,
    rename_indices,
    renumber,
    replace_statements,
    touched,
)


def absorb_epilogues(program: Program, ctx: PassContext) -> Program:
    """Take a pointwise statement into the final map of the reduction that it reads.

    Rewrite: ``T[i] = f(Σ_k e(i, k)); Y[i] = g(T[i], …)`` → ``Y[i] = g(f(Σ_k e(i, k)), …)``, at the
        place of the second.
    Legal when: nobody else reads T, both have the same instances, one for each element, and nothing
        that the first reads is overwritten in between.
    """
    while (found := _first(program)) is not None:
        reduction, user, merged = found
        statements = [
            merged if s is user else s for s in in_order(program.statements) if s is not reduction
        ]
        ctx.changed("absorb_epilogues", user.name, f"is done to the results of '{reduction.name}'")
        program = replace_statements(program, renumber(statements))
    return remove_dead_code(program, ctx)


def _first(program: Program) -> tuple[Statement, Statement, Statement] | None:
    """A reduction, its only reader, and both in one."""
    tensors = {t.name: t for t in program.tensors}
    roots = alias_roots(tensors)
    shared = {t.name for t in program.tensors if roots[t.name] != t.name}
    shared |= {roots[n] for n in shared}
    ordered = in_order(program.statements)
    readers: dict[str, list[object]] = {}
    writers: dict[str, list[object]] = {}
    for s in ordered:
        read, written = touched([s])
        for name in read:
            readers.setdefault(name, []).append(s)
        for name in written:
            writers.setdefault(name, []).append(s)
    for at, user in enumerate(ordered):
        if not isinstance(user, Statement) or not _is_pointwise(user):
            continue
        for name in dict.fromkeys(x.tensor for x in user.loads):
            if tensors[name].role != "temp" or name in shared or readers[name] != [user]:
                continue
            makers = writers.get(name, [])
            maker = makers[0] if len(makers) == 1 else None
            if not isinstance(maker, Statement) or not _may_end_otherwise(maker):
                continue
            between = ordered[ordered.index(maker) + 1 : at]
            overwritten = {n for n, who in writers.items() if any(s in between for s in who)}
            taken = {roots[x.tensor] for x in maker.loads}
            merged = _merged(maker, user, name)
            if merged is not None and not taken & {roots[n] for n in overwritten}:
                return maker, user, merged
    return None


def _is_pointwise(s: Statement) -> bool:
    return s.reduction is None and s.scatter is None and not is_sequential(s)


def _may_end_otherwise(s: Statement) -> bool:
    """Whether its final map may be any: one result, stored once."""
    r = s.reduction
    return r is not None and not (r.scan or r.into or is_sequential(s)) and len(s.writes) == 1


def _merged(maker: Statement, user: Statement, name: str) -> Statement | None:
    """Both as one statement; None where their elements do not correspond one to one."""
    assert maker.reduction is not None
    if len(user.writes) != 1:
        return None
    free = [n for n in maker.domain.names if n not in maker.reduction.indices]
    places: dict[str, str] | None = None
    for load in user.loads:
        if load.tensor != name:
            continue
        pairs = _pairs(maker, load, free)
        if pairs is None or load.predicate or places not in (None, pairs):
            return None
        places = pairs
    if places is None or sorted(places.values()) != sorted(user.domain.names):
        return None
    names = Names(user.domain.names)
    renamed = rename_indices(
        maker, {**{n: names.fresh(n) for n in maker.reduction.indices}, **places}
    )
    reduced = [r for r in renamed.domain.ranges if r.name not in user.domain.names]
    own = {r.name: r for r in renamed.domain.ranges if r.name in user.domain.names}
    if own != {r.name: r for r in user.domain.ranges}:
        return None
    if renamed.domain.constraints or user.domain.constraints:
        return None
    assert renamed.reduction is not None
    (result,) = renamed.reduction.final

    def visit(node: Expr) -> Expr:
        return result if isinstance(node, Load) and node.tensor == name else node

    (element,) = user.elements
    return replace(
        renamed,
        name=user.name,
        order=user.order,
        domain=replace(user.domain, ranges=(*user.domain.ranges, *reduced)),
        writes=user.writes,
        reduction=replace(renamed.reduction, final=(map_expr(element, visit),)),
        origin=maker.origin or user.origin,
    )


def _pairs(maker: Statement, load: Load, free: list[str]) -> dict[str, str] | None:
    """The reader's index for each free one of the maker; None if they are not one to one."""
    found: dict[str, str] = {}
    for w, r in zip(maker.writes[0].indices, load.indices, strict=True):
        if not isinstance(w, Affine) or not isinstance(r, Affine):
            return None
        if w.is_const or r.is_const:
            if w != r:
                return None
            continue
        one, other = _plain(w), _plain(r)
        if one is None or other is None or one in found:
            return None
        found[one] = other
    is_one_to_one = sorted(found) == sorted(free) and len(set(found.values())) == len(found)
    return found if is_one_to_one else None


def _plain(index: Affine) -> str | None:
    """The index that an affine is; None if it is anything else."""
    ((atom, factor), *rest) = index.terms
    plain = isinstance(atom, str) and factor == 1 and not rest and not index.const
    return str(atom) if plain else None
