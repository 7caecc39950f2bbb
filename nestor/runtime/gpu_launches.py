"""Kernels of a manifest, loaded on a device: which code runs there, and what starts it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nestor.errors import ArtifactError, Unsupported
from nestor.runtime.cuda import CudaKernel, driver
from nestor.runtime.gpu_executable import Launch
from nestor.runtime.manifest import Manifest, TargetInfo


def cuda_launches(manifest: Manifest, objects: Mapping[str, bytes], device: Any) -> list[Launch]:
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
    return [_launch(kernel, device) for kernel in kernels]


def _launch(kernel: CudaKernel, device: Any) -> Launch:
    import torch

    def launch(programs: int, tensors: Sequence[Any], sizes: Sequence[int]) -> None:
        stream = torch.cuda.current_stream(device).cuda_stream
        kernel.launch(programs, [*(t.data_ptr() for t in tensors), *sizes], stream)

    return launch


def choose_architecture(targets: Sequence[TargetInfo], capability: int, where: str) -> int:
    """The position of the code that a chip runs: of its generation, and no newer.

    Args: capability: of the chip, 90 for sm_90.
    Raises: ``ArtifactError`` if there is none.
    """
    found = [
        (int(m[1]), n) for n, t in enumerate(targets) if (m := re.fullmatch(r"sm_(\d+)", t.name))
    ]
    fitting = [(c, n) for c, n in found if c // 10 == capability // 10 and c <= capability]
    if not fitting:
        names = ", ".join(t.name for t in targets)
        raise ArtifactError(
            f"{where}: its code is for {names}, and this GPU is sm_{capability}\n"
            f"  fix: compile it again with --target sm_{capability // 10 * 10}"
        )
    return max(fitting)[1]


def current_gpu(where: str) -> tuple[Any, int]:
    """PyTorch's current device, and its capability.

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
    major, minor = torch.cuda.get_device_capability()
    return torch.device("cuda", torch.cuda.current_device()), 10 * major + minor
