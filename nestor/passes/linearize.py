"""Merge dimensions that a sum runs through together: the inverse of delinearisation, for temps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Expr, IndexExpr, Load, map_expr
from nestor.ir.program import AnyStatement, Domain, IndexRange, Program, Statement, Tensor
from nestor.passes.analysis import (
    ProgramFacts,
    contraction_roles,
    is_functional,
    program_facts,
    weight_tensors,
)
from nestor.passes.context import PassContext
from nestor.passes.delinearize import statement_affines
from nestor.passes.rewriting import (
    extent_of,
    map_expressions,
    map_statement_affines,
    replace_statements,
)

_NAME = "merge_summed_dimensions"


@dataclass(frozen=True, slots=True)
class _Merge:
    """Reduced indices ``outer``, ``inner`` and the temp's dimensions that they run through."""

    outer: str
    inner: str
    size: int
    tensor: str
    outer_dim: int
    inner_dim: int


def merge_summed_dimensions(program: Program, ctx: PassContext) -> Program:
    """Store a temp with merged dimensions where a contraction sums over them as one.

    Rewrite: ``T[b,h,s,d] = …; Y[b,s,n] = Σ_h Σ_d T[b,h,s,d]·W[n, 64*h + d]`` →
        ``T[b,s,64*h + d] = …; Y[b,s,n] = Σ_k T[b,s,k]·W[n,k]``: one long sum, and ``W`` as it is.
    Legal when: ``T`` is a temp with affine accesses; ``d`` runs over the whole inner dimension from
        0; wherever else the contraction uses ``h`` and ``d`` it uses ``64*h + d``.
    """
    return _Merger(program, ctx).run()


@dataclass(slots=True)
class _Merger:
    program: Program
    ctx: PassContext
    facts: ProgramFacts = field(init=False)
    weights: set[str] = field(init=False)
    tensors: dict[str, Tensor] = field(init=False)
    statements: list[AnyStatement] = field(init=False)

    def __post_init__(self) -> None:
        self.facts = program_facts(self.program)
        self.weights = weight_tensors(self.program)
        self.tensors = dict(self.facts.tensors)
        self.statements = list(self.program.statements)

    def run(self) -> Program:
        changed = False
        for number in range(len(self.statements)):
            while (merge := self._find(number)) is not None:
                self._apply(number, merge)
                changed = True
        if not changed:
            return self.program
        return replace_statements(self.program, self.statements, self.tensors.values())

    # ------------------------------------------------------------------------------- search

    def _find(self, number: int) -> _Merge | None:
        statement = self.statements[number]
        roles = contraction_roles(statement)
        if roles is None or not isinstance(statement, Statement) or not is_functional(statement):
            return None
        for load, other in ((roles.a, roles.b), (roles.b, roles.a)):
            name = load.tensor
            if name in self.weights or not self.facts.is_private_temp(name):
                continue
            for outer, inner, size in _pairs(statement, other, set(roles.k)):
                merge = _match(load, outer, inner, size)
                if merge is None or not self._is_legal(statement, merge):
                    continue
                return merge
        return None

    def _is_legal(self, statement: Statement, merge: _Merge) -> bool:
        tensor = self.tensors[merge.tensor]
        if tensor.shape[merge.inner_dim] != affine(merge.size) or tensor.layout is not None:
            return False
        dims = (merge.outer_dim, merge.inner_dim)
        root = self.facts.roots[merge.tensor]
        for n in (*self.facts.readers[root], *self.facts.writers[root]):
            other = self.statements[n]
            if not isinstance(other, Statement) or not _is_affine_at(other, merge.tensor, dims):
                return False
        merged = self._collapse(self._restate(statement, merge), merge)
        return merged is not None

    # ------------------------------------------------------------------------------ rewriting

    def _apply(self, number: int, merge: _Merge) -> None:
        root = self.facts.roots[merge.tensor]
        for n in {*self.facts.readers[root], *self.facts.writers[root]}:
            other = self.statements[n]
            assert isinstance(other, Statement)
            self.statements[n] = self._restate(other, merge)
        statement = self.statements[number]
        assert isinstance(statement, Statement)
        merged = self._collapse(statement, merge)
        assert merged is not None
        self.statements[number] = merged
        old = self.tensors[merge.tensor]
        shape = list(old.shape)
        shape[merge.inner_dim] = shape[merge.outer_dim] * merge.size
        del shape[merge.outer_dim]
        self.tensors[merge.tensor] = replace(old, shape=tuple(shape), layout=None)
        self.ctx.changed(
            _NAME, statement.name, f"sums over '{merge.outer}' and '{merge.inner}' as one"
        )

    def _restate(self, statement: Statement, merge: _Merge) -> Statement:
        """Every access to the temp with its two dimensions as one."""

        def indices(old: tuple[IndexExpr, ...]) -> tuple[IndexExpr, ...]:
            new = list(old)
            outer, inner = new[merge.outer_dim], new[merge.inner_dim]
            assert isinstance(outer, Affine) and isinstance(inner, Affine)
            new[merge.inner_dim] = outer * merge.size + inner
            del new[merge.outer_dim]
            return tuple(new)

        def visit(node: Expr) -> Expr:
            if isinstance(node, Load) and node.tensor == merge.tensor:
                return replace(node, indices=indices(node.indices))
            return node

        statement = map_expressions(statement, lambda e: map_expr(e, visit))
        writes = tuple(
            replace(w, indices=indices(w.indices)) if w.tensor == merge.tensor else w
            for w in statement.writes
        )
        return replace(statement, writes=writes)

    def _collapse(self, statement: Statement, merge: _Merge) -> Statement | None:
        """One reduced index for two; None where they also occur apart."""
        assert statement.reduction is not None
        outer = statement.domain.range_of(merge.outer)
        mapping = {merge.inner: variable(merge.inner) - variable(merge.outer) * merge.size}
        new = map_statement_affines(statement, lambda a: a.substitute(mapping))
        domain = Domain(
            ranges=tuple(
                IndexRange(name=r.name, lower=r.lower, upper=outer.upper * merge.size)
                if r.name == merge.inner
                else r
                for r in statement.domain.ranges
                if r.name != merge.outer
            ),
            constraints=tuple(c.substitute(mapping) for c in statement.domain.constraints),
        )
        if any(
            merge.outer in a.variables() for a in (*statement_affines(new), *domain.constraints)
        ):
            return None
        reduction = replace(
            statement.reduction,
            indices=tuple(n for n in statement.reduction.indices if n != merge.outer),
        )
        return replace(new, domain=domain, reduction=reduction)


