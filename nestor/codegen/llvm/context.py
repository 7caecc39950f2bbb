"""The state of emission: where we are in the nest, and what its names mean here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nestor.codegen.llvm.builder import FunctionBuilder, ModuleBuilder, Val, bool_val
from nestor.codegen.llvm.windows import Windows
from nestor.ir.affine import Affine, Interval
from nestor.ir.loopnest import Buffer
from nestor.ir.program import Symbol, Tensor
from nestor.target.cpu import CpuTarget

if TYPE_CHECKING:
    from nestor.codegen.llvm.addressing import AccessPlan

LANE = "%lane"
"""The variable that stands for the position in a vector, 0 … lanes - 1."""

IN_BODY = 1 << 30
"""Depth of a value that is defined in the middle of the code: nothing of it can be hoisted."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A scalar index value and the scope (depth) in whose head it is available."""

    value: Val
    depth: int


@dataclass(frozen=True, slots=True)
class Vector:
    """The vector loop around: ``lanes`` (a power of two), the first ``active`` of them in use.

    ``index``: the loop's name. ``low``: its first value, not only that of these lanes.
    """

    lanes: int
    active: int
    index: str = ""
    low: int = 0


@dataclass(slots=True)
class Storage:
    """Memory of a tensor or buffer, for addressing.

    Attributes:
        pointer: the base, available in the function's head.
        ty: element type in memory.
        shape: physical extents.
        strides: per physical dimension (constant factor, SSA factor or None) [elements].
        size: elements allocated, None if symbolic.
        private: True for a buffer of this thread: reading and rewriting its neighbours is allowed.
        read_only: never written while the kernel runs.
        metadata: alias information for loads and stores.
        inner: for a private buffer, the true extent of its last dimension.
        root: for a tensor, whose bytes it has.
    """

    pointer: Val
    ty: str
    shape: tuple[Affine, ...]
    strides: tuple[tuple[int, Val | None], ...]
    size: int | None
    private: bool
    read_only: bool
    metadata: str
    inner: int = 0
    root: str = ""


@dataclass(frozen=True, slots=True)
class Private:
    """A buffer of this thread.

    Attributes:
        buffer: as the nest declares it.
        storage: its memory; the shape there is permuted and padded.
        order: the buffer's dimensions as they lie in memory, outermost first.
        per_lane: each lane has its own, along a last dimension.
    """

    buffer: Buffer
    storage: Storage
    order: tuple[int, ...]
    per_lane: bool


@dataclass(slots=True)
class NestInfo:
    """Facts of the whole kernel, shared by its functions.

    Attributes:
        positions: place of each tensor among the arguments.
        roots: the tensor whose bytes each tensor has (itself, unless it is an alias).
        written: roots that some store of the nest writes.
        metadata: per root or buffer name, the alias information of its accesses.
        inner_dims: per buffer name, the dimension that lies along vectors.
        gathers: whether some index depends on data.
        read: roots that the nest reads, or accumulates into.
        picked: roots that are read by indices that depend on data.
        asking: tensors whose rows only computes of this cost ask for (``prefetch``).
        nontemporal: what marks a store past the caches; empty until there is one.
        regions: parallel regions written so far.
    """

    module: ModuleBuilder
    target: CpuTarget
    name: str
    fp_contract: bool
    tensors: dict[str, Tensor]
    positions: dict[str, int]
    symbols: tuple[Symbol, ...]
    roots: dict[str, str]
    written: frozenset[str]
    metadata: dict[str, str]
    inner_dims: dict[str, int]
    gathers: bool
    read: frozenset[str] = frozenset()
    picked: frozenset[str] = frozenset()
    asking: dict[str, int] = field(default_factory=dict)
    nontemporal: str = ""
    regions: int = 0


