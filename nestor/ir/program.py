"""Programs: tensors and statements. A *kernel* is a Program too, of a few statements.

Nothing here says how a statement runs: loops, buffers and threads are in ``loopnest``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Union

from nestor.ir.affine import Affine, Interval, affine
from nestor.ir.expr import Expr, IndexExpr, Load, walk
from nestor.ir.monoid import Monoid
from nestor.ir.types import DType

Role = Literal["input", "output", "inout", "parameter", "constant", "state", "temp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbol:
    """A shape parameter, e.g. a dynamic batch; ``lower ≤ value ≤ upper`` (None: no upper bound)."""

    name: str
    lower: int = 1
    upper: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """An injective affine map from logical to physical indices.

    ``physical[p]`` is over the variables ``d0, d1, …`` (the logical indices); ``shape`` is the
    physical extent of each, stored row-major. A blocked weight ``(N, K)`` is
    ``physical=(d0//48, d1, d0%48), shape=(⌈N/48⌉, K, 48)``; cells that no logical index maps to
    hold zero in packed parameters.
    """

    physical: tuple[Affine, ...]
    shape: tuple[Affine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A named array. ``layout`` None is row-major of ``shape``.

    Roles: *input*, *output*, *inout* (an input that the program overwrites); *parameter* (a weight,
    may be repacked), *constant* (its value is known at compile time and never changes), *state*
    (a buffer of the model that the program updates), *temp* (dead outside).
    ``alias_of``: the same bytes as another tensor, row-major, as many elements; whole-tensor
    dependence.
    """

    name: str
    shape: tuple[Affine, ...]
    dtype: DType
    role: Role
    layout: Layout | None = None
    alias_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRange:
    """``lower ≤ name < upper``; bounds over symbols and indices that stand before it."""

    name: str
    lower: Affine
    upper: Affine


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The instances of a statement: ranges, and further constraints, each ``affine ≥ 0``."""

    ranges: tuple[IndexRange, ...]
    constraints: tuple[Affine, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Index names, outermost first."""
        return tuple(r.name for r in self.ranges)

    def range_of(self, name: str) -> IndexRange:
        """The range of index ``name``; KeyError if there is none."""
        for r in self.ranges:
            if r.name == name:
                return r
        raise KeyError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Where one output of a statement goes; a non-affine index is a scatter."""

    tensor: str
    indices: tuple[IndexExpr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """How a statement reduces or scans.

    Attributes:
        indices: names of the domain's indices that are reduced.
        monoid: how states combine.
        final: one expression per write over ``Var`` ``s0, s1, …`` (the state's components).
        scan: the running (inclusive) state is written at every index, in ascending lexicographic
            order of ``indices``; the writes then mention them. Otherwise one result per point.
        into: the state starts from what the written tensors hold (``+=``, ``index_add``); then
            state and writes correspond one to one and ``final`` is the identity.
        state_indices: for each component the domain's indices it has of its own; None: all that are
            not reduced. A component's element must not depend on the others.
    """

    indices: tuple[str, ...]
    monoid: Monoid
    final: tuple[Expr, ...]
    scan: bool = False
    into: bool = False
    state_indices: tuple[tuple[str, ...] | None, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where in the user's program a statement comes from; for reports only."""

    op: str = ""
    file: str = ""
    line: int = 0
    module: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else self.module
        return f"{self.op} at {place}" if place else self.op


Order = tuple[Union[int, str], ...]
"""The 2d+1 form: position, index, position, …; starts and ends with a position."""


def shared_loops(a: Order, b: Order) -> int:
    """How many loops two statements run in together: their positions agree before each.

    What the statements call the loops' indices does not matter.
    """
    count = 0
    while 2 * count + 1 < min(len(a), len(b)) and a[2 * count] == b[2 * count]:
        count += 1
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """``writes = elements`` (pointwise) or ``writes = final(reduce elements)`` over ``domain``.

    ``elements``: one expression per write, or per state component if there is a ``reduction``.
    ``scatter``: for a non-affine or non-injective write without ``reduction``: ``unique`` promises
    distinct targets; ``last`` runs instances in order and the last write wins.
    """

    name: str
    domain: Domain
    order: Order
    writes: tuple[Write, ...]
    elements: tuple[Expr, ...]
    reduction: Reduction | None = None
    scatter: Literal["unique", "last"] | None = None
    origin: Origin | None = field(default=None, compare=False)
    _loads: tuple[Load, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def expressions(self) -> Iterator[Expr]:
        """Elements, indices of writes that are not affine, and final maps."""
        yield from self.elements
        for write in self.writes:
            yield from (i for i in write.indices if not isinstance(i, Affine))
        if self.reduction is not None:
            yield from self.reduction.final

    @property
    def loads(self) -> tuple[Load, ...]:
        """Every ``Load`` of its expressions; found once."""
        if self._loads is None:
            nodes = (n for e in self.expressions() for n in walk(e))
            found = tuple(n for n in nodes if isinstance(n, Load))
            object.__setattr__(self, "_loads", found)
            return found
        return self._loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Extern:
    """A call of a PyTorch operator that nobody lowered yet; counted, and refused in artifacts.

    ``arguments`` is a tree of tuples, JSON scalars and ``TensorRef``; ``inputs``/``outputs`` are
    tensor names.
    """

    name: str
    operator: str
    arguments: tuple[object, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    order: Order
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """A tensor among the arguments of an ``Extern``."""

    name: str


AnyStatement = Union[Statement, Extern]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A list of tensors and statements.

    Statements run in lexicographic order of ``order``; indices that are not part of an order are
    unordered. Tensor order among equal roles is the calling order.
    """

    name: str
    symbols: tuple[Symbol, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    statements: tuple[AnyStatement, ...] = ()

    def tensor(self, name: str) -> Tensor:
        """The tensor called ``name``; KeyError if there is none. Linear: index in hot code."""
        for t in self.tensors:
            if t.name == name:
                return t
        raise KeyError(name)

    def by_role(self, *roles: Role) -> tuple[Tensor, ...]:
        """Tensors with one of ``roles``, in order."""
        return tuple(t for t in self.tensors if t.role in roles)

    def symbol_ranges(self) -> dict[str, Interval]:
        """Inclusive bounds of each symbol, for ``Affine.bounds`` and ``Affine.simplify``."""
        return {s.name: (s.lower, s.upper) for s in self.symbols}


Kernel = Program
"""A Program of a few statements whose inputs and outputs are the tensors seen from outside."""


def box(**extents: Affine | int | str) -> Domain:
    """A domain of zero-based ranges: ``box(i=4, j="N")`` is 0 ≤ i < 4, 0 ≤ j < N."""
    zero = affine(0)
    return Domain(
        ranges=tuple(IndexRange(name=n, lower=zero, upper=affine(e)) for n, e in extents.items())
    )
