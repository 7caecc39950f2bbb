"""What an import gives: the Program and everything needed to call it like the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nestor.ir.affine import Affine
from nestor.ir.program import Extern, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """A tensor input.

    Attributes:
        name: of the Program's tensor.
        path: where it stands in the call, e.g. ``args[0]`` or ``kwargs['mask']``.
        shape: expected sizes over the Program's symbols.
    """

    name: str
    path: str
    dtype: torch.dtype
    shape: tuple[Affine, ...]

    def renamed(self, mapping: Mapping[str, Affine]) -> InputSpec:
        """With symbols replaced."""
        return replace(self, shape=tuple(s.substitute(mapping) for s in self.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """A tensor output: a tensor of the Program, seen with eager's shape and strides.

    The Program's tensor holds the elements in the order of eager's memory. ``finish`` makes the
    result: reshape to ``memory_shape`` (each size a product of affine factors), then permute.

    Attributes:
        tensor: name; may be an input's, a parameter's, or another output's.
        memory_shape: sizes in memory order, outermost first, as factors.
        permutation: the result's dimension ``d`` is dimension ``permutation[d]`` of memory.
    """

    tensor: str
    dtype: torch.dtype
    memory_shape: tuple[tuple[Affine, ...], ...]
    permutation: tuple[int, ...]

    def renamed(self, mapping: Mapping[str, Affine]) -> OutputSpec:
        """With symbols replaced."""
        shape = tuple(tuple(f.substitute(mapping) for f in d) for d in self.memory_shape)
        return replace(self, memory_shape=shape)

    def finish(self, array: Any, symbols: dict[str, int]) -> Any:
        """The result from the Program's array (NumPy or torch; shares its memory)."""
        sizes = []
        for factors in self.memory_shape:
            size = 1
            for factor in factors:
                size *= int(factor.evaluate(symbols))
            sizes.append(size)
        array = array.reshape(sizes)
        if self.permutation == tuple(range(len(sizes))):
            return array
        return array.permute(self.permutation) if hasattr(array, "permute") else array.transpose(
            self.permutation
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Owner:
    """Where a weight lives: ``getattr(module, attribute)``, found under ``path`` in the model.

    ``module`` is None for tensors that belong to no module (constants of the traced code).
    """

    path: str
    module: torch.nn.Module | None
    attribute: str

    def current(self) -> torch.Tensor | None:
        """The tensor that the module holds now; None without an owner."""
        if self.module is None:
            return None
        value = getattr(self.module, self.attribute, None)
        return value if isinstance(value, torch.Tensor) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A buffer or an input that the model overwrites: ``tensor`` holds its new value.

    Attributes:
        kind: ``buffer`` or ``input``.
        target: the buffer's path in the model, or the input's name.
        value: how the new value is read from the Program's output tensor.
        source: the Program's tensor with the old value; "" if nothing reads that.
    """

    kind: str
    target: str
    value: OutputSpec
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    """A model as a Program.

    Attributes:
        inputs: tensor inputs in flattened calling order.
        in_tree: structure of ``(args, kwargs)``, see ``trees``; leaves are tensors (an index into
            ``inputs``) and constants that the import specialised on.
        out_tree: structure of the result; tensor leaves index ``outputs``.
        weights: live tensors for parameter, constant and state roles, by the Program's names.
        owners: where each weight lives in the model.
        symbols: for each shape symbol the input and dimension that it is read from.
        sizes: their values in the example that was traced, as far as they are known.
        in_spec, out_spec: PyTorch's own descriptions of the same trees.
        export_seconds: time spent in ``torch.export`` and its decompositions [s].
    """

    program: Program
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    in_tree: dict[str, Any]
    out_tree: dict[str, Any]
    weights: dict[str, torch.Tensor]
    owners: dict[str, Owner]
    mutated: tuple[Mutation, ...] = ()
    symbols: dict[str, tuple[str, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    in_spec: Any = None
    out_spec: Any = None
    export_seconds: float = 0.0

    def externs(self) -> tuple[Extern, ...]:
        """Operators without a lowering rule."""
        return tuple(s for s in self.program.statements if isinstance(s, Extern))
