"""Graphs that TorchDynamo captured, as modules: weights apart from arguments, sizes from shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn


def with_plain_numbers(graph: fx.GraphModule) -> tuple[fx.GraphModule, frozenset[int]]:
    """The graph with numbers for inputs that Dynamo made tensors of, and their positions.

    Rewrite: ``x: Tensor; f = x.item(); … f …`` → ``x: float; … x …``.
    """
    copied = copy.deepcopy(graph.graph)
    found = set()
    for position, place in enumerate(n for n in copied.nodes if n.op == "placeholder"):
        users = list(place.users)
        if not users or any((n.op, n.target) != ("call_method", "item") for n in users):
            continue
        found.add(position)
        for user in users:
            user.replace_all_uses_with(place)
            copied.erase_node(user)
    return fx.GraphModule(graph, copied), frozenset(found)


def stands_still(place: fx.Node, value: Any) -> bool:
    """Whether an input is a parameter or buffer of the model, not an argument of the call."""
    if isinstance(value, nn.Parameter):
        return True
    marks = place.meta.get("tensor_dict") or {}
    return isinstance(value, torch.Tensor) and "_dynamo_static_input_type" in marks


def find_sizes(known: Mapping[int, Any]) -> dict[int, tuple[int, int]]:
    """Inputs that are the size of a tensor input: position → position and dimension of that."""
    found = {}
    for position, size in known.items():
        wanted = _symbol(size)
        for source, tensor in known.items():
            dims = tensor.shape if isinstance(tensor, torch.Tensor) else ()
            same = [d for d, x in enumerate(dims) if wanted is not None and _symbol(x) == wanted]
            if same:
                found[position] = (source, same[0])
                break
    return found


def _symbol(size: Any) -> Any:
    """The symbol that a symbolic size is; None for any other size."""
    if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
        return size.node.expr
    return None


def dynamic_dims(value: Any) -> dict[int, Any] | None:
    """``dynamic_shapes`` of one input."""
    if not isinstance(value, torch.Tensor):
        return None
    dims = {
        d: torch.export.Dim.AUTO for d, x in enumerate(value.shape) if isinstance(x, torch.SymInt)
    }
    return dims or None


class GraphModule(nn.Module):
    """A graph as a module that owns its weights and reads sizes off its inputs' shapes.

    Dynamo passes both as further inputs; weights that stand still can be packed once.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        count: int,
        weights: Mapping[int, torch.Tensor],
        sizes: Mapping[int, tuple[int, int]],
    ):
        super().__init__()
        self.graph = graph
        self.count = count
        self.sizes = dict(sizes)
        self.given = [k for k in range(count) if k not in weights and k not in sizes]
        self.names = {position: f"weight{position}" for position in weights}
        for position, weight in weights.items():
            if isinstance(weight, nn.Parameter):
                self.register_parameter(self.names[position], weight)
            else:
                self.register_buffer(self.names[position], weight)

    def bind(self, inputs: Sequence[Any]) -> None:
        """Own what the model has now: another tensor in a weight's place is packed anew."""
        for position, name in self.names.items():
            if getattr(self, name) is not inputs[position]:
                setattr(self, name, inputs[position])

    def forward(self, *inputs: Any) -> Any:
        """Call the graph with all that it takes."""
        values: list[Any] = [None] * self.count
        for position, value in zip(self.given, inputs):
            values[position] = value
        for position, name in self.names.items():
            values[position] = getattr(self, name)
        for position, (source, dim) in self.sizes.items():
            values[position] = values[source].shape[dim]
        return self.graph(*values)
