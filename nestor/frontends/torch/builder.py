"""Make tensors and statements of a Program from symbolic values.

A rule describes an operator as ``compute(output dims, reduced dims, body)``; this module names loop
indices, reads operands at them, chooses how results lie in memory and keeps the running order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nestor.errors import Unsupported
from nestor.frontends.torch.equal_symbols import EqualSymbols
from nestor.frontends.torch.sizes import product
from nestor.frontends.torch.value import (
    UNIT,
    Dim,
    Point,
    Value,
    components,
    flatten_dim,
    horner,
    of_tensor,
    point,
    read,
    refine,
    remap,
    split_index,
)
from nestor.ir.affine import Affine, Interval, affine, variable
from nestor.ir.expr import Expr, IndexExpr, Load, map_expr, substitute_vars
from nestor.ir.monoid import Monoid
from nestor.ir.names import Names
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Order,
    Origin,
    Reduction,
    Role,
    Statement,
    Symbol,
    Tensor,
    Write,
)
from nestor.ir.types import DType

_ZERO = affine(0)
_ONE = affine(1)

Elements = tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """The instances of a statement being built.

    Attributes:
        dims: component extents of the output dimensions, then of the reduced ones.
        where: loop indices at the same places (0 for extents of 1).
        outputs: how many of ``dims`` are output dimensions.
        ranges: bounds of the loop indices.
    """

    dims: tuple[Dim, ...]
    where: Point
    outputs: int
    ranges: dict[str, Interval]

    @property
    def out(self) -> Point:
        """Indices of the output dimensions."""
        return self.where[: self.outputs]

    @property
    def reduced(self) -> Point:
        """Indices of the reduced dimensions."""
        return self.where[self.outputs :]

    def read(self, value: Value, which: Sequence[int] | None = None) -> Expr:
        """``value`` at this point; ``which`` says for each of its dimensions one of ours.

        Without ``which`` the value is broadcast against the output dimensions.
        """
        if which is None:
            dims, where = self.dims[: self.outputs], self.out
        else:
            dims = tuple(self.dims[k] for k in which)
            where = tuple(self.where[k] for k in which)
        return read(value, dims, where, self.ranges)

    def index(self, dim: int) -> Affine:
        """The row-major index along one dimension.

        Raises: Unsupported for a product of symbolic sizes.
        """
        out = horner(self.dims[dim], self.where[dim])
        if out is None:
            raise Unsupported("an index over a product of two symbolic sizes; make one static")
        return out


Body = Callable[[Space], Elements]


class Builder:
    """The tensors and statements made so far, in running order."""

    def __init__(self, symbols: dict[str, Symbol]):
        self.symbols = symbols
        self.tensors: dict[str, Tensor] = {}
        self.statements: list[AnyStatement] = []
        self.origin: Origin | None = None
        self.hint = "t"
        self.equal = EqualSymbols()
        self._names = Names()
        self._position = 0

    # ------------------------------------------------------------------------------- tensors

    def fresh(self, hint: str) -> str:
        """A name that neither a tensor nor a statement has."""
        return self._names.fresh(hint)

    def tensor(self, hint: str, shape: Sequence[Affine], dtype: DType, role: Role = "temp") -> str:
        """Declare a tensor; returns its name."""
        name = self.fresh(hint)
        self.tensors[name] = Tensor(name=name, shape=tuple(shape), dtype=dtype, role=role)
        return name

    def alias(self, base: str, shape: Sequence[Affine]) -> str:
        """Declare a tensor of the same bytes as ``base`` in another shape."""
        name = self.fresh(f"{base}_alias")
        old = self.tensors[base]
        self.tensors[name] = replace(old, name=name, shape=tuple(shape), role="temp", alias_of=base)
        return name

    def position(self) -> int:
        """The next position of the running order."""
        self._position += 1
        return self._position - 1

    def symbol_ranges(self) -> dict[str, Interval]:
        """Bounds of the shape symbols."""
        return {s.name: (s.lower, s.upper) for s in self.symbols.values()}

    def stored(self, hint: str, dims: Sequence[Dim], dtype: DType) -> tuple[str, tuple[Dim, ...]]:
        """Declare a temporary for ``dims``; product dimensions lie flat wherever that is affine."""
        flat = tuple(stored_dim(d) for d in dims)
        return self.tensor(hint, list(components(flat)), dtype), flat

    # ------------------------------------------------------------------------------ statements

    def space(self, out: Sequence[Dim], reduced: Sequence[Dim] = ()) -> tuple[Space, Domain]:
        """Name loop indices over output and reduced dimensions."""
        ranges: list[IndexRange] = []
        bounds = self.symbol_ranges()
        where: list[tuple[Affine, ...]] = []
        for prefix, dims in (("i", out), ("k", reduced)):
            count = 0
            for dim in dims:
                group = []
                for extent in dim:
                    if extent == _ONE:
                        group.append(_ZERO)
                        continue
                    name = f"{prefix}{count}"
                    count += 1
                    ranges.append(IndexRange(name=name, lower=_ZERO, upper=extent))
                    top = extent.bounds(bounds)[1]
                    bounds[name] = (0, None if top is None else max(top - 1, 0))
                    group.append(variable(name))
                where.append(tuple(group))
        space = Space((*out, *reduced), tuple(where), len(out), bounds)
        return space, Domain(ranges=tuple(ranges))

    def add(
        self,
        domain: Domain,
        writes: Sequence[Write],
        elements: Elements,
        *,
        reduction: Reduction | None = None,
        scatter: Literal["unique", "last"] | None = None,
        order: Order | None = None,
        ranges: dict[str, Interval] | None = None,
    ) -> None:
        """Append a statement; predicates that always or never hold are decided here."""
        if ranges is not None:
            elements = tuple(decide_predicates(e, domain, ranges) for e in elements)
        self.statements.append(
            Statement(
                name=self.fresh(f"S_{self.hint}"),
                domain=domain,
                order=order if order is not None else (self.position(),),
                writes=tuple(writes),
                elements=elements,
                reduction=reduction,
                scatter=scatter,
                origin=self.origin,
            )
        )

    def pointwise(self, dims: Sequence[Dim], body: Body, hint: str = "") -> tuple[Value, ...]:
        """One statement that writes ``body``'s elements over ``dims``; one tensor an element."""
        space, domain = self.space(dims)
        elements = body(space)
        outs = [self.stored(hint or self.hint, dims, e.dtype) for e in elements]
        writes = [write_of(n, dims, d, space.out) for n, d in outs]
        self.add(domain, writes, elements, ranges=space.ranges)
        return tuple(of_tensor(n, d, e.dtype) for (n, d), e in zip(outs, elements))

    def reduce(
        self,
        out: Sequence[Dim],
        reduced: Sequence[Dim],
        body: Body,
        monoid: Monoid,
        final: Elements,
        hint: str = "",
    ) -> tuple[Value, ...]:
        """One reduction statement; one tensor for each expression of ``final``."""
        space, domain = self.space(out, reduced)
        elements = body(space)
        outs = [self.stored(hint or self.hint, out, e.dtype) for e in final]
        names = tuple(v.terms[0][0] for g in space.reduced for v in g if v.terms)
        if not names:  # one element a point: its own state
            states = {f"s{k}": e for k, e in enumerate(elements)}
            elements, reduction = tuple(substitute_vars(e, states) for e in final), None
        else:
            indices = tuple(n for n in names if isinstance(n, str))
            reduction = Reduction(indices=indices, monoid=monoid, final=final)
        writes = [write_of(n, out, d, space.out) for n, d in outs]
        self.add(domain, writes, elements, reduction=reduction, ranges=space.ranges)
        return tuple(of_tensor(n, d, e.dtype) for (n, d), e in zip(outs, final))

    # ------------------------------------------------------------------------------- materialise

    def materialise(self, value: Value, hint: str = "") -> Value:
        """The same value as a plain load of a tensor in memory, one flat axis a dimension."""
        if self.is_stored(value):
            return value
        return self.pointwise(value.dims, lambda s: (s.read(value),), hint)[0]

    def is_stored(self, value: Value) -> bool:
        """Whether ``value`` is a whole tensor as it lies in memory."""
        load = value.elem
        if not isinstance(load, Load) or load.predicate:
            return False
        if any(len(d) > 1 and stored_dim(d) != d for d in value.dims):
            return False
        flat = tuple(i for g in point(value.dims) for i in g)
        return load.indices == flat and self.tensors[load.tensor].shape == tuple(
            components(value.dims)
        )

    def name_of(self, value: Value) -> str:
        """The tensor that holds ``value`` exactly, copying it first if it is a view."""
        stored = self.materialise(value)
        assert isinstance(stored.elem, Load)
        return stored.elem.tensor

    def flat(self, value: Value, dim: int) -> Value:
        """``value`` with a single component in ``dim``, through memory if need be.

        Raises: Unsupported when the size is a product of symbolic sizes.
        """
        out = flatten_dim(value, dim)
        if out is None:
            out = flatten_dim(self.materialise(value), dim)
        if out is None:
            raise Unsupported(
                f"dimension {dim} has the size {value.size(dim)}, a product of symbolic sizes;"
                " make one of them static"
            )
        return out

    def flat_all(self, value: Value) -> Value:
        """``value`` with a single component in every dimension."""
        for dim in range(value.rank):
            value = self.flat(value, dim)
        return value

    def unify(self, values: Sequence[Value]) -> tuple[tuple[Dim, ...], list[Value]]:
        """Broadcast dims of ``values`` in a common factorisation, and the values fit to be read."""
        rank = max((v.rank for v in values), default=0)
        values = list(values)
        dims: list[Dim] = [UNIT] * rank
        for k in range(rank):
            holders = [n for n, v in enumerate(values) if v.rank >= rank - k]
            places = [(values[n], values[n].rank + k - rank) for n in holders]
            dims[k], fitted = self.unify_dims(places)
            for n, value in zip(holders, fitted):
                values[n] = value
        return tuple(dims), values

    def unify_dims(self, places: Sequence[tuple[Value, int]]) -> tuple[Dim, list[Value]]:
        """One factorisation for dimensions of equal size; the values in it (``UNIT`` ones stay)."""
        values = self._equate_sizes(places)
        places = [(v, d) for v, (_, d) in zip(values, places)]
        common: Dim | None = UNIT
        for value, dim in places:
            own = value.dims[dim]
            if own != UNIT and common is not None:
                common = own if common == UNIT else refine(common, own)
        if common is None:
            values = [v if v.dims[d] == UNIT else self.flat(v, d) for v, d in places]
            common = next(v.dims[d] for v, (_, d) in zip(values, places) if v.dims[d] != UNIT)
        return common, [
            v if v.dims[d] == UNIT else refine_dim(v, d, common)
            for v, (_, d) in zip(values, places)
        ]

    def _equate_sizes(self, places: Sequence[tuple[Value, int]]) -> list[Value]:
        """The values with equal sizes in their dimensions; distinct symbols are merged.

        Raises: Unsupported for sizes that cannot be equal.
        """
        values = [v for v, _ in places]
        first: Dim | None = None
        for n, (value, dim) in enumerate(places):
            own = value.dims[dim]
            if own == UNIT or first is None:
                first = first if own == UNIT else own
                continue
            if product(own) == product(first):
                continue
            single = len(own) == 1 and len(first) == 1
            if not single or not self.equal.equate(first[0], own[0]):
                raise Unsupported(
                    f"sizes {product(first)} and {product(own)} must agree; make them one dynamic"
                    " dimension, or static"
                )
            dims = (*value.dims[:dim], first, *value.dims[dim + 1 :])
            values[n] = replace(value, dims=dims)
        return values


