"""Tensors of PyTorch on a device other than the CPU's memory."""

from __future__ import annotations

from typing import Any

from nestor.runtime.tensors import Order, Shape, TorchLibrary

ALIGNMENT = 16
"""Of a tensor that kernels read or write [bytes]."""


class DeviceLibrary(TorchLibrary):
    """``Library`` for the tensors of one device."""

    def __init__(self, torch: Any, device: Any):
        super().__init__(torch)
        self._device = device
        self.place = f"the memory of {device}"
        self.move = f"to('{device}')"

    def problem(self, value: Any, dtype: str) -> str | None:
        """See ``Library``."""
        if value.dtype is not self.dtypes[dtype]:
            return f"dtype {str(value.dtype).removeprefix('torch.')}"
        if value.device != self._device:
            return f"device {value.device}"
        if value.layout is not self._strided:
            return f"layout {value.layout}"
        if type(value) not in self._plain and self._is_wrapper(value):
            return f"a {type(value).__name__}, whose memory is not an ordinary tensor's"
        return None

    def dense(self, value: Any, order: Order) -> Any:
        """See ``Library``. Aligned as well: kernels load sixteen bytes at once."""
        found = super().dense(value, order)
        return found.detach().clone() if found.data_ptr() % ALIGNMENT else found

    def empty(self, shape: Shape, dtype: str, order: Order) -> Any:
        """See ``Library``."""
        if order is None:
            return self._empty(shape, dtype=self.dtypes[dtype], device=self._device)
        stored = self._empty(
            [shape[p] for p in order], dtype=self.dtypes[dtype], device=self._device
        )
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return stored.permute(inverse)
