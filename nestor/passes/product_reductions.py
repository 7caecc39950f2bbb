"""Find products whose results are only reduced: what a vocabulary's logits or distances are for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Binary, Expr, Load, Unary, loads, map_affines
from nestor.ir.monoid import is_builtin
from nestor.ir.program import AnyStatement, Program, Statement
from nestor.passes.analysis import (
    ContractionRoles,
    ProgramFacts,
    contraction_roles,
    is_functional,
    is_pointwise,
    read_tensors,
    written_tensors,
)
from nestor.passes.points import Names, is_private, merged_points
from nestor.passes.rewriting import first_position
from nestor.passes.statement_facts import reuse_extent


@dataclass(slots=True)
class ReducedProduct:
    """A contraction, pointwise statements over its whole result, and reductions of what they make.

    Attributes:
        roles: what the product is made of.
        names: for each statement (by name), what it calls the free indices of ``product``.
        key: the free index of ``product`` that every reduction runs over.
        pointwise: statements over all points of the product, in order.
        shifted: sums of ``exp(x - m)`` (by name) and the maximum whose result ``m`` is.
        picks: readers of single elements, at places that other tensors tell.
    """

    product: Statement
    roles: ContractionRoles
    names: dict[str, Names]
    key: str = ""
    pointwise: list[Statement] = field(default_factory=list)
    reductions: list[Statement] = field(default_factory=list)
    shifted: dict[str, Statement] = field(default_factory=dict)
    picks: list[Statement] = field(default_factory=list)

    def members(self) -> list[Statement]:
        """The statements that go away or change, but for ``picks``."""
        return [self.product, *self.pointwise, *self.reductions]

    def rows(self) -> list[str]:
        """Indices of the product that no reduction runs over."""
        reduced = self.product.reduction.indices if self.product.reduction else ()
        return [n for n in self.product.domain.names if n not in reduced and n != self.key]

    def whole(self) -> dict[str, Statement]:
        """Tensors of the product's size that nobody needs whole, and who writes them."""
        return {s.writes[0].tensor: s for s in (self.product, *self.pointwise)}

    def needed(self) -> list[Statement]:
        """Those of ``pointwise`` that reductions read, in order."""
        read = {x.tensor for s in self.reductions for x in s.loads}
        out: list[Statement] = []
        for s in reversed(self.pointwise):
            if s.writes[0].tensor in read:
                read |= {x.tensor for x in s.loads}
                out.insert(0, s)
        return out

    def results(self) -> dict[str, Statement]:
        """Tensors that the reductions write."""
        return {w.tensor: s for s in self.reductions for w in s.writes}

    def key_extent(self) -> int:
        """Terms of each reduction."""
        return self.product.domain.range_of(self.key).upper.const

    def moving_operand(self) -> Load | None:
        """The operand that moves with ``key``; None if both do, or neither."""
        if self.key in self.roles.m:
            return self.roles.a
        return self.roles.b if self.key in self.roles.n else None

    def reuse(self) -> int:
        """How many rows read the same elements of the operand that moves with ``key``."""
        others = self.roles.n if self.key in self.roles.m else self.roles.m
        return math.prod(reuse_extent(self.product, n) for n in others)


def find_reduced_product(
    product: AnyStatement, program: Program, facts: ProgramFacts
) -> ReducedProduct | None:
    """What becomes of the contraction ``product``, if nobody needs its result whole."""
    roles = contraction_roles(product)
    if roles is None or not isinstance(product, Statement) or not is_private(product, facts):
        return None
    if roles.windows or roles.k_a or roles.k_b or roles.free or not _is_box(product):
        return None
    assert product.reduction is not None
    reduced = product.reduction.indices
    own = {n: n for n in product.domain.names if n not in reduced}
    found = ReducedProduct(product, roles, {product.name: own})
    start = first_position(product)
    later = [s for s in program.statements if first_position(s) > start]
    for s in sorted(later, key=first_position):
        if not set(read_tensors(s)).isdisjoint(found.whole()) and not _add(found, s, facts):
            return None
    return found if found.reductions and _is_closed(found, program) else None


def _is_box(s: Statement) -> bool:
    return not s.domain.constraints and all(r.lower == affine(0) for r in s.domain.ranges)


def is_gather(load: Load) -> bool:
    """Whether a load's place depends on other tensors."""
    return any(not isinstance(i, Affine) for i in load.indices)


def _add(found: ReducedProduct, s: AnyStatement, facts: ProgramFacts) -> bool:
    """Take in ``s``, which reads what is found so far; False: it needs the product whole."""
    if not isinstance(s, Statement) or not is_functional(s):
        return False
    whole = found.whole()
    reads = [x for x in s.loads if x.tensor in whole]
    if all(is_gather(x) for x in reads):
        found.picks.append(s)
        return True
    names = None if any(is_gather(x) for x in reads) else _names(found, s, reads)
    if names is None or set(names.values()) != set(s.domain.names) or not _is_box(s):
        return False
    found.names[s.name] = names
    if s.reduction is None:
        found.pointwise.append(s)
        return is_pointwise(s) and is_private(s, facts)
    found.reductions.append(s)
    return _is_plain_reduction(found, s, names)


