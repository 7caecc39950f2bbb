"""The outside of a compiled model: arguments to flat inputs and a plan, flat outputs to results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nestor.errors import InputError
from nestor.runtime.checks import check_plain, describe, tensor_error
from nestor.runtime.dims import evaluate_all
from nestor.runtime.manifest import Manifest
from nestor.runtime.outputs import OutputPlan
from nestor.runtime.plan import Layout, ShapePlan, bind_symbols
from nestor.runtime.structure import CallFlattener, check_tree, make_builder
from nestor.runtime.tensors import DTYPE_NAMES, Library

MAX_PLANS = 256
"""Combinations of input shapes whose plans are kept."""


class ModelCalls:
    """What calls of a model have in common, whatever it runs on.

    Args: manifest: checked (``Manifest.from_json`` or ``check_manifest``).
    """

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self._layout = Layout(manifest)
        self._plans: dict[object, tuple[ShapePlan, OutputPlan]] = {}
        self._lock = threading.Lock()
        self._plain_inputs = [(i, s) for i, s in enumerate(manifest.inputs) if s.kind != "tensor"]
        self._flatten = self._make_flattener()
        self._build = self._make_builder()

    def _make_flattener(self) -> CallFlattener:
        manifest = self.manifest
        if manifest.input_tree is not None:
            check_tree(manifest.input_tree, len(manifest.inputs), "manifest.input_tree")
        nones = frozenset(
            i for i, s in self._plain_inputs if s.kind == "constant" and s.constant is None
        )
        return CallFlattener(manifest.input_tree, manifest.argument_names, nones)

    def _make_builder(self) -> Callable[[Sequence[Any]], Any]:
        tree = self.manifest.output_tree
        count = len(self.manifest.outputs)
        if tree is None:
            return (lambda values: values[0]) if count == 1 else tuple
        check_tree(tree, count, "manifest.output_tree")
        return make_builder(tree)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on arguments of the structure it was compiled with.

        Raises:
            InputError: number, structure, dtype, shape or device do not fit.
            IndexOutOfRange: a data-dependent index lies outside its tensor.
        """
        return self._build(self.run(self._flatten(args, kwargs)))

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Flat inputs → flat outputs. Raises: as ``__call__``."""
        raise NotImplementedError

    def accepts(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a call with these arguments would pass the checks; nothing runs."""
        try:
            inputs = self._flatten(args, kwargs)
            self._check_tensors(inputs)
            self._plan_for(inputs)
        except InputError:
            return False
        return True

    def _library_of(self, value: Any) -> Library | None:
        """The library of a tensor among the inputs; None for anything else."""
        raise NotImplementedError

    def _check_tensors(self, inputs: Sequence[Any]) -> list[Library]:
        """Number, kind, dtype and device of the inputs; the library of each tensor."""
        specs = self.manifest.inputs
        if len(inputs) != len(specs):
            names = ", ".join(s.name for s in specs)
            model = self.manifest.name
            raise InputError(
                f"{len(inputs)} inputs, but model '{model}' takes {len(specs)}: {names}"
            )
        libraries: list[Library] = []
        for tensor in self._layout.inputs:
            value = inputs[tensor.position]
            library = self._library_of(value)
            if library is None:
                raise InputError(
                    f"input '{tensor.name}': a tensor of {DTYPE_NAMES[tensor.dtype]} expected "
                    f"(PyTorch or NumPy), got {describe(value)}"
                )
            problem = library.problem(value, tensor.dtype)
            if problem is not None:
                raise tensor_error(tensor, library, problem)
            libraries.append(library)
        return libraries

    def _plan_for(self, inputs: Sequence[Any]) -> tuple[ShapePlan, OutputPlan]:
        """The plan for these input shapes; made, checked and kept at their first call."""
        key: tuple[Any, ...] = tuple([inputs[t.position].shape for t in self._layout.inputs])
        if self._plain_inputs:
            for position, spec in self._plain_inputs:
                check_plain(spec, inputs[position])
                if spec.kind == "integer":
                    key = (*key, inputs[position])
        found = self._plans.get(key)
        if found is not None:
            return found
        shapes = [tuple(inputs[t.position].shape) for t in self._layout.inputs]
        return self._add_plan(key, bind_symbols(self._layout, inputs, shapes))

    def _plan_fixed_shapes(self) -> None:
        """Plan at load where there is but one plan: the first call then takes no time for it."""
        manifest = self.manifest
        if manifest.symbols or any(s.kind == "integer" for _, s in self._plain_inputs):
            return
        shapes = [manifest.slots[t.slot].shape for t in self._layout.inputs]
        self._add_plan(tuple(evaluate_all(s, {}) for s in shapes), {})

    def _add_plan(self, key: object, symbols: Mapping[str, int]) -> tuple[ShapePlan, OutputPlan]:
        plan = ShapePlan(self._layout, symbols)
        self._planned(plan)
        made = plan, OutputPlan(self._layout, plan)
        with self._lock:
            while len(self._plans) >= MAX_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = made
        return made

    def _planned(self, plan: ShapePlan) -> None:
        """Called with each new plan."""

    def plan_for_symbols(self, symbols: Mapping[str, int] | None = None) -> ShapePlan:
        """Sizes and places for given symbol values, without a call."""
        return ShapePlan(self._layout, symbols or {})
