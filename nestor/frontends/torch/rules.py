"""All lowering rules; importing this module fills the registry."""

from __future__ import annotations

from nestor.frontends.torch import (
    rules_activation,
    rules_attention,
    rules_contract,
    rules_convolution,
    rules_create,
    rules_index,
    rules_join,
    rules_norm,
    rules_pointwise,
    rules_pool,
    rules_recurrent,
    rules_reduce,
    rules_scan,
    rules_scatter,
    rules_softmax,
    rules_upsample,
    rules_view,
)
from nestor.frontends.torch.registry import RULES

MODULES = (
    rules_activation,
    rules_attention,
    rules_contract,
    rules_convolution,
    rules_create,
    rules_pool,
    rules_join,
    rules_index,
    rules_norm,
    rules_pointwise,
    rules_recurrent,
    rules_reduce,
    rules_scan,
    rules_scatter,
    rules_softmax,
    rules_upsample,
    rules_view,
)

__all__ = ["MODULES", "RULES"]
