"""Bind a loop kernel's arguments: types, sizes, strides, overlap; everything is checked here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nestor.errors import InputError
from nestor.frontends.python import Parameter, ParsedKernel
from nestor.ir.affine import Affine
from nestor.ir.types import DType
from nestor.runtime.checks import describe
from nestor.runtime.tensors import Library, library_of

MAX_INTEGER = 2**62
"""Largest value of a size or ``int`` argument: index arithmetic in 64 bits then has room."""


@dataclass(frozen=True, slots=True)
class BoundArray:
    """An array argument: as given, and dense (itself, or a copy that is written back)."""

    parameter: Parameter
    given: Any
    library: Library
    dense: Any

    @property
    def is_copy(self) -> bool:
        """Whether ``dense`` is a copy."""
        return self.dense is not self.given


@dataclass(frozen=True, slots=True)
class BoundCall:
    """Arguments of one call.

    Attributes:
        arrays, scalars: by parameter name; a scalar is an array of shape ().
        symbols: sizes and ``int`` arguments.
        integers: the ``int`` arguments in order.
    """

    arrays: dict[str, BoundArray]
    scalars: dict[str, np.ndarray[Any, Any]]
    symbols: dict[str, int]
    integers: tuple[int, ...] = ()

    def write_back(self) -> None:
        """Copy what was computed in copies to where the caller sees it."""
        for array in self.arrays.values():
            if array.parameter.written:
                if array.is_copy:
                    array.library.assign(array.given, array.dense)
                else:
                    array.library.touched(array.given)


class Binder:
    """Binds the arguments of one kernel.

    Args: parsed: the kernel. function: for its signature (names and defaults).
    """

    def __init__(self, parsed: ParsedKernel, function: Callable[..., Any]) -> None:
        self.name = parsed.source.name
        self.parameters = parsed.parameters
        self.signature = inspect.signature(function)
        self.symbols = tuple(s.name for s in parsed.program.symbols)
        self._sizes: dict[tuple[Any, ...], dict[str, int]] = {}

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BoundCall:
        """Check and bind. Raises: ``InputError`` naming the argument and what it should be."""
        given = self._arguments(args, kwargs)
        arrays: dict[str, BoundArray] = {}
        scalars: dict[str, np.ndarray[Any, Any]] = {}
        integers: list[int] = []
        for p, value in zip(self.parameters, given):
            if p.kind == "array":
                arrays[p.name] = self._array(p, value)
            elif p.kind == "scalar":
                scalars[p.name] = self._scalar(p, value)
            else:
                integers.append(self._integer(p, value))
        key = (*integers, *(tuple(a.given.shape) for a in arrays.values()))
        symbols = self._sizes.get(key)
        if symbols is None:
            symbols = self._solve(arrays, integers)
            if len(self._sizes) < 256:
                self._sizes[key] = symbols
        self._refuse_overlap(list(arrays.values()))
        return BoundCall(arrays, scalars, symbols, tuple(integers))

    def _arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        if not kwargs and len(args) == len(self.parameters):
            return list(args)
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"kernel '{self.name}{self.signature_text()}': {error}") from None
        bound.apply_defaults()
        return [bound.arguments[p.name] for p in self.parameters]

    def signature_text(self) -> str:
        """The parameters' names in parentheses."""
        return f"({', '.join(p.name for p in self.parameters)})"

    # ------------------------------------------------------------------------------ one argument

    def _fail(self, p: Parameter, problem: str) -> InputError:
        return InputError(f"kernel '{self.name}': argument '{p.name}': {problem}")

    def _array(self, p: Parameter, value: Any) -> BoundArray:
        shape = ", ".join(str(s) for s in p.shape)
        library = library_of(value)
        if library is None:
            raise self._fail(
                p,
                f"an array of {p.dtype}[{shape}] expected (NumPy or PyTorch), "
                f"got {describe(value)}",
            )
        problem = library.problem(value, p.dtype.value)
        if problem is not None:
            raise self._fail(p, f"{problem}, not {p.dtype}; convert it first: kernels cast nothing")
        if len(value.shape) != len(p.shape):
            raise self._fail(
                p,
                f"{len(value.shape)} dimension(s) {tuple(value.shape)}, not {len(p.shape)} "
                f"[{shape}]",
            )
        if p.written:
            self._check_writable(p, value, library)
        return BoundArray(p, value, library, library.dense(value, None))

    def _check_writable(self, p: Parameter, value: Any, library: Library) -> None:
        if not library.is_writable(value):
            raise self._fail(p, "the kernel writes to it, but it is read-only; pass a copy")
        if getattr(value, "requires_grad", False):
            raise self._fail(p, "the kernel writes to it, and it requires a gradient; detach() it")
        if _may_overlap_itself(value):
            raise self._fail(
                p, "the kernel writes to it, but several of its elements share memory; pass a copy"
            )

    def _scalar(self, p: Parameter, value: Any) -> np.ndarray[Any, Any]:
        item = getattr(value, "item", None)
        if item is not None and getattr(value, "shape", None) == ():
            value = item()
        wanted = (int, bool) if not p.dtype.is_float else (int, float)
        if not isinstance(value, wanted) or (isinstance(value, bool) and p.dtype.is_int):
            raise self._fail(p, f"a number of {p.dtype} expected, got {describe(value)}")
        return scalar_array(p.dtype, value, lambda problem: self._fail(p, problem))

    def _integer(self, p: Parameter, value: Any) -> int:
        if isinstance(value, np.integer):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._fail(p, f"a whole number expected, got {describe(value)}")
        if not 0 <= value <= MAX_INTEGER:
            raise self._fail(
                p,
                f"{value} is not between 0 and 2**62; for any integer that is no size or index, "
                "annotate it nestor.i64",
            )
        return value

    # ------------------------------------------------------------------------------ together

    def _solve(self, arrays: Mapping[str, BoundArray], integers: list[int]) -> dict[str, int]:
        """Values of all symbols, from int arguments and shapes."""
        names = [p.name for p in self.parameters if p.kind == "integer"]
        known = dict(zip(names, integers))
        source = {n: f"argument '{n}'" for n in names}
        pending = [
            (a.parameter, dim, want, int(have))
            for a in arrays.values()
            for dim, (want, have) in enumerate(zip(a.parameter.shape, a.given.shape))
        ]
        while pending:
            waiting = []
            for p, dim, want, have in pending:
                unknown = want.variables() - known.keys()
                if not unknown:
                    self._check_size(p, dim, want, have, known, source)
                elif len(unknown) > 1 or not want.coefficient(next(iter(unknown))):
                    waiting.append((p, dim, want, have))
                else:
                    name = next(iter(unknown))
                    known[name] = self._solve_one(p, dim, want, have, name, known)
                    source[name] = f"dimension {dim} of '{p.name}'"
            if len(waiting) == len(pending):
                p, dim, want, _ = waiting[0]
                raise self._fail(p, f"the size {want} of dimension {dim} cannot be solved")
            pending = waiting
        return {name: known[name] for name in self.symbols}

    def _check_size(
        self,
        p: Parameter,
        dim: int,
        want: Affine,
        have: int,
        known: Mapping[str, int],
        source: Mapping[str, str],
    ) -> None:
        value = want.evaluate(known)
        if value != have:
            where = "; ".join(f"{n} = {known[n]} by {source[n]}" for n in sorted(want.variables()))
            detail = f", not {want} = {value} ({where})" if where else f", not {value}"
            raise self._fail(p, f"dimension {dim} has size {have}{detail}")

    def _solve_one(
        self, p: Parameter, dim: int, want: Affine, have: int, name: str, known: Mapping[str, int]
    ) -> int:
        factor = want.coefficient(name)
        rest = int((want - Affine(((name, factor),))).evaluate({**known, name: 0}))
        value, remainder = divmod(have - rest, factor)
        if remainder or value < 0 or want.evaluate({**known, name: value}) != have:
            raise self._fail(p, f"dimension {dim} has size {have}, which is never {want}")
        return value

    def _refuse_overlap(self, arrays: list[BoundArray]) -> None:
        """Two arguments may share memory only if both are only read."""
        spans = [_span(a) for a in arrays]
        for k, first in enumerate(arrays):
            for j in range(k + 1, len(arrays)):
                second = arrays[j]
                if not (first.parameter.written or second.parameter.written):
                    continue
                low, high = max(spans[k][0], spans[j][0]), min(spans[k][1], spans[j][1])
                if low < high and _shares_memory(first, second):
                    writer = first if first.parameter.written else second
                    raise InputError(
                        f"kernel '{self.name}': arguments '{first.parameter.name}' and "
                        f"'{second.parameter.name}' share memory, and the kernel writes to "
                        f"'{writer.parameter.name}'\n  fix: pass a copy of one of them"
                    )


