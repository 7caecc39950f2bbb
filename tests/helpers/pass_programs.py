"""Random small Programs of views, pointwise work, reductions and contractions, for pass tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Expr, Index, Load, Select, const
from nestor.ir.monoid import Monoid, max_of, sum_of
from nestor.ir.program import Domain, IndexRange, Program, Role, Statement, Tensor, Write
from nestor.ir.types import DType
from tests.helpers.ir_programs import fn, load, op, reduce

f32 = DType.f32
Shape = tuple[int, ...]


@dataclass
class Builder:
    """Collects tensors and statements; every method returns the name of a new tensor."""

    tensors: list[Tensor] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def tensor(self, shape: Shape, role: Role = "temp") -> str:
        name = f"{'t' if role == 'temp' else role[0]}{len(self.tensors)}"
        self.tensors.append(
            Tensor(name=name, shape=tuple(map(affine, shape)), dtype=f32, role=role)
        )
        self.shapes[name] = shape
        return name

    def add(
        self,
        extents: dict[str, int],
        writes: Write,
        element: Expr,
        reduced: tuple[str, ...] = (),
        monoid: Monoid | None = None,
    ) -> None:
        ranges = tuple(
            IndexRange(name=n, lower=affine(0), upper=affine(e)) for n, e in extents.items()
        )
        self.statements.append(
            Statement(
                name=f"S{len(self.statements)}",
                domain=Domain(ranges=ranges),
                order=(len(self.statements),),
                writes=(writes,),
                elements=(element,),
                reduction=None if monoid is None else reduce(monoid, *reduced),
            )
        )

    def names(self, shape: Shape) -> list[str]:
        return [f"i{d}" for d in range(len(shape))]

    def plain(self, name: str) -> Load:
        return load(name, *self.names(self.shapes[name]))

    def elementwise(self, shape: Shape, element: Expr) -> str:
        out = self.tensor(shape)
        names = self.names(shape)
        target = Write(tensor=out, indices=tuple(map(variable, names)))
        self.add(dict(zip(names, shape)), target, element)
        return out

    def program(self, outputs: list[str]) -> Program:
        tensors = [
            Tensor(name=t.name, shape=t.shape, dtype=t.dtype, role="output")
            if t.name in outputs
            else t
            for t in self.tensors
        ]
        return Program(name="p", tensors=tuple(tensors), statements=tuple(self.statements))


SHAPES: list[Shape] = [(6,), (2, 3), (4, 3), (2, 3, 2), (1, 4), (12,), (2, 6)]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A Program of 2 to 7 steps on inputs and parameters; the last tensors are outputs."""
    b = Builder()
    pool = [b.tensor(draw(st.sampled_from(SHAPES)), role) for role in ("input", "input")]
    pool.append(b.tensor(draw(st.sampled_from(SHAPES)), "parameter"))
    for _ in range(draw(st.integers(2, 7))):
        source = pool[draw(st.integers(max(0, len(pool) - 4), len(pool) - 1))]
        step = draw(st.sampled_from(STEPS))
        pool.append(step(draw, b, source, pool))
    outputs = list(pool[3:][-2:])
    return b.program(outputs)


