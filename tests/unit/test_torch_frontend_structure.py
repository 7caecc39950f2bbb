"""The shape of imported Programs: views cost nothing, loops stay loops, origins are kept."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestor.frontends.torch import import_model
from nestor.frontends.torch.reshape import reshape
from nestor.frontends.torch.sizes import Size
from nestor.frontends.torch.value import of_tensor, refine
from nestor.ir.affine import FloorDiv, Mod, affine
from nestor.ir.expr import Load, walk
from nestor.ir.program import Statement
from nestor.ir.types import DType


def _statements(model: Any, *args: Tensor) -> list[Statement]:
    program = import_model(model, args).program
    return [s for s in program.statements if isinstance(s, Statement)]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrences_do_not_grow_with_their_length(kind: type[nn.RNNBase]) -> None:
    model = kind(4, 6, num_layers=2, bidirectional=True).eval()
    short, long = (_statements(model, torch.randn(n, 2, 4)) for n in (3, 200))
    assert len(short) == len(long)
    loops = [s for s in long if "t" in s.order]
    assert loops and all(s.order[1] == "t" for s in loops)
    assert len({s.order[0] for s in loops}) == 4, "one region a layer and direction"


def test_the_input_projection_is_hoisted() -> None:
    statements = _statements(nn.LSTM(4, 6).eval(), torch.randn(9, 2, 4))
    first = statements[0]
    assert first.order == (0,) and first.reduction is not None
    assert any(r.upper == affine(9) for r in first.domain.ranges)


def test_views_make_no_statements() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.permute(0, 2, 1).reshape(2, 12).unsqueeze(1).expand(2, 3, 12)[:, 1:, ::2]
        return y.flip(-1) + 1

    assert len(_statements(function, torch.randn(2, 3, 4))) == 1


def test_attention_heads_merge_without_divisions() -> None:
    """(B, H, S, D) → (B, S, H·D) into a linear layer reduces over h and d separately."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 1, 3).reshape(2, 5, 12), w)

    (statement,) = _statements(function, torch.randn(2, 3, 5, 4), torch.randn(7, 12))
    for load in (n for n in walk(statement.elements[0]) if isinstance(n, Load)):
        for index in load.indices:
            atoms = [a for a, _ in index.terms]  # type: ignore[union-attr]
            assert not any(isinstance(a, FloorDiv | Mod) for a in atoms)


def test_masks_of_indices_make_no_tensors() -> None:
    def function(x: Tensor) -> Tensor:
        mask = torch.arange(5)[:, None] >= torch.arange(5)
        return x.masked_fill(~mask, 0.0)

    assert len(_statements(function, torch.randn(5, 5))) == 1


def test_identity_gathers_are_affine() -> None:
    statements = _statements(lambda x: x[:, torch.arange(3)] * 2, torch.randn(2, 3))
    (load,) = [n for n in walk(statements[0].elements[0]) if isinstance(n, Load)]
    assert all(not isinstance(i, Load) for i in load.indices)


def test_unused_work_is_dropped() -> None:
    def function(x: Tensor) -> Tensor:
        x.softmax(-1)
        return x.max(1).values

    (statement,) = _statements(function, torch.randn(2, 3))
    assert statement.reduction is not None and statement.reduction.monoid.name == "max"


def test_batch_norm_divides_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    statements = _statements(model, torch.randn(1, 3, 5, 5))
    assert len(statements) == 3, "contraction, bias, batch norm"


def test_origins_name_the_models_line() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.tanh(x)

    (statement,) = _statements(function, torch.randn(3))
    assert statement.origin is not None
    assert statement.origin.op == "aten.tanh.default"
    assert statement.origin.file == __file__
    assert statement.origin.line == function.__code__.co_firstlineno + 1


class Recurrent(nn.Module):
    """A layer whose operator is called through a wrapper of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # the line of the layer


def test_origins_of_recurrences_are_the_models_too() -> None:
    statements = _statements(Recurrent().eval(), torch.randn(5, 2, 3))
    lines, start = inspect.getsourcelines(Recurrent)
    line = start + next(k for k, s in enumerate(lines) if "# the line" in s)
    for statement in statements:
        assert statement.origin is not None
        assert (statement.origin.file, statement.origin.line) == (__file__, line)
        assert statement.origin.module == "layer"


def _sizes(*values: int) -> list[Size]:
    return [Size(v) for v in values]


def test_refinement_of_factorisations() -> None:
    def dim(*extents: int) -> tuple[Any, ...]:
        return tuple(affine(e) for e in extents)

    assert refine(dim(6, 4), dim(2, 12)) == dim(2, 3, 4)
    assert refine(dim(12), dim(3, 4)) == dim(3, 4)
    assert refine(dim(6, 4), dim(4, 6)) is None


def test_reshape_with_symbolic_factors() -> None:
    n = affine("N")
    value = of_tensor("x", [(n,), (affine(6),)], DType.f32)
    merged = reshape(value, [Size(6, (n,))])
    assert merged is not None and merged.dims == ((n, affine(6)),)
    back = reshape(merged, [Size(1, (n,)), *_sizes(2, 3)])
    assert back is not None and [len(d) for d in back.dims] == [1, 1, 1]
    impossible = reshape(value, [Size(6), Size(1, (n,))])
    assert impossible is None, "N elements in the inner dimension have no affine index"