def _strides_bytes(value: Any) -> tuple[int, ...]:
    strides = getattr(value, "strides", None)
    if strides is not None:
        return tuple(strides)
    return tuple(s * value.element_size() for s in value.stride())


def _span(array: BoundArray) -> tuple[int, int]:
    """Addresses of the first byte and after the last; empty for an array without elements."""
    value = array.given
    if 0 in value.shape:
        return (0, 0)
    start = array.library.pointer(value)
    low = high = start
    for stride, size in zip(_strides_bytes(value), value.shape):
        reach = stride * (size - 1)
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + array.parameter.dtype.bytes


def _shares_memory(a: BoundArray, b: BoundArray) -> bool:
    """Whether arrays whose address ranges meet have an element in common, as far as is known."""
    if not a.is_copy and not b.is_copy:
        return True  # both are dense
    views = [_as_numpy(x) for x in (a, b)]
    try:
        return np.shares_memory(views[0], views[1], max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _as_numpy(array: BoundArray) -> np.ndarray[Any, Any]:
    """A NumPy array of the same bytes."""
    from nestor.runtime.tensors import array_at

    value = array.given
    if isinstance(value, np.ndarray):
        return value
    low, high = _span(array)
    base = array_at(low, (high - low,), "u8")
    start = array.library.pointer(value) - low
    shape = (*value.shape, array.parameter.dtype.bytes)
    return np.ndarray(shape, np.uint8, base, start, (*_strides_bytes(value), 1))


def _may_overlap_itself(value: Any) -> bool:
    """Whether two indices may name the same byte: strides that are no nested blocks."""
    reach = value.itemsize
    for stride, size in sorted((abs(s), n) for s, n in zip(_strides_bytes(value), value.shape)):
        if size == 0:
            return False
        if size > 1:
            if stride < reach:
                return True
            reach = stride * (size - 1) + reach
    return False


def scalar_array(
    dtype: DType, value: Any, fail: Callable[[str], Exception]
) -> np.ndarray[Any, Any]:
    """A number in memory as ``dtype``, shape ()."""
    from nestor.ir.narrow_floats import MEMORY, round_to, to_bits
    from nestor.ir.numeric import numpy_dtype

    try:
        with np.errstate(over="ignore"):
            if dtype not in MEMORY:
                return np.array(value, numpy_dtype(dtype))
            return np.asarray(to_bits(round_to(np.float32(value), dtype), dtype)).reshape(())
    except OverflowError:
        raise fail(f"{value} does not fit in {dtype}") from None
