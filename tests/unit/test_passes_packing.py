"""Packed weights: every logical element lies where the layout says, the rest is zero."""

import itertools

import numpy as np
import pytest

from nestor.errors import InternalError
from nestor.ir.affine import affine, variable
from nestor.ir.program import Layout, Tensor
from nestor.ir.schedule import Pack
from nestor.ir.types import DType
from nestor.passes import packing
from nestor.passes.nest import pack_layout
from nestor.passes.packing import pack_array


@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (1, 3), (4, 1), (150, 9), (9, 150)])
@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1), ()])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("staged", [False, True])
def test_elements_lie_where_the_layout_says(shape, dims, order, staged, monkeypatch):
    if staged:  # as large arrays are
        monkeypatch.setattr(packing, "_STAGED_BYTES", 0)
    tensor = Tensor(name="w", shape=tuple(map(affine, shape)), dtype=DType.f32, role="parameter")
    step = Pack(tensor="w", order=order, dims=dims, blocks=tuple(3 + d for d in dims))
    layout = pack_layout(tensor, step)
    array = np.arange(1, 1 + shape[0] * shape[1], dtype=np.float32).reshape(shape)
    packed = pack_array(array, layout)
    for i, j in itertools.product(*map(range, shape)):
        place = tuple(p.evaluate({"d0": i, "d1": j}) for p in layout.physical)
        assert packed[place] == array[i, j]
    assert np.count_nonzero(packed) == array.size


def test_a_layout_that_is_no_permutation_is_refused():
    skewed = Layout(
        physical=(variable("d0") + variable("d1"), variable("d1")), shape=(affine(4), affine(4))
    )
    with pytest.raises(InternalError, match="cannot pack"):
        pack_array(np.zeros((2, 2), np.float32), skewed)
