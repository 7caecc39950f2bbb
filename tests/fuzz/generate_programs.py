"""Random small kernels: every kind of statement that the IR knows, on sizes from 1 to 20.

``random_case(seed)`` is a pure function of its seed. Accesses are in bounds by construction: a new
input gets the shape that its accesses need, an existing tensor gets indices that fit its shape, or
a predicate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Expr, IndexExpr, Load, Var, const
from nestor.ir.program import (
    Domain,
    IndexRange,
    Layout,
    Program,
    Role,
    Statement,
    Symbol,
    Tensor,
    Write,
)
from nestor.ir.types import DType
from tests.fuzz.generate_expressions import Expressions, convert

SIZES = (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 8, 9, 11, 13, 16, 17, 20)
LARGE_SIZES = (65, 130, 257, 530)
"""Now and then: more than a handful of vectors, and more than is unrolled."""

MAX_INSTANCES = 700
"""Instances of one statement at most."""

DTYPES = (
    [DType.f32] * 10 + [DType.f64] * 2 + [DType.f16, DType.bf16, DType.i64, DType.i32, DType.i16]
    + [DType.i8, DType.u8, DType.bool]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dim:
    """An extent: its value in this case, and how the Program writes it."""

    value: int
    expr: Affine

    @property
    def is_const(self) -> bool:
        """True if no symbol occurs."""
        return self.expr.is_const


def dim(value: int) -> Dim:
    """A constant extent."""
    return Dim(value, affine(value))


@dataclass(slots=True)
class Known:
    """A tensor of the Program under construction."""

    name: str
    dims: tuple[Dim, ...]
    dtype: DType
    role: Role
    alias_of: str | None = None
    layout: Layout | None = None
    readable: bool = True
    indexes: int = 0
    distinct: bool = False

    def tensor(self) -> Tensor:
        """The IR's node."""
        return Tensor(
            name=self.name,
            shape=tuple(d.expr for d in self.dims),
            dtype=self.dtype,
            role=self.role,
            layout=self.layout,
            alias_of=self.alias_of,
        )


@dataclass(frozen=True, slots=True)
class Case:
    """A Program, symbol values, and what is special about its inputs.

    ``indexes``: inputs that hold indices below a bound (and whether they are distinct).
    ``features``: what occurs, for the coverage count.
    """

    seed: int
    program: Program
    symbols: dict[str, int]
    indexes: dict[str, tuple[int, bool]]
    features: frozenset[str]
    gentle: bool


