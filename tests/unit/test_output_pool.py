"""Large outputs come from a pool, and go back to it."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from nestor.runtime.pool import POOLED_BYTES, OutputPool
from nestor.runtime.tensors import NUMPY, torch_library


def test_memory_is_used_again_once_nobody_refers_to_it() -> None:
    pool = OutputPool()
    pool.allow([3 << 20])
    array = NUMPY.over(pool.take(3 << 20), (3, 1 << 18), "f32", None)
    address = NUMPY.pointer(array)
    view = array[1:, ::2]
    del array
    gc.collect()
    assert pool.idle_bytes == 0, "a view still refers to it"
    del view
    gc.collect()
    assert pool.idle_bytes == 4 << 20
    again = NUMPY.over(pool.take(3 << 20), (3 << 18,), "f32", None)
    assert NUMPY.pointer(again) == address and pool.idle_bytes == 0


def test_two_outputs_alive_have_memory_of_their_own() -> None:
    pool = OutputPool()
    pool.allow([POOLED_BYTES])
    a = NUMPY.over(pool.take(POOLED_BYTES), (POOLED_BYTES,), "u8", None)
    b = NUMPY.over(pool.take(POOLED_BYTES), (POOLED_BYTES,), "u8", None)
    a[...], b[...] = 1, 2
    assert a.min() == a.max() == 1 and b.min() == b.max() == 2


def test_idle_memory_is_bounded_by_one_call() -> None:
    pool = OutputPool()
    pool.allow([POOLED_BYTES, 100, POOLED_BYTES])
    kept = [pool.take(POOLED_BYTES) for _ in range(20)]
    kept.clear()
    gc.collect()
    assert pool.idle_bytes == 2 * (2 << 20)


def test_order_of_dimensions() -> None:
    pool = OutputPool()
    array = NUMPY.over(pool.take(POOLED_BYTES), (2, 3, 5), "f32", (1, 2, 0))
    assert array.shape == (2, 3, 5)
    assert array.strides == (4, 40, 8)


@pytest.mark.parametrize("order", [None, (0, 2, 1)])
def test_tensors_of_torch_own_the_memory(order: tuple[int, ...] | None) -> None:
    torch = pytest.importorskip("torch")
    library = torch_library()
    assert library is not None
    pool = OutputPool()
    pool.allow([POOLED_BYTES])
    tensor = library.over(pool.take(POOLED_BYTES), (2, 3, 5), "f32", order)
    assert tensor.shape == (2, 3, 5) and not tensor._is_view() and tensor.is_leaf
    assert tensor.stride() == ((15, 5, 1) if order is None else (15, 1, 3))
    tensor.fill_(3.0)
    kept = np.asarray(tensor)
    part = tensor[1]
    del tensor
    gc.collect()
    assert pool.idle_bytes == 0
    assert float(kept.sum()) == 90.0 and float(part.sum()) == 45.0
    del kept, part
    gc.collect()
    assert pool.idle_bytes == 2 << 20
    assert torch.empty(0).numel() == 0


def test_outputs_of_a_compiled_model_are_never_overwritten_while_held() -> None:
    torch = pytest.importorskip("torch")
    import nestor

    class Scale(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2.0

    x = torch.rand(1024, 512)
    fast = nestor.compile(Scale(), (x,))
    held = [fast(x * k) for k in range(4)]
    for k, value in enumerate(held):
        assert torch.equal(value, x * k * 2.0)
    address = held[0].data_ptr()
    row = held[0][3]
    expected = row.clone()
    held.clear()
    gc.collect()
    later = [fast(x + k) for k in range(3)]
    assert address not in {v.data_ptr() for v in later}
    assert torch.equal(row, expected)


def test_blocks_that_calls_of_other_shapes_left_give_way() -> None:
    pool = OutputPool()
    pool.allow([8 << 20])
    for size in (3 << 20, 5 << 20, 8 << 20):
        buffer = pool.take(size)
        del buffer
        gc.collect()
    assert pool.idle_bytes == 8 << 20, "the block of the latest call is kept, the others are gone"
    buffer = pool.take(8 << 20)
    assert pool.idle_bytes == 0
    del buffer
