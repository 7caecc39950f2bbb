"""Stand-ins for weights that a compiled model has taken over: they have a shape and no memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from nestor.errors import UserError

_ALLOWED = frozenset({"__get__", "size", "dim", "numel", "nelement", "element_size"})
"""Functions that tell what a weight was; all others would need its values."""


class ReleasedWeight(torch.Tensor):
    """Takes a weight's place in its module; every use of its values is a ``UserError``."""

    released_path: str
    """The weight's path in the model."""

    @classmethod
    def of(cls, tensor: torch.Tensor, path: str) -> ReleasedWeight:
        """A stand-in of the shape and dtype of ``tensor``, found under ``path`` in the model."""
        shape = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        made: ReleasedWeight = torch.Tensor._make_subclass(cls, shape, False)
        made.released_path = path
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer what needs no values. Raises: UserError for everything else."""
        paths = [a.released_path for a in tree_leaves((args, kwargs)) if type(a) is cls]
        if getattr(func, "__name__", "") in _ALLOWED:
            with torch._C.DisableTorchFunctionSubclass():
                result = func(*args, **(kwargs or {}))
            # Such as ``weight.data``: has no values either.
            is_tensor = isinstance(result, torch.Tensor)
            return cls.of(result, paths[0]) if is_tensor and type(result) is not cls else result
        raise UserError(
            f"weight '{paths[0]}' was released when its model was compiled, and has no values any "
            "more\nfix: call the compiled model, or compile without release_weights"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """What it stands for; there are no values to print."""
        del tensor_contents
        return f"ReleasedWeight({self.released_path!r}, {tuple(self.shape)}, {self.dtype})"


def release_weights(model: Any, kept: Iterable[torch.Tensor]) -> None:
    """Put a stand-in in place of every parameter and buffer of ``model`` but ``kept``.

    The memory goes back when nobody else refers to it. A model that is no ``nn.Module`` (a saved
    program) is left as it is.
    """
    if not isinstance(model, torch.nn.Module):
        return
    spared = {t.untyped_storage().data_ptr() for t in kept}
    made: dict[int, ReleasedWeight] = {}
    originals: list[torch.Tensor] = []  # alive until the end, as the keys of ``made`` are addresses
    for path, module in model.named_modules():
        for container in (module._parameters, module._buffers):
            for name, tensor in container.items():
                if tensor is None or isinstance(tensor, ReleasedWeight):
                    continue
                if tensor.untyped_storage().data_ptr() in spared:
                    continue
                originals.append(tensor)
                if id(tensor) not in made:  # tied weights stay tied
                    where = f"{path}.{name}" if path else name
                    made[id(tensor)] = ReleasedWeight.of(tensor, where)
                container[name] = made[id(tensor)]
