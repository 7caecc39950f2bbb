"""Symbolic tensors of the importer: views and other cheap expressions, not yet materialised.

A ``Value`` says what element stands at each logical index: an expression over the placeholder
variables ``$0, $1, …``. A tensor in memory is a ``Load`` at the placeholders, a transposed one
the same load with swapped placeholders, a constant tensor a ``Const``, ``arange`` an ``Index``, a
padded tensor a predicated load. So a view costs nothing until a statement reads it.

A logical dimension is a tuple of *components*, outermost first, whose extents multiply to its size.
Reshapes that merge dimensions keep the parts as components: reading them needs neither ``//`` nor
``%``, and a product of two symbolic sizes, which is not affine, never has to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nestor.frontends.torch.sizes import Size, product, size_of
from nestor.ir.affine import Affine, Interval, affine, variable
from nestor.ir.expr import (
    Binary,
    Const,
    Expr,
    Index,
    Load,
    Select,
    binary,
    const,
    loads,
    map_affines,
    map_expr,
)
from nestor.ir.types import DType

Dim = tuple[Affine, ...]
"""Component extents, outermost first; a dimension of size 1 is ``(1,)``."""

Point = tuple[tuple[Affine, ...], ...]
"""One index per component, grouped by dimension."""

UNIT: Dim = (affine(1),)
_ONE = affine(1)
_ZERO = affine(0)


def placeholder(position: int) -> str:
    """Name of the variable of flat component ``position``."""
    return f"${position}"


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor as an expression of its index; see the module."""

    dims: tuple[Dim, ...]
    elem: Expr

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.elem.dtype

    @property
    def rank(self) -> int:
        """Number of logical dimensions."""
        return len(self.dims)

    def size(self, dim: int) -> Size:
        """Extent of a logical dimension."""
        return product(self.dims[dim])

    def is_unit(self, dim: int) -> bool:
        """Whether dimension ``dim`` has the static size 1."""
        return self.size(dim).is_one

    def is_empty(self) -> bool:
        """Whether some extent is the constant 0."""
        return any(e.is_const and e.const == 0 for d in self.dims for e in d)

    def is_load_free(self) -> bool:
        """Whether the elements depend on indices and symbols alone."""
        return next(loads(self.elem), None) is None

    def constant(self) -> Const | None:
        """The one value of all elements, if it is a literal."""
        return self.elem if isinstance(self.elem, Const) else None


def scalar(value: float | int | bool, dtype: DType) -> Value:
    """A zero-dimensional constant."""
    return Value((), const(value, dtype))


def full(dims: Sequence[Dim], value: float | int | bool, dtype: DType) -> Value:
    """A tensor of one constant."""
    return Value(tuple(dims), const(value, dtype))


def of_tensor(name: str, dims: Sequence[Dim], dtype: DType) -> Value:
    """The value of a tensor in memory whose axes are the components of ``dims``, in order."""
    dims = tuple(dims)
    indices = tuple(i for group in point(dims) for i in group)
    return Value(dims, Load(tensor=name, indices=indices, dtype=dtype))


def point(dims: Sequence[Dim]) -> Point:
    """The placeholders of ``dims``; the constant 0 for components of extent 1."""
    out, k = [], 0
    for dim in dims:
        group = []
        for extent in dim:
            group.append(_ZERO if extent == _ONE else variable(placeholder(k)))
            k += 1
        out.append(tuple(group))
    return tuple(out)


def ranges_of(dims: Sequence[Dim]) -> dict[str, Interval]:
    """Bounds of the placeholders of ``dims``."""
    extents = [e for d in dims for e in d]
    return {placeholder(k): (0, e.const - 1 if e.is_const else None) for k, e in enumerate(extents)}


def substitute(elem: Expr, mapping: Mapping[str, Affine], ranges: Mapping[str, Interval]) -> Expr:
    """Replace placeholders by affine expressions and simplify with ``ranges`` of the new ones."""

    def change(a: Affine) -> Affine:
        return a.substitute(mapping).simplify(ranges) if a.terms else a

    return map_affines(elem, change)


def at_point(value: Value, where: Point, ranges: Mapping[str, Interval]) -> Expr:
    """The element of ``value`` at ``where`` (one index per component)."""
    flat = [i for group in where for i in group]
    mapping = {placeholder(k): i for k, i in enumerate(flat)}
    return substitute(value.elem, mapping, ranges)


def remap(
    value: Value, dims: Sequence[Dim], where: Callable[[Point], Sequence[Sequence[Affine]]]
) -> Value:
    """A view: ``where`` gives for an index of the new ``dims`` the old component indices."""
    dims = tuple(dims)
    old = tuple(tuple(group) for group in where(point(dims)))
    return Value(dims, at_point(value, old, ranges_of(dims)))


# ------------------------------------------------------------------------------ flat dimensions


def horner(extents: Sequence[Affine], indices: Sequence[Affine]) -> Affine | None:
    """Row-major index of components; None if an inner stride is symbolic and its index is not 0."""
    total, stride = _ZERO, product(())
    for extent, index in zip(reversed(extents), reversed(indices)):
        factor = stride.constant
        if index != _ZERO:
            if factor is None:
                return None
            total = total + index * factor
        stride = stride * size_of(extent)
    return total