def refine_dim(value: Value, dim: int, new: Dim) -> Value:
    """``value`` with dimension ``dim`` in the components ``new``, a refinement of its own."""
    if value.dims[dim] == new:
        return value
    dims = (*value.dims[:dim], new, *value.dims[dim + 1 :])

    def where(p: Point) -> Point:
        group = split_index(value.dims[dim], new, p[dim])
        assert group is not None, "refine checks that inner strides are constants"
        return (*p[:dim], group, *p[dim + 1 :])

    return remap(value, dims, where)


def stored_dim(dim: Dim) -> Dim:
    """How a dimension lies in memory: one axis if its size is affine, else one a component."""
    total = product(dim).as_affine()
    if total is None or horner(dim, [variable("x")] * len(dim)) is None:
        return dim
    return (total,)


def write_of(name: str, dims: Sequence[Dim], stored: Sequence[Dim], where: Point) -> Write:
    """The write of a tensor stored as ``stored`` at an index of the logical ``dims``."""
    indices: list[IndexExpr] = []
    for dim, kept, group in zip(dims, stored, where):
        if dim == kept:
            indices.extend(group)
            continue
        index = horner(dim, group)
        assert index is not None, "stored_dim merges only dimensions with an affine index"
        indices.append(index)
    return Write(tensor=name, indices=tuple(indices))


def decide_predicates(elem: Expr, domain: Domain, ranges: dict[str, Interval]) -> Expr:
    """Drop predicates of loads that always hold; replace loads whose predicate never does."""

    def visit(node: Expr) -> Expr:
        if not isinstance(node, Load) or not node.predicate:
            return node
        kept = []
        for p in node.predicate:
            low = lower_bound(p, domain, ranges)
            if low is not None and low >= 0:
                continue
            high = lower_bound(-p, domain, ranges)
            if high is not None and high > 0:
                assert node.other is not None
                return node.other
            kept.append(p)
        if len(kept) == len(node.predicate):
            return node
        return replace(node, predicate=tuple(kept), other=node.other if kept else None)

    return map_expr(elem, visit)


def lower_bound(a: Affine, domain: Domain, ranges: dict[str, Interval]) -> int | None:
    """A lower bound of ``a`` over ``domain``, exact where each index occurs once and linearly."""
    for r in reversed(domain.ranges):
        c = a.coefficient(r.name)
        if c == 0 or any(r.name in x.num.variables() for x, _ in a.terms if not isinstance(x, str)):
            continue
        a = a.substitute({r.name: r.lower if c > 0 else r.upper - 1})
    return a.bounds(ranges)[0]