def _permute(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    shape = b.shapes[source]
    order = draw(st.permutations(range(len(shape))))
    out = b.tensor(tuple(shape[d] for d in order))
    names = b.names(shape)
    if draw(st.booleans()):  # permute while reading, or while writing
        extents = {names[p]: shape[d] for p, d in enumerate(order)}
        indices = [variable(names[order.index(d)]) for d in range(len(shape))]
        target = Write(tensor=out, indices=tuple(map(variable, names)))
        b.add(extents, target, load(source, *indices))
    else:
        target = Write(tensor=out, indices=tuple(variable(names[d]) for d in order))
        b.add(dict(zip(names, shape)), target, b.plain(source))
    return out


def _reshape(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    shape = b.shapes[source]
    total = 1
    for extent in shape:
        total *= extent
    options = [(total,)] + [(d, total // d) for d in (2, 3, 4) if total % d == 0]
    new = draw(st.sampled_from(options))
    flat: Affine = affine(0)
    for name, extent in zip(b.names(new), new):
        flat = flat * extent + name
    indices: list[Affine] = []
    for extent in reversed(shape):
        indices.append((flat % extent).simplify({}))
        flat = flat // extent
    ranges = {n: (0, e - 1) for n, e in zip(b.names(new), new)}
    return b.elementwise(new, load(source, *(i.simplify(ranges) for i in reversed(indices))))


def _slice(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    shape = b.shapes[source]
    d = draw(st.integers(0, len(shape) - 1))
    start = draw(st.integers(0, shape[d] - 1))
    step = draw(st.integers(1, 2))
    extent = (shape[d] - start + step - 1) // step
    new = (*shape[:d], extent, *shape[d + 1 :])
    indices = [variable(n) for n in b.names(new)]
    indices[d] = indices[d] * step + start
    return b.elementwise(new, load(source, *indices))


def _pad(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    shape = b.shapes[source]
    d = draw(st.integers(0, len(shape) - 1))
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    new = (*shape[:d], shape[d] + before + after, *shape[d + 1 :])
    indices = [variable(n) for n in b.names(new)]
    indices[d] = indices[d] - before
    inside = (indices[d], affine(shape[d] - 1) - indices[d])
    other = const(draw(st.sampled_from([0.0, 1.0])), f32)
    return b.elementwise(new, load(source, *indices, predicate=inside, other=other))


def _concatenate(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    """Two statements that write a slice each."""
    shape = b.shapes[source]
    out = b.tensor((2 * shape[0], *shape[1:]))
    names = b.names(shape)
    for offset in (0, shape[0]):
        indices = [variable(n) for n in names]
        indices[0] = indices[0] + offset
        element = b.plain(source) if offset else fn("neg", b.plain(source))
        b.add(dict(zip(names, shape)), Write(tensor=out, indices=tuple(indices)), element)
    return out


def _pointwise(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    x: Expr = b.plain(source)
    kind = draw(st.sampled_from(["relu", "exp", "affine", "square", "mask", "pair"]))
    shape = b.shapes[source]
    if kind == "relu":
        return b.elementwise(shape, op("max", x, const(0, f32)))
    if kind == "exp":
        return b.elementwise(shape, fn("tanh", x))
    if kind == "affine":
        return b.elementwise(shape, op("add", op("mul", x, const(0.5, f32)), const(1.5, f32)))
    if kind == "square":
        return b.elementwise(shape, op("pow", x, const(2, f32)))
    if kind == "mask":
        first = Index(value=variable("i0"))
        keep = op("lt", first, const(draw(st.integers(0, 4)), DType.i64))
        return b.elementwise(shape, Select(condition=keep, a=x, b=const(-1, f32)))
    same = [n for n in pool if b.shapes[n] == shape]
    return b.elementwise(shape, op("add", x, b.plain(draw(st.sampled_from(same)))))


def _expand(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    shape = b.shapes[source]
    if len(shape) > 2:
        return _pointwise(draw, b, source, pool)
    new = (2, *shape)
    return b.elementwise(new, load(source, *b.names(new)[1:]))


def _reduce(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    shape = b.shapes[source]
    if len(shape) < 2:
        return _pointwise(draw, b, source, pool)
    d = draw(st.integers(0, len(shape) - 1))
    names = b.names(shape)
    out = b.tensor(tuple(e for p, e in enumerate(shape) if p != d))
    target = Write(tensor=out, indices=tuple(variable(n) for p, n in enumerate(names) if p != d))
    monoid = draw(st.sampled_from([sum_of(f32), max_of(f32)]))
    b.add(dict(zip(names, shape)), target, b.plain(source), (names[d],), monoid)
    return out


def _contract(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    """``out[…, n] = Σ_k source[…, k] * w[n, k]`` with a new parameter."""
    shape = b.shapes[source]
    n = draw(st.sampled_from([2, 3]))
    w = b.tensor((n, shape[-1]), "parameter")
    out = b.tensor((*shape[:-1], n))
    names = b.names(shape)
    target = Write(tensor=out, indices=(*(variable(x) for x in names[:-1]), variable("n")))
    element = op("mul", b.plain(source), load(w, "n", names[-1]))
    extents = {**dict(zip(names[:-1], shape)), "n": n, names[-1]: shape[-1]}
    b.add(extents, target, element, (names[-1],), sum_of(f32))
    return out


def _scale(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    """``x * a`` or ``(x - m) * a + b`` with parameters over one or no index."""
    shape = b.shapes[source]
    x: Expr = b.plain(source)
    d = draw(st.integers(0, len(shape) - 1))
    vectors = [load(b.tensor((shape[d],), "parameter"), b.names(shape)[d]) for _ in range(3)]
    if draw(st.booleans()):
        return b.elementwise(shape, op("mul", x, vectors[0]))
    return b.elementwise(
        shape, op("add", op("mul", op("sub", x, vectors[1]), vectors[0]), vectors[2])
    )


def _window(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    """A convolution, or a maximum, over a padded window of the last dimension."""
    shape = b.shapes[source]
    kernel, pad = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    stride = draw(st.integers(1, 2))
    extent = (shape[-1] + 2 * pad - kernel) // stride + 1
    if extent < 1 or len(shape) > 3:
        return _pointwise(draw, b, source, pool)
    names = b.names(shape)
    at = variable(names[-1]) * stride + "r" - pad
    inside = (at, affine(shape[-1] - 1) - at)
    is_sum = draw(st.booleans())
    other = const(0.0 if is_sum else -100.0, f32)
    operand = load(source, *names[:-1], at, predicate=inside, other=other)
    lead = dict(zip(names[:-1], shape))
    if not is_sum:
        out = b.tensor((*shape[:-1], extent))
        target = Write(tensor=out, indices=tuple(map(variable, names)))
        b.add({**lead, names[-1]: extent, "r": kernel}, target, operand, ("r",), max_of(f32))
        return out
    w = b.tensor((9, kernel), "parameter")
    out = b.tensor((*shape[:-1], 9, extent))
    target = Write(tensor=out, indices=tuple(map(variable, (*names[:-1], "o", names[-1]))))
    element = op("mul", operand, load(w, "o", "r"))
    extents = {**lead, "o": 9, names[-1]: extent, "r": kernel}
    b.add(extents, target, element, ("r",), sum_of(f32))
    return out


def _softmax(draw: st.DrawFn, b: Builder, source: str, pool: list[str]) -> str:
    """Exponentials over their sum, along the last dimension, and a product with a parameter."""
    shape = b.shapes[source]
    if len(shape) < 2:
        return _pointwise(draw, b, source, pool)
    names = b.names(shape)
    exponential = fn("exp", op("min", b.plain(source), const(4.0, f32)))
    total = b.tensor(shape[:-1])
    target = Write(tensor=total, indices=tuple(map(variable, names[:-1])))
    b.add(dict(zip(names, shape)), target, exponential, (names[-1],), sum_of(f32))
    out = b.elementwise(shape, op("div", exponential, load(total, *names[:-1])))
    return _contract(draw, b, out, pool) if draw(st.booleans()) else out


STEPS = (
    _permute, _reshape, _slice, _pad, _concatenate, _pointwise, _pointwise, _expand, _reduce,
    _contract, _contract, _scale, _scale, _window, _softmax,
)  # fmt: skip
