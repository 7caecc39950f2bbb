"""Random scalar expressions over given leaves, of any type, with every operation."""

from __future__ import annotations

from random import Random

from nestor.ir.affine import Affine
from nestor.ir.expr import (
    FLOAT_UNARY,
    Call,
    Cast,
    Expr,
    Index,
    Select,
    binary,
    const,
    highest,
    lowest,
    unary,
)
from nestor.ir.types import DType

COMPUTING = (DType.f32, DType.f64, DType.i64, DType.i32, DType.i16, DType.i8, DType.u8, DType.bool)
"""Types that have arithmetic."""

GENTLE_UNARY = "neg abs floor ceil trunc round sign sqrt tanh sigmoid exp relu sin cos".split()
GENTLE_BINARY = "add sub mul add mul max min".split()
FLOAT_BINARY = "add sub mul div floordiv truncdiv mod rem min max pow atan2".split()
INT_UNARY = "neg abs sign not".split()
INT_BINARY = (
    "add sub mul floordiv truncdiv mod rem min max pow and or xor shl shr add sub mul".split()
)
COMPARE = "eq ne lt le gt ge".split()


def convert(e: Expr, dtype: DType) -> Expr:
    """``e`` as ``dtype``."""
    return e if e.dtype is dtype else Cast(x=e, dtype=dtype)


class Expressions:
    """Makes expressions.

    Args: rng: the source of chance. leaves: values to compute with. indices: affines that may
        appear as numbers. gentle: mostly operations that keep values moderate.
    """

    def __init__(
        self, rng: Random, leaves: list[Expr], indices: list[Affine], *, gentle: bool
    ) -> None:
        self.rng, self.leaves, self.indices, self.gentle = rng, leaves, indices, gentle

    def make(self, dtype: DType, depth: int) -> Expr:
        """A random expression of ``dtype`` with at most ``depth`` operations above each leaf."""
        if depth <= 0 or (depth < 3 and self.rng.random() < 0.15):
            return self.leaf(dtype)
        if dtype.is_storage_only:
            return Cast(x=self.make(DType.f32, depth - 1), dtype=dtype)
        if self.rng.random() < 0.08:
            other = self.rng.choice([*COMPUTING, DType.f16, DType.bf16])
            return convert(self.make(other, depth - 1), dtype)
        if self.rng.random() < 0.12:
            return Select(
                condition=self.make(DType.bool, depth - 1),
                a=self.make(dtype, depth - 1),
                b=self.make(dtype, depth - 1),
            )
        if dtype is DType.bool:
            return self._bool(depth - 1)
        return self._float(dtype, depth - 1) if dtype.is_float else self._int(dtype, depth - 1)

    def leaf(self, dtype: DType) -> Expr:
        """A given value, a constant, or an index."""
        chance = self.rng.random()
        same = [e for e in self.leaves if e.dtype is dtype]
        if same and chance < 0.75:
            return self.rng.choice(same)
        if self.leaves and chance < 0.85:
            return convert(self.rng.choice(self.leaves), dtype)
        if self.indices and chance < 0.9:
            number: Expr = Index(
                value=self.rng.choice(self.indices), dtype=self.rng.choice([DType.i64, DType.i32])
            )
            return convert(number, dtype)
        return self.constant(dtype)

    def constant(self, dtype: DType) -> Expr:
        """A literal; storage types have none of their own."""
        if dtype is DType.bool:
            return const(self.rng.random() < 0.5, dtype)
        if dtype.is_float:
            special = [0.0, 1.0, -1.0, 0.5, 2.0, -2.5, 3.0, 0.1]
            if not self.gentle:
                special += [float("inf"), float("-inf"), float("nan"), -0.0, 1e-40, 3e38]
            value = self.rng.choice(special)
            wide = DType.f32 if dtype.is_storage_only else dtype
            return convert(const(value, wide), dtype)
        low, high = int(lowest(dtype)), int(highest(dtype))
        choices = [0, 1, 2, 3, 7, high, low] + ([-1, -3] if dtype.is_signed else [])
        return const(self.rng.choice(choices[: 5 if self.gentle else None]), dtype)

    def _float(self, dtype: DType, depth: int) -> Expr:
        rng = self.rng
        if rng.random() < 0.04:
            args = tuple(self.make(dtype, depth) for _ in range(3))
            return Call(function="fma", args=args, dtype=dtype)
        if rng.random() < 0.02 and self.indices:
            seeds = [const(rng.randrange(1 << 40), DType.i64), const(rng.randrange(9), DType.i64)]
            args = (*seeds, Index(value=rng.choice(self.indices), dtype=DType.i64))
            return Call(function="random_uniform", args=args, dtype=dtype)
        if rng.random() < 0.4:
            op = rng.choice(GENTLE_UNARY if self.gentle else sorted({*FLOAT_UNARY, "neg", "abs"}))
            x = self.make(dtype, depth)
            return binary("max", x, const(0, dtype)) if op == "relu" else unary(op, x)
        op = rng.choice(GENTLE_BINARY if self.gentle else FLOAT_BINARY)
        return binary(op, self.make(dtype, depth), self.make(dtype, depth))

    def _int(self, dtype: DType, depth: int) -> Expr:
        if self.rng.random() < 0.25:
            return unary(self.rng.choice(INT_UNARY), self.make(dtype, depth))
        op = self.rng.choice(INT_BINARY)
        return binary(op, self.make(dtype, depth), self.make(dtype, depth))

    def _bool(self, depth: int) -> Expr:
        rng = self.rng
        chance = rng.random()
        if chance < 0.5:
            dtype = rng.choice(COMPUTING)
            return binary(rng.choice(COMPARE), self.make(dtype, depth), self.make(dtype, depth))
        if chance < 0.65:
            dtype = rng.choice([DType.f32, DType.f64])
            return unary(rng.choice(["isnan", "isinf"]), self.make(dtype, depth))
        if chance < 0.8:
            return unary("not", self.make(DType.bool, depth))
        op = rng.choice(["and", "or", "xor", "min", "max"])
        return binary(op, self.make(DType.bool, depth), self.make(DType.bool, depth))
