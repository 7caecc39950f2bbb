"""Single elements of a product, at places that other tensors tell, as dot products of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nestor.ir.affine import Affine, AffineLike, affine, variable
from nestor.ir.expr import Cast, Expr, Index, IndexExpr, Load, map_expr
from nestor.ir.program import Domain, IndexRange, Statement, Tensor, Write
from nestor.passes.analysis import domain_volume, expression_variables
from nestor.passes.points import index_digits
from nestor.passes.product_reductions import ReducedProduct, is_gather
from nestor.passes.rewriting import Names, first_position, map_expressions

_LEAST_SAVING = 8
"""Times as many elements as are picked that the product must have."""

Place = Mapping[str, IndexExpr]
"""What stands for each index of a statement: an affine, or an expression that gathers."""


class _CannotPick(Exception):
    """An element cannot be had by itself."""


class ElementPicker:
    """Rewrites the readers of single elements of one product.

    Attributes:
        tensors: temps that were made.
    """

    def __init__(self, found: ReducedProduct, names: Names):
        self.found = found
        self.names = names
        self.whole = found.whole()
        self.tensors: list[Tensor] = []
        self.made: list[Statement] = []
        self.known: dict[Load, Load] = {}

    def pick(self, reader: Statement) -> list[Statement] | None:
        """``reader`` after the dot products that it reads instead of the product; None: it cannot.

        Rewrite: ``P[t,v] = Σ_k A[t,k]·B[v,k]; y[t] = f(P[t, i[t]])`` →
            ``p[t] = Σ_k A[t,k]·B[i[t],k]; y[t] = f(p[t])``, where pointwise statements between P
            and the reader are written out in it.
        """
        self.made, self.known = [], {}
        try:
            new = map_expressions(reader, lambda e: self._replaced(e, reader))
        except _CannotPick:
            return None
        results = self.found.results()
        last = max(first_position(s) for s in self.found.members())
        if first_position(reader) < last:
            if any(x.tensor in results for x in new.loads):
                return None
        return [*self.made, new]

    def _replaced(self, node: Expr, reader: Statement) -> Expr:
        def visit(x: Expr) -> Expr:
            if not isinstance(x, Load) or x.tensor not in self.whole:
                return x
            if x.predicate or not is_gather(x):
                raise _CannotPick
            return self._element(x, reader)

        return map_expr(node, visit)

    def _element(self, load: Load, reader: Statement) -> Expr:
        """What ``load`` reads, computed where it is read."""
        writer = self.whole[load.tensor]
        place: dict[str, IndexExpr] = {}
        for w, r in zip(writer.writes[0].indices, load.indices, strict=True):
            for name, value in _digits_of(r, w, writer).items():
                if place.setdefault(name, value) != value:
                    raise _CannotPick
        if writer is self.found.product:
            if load not in self.known:
                self.known[load] = self._dot(load, place, reader)
            return self.known[load]
        if set(place) != set(writer.domain.names):
            raise _CannotPick
        return self._replaced(at_place(writer.elements[0], place), reader)

    def _dot(self, load: Load, place: Place, reader: Statement) -> Load:
        """A statement that computes one element of the product for each point of the reader."""
        product = self.found.product
        assert product.reduction is not None
        used = expression_variables(load)
        ranges = [r for r in reader.domain.ranges if r.name in used]
        if len(ranges) != len(used) or any(r.lower != affine(0) for r in ranges):
            raise _CannotPick
        if any(not r.upper.variables().isdisjoint(reader.domain.names) for r in ranges):
            raise _CannotPick
        own: dict[str, IndexExpr] = dict(place)
        reduced: list[IndexRange] = []
        for name in product.reduction.indices:
            new = name
            while new in reader.domain.names or new in (r.name for r in reduced):
                new += "k"
            reduced.append(replace(product.domain.range_of(name), name=new))
            own[name] = variable(new)
        domain = Domain(ranges=(*ranges, *reduced))
        if domain_volume(domain) * _LEAST_SAVING > domain_volume(product.domain):
            raise _CannotPick
        if set(own) != set(product.domain.names):
            raise _CannotPick
        indices = tuple(variable(r.name) for r in ranges)
        tensor = Tensor(
            name=self.names.fresh(f"{load.tensor}_picked"),
            shape=tuple(r.upper for r in ranges),
            dtype=load.dtype,
            role="temp",
        )
        self.tensors.append(tensor)
        self.made.append(
            Statement(
                name=self.names.fresh(f"{product.name}_picked"),
                domain=domain,
                order=reader.order[:1],
                writes=(Write(tensor=tensor.name, indices=indices),),
                elements=tuple(at_place(e, own) for e in product.elements),
                reduction=replace(
                    product.reduction,
                    indices=tuple(r.name for r in reduced),
                    final=tuple(at_place(f, own) for f in product.reduction.final),
                ),
                origin=product.origin,
            )
        )
        return Load(tensor=tensor.name, indices=indices, dtype=load.dtype)


def _digits_of(place: IndexExpr, index: IndexExpr, writer: Statement) -> Place:
    """What each variable of ``index`` is where it comes to ``place``."""
    digits = index_digits(index, writer) if isinstance(index, Affine) else None
    if digits is None or not isinstance(index, Affine):
        raise _CannotPick
    if not isinstance(place, Affine):
        if len(digits) > 1 or digits[0][1] != 1 or index.const:
            raise _CannotPick
        return {digits[0][0]: place}
    rest = place - index.const
    found: dict[str, IndexExpr] = {}
    for n, (name, factor) in enumerate(digits):
        value = rest // factor
        if n:
            value = value % (digits[n - 1][1] // factor)
        if n and digits[n - 1][1] % factor:
            raise _CannotPick
        found[name] = value
    return found


def _only_variable(index: IndexExpr) -> str | None:
    if not isinstance(index, Affine) or index.const or len(index.terms) != 1:
        return None
    atom, factor = index.terms[0]
    return atom if isinstance(atom, str) and factor == 1 else None


def at_place(node: Expr, place: Place) -> Expr:
    """``node`` with ``place`` for the indices of its statement.

    Raises: ``_CannotPick`` where a gathering index is part of a sum or of a predicate.
    """
    plain: dict[str, AffineLike] = {n: i for n, i in place.items() if isinstance(i, Affine)}
    gathered = {n: i for n, i in place.items() if not isinstance(i, Affine)}

    def index_at(index: IndexExpr) -> IndexExpr:
        if not isinstance(index, Affine):
            return index  # rewritten on the way up
        name = _only_variable(index)
        if name in gathered:
            return gathered[name]
        return affine_at(index)

    def affine_at(index: Affine) -> Affine:
        if not index.variables().isdisjoint(gathered):
            raise _CannotPick
        return index.substitute(plain)

    def visit(x: Expr) -> Expr:
        if isinstance(x, Load):
            predicate = tuple(affine_at(p) for p in x.predicate)
            return replace(x, indices=tuple(map(index_at, x.indices)), predicate=predicate)
        if isinstance(x, Index):
            value = index_at(x.value)
            if isinstance(value, Affine):
                return replace(x, value=value)
            return value if value.dtype is x.dtype else Cast(x=value, dtype=x.dtype)
        return x

    return map_expr(node, visit)
