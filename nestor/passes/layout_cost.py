"""What a statement costs where its tensors lie in given layouts: a roofline estimate in cycles.

The schedule's own rules say what a contraction's register tile would be; other statements are
taken to run along whichever index suits their accesses best. Estimates guide profit only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nestor.ir.expr import IndexExpr, loads
from nestor.ir.program import Layout, Statement, Tensor
from nestor.passes.analysis import domain_volume, expression_work, tensor_bytes
from nestor.passes.contraction import Contraction, contraction_of
from nestor.passes.contraction_tile import Window, contraction_tile, shared_window
from nestor.passes.dot_schedule import MAX_ROWS
from nestor.passes.register_tile import VectorUnit
from nestor.passes.statement_facts import (
    bounding_indices,
    constant_extent,
    extent_of,
    is_constant,
    reduced_indices,
    reuse_extent,
    widest_bytes,
)
from nestor.passes.strides import access_strides, typical

NEAR_BYTES_PER_CYCLE = 16.0
"""What one core moves to and from a cache further out than the first."""

LOAD_CYCLES = 0.5
"""A vector that is read where it lies in whole lines: two loads start in a cycle."""

UNALIGNED_CYCLES = 0.9
"""A vector at any address: most cross cache lines."""

STORE_CYCLES = 1.0

GATHER_CYCLES, SCATTER_CYCLES = 1.0, 1.5
"""One element of a vector whose elements are apart: a line of the cache each."""

TRANSPOSED_CYCLES = 0.45
"""One element of a square tile that is transposed in registers."""

MAX_NEAR_STRIDE = 4
"""Lanes at most this far apart share their cache lines [elements]."""

MIN_TRANSPOSED_EXTENT = 4
"""Along fewer elements there is no tile to transpose."""

MIN_COPY_ROWS = 8
"""Rows that pay for a transposed copy of an operand (``PassOptions.min_relayout_rows``)."""


Strides = dict[str, int | None]
"""How an access moves along each index [elements]; None: irregularly."""


@dataclass(slots=True)
class StatementCost:
    """Cycles of one core for all instances of a statement, its arrays read from a cache.

    Made once for a statement, asked for each combination of layouts.
    """

    statement: Statement
    unit: VectorUnit
    accesses: list[tuple[str, tuple[IndexExpr, ...], bool]] = field(init=False)
    extents: dict[str, int] = field(init=False)
    terms: int = field(init=False)
    work: float = field(init=False)
    lanes: int = field(init=False)
    is_product: bool = field(init=False)
    strides: dict[tuple[int, Layout | None], Strides] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.statement
        found = [(w.tensor, w.indices, True) for w in s.writes]
        found += [(x.tensor, x.indices, False) for e in s.elements for x in loads(e)]
        self.accesses = found
        self.extents = {n: extent_of(s, n) for n in s.domain.names}
        self.terms = max(1, math.prod(self.extents[n] for n in reduced_indices(s)))
        self.work = sum(expression_work(e) for e in s.elements) / 2
        if s.reduction is not None:
            self.work += sum(expression_work(e) for e in s.reduction.monoid.combine) / 2
        self.lanes = self.unit.lanes(widest_bytes(s))
        self.is_product = not bounding_indices(s) and s.scatter is None

    def cycles(self, tensors: Mapping[str, Tensor]) -> float:
        """The estimate where what the statement touches lies as ``tensors`` (by name) say."""
        moved = sum(map(stored_bytes, {n: tensors[n] for n, _, _ in self.accesses}.values()))
        product = contraction_of(self.statement, tensors) if self.is_product else None
        if product is not None:
            own = _contraction_cycles(self.statement, product, tensors, self.unit)
        else:
            own = self._plain_cycles(tensors)
        return moved / NEAR_BYTES_PER_CYCLE + own

    def _access_strides(self, tensors: Mapping[str, Tensor]) -> list[tuple[Strides, float, bool]]:
        """(strides, share of the instances, whether it is a write) of each access."""
        out: list[tuple[Strides, float, bool]] = []
        for position, (name, indices, is_write) in enumerate(self.accesses):
            key = (position, tensors[name].layout)
            if key not in self.strides:
                names = self.statement.domain.names
                self.strides[key] = access_strides(tensors[name], indices, names)
            out.append((self.strides[key], 1.0 / self.terms if is_write else 1.0, is_write))
        return out

    def _plain_cycles(self, tensors: Mapping[str, Tensor]) -> float:
        """The least over the indices that vectors may run along, and square tiles of two."""
        s, accesses = self.statement, self._access_strides(tensors)
        best = self.work + sum(share for _, share, _ in accesses)
        reduced = reduced_indices(s)
        scans = s.reduction is not None and s.reduction.scan
        for name, extent in self.extents.items():
            if extent < 2 or s.scatter == "last":
                continue
            if name in reduced and (scans or extent < 2 * self.lanes):
                continue
            full = extent / -(-extent // self.lanes)
            cost = self.work / full
            for strides, share, is_write in accesses:
                cost += share * _vector_access(strides[name], is_write, full)
            best = min(best, cost)
        if self._is_transposed(accesses):
            vectors = self.work + len(accesses) * STORE_CYCLES
            best = min(best, vectors / self.lanes + TRANSPOSED_CYCLES)
        return domain_volume(s.domain) * best

    def _is_transposed(self, accesses: list[tuple[Strides, float, bool]]) -> bool:
        """Whether the statement reads along one index and writes along another, and no more."""
        s = self.statement
        if s.reduction is not None or s.scatter is not None or len(s.writes) != 1:
            return False
        reads = [strides for strides, _, is_write in accesses if not is_write]
        if not reads or any(None in strides.values() for strides in reads):
            return False
        across = [n for n in s.domain.names if accesses[0][0][n] == 1]
        if len(across) != 1:
            return False
        return any(
            all(r[along] in (0, 1) for r in reads)
            and any(r[along] == 1 for r in reads)
            and not any(r[across[0]] == 1 for r in reads)
            and min(self.extents[along], self.extents[across[0]]) >= MIN_TRANSPOSED_EXTENT
            and is_constant(s, along)
            for along in s.domain.names
            if along != across[0]
        )


def _vector_access(stride: int | None, is_write: bool, lanes: float) -> float:
    """Cycles of one element of an access by vectors along an index."""
    if stride == 0:
        return 0.1 / lanes
    if stride == 1:
        return (STORE_CYCLES if is_write else LOAD_CYCLES) / lanes
    if stride is not None and abs(stride) <= MAX_NEAR_STRIDE:
        return 2.0 * abs(stride) / lanes
    return SCATTER_CYCLES if is_write else GATHER_CYCLES


def stored_bytes(tensor: Tensor) -> int:
    """Size with the cells that a layout leaves empty [bytes]."""
    if tensor.layout is None:
        return tensor_bytes(tensor)
    return math.prod(max(0, typical(e)) for e in tensor.layout.shape) * tensor.dtype.bytes


# ---------------------------------------------------------------------------------- contractions


def _contraction_cycles(
    s: Statement, c: Contraction, tensors: Mapping[str, Tensor], unit: VectorUnit
) -> float:
    volume = float(domain_volume(s.domain))
    results = volume / max(1, math.prod(extent_of(s, n) for n in reduced_indices(s)))
    lanes = unit.lanes(max(s.elements[0].dtype.bytes, 4))
    if _is_dot(s, c, tensors, lanes):
        return volume / lanes * 1.2 + results * 4.0
    window = shared_window(s, c)
    row, tile, vectors = contraction_tile(s, c, unit)
    columns = -(-reuse_extent(s, c.vector) // lanes)
    rows = reuse_extent(s, row) if row else 1
    steps = volume / (rows * reuse_extent(s, c.vector))
    misplaced, copied = _misplaced_loads(s, c, tensors, lanes)
    if window is not None:
        steps /= window.taps
        cycles = _tiles(rows, columns, tile, vectors, lambda r, v: _window_cycles(window, r, v))
    else:
        shared = 1 if row in c.rows else 0
        aligned = c.is_packable
        cycles = _tiles(
            rows, columns, tile, vectors, lambda r, v: _step_cycles(r, v, shared, aligned)
        )
    taps = 1 if window is None else window.taps
    apart = steps * taps * columns * lanes * misplaced * GATHER_CYCLES
    apart *= rows if window is not None else -(-rows // tile)
    write = s.writes[0]
    out = access_strides(tensors[write.tensor], write.indices, (c.vector,))[c.vector]
    stored = STORE_CYCLES / lanes if out == 1 else SCATTER_CYCLES
    return steps * cycles + apart + copied + results * stored


def _tiles(
    rows: int, columns: int, tile: int, vectors: int, cycles: Callable[[int, int], float]
) -> float:
    """The cycles of all tiles of ``rows`` × ``columns`` vectors, tails of rows included."""
    cost = rows // tile * cycles(tile, vectors)
    if rows % tile:
        cost += cycles(rows % tile, vectors)
    return cost * -(-columns // vectors)


def _step_cycles(rows: int, vectors: int, shared: int, aligned: bool) -> float:
    """One step of the sum of a tile: FMAs or their latency, loads that these do not hide."""
    load = LOAD_CYCLES if aligned else UNALIGNED_CYCLES
    loaded = vectors if shared else rows * vectors
    broadcast = rows if shared else 1
    return max(rows * vectors, 4.0) + 0.3 * (broadcast + loaded) + load * loaded + 0.5


def _window_cycles(window: Window, rows: int, vectors: int) -> float:
    """All taps of one line of a window: FMAs, their latency, or loads."""
    if window.across:
        lines = min(window.step, window.taps) * (rows - 1) + window.taps
        bound = 1.5 * vectors * lines + window.taps
        return max(rows * window.taps * vectors, 4 * window.taps, bound) + 0.2 * bound + 2.0
    bound = rows * window.step + max(0, window.taps - window.step) + window.taps
    return max(rows * window.taps, 4 * window.taps, bound) + 2.0


def _is_dot(s: Statement, c: Contraction, tensors: Mapping[str, Tensor], lanes: int) -> bool:
    """Whether the sum is taken along memory (``dot_schedule``)."""
    if c.vector_operand is None or c.is_packable or len(c.reduced) != 1:
        return False
    strides = access_strides(
        tensors[c.vector_operand.tensor], c.vector_operand.indices, s.domain.names
    )
    rows = math.prod(constant_extent(s, n) or MAX_ROWS + 1 for n in c.rows)
    if strides[c.reduced[0]] != 1 or strides[c.vector] == 1 or rows > MAX_ROWS:
        return False
    return (constant_extent(s, c.reduced[0]) or 0) >= lanes


def _misplaced_loads(
    s: Statement, c: Contraction, tensors: Mapping[str, Tensor], lanes: int
) -> tuple[float, float]:
    """(operands whose lanes are apart, cycles of a transposed copy that is made instead)."""
    misplaced = copied = 0.0
    for load in loads(s.elements[0]):
        stride = access_strides(tensors[load.tensor], load.indices, (c.vector,))[c.vector]
        if stride in (0, 1) or (load == c.vector_operand and c.is_packable):
            continue
        rows = math.prod(reuse_extent(s, n) for n in c.rows)
        if load == c.vector_operand and rows >= MIN_COPY_ROWS:
            elements = tensor_bytes(tensors[load.tensor]) / load.dtype.bytes
            copied += elements * (TRANSPOSED_CYCLES + (LOAD_CYCLES + STORE_CYCLES) / lanes)
        elif stride is not None and abs(stride) <= MAX_NEAR_STRIDE:
            misplaced += 2.0 * abs(stride) / lanes
        else:
            misplaced += 1.0
    return misplaced, copied
