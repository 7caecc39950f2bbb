"""The text of what a caller of a compiled model gets wrong: what, where, what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nestor.errors import InputError, NestorError, UserError
from nestor.runtime.executable import Executable
from nestor.runtime.manifest import InputSpec
from tests.helpers.native import ADD, DOUBLE, ModelMaker, chain, pointwise


@pytest.fixture(scope="module")
def model() -> Executable:
    manifest, objects = chain((4, 8))
    return Executable(manifest, objects, {"w": np.zeros((4, 8), np.float32)})


def message(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert isinstance(caught.value, (UserError, TypeError))
    assert isinstance(caught.value, NestorError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_number(model):
    x = torch.zeros(4, 8)
    assert message(lambda: model()) == "0 inputs, but model 'chain' takes 1: x"
    assert message(lambda: model(x, x)) == "2 inputs, but model 'chain' takes 1: x"
    assert message(lambda: model(y=x)) == "this model takes no named arguments; got y"


def test_dtype(model):
    assert message(lambda: model(torch.zeros(4, 8, dtype=torch.float64))) == (
        "input 'x': dtype float64, but the model was compiled for float32\n"
        "  fix: x.to(torch.float32)"
    )
    assert message(lambda: model(np.zeros((4, 8), np.int64))) == (
        "input 'x': dtype int64, but the model was compiled for float32\n  fix: x.astype('float32')"
    )


def test_shape(model):
    assert message(lambda: model(torch.zeros(4, 9))) == (
        "input 'x': shape (4, 9), expected (4, 8) (float32)\n"
        "  fix: compile for this shape, or name the sizes that vary in dynamic_shapes"
    )
    assert "shape (32,), expected (4, 8)" in message(lambda: model(torch.zeros(32)))
    assert "shape (), expected (4, 8)" in message(lambda: model(np.zeros((), np.float32)))


def test_device_and_layout(model):
    assert message(lambda: model(torch.zeros(4, 8, device="meta"))) == (
        "input 'x': device meta, but the model runs on plain tensors in CPU memory\n  fix: x.cpu()"
    )
    assert message(lambda: model(torch.zeros(4, 8).to_sparse())) == (
        "input 'x': layout torch.sparse_coo, but the model runs on plain tensors in CPU memory\n"
        "  fix: x.to_dense()"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.5, "got 3.5"), (None, "got None"), ([[1.0]], "got a list"), ("abc", "got 'abc'")],
)
def test_not_a_tensor(model, value, text):
    found = message(lambda: model(value))
    assert found.startswith("input 'x': a tensor of float32 expected (PyTorch or NumPy), got ")
    assert text in found


def test_wrapped_tensors_are_refused(model):
    class Wrapped(torch.Tensor):
        @staticmethod
        def __new__(cls):
            return torch.Tensor._make_wrapper_subclass(cls, (4, 8), dtype=torch.float32)

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise NotImplementedError

    assert "a Wrapped, whose memory is not an ordinary tensor's" in message(
        lambda: model(Wrapped())
    )

    class Named(torch.Tensor):
        """A subclass that only adds methods is an ordinary tensor."""

    x = torch.zeros(4, 8).as_subclass(Named)
    assert (model(x) == 2).all()


def test_disagreeing_symbolic_sizes():
    from nestor.runtime.dims import DimExpr
    from nestor.runtime.manifest import SymbolBinding

    size = DimExpr(0, (("batch", 1),))
    m = ModelMaker("pair")
    a, b = m.slot("a", (size,), "input"), m.slot("b", (size,), "input")
    y = m.slot("y", (size,), "output")
    m.kernel(pointwise(ADD, "symbol", 2), (a, b, y), (0,))
    symbols = (SymbolBinding(name="batch", input=0, dimension=0, lower=1, upper=64),)
    model = Executable(m.manifest([y], symbols=symbols), m.objects)
    assert model(torch.ones(5), torch.ones(5)).tolist() == [2] * 5
    assert message(lambda: model(torch.ones(5), torch.ones(6))) == (
        "input 'b': shape (6,), expected (batch,) with batch = 5 (float32)"
    )
    assert message(lambda: model(torch.ones(65), torch.ones(65))) == (
        "input 'a': shape (65,), expected (batch,) with 1 ≤ batch ≤ 64: dimension 0 is 65 (float32)"
    )


def test_constants():
    m = ModelMaker("flags")
    x, y = m.slot("x", (3,), "input"), m.slot("y", (3,), "output")
    m.kernel(pointwise(DOUBLE, "3"), (x, y))
    inputs = (InputSpec(name="x", slot=x), InputSpec(name="causal", kind="constant", constant=True))
    model = Executable(m.manifest([y], inputs=inputs), m.objects)
    x_value = torch.ones(3)
    assert model(x_value, True).tolist() == [2, 2, 2]
    assert message(lambda: model(x_value, False)) == (
        "input 'causal': False, but the model was compiled with the constant True\n"
        "  fix: compile again for another value"
    )
    assert "input 'causal': 1, but" in message(lambda: model(x_value, 1))


def test_bfloat16_in_numpy():
    m = ModelMaker("half")
    x, y = m.slot("x", (3,), "input", "bf16"), m.slot("y", (3,), "output")
    m.kernel("define i32 @kernel(ptr %a, ptr %s, ptr %v) { ret i32 0 }", (x, y))
    model = Executable(m.manifest([y]), m.objects)
    assert message(lambda: model(np.zeros(3, np.float32))) == (
        "input 'x': dtype float32, but the model was compiled for bfloat16\n"
        "  fix: pass a tensor of PyTorch, or the bits as uint16"
    )


def test_a_refused_call_leaves_the_model_usable(model):
    for bad in (None, torch.zeros(3), torch.zeros(4, 8).double()):
        message(lambda bad=bad: model(bad))
    assert (model(torch.zeros(4, 8)) == 2).all()
