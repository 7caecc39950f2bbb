"""Dynamic sizes: symbols, their ranges and bindings, reshapes of products of symbols."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from nestor.errors import InputError, Unsupported
from nestor.frontends.torch import import_model
from nestor.ir.expr import Load, walk
from nestor.ir.interpreter import infer_symbols
from nestor.ir.program import Statement
from tests.helpers.torch_reference import check_model


def _normal(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(s) for s in shapes)


def test_batch_becomes_a_symbol() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Softmax(-1)).eval()
    imported = check_model(
        model,
        _normal((3, 4)),
        dynamic_shapes=({0: Dim("batch", max=64)},),
        others=[_normal((1, 4)), _normal((9, 4)), _normal((0, 4))],
    )
    (symbol,) = imported.program.symbols
    assert symbol.upper == 64
    assert imported.symbols == {symbol.name: (imported.inputs[0].name, 0)}
    with pytest.raises(InputError):
        infer_symbols(imported.program, {}, {symbol.name: 65})


def test_flattened_batch_and_time() -> None:
    """``view(-1, d)`` of two symbolic sizes is a product that no affine expression holds."""
    weight = torch.randn(5, 4)

    def function(x: Tensor) -> Tensor:
        y = F.linear(x.reshape(-1, 4), weight).relu()
        return y.view(x.shape[0], x.shape[1], 5) + 1

    imported = check_model(
        function,
        _normal((3, 6, 4)),
        dynamic_shapes=({0: Dim("b"), 1: Dim("t")},),
        others=[_normal((1, 1, 4)), _normal((2, 7, 4))],
    )
    assert len(imported.program.symbols) == 2
    for tensor in imported.program.tensors:
        assert all(len(e.variables()) <= 1 for e in tensor.shape)


def test_product_of_symbols_may_be_returned() -> None:
    imported = check_model(
        lambda x: x.reshape(-1, 4) * 2,
        _normal((3, 6, 4)),
        dynamic_shapes=({0: Dim("b"), 1: Dim("t")},),
        others=[_normal((1, 5, 4))],
    )
    assert [len(f) for f in imported.outputs[0].memory_shape] == [2, 1]


def test_reductions_over_products_of_symbols() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, 4)
        return flat.mean(0), flat.var(0), x.mean((0, 1)), flat.amax()

    check_model(
        function,
        _normal((3, 6, 4)),
        dynamic_shapes=({0: Dim("b"), 1: Dim("t")},),
        others=[_normal((2, 1, 4))],
    )


def test_index_over_a_product_of_symbols_is_refused() -> None:
    with pytest.raises(Unsupported, match="static"):
        import_model(
            lambda x: x.reshape(-1)[1:].flip(0),
            _normal((3, 6)),
            dynamic_shapes=({0: Dim("b"), 1: Dim("t")},),
        )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([x, x[:, :2]], 1),
        lambda x: F.pad(x, (1, 2)).sum(1),
        lambda x: x[:, 1:-1] + x[:, 2:],
        lambda x: x.flip(1).cumsum(1),
        lambda x: x.tril() + torch.arange(x.shape[1]),
        lambda x: F.conv1d(x[:, None], torch.ones(2, 1, 3), stride=2, padding=1),
        lambda x: F.max_pool2d(x[:, None, None], (1, 3), (1, 2), (0, 1)),
        lambda x: F.avg_pool1d(x[:, None], 3, 2, 1, count_include_pad=False),
        lambda x: x.softmax(1).argmax(1),
        lambda x: x.repeat(2, 1) * x.shape[1],
        lambda x: x[:, -1] + x.select(1, 0),
        lambda x: F.scaled_dot_product_attention(*[x[..., None]] * 3, is_causal=True),
    ],
)
def test_symbolic_length(function: Any) -> None:
    check_model(
        function,
        _normal((3, 8)),
        dynamic_shapes=({1: Dim("n", min=4)},),
        others=[_normal((3, 5)), _normal((3, 17))],
    )


def test_recurrence_of_symbolic_length() -> None:
    """The custom operators keep the time loop whole, so its length may be a symbol."""
    model = nn.GRU(4, 6, 2, batch_first=True, bidirectional=True).eval()
    check_model(
        model,
        _normal((2, 5, 4)),
        dynamic_shapes=({0: Dim("b"), 1: Dim("t")},),
        others=[_normal((1, 9, 4)), _normal((4, 1, 4))],
    )


def test_symbols_that_an_operator_needs_equal_are_merged() -> None:
    def function(x: Tensor, mask: Tensor) -> Tensor:
        return x + mask[torch.arange(x.shape[0])]

    imported = check_model(
        function,
        _normal((3, 4), (3, 4)),
        dynamic_shapes=({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}),
        others=[_normal((5, 4), (5, 4)), _normal((1, 4), (1, 4))],
    )
    assert len(imported.program.symbols) == 1
    assert imported.inputs[0].shape == imported.inputs[1].shape
    for statement in imported.program.statements:
        assert isinstance(statement, Statement)
        for load in (n for e in statement.elements for n in walk(e) if isinstance(n, Load)):
            assert all(not isinstance(n, Load) for n in load.indices), "the access is affine"


def test_specialised_dimension_is_an_input_error() -> None:
    with pytest.raises(InputError, match="dynamic_shapes"):
        import_model(lambda x: x.reshape(3, 2) + 1, _normal((6,)), dynamic_shapes=({0: Dim("n")},))


def test_symbol_without_an_input_dimension_is_refused() -> None:
    half = Dim("half", min=2, max=32)
    with pytest.raises(Unsupported, match="dynamic size"):
        import_model(lambda x: x * 2, _normal((6,)), dynamic_shapes=({0: 2 * half},))