def unravel(extents: Sequence[Affine], index: Affine) -> tuple[Affine, ...] | None:
    """Components of a row-major ``index``; None if an inner extent is symbolic."""
    inner = 1
    out: list[Affine] = []
    for k in range(len(extents) - 1, -1, -1):
        quotient = index // inner
        if k == 0:
            out.append(quotient)
            break
        if not extents[k].is_const:
            return None
        out.append(quotient % max(extents[k].const, 1))
        inner *= max(extents[k].const, 1)
    return tuple(reversed(out))


def flatten_dim(value: Value, dim: int) -> Value | None:
    """The same value with one component in ``dim``; None if that is not affine."""
    old = value.dims[dim]
    if len(old) == 1:
        return value
    total = value.size(dim).as_affine()
    if total is None:
        return None
    dims = (*value.dims[:dim], (total,), *value.dims[dim + 1 :])
    split = unravel(old, point(dims)[dim][0])
    if split is None:
        return None
    parts = split
    return remap(value, dims, lambda p: (*p[:dim], parts, *p[dim + 1 :]))


def split_index(old: Dim, new: Dim, where: Sequence[Affine]) -> tuple[Affine, ...] | None:
    """Indices of the components ``old``, given those of ``new``, a refinement of it."""
    if old == new:
        return tuple(where)
    out, k = [], 0
    for extent in old:
        start, want, have = k, size_of(extent), product(())
        while have != want:
            if k == len(new):
                return None
            have = have * size_of(new[k])
            k += 1
        index = horner(new[start:k], where[start:k])
        if index is None:
            return None
        out.append(index)
    return tuple(out) if k == len(new) else None


def refine(a: Dim, b: Dim) -> Dim | None:
    """The coarsest common refinement of two factorisations of one size, or None.

    Factors are matched from the outermost; (6, 4) and (2, 12) give (2, 3, 4).
    """
    if a == b:
        return a
    left = [size_of(e) for e in a if e != _ONE]
    right = [size_of(e) for e in b if e != _ONE]
    pieces = _common_factors(left, right)
    if pieces is None:
        return None
    out = [p.as_affine() for p in pieces]
    if any(p is None for p in out):
        return None
    result = tuple(p for p in out if p is not None) or UNIT
    # A component that is split must have constant inner strides, or its index is not affine.
    for old in (a, b):
        if split_index(old, result, point((result,))[0]) is None:
            return None
    return result


def _common_factors(left: list[Size], right: list[Size]) -> list[Size] | None:
    out: list[Size] = []
    left, right = list(reversed(left)), list(reversed(right))
    while left and right:
        a, b = left.pop(), right.pop()
        if a == b:
            out.append(a)
            continue
        more_left, more_right = a.divide(b), b.divide(a)
        if more_left is not None:
            out.append(b)
            left.append(more_left)
        elif more_right is not None:
            out.append(a)
            right.append(more_right)
        else:
            return None
    return None if left or right else out


def read(value: Value, dims: Sequence[Dim], where: Point, ranges: Mapping[str, Interval]) -> Expr:
    """The element of ``value``, broadcast to ``dims``, at the index ``where`` of ``dims``.

    Every dimension of ``dims`` must refine the value's own, or the value's is 1.
    """
    offset = len(dims) - value.rank
    groups: list[tuple[Affine, ...]] = []
    for k, old in enumerate(value.dims):
        new = dims[offset + k]
        if old == UNIT:
            groups.append((_ZERO,))
            continue
        group = split_index(old, new, where[offset + k])
        if group is None:
            raise ValueError(f"dimension {k} with components {old} is not refined by {new}")
        groups.append(group)
    return at_point(value, tuple(groups), ranges)


# ---------------------------------------------------------------------------------- predicates


def condition(predicates: Sequence[Affine]) -> Expr:
    """The conjunction of ``affine ≥ 0`` as a bool expression."""
    out: Expr | None = None
    for p in predicates:
        test = binary("ge", Index(value=p), const(0, DType.i64))
        out = test if out is None else Binary(op="and", a=out, b=test)
    return out if out is not None else const(True, DType.bool)


def guard(elem: Expr, predicates: Sequence[Affine], other: Expr) -> Expr:
    """``elem`` where all ``predicates`` are ≥ 0, else ``other``; nothing is read outside them."""
    if not predicates or elem == other:
        return elem
    extra = tuple(predicates)
    if isinstance(elem, Load) and all(isinstance(i, Affine) for i in elem.indices):
        if elem.other is None:
            return replace(elem, predicate=extra, other=other)
        merged = tuple(dict.fromkeys(elem.predicate + extra))
        return replace(elem, predicate=merged, other=guard(elem.other, extra, other))
    if isinstance(elem, Const) or next(loads(elem), None) is None:
        return Select(condition=condition(extra), a=elem, b=other)
    return Select(condition=condition(extra), a=guard_loads(elem, extra), b=other)


def guard_loads(elem: Expr, predicates: Sequence[Affine]) -> Expr:
    """Let every load in ``elem`` read nothing (and give 0) where a predicate fails."""
    extra = tuple(predicates)

    def visit(node: Expr) -> Expr:
        if not isinstance(node, Load):
            return node
        other = node.other if node.other is not None else const(0, node.dtype)
        return replace(node, predicate=tuple(dict.fromkeys(node.predicate + extra)), other=other)

    return map_expr(elem, visit)


def components(dims: Sequence[Dim]) -> Iterator[Affine]:
    """All component extents in order."""
    for dim in dims:
        yield from dim


def linear_placeholder(dims: Sequence[Dim], dim: int) -> Affine | None:
    """The row-major index along ``dim`` at the placeholders; None for symbolic inner extents."""
    return horner(dims[dim], point(dims)[dim])
