"""Kernels as one graph: the host asks once for all of them, and those that wait for nothing run
side by side.

Source: CUDA Driver API, ``cuGraph*``; drivers of CUDA 12 and later.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from nestor.runtime.cuda import WARP, CudaKernel, check_programs, driver


class _KernelNode(ctypes.Structure):
    """``CUDA_KERNEL_NODE_PARAMS_v2``."""

    _fields_ = [
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("parameters", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    ]


class CudaGraph:
    """Kernels in the current context; ``finish`` it before it is started.

    Starts of one graph never run at the same time, whatever their streams are.
    """

    def __init__(self) -> None:
        self._driver = driver()
        self._graph, self._ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._nodes: list[tuple[ctypes.c_void_p, CudaKernel, int]] = []
        self._driver.call("cuGraphCreate", ctypes.byref(self._graph), 0)

    def add(
        self, kernel: CudaKernel, programs: int, values: Sequence[int], after: Sequence[int]
    ) -> int:
        """One more kernel; its number.

        Args: as of ``CudaKernel.launch``. after: kernels that it waits for.
        """
        check_programs(programs)
        node = ctypes.c_void_p()
        before = (ctypes.c_void_p * max(1, len(after)))(*(self._nodes[n][0] for n in after))
        arguments = kernel.arguments(values)
        self._driver.call(
            "cuGraphAddKernelNode_v2",
            *(ctypes.byref(node), self._graph, before, ctypes.c_size_t(len(after))),
            ctypes.byref(_parameters(kernel, programs, arguments)),
        )
        self._nodes.append((node, kernel, programs))
        return len(self._nodes) - 1

    def finish(self) -> None:
        """All kernels are there."""
        flags = ctypes.c_ulonglong(0)
        self._driver.call(
            "cuGraphInstantiateWithFlags", ctypes.byref(self._ready), self._graph, flags
        )

    def change(self, number: int, values: Sequence[int]) -> None:
        """Give a kernel other arguments, from the next start on."""
        node, kernel, programs = self._nodes[number]
        arguments = kernel.arguments(values)
        self._driver.call(
            "cuGraphExecKernelNodeSetParams_v2",
            *(self._ready, node, ctypes.byref(_parameters(kernel, programs, arguments))),
        )

    def start(self, stream: int) -> None:
        """Start the kernels on a stream."""
        self._driver.call("cuGraphLaunch", self._ready, ctypes.c_void_p(stream))

    def __del__(self) -> None:
        # What is under way ends first; at the end of a process the driver may be gone.
        for destroy, what in (("cuGraphExecDestroy", "_ready"), ("cuGraphDestroy", "_graph")):
            handle = getattr(self, what, None)
            if handle:
                self._driver.forget(destroy, handle)


def _parameters(kernel: CudaKernel, programs: int, arguments: Any) -> _KernelNode:
    """How a kernel is started. ``arguments`` must live until the driver has copied them."""
    return _KernelNode(
        function=kernel.function,
        grid=(programs, 1, 1),
        block=(WARP * kernel.warps, 1, 1),
        shared_bytes=kernel.shared_bytes,
        parameters=ctypes.addressof(arguments.places),
    )
