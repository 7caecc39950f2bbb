"""OpenMP for generated code: one libgomp a process, and how many threads to use.

Generated code calls ``GOMP_parallel`` through the ``services`` struct. PyTorch brings a libgomp of
its own; a second one in the process would mean two pools of threads that fight for the cores, so
the one that is mapped (or that PyTorch would map when it is imported later) is used.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import struct
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from nestor.errors import UserError

SERVICES_BYTES = 32
_SERVICES = struct.Struct("<QQQq")


class SerialWarning(RuntimeWarning):
    """Compiled models run on one thread, though more were asked for."""


@dataclass(frozen=True, slots=True)
class OpenMP:
    """Addresses in a libgomp; all zero where there is none."""

    path: str
    parallel: int
    thread_num: int
    num_threads: int


NO_OPENMP = OpenMP("", 0, 0, 0)

_is_forked_child = False


def _after_fork() -> None:
    global _is_forked_child
    _is_forked_child = True


@functools.cache
def _pool_is_lost() -> bool:
    """In a forked child: whether the parent had a libgomp, whose threads do not exist here.

    A parallel region would wait for them for ever. Whether the parent had started any cannot be
    told from here, so a mapped library counts.
    """
    if not mapped_libgomps():
        return False
    warnings.warn(
        "this process was forked with OpenMP loaded: compiled models run on one thread here "
        "(start processes with the 'spawn' method)",
        SerialWarning,
        stacklevel=4,
    )
    return True


@functools.cache
def openmp() -> OpenMP:
    """The libgomp to use, loaded at the first call; ``NO_OPENMP`` with a warning if none loads."""
    for path in _candidates():
        try:
            library = ctypes.CDLL(path)
            names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            addresses = [
                ctypes.cast(getattr(library, n), ctypes.c_void_p).value or 0 for n in names
            ]
        except (OSError, AttributeError):
            continue
        return OpenMP(path, *addresses)
    warnings.warn(
        "no libgomp.so.1 was found: compiled models run on one thread "
        "(install the GCC runtime, e.g. the package libgomp1)",
        SerialWarning,
        stacklevel=2,
    )
    return NO_OPENMP


def _candidates() -> list[str]:
    mapped = mapped_libgomps()
    if mapped:
        return mapped
    return [*_torch_libgomps(), "libgomp.so.1"]


def mapped_libgomps() -> list[str]:
    """Paths of the libgomp libraries in this process, PyTorch's first."""
    try:
        # Line by line: a process with PyTorch has thousands of mappings.
        with Path("/proc/self/maps").open() as lines:
            paths = dict.fromkeys(
                line.split(None, 5)[5].rstrip("\n")
                for line in lines
                if re.search(r"/libgomp[^/]*\.so[^/]*$", line)
            )
    except OSError:
        return []
    return sorted(paths, key=lambda p: "torch" not in p)


def _torch_libgomps() -> list[str]:
    """PyTorch's own libgomp where it is installed but not imported: a later import then shares it.

    The package is only looked up, never imported.
    """
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return []
    folders = list(spec.submodule_search_locations or []) if spec else []
    found: list[str] = []
    for folder in map(Path, folders):
        for place in (folder / "lib", folder.parent / "torch.libs"):
            found.extend(str(p) for p in sorted(place.glob("libgomp*.so*")))
    return found


def available_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@functools.cache
def _threads_without_torch() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if text.isdecimal() and int(text) > 0:
        return int(text)
    return available_cpus()


def thread_count(option: int | None = None) -> int:
    """Threads that a call uses.

    ``option`` if given; else ``torch.get_num_threads()`` when PyTorch is loaded; else
    ``OMP_NUM_THREADS``; else the CPUs that this process may use.

    Raises:
        UserError: ``option`` is not a number ≥ 1.
    """
    if option is not None:
        if isinstance(option, bool) or not isinstance(option, int) or option < 1:
            raise UserError(f"threads={option!r}: give a number of threads, at least 1")
        return option
    torch = sys.modules.get("torch")
    get = getattr(torch, "get_num_threads", None)
    return int(get()) if get is not None else _threads_without_torch()


class Services:
    """The ``services`` struct of one call in flight, at a fixed ``address``.

    Attributes: threads: how many there are, at most as many as were asked for.
    """

    __slots__ = ("_memory", "_threads", "address", "threads")

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(SERVICES_BYTES)
        self.address = ctypes.addressof(self._memory)
        self._threads = 0
        self.threads = 1

    def update(self, threads: int) -> None:
        """Set the number of threads; serial (null functions) for one, or in a forked child."""
        if _is_forked_child and _pool_is_lost():
            threads = 1
        if threads == self._threads:
            return
        found = openmp() if threads > 1 else NO_OPENMP
        if not found.parallel:
            found, count = NO_OPENMP, 1
        else:
            count = threads
        _SERVICES.pack_into(
            self._memory, 0, found.parallel, found.thread_num, found.num_threads, count
        )
        self._threads = threads
        self.threads = count


os.register_at_fork(after_in_child=_after_fork)
