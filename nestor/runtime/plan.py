"""From a manifest to tables that a call can follow: aliases, lifetimes, and sizes per shape.

``Layout`` is worked out once a model; ``ShapePlan`` once for each combination of input shapes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from nestor.errors import InputError, InternalError
from nestor.runtime.arena import ArenaPlan, Lifetime, plan_arena
from nestor.runtime.dims import evaluate, evaluate_all, format_shape, solve
from nestor.runtime.manifest import ITEM_BYTES, InputSpec, KernelCall, Manifest, TensorSlot
from nestor.runtime.tensors import DTYPE_NAMES, Order, Shape

PAGE_BYTES = 4096
_LEAST_BUSY = 0.8
"""Share of their time for which a team's threads need blocks to work on."""


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A flat input that is a tensor: where it stands, and which table entries get its address."""

    position: int
    name: str
    slot: int
    dtype: str
    order: Order
    entries: tuple[int, ...]
    is_overwritten: bool


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An array that a call allocates for the caller."""

    slot: int
    dtype: str
    order: Order
    entries: tuple[int, ...]


class Layout:
    """What of a manifest does not depend on shapes.

    Attributes:
        roots: of each slot the slot that owns its memory.
        entries: of each root all slots that share its memory.
        temps: roots in the arena, with ``lifetimes``.
    """

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        slots = manifest.slots
        self.roots = tuple(_root(slots, i) for i in range(len(slots)))
        members: dict[int, list[int]] = {}
        for i, root in enumerate(self.roots):
            members.setdefault(root, []).append(i)
        self.entries = {root: tuple(m) for root, m in members.items()}
        self.inputs = tuple(
            self._input(position, spec)
            for position, spec in enumerate(manifest.inputs)
            if spec.kind == "tensor"
        )
        self.outputs = tuple(
            OutputTensor(i, slots[i].dtype, slots[i].permutation, self.entries[i])
            for i in self.entries
            if slots[i].role == "output"
        )
        used = self._lifetimes()
        temps = [i for i in self.entries if slots[i].role == "temp"]
        self.temps = tuple(i for i in temps if i in used)
        self.unused = tuple(i for i in temps if i not in used)
        self.lifetimes = tuple(used[i] for i in self.temps)

    def _input(self, position: int, spec: InputSpec) -> InputTensor:
        index = spec.slot if spec.slot is not None else -1
        slot = self.manifest.slots[index]
        changed = {self.roots[m.target] for m in self.manifest.mutations}
        return InputTensor(
            position, spec.name, index, slot.dtype, slot.permutation, self.entries[index],
            slot.role == "inout" or index in changed,
        )  # fmt: skip

    def _lifetimes(self) -> dict[int, Lifetime]:
        """Of each root, the calls between which it is in use; later uses count as a last call."""
        manifest = self.manifest
        used: dict[int, Lifetime] = {}

        def extend(slot: int, first: int, last: int) -> None:
            root = self.roots[slot]
            old = used.get(root, (first, last))
            used[root] = min(old[0], first), max(old[1], last)

        for position, call in enumerate(manifest.calls):
            if isinstance(call, KernelCall):
                touched: Sequence[int] = call.tensors
            else:
                touched = (*call.inputs, *call.outputs)
            # What one step leaves may be what the next one takes.
            span = next(
                ((s.first, s.last - 1) for s in manifest.loops if s.first <= position < s.last),
                (position, position),
            )
            for slot in touched:
                extend(slot, *span)
        for index, entry in enumerate(manifest.slots):
            if entry.role == "temp" and entry.first_use >= 0:
                extend(index, entry.first_use, max(entry.first_use, entry.last_use))
        after = len(manifest.calls)
        for mutation in manifest.mutations:
            extend(mutation.source, after, after)
        for output in manifest.outputs:
            if output.kind == "slot" and output.slot is not None:
                extend(output.slot, after, after)
        return used


def _root(slots: Sequence[TensorSlot], index: int) -> int:
    while (other := slots[index].alias_of) is not None:
        index = other
    return index


class ShapePlan:
    """What a call with certain input shapes needs.

    Attributes:
        symbols: value by name; ``symbol_values`` is the native array of them.
        shapes: logical shape of each slot.
        sizes: bytes of each slot.
        arena: where the temps lie.
        blocks: for a model in blocks, what its driver has to know.
        outputs: ``(array, shape)`` of what is allocated.
    """

    def __init__(self, layout: Layout, symbols: Mapping[str, int]):
        manifest = layout.manifest
        self.symbols = dict(symbols)
        values = [symbols[s.name] for s in manifest.symbols]
        self.symbol_values = (ctypes.c_int64 * max(1, len(values)))(*values)
        self.symbol_address = ctypes.addressof(self.symbol_values)
        self.shapes = tuple(evaluate_all(s.shape, symbols) for s in manifest.slots)
        self.sizes = tuple(
            prod(evaluate_all(s.memory_shape, symbols)) * ITEM_BYTES[s.dtype]
            for s in manifest.slots
        )
        for index, root in enumerate(layout.roots):
            if self.sizes[index] > self.sizes[root]:
                large, small = manifest.slots[index].name, manifest.slots[root].name
                raise InternalError(
                    f"'{large}' ({self.sizes[index]} bytes) is an alias of the smaller '{small}' "
                    f"({self.sizes[root]} bytes)"
                )
        temps = [self.sizes[t] for t in layout.temps]
        self.arena: ArenaPlan = plan_arena(layout.lifetimes, temps)
        self.arena_entries = tuple(
            (entry, offset)
            for temp, offset in zip(layout.temps, self.arena.offsets, strict=True)
            for entry in layout.entries[temp]
        )
        self.outputs = tuple((o, self.shapes[o.slot]) for o in layout.outputs)
        self.blocks = None if manifest.blocks is None else BlockPlan(layout, self)

    def arena_bytes(self, threads: int) -> int:
        """Memory of the temps of a call that uses so many threads."""
        if self.blocks is None:
            return self.arena.total
        return self.blocks.team(threads) * self.blocks.thread_bytes


