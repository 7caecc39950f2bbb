"""Calls of a loop kernel with arguments of the types and sizes of the call before.

Between two calls a kernel's data pushes the interpreter's memory out of the caches, so a call that
takes half a millisecond pays dearly for every step before its native code. A plan keeps what was
decided for types and sizes; it asks of each argument only whether it is of those and where it lies.
Whatever does not fit goes the long way (``kernel_binding``), which knows all cases and words the
errors.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nestor.ir.types import DType
from nestor.kernel_binding import Binder, BoundCall
from nestor.kernel_native import NativeKernel
from nestor.runtime.tensors import TorchLibrary

_SCALARS: dict[DType, tuple[str, type]] = {
    DType.f64: ("d", float),
    DType.f32: ("f4x", float),
    DType.i64: ("q", int),
    DType.i32: ("i4x", int),
}
"""How a number lies in eight bytes, and its type in Python; other dtypes go the long way."""


class CallPlan:
    """What is left to do where arguments are like those of one call.

    Args: binder: of the kernel. native: the code for the call's sizes. bound: the call.
    """

    __slots__ = (
        "_apart",
        "_arrays",
        "_distinct",
        "_integers",
        "_names",
        "_native",
        "_numbers",
        "_pack",
        "_touched",
        "_types",
        "arrays",
        "scalars",
        "symbols",
    )

    def __init__(self, binder: Binder, native: NativeKernel, bound: BoundCall) -> None:
        self._native, self.symbols = native, bound.symbols
        self._names = tuple(p.name for p in binder.parameters)
        self._arrays: list[tuple[int, Callable[..., int], Any, tuple[int, ...], bool]] = []
        self._touched: list[tuple[int, TorchLibrary]] = []
        self._numbers: list[tuple[int, type]] = []
        self._integers: list[tuple[int, int]] = []
        layout = "="
        integers = iter(bound.integers)
        for k, p in enumerate(binder.parameters):
            if p.kind == "array":
                own = bound.arrays[p.name]
                shape = tuple(own.given.shape)
                self._arrays.append((k, own.library.ready, own.given.dtype, shape, p.written))
                if p.written and isinstance(own.library, TorchLibrary):
                    self._touched.append((k, own.library))
            elif p.kind == "scalar":
                code, kind = _SCALARS[p.dtype]
                layout += code
                self._numbers.append((k, kind))
            else:
                self._integers.append((k, next(integers)))
        self._pack = struct.Struct(layout).pack
        self.arrays, self.scalars = tuple(bound.arrays), tuple(bound.scalars)
        self._apart = _must_not_meet(bound)
        self._distinct: list[int] = []

    @staticmethod
    def suits(binder: Binder) -> bool:
        """Whether calls of this kernel can have a plan."""
        return all(p.kind != "scalar" or p.dtype in _SCALARS for p in binder.parameters)

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Run if the arguments fit; whether they did.

        Raises: ``IndexOutOfRange`` as a call of the kernel does.
        """
        names = self._names
        if len(args) + len(kwargs) != len(names):
            return False
        given = args
        if kwargs:
            try:
                given = [*args, *[kwargs[n] for n in names[len(args) :]]]
            except KeyError:
                return False
        addresses = []
        for k, ready, dtype, shape, written in self._arrays:
            address = ready(given[k], dtype, shape, written)
            if not address:
                return False
            addresses.append(address)
        if addresses != self._distinct and not self._are_distinct(addresses):
            return False
        for k, integer in self._integers:
            if type(given[k]) is not int or given[k] != integer:
                return False
        numbers = self._stored_numbers(given) if self._numbers else b""
        if numbers is None:
            return False
        self._native.run_planned(self, addresses, numbers)
        for k, library in self._touched:
            library.touched(given[k])
        return True

    def _stored_numbers(self, given: Sequence[Any]) -> bytes | None:
        values = [given[k] for k, _ in self._numbers]
        for value, (_, kind) in zip(values, self._numbers):
            if not isinstance(value, kind) or value.__class__ is bool:
                return None
        try:
            return self._pack(*values)
        except (struct.error, OverflowError):
            return None

    def _are_distinct(self, addresses: list[int]) -> bool:
        for j, k, first, second in self._apart:
            if addresses[j] < addresses[k] + second and addresses[k] < addresses[j] + first:
                return False
        self._distinct = addresses
        return True


def _must_not_meet(bound: BoundCall) -> list[tuple[int, int, int, int]]:
    """Positions of two arrays of which one is written, and the bytes of each."""
    arrays = list(bound.arrays.values())
    sizes = []
    for a in arrays:
        count = a.parameter.dtype.bytes
        for n in a.given.shape:
            count *= int(n)
        sizes.append(count)
    return [
        (j, k, sizes[j], sizes[k])
        for j, k in itertools.combinations(range(len(arrays)), 2)
        if arrays[j].parameter.written or arrays[k].parameter.written
    ]
