"""Views, creation, joins, gathers and scatters of the PyTorch frontend against eager.

Each case is a function of tensors and several sets of inputs: odd, size-1 and empty shapes, strided
inputs, NaN and infinities where they matter.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.torch_cases import (
    BF16,
    INF,
    Case,
    Cases,
    b,
    fixed,
    i,
    r,
    run_case,
    t,
)

A = torch.ops.aten
case = Cases()

# ------------------------------------------------------------------------------------------- views

case("view", lambda x: (x.view(2, 6), x.view(-1), x.view(3, 2, 2)), r(3, 4))
case("view_odd", lambda x: x.reshape(8, 3), r(6, 4), t(6, 4))
case("view_merge_permuted", lambda x: x.permute(0, 2, 1, 3).reshape(2, 5, 12).exp(), r(2, 3, 5, 4))
case("view_chain", lambda x: x.permute(1, 0, 2).reshape(3, 8).reshape(12, 2).t() + 1, r(2, 3, 4))
case("view_empty", lambda x: x.view(0, 6), r(0, 2, 3))
case("view_units", lambda x: x.view(1, 3, 1, 4, 1) * 2, r(3, 4))
case("view_after_slice", lambda x: x[:, 1:3].reshape(-1) + 1, r(3, 4))
case("unsafe_view", lambda x: A._unsafe_view(x, [6]), r(2, 3))
case("view_same_dtype", lambda x: x.view(torch.float32) + 1, r(2, 3))
case("view_other_dtype", lambda x: x.view(torch.int32), r(2, 3), externs=1)
case("permute", lambda x: x.permute(2, 0, 1), r(2, 3, 4), r(1, 3, 0))
case("transpose", lambda x: (x.transpose(0, -1), x.mT, x[0].t()), r(2, 3, 4))
case("t_vector", lambda x: x.t() + 1, r(4))
case("expand", lambda x: (x.expand(2, 3, 4) + 1, x.expand(-1, 4)), r(3, 1))
case("expand_as", lambda x, y: x.expand_as(y) * 1, (r(3, 1), r(3, 4)))
case("broadcast_to", lambda x: torch.broadcast_to(x, (2, 3)) * 1, r(3))
case("unsqueeze", lambda x: (x.unsqueeze(0), x.unsqueeze(-1)), r(3, 4), r())
case("squeeze", lambda x: (x.squeeze(), x.squeeze(1), x.squeeze((0, 1)), x.squeeze(2)), r(1, 1, 3))
case("slice", lambda x: (x[1:], x[:-1], x[::2], x[1:9:3], x[:, -2:], x[5:]), r(4, 5))
case("narrow", lambda x: x.narrow(1, 1, 2) + 1, r(3, 4))
case("select", lambda x: (x[0], x[-1], x[:, 1]), r(3, 4))
case("select_of_merged", lambda x: x.permute(0, 2, 1).reshape(2, 12)[:, 7], r(2, 3, 4))
case("slice_of_merged", lambda x: x.permute(0, 2, 1).reshape(2, 12)[:, 3:9:2] + 1, r(2, 3, 4))
case("split", lambda x: x.split([1, 3], 1) + x.split(2) + x.chunk(2, -1), r(3, 4))
case("unbind", lambda x: x.unbind(1), r(3, 2))
case("unfold", lambda x: x.unfold(1, 3, 2) * 1, r(2, 8))
case("flip", lambda x: (x.flip(0), x.flip([0, 1]) + 1), r(3, 4))
case("flip_of_merged", lambda x: x.permute(1, 0).reshape(12).flip(0), r(3, 4))
case("repeat", lambda x: (x.repeat(2, 3), x.repeat(2, 1, 2)), r(3, 2), r(1, 2))
case("repeat_interleave", lambda x: (x.repeat_interleave(3, 1), x.repeat_interleave(2)), r(3, 2))
case("diagonal", lambda x: (x.diagonal(), x.diagonal(1), x.diagonal(-1, 1, 0)), r(3, 4))
case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), r(2, 8, 3, 2))
case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), r(2, 3, 4, 6))
case("channel_shuffle", lambda x: F.channel_shuffle(x, 2), r(1, 4, 3, 2))
case("flatten", lambda x: (x.flatten(1), x.unflatten(1, (3, 1))), r(2, 3, 4))

# ------------------------------------------------------------------------------------------ create


def _created(x: Tensor) -> tuple[Tensor, ...]:
    return (
        torch.zeros(2, 3) + x,
        torch.ones(3) * x,
        torch.full((2, 3), 2.5),
        torch.zeros_like(x),
        torch.ones_like(x),
        torch.full_like(x, 3.0),
        x.new_zeros(2),
        x.new_ones(2),
        x.new_full((2,), 4.0),
        torch.empty_like(x).fill_(1.0),
        torch.empty(3).zero_(),
        torch.scalar_tensor(2.0),
        torch.eye(3),
        torch.eye(2, 3),
    )


case("create", _created, r(2, 3))
case(
    "arange",
    lambda x: (torch.arange(4) + x, torch.arange(1, 9, 2), torch.arange(0.0, 1.0, 0.3)),
    r(4),
)
case("arange_f32", lambda x: torch.arange(5, dtype=torch.float32) * x, r(5))
case(
    "iota",
    lambda x: (
        torch.ops.prims.iota(
            4, start=2, step=3, dtype=torch.int64, device="cpu", requires_grad=False
        )
        + x
    ),
    i(4),
)
case("linspace", lambda x: (torch.linspace(-1, 1, 7) + x, torch.linspace(0, 1, 1)), r(7))
case(
    "tri", lambda x: (x.tril(), x.triu(1), x.tril(-1), torch.ones(3, 4).triu()), r(3, 4), r(2, 3, 4)
)
case("fill", lambda x, v: (A.fill.Scalar(x, 2), A.fill.Tensor(x, v)), (r(3, 4), r()))
case(
    "causal_mask",
    lambda x: x.masked_fill(torch.arange(4)[:, None] < torch.arange(4)[None], -INF),
    r(4, 4),
)
case(
    "empty", lambda x: (torch.empty(3) * 0 == 0).sum() * 0 + A.new_empty(x, [2]).shape[0] + x, r(3)
)

# --------------------------------------------------------------------------------------- join, pad

case(
    "cat",
    lambda x, y, z: torch.cat([x, y, z], 1),
    (r(3, 2), r(3, 1), r(3, 4)),
    (r(3, 0), r(3, 1), t(3, 4)),
)
case("cat_types", lambda x, y: torch.cat([x, y]), (r(3), i(2)))
case("cat_one", lambda x: torch.cat([x]), r(3))
case("cat_empty_vector", lambda x, y: torch.cat([x, y], 1), (r(0), r(2, 3)))
case(
    "cat_merged",
    lambda x, y: torch.cat([x.permute(0, 2, 1).reshape(2, 12), y], 0),
    (r(2, 3, 4), r(1, 12)),
)
case(
    "stack",
    lambda x, y: (torch.stack([x, y], 0), torch.stack([x, y.exp()], -1)),
    (r(2, 3), t(2, 3)),
)
case("pad", lambda x: (F.pad(x, (1, 2)), F.pad(x, (-1, 2, 1, -1), value=3.0)), r(3, 4), i(3, 4))
case("pad_of_cat", lambda x: F.pad(torch.cat([x, x + 1]), (0, 0, 1, 1)).sum(1), r(3, 4))
case(
    "pad_modes",
    lambda x: tuple(F.pad(x, (2, 1, 1, 2), mode=m) for m in ("reflect", "replicate", "circular")),
    r(1, 2, 4, 5),
)
case(
    "pad_modes_1d",
    lambda x: tuple(F.pad(x, (2, 1), mode=m) for m in ("reflect", "replicate")),
    r(2, 4),
)
case(
    "pad_nd",
    lambda x: (
        A.constant_pad_nd(x, [1, 2], 1.5),
        A.reflection_pad1d(x, [1, 2]),
        A.replication_pad1d(x, [1, 2]),
    ),
    r(2, 4),
)
case(
    "pad_nd_2d",
    lambda x: (A.reflection_pad2d(x, [1, 2, 1, 0]), A.replication_pad2d(x, [1, 2, 0, 3])),
    r(2, 4, 5),
)
case(
    "pad_nd_3d",
    lambda x: (
        A.reflection_pad3d(x, [1, 1, 1, 0, 0, 2]),
        A.replication_pad3d(x, [1, 2, 0, 3, 1, 1]),
    ),
    r(2, 4, 3, 5),
)
case(
    "roll",
    lambda x: (torch.roll(x, (2, -1), (0, 1)), torch.roll(x, 3), torch.roll(x, 8, 0)),
    r(4, 5),
)


def _assign(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:8:3] = 0.0
    y[2] = x[0]
    y[:, -1] += 1
    return y


case("assign_slices", _assign, r(4, 9))
case(
    "slice_scatter",
    lambda x, y: (A.slice_scatter(x, y, 1, 1, 6, 2), A.select_scatter(x, y[:, 0], 1, -2)),
    (r(3, 7), r(3, 3)),
)

# --------------------------------------------------------------------------------- gather, scatter

_IX = i(2, 3, low=0, high=3)
case(
    "embedding",
    F.embedding,
    (i(2, 3, low=0, high=5), r(5, 4)),
    (i(3, low=0, high=5, dtype=torch.int32), r(5, 4)),
)
case("embedding_empty", F.embedding, (i(0, low=0, high=5), r(5, 4)))
case(
    "index_select",
    lambda x, k: (x.index_select(1, k), x.t().index_select(0, k)),
    (r(3, 4), i(5, low=0, high=4)),
)
case("gather", lambda x, k: (x.gather(1, k), x.gather(0, k[:, :2] % 2)), (r(2, 4), _IX))
case("take_along", lambda x, k: torch.take_along_dim(x, k, 1), (r(2, 4), _IX))
case("index_one", lambda x, k: (x[k], x[:, k[0]], x[-1, k[1]]), (r(4, 5), i(2, 3, low=-4, high=4)))
case(
    "index_two",
    lambda x, k: (x[k[0], k[1]], x[k[0], :, k[1]], x[:, k, k[:1]]),
    (r(4, 4, 5), i(2, 3, low=-4, high=4)),
)
case(
    "index_arange",
    lambda x: x[:, torch.arange(3)] + x[torch.arange(2)[:, None], torch.arange(3)],
    r(2, 3),
)
case("index_of_padded", lambda x, k: F.pad(x, (1, 1))[k], (r(4, 5), i(3, low=0, high=4)))
case("unsafe_index", lambda x, k: A._unsafe_index(x, [None, k]), (r(4, 5), i(3, low=0, high=4)))
case("scatter", lambda x, k, s: (x.scatter(1, k, s), x.scatter(1, k, 1.5)), (r(2, 4), _IX, r(2, 5)))
case(
    "scatter_add",
    lambda x, k, s: x.scatter_add(1, k, s),
    (r(2, 4), _IX, r(2, 5)),
    (r(2, 4, dtype=BF16), _IX, r(2, 3, dtype=BF16)),
    (i(2, 4), _IX, i(2, 3)),
)
for _name in ("sum", "prod", "amax", "amin"):
    case(
        f"scatter_reduce_{_name}",
        lambda x, k, s, f=_name: x.scatter_reduce(1, k, s, f),
        (r(2, 4), _IX, r(2, 5)),
    )
case(
    "scatter_reduce_mean",
    lambda x, k, s: x.scatter_reduce(1, k, s, "mean"),
    (r(2, 4), _IX, r(2, 5)),
    externs=1,
)
case(
    "scatter_old_reduce",
    lambda x, k, s: (
        A.scatter.reduce(x, 1, k, s, reduce="add"),
        A.scatter.value_reduce(x, 1, k, 2.0, reduce="multiply"),
    ),
    (r(2, 4), _IX, r(2, 5)),
)
case(
    "index_put",
    lambda x, k, v: x.index_put((k[0], k[1] + 1), v),
    (r(4, 5), fixed([0, 1, 2], [2, 1, 0], dtype=torch.int64), r(3)),
)
case(
    "index_put_accumulate",
    lambda x, k, v: x.index_put((k,), v, accumulate=True),
    (r(4, 3), _IX, r(2, 3, 3)),
    (r(4, 3), _IX, r(1)),
)
case(
    "unsafe_index_put",
    lambda x, k, v: A._unsafe_index_put(x, [k], v, True),
    (r(4, 3), i(3, low=0, high=4), r(3, 3)),
)
case(
    "index_put_mask",
    lambda x, m: (x.index_put((m,), torch.tensor(0.0)), x.index_put((m[:, 0],), torch.tensor(1.0))),
    (r(3, 4), b(3, 4)),
)
case("index_add", lambda x, k, s: x.index_add(1, k, s), (r(2, 4), i(3, low=0, high=4), r(2, 3)))
case(
    "index_copy",
    lambda x, k, s: x.index_copy(1, k, s),
    (r(2, 4), fixed(2, 0, 3, dtype=torch.int64), r(2, 3)),
)
case("index_fill", lambda x, k: x.index_fill(1, k, 2.0), (r(2, 4), i(3, low=0, high=4)))
case(
    "index_fill_tensor", lambda x, k, v: x.index_fill(0, k, v), (r(4, 2), i(2, low=0, high=4), r())
)


@pytest.mark.parametrize("c", case, ids=lambda c: c.name)
def test_matches_eager(c: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imported Program, interpreted, gives eager's values, types, shapes."""
    run_case(c, monkeypatch)
