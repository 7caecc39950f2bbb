"""The templates of random programs and how often each is drawn; one of them has its place here."""

from __future__ import annotations

from nestor.ir.affine import affine, variable
from nestor.ir.expr import Expr, IndexExpr, Load, binary
from nestor.ir.monoid import sum_of
from nestor.ir.types import DType
from tests.fuzz.generate_programs import Dim, Maker, Template, dim
from tests.fuzz.templates import (
    accumulate_into,
    attention,
    concatenate,
    contraction,
    convolution,
    in_place,
    jacobi,
    plain_reduction,
    pointwise,
    recurrence,
    reduction,
    reshaped,
    scan,
    scatter,
    softmax,
    stencil,
    strided_write,
    triangle,
)


def joined_product(m: Maker) -> None:
    """A product with a tensor that is joined of others and of something computed."""
    rng = m.rng
    dtype = rng.choice([DType.f32, DType.f32, DType.f64, DType.i32])
    dims = dict(zip("qjd", m.dims(3, 300), strict=True))
    parts: list[Dim] = []
    for _ in range(rng.choice([2, 2, 3])):
        parts.append(rng.choice([dim(1), dims["j"], m.size()]))
    rng.shuffle(parts)
    start = Dim(0, affine(0))
    total = Dim(sum(p.value for p in parts), sum((p.expr for p in parts), affine(0)))
    out = m.add([total, dims["d"]], dtype, "temp", readable=False)
    for part in parts:
        here = {"j": part, "d": dims["d"]}
        given = m.add([part, dims["d"]], dtype, "input")
        element: Expr = Load(tensor=given.name, indices=(variable("j"), variable("d")), dtype=dtype)
        if rng.random() < 0.3:
            element = m.expression(dtype, [element], here, 1)
        at: list[IndexExpr] = [variable("j") + start.expr, variable("d")]
        m.statement([("j", part), ("d", dims["d"])], [(out, at)], [element])
        start = Dim(start.value + part.value, start.expr + part.expr)
    out.readable = True
    dims["j"] = total
    names = [n for n in "qjd" if n != "q" or rng.random() < 0.7]
    for reduced in rng.choice(["j", "d", "jd"]):
        other = m.add([dims[n] for n in names if n in ("q", reduced)], dtype, "input")
        at_other = tuple(variable(n) for n in names if n in ("q", reduced))
        given_load = Load(tensor=other.name, indices=at_other, dtype=dtype)
        joined = Load(tensor=out.name, indices=(variable("j"), variable("d")), dtype=dtype)
        free = [n for n in names if n != reduced]
        m.statement(
            [(n, dims[n]) for n in names],
            [m.target(free, dims, dtype)],
            [binary("mul", given_load, joined)],
            reduction=plain_reduction(sum_of(dtype), [reduced]),
        )
    m.features.add("joined product")


_KINDS: list[tuple[Template, int]] = [
    (pointwise, 30), (in_place, 4), (strided_write, 4), (concatenate, 4), (triangle, 6),
    (reduction, 24), (contraction, 14), (convolution, 6), (scan, 6), (scatter, 6),
    (accumulate_into, 5), (stencil, 3), (jacobi, 3), (recurrence, 5), (reshaped, 4), (softmax, 3),
    (attention, 2), (joined_product, 4),
]  # fmt: skip
TEMPLATES = [k for k, _ in _KINDS]
WEIGHTS = [w for _, w in _KINDS]
