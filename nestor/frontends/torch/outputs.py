"""Results in memory as eager lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nestor.frontends.torch import dtypes, views
from nestor.frontends.torch.context import Context
from nestor.frontends.torch.model import OutputSpec
from nestor.frontends.torch.value import Value
from nestor.ir.expr import Load


def emit_output(ctx: Context, value: Value, meta: Any, *, fresh: bool = False) -> OutputSpec:
    """Make ``value`` a tensor whose memory order is that of eager's result ``meta``.

    Args: fresh: even an input or a weight is copied (the new value of a mutated buffer).
    """
    order = memory_order(meta)
    stored = views.permute(value, order)
    ctx.hint = "out"
    name = _output_tensor(ctx, stored, fresh)
    inverse = tuple(order.index(d) for d in range(len(order)))
    return OutputSpec(
        tensor=name,
        dtype=dtypes.to_torch(value.dtype),
        memory_shape=tuple(stored.dims),
        permutation=inverse,
    )


def memory_order(meta: Any) -> list[int]:
    """Dimensions from outermost to innermost in eager's memory, if its strides are dense.

    Without a dense order (broadcast results) it is row-major. Sizes of 1 are placed where their
    strides say, if that is consistent.
    """
    rank = meta.dim()
    strides, sizes = _hints(meta.stride()), _hints(meta.shape)
    order = sorted(range(rank), key=lambda d: (-strides[d], sizes[d] == 1, d))
    if _is_dense(order, strides, sizes, units=True):
        return order
    order = sorted((d for d in range(rank) if sizes[d] != 1), key=lambda d: (-strides[d], d))
    order = _place_units(order, sizes)
    if _is_dense(order, strides, sizes, units=False):
        return order
    return list(range(rank))


def _is_dense(order: Sequence[int], strides: list[int], sizes: list[int], *, units: bool) -> bool:
    expected = 1
    for d in reversed(order):
        if strides[d] != expected and (units or sizes[d] != 1):
            return False
        expected *= max(sizes[d], 1)
    return True


def _place_units(order: list[int], sizes: Sequence[int]) -> list[int]:
    """Keep dimensions of size 1 as near to row-major order as the others allow."""
    big = [d for d in order if sizes[d] != 1]
    if big == sorted(big):
        return list(range(len(sizes)))
    return [d for d in range(len(sizes)) if sizes[d] == 1] + big


def _hints(values: Any) -> list[int]:
    """Concrete values; a symbolic one by the example that was traced."""
    out = []
    for v in values:
        node = getattr(v, "node", None)
        hint = None if node is None else getattr(node, "hint", None)
        out.append(int(v) if node is None else int(hint) if hint is not None else 2)
    return out


def _output_tensor(ctx: Context, value: Value, fresh: bool) -> str:
    """A tensor that holds ``value`` in row-major order and may be returned."""
    if ctx.is_stored(value):
        assert isinstance(value.elem, Load)
        tensor = ctx.tensors[value.elem.tensor]
        if tensor.role == "temp" and tensor.alias_of is None:
            ctx.tensors[tensor.name] = replace(tensor, role="output")
            return tensor.name
        if not fresh and tensor.role != "temp":
            return tensor.name
    copy = ctx.pointwise(value.dims, lambda s: (s.read(value),))[0]
    assert isinstance(copy.elem, Load)
    name = copy.elem.tensor
    ctx.tensors[name] = replace(ctx.tensors[name], role="output")
    return name
