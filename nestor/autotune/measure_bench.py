"""Kernels loaded for measuring: run once between fences, or again and again as a model would.

Part of the process that ``measure_worker`` is; what it runs may crash it at any moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from nestor.autotune.kernel_inputs import Array, Draw, check_sizes, draw_inputs, given_tensors
from nestor.autotune.measure_buffers import Fenced, Plain, fetch, physical_bytes, spoil, store
from nestor.autotune.measure_native import NativeHelper
from nestor.ir.interpreter import RESULT_ROLES
from nestor.ir.program import Program, Statement, Tensor
from nestor.runtime.elf import LoadedObject, load_object
from nestor.runtime.frames import KERNEL_TYPE
from nestor.runtime.memory import PAGE, round_up
from nestor.runtime.threads import Services

MAX_SETS = 4096
"""Copies of the arrays at most, for cold caches."""

COLD_FACTOR = 4
"""All copies together are so many times the last-level cache."""

MAX_TIMES = 1_000_000
"""Calls in one sample at most."""

LONG_CALLS = 20
"""Calls of so many samples' length are not repeated to time them well."""

KEPT_FENCES_BYTES = 512 << 20
"""Arrays between fences stay for the next candidate while they take less than this in all."""

_STRIDE_BYTES = 192
"""Added between copies: they should not all fall into the same sets of a cache."""


class OverMemory(Exception):
    """A candidate's arrays need more memory than it may have."""


class DeviceFault(Exception):
    """A GPU stopped at what a kernel did; the process is of no use any more."""


