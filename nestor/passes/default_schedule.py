"""The rule-based schedule of a kernel: parallel outside, vectors inside, products in registers.

Rules read only the derived structure (strides, reduced and shared indices, contraction roles), so
they hold for any statement. Whatever they propose, the checker judges.
"""

from __future__ import annotations

from nestor.ir.affine import Affine
from nestor.ir.expr import loads
from nestor.ir.program import Statement, Tensor
from nestor.ir.schedule import (
    Accumulate,
    BlockReduction,
    ComputeAt,
    Fuse,
    Pack,
    Parallel,
    Reorder,
    Schedule,
    SplitReduction,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.passes.contraction import Contraction, contraction_of
from nestor.passes.fusion import FusedKernel
from nestor.passes.register_tile import VectorUnit, choose_block, choose_register_tile
from nestor.passes.statement_facts import (
    bounding_indices,
    constant_extent,
    extent_of,
    free_indices,
    in_reduction_order,
    in_scope,
    is_constant,
    loop_parts,
    magnitude,
    reduced_indices,
    reuse_extent,
    widest_bytes,
    without_sequential,
)
from nestor.passes.strides import access_strides

MAX_UNROLLED_TAPS = 9
"""Reduced loops of constant extents with at most this many iterations together are unrolled."""


def default_schedule(fused: FusedKernel, unit: VectorUnit) -> Schedule:
    """A good legal schedule for any kernel, without search.

    Args: fused: kernel and shared indices of its statements. unit: the target's vectors.
    """
    return _Rules(fused, unit).steps()


class _Rules:
    def __init__(self, fused: FusedKernel, unit: VectorUnit):
        self.fused = fused
        self.unit = unit
        self.kernel = fused.kernel
        self.tensors = {t.name: t for t in self.kernel.tensors}
        self.statements = [s for s in self.kernel.statements if isinstance(s, Statement)]
        self.out: list[Step] = []

    def steps(self) -> Schedule:
        if any(len(s.order) > 1 for s in self.statements):
            for s in self.statements:
                self._schedule_alone(s, sequential=[p for p in s.order if isinstance(p, str)])
            return tuple(self.out)
        anchor = next((s for s in self.statements if self._contraction(s)), None)
        shared_all = all(
            len(self.fused.shared[s.name]) == len(free_indices(s)) for s in self.statements
        )
        if len(self.statements) == 1:
            self._schedule_alone(self.statements[0], sequential=[])
        elif (
            anchor is self.statements[0]
            and shared_all
            and all(s.reduction is None for s in self.statements[1:])
        ):
            assert anchor is not None
            self._schedule_epilogue(anchor)
        else:
            self._schedule_rows()
        return tuple(self.out)

    def _contraction(self, s: Statement) -> Contraction | None:
        """The contraction that ``s`` is, if its loops may stand in any order: no range of one
        depends on another, as in a triangle."""
        sequential = {p for p in s.order if isinstance(p, str)}
        return None if bounding_indices(s) - sequential else contraction_of(s, self.tensors)

    # One statement, and a contraction with pointwise epilogues

    def _schedule_alone(self, statement: Statement, sequential: list[str]) -> None:
        contraction = self._contraction(statement)
        if contraction is not None:
            # The time loop of a recurrence is neither a row nor a column of its product.
            contraction = without_sequential(contraction, sequential)
        if contraction is not None and not statement.scatter:
            outer = [n for n in free_indices(statement) if n not in sequential]
            self._contraction_loops(statement, contraction, outer, sequential)
        else:
            self._plain_loops(statement, sequential, shared=[])

    def _schedule_epilogue(self, anchor: Statement) -> None:
        contraction = self._contraction(anchor)
        assert contraction is not None
        free = free_indices(anchor)
        parallel, tile = self._contraction_loops(anchor, contraction, free, [])
        for s in self.statements[1:]:
            rename = dict(zip(self.fused.shared[anchor.name], self.fused.shared[s.name]))
            loops, inner = self._mirror(s, rename, parallel, tile)
            self.out.append(Reorder(statement=s.name, loops=(*loops, *inner)))
            for first, second in zip(parallel, loops):
                self.out.append(Fuse(first=first, second=second))
            self._annotate_tile(inner)
        self._keep_temps("register")

    def _mirror(
        self, s: Statement, rename: dict[str, str], parallel: list[str], tile: list[str]
    ) -> tuple[list[str], list[str]]:
        """Tile an epilogue's loops like the anchor's; returns its outer and inner loops."""
        anchor = self.statements[0].name

        def other(loop: str) -> str:
            _, index, *halves = loop_parts(loop, anchor)
            return ".".join([s.name, rename[index], *halves])

        for step in list(self.out):
            if isinstance(step, Tile) and step.loop.startswith(f"{anchor}."):
                _, index, *_ = loop_parts(step.loop, anchor)
                if index in rename:
                    self.out.append(Tile(loop=other(step.loop), size=step.size))
        return [other(p) for p in parallel], [other(t) for t in tile]

    def _annotate_tile(self, loops: list[str]) -> None:
        for loop in loops[:-1]:
            self.out.append(Unroll(loop=loop))
        if loops:
            self.out.append(Vectorize(loop=loops[-1]))

    def _contraction_loops(
        self, s: Statement, c: Contraction, free: list[str], sequential: list[str]
    ) -> tuple[list[str], list[str]]:
        """Register-tile a contraction; returns its outer (parallel) and its tile loops."""
        lanes = self.unit.lanes(max(s.elements[0].dtype.bytes, 4))
        row = next((n for n in c.rows if is_constant(s, n)), c.rows[0] if c.rows else None)
        columns = reuse_extent(s, c.vector)
        rows = reuse_extent(s, row) if row else 1
        row_tile, vectors = choose_register_tile(rows, columns, lanes, self.unit.registers)
        name, v = s.name, f"{s.name}.{c.vector}"
        outer: list[str] = []
        tile: list[str] = []
        block = lanes * vectors
        batch = [n for n in free if n not in (c.vector, row)]
        if columns > block or not is_constant(s, c.vector):
            self.out.append(Tile(loop=v, size=block))
            column_outer, v = [f"{v}.o"], f"{v}.i"
        else:
            column_outer = []
        if vectors > 1 and columns > lanes:
            self.out.append(Tile(loop=v, size=lanes))
            tile, v = [f"{v}.o"], f"{v}.i"
        if row is not None and (rows > row_tile or not is_constant(s, row)):
            self.out.append(Tile(loop=f"{name}.{row}", size=row_tile))
            row_outer, row_inner = [f"{name}.{row}.o"], [f"{name}.{row}.i"]
        else:
            row_outer, row_inner = [], [f"{name}.{row}"] if row else []
        tile = [*row_inner, *tile, v]
        batch_loops = [f"{name}.{n}" for n in batch]
        if self._depends(c, batch):
            outer = [*batch_loops, *column_outer, *row_outer]
        else:
            outer = [*column_outer, *batch_loops, *row_outer]
        reduced = self._reduced_loops(s, c)
        seq = [f"{name}.{n}" for n in sequential]
        seq = [self._sequential_loop(s, n) for n in sequential] if sequential else seq
        self.out.append(Reorder(statement=name, loops=(*seq, *outer, *reduced, *tile)))
        for loop in outer:
            self.out.append(Parallel(loop=loop))
        self._annotate_tile(tile)
        self.out.append(Accumulate(statement=name, scope="register"))
        if c.is_packable and c.vector_operand is not None:
            self._pack(c, block if columns > block else lanes * vectors)
        return outer, tile

    def _sequential_loop(self, s: Statement, index: str) -> str:
        """The loop that a seq region shares under the name of its first statement."""
        for other in self.statements:
            if other.order[:1] == s.order[:1]:
                position = [p for p in s.order if isinstance(p, str)].index(index)
                return f"{other.name}.{[p for p in other.order if isinstance(p, str)][position]}"
        return f"{s.name}.{index}"

    def _reduced_loops(self, s: Statement, c: Contraction) -> list[str]:
        """Loops over the reduced indices; a long sum is cut into blocks that are summed apart."""
        loops = [f"{s.name}.{n}" for n in c.reduced]
        at, size = choose_block([constant_extent(s, n) for n in c.reduced])
        if at is None:
            return loops
        if size:
            self.out.append(Tile(loop=loops[at], size=size))
            loops[at : at + 1] = [f"{loops[at]}.o", f"{loops[at]}.i"]
        self.out.append(BlockReduction(loop=loops[at]))
        return loops

    def _depends(self, c: Contraction, batch: list[str]) -> bool:
        """Whether the vector operand depends on any of the batch indices."""
        operand = c.vector_operand
        if operand is None:
            return True
        used: set[str] = set()
        for i in operand.indices:
            used |= i.variables() if isinstance(i, Affine) else set()
        return any(n in used for n in batch)

    def _pack(self, c: Contraction, block: int) -> None:
        """Store the vector operand as panels: vector index blocked innermost, reduced as looped."""
        operand = c.vector_operand
        assert operand is not None
        dim_of = {
            next(iter(i.variables())): d
            for d, i in enumerate(operand.indices)
            if isinstance(i, Affine) and i.variables()
        }
        if c.vector not in dim_of or any(
            step.tensor == operand.tensor for step in self.out if isinstance(step, Pack)
        ):
            return
        v = dim_of[c.vector]
        inner = [dim_of[n] for n in c.reduced if n in dim_of]
        others = [d for d in range(len(operand.indices)) if d != v and d not in inner]
        self.out.append(
            Pack(tensor=operand.tensor, order=(*others, v, *inner), dims=(v,), blocks=(block,))
        )

    # Groups that share rows

    def _schedule_rows(self) -> None:
        """Normalisations, softmax, attention: rows shared outside, each statement alone inside."""
        shared = self.fused.shared
        first = self.statements[0]
        positions = list(range(len(shared[first.name])))
        order = sorted(positions, key=lambda p: self._row_stride(p), reverse=True)
        tile_at, row_tile = self._row_tile(positions)
        vector_at = self._shared_vector(positions) if tile_at is None else None
        outer_first: list[str] = []
        for s in self.statements:
            outer, inner_halves = self._shared_loops(s, order, tile_at, row_tile, vector_at)
            self._inner_loops(s, outer, inner_halves, tile_at)
            if s is first:
                outer_first = outer
            else:
                for a, b in zip(outer_first, outer):
                    self.out.append(Fuse(first=a, second=b))
        for loop in outer_first:
            self.out.append(Parallel(loop=loop))
        self._keep_temps("local")

    def _row_stride(self, position: int) -> int:
        last = self.statements[-1]
        index = self.fused.shared[last.name][position]
        write = last.writes[0]
        stride = access_strides(self.tensors[write.tensor], write.indices, [index])[index]
        return 0 if stride is None else abs(stride)

    def _row_tile(self, positions: list[int]) -> tuple[int | None, int]:
        """The shared index that the contractions of the group reuse, and its tile."""
        for s in self.statements:
            c = self._contraction(s)
            if c is None:
                continue
            for row in c.rows:
                if row in self.fused.shared[s.name]:
                    lanes = self.unit.lanes(4)
                    tile, _ = choose_register_tile(
                        reuse_extent(s, row),
                        reuse_extent(s, c.vector),
                        lanes,
                        self.unit.registers,
                    )
                    return self.fused.shared[s.name].index(row), tile
        return None, 1

    def _shared_vector(self, positions: list[int]) -> int | None:
        """A shared index along which most memory is contiguous; it is then split for vectors."""
        best, best_score = None, 0.0
        for p in positions:
            if any(self.fused.shared[s.name][p] in bounding_indices(s) for s in self.statements):
                continue
            score = 0.0
            for s in self.statements:
                score += self._unit_score(s, self.fused.shared[s.name][p])
            if (
                score > best_score
                and extent_of(self.statements[0], self.fused.shared[self.statements[0].name][p])
                >= 4
            ):
                best, best_score = p, score
        alternatives = 0.0
        for s in self.statements:
            inner = [n for n in s.domain.names if n not in self.fused.shared[s.name]]
            alternatives += max((self._unit_score(s, n) for n in inner), default=0.0)
        return best if best_score > alternatives else None

    def _shared_loops(
        self,
        s: Statement,
        order: list[int],
        tile_at: int | None,
        row_tile: int,
        vector_at: int | None,
    ) -> tuple[list[str], list[str]]:
        outer: list[str] = []
        inner: list[str] = []
        for p in order:
            index = self.fused.shared[s.name][p]
            loop = f"{s.name}.{index}"
            size = row_tile if p == tile_at else 0
            if p == vector_at:
                size = self.unit.lanes(widest_bytes(s))
                size = self.unit.lanes(max(widest_bytes(t) for t in self.statements))
            if size and (extent_of(s, index) > size or not is_constant(s, index)):
                self.out.append(Tile(loop=loop, size=size))
                outer.append(f"{loop}.o")
                inner.append(f"{loop}.i")
            elif size:
                inner.append(loop)
            else:
                outer.append(loop)
        return outer, inner

    def _inner_loops(
        self, s: Statement, outer: list[str], halves: list[str], tile_at: int | None
    ) -> None:
        c = self._contraction(s)
        shared = set(self.fused.shared[s.name])
        if c is not None and c.vector not in shared and tile_at is not None:
            self._row_contraction(s, c, outer, halves)
            return
        rest = [n for n in s.domain.names if n not in shared]
        self._plain_inner(s, outer, halves, rest, vector_half=tile_at is None and bool(halves))

    def _row_contraction(
        self, s: Statement, c: Contraction, outer: list[str], halves: list[str]
    ) -> None:
        """A contraction inside shared rows: the row tile is in ``halves``, columns are its own."""
        lanes = self.unit.lanes(max(s.elements[0].dtype.bytes, 4))
        row_tile = 1
        for step in self.out:
            if isinstance(step, Tile) and halves and step.loop == halves[0][:-2]:
                row_tile = step.size
        columns = reuse_extent(s, c.vector)
        _, vectors = choose_register_tile(row_tile, columns, lanes, self.unit.registers)
        v = f"{s.name}.{c.vector}"
        shared = set(self.fused.shared[s.name])
        own = [f"{s.name}.{n}" for n in free_indices(s) if n not in shared and n != c.vector]
        if columns > lanes * vectors or not is_constant(s, c.vector):
            self.out.append(Tile(loop=v, size=lanes * vectors))
            own.append(f"{v}.o")
            v = f"{v}.i"
        tile: list[str] = []
        if vectors > 1 and columns > lanes:
            self.out.append(Tile(loop=v, size=lanes))
            tile, v = [f"{v}.o"], f"{v}.i"
        reduced = self._reduced_loops(s, c)
        tile = [*halves, *tile, v]
        self.out.append(Reorder(statement=s.name, loops=(*outer, *own, *reduced, *tile)))
        self._annotate_tile(tile)
        self.out.append(Accumulate(statement=s.name, scope="register"))

    # Pointwise statements, reductions, scans

    def _is_bounded(self, t: Tensor) -> bool:
        """Whether what a row keeps of ``t`` has a constant size; else it stays in memory."""
        for s in self.statements:
            for w in s.writes:
                if w.tensor != t.name:
                    continue
                rows = {str(n) for n in self.fused.shared[s.name]}
                if any(
                    not extent.is_const and str(i) not in rows
                    for i, extent in zip(w.indices, t.shape)
                ):
                    return False
        return True

    def _plain_loops(self, s: Statement, sequential: list[str], shared: list[str]) -> None:
        """A statement of its own: parallel over its outer indices, vector along memory."""
        serial = s.scatter == "last" or (s.reduction is not None and s.reduction.into)
        seq = [self._sequential_loop(s, n) for n in sequential]
        names = in_reduction_order(s, [n for n in s.domain.names if n not in sequential])
        reduced = reduced_indices(s)
        if serial:
            self.out.append(
                Reorder(statement=s.name, loops=(*seq, *(f"{s.name}.{n}" for n in names)))
            )
            return
        free = [n for n in names if n not in reduced]
        vector = self._choose_vector(s, names)
        outer = self._by_stride(s, [n for n in free if n != vector])
        loops = [f"{s.name}.{n}" for n in outer]
        halves: list[str] = []
        if vector is not None and vector in free:
            loop = f"{s.name}.{vector}"
            size = self.unit.lanes(widest_bytes(s))
            if extent_of(s, vector) > size or not is_constant(s, vector):
                self.out.append(Tile(loop=loop, size=size))
                loops.append(f"{loop}.o")
                halves = [f"{loop}.i"]
            else:
                halves = [loop]
        rest = [n for n in names if n in reduced]
        self._plain_inner(s, [*seq, *loops], halves, rest, vector_half=True)
        for loop in loops:
            self.out.append(Parallel(loop=loop))

    def _plain_inner(
        self, s: Statement, outer: list[str], halves: list[str], rest: list[str], vector_half: bool
    ) -> None:
        """Order the inner loops of a statement: reduced ones, rows of a tile, then the vector."""
        name, reduced = s.name, reduced_indices(s)
        vector: list[str] = []
        inner: list[str] = []
        if vector_half and halves:
            vector, halves = halves[-1:], halves[:-1]
        free = [n for n in rest if n not in reduced]
        summed = [n for n in in_reduction_order(s, rest) if n in reduced]
        if not vector:
            index = self._choose_vector(s, rest)
            if index is not None:
                size = self.unit.lanes(widest_bytes(s))
                loop = f"{name}.{index}"
                if index in summed:
                    if extent_of(s, index) >= 2 * size and self._may_split(s):
                        chains = next(
                            c for c in (4, 2, 1) if c == 1 or extent_of(s, index) >= 2 * c * size
                        )
                        self.out.append(SplitReduction(loop=loop, lanes=size * chains))
                        summed.remove(index)
                        inner, vector = [f"{loop}.o"], [f"{loop}.i"]
                else:
                    free.remove(index)
                    if extent_of(s, index) > size:
                        self.out.append(Tile(loop=loop, size=size))
                        inner, vector = [f"{loop}.o"], [f"{loop}.i"]
                    else:
                        vector = [loop]
        loops = [f"{name}.{n}" for n in free]
        sums = [f"{name}.{n}" for n in summed]
        if vector and vector[0].endswith(".i") and inner and self._is_reduced(s, vector[0]):
            order = [*outer, *halves, *loops, *sums, *inner, *vector]
        else:
            order = [*outer, *halves, *loops, *inner, *sums, *vector]
        self.out.append(Reorder(statement=name, loops=in_scope(s, order)))
        for loop in vector:
            self.out.append(Vectorize(loop=loop))
        taps = 1
        for n in summed:
            taps *= extent_of(s, n)
        if summed and taps <= MAX_UNROLLED_TAPS and s.reduction and not s.reduction.scan:
            for loop in sums:
                self.out.append(Unroll(loop=loop))
        if s.reduction is not None:
            self.out.append(Accumulate(statement=name, scope="register"))

    def _is_reduced(self, s: Statement, loop: str) -> bool:
        _, index, *_ = loop_parts(loop, s.name)
        return index in reduced_indices(s)

    def _may_split(self, s: Statement) -> bool:
        r = s.reduction
        return r is not None and r.monoid.commutative and not r.scan and not r.into

    def _choose_vector(self, s: Statement, names: list[str]) -> str | None:
        """The index along which the statement's accesses are contiguous, if any gains."""
        if s.scatter == "last":
            return None
        reduced = reduced_indices(s)
        scanned = reduced if s.reduction and s.reduction.scan else set()
        bounding = bounding_indices(s)  # loops around others, whose extents they decide
        candidates = [n for n in names if n not in scanned | bounding and is_constant(s, n)]
        best = max(candidates, key=lambda n: self._vector_key(s, n, reduced), default=None)
        if best is None or self._unit_score(s, best) <= 0 or extent_of(s, best) < 2:
            return None
        return best

    def _vector_key(self, s: Statement, n: str, reduced: set[str]) -> tuple[float, ...]:
        extent = min(extent_of(s, n), self.unit.lanes(widest_bytes(s)))
        return (self._unit_score(s, n) * extent, float(n not in reduced), float(extent_of(s, n)))

    def _unit_score(self, s: Statement, index: str) -> float:
        """How contiguous the accesses are along ``index``: a unit stride counts, a jump costs."""
        score = 0.0
        accesses = [(w.tensor, w.indices, 2.0) for w in s.writes]
        accesses += [(x.tensor, x.indices, 1.0) for e in s.elements for x in loads(e)]
        for tensor, indices, weight in accesses:
            stride = access_strides(self.tensors[tensor], indices, [index])[index]
            if stride == 1:
                score += weight
            elif stride != 0:
                score -= weight
        return score

    def _by_stride(self, s: Statement, names: list[str]) -> list[str]:
        write = s.writes[0]
        strides = access_strides(self.tensors[write.tensor], write.indices, names)
        return sorted(names, key=lambda n: -magnitude(strides[n]))

    def _keep_temps(self, scope: str) -> None:
        for t in self.kernel.tensors:
            if t.role == "temp" and self._is_bounded(t):
                self.out.append(ComputeAt(tensor=t.name, scope=scope))  # type: ignore[arg-type]
