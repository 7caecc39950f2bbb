"""Weights of a model, as the arrays of a compiled program take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nestor.compiler import ProgramCalls, Slot
from nestor.runtime.manifest import WeightSource
from nestor.runtime.weights import Watched
from nestor.weights import WEIGHT_ROLES, evaluate_weights, is_live, slot_arrays

if TYPE_CHECKING:
    import torch

    from nestor.frontends.torch.model import ImportedModel


class ModelWeights:
    """What fills the slots of parameters, constants and states.

    Attributes: imported: the model, with the tensors that it held when last looked at.
    """

    def __init__(self, imported: ImportedModel, program: ProgramCalls):
        self.imported = imported
        self._program = program

    def key(self, position: int) -> str:
        """The name of a slot's array among the weights."""
        slot = self._program.slots[position]
        return slot.tensor.name if slot.layout is None else f"{slot.tensor.name}@{position}"

    def sources(self) -> tuple[WeightSource, ...]:
        """Where each slot's array comes from."""
        return tuple(
            WeightSource(
                slot=position,
                key=self.key(position),
                how="state"
                if slot.tensor.role == "state"
                else "live"
                if is_live(slot, self.imported.weights)
                else "packed",
            )
            for position, slot in enumerate(self._program.slots)
            if slot.tensor.role in WEIGHT_ROLES and slot.tensor.alias_of is None
        )

    def arrays(self, known: Mapping[Slot, Any] | None = None) -> dict[str, Any]:
        """Arrays by key: the model's own storage where kernels may read it, else packed.

        Args: known: arrays that are there already.
        """
        known = known or {}
        slots = [None if s in known else s for s in self._program.slots]
        arrays = {self.key(n): known[s] for n, s in enumerate(self._program.slots) if s in known}
        return {**arrays, **self._made(slots)}

    def _made(self, slots: list[Slot | None]) -> dict[str, Any]:
        """Arrays by key for these slots; None stands for one that needs none."""
        weights = self.imported.weights
        arrays: dict[str, Any] = {}
        rest: list[Slot | None] = []
        for position, slot in enumerate(slots):
            is_used = slot is not None and (slot.tensor.role == "state" or is_live(slot, weights))
            if slot is not None and is_used and slot.tensor.name in weights:
                arrays[self.key(position)] = weights[slot.tensor.name].detach()
            rest.append(None if is_used else slot)
        is_derived = any(
            s.tensor.role in WEIGHT_ROLES and s.tensor.name not in weights for s in rest if s
        )
        program = self._program.weight_program if is_derived else None
        for position, array in slot_arrays(
            rest, weights, evaluate_weights(weights, program)
        ).items():
            arrays[self.key(position)] = array
        return arrays

    def watched(self) -> Iterator[Watched]:
        """Every weight that has a place in the model; values of live ones may change freely."""
        weights = self.imported.weights
        live = {
            s.tensor.name
            for s in self._program.slots
            if s.tensor.role == "state" or is_live(s, weights)
        }
        packed = {
            s.tensor.name for s in self._program.slots if s.tensor.name not in live or s.layout
        }
        program = self._program.weight_program
        if program is not None:
            packed |= {t.name for t in program.by_role("parameter", "constant", "input", "state")}
        for name, owner in self.imported.owners.items():
            container = _container(owner.module, owner.attribute)
            if container is not None:
                yield Watched(
                    container, owner.attribute, weights[name], check_values=name in packed
                )

    def renew(self) -> None:
        """Take the tensors that the model holds now."""
        weights = dict(self.imported.weights)
        for name, owner in self.imported.owners.items():
            current = owner.current()
            if current is not None:
                weights[name] = current
        self.imported = replace(self.imported, weights=weights)


def _container(module: torch.nn.Module | None, attribute: str) -> Mapping[str, Any] | None:
    if module is None:
        return None
    for container in (module._parameters, module._buffers, module.__dict__):
        if attribute in container:
            return container
    return None
