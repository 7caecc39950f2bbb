"""A model of the collection, and the collection that builders register in."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
InputMaker = Callable[[int, int], Inputs]
"""``(seed, batch) -> inputs``."""

_SEED = 20240


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCase:
    """A model of the collection.

    Attributes:
        name: as given on the command line.
        build: makes the network, float32, evaluation mode, the same at every call.
        inputs: makes fresh inputs from a seed and a batch size.
        batch_dims: the batch dimension of each input, for ``dynamic_shapes``.
        pretrained: whether the weights are published ones.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: InputMaker
    batch_dims: tuple[int, ...]
    pretrained: bool


MODELS: dict[str, ModelCase] = {}

SMALLER: dict[str, ModelCase] = {}
"""Name → the same network with fewer layers, where the whole one takes a test too long."""


def build(name: str) -> tuple[nn.Module, InputMaker]:
    """The model called ``name`` and its maker of inputs.

    Raises: KeyError naming the models there are.
    """
    case = model_case(name)
    return case.build(), case.inputs


def model_case(name: str) -> ModelCase:
    """The entry called ``name``; KeyError naming the models there are."""
    try:
        return MODELS[name]
    except KeyError:
        raise KeyError(f"no model {name!r}; there are: {', '.join(MODELS)}") from None


def model(
    inputs: InputMaker,
    *,
    batch_dims: tuple[int, ...] = (0,),
    pretrained: bool = False,
    smaller_of: str = "",
) -> Callable[[Callable[[], nn.Module]], Callable[[], tuple[nn.Module, Inputs]]]:
    """Register a builder; the decorated function returns ``(model, example_inputs)``.

    Args: smaller_of: a model that it stands for in tests; it is then no model of its own.
    """

    def register(make: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, Inputs]]:
        def built() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_SEED)
                model = make()
                if not pretrained:
                    make_lively(model)
            return model.eval().requires_grad_(False)

        @functools.wraps(make)
        def example() -> tuple[nn.Module, Inputs]:
            return built(), inputs(0, 1)

        name = smaller_of or make.__name__
        (SMALLER if smaller_of else MODELS)[name] = ModelCase(
            name=name,
            build=built,
            inputs=inputs,
            batch_dims=batch_dims,
            pretrained=pretrained,
        )
        return example

    return register


def make_lively(model: nn.Module) -> None:
    """Give biases, norm scales and running statistics values as a trained network has."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.6, 1.4)
            # Below one, so that the sums of deep residual branches keep a moderate size.
            module.weight.data.fill_(0.7)
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            # Gain of ReLU: keeps the signal's size through deep stacks, where an initialiser
            # of a fixed small deviation lets it die out.
            fan_in = math.prod(module.weight.shape[1:])
            module.weight.data.normal_(0.0, math.sqrt(2.0 / fan_in))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            continue
        if name.endswith("layer_scale_parameter"):
            parameter.data.uniform_(0.1, 0.3)
        else:
            parameter.data.add_(torch.empty_like(parameter).normal_(0.0, 0.1))
