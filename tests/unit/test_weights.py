"""Arrays of packed weights lie side by side, aligned, in memory that lives as long as they do."""

import gc
import itertools

import numpy as np
import torch

from nestor.compiler import Slot
from nestor.ir.affine import affine
from nestor.ir.program import Layout, Tensor
from nestor.ir.schedule import Pack
from nestor.ir.types import DType
from nestor.passes.nest import pack_layout
from nestor.weights import slot_arrays


def weight(name: str, shape: tuple[int, ...], dtype: DType = DType.f32) -> Tensor:
    return Tensor(name=name, shape=tuple(map(affine, shape)), dtype=dtype, role="parameter")


def panels(tensor: Tensor) -> Layout:
    return pack_layout(tensor, Pack(tensor=tensor.name, order=(1, 0), dims=(0,), blocks=(16,)))


def test_arrays_are_aligned_apart_and_outlive_each_other():
    tensors = [
        weight("a", (5, 7)),
        weight("b", (33, 3), DType.f64),
        weight("c", (700, 1500)),
        weight("d", (9, 9), DType.bf16),
    ]
    slots = [Slot(tensor=t, layout=panels(t)) for t in tensors]
    kinds = {DType.f32: torch.float32, DType.f64: torch.float64, DType.bf16: torch.bfloat16}
    values = {t.name: torch.randn([e.const for e in t.shape]).to(kinds[t.dtype]) for t in tensors}
    arrays = slot_arrays([*slots, None], values, {})
    assert sorted(arrays) == [0, 1, 2, 3]
    spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert all(start % 64 == 0 for start, _ in spans)
    expected = {n: np.array(a) for n, a in arrays.items()}
    first = arrays.pop(0)
    again = slot_arrays(slots, values, {})
    arrays.clear()
    gc.collect()
    assert np.array_equal(first, expected[0])
    assert all(np.array_equal(again[n], expected[n]) for n in again)


def test_what_is_not_packed_is_the_models_own():
    tensor = weight("a", (5, 7))
    value = torch.randn(5, 7)
    (array,) = slot_arrays([Slot(tensor=tensor, layout=None)], {"a": value}, {}).values()
    assert array.ctypes.data == value.data_ptr()
