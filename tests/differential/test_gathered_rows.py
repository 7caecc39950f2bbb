"""Rows that are gathered side by side: any number of rows, any width, indices out of range."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nestor
from tests.helpers.modules import Fun


def tuned_steps(compiled: nestor.api.CompiledModel) -> str:
    return "\n".join(k.schedule for k in compiled.report().kernels)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rows", "width"), [(16, 64), (17, 64), (37, 100), (64, 300), (131, 257), (15, 64), (40, 20)]
)
def test_rows_are_those_of_the_table(rows: int, width: int, threads: int) -> None:
    torch.manual_seed(rows)
    model = nn.Embedding(50, width)
    at = torch.randint(0, 50, (rows,))
    compiled = nestor.compile(model, (at,), threads=threads)
    with torch.inference_mode():
        assert torch.equal(compiled(at), model(at))
    is_side_by_side = rows >= 16 and width >= 64
    assert ("Unroll(loop='S0.i0.i')" in tuned_steps(compiled)) == is_side_by_side


def test_batches_and_arithmetic_beside_it() -> None:
    table, more = torch.randn(30, 96), torch.randn(7, 20, 96)
    model = Fun(lambda at, x: torch.relu(table[at] * 2 + x))
    at = torch.randint(0, 30, (7, 20))
    compiled = nestor.compile(model, (at, more), threads=2)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(at, more), model(at, more))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.uint8])
def test_other_types(dtype: torch.dtype) -> None:
    table = (torch.randn(30, 515) * 50).to(dtype)
    model = Fun(lambda at: table[at])
    at = torch.randint(0, 30, (45,))
    with torch.inference_mode():
        assert torch.equal(nestor.compile(model, (at,))(at), table[at])


def test_a_number_of_rows_that_varies() -> None:
    model = nn.Embedding(50, 128)
    n = torch.export.Dim("n", min=2, max=500)
    compiled = nestor.compile(model, (torch.arange(40),), dynamic_shapes=({0: n},), threads=2)
    for rows in (2, 7, 8, 9, 33, 300):
        at = torch.randint(0, 50, (rows,))
        with torch.inference_mode():
            assert torch.equal(compiled(at), model(at))


@pytest.mark.parametrize("place", [0, 5, 32, 36])
def test_an_index_out_of_range_is_told(place: int) -> None:
    model = nn.Embedding(50, 128)
    at = torch.randint(0, 50, (37,))
    compiled = nestor.compile(model, (at,))
    at[place] = 50
    with pytest.raises(nestor.errors.NestorError, match="lies outside the tensor"):
        compiled(at)
    at[place] = 49
    with torch.inference_mode():
        assert torch.equal(compiled(at), model(at))