def _pairs(statement: Statement, load: Load, reduced: set[str]) -> list[tuple[str, str, int]]:
    """Reduced indices that the load adds up as ``size*outer + inner``, inner < size."""
    found: list[tuple[str, str, int]] = []
    for index in load.indices:
        if not isinstance(index, Affine):
            continue
        steps = {a: c for a, c in index.terms if isinstance(a, str) and a in reduced}
        for inner, c in steps.items():
            extent = _plain_extent(statement, inner)
            if extent is None or not extent.is_const:
                continue
            for outer, d in steps.items():
                if outer != inner and d == c * extent.const:
                    if _plain_extent(statement, outer) is not None:
                        found.append((outer, inner, extent.const))
    return found


def _plain_extent(statement: Statement, name: str) -> Affine | None:
    """The extent of an index that starts at 0 and whose bounds involve no other index."""
    r = statement.domain.range_of(name)
    names = set(statement.domain.names)
    if r.lower != affine(0) or r.upper.variables() & names:
        return None
    if any(name in (x.lower.variables() | x.upper.variables()) for x in statement.domain.ranges):
        return None
    return extent_of(r)


def _match(load: Load, outer: str, inner: str, size: int) -> _Merge | None:
    """The two dimensions that the pair moves, each alone."""
    at: dict[str, int] = {}
    for d, index in enumerate(load.indices):
        for name in (outer, inner):
            if index == variable(name):
                at[name] = d
    if len(at) != 2:
        return None
    return _Merge(outer, inner, size, load.tensor, at[outer], at[inner])


def _is_affine_at(statement: Statement, tensor: str, dims: tuple[int, int]) -> bool:
    accesses = [x.indices for x in statement.loads if x.tensor == tensor]
    accesses += [w.indices for w in statement.writes if w.tensor == tensor]
    return all(isinstance(indices[d], Affine) for indices in accesses for d in dims)
