"""Kernels of a manifest, loaded on a device: which code runs there, and what starts it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nestor.errors import ArtifactError, Unsupported
from nestor.runtime.cuda import CudaKernel, driver
from nestor.runtime.cuda_graph import CudaGraph
from nestor.runtime.manifest import Manifest


class CudaLaunch:
    """Starts a kernel on a device's current stream. Args: device: a ``torch.device``."""

    def __init__(self, kernel: CudaKernel, device: Any):
        self.kernel, self._device = kernel, device

    def __call__(self, programs: int, tensors: Sequence[Any], sizes: Sequence[int]) -> None:
        self.kernel.launch(programs, _values(tensors, sizes), _current_stream(self._device))


class DeviceGraph:
    """Kernels of ``CudaLaunch``es that a ``torch.device`` starts as one; see ``Graph``."""

    def __init__(self, device: Any):
        self._device, self._graph = device, CudaGraph()

    def add(
        self,
        launch: Any,
        programs: int,
        tensors: Sequence[Any],
        sizes: Sequence[int],
        after: Sequence[int],
    ) -> int:
        """See ``Graph``."""
        assert isinstance(launch, CudaLaunch)
        return self._graph.add(launch.kernel, programs, _values(tensors, sizes), after)

    def finish(self) -> None:
        """See ``Graph``."""
        self._graph.finish()

    def change(self, number: int, tensors: Sequence[Any], sizes: Sequence[int]) -> None:
        """See ``Graph``."""
        self._graph.change(number, _values(tensors, sizes))

    def start(self) -> None:
        """See ``Graph``."""
        self._graph.start(_current_stream(self._device))


def graph_maker(device: Any) -> Callable[[], DeviceGraph] | None:
    """Makes empty graphs for a ``torch.device``; None where the driver has none."""
    has_graphs = driver().has("cuGraphExecKernelNodeSetParams_v2")
    return functools.partial(DeviceGraph, device) if has_graphs else None


def _values(tensors: Sequence[Any], sizes: Sequence[int]) -> list[int]:
    return [*(t.data_ptr() for t in tensors), *sizes]


def _current_stream(device: Any) -> int:
    import torch

    return int(torch.cuda.current_stream(device).cuda_stream)


def cuda_launches(
    manifest: Manifest, objects: Mapping[str, bytes], device: Any
) -> list[CudaLaunch]:
    """What starts each function of ``manifest`` on a ``torch.device``, on its current stream.

    Args: objects: machine code by digest.
    Raises: ``ArtifactError`` for code of another chip.
    """
    import torch

    with torch.cuda.device(device):
        driver().use_device(torch.cuda.current_device())
        kernels = [
            CudaKernel(
                objects[function.object],
                function.name,
                warps=launch.warps,
                shared_bytes=launch.shared_bytes,
                parameters=launch.parameters,
            )
            for function, launch in zip(manifest.functions, manifest.launches)
        ]
    return [CudaLaunch(kernel, device) for kernel in kernels]


_EXACT_CAPABILITY = 90
"""Code for this capability and later ones runs on chips of exactly that alone."""


def choose_code(
    manifests: Sequence[Manifest], capability: int, shared_bytes: int, where: str
) -> Manifest:
    """The manifest whose code a chip runs.

    Before sm_90 that is code of its generation and no newer, of which the newest; from then on, as
    Triton makes it, code of this very chip (CUDA C++ programming guide, compute capabilities).

    Args: capability: of the chip, 90 for sm_90. shared_bytes: of shared memory that a program may
        have there [bytes].
    Raises: ``ArtifactError`` if there is none.
    """
    fix = f"  fix: compile it again with --target sm_{capability}"
    found = [(int(m[1]), c) for c in manifests if (m := re.fullmatch(r"sm_(\d+)", c.target.name))]
    runs = [
        (number, c)
        for number, c in found
        if number == capability
        or (number // 10 == capability // 10 and number < capability < _EXACT_CAPABILITY)
    ]
    if not runs:
        names = ", ".join(c.target.name for c in manifests)
        raise ArtifactError(
            f"{where}: its code is for {names}, and this GPU is sm_{capability}\n{fix}"
        )
    fits = [(n, c) for n, c in runs if all(x.shared_bytes <= shared_bytes for x in c.launches)]
    if not fits:
        raise ArtifactError(
            f"{where}: its code takes more shared memory than this GPU has: {shared_bytes} bytes\n"
            f"{fix}"
        )
    return max(fits, key=lambda f: f[0])[1]


def current_gpu(where: str) -> tuple[Any, int, int]:
    """PyTorch's current device, its capability, and the shared memory of a program [bytes].

    Raises: ``Unsupported`` where there is no GPU, or no PyTorch.
    """
    try:
        import torch
    except ImportError:
        raise Unsupported(f"{where}: a model for a GPU takes its memory from PyTorch") from None
    if not torch.cuda.is_available():
        raise Unsupported(
            f"{where}: its code is for a GPU, and PyTorch finds none\n"
            "  fix: load it where a GPU is, or compile it for a CPU"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    found: Any = torch.cuda.get_device_properties(device)
    return device, 10 * found.major + found.minor, found.shared_memory_per_block_optin
