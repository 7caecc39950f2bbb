"""Lanes a few elements apart: contiguous loads and shuffles, and nothing read outside."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest

from nestor.ir.affine import Affine
from nestor.ir.expr import binary, const
from nestor.ir.loopnest import LoopNest
from nestor.ir.types import DType
from nestor.target.cpu import parse_target
from tests.helpers.llvm_native import NativeNest, services
from tests.helpers.nests import LEVELS, check_on_both, load, loop, nest, point, tensor, v

LANES = 16


def strided(
    stride: int, *, start: int = 0, vectors: int = 3, tail: int = 0, dtype: DType = DType.f32
) -> LoopNest:
    """``z[i] = x[stride·i + start]`` for whole vectors and ``tail`` more; ``x`` is no larger."""
    count = vectors * LANES + tail
    first = start - min(0, stride * (count - 1))
    size = max(first, first + stride * (count - 1)) + 1

    def at(i: Affine) -> Affine:
        return i * stride + first

    body = loop(
        "o",
        vectors,
        "serial",
        loop(
            "l",
            LANES,
            "vector",
            point(
                "z",
                [v("o") * LANES + v("l")],
                load("x", at(v("o") * LANES + v("l")), dtype=dtype),
            ),
        ),
    )
    nodes = [body]
    if tail:
        rest = v("t") + vectors * LANES
        nodes.append(
            loop("t", tail, "vector", point("z", [rest], load("x", at(rest), dtype=dtype)))
        )
    tensors = [tensor("x", size, dtype=dtype), tensor("z", count, dtype=dtype, role="output")]
    return nest(tensors, *nodes)


@pytest.mark.parametrize("stride", [-4, -3, -2, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [DType.f32, DType.f64, DType.i8, DType.bool])
def test_strides(stride: int, dtype: DType) -> None:
    check_on_both(strided(stride, tail=5, dtype=dtype))
    check_on_both(strided(stride, start=3, dtype=dtype))


@pytest.mark.parametrize("group", [2, 3, 8])
def test_each_element_several_times(group: int) -> None:
    n = nest(
        [tensor("x", 48 // group), tensor("z", 48, role="output")],
        loop("o", 3, "serial", loop("l", LANES, "vector", point(
            "z", [v("o") * LANES + v("l")], load("x", (v("o") * LANES + v("l")) // group)
        ))),
    )  # fmt: skip
    check_on_both(n)


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_neighbours_under_predicates(stride: int, pad: int) -> None:
    """A window's taps: shared loads inside, masks at the borders."""
    width = stride * 40 + 1
    value = const(0, DType.f32)
    for tap in range(3):
        place = (v("o") * LANES + v("l")) * stride + (tap - pad)
        inside = (place, width - 1 - place)
        value = binary("add", value, load(
            "x", v("r"), place, predicate=inside, other=const(tap + 0.5, DType.f32)
        ))  # fmt: skip
    body = loop("l", LANES, "vector", point("z", [v("r"), v("o") * LANES + v("l")], value))
    tensors = [tensor("x", 3, width), tensor("z", 3, 48, role="output")]
    check_on_both(nest(tensors, loop("r", 3, "serial", loop("o", 3, "serial", body))))


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_contiguous_loads_are_shared(stride: int) -> None:
    """Taps of one period take as many loads as the period has vectors."""
    vectors = 4
    value = const(0, DType.f32)
    for tap in range(stride):
        value = binary("add", value, load("x", (v("o") * LANES + v("l")) * stride + tap))
    body = loop("l", LANES, "vector", point("z", [v("o") * LANES + v("l")], value))
    count = vectors * LANES
    tensors = [tensor("x", count * stride), tensor("z", count, role="output")]
    built = nest(tensors, loop("o", vectors, "serial", body))
    check_on_both(built)
    text = NativeNest(built, parse_target("x86-64-v4")).ir
    assert text.count("load <16 x float>") == stride
    assert "insertelement" not in text


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stride", [-3, -2, 2, 3, 4])
def test_nothing_is_read_beyond_the_first_and_last_element(stride: int, level: str) -> None:
    """The tensor ends where a page without access begins, or begins where one ends."""
    native = NativeNest(strided(stride, tail=3), parse_target(level))
    count = native.nest.tensors[1].shape[0].const
    size = native.nest.tensors[0].shape[0].const
    page = mmap.PAGESIZE
    block = mmap.mmap(-1, 3 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(block))
    libc = ctypes.CDLL(None)
    for outside in (base, base + 2 * page):
        assert libc.mprotect(ctypes.c_void_p(outside), page, 0) == 0
    values = np.arange(size, dtype=np.float32)
    order = np.arange(count) * stride
    expected = values[order - min(0, order[-1])]
    try:
        for start in (base + page, base + 2 * page - 4 * size):
            ctypes.memmove(start, values.ctypes.data, 4 * size)
            out = np.zeros(count, np.float32)
            pointers = (ctypes.c_void_p * 2)(start, out.ctypes.data)
            own = services(1)
            native.function(ctypes.addressof(pointers), None, ctypes.addressof(own))
            np.testing.assert_array_equal(out, expected)
    finally:
        for outside in (base, base + 2 * page):
            libc.mprotect(ctypes.c_void_p(outside), page, mmap.PROT_READ | mmap.PROT_WRITE)
