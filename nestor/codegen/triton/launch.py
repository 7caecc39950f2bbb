"""Triton kernels of a running process: source in a file, compiled by Triton when it first runs."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nestor.codegen.triton.kernel import TritonKernel


def load_function(kernel: TritonKernel, folder: Path) -> Any:
    """The kernel's function; its source is kept in ``folder``, where Triton reads it."""
    return load_source(kernel.source, kernel.name, folder)


def load_source(source: str, name: str, folder: Path) -> Any:
    """The function ``name`` of a module whose text is ``source``; see ``load_function``."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:24]
    file = folder / f"{name}_{digest}.py"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{file.name}.{os.getpid()}-{threading.get_ident()}.part"
        part.write_text(source, encoding="utf-8")
        part.replace(file)
    spec = importlib.util.spec_from_file_location(f"nestor_triton_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def launcher(
    kernel: TritonKernel, folder: Path, *, warps: int = 4, stages: int = 3
) -> Callable[[int, Sequence[Any], Sequence[int]], None]:
    """What starts a kernel: number of programs, tensors, sizes.

    Args: stages: of loops that load while they compute.
    """
    return launch_source(kernel.source, kernel.name, folder, warps=warps, stages=stages)


def launch_source(
    source: str, name: str, folder: Path, *, warps: int = 4, stages: int = 3
) -> Callable[[int, Sequence[Any], Sequence[int]], None]:
    """See ``launcher``; of a module's text."""
    function = load_source(source, name, folder)

    def launch(programs: int, tensors: Sequence[Any], sizes: Sequence[int]) -> None:
        function[(programs,)](*tensors, *sizes, num_warps=warps, num_stages=stages)

    return launch
