"""PyTorch models to Programs: ``torch.export``, core ATen, one lowering rule an operator.

``import_model`` is the entry. Nothing is imported until it is asked for, so that this package may
be named without loading PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestor.frontends.torch.extern import run_extern
    from nestor.frontends.torch.importer import import_model
    from nestor.frontends.torch.model import ImportedModel, InputSpec, Mutation, OutputSpec, Owner
    from nestor.frontends.torch.released import release_weights

_LAZY = {
    "ImportedModel": "model",
    "InputSpec": "model",
    "Mutation": "model",
    "OutputSpec": "model",
    "Owner": "model",
    "import_model": "importer",
    "release_weights": "released",
    "run_extern": "extern",
}


def __getattr__(name: str) -> Any:
    """Load the importer at first use."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


__all__ = [
    "ImportedModel",
    "InputSpec",
    "Mutation",
    "OutputSpec",
    "Owner",
    "import_model",
    "release_weights",
    "run_extern",
]