def _names(found: ReducedProduct, s: Statement, reads: list[Load]) -> Names | None:
    """What ``s`` calls the indices of the product, the same at each place that it reads."""
    whole = found.whole()
    own = found.names[found.product.name]
    agreed: Names | None = None
    for load in reads:
        writer = whole[load.tensor]
        seen = merged_points(writer, load, s)
        if seen is None:
            return None
        theirs = found.names[writer.name]
        if not set(theirs.values()) <= set(seen):
            return None
        names = {n: seen[theirs[n]] for n in own}
        if agreed is not None and agreed != names:
            return None
        agreed = names
    return agreed


def _is_plain_reduction(found: ReducedProduct, s: Statement, names: Names) -> bool:
    """A reduction over one index of the product, that of the others, in any order."""
    r = s.reduction
    assert r is not None
    if r.scan or r.into or r.state_indices is not None or not r.monoid.commutative:
        return False
    keys = [n for n, own in names.items() if own in r.indices]
    if len(keys) != 1 or len(r.indices) != 1 or found.key not in ("", keys[0]):
        return False
    found.key = keys[0]
    whole = found.whole()
    return not any(x.tensor in whole for f in r.final for x in loads(f))


# ------------------------------------------------------------------------------ what may be moved


def _is_closed(found: ReducedProduct, program: Program) -> bool:
    """Whether blocks of the reductions need nothing but what is known before any of them ends,
    and whether nobody in between would notice that all of them run where the last one stood."""
    results = found.results()
    if any(x.tensor in results for s in found.needed() for x in s.loads):
        return False
    for s in found.reductions:
        if not any(x.tensor in results for e in s.elements for x in loads(e)):
            continue
        largest = _shift(found, s)
        if largest is None:
            return False
        found.shifted[s.name] = largest
    return _may_wait(found, program)


def _shift(found: ReducedProduct, s: Statement) -> Statement | None:
    """The maximum ``m`` of the row of ``x`` where ``s`` is a sum of ``exp(x - m)``."""
    assert s.reduction is not None
    parts = shifted_parts(s.elements[0])
    if parts is None or s.reduction.monoid.name != "sum" or not is_builtin(s.reduction.monoid):
        return None
    x, m = parts
    results = found.results()
    largest = results.get(m.tensor)
    if largest is None or largest.reduction is None or any(y.tensor in results for y in loads(x)):
        return None
    monoid = largest.reduction.monoid
    if monoid.name != "max" or not is_builtin(monoid) or len(largest.writes) != 1:
        return None
    if monoid.dtypes != s.reduction.monoid.dtypes or largest.name in found.shifted:
        return None
    seen = merged_points(largest, m, s)
    theirs, ours = found.names[largest.name], found.names[s.name]
    same = seen is not None and all(seen.get(theirs[n]) == ours[n] for n in found.rows())
    if not same:
        return None
    # A block's maximum of anything else says nothing of x: the block's sum could overflow, or count
    # for nothing.
    place = {theirs[n]: variable(ours[n]) for n in theirs}
    return largest if map_affines(largest.elements[0], lambda a: a.substitute(place)) == x else None


def shifted_parts(element: Expr) -> tuple[Expr, Load] | None:
    """``x`` and ``m`` of ``exp(x - m)``, where ``m`` is a plain load."""
    if not isinstance(element, Unary) or element.op != "exp":
        return None
    if not isinstance(element.x, Binary) or element.x.op != "sub":
        return None
    m = element.x.b
    return (element.x.a, m) if isinstance(m, Load) and not m.predicate else None


def _may_wait(found: ReducedProduct, program: Program) -> bool:
    """Whether the members may run where the last of them stands, and what is picked later still:
    nobody in between changes what they read earlier, or reads what they write."""
    members = {s.name: s for s in found.members()}
    picks = {s.name for s in found.picks}
    start = first_position(found.product)
    last = max(first_position(s) for s in found.members())
    end = max([last, *(first_position(s) for s in found.picks)])
    aliases = {t.name: t.alias_of for t in program.tensors}

    def roots(names: Iterable[str]) -> set[str]:
        out: set[str] = set()
        for name in names:
            while (base := aliases[name]) is not None:
                name = base
            out.add(name)
        return out

    written = roots(n for s in members.values() for n in written_tensors(s))
    read = {n: roots(read_tensors(s)) for n, s in members.items()}
    for s in program.statements:
        position = first_position(s)
        if s.name in members or not start < position < end:
            continue
        before = (n for n, m in members.items() if first_position(m) < position)
        if not roots(written_tensors(s)).isdisjoint(written.union(*(read[n] for n in before))):
            return False
        late = s.name not in picks and position < last
        if late and not roots(read_tensors(s)).isdisjoint(written):
            return False
    return True
