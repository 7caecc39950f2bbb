"""Weights of an executable: where they lie, and whether somebody changed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from operator import attrgetter, getitem, is_
from typing import Any

import numpy as np

from nestor.errors import ArtifactError
from nestor.runtime.manifest import ITEM_BYTES, Manifest
from nestor.runtime.plan import Layout
from nestor.runtime.tensors import NUMPY, aligned_copy, library_of

Weights = Mapping[str, Any]
"""Arrays (NumPy or PyTorch) by the key of ``WeightSource``, dense and in their slot's layout."""


@dataclass(slots=True)
class StateArray:
    """A buffer that calls update: native code works on ``memory``, which may be ``live`` itself."""

    slot: int
    live: Any
    memory: Any

    def write_back(self) -> None:
        """Bring what native code wrote to the live array."""
        library = library_of(self.live)
        assert library is not None
        if self.memory is self.live:
            library.touched(self.live)
        else:
            library.assign(self.live, self.memory)

    def refresh(self) -> None:
        """Bring what the caller wrote to the memory of native code."""
        library = library_of(self.memory)
        if self.memory is not self.live and library is not None:
            library.assign(self.memory, self.live)


@dataclass(slots=True)
class BoundWeights:
    """Addresses for the table, and everything that must stay alive with them."""

    entries: list[tuple[int, int]] = field(default_factory=list)
    states: list[StateArray] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)


def bind_weights(manifest: Manifest, layout: Layout, weights: Weights) -> BoundWeights:
    """Addresses of all weights; copies only what is misaligned, or a state that is not writable.

    Raises:
        ArtifactError: a weight is missing, or does not fit its slot.
    """
    bound = BoundWeights()
    for source in manifest.weights:
        slot = manifest.slots[source.slot]
        if source.key not in weights:
            raise ArtifactError(f"weight '{source.key}' is missing")
        value = weights[source.key]
        _check_fit(value, slot.dtype, _sizes(slot.memory_shape), source.key, slot.permutation)
        library = library_of(value)
        assert library is not None
        memory = library.dense(value, slot.permutation)
        if slot.role == "state":
            if memory is value and (not library.is_writable(value) or _is_misaligned(value)):
                memory = library.empty(tuple(value.shape), slot.dtype, slot.permutation)
                library.assign(memory, value)
                value = memory if not library.is_writable(value) else value
            bound.states.append(StateArray(source.slot, value, memory))
        elif _is_misaligned(memory):
            memory = _aligned(memory)
        bound.kept.append(memory)
        pointer = (
            library.pointer(memory) if library_of(memory) is library else NUMPY.pointer(memory)
        )
        bound.entries.extend((entry, pointer) for entry in layout.entries[source.slot])
    return bound


def _sizes(dims: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(d) for d in dims)


def _check_fit(
    value: Any, dtype: str, stored: tuple[int, ...], key: str, order: tuple[int, ...] | None
) -> None:
    library = library_of(value)
    if library is None:
        raise ArtifactError(f"weight '{key}' is a {type(value).__name__}, not an array")
    problem = library.problem(value, dtype)
    if problem:
        raise ArtifactError(f"weight '{key}': {problem}, expected {dtype} in CPU memory")
    shape = tuple(value.shape)
    physical = (
        shape if order is None or len(order) != len(shape) else tuple(shape[p] for p in order)
    )
    if prod(shape) != prod(stored) or (order is not None and physical != stored):
        raise ArtifactError(f"weight '{key}': shape {shape}, expected {stored} in memory")


def _is_misaligned(value: Any) -> bool:
    library = library_of(value)
    assert library is not None
    return library.pointer(value) % 64 != 0 and prod(value.shape) > 0


def _aligned(value: Any) -> Any:
    """A copy at a multiple of 64 bytes, of whichever library."""
    if isinstance(value, np.ndarray):
        return aligned_copy(value)
    return value.detach().clone()  # PyTorch allocates at multiples of 64 bytes


@dataclass(slots=True)
class Watched:
    """One tensor that compiled code depends on: ``container[key]`` must still be ``tensor``.

    ``container`` is a module's ``_parameters`` or ``_buffers``. ``check_values`` False: only the
    tensor's identity and storage matter (states, and weights that are read where they live).
    """

    container: Mapping[str, Any]
    key: str
    tensor: Any
    check_values: bool = True