class Context:
    """Emission state of one function.

    ``env`` maps loop indices that are no SSA values (unrolled and vector ones) to affines over
    ``LANE``; ``variables`` holds the others. ``mask`` (lanes) and ``condition`` (scalar) say where
    memory may be touched; None means everywhere. ``first`` (scalar): whether the first iteration of
    the vector loop is under ``mask``, known only where no other is without it. ``streamed``: roots
    that start at cache lines and are written past the caches; ``streams``: some store was so.
    ``given``: values of loads, by tensor and the identity of their indices, that are known here.
    """

    def __init__(self, info: NestInfo, fb: FunctionBuilder):
        self.info = info
        self.fb = fb
        self.target = info.target
        self.env: dict[str, Affine] = {}
        self.variables: dict[str, Variable] = {}
        self.ranges: dict[str, Interval] = {}
        self.varying: set[str] = {LANE}
        self.vectors: dict[str, Val] = {}
        self.buffers: dict[str, Private] = {}
        self.storages: dict[str, Storage] = {}
        self.plans: dict[tuple[str, int], AccessPlan] = {}
        self.args = Val("%args", "ptr")
        self.symbols = Val("%symbols", "ptr")
        self.services = Val("%services", "ptr")
        self.vector: Vector | None = None
        self.windows: Windows | None = None
        self.given: dict[tuple[str, int], Val] = {}
        self.mask: Val | None = None
        self.condition: Val | None = None
        self.first: Val | None = None
        self.flag: str | None = None
        self.inside_parallel = False
        self.streamed: frozenset[str] = frozenset()
        self.streams = False
        self.local_bytes = 0
        self.free_slots: dict[tuple[str, str, int], list[Val]] = {}

    def bind_symbols(self) -> None:
        """Load the shape symbols in the function's head."""
        for position, symbol in enumerate(self.info.symbols):
            slot = f"getelementptr i64, ptr {self.symbols.text}, i64 {position}"
            at = self.fb.emit_at(0, slot, "ptr")
            value = self.fb.emit_at(0, f"load i64, ptr {at.text}, align 8", "i64")
            self.variables[symbol.name] = Variable(value, 0)
            self.ranges[symbol.name] = (symbol.lower, symbol.upper)

    @property
    def lanes(self) -> int:
        """Lanes of the vector loop around, 0 outside of one."""
        return self.vector.lanes if self.vector else 0

    def resolve(self, a: Affine) -> Affine:
        """``a`` over SSA variables and ``LANE``, simplified with what is known of their ranges."""
        if a.is_const:
            return a
        if self.env and not self.env.keys().isdisjoint(a.variables()):
            a = a.substitute(self.env)
        return a.simplify(self.ranges)

    def is_varying(self, a: Affine) -> bool:
        """True if ``a`` (resolved) may differ between lanes."""
        return not self.varying.isdisjoint(a.variables())

    def tail_mask(self) -> Val | None:
        """The constant mask of a partly used vector, None if all lanes are in use."""
        if self.vector is None or self.vector.active == self.vector.lanes:
            return None
        n, used = self.vector.lanes, self.vector.active
        items = ", ".join("i1 true" if i < used else "i1 false" for i in range(n))
        return Val(f"<{items}>", "i1", n)

    def full_mask(self) -> Val | None:
        """Lanes that may touch memory; None if all."""
        return self.mask if self.mask is not None else self.tail_mask()

    @contextmanager
    def where(self, test: Val, first: Val | None = None) -> Iterator[None]:
        """Restrict memory accesses to where ``test`` (scalar or lanes) holds.

        Args: first: for lanes, the test of the vector loop's first iteration, if it holds wherever
            any does.
        """
        mask, condition, old_first = self.mask, self.condition, self.first
        if test.lanes:
            base = self.full_mask()
            if first is None or (mask is not None and old_first is None):
                self.first = None
            else:
                self.first = first if old_first is None else self.and_(old_first, first)
            self.mask = test if base is None else self.and_(base, test)
        elif not (test.literal and test.text == "true"):
            self.condition = test if condition is None else self.and_(condition, test)
        try:
            yield
        finally:
            self.mask, self.condition, self.first = mask, condition, old_first

    def and_(self, a: Val, b: Val) -> Val:
        """Logical and that stays well defined when ``b`` is undefined where ``a`` is false."""
        if a.literal:
            return b if a.text == "true" else a
        if b.literal:
            return a if b.text == "true" else b
        return self.fb.select(a, b, bool_val(False))

    def not_(self, a: Val) -> Val:
        """Logical negation."""
        if a.literal:
            return bool_val(a.text != "true")
        return self.fb.op("xor", a, bool_val(True))
