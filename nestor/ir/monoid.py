"""Monoids: how a reduction or a scan combines its elements.

A monoid has a state of one or more scalars, an identity, and an associative ``combine`` written
over ``a0, a1, …`` (the left state) and ``b0, b1, …`` (the right state; an element is a state too).
The *final map* from state to outputs belongs to the statement (``Reduction.final``), over
``s0, s1, …``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from nestor.ir.expr import Binary, Const, Expr, Select, Var, binary, const, highest, lowest, unary
from nestor.ir.types import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Monoid:
    """An associative combination of states with an identity.

    Attributes:
        name: for printing; equal names with equal dtypes mean the same builtin.
        identity: one constant per state component; fixes the component's dtype.
        combine: one expression per component over ``Var`` ``a{i}`` and ``b{i}``.
        commutative: whether the order of elements is free.
    """

    name: str
    identity: tuple[Const, ...]
    combine: tuple[Expr, ...]
    commutative: bool = True

    def __post_init__(self) -> None:
        if len(self.identity) != len(self.combine):
            raise ValueError(f"monoid {self.name}: identity and combine differ in length")

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """Types of the state's components."""
        return tuple(c.dtype for c in self.identity)


def state_vars(prefix: str, dtypes: tuple[DType, ...]) -> tuple[Var, ...]:
    """``Var`` nodes ``prefix0, prefix1, …``."""
    return tuple(Var(name=f"{prefix}{i}", dtype=d) for i, d in enumerate(dtypes))


def _simple(name: str, op: str, identity: float | int | bool, dtype: DType) -> Monoid:
    a, b = state_vars("a", (dtype,))[0], state_vars("b", (dtype,))[0]
    return Monoid(name=name, identity=(const(identity, dtype),), combine=(binary(op, a, b),))


def sum_of(dtype: DType) -> Monoid:
    """Addition."""
    return _simple("sum", "add", 0, dtype)


def prod_of(dtype: DType) -> Monoid:
    """Multiplication."""
    return _simple("prod", "mul", 1, dtype)


def max_of(dtype: DType) -> Monoid:
    """Maximum; NaN wins."""
    return _simple("max", "max", lowest(dtype), dtype)


def min_of(dtype: DType) -> Monoid:
    """Minimum; NaN wins."""
    return _simple("min", "min", highest(dtype), dtype)


def any_of() -> Monoid:
    """Logical or."""
    return _simple("any", "or", False, DType.bool)


def all_of() -> Monoid:
    """Logical and."""
    return _simple("all", "and", True, DType.bool)


def _arg(name: str, op: str, identity: float | int | bool, dtype: DType) -> Monoid:
    """State (value, index); ties go to the lower index; the first NaN wins."""
    a0, a1 = state_vars("a", (dtype, DType.i64))
    b0, b1 = state_vars("b", (dtype, DType.i64))
    lower: Expr = binary("lt", b1, a1)
    take: Expr = binary("or", binary(op, b0, a0), binary("and", binary("eq", b0, a0), lower))
    if dtype.is_float:
        a_nan, b_nan = unary("isnan", a0), unary("isnan", b0)
        both = Select(condition=a_nan, a=lower, b=const(True, DType.bool))
        take = Select(
            condition=b_nan,
            a=both,
            b=Select(condition=a_nan, a=const(False, DType.bool), b=take),
        )
    return Monoid(
        name=name,
        identity=(const(identity, dtype), const(highest(DType.i64), DType.i64)),
        combine=(Select(condition=take, a=b0, b=a0), Select(condition=take, a=b1, b=a1)),
    )


def argmax_of(dtype: DType) -> Monoid:
    """State (value, index) of the greatest element, as PyTorch's ``max(dim)``."""
    return _arg("argmax", "gt", lowest(dtype), dtype)


def argmin_of(dtype: DType) -> Monoid:
    """State (value, index) of the least element, as PyTorch's ``min(dim)``."""
    return _arg("argmin", "lt", highest(dtype), dtype)


def welford_of(dtype: DType) -> Monoid:
    """State (mean, M2, count); an element is ``(x, 0, 1)``. Source: Chan, Golub, LeVeque 1979."""
    a0, a1, a2 = state_vars("a", (dtype,) * 3)
    b0, b1, b2 = state_vars("b", (dtype,) * 3)
    zero, one = const(0, dtype), const(1, dtype)
    n = binary("add", a2, b2)
    safe_n = Select(condition=binary("eq", n, zero), a=one, b=n)
    delta = binary("sub", b0, a0)
    weight = binary("div", b2, safe_n)
    mean = binary("add", a0, binary("mul", delta, weight))
    cross = binary("mul", binary("mul", delta, delta), binary("mul", a2, weight))
    return Monoid(
        name="welford",
        identity=(zero, zero, zero),
        combine=(mean, binary("add", binary("add", a1, b1), cross), n),
    )


def _rescale(a0: Expr, m: Expr, dtype: DType) -> Expr:
    """``exp(a0 - m)``, and 0 where ``a0`` is still −inf (then m may be −inf too)."""
    is_empty = binary("eq", a0, const(lowest(dtype), dtype))
    return Select(condition=is_empty, a=const(0, dtype), b=unary("exp", binary("sub", a0, m)))


def logsumexp_of(dtype: DType) -> Monoid:
    """State (max, sum of exp(x − max)); an element is ``(x, 1)``.

    Source: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018.
    """
    a0, a1 = state_vars("a", (dtype,) * 2)
    b0, b1 = state_vars("b", (dtype,) * 2)
    m = binary("max", a0, b0)
    left = binary("mul", a1, _rescale(a0, m, dtype))
    right = binary("mul", b1, _rescale(b0, m, dtype))
    return Monoid(
        name="logsumexp",
        identity=(const(lowest(dtype), dtype), const(0, dtype)),
        combine=(m, binary("add", left, right)),
    )


def online_softmax_of(dtype: DType) -> Monoid:
    """State (m, l, acc) of softmax-weighted sums; an element is ``(s, 1, v)``.

    Source: Dao et al., "FlashAttention", NeurIPS 2022, section 3.1.
    """
    base = logsumexp_of(dtype)
    a0, a2 = Var(name="a0", dtype=dtype), Var(name="a2", dtype=dtype)
    b0, b2 = Var(name="b0", dtype=dtype), Var(name="b2", dtype=dtype)
    m: Binary = binary("max", a0, b0)
    left = binary("mul", a2, _rescale(a0, m, dtype))
    right = binary("mul", b2, _rescale(b0, m, dtype))
    return Monoid(
        name="online_softmax",
        identity=(*base.identity, const(0, dtype)),
        combine=(*base.combine, binary("add", left, right)),
    )


BUILTINS = {
    "sum": sum_of,
    "prod": prod_of,
    "max": max_of,
    "min": min_of,
    "argmax": argmax_of,
    "argmin": argmin_of,
    "welford": welford_of,
    "logsumexp": logsumexp_of,
    "online_softmax": online_softmax_of,
}
"""Builtin monoids by name; each takes the dtype of its first component."""


@functools.cache
def builtin_monoid(name: str, dtype: DType) -> Monoid | None:
    """The builtin called ``name`` on ``dtype``, ``any`` and ``all`` too; None if there is none."""
    if name in ("any", "all") and dtype is DType.bool:
        return any_of() if name == "any" else all_of()
    make = BUILTINS.get(name)
    return None if make is None else make(dtype)


def is_builtin(monoid: Monoid) -> bool:
    """Whether ``monoid`` is the builtin of its name and first dtype."""
    return bool(monoid.identity) and builtin_monoid(monoid.name, monoid.dtypes[0]) == monoid