class WeightWatcher:
    """Tells at each call whether a weight was replaced or written to.

    Looks at identity, address and version counter of every tensor, at C speed (about 0.15 µs a
    tensor). Writes through ``tensor.data`` move no version counter; for them a few words of each
    tensor are compared as well, which finds updates of whole tensors.
    """

    SAMPLES = 4

    def __init__(self, watched: Sequence[Watched]):
        self._observe(list(watched))

    def _observe(self, watched: list[Watched]) -> None:
        self._watched = watched
        self._containers = [w.container for w in watched]
        self._keys = [w.key for w in watched]
        self._tensors = [w.tensor for w in watched]
        first = next((type(w.tensor) for w in watched), None)
        self._pointer_of: Callable[[Any], int] = getattr(first, "data_ptr", id)
        self._pointers = [self._pointer_of(t) for t in self._tensors]
        valued = [w.tensor for w in watched if w.check_values]
        self._versioned = [t for t in valued if _version(t) is not None]
        self._versions = [_version(t) for t in self._versioned]
        self._samples = _Samples(valued, self.SAMPLES)
        # Brings the code of NumPy that looks (200 KB) in now, so that the first call does not.
        self._samples.are_unchanged()

    def has_changed(self) -> bool:
        """Whether anything differs from when this was made, or from ``update``."""
        try:
            same = all(map(is_, map(getitem, self._containers, self._keys), self._tensors))
        except KeyError:
            return True
        return not (
            same
            and list(map(self._pointer_of, self._tensors)) == self._pointers
            and list(map(_VERSION, self._versioned)) == self._versions
            and self._samples.are_unchanged()
        )

    def update(self) -> None:
        """Take the present tensors and values as unchanged.

        KeyError if a tensor is gone.
        """
        self._observe([replace(w, tensor=w.container[w.key]) for w in self._watched])

    @property
    def watched(self) -> tuple[Watched, ...]:
        """What is watched, with the tensors as last seen."""
        return tuple(self._watched)


_VERSION = attrgetter("_version")


def _version(tensor: Any) -> int | None:
    try:
        return int(tensor._version)
    except (AttributeError, RuntimeError):  # tensors of inference mode keep no version
        return None


class _Samples:
    """A few 32-bit words of each of many tensors, gathered in one go.

    One NumPy array spans all of their addresses without touching them; a gather then reads the
    chosen words only. The watcher compares addresses first, so they are alive.
    """

    def __init__(self, tensors: Sequence[Any], count: int):
        places: list[int] = []
        for tensor in tensors:
            size = int(tensor.nelement()) * int(tensor.element_size())
            if not tensor.is_cpu or not tensor.is_contiguous() or size < 4:
                continue
            start = -(-int(tensor.data_ptr()) // 4)
            words = (int(tensor.data_ptr()) + size) // 4 - start
            if words > 0:
                places.extend(start + words * i // count for i in range(min(count, words)))
                places.append(start + words - 1)
        self._kept = list(tensors)
        unique = np.unique(np.array(places, np.int64))
        self._base = int(unique[0]) if unique.size else 0
        self._offsets = unique - self._base
        self._view = _words(self._base, int(self._offsets[-1]) + 1) if unique.size else None
        self._values = self._read()

    def _read(self) -> np.ndarray[Any, Any] | None:
        return None if self._view is None else self._view.take(self._offsets)

    def are_unchanged(self) -> bool:
        """Whether every word holds what it held."""
        now = self._read()
        return now is None or bool((now == self._values).all())


def _words(start: int, count: int) -> np.ndarray[Any, Any]:
    """An array of 32-bit words over addresses ``4*start …``, most of which are not memory."""

    class Span:
        __array_interface__ = {
            "shape": (count,), "typestr": "<u4", "data": (4 * start, True), "version": 3,
        }  # fmt: skip

    return np.asarray(Span())


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of all weights in memory."""
    slots = (manifest.slots[w.slot] for w in manifest.weights)
    return sum(prod(_sizes(s.memory_shape)) * ITEM_BYTES[s.dtype] for s in slots)
