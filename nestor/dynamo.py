"""``torch.compile(model, backend="nestor")``: graphs that TorchDynamo captures, compiled by Nestor.

PyTorch finds ``backend`` through the entry point ``torch_dynamo_backends`` and loads this module at
its first use; where Nestor is not installed as a package, pass ``backend=nestor.dynamo.backend``.
What Dynamo leaves to Python (a graph break) stays there. Inference only: what needs gradients, or
cannot be exported, is left to PyTorch, with a warning.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from nestor.api import MAX_SIGNATURES, CompiledModel
from nestor.config import Config
from nestor.errors import ExportError, Unsupported, UserError

Call = Callable[..., Any]


def backend(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Call:
    """Compile one graph; its code is generated at the first call.

    Args: graph: as Dynamo captured it. example_inputs: what it will be called with.
        options: of ``torch.compile``: ``strict`` (nothing that cannot be compiled is left to
            PyTorch), and the settings of ``nestor.config.Config``.
        mode: of ``torch.compile``; Nestor has none.
    Raises: ``UserError`` for a mode or an unknown option.
    """
    if mode not in (None, "default"):
        raise UserError(
            f"the backend 'nestor' has no mode {mode!r}\n"
            "fix: leave mode out, or pass options={'threads': …}"
        )
    settings = dict(options or {})
    strict = bool(settings.pop("strict", False))
    config = Config.load(**settings)
    if _needs_gradients(graph, example_inputs):
        warnings.warn(
            "nestor compiles for inference, and this call may need gradients: PyTorch runs it\n"
            "fix: call the model under torch.inference_mode() or torch.no_grad()",
            RuntimeWarning,
            stacklevel=2,
        )
        return graph.forward
    return _CompiledGraph(graph, example_inputs, config, strict=strict)


def _needs_gradients(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> bool:
    """Whether outputs would carry a gradient. Dynamo asks again when any of this changes."""
    if not torch.is_grad_enabled():
        return False
    tensors = [*example_inputs, *graph.parameters()]
    return any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)


class _CompiledGraph:
    """A graph's native code, for the shapes and numbers that it is called with."""

    def __init__(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        config: Config,
        *,
        strict: bool,
    ) -> None:
        self._python: Call = graph.forward
        self._strict = strict
        self._is_left = False
        self._seen: set[tuple[Any, ...]] = set()
        places = [n for n in graph.graph.nodes if n.op == "placeholder"]
        weights = {k: x for k, x in enumerate(example_inputs) if _stands_still(places[k], x)}
        known = [n.meta.get("example_value") for n in places]
        sizes = _sizes({k: value for k, value in enumerate(known) if k not in weights})
        plain, self._numbers = _with_plain_numbers(graph)
        self._module = _Graph(plain, len(places), weights, sizes)
        given = [None if k in self._numbers else known[k] for k in self._module.given]
        dynamic = tuple(map(_dynamic_dims, given))
        self._compiled = CompiledModel(
            self._module.eval(),
            config,
            strict=strict,
            dynamic_shapes={"inputs": dynamic} if any(dynamic) else None,
            name="graph",
        )

    def __call__(self, *inputs: Any) -> Any:
        """Run on the inputs of the graph.

        Raises: what compiling raises, if ``strict``.
        """
        if self._is_left:
            return self._python(*inputs)
        self._module.bind(inputs)
        given = [inputs[k].item() if k in self._numbers else inputs[k] for k in self._module.given]
        numbers = tuple(x for x in given if not isinstance(x, torch.Tensor))
        if numbers not in self._seen and len(self._seen) >= MAX_SIGNATURES:
            self._leave(f"a number that it is compiled for has {MAX_SIGNATURES} values already")
            return self._python(*inputs)
        self._seen.add(numbers)
        try:
            return self._compiled(*given)
        except (ExportError, Unsupported) as error:
            if self._strict:
                raise
            self._leave(str(error))
            return self._python(*inputs)

    def _leave(self, reason: str) -> None:
        self._is_left = True
        warnings.warn(
            f"PyTorch runs a graph that nestor does not compile: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )


def _with_plain_numbers(graph: fx.GraphModule) -> tuple[fx.GraphModule, frozenset[int]]:
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


def _stands_still(place: fx.Node, value: Any) -> bool:
    """Whether an input is a parameter or buffer of the model, not an argument of the call."""
    if isinstance(value, nn.Parameter):
        return True
    marks = place.meta.get("tensor_dict") or {}
    return isinstance(value, torch.Tensor) and "_dynamo_static_input_type" in marks


def _sizes(known: Mapping[int, Any]) -> dict[int, tuple[int, int]]:
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


def _dynamic_dims(value: Any) -> dict[int, Any] | None:
    """``dynamic_shapes`` of one input."""
    if not isinstance(value, torch.Tensor):
        return None
    dims = {
        d: torch.export.Dim.AUTO for d, x in enumerate(value.shape) if isinstance(x, torch.SymInt)
    }
    return dims or None


class _Graph(nn.Module):
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