class BlockPlan:
    """How table entries move from block to block, and from thread to thread.

    Attributes:
        count: number of blocks.
        thread_bytes: of the arena, that each thread which runs blocks has to itself.
        by_block, by_thread: for each table entry how far it moves [bytes].
    """

    def __init__(self, layout: Layout, plan: ShapePlan):
        blocks = layout.manifest.blocks
        assert blocks is not None
        slots = layout.manifest.slots
        self.count = blocks.count
        self.thread_bytes = -(-plan.arena.total // PAGE_BYTES) * PAGE_BYTES
        steps = [0] * len(slots), [0] * len(slots)
        for root, entries in layout.entries.items():
            for entry in entries:
                if slots[root].in_blocks:
                    steps[0][entry] = plan.sizes[root] // blocks.count
                elif root in layout.temps and plan.sizes[entry]:
                    steps[1][entry] = self.thread_bytes
        self.by_block, self.by_thread = ((ctypes.c_int64 * len(slots))(*s) for s in steps)

    def team(self, threads: int) -> int:
        """How many threads take blocks by themselves; 1: all threads work on each block.

        The latter where some would be without a block for much of the time.
        """
        rounds = -(-self.count // threads)
        return threads if self.count >= _LEAST_BUSY * rounds * threads else 1


def bind_symbols(layout: Layout, inputs: Sequence[Any], shapes: Sequence[Shape]) -> dict[str, int]:
    """Values of the symbols from a call's inputs, with every size checked.

    Args:
        inputs: flat inputs.
        shapes: of the tensors among them, in the order of ``layout.inputs``.

    Raises:
        InputError: which input, which dimension, what it is and what it should be.
    """
    manifest = layout.manifest
    by_position = {t.position: s for t, s in zip(layout.inputs, shapes, strict=True)}
    for tensor in layout.inputs:
        expected = manifest.slots[tensor.slot].shape
        if len(by_position[tensor.position]) != len(expected):
            raise _shape_error(layout, tensor, by_position[tensor.position], "", {})
    symbols: dict[str, int] = {}
    for symbol in manifest.symbols:
        spec = manifest.inputs[symbol.input]
        if symbol.dimension is None:
            found, size = inputs[symbol.input], spec.value
        else:
            found = by_position[symbol.input][symbol.dimension]
            size = manifest.slots[spec.slot or 0].shape[symbol.dimension]
        value = solve(size if size is not None else 0, symbol.name, found)
        top = symbol.upper
        if value is None or value < symbol.lower or (top is not None and value > top):
            limit = f"{symbol.lower} ≤ {symbol.name}" + (f" ≤ {top}" if top is not None else "")
            if symbol.dimension is None:
                raise InputError(f"input '{spec.name}': {found}, expected {size} with {limit}")
            tensor = next(t for t in layout.inputs if t.position == symbol.input)
            shape = by_position[symbol.input]
            raise _shape_error(
                layout, tensor, shape, f" with {limit}: dimension {symbol.dimension} is {found}", {}
            )
        symbols[symbol.name] = value
    for tensor in layout.inputs:
        shape = by_position[tensor.position]
        expected = manifest.slots[tensor.slot].shape
        if evaluate_all(expected, symbols) != tuple(shape):
            raise _shape_error(layout, tensor, shape, "", symbols)
    for spec, given in zip(manifest.inputs, inputs, strict=True):
        if spec.kind == "integer" and spec.value is not None:
            wanted = evaluate(spec.value, symbols)
            if given != wanted:
                raise InputError(f"input '{spec.name}': {given}, expected {spec.value} = {wanted}")
    return symbols


def _shape_error(
    layout: Layout, tensor: InputTensor, shape: Shape, detail: str, symbols: Mapping[str, int]
) -> InputError:
    expected = layout.manifest.slots[tensor.slot].shape
    text = format_shape(expected)
    if symbols:
        bound = ", ".join(f"{n} = {v}" for n, v in symbols.items() if n in text)
        detail = detail or f" with {bound}" * bool(bound)
    fix = "" if layout.manifest.symbols else (
        "\n  fix: compile for this shape, or name the sizes that vary in dynamic_shapes"
    )  # fmt: skip
    return InputError(
        f"input '{tensor.name}': shape {format_shape(shape)}, expected {text}{detail} "
        f"({DTYPE_NAMES[tensor.dtype]}){fix}"
    )
