"""The least work of a model: operations of its products, bytes that must be moved once.

Independent of any compiler: PyTorch's counter of operations, and the sizes of what goes in and out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nestor.benchmarking.outputs import arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one call must do at least.

    Attributes:
        operations: of products, convolutions and attention as they are defined; a multiply-add
            counts two. Elementwise work and recurrences count none.
        moved_bytes: of weights (tables of embeddings aside), inputs and outputs [bytes].
    """

    operations: float
    moved_bytes: int

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        """From ``to_json``'s text."""
        return cls(**json.loads(text))


def work_of(model: nn.Module, inputs: Sequence[Any]) -> Work:
    """Count the work of ``model(*inputs)`` by running it once."""
    # The fused attention of a CPU is not counted: as products it is.
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        outputs = model(*inputs)
    given = sum(a.nbytes for a in (*arrays(list(inputs)), *arrays(outputs)))
    return Work(
        operations=float(counter.get_total_flops()), moved_bytes=given + _weight_bytes(model)
    )


def _weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters but those that only embeddings look up: a call reads a few rows."""
    found: dict[int, int] = {}
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            for p in module.parameters(recurse=False):
                found[p.data_ptr()] = p.numel() * p.element_size()
    return sum(found.values())