@dataclass(slots=True)
class Maker:
    """A Program under construction."""

    rng: Random
    gentle: bool
    tensors: list[Known] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    symbols: dict[str, int] = field(default_factory=dict)
    features: set[str] = field(default_factory=set)
    sizes: list[Dim] = field(default_factory=list)
    position: int = 0

    # Sizes, names, tensors

    def size(self) -> Dim:
        """An extent; those used before come again, so that loops can be fused."""
        if self.sizes and self.rng.random() < 0.6:
            return self.rng.choice(self.sizes)
        value = self.rng.choice(SIZES)
        if self.rng.random() < 0.03:
            value = self.rng.choice(LARGE_SIZES)
            self.features.add("large")
        if self.rng.random() < 0.01:
            value = 0
            self.features.add("empty")
        new = dim(value)
        if self.rng.random() < 0.12 and len(self.symbols) < 2 and value:
            name = f"N{len(self.symbols)}"
            self.symbols[name] = value
            self.features.add("symbol")
            new = Dim(value, variable(name))
        self.sizes.append(new)
        return new

    def dims(self, rank: int, limit: int = MAX_INSTANCES) -> list[Dim]:
        """Extents whose product is at most ``limit``."""
        out = [self.size() for _ in range(rank)]
        while product(out) > limit:
            k = max(range(rank), key=lambda i: out[i].value)
            out[k] = dim(self.rng.choice([s for s in SIZES if s <= max(1, out[k].value // 2)]))
        return out

    def add(self, dims: list[Dim], dtype: DType, role: Role, **more: object) -> Known:
        """A new tensor."""
        prefix = {"input": "x", "parameter": "w", "constant": "c", "inout": "u", "state": "q"}
        name = f"{prefix.get(role, 't')}{len(self.tensors)}"
        known = Known(name, tuple(dims), dtype, role, **more)  # type: ignore[arg-type]
        self.tensors.append(known)
        return known

    def dtype(self) -> DType:
        """A random element type, float32 most often."""
        return self.rng.choice(DTYPES)

    def index_names(self, count: int) -> list[str]:
        """Names of domain indices, in random order."""
        names = list("ijklmn"[:count])
        self.rng.shuffle(names)
        return names

    # Reads

    def read(self, indices: dict[str, Dim], dtype: DType | None = None) -> Load:
        """A load at random indices, from a tensor that exists or a new input."""
        rng = self.rng
        existing = [
            t
            for t in self.tensors
            if t.readable and not t.indexes and (dtype is None or t.dtype is dtype)
        ]
        written = [t for t in existing if t.role in ("temp", "output")]
        if written and rng.random() < 0.6:
            return self.fit(rng.choice(written), indices)
        if existing and rng.random() < 0.25:
            return self.fit(rng.choice(existing), indices)
        return self.fresh(indices, dtype or self.dtype())

    def fresh(self, indices: dict[str, Dim], dtype: DType) -> Load:
        """A load from a new input whose shape fits."""
        rng = self.rng
        names = [n for n in indices if rng.random() < 0.8] or list(indices)[:1]
        rng.shuffle(names)
        at: list[Affine] = []
        dims: list[Dim] = []
        for name in names[:3]:
            index, extent = self.fresh_index(name, indices)
            at.append(index)
            dims.append(extent)
        role = rng.choice(["input", "input", "input", "parameter", "parameter", "constant"])
        if not at and rng.random() < 0.5:
            at, dims = [affine(0)], [dim(1)]
        t = self.add(dims, dtype, role)
        if at and rng.random() < 0.15:
            return self.shifted(t, at)
        self.features.add("broadcast" if len(at) < len(indices) else "full")
        return Load(tensor=t.name, indices=tuple(at), dtype=dtype)

    def fresh_index(self, name: str, indices: dict[str, Dim]) -> tuple[Affine, Dim]:
        """A random index expression of ``name`` and the extent it needs."""
        rng, d, i = self.rng, indices[name], variable(name)
        kind = rng.choice(
            "plain plain plain plain plain shift stride reverse div mod window".split()
        )
        if kind == "shift":
            return i + 1, Dim(d.value + 1, d.expr + 1)
        if kind == "stride" and d.value > 0:
            self.features.add("stride")
            return i * 2 + 1, Dim(2 * d.value, d.expr * 2)
        if kind == "reverse":
            self.features.add("reverse")
            return d.expr - 1 - i, d
        if d.is_const and kind == "div" and d.value > 1:
            self.features.add("div")
            return i // 2, dim((d.value + 1) // 2)
        if d.is_const and kind == "mod" and d.value > 3:
            self.features.add("mod")
            return i % 3, dim(3)
        others = [n for n in indices if n != name]
        if kind == "window" and others and d.value > 0:
            other = rng.choice(others)
            e = indices[other]
            if e.value > 0 and (e.is_const or d.is_const):
                self.features.add("window")
                return i + variable(other), Dim(d.value + e.value - 1, d.expr + e.expr - 1)
        return i, d

    def shifted(self, t: Known, at: list[Affine]) -> Load:
        """A padded read: the index moves, a predicate keeps it inside."""
        self.features.add("predicate")
        k = self.rng.randrange(len(at))
        moved = at[k] - self.rng.choice([1, 2, -1])
        at = [*at[:k], moved, *at[k + 1 :]]
        inside = (moved, t.dims[k].expr - 1 - moved)
        return self.guarded(t, at, inside)

    def guarded(self, t: Known, at: list[Affine], inside: tuple[Affine, ...]) -> Load:
        """A load under a predicate, else a constant."""
        maker = Expressions(self.rng, [], [], gentle=self.gentle)
        return Load(
            tensor=t.name,
            indices=tuple(at),
            dtype=t.dtype,
            predicate=inside,
            other=maker.constant(t.dtype),
        )

    def fit(self, t: Known, indices: dict[str, Dim]) -> Load:
        """A load from ``t``: indices that fit its shape, or a predicate where they do not."""
        rng = self.rng
        at: list[Affine] = []
        inside: list[Affine] = []
        free = list(indices)
        for d in t.dims:
            equal = [n for n in free if indices[n].expr == d.expr]
            if equal and rng.random() < 0.9:
                name = rng.choice(equal)
                free.remove(name)
                i = variable(name)
                at.append(d.expr - 1 - i if rng.random() < 0.12 else i)
                continue
            index, condition = self._fit_dimension(d, free, indices)
            at.append(index)
            inside += condition
        if not inside and at and rng.random() < 0.1:
            return self.shifted(t, at)
        if inside:
            self.features.add("predicate")
            return self.guarded(t, at, tuple(inside))
        return Load(tensor=t.name, indices=tuple(at), dtype=t.dtype)

    def _fit_dimension(
        self, d: Dim, free: list[str], indices: dict[str, Dim]
    ) -> tuple[Affine, list[Affine]]:
        if d.value == 0 or (not free and not indices):
            return affine(0), [d.expr - 1]
        names = free or list(indices)
        smaller = [
            n for n in names if d.is_const and indices[n].is_const and indices[n].value <= d.value
        ]
        if smaller and self.rng.random() < 0.7:
            name = self.rng.choice(smaller)
            if name in free:
                free.remove(name)
            room = d.value - indices[name].value
            return variable(name) + self.rng.randint(0, max(0, room)), []
        name = self.rng.choice(names)
        if name in free:
            free.remove(name)
        i = variable(name)
        if d.is_const and self.rng.random() < 0.5:
            return i % d.value, []
        shift = self.rng.choice([0, 0, 1])
        return i - shift, [i - shift, d.expr - 1 - (i - shift)]

    def gathered(self, indices: dict[str, Dim]) -> Load | None:
        """A read whose first index comes from an input; None if nothing can be gathered from."""
        rng = self.rng
        tables = [
            t
            for t in self.tensors
            if t.readable and not t.indexes and t.dims
            and t.dims[0].is_const and t.dims[0].value >= 4
        ]  # fmt: skip
        if tables and rng.random() < 0.6:
            t = rng.choice(tables)
        else:
            t = self.add([dim(rng.choice([4, 5, 8])), self.size()], self.dtype(), "input")
        self.features.add("gather")
        inner = self.fit(t, indices)
        row = self.index_load(indices, t.dims[0].value)
        return replace(inner, indices=(row, *inner.indices[1:]))

    def index_load(self, indices: dict[str, Dim], bound: int, *, distinct: bool = False) -> Expr:
        """An element of a new input that holds indices below ``bound``."""
        names = list(indices)
        chosen = names if distinct else [n for n in names if self.rng.random() < 0.6][:2]
        dtype = DType.i64 if self.rng.random() < 0.8 else DType.i32
        t = self.add([indices[n] for n in chosen], dtype, "input", indexes=bound)
        t.distinct = distinct
        return Load(tensor=t.name, indices=tuple(map(variable, chosen)), dtype=dtype)

    def leaves(self, indices: dict[str, Dim], count: int) -> list[Expr]:
        """Loads to compute with."""
        out: list[Expr] = []
        for _ in range(count):
            load = self.gathered(indices) if self.rng.random() < 0.06 else self.read(indices)
            if load is not None:
                out.append(load)
        return out

    def expression(
        self,
        dtype: DType,
        leaves: list[Expr],
        indices: dict[str, Dim],
        depth: int | None = None,
    ) -> Expr:
        """A random expression over ``leaves``."""
        affines = [variable(n) for n in indices]
        maker = Expressions(self.rng, leaves, affines, gentle=self.gentle)
        return maker.make(dtype, self.rng.choice([0, 1, 1, 2, 2, 3]) if depth is None else depth)

    # Statements

    def statement(
        self,
        ranges: list[tuple[str, Dim]],
        writes: list[tuple[Known, list[IndexExpr]]],
        elements: list[Expr],
        **more: object,
    ) -> Statement:
        """Append a statement over a box; ``more`` are fields of ``Statement`` and constraints."""
        domain = more.pop("domain", None) or box_of(ranges)
        order = more.pop("order", None)
        if order is None:
            order = (self.position,)
            self.position += 1
        s = Statement(
            name=f"S{len(self.statements)}",
            domain=domain,  # type: ignore[arg-type]
            order=order,  # type: ignore[arg-type]
            writes=tuple(Write(tensor=t.name, indices=tuple(i)) for t, i in writes),
            elements=tuple(elements),
            **more,  # type: ignore[arg-type]
        )
        self.statements.append(s)
        return s

    def target(
        self, indices: list[str], dims: dict[str, Dim], dtype: DType
    ) -> tuple[Known, list[IndexExpr]]:
        """A new temp indexed by a permutation of ``indices``."""
        order = list(indices)
        if self.rng.random() < 0.3:
            self.rng.shuffle(order)
        out = self.add([dims[n] for n in order], dtype, "temp")
        at: list[IndexExpr] = [variable(n) for n in order]
        if self.rng.random() < 0.05 and order:
            at[0] = dims[order[0]].expr - 1 - variable(order[0])
        return out, at


def product(dims: list[Dim]) -> int:
    """Number of points of a box."""
    total = 1
    for d in dims:
        total *= d.value
    return total


def box_of(ranges: list[tuple[str, Dim]]) -> Domain:
    """A domain of zero-based ranges."""
    return Domain(
        ranges=tuple(IndexRange(name=n, lower=affine(0), upper=d.expr) for n, d in ranges)
    )


Template = Callable[[Maker], None]


def random_case(seed: int) -> Case:
    """The Program of ``seed``, with symbol values and what its inputs must hold."""
    from tests.fuzz.template_kinds import TEMPLATES, WEIGHTS
    from tests.fuzz.templates import pointwise

    rng = Random(f"program {seed}")
    maker = Maker(rng, gentle=rng.random() < 0.75)
    for _ in range(rng.choice([1, 1, 2, 2, 2, 3, 3, 4])):
        template = rng.choices(TEMPLATES, WEIGHTS)[0]
        template(maker)
        if len(maker.statements) >= 4:
            break
    if not maker.statements:
        pointwise(maker)
    return finish(maker, seed)


def finish(maker: Maker, seed: int) -> Case:
    """Settle roles and layouts."""
    _settle_roles(maker)
    _add_layouts(maker)
    symbols = tuple(
        Symbol(name=n, lower=1, upper=maker.rng.choice([None, 20 if value <= 17 else value + 3]))
        for n, value in maker.symbols.items()
    )
    program = Program(
        name="fuzz",
        symbols=symbols,
        tensors=tuple(t.tensor() for t in maker.tensors),
        statements=tuple(maker.statements),
    )
    indexes = {t.name: (t.indexes, t.distinct) for t in maker.tensors if t.indexes}
    features = maker.features | {t.dtype.value for t in maker.tensors}
    return Case(seed, program, dict(maker.symbols), indexes, frozenset(features), maker.gentle)


def _settle_roles(maker: Maker) -> None:
    """Temps that are read stay temps most often; the others are outputs."""
    read = {load.tensor for s in maker.statements for e in exprs_of(s) for load in _loads(e)}
    for t in maker.tensors:
        if t.role != "temp" or t.alias_of is not None:
            continue
        used = t.name in read or any(x.alias_of == t.name and x.name in read for x in maker.tensors)
        if not used or maker.rng.random() < 0.25:
            t.role = "output"
    if not any(t.role in ("output", "inout", "state") for t in maker.tensors):
        last = next(t for t in reversed(maker.tensors) if t.role == "temp" and not t.alias_of)
        last.role = "output"


def exprs_of(s: Statement) -> list[Expr]:
    """All expressions of a statement."""
    out = [*s.elements, *(s.reduction.final if s.reduction else ())]
    return out + [i for w in s.writes for i in w.indices if not isinstance(i, Affine)]


def _loads(e: Expr) -> list[Load]:
    from nestor.ir.expr import loads

    return list(loads(e))


def _add_layouts(maker: Maker) -> None:
    """Some tensors are stored permuted or blocked."""
    shared = {t.alias_of for t in maker.tensors}
    for t in maker.tensors:
        if t.alias_of is not None or t.name in shared or not t.dims:
            continue
        if maker.rng.random() > 0.15:
            continue
        if not all(d.is_const for d in t.dims):
            continue
        maker.features.add("layout")
        t.layout = random_layout(maker.rng, t.dims)


def random_layout(rng: Random, dims: tuple[Dim, ...]) -> Layout:
    """Dimensions permuted; some of them split into blocks."""
    order = list(range(len(dims)))
    rng.shuffle(order)
    physical: list[Affine] = []
    shape: list[Affine] = []
    inner: list[tuple[Affine, int]] = []
    for d in order:
        index, extent = variable(f"d{d}"), dims[d].value
        if extent > 1 and rng.random() < 0.4:
            block = rng.choice([2, 3, 4, 8])
            physical.append(index // block)
            shape.append(affine(-(-extent // block)))
            inner.append((index % block, block))
        else:
            physical.append(index)
            shape.append(affine(extent))
    physical += [i for i, _ in inner]
    shape += [affine(b) for _, b in inner]
    return Layout(physical=tuple(physical), shape=tuple(shape))


__all__ = ["Case", "Dim", "Known", "Maker", "Var", "const", "convert", "random_case"]
