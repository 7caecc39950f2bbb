"""``torch.compile(model, backend="nestor")``: graphs that TorchDynamo captures, compiled by Nestor.

PyTorch finds ``backend`` through the entry point ``torch_dynamo_backends`` and loads this module at
its first use; where Nestor is not installed as a package, pass ``backend=nestor.dynamo.backend``.
What Dynamo leaves to Python (a graph break) stays there. Inference only: what needs gradients, or
cannot be exported, is left to PyTorch, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nestor.api import MAX_SIGNATURES, CompiledModel
from nestor.config import Config
from nestor.errors import ExportError, Unsupported, UserError

if TYPE_CHECKING:
    from torch import fx

    from nestor.autotune.options import TuneRequest

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
            PyTorch), ``tune`` (as of ``nestor.compile``), and the settings of
            ``nestor.config.Config``.
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
    tune = settings.pop("tune", None)
    config = Config.load(**settings)
    request = None
    if tune is not None:
        from nestor.autotune.options import parse_tune

        request = parse_tune(tune)
    if _needs_gradients(graph, example_inputs):
        warnings.warn(
            "nestor compiles for inference, and this call may need gradients: PyTorch runs it\n"
            "fix: call the model under torch.inference_mode() or torch.no_grad()",
            RuntimeWarning,
            stacklevel=2,
        )
        return graph.forward
    return _CompiledGraph(graph, example_inputs, config, strict=strict, tune=request)


def _needs_gradients(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> bool:
    """Whether outputs would carry a gradient. Dynamo asks again when any of this changes."""
    import torch

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
        tune: TuneRequest | None,
    ) -> None:
        from nestor.frontends.torch import dynamo_graph

        self._python: Call = graph.forward
        self._strict = strict
        self._is_left = False
        self._seen: set[tuple[Any, ...]] = set()
        places = [n for n in graph.graph.nodes if n.op == "placeholder"]
        weights = {
            k: x for k, x in enumerate(example_inputs) if dynamo_graph.stands_still(places[k], x)
        }
        known = [n.meta.get("example_value") for n in places]
        sizes = dynamo_graph.find_sizes(
            {k: value for k, value in enumerate(known) if k not in weights}
        )
        plain, self._numbers = dynamo_graph.with_plain_numbers(graph)
        self._module = dynamo_graph.GraphModule(plain, len(places), weights, sizes)
        given = [None if k in self._numbers else known[k] for k in self._module.given]
        dynamic = tuple(map(dynamo_graph.dynamic_dims, given))
        self._compiled = CompiledModel(
            self._module.eval(),
            config,
            strict=strict,
            dynamic_shapes={"inputs": dynamic} if any(dynamic) else None,
            name="graph",
            tune=tune,
        )

    def __call__(self, *inputs: Any) -> Any:
        """Run on the inputs of the graph.

        Raises: what compiling raises, if ``strict``.
        """
        import torch

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
