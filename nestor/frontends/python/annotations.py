"""Types of kernel parameters: ``nestor.f64["N", "M"]`` is an array, ``nestor.f64`` a scalar."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from nestor.errors import UserError
from nestor.ir.affine import Affine, affine
from nestor.ir.types import DType


@dataclass(frozen=True, slots=True)
class ElementType:
    """An element type: as an annotation a scalar, subscripted with sizes an array.

    A size is a number, or text: a symbol (``"N"``) or an affine expression of symbols
    (``"2*N + 1"``, ``"N // 2"``). A symbol is bound from the arrays at the call.
    """

    dtype: DType

    def __getitem__(self, sizes: Any) -> ArrayType:
        """The array type with these sizes. Raises: ``UserError`` for what is no size."""
        given = sizes if isinstance(sizes, tuple) else (sizes,)
        return ArrayType(self.dtype, tuple(parse_size(size, self) for size in given))

    def __call__(self, value: Any) -> Any:
        """``value`` converted to this type, as a NumPy scalar; in a kernel it is a cast."""
        from nestor.ir.numeric import numpy_dtype

        return numpy_dtype(self.dtype).type(value)

    def __repr__(self) -> str:
        return f"nestor.{self.dtype}"


@dataclass(frozen=True, slots=True)
class ArrayType:
    """An array of ``dtype`` with one affine size a dimension."""

    dtype: DType
    shape: tuple[Affine, ...]

    def __repr__(self) -> str:
        return f"nestor.{self.dtype}[{', '.join(repr(str(s)) for s in self.shape)}]"


ELEMENT_TYPES = {dtype.value: ElementType(dtype) for dtype in DType}
"""``f64, f32, f16, bf16, f8e4m3, f8e5m2, i64, i32, i16, i8, u8, bool`` by name."""


def parse_size(size: Any, element: ElementType) -> Affine:
    """One size of an array annotation. Raises: ``UserError``."""
    if isinstance(size, int) and not isinstance(size, bool):
        if size < 0:
            raise UserError(f"{element!r}[{size}]: a size is not negative")
        return affine(size)
    if not isinstance(size, str):
        raise UserError(
            f"{element!r}[{size!r}]: a size is a number or text such as 'N' or '2*N + 1'"
        )
    try:
        return _size_of(ast.parse(size.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        why = "" if isinstance(error, SyntaxError) else f" ({error})"
        raise UserError(
            f"{element!r}[{size!r}]: not an affine size{why}; write a number, a name, or sums, "
            "multiples, // and % of them by constants, such as '2*N + 1'"
        ) from None


def _size_of(node: ast.expr) -> Affine:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return affine(value)
        case ast.Name(id=name):
            return affine(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_size_of(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return combine_affine(op, _size_of(left), _size_of(right))
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not affine")


def combine_affine(op: ast.operator, a: Affine, b: Affine) -> Affine:
    """``a op b``. Raises: ``ValueError`` where that is not affine."""
    match op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult() if b.is_const:
            return a * b.const
        case ast.Mult() if a.is_const:
            return b * a.const
        case ast.FloorDiv() if b.is_const and b.const > 0:
            return a // b.const
        case ast.FloorDiv() if b.is_const and b.const < 0:
            return (-a) // -b.const
        case ast.Mod() if b.is_const and b.const > 0:
            return a % b.const
        case _:
            raise ValueError("only multiples, // and % by constants are affine")


def zeros(shape: Any, dtype: Any) -> Any:
    """A local array of zeros: in a kernel a temporary, elsewhere ``numpy.zeros``.

    Args: shape: sizes (a number or a tuple). dtype: an element type such as ``nestor.f64``.
    """
    import numpy as np

    return np.zeros(shape, _numpy_type(dtype))


def empty(shape: Any, dtype: Any) -> Any:
    """A local array without values; as ``zeros``."""
    import numpy as np

    return np.empty(shape, _numpy_type(dtype))


def _numpy_type(dtype: Any) -> Any:
    from nestor.ir.numeric import numpy_dtype

    return numpy_dtype(dtype.dtype) if isinstance(dtype, ElementType) else dtype
