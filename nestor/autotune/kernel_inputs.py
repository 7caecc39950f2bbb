"""Random inputs for a kernel alone: by element type, by role, and by what integers are used for.

An integer tensor whose elements select an element of another tensor must stay inside it; how large
that dimension is follows from the kernel. Targets of a scatter that promises distinct ones are
drawn without repetition. Everything else is drawn freely, from a generator that depends on a seed
and on the tensor's name only.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestor.errors import UserError
from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, IndexExpr, Load, children, distinct_nodes
from nestor.ir.interpreter import READ_ROLES
from nestor.ir.narrow_floats import MEMORY, round_to
from nestor.ir.numeric import numpy_dtype
from nestor.ir.program import Program, Statement, Tensor
from nestor.ir.types import DType

Array = NDArray[Any]
Sizes = Mapping[str, int]
"""Values of a kernel's symbols."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How inputs are drawn.

    Attributes:
        seed: of the generator.
        positive: floats are at least one half instead of normal, for kernels that take logarithms
            or roots of what they are given.
        span: the part of each index range that is used; less than 1 where indices are computed
            further before they select.
        given: a file of arrays by tensor (``save_inputs``) to take instead. With a seed other than
            0 every array of floats is scaled a little: other values of the same structure (a
            matrix stays positive definite), so that a kernel does on them what it does on these.
    """

    seed: int = 0
    positive: bool = False
    span: float = 1.0
    given: str = ""


_SCALES = (0.9, 1.0)
"""Factors of given inputs: below 1, or what a recurrence damps could come to grow."""


def check_sizes(program: Program, sizes: Sizes) -> dict[str, int]:
    """The value of each symbol.

    Raises: ``UserError`` naming a symbol without a value, or whose value is out of its range.
    """
    values: dict[str, int] = {}
    for symbol in program.symbols:
        value = sizes.get(symbol.name)
        if value is None:
            raise UserError(f"kernel '{program.name}': give sizes[{symbol.name!r}] a value")
        if value < symbol.lower or (symbol.upper is not None and value > symbol.upper):
            upper = "" if symbol.upper is None else f" ≤ {symbol.upper}"
            raise UserError(
                f"kernel '{program.name}': {symbol.name} = {value} is not in its range "
                f"{symbol.lower} ≤ {symbol.name}{upper}"
            )
        values[symbol.name] = value
    return values


def given_tensors(program: Program) -> tuple[Tensor, ...]:
    """The tensors that a run is given: all that hold values before it, aliases left out."""
    return tuple(t for t in program.tensors if t.role in READ_ROLES and t.alias_of is None)


def draw_inputs(program: Program, sizes: Sizes, draw: Draw) -> dict[str, Array]:
    """One array for each given tensor, of its logical shape, as the interpreter takes them.

    Args: sizes: values of all symbols.
    """
    if draw.given:
        return _scaled_inputs(program, draw)
    uses = find_index_uses(program, sizes)
    return {t.name: _draw_tensor(t, sizes, uses, draw) for t in given_tensors(program)}


def save_inputs(file: Path, inputs: Mapping[str, Array]) -> None:
    """Keep arrays by tensor, in their logical shapes, for ``Draw.given``."""
    named: dict[str, Any] = {f"given {name}": value for name, value in inputs.items()}
    np.savez(file, **named)


def _scaled_inputs(program: Program, draw: Draw) -> dict[str, Array]:
    found: dict[str, Array] = {}
    with np.load(draw.given, allow_pickle=False) as data:
        for t in given_tensors(program):
            value: Array = data[f"given {t.name}"]
            if draw.seed and t.dtype.is_float:
                rng = np.random.default_rng([draw.seed, zlib.crc32(t.name.encode())])
                value = (value * rng.uniform(*_SCALES)).astype(value.dtype)
                if t.dtype in MEMORY:
                    value = np.asarray(round_to(value, t.dtype))
            found[t.name] = value
    return found


def _draw_tensor(t: Tensor, sizes: Sizes, uses: IndexUses, draw: Draw) -> Array:
    shape = tuple(int(d.evaluate(sizes)) for d in t.shape)
    rng = np.random.default_rng([draw.seed, zlib.crc32(t.name.encode())])
    if t.dtype is DType.bool:
        return rng.random(shape) < 0.5
    if t.dtype.is_float:
        return _draw_floats(rng, shape, t.dtype, draw.positive)
    extent = uses.extents.get(t.name)
    if extent is None:
        low = -8 if t.dtype.is_signed else 0
        return rng.integers(low, 8, shape).astype(numpy_dtype(t.dtype))
    extent = max(1, math.ceil(extent * draw.span))
    if t.name in uses.distinct:
        drawn = _draw_distinct(rng, shape, extent)
        if drawn is not None:
            return drawn.astype(numpy_dtype(t.dtype))
    return rng.integers(0, extent, shape).astype(numpy_dtype(t.dtype))


def _draw_floats(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, positive: bool
) -> Array:
    made: Array = rng.standard_normal(shape, np.float64 if dtype is DType.f64 else np.float32)
    if positive:
        made = np.abs(made) + made.dtype.type(0.5)
    if dtype in MEMORY:
        return np.asarray(round_to(made, dtype))
    return made.astype(numpy_dtype(dtype), copy=False)


def _draw_distinct(rng: np.random.Generator, shape: tuple[int, ...], extent: int) -> Array | None:
    """Distinct numbers below ``extent``: all of them, else within each row; None if too few."""
    count = math.prod(shape)
    if count <= extent:
        return rng.permutation(extent)[:count].reshape(shape)
    if shape[-1] <= extent:
        rows = np.tile(np.arange(extent), (count // shape[-1], 1))
        return np.asarray(rng.permuted(rows, axis=1)[:, : shape[-1]].reshape(shape))
    return None


# ------------------------------------------------------------------------------------- indices


@dataclass(slots=True)
class IndexUses:
    """What integer tensors are used for.

    Attributes:
        extents: the least extent of the dimensions that a tensor's elements select from.
        distinct: tensors that a scatter with distinct targets takes them from.
    """

    extents: dict[str, int] = field(default_factory=dict)
    distinct: set[str] = field(default_factory=set)

    def limit(self, name: str, extent: int) -> bool:
        """Note a use; whether it says anything new."""
        if self.extents.get(name, extent + 1) <= extent:
            return False
        self.extents[name] = extent
        return True


def find_index_uses(program: Program, sizes: Sizes) -> IndexUses:
    """How the integer tensors of ``program`` are used, also by way of temporaries and aliases."""
    tensors = {t.name: t for t in program.tensors}
    uses = IndexUses()
    statements = [s for s in program.statements if isinstance(s, Statement)]
    for statement in statements:
        for name, index, extent, is_distinct in _selections(statement, tensors, sizes):
            del name
            for source in _value_loads(index):
                uses.limit(_root(source, tensors), extent)
                if is_distinct:
                    uses.distinct.add(_root(source, tensors))
    changed = True
    while changed:
        changed = False
        for statement in statements:
            for write, element in zip(statement.writes, statement.elements):
                target = _root(write.tensor, tensors)
                if target not in uses.extents or not tensors[target].dtype.is_int:
                    continue
                for source in _value_loads(element):
                    root = _root(source, tensors)
                    changed |= root != target and uses.limit(root, uses.extents[target])
                    if target in uses.distinct:
                        uses.distinct.add(root)
    return uses


def _selections(
    statement: Statement, tensors: Mapping[str, Tensor], sizes: Sizes
) -> Iterator[tuple[str, Expr, int, bool]]:
    """(tensor, index, its dimension's extent, distinct?) of every index that is data."""

    def of(
        name: str, indices: tuple[IndexExpr, ...], distinct: bool
    ) -> Iterator[tuple[str, Expr, int, bool]]:
        for dim, index in enumerate(indices):
            if not isinstance(index, Affine):
                extent = int(tensors[name].shape[dim].evaluate(sizes))
                yield name, index, extent, distinct

    expressions = [*statement.elements]
    if statement.reduction is not None:
        expressions.extend(statement.reduction.final)
    for write in statement.writes:
        yield from of(write.tensor, write.indices, statement.scatter == "unique")
        expressions.extend(i for i in write.indices if not isinstance(i, Affine))
    for expression in expressions:
        for node in distinct_nodes(expression):
            if isinstance(node, Load):
                yield from of(node.tensor, node.indices, False)


def _value_loads(node: Expr) -> Iterator[str]:
    """Integer tensors whose elements make up a value; not those that only select other loads."""
    if isinstance(node, Load):
        if node.dtype.is_int:
            yield node.tensor
        if node.other is not None:
            yield from _value_loads(node.other)
        return
    for child in children(node):
        yield from _value_loads(child)


def _root(name: str, tensors: Mapping[str, Tensor]) -> str:
    while (base := tensors[name].alias_of) is not None:
        name = base
    return name
