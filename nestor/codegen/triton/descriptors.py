"""Boxes of tensors that hardware copies: Triton's tensor descriptors.

A descriptor tells of a tensor in memory and of the box that one copy takes; a copy then names a
corner alone. What lies outside the tensor reads as 0, so bounds need no mask. Chips before Hopper
read the same through pointers.

Source: NVIDIA, PTX ISA, ``cp.async.bulk.tensor``.
"""

from __future__ import annotations

from math import prod

from nestor.codegen.triton.blocks import Context, Value, shape_text
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Load
from nestor.ir.narrow_floats import BYTES
from nestor.ir.program import Tensor
from nestor.ir.types import DType

ALIGNMENT = 16
"""Of a tensor's strides, of the corner's place in a row and of a row of the box [bytes]."""

MOST_DIMENSIONS = 5
MOST_SIDE = 256
"""Elements of a box along a dimension."""

_READ = ("input", "parameter", "constant")
"""Roles of what no kernel writes: copies of boxes see other stores only after a fence."""

_TYPES = (DType.f16, DType.bf16, DType.f32, DType.i8, *BYTES)


def load_box(ctx: Context, node: Load) -> Value | None:
    """A load's block, copied as a box; None where none is, or where boxes are not asked for."""
    if ctx.boxes is None or node.tensor in ctx.registers:
        return None
    tensor = ctx.tensors[node.tensor]
    places = _places(ctx, node) if _has_boxes(tensor) and not node.predicate else None
    if places is None or not _is_bound_alone(ctx, node, tensor, frozenset(places.values())):
        return None
    dimensions = range(len(tensor.shape))
    box = tuple(ctx.sizes[places[d]] if d in places else 1 for d in dimensions)
    corner = [_without(index, places.get(d)) for d, index in enumerate(node.indices)]
    item = tensor.dtype.bytes
    starts = (*(c for _, c in corner[-1].terms), corner[-1].const)
    if box[-1] * item < ALIGNMENT or any(c * item % ALIGNMENT for c in starts):
        return None
    if max(box) > MOST_SIDE:
        return None
    order = tuple(places[d] for d in sorted(places))
    texts = ", ".join(_offset(ctx, c) for c in corner)
    text = f"{_descriptor(ctx, tensor, box)}.load([{texts}])"
    if len(order) < len(box):
        text = f"tl.reshape({text}, {shape_text(ctx.sizes[a] for a in order)})"
    wanted = tuple(a for a in ctx.axes if a in order)
    if wanted != order:
        text = f"tl.permute({text}, {tuple(order.index(a) for a in wanted)})"
    block = ctx.assign(f"{ctx.pointers[node.tensor]}_block", Value(text))
    return Value(ctx.expanded(block.text, wanted), frozenset(order))


def _has_boxes(tensor: Tensor) -> bool:
    """Whether a tensor can have a descriptor."""
    if tensor.layout is not None or tensor.dtype not in _TYPES or tensor.role not in _READ:
        return False
    if not 1 <= len(tensor.shape) <= MOST_DIMENSIONS or not all(e.is_const for e in tensor.shape):
        return False
    return not any(stride * tensor.dtype.bytes % ALIGNMENT for stride in _strides(tensor)[:-1])


def _strides(tensor: Tensor) -> list[int]:
    """How far apart neighbours along each dimension lie [elements]."""
    sizes = [e.const for e in tensor.shape]
    return [prod(sizes[d + 1 :]) for d in range(len(sizes))]


def _places(ctx: Context, node: Load) -> dict[int, str] | None:
    """The loop of the tile that each dimension runs along, if any; None if one is no plain run."""
    found: dict[int, str] = {}
    axes = frozenset(ctx.axes)
    for d, index in enumerate(node.indices):
        if not isinstance(index, Affine):
            return None
        own = index.variables() & axes
        if not own:
            continue
        (axis, *more) = own
        if more or axis in found.values() or index.coefficient(axis) != 1:
            return None
        if axis in _without(index, axis).variables():
            return None
        found[d] = axis
    return found if len(node.indices) - 1 in found else None


def _is_bound_alone(ctx: Context, node: Load, tensor: Tensor, varied: frozenset[str]) -> bool:
    """Whether nothing is tested but that elements lie inside the tensor."""
    bounds = [e - 1 - i for e, i in zip(tensor.shape, node.indices) if isinstance(i, Affine)]
    axes = frozenset(ctx.axes)
    for c in ctx.conditions:
        low = c.bounds(ctx.ranges)[0]
        varies = c.variables() & axes
        is_decided = low is not None and low >= 0
        if not is_decided and (not varies or varies & varied) and c not in bounds:
            return False
    return True


def _without(index: object, axis: str | None) -> Affine:
    assert isinstance(index, Affine)
    return index if axis is None else index - affine(axis)


def _offset(ctx: Context, corner: Affine) -> str:
    """A corner's coordinate, of 32 bits."""
    text = ctx.affine(corner).text
    return text if not corner.terms else f"tl.cast({text}, tl.int32)"


def _descriptor(ctx: Context, tensor: Tensor, box: tuple[int, ...]) -> str:
    """The name of a descriptor, made at the beginning of the kernel."""
    assert ctx.boxes is not None
    key = tensor.name, box
    if key not in ctx.boxes:
        pointer = ctx.pointers[tensor.name]
        shape = ", ".join(str(e.const) for e in tensor.shape)
        strides = ", ".join(map(str, _strides(tensor)))
        sides = ", ".join(map(str, box))
        made = f"tl.make_tensor_descriptor({pointer}, [{shape}], [{strides}], [{sides}])"
        ctx.boxes[key] = ctx.names.fresh(f"{pointer}_box"), made
    return ctx.boxes[key][0]