class BadCall(Exception):
    """A kernel said that an index was out of range."""


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A loaded kernel.

    Attributes: tensors: what the function takes, in order, in the schedule's layouts.
        times: calls in one sample. tables: addresses of its arguments, for each copy of the arrays.
    """

    object: LoadedObject
    address: int
    tensors: tuple[Tensor, ...]
    times: int = 1
    tables: ctypes.Array[ctypes.c_uint64] | None = None
    rows: list[ctypes.Array[ctypes.c_uint64]] = field(default_factory=list)


class Watcher(Protocol):
    """Is told when native code runs."""

    def begin(self, arrays: Sequence[tuple[str, int, int]]) -> None:
        """It will now: (name, first address, bytes) of arrays between fences that it is given."""

    def end(self) -> None:
        """It does no more."""


class Bench:
    """One kernel with inputs, and its loaded variants.

    Args:
        helper: native helper. threads: that kernels run with.
        memory_bytes: how much more address space than before native code may take, and how much
            the arrays of one candidate may.
        watcher: is told when native code runs.
    Attributes: fenced_ns: what the last run between fences took [ns].
    """

    def __init__(
        self,
        program: Program,
        sizes: Mapping[str, int],
        *,
        helper: NativeHelper,
        threads: int,
        memory_bytes: int,
        watcher: Watcher,
    ):
        self.program = program
        self.sizes = check_sizes(program, sizes)
        self.helper, self.memory_bytes, self.watcher = helper, memory_bytes, watcher
        self.inputs: dict[str, Array] = {}
        self.loaded: dict[str, Loaded] = {}
        self._blocks: dict[tuple[str, object], tuple[Plain, int]] = {}
        self._images: dict[tuple[str, object], Array] = {}
        self._fences: dict[tuple[str, object, str], Fenced] = {}
        self._filled: set[tuple[str, object, str]] = set()
        self._drops_fences = False
        self._sets, self._at = 1, 0
        self._cold_bytes = 0
        self._evictor: Array | None = None
        self.fenced_ns = 0.0
        self._services = Services()
        self._services.update(threads)
        self._symbols = (ctypes.c_int64 * max(1, len(program.symbols)))(
            *(self.sizes[s.name] for s in program.symbols)
        )
        self.given = {t.name for t in given_tensors(program)}
        self._written = written_roots(program)

    @property
    def overwrites(self) -> bool:
        """Whether the kernel writes to what it is given: then each call changes the next one's
        inputs.
        """
        return bool(self._written & self.given)

    @property
    def results(self) -> tuple[Tensor, ...]:
        """The tensors whose values are compared."""
        return self.program.by_role(*RESULT_ROLES)  # type: ignore[arg-type]

    def set_inputs(self, draw: Draw) -> None:
        """Draw the inputs."""
        self.inputs = draw_inputs(self.program, self.sizes, draw)
        self._blocks.clear()
        self._images.clear()
        self._filled.clear()

    def load(self, name: str, code: bytes, function: str, tensors: tuple[Tensor, ...]) -> None:
        """Load a variant of the kernel.

        Raises: ``OverMemory`` if its arrays are too large; ``ArtifactError`` for a malformed one.
        """
        needed = sum(physical_bytes(t, self.sizes) for t in tensors if not base_of(t, tensors))
        if needed > self.memory_bytes:
            raise OverMemory(f"its arrays take {needed:,} bytes, {self.memory_bytes:,} are allowed")
        made = load_object(code, label=name)
        self.loaded[name] = Loaded(object=made, address=made.address(function), tensors=tensors)

    def drop(self, name: str) -> None:
        """Forget a variant, and arrays that no other one uses."""
        self.loaded.pop(name, None)
        used = {(t.name, t.layout) for one in self.loaded.values() for t in one.tensors}
        self._blocks = {k: b for k, b in self._blocks.items() if k in used}
        self._images = {k: i for k, i in self._images.items() if k in used}
        self._fences = {k: f for k, f in self._fences.items() if k[:2] in used}
        self._filled &= self._fences.keys()

    # -------------------------------------------------------------------------- between fences

    def run_fenced(
        self,
        name: str,
        side: Literal["start", "end"],
        inputs: Mapping[str, Array] | None = None,
    ) -> tuple[dict[str, Array], str]:
        """Run a variant once between fences.

        Returns: the results, which the next run may overwrite, and what was damaged around which
            array, in words.
        Raises: ``BadCall`` if it says that an index was out of range.
        """
        one, inputs = self.loaded[name], inputs or self.inputs
        if self._drops_fences:
            self._fences.clear()
            self._filled.clear()
        fences: dict[str, Fenced] = {}
        for t in one.tensors:
            if base_of(t, one.tensors):
                continue
            fences[t.name] = self._fenced(t, side, inputs)
        where = {t.name: base_of(t, one.tensors) or t.name for t in one.tensors}
        arguments = (ctypes.c_uint64 * max(1, len(one.tensors)))(
            *(fences[where[t.name]].address for t in one.tensors)
        )
        self.watcher.begin([(n, f.address, f.size) for n, f in fences.items()])
        with self._limited():
            start = time.perf_counter_ns()
            status = KERNEL_TYPE(one.address)(
                ctypes.addressof(arguments),
                ctypes.addressof(self._symbols),
                self._services.address,
            )
            self.fenced_ns = float(time.perf_counter_ns() - start)
        self.watcher.end()
        if status:
            raise BadCall(f"the kernel returned {status}: an index was out of range")
        results = {
            t.name: fetch(fences[where[t.name]].view, t, self.sizes)
            for t in one.tensors
            if t.role in RESULT_ROLES
        }
        damage = "; ".join(f"'{n}': {d}" for n, f in fences.items() if (d := f.damage()))
        # Not now: the results lie in them.
        total = sum(f.size for f in self._fences.values())
        self._drops_fences = bool(damage) or total > KEPT_FENCES_BYTES
        return results, damage

    def _fenced(
        self, t: Tensor, side: Literal["start", "end"], inputs: Mapping[str, Array]
    ) -> Fenced:
        """An array between fences with what it should hold before a run."""
        key = (t.name, t.layout, side)
        fence = self._fences.get(key)
        if fence is None:
            fence = self._fences[key] = Fenced(physical_bytes(t, self.sizes), side)
        if key in self._filled and inputs is self.inputs:
            return fence
        self._filled.discard(key)
        if t.name not in inputs:
            spoil(fence.view, t)
            return fence
        is_written = t.name in self._written
        fence.protect(writable=True)
        if inputs is self.inputs:
            fence.view[...] = self._image(t)
            if not is_written:
                self._filled.add(key)
        else:
            store(fence.view, t, inputs[t.name], self.sizes)
        fence.protect(writable=is_written)
        return fence

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """Let the process take ``memory_bytes`` more than it has, and no more."""
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = mapped_bytes() + self.memory_bytes
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    # -------------------------------------------------------------------------- as in a model

    def prepare(
        self, name: str, *, sample_ns: float, cold_bytes: int, call_ns: float = 0.0
    ) -> float:
        """Lay out the arrays of a variant and find how often to call it in one sample.

        Args:
            sample_ns: a sample takes about so long, at least [ns].
            cold_bytes: of the last-level cache, which copies of the arrays should exceed; 0: one
                copy, and warm caches. The first variant's counts for all.
            call_ns: about how long a call takes, where that is long and known: no call is made
                then [ns]. 0: find out.
        Returns: about how long a call takes [ns].
        """
        one = self.loaded[name]
        if not self._blocks:
            self._cold_bytes = cold_bytes
            self._sets, self._at = self._count_sets(), 0
        one.rows = []
        for k in range(self._sets):
            row = (ctypes.c_uint64 * max(1, len(one.tensors)))()
            for position, t in enumerate(one.tensors):
                base = base_of(t, one.tensors)
                root = next(o for o in one.tensors if o.name == base) if base else t
                block, stride = self._block(root)
                row[position] = block.address + k * stride
            one.rows.append(row)
        one.tables = (ctypes.c_uint64 * self._sets)(*(ctypes.addressof(r) for r in one.rows))
        one.times = 1
        if call_ns:
            return call_ns
        # The first call touches pages for the first time, the next guess includes a call from
        # Python, and the third is good; a call that is long anyway is not made again.
        for _ in range(3):
            self.watcher.begin([])
            call_ns = self.sample(name)
            one.times = max(1, min(MAX_TIMES, math.ceil(sample_ns / max(call_ns, 1.0))))
            if call_ns > LONG_CALLS * sample_ns:
                break
        self.watcher.end()
        return call_ns

    def sample(self, name: str) -> float:
        """One sample of a prepared variant: the time of one call [ns].

        What the kernel overwrites gets its values back first, outside of the time.
        """
        one = self.loaded[name]
        if self.overwrites:
            self._restore(one)
            self._evict()
        with self._limited():
            start = time.perf_counter_ns()
            status = self.helper.repeat(
                one.address,
                ctypes.addressof(one.tables) if one.tables is not None else 0,
                self._sets,
                self._at,
                one.times,
                ctypes.addressof(self._symbols),
                self._services.address,
            )
            elapsed = time.perf_counter_ns() - start
        # One position for all variants: the next one must not find what this one just touched.
        self._at = (self._at + one.times) % self._sets
        if status:
            raise BadCall(f"the kernel returned {status}: an index was out of range")
        return elapsed / one.times

    def last_results(self, name: str) -> dict[str, Array] | None:
        """Results of the call of ``sample`` that was last; None if calls overwrite their inputs.

        They count until another variant runs, for arrays are shared.
        """
        if self.overwrites:
            return None
        one = self.loaded[name]
        last = (self._at - 1) % self._sets
        found: dict[str, Array] = {}
        for t in one.tensors:
            if t.role in RESULT_ROLES:
                base = base_of(t, one.tensors)
                root = next(o for o in one.tensors if o.name == base) if base else t
                block, stride = self._block(root)
                size = physical_bytes(root, self.sizes)
                found[t.name] = fetch(
                    block.view[last * stride : last * stride + size], t, self.sizes
                )
        return found

    def _count_sets(self) -> int:
        if not self._cold_bytes:
            return 1
        tensors = [t for t in self.program.tensors if t.alias_of is None]
        whole = sum(physical_bytes(t, self.sizes) for t in tensors)
        wanted = math.ceil(COLD_FACTOR * self._cold_bytes / max(whole, 1))
        fitting = self.memory_bytes // max(whole, 1)
        return max(1, min(wanted, fitting, MAX_SETS))

    def _block(self, t: Tensor) -> tuple[Plain, int]:
        """All copies of an array in one block, shared by variants with the same layout; filled, or
        spoiled as arrays between fences are: a kernel may leave a part of a tensor as it was.
        """
        key, sets = (t.name, t.layout), self._sets
        found = self._blocks.get(key)
        if found is None:
            size = physical_bytes(t, self.sizes)
            stride = round_up(size, 64) + (_STRIDE_BYTES if sets > 1 else 0)
            found = Plain(stride * sets), stride
            for k in range(sets):
                view = found[0].view[k * stride : k * stride + size]
                if t.name in self.inputs:
                    view[...] = self._image(t)
                else:
                    spoil(view, t)
            self._blocks[key] = found
        return found

    def _image(self, t: Tensor) -> Array:
        """The bytes of an input in a tensor's layout; packed once for all variants with it."""
        key = (t.name, t.layout)
        if key not in self._images:
            view = np.empty(physical_bytes(t, self.sizes), np.uint8)
            store(view, t, self.inputs[t.name], self.sizes)
            self._images[key] = view
        return self._images[key]

    def _restore(self, one: Loaded) -> None:
        """Give overwritten inputs their values back, where the next calls find them."""
        sets = {(self._at + k) % self._sets for k in range(min(one.times, self._sets))}
        for t in one.tensors:
            if t.name not in self.inputs or t.name not in self._written:
                continue
            block, stride = self._block(t)
            size = physical_bytes(t, self.sizes)
            for k in sets:
                block.view[k * stride : k * stride + size] = self._image(t)

    def _evict(self) -> None:
        """Where caches shall be cold, push out what was just restored."""
        if not self._cold_bytes:
            return
        if self._evictor is None:
            self._evictor = np.zeros(2 * self._cold_bytes, np.uint8)
        self._evictor += 1


def mapped_bytes() -> int:
    """Address space of this process [bytes]."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE


def written_roots(program: Program) -> set[str]:
    """Tensors that statements write, as the tensors whose bytes these are."""
    tensors = {t.name: t for t in program.tensors}
    roots: set[str] = set()
    for statement in program.statements:
        if isinstance(statement, Statement):
            for write in statement.writes:
                name = write.tensor
                while (base := tensors[name].alias_of) is not None:
                    name = base
                roots.add(name)
    return roots


def base_of(t: Tensor, tensors: Sequence[Tensor]) -> str | None:
    """The array that a tensor's bytes belong to, if they are another one's."""
    if t.alias_of is None:
        return None
    by_name = {o.name: o for o in tensors}
    name: str = t.alias_of
    while name in by_name and by_name[name].alias_of is not None:
        name = by_name[name].alias_of or name
    return name if name in by_name else None
