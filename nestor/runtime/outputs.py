"""Flat outputs of a call: fresh arrays, views of them, and the caller's own objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from nestor.runtime.dims import evaluate, evaluate_all
from nestor.runtime.manifest import OutputSpec
from nestor.runtime.plan import Layout, ShapePlan
from nestor.runtime.tensors import Library, Order, Shape

Where = Literal["allocated", "input", "memory", "caller", "value"]


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One flat output, with all sizes known.

    ``where`` says what ``index`` counts: arrays allocated for this call, dense inputs, slots whose
    bytes are copied, the caller's inputs; ``value`` stands for itself. ``view``: shape, strides,
    offset of a view of that array, stored in ``order``.
    """

    where: Where
    index: int = 0
    value: object = None
    view: tuple[Shape, Shape, int] | None = None
    order: Order = None


class OutputPlan:
    """How the outputs of calls with certain input shapes are made."""

    def __init__(self, layout: Layout, plan: ShapePlan):
        self._layout = layout
        self._plan = plan
        self._allocated = {o.slot: n for n, (o, _) in enumerate(plan.outputs)}
        self._inputs = {t.slot: n for n, t in enumerate(layout.inputs)}
        self._leaves = [self._leaf(o) for o in layout.manifest.outputs]
        self.is_plain = all(
            leaf.where == "allocated" and leaf.view is None for leaf in self._leaves
        )
        self._plain = [leaf.index for leaf in self._leaves]

    def _leaf(self, spec: OutputSpec) -> _Leaf:
        symbols = self._plan.symbols
        if spec.kind == "input":
            return _Leaf("caller", spec.input or 0)
        if spec.kind == "constant":
            return _Leaf("value", value=spec.constant)
        if spec.kind == "integer":
            return _Leaf("value", value=evaluate(spec.value or 0, symbols))
        slots = self._layout.manifest.slots
        index = spec.slot if spec.slot is not None else 0
        root = self._layout.roots[index]
        view = _view_of(spec, symbols)
        if view is None and index != root:
            shape = self._plan.shapes[index]
            view = shape, _row_major(shape), 0
        order = slots[root].permutation
        if root in self._allocated:
            return _Leaf("allocated", self._allocated[root], view=view, order=order)
        if root in self._inputs:
            return _Leaf("input", self._inputs[root], view=view, order=order)
        return _Leaf("memory", root, view=view, order=order)

    def collect(
        self,
        arrays: Sequence[Any],
        dense: Sequence[Any],
        given: Sequence[Any],
        copy_out: Callable[[int], Any],
        libraries: tuple[Library, Sequence[Library]],
    ) -> list[Any]:
        """Flat outputs.

        Args:
            arrays: allocated for this call, in the order of ``ShapePlan.outputs``.
            dense: tensors among the inputs, as native code saw them.
            given: flat inputs as the caller gave them.
            copy_out: gives a copy of a slot's memory, an array of the first of ``libraries``.
            libraries: of the outputs, and of each of ``dense``.
        """
        if self.is_plain:
            return [arrays[n] for n in self._plain]
        library, owners = libraries
        results: list[Any] = []
        copies: dict[int, Any] = {}
        for leaf in self._leaves:
            owner = library
            match leaf.where:
                case "value":
                    results.append(leaf.value)
                    continue
                case "caller":
                    results.append(given[leaf.index])
                    continue
                case "allocated":
                    array = arrays[leaf.index]
                case "input":
                    array, owner = dense[leaf.index], owners[leaf.index]
                case "memory":
                    if leaf.index not in copies:
                        copies[leaf.index] = copy_out(leaf.index)
                    array = copies[leaf.index]
            results.append(
                array if leaf.view is None else owner.view(array, leaf.order, *leaf.view)
            )
        return results


def _view_of(spec: OutputSpec, symbols: Mapping[str, int]) -> tuple[Shape, Shape, int] | None:
    if spec.shape is None or spec.strides is None:
        return None
    return (
        evaluate_all(spec.shape, symbols),
        evaluate_all(spec.strides, symbols),
        evaluate(spec.offset, symbols),
    )


def _row_major(shape: Shape) -> Shape:
    return tuple(prod(max(s, 1) for s in shape[i + 1 :]) for i in range(len(shape)))
