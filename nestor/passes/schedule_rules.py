"""What the rules of the default schedule share: a kernel's facts, and the steps so far."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from nestor.ir.program import Statement, Tensor
from nestor.ir.schedule import (
    BlockReduction,
    ComputeAt,
    Step,
    Tile,
    Unroll,
    Vectorize,
)
from nestor.passes.contraction import Contraction, contraction_of
from nestor.passes.fusion import FusedKernel
from nestor.passes.knobs import Choices
from nestor.passes.register_tile import VectorUnit, block_sizes, choose_block
from nestor.passes.statement_facts import (
    bounding_indices,
    constant_extent,
    extent_of,
    loop_parts,
)

FEW_INSTANCES = 1 << 20
"""Kernels of no more statement instances take less than a few hundred microseconds."""

MIN_SHARES, MANY_SHARES = 32, 256
"""Enough parallel iterations for those, and for others: what many cores share out evenly."""


class Rules:
    """A kernel being scheduled: its statements, and ``out``, the steps decided so far.

    ``choices`` decides what the rules leave open.
    """

    def __init__(self, fused: FusedKernel, unit: VectorUnit, choices: Choices | None = None):
        self.fused = fused
        self.choices = choices or Choices()
        self.unit = unit
        self.kernel = fused.kernel
        self.tensors = {t.name: t for t in self.kernel.tensors}
        self.statements = [s for s in self.kernel.statements if isinstance(s, Statement)]
        self.out: list[Step] = []

    def contraction(self, s: Statement) -> Contraction | None:
        """The contraction that ``s`` is, if its loops may stand in any order: no range of one
        depends on another, as in a triangle."""
        sequential = {p for p in s.order if isinstance(p, str)}
        return None if bounding_indices(s) - sequential else contraction_of(s, self.tensors)

    def sequential_loop(self, s: Statement, index: str) -> str:
        """The loop that a seq region shares under the name of its first statement."""
        for other in self.statements:
            if other.order[:1] == s.order[:1]:
                position = [p for p in s.order if isinstance(p, str)].index(index)
                return f"{other.name}.{[p for p in other.order if isinstance(p, str)][position]}"
        return f"{s.name}.{index}"

    def block_sums(self, s: Statement, reduced: Sequence[str]) -> list[str]:
        """Loops over the reduced indices; a long sum is cut into blocks that are summed apart."""
        loops = [f"{s.name}.{n}" for n in reduced]
        at, size = choose_block([constant_extent(s, n) for n in reduced])
        if at is None:
            return loops
        if size:
            extent = constant_extent(s, reduced[at]) or size
            sizes = [n for n in block_sizes(size) if 2 * n <= extent]
            size = self.choices.size(f"{s.name}.terms", sizes, size, "terms of a block of a sum")
            self.out.append(Tile(loop=loops[at], size=size))
            loops[at : at + 1] = [f"{loops[at]}.o", f"{loops[at]}.i"]
        self.out.append(BlockReduction(loop=loops[at]))
        return loops

    def parallel_loops(
        self, name: str, loops: Sequence[str], whole_of: Statement | None = None
    ) -> list[str]:
        """Which of ``loops`` (outermost first, of ``name``) threads share out: by default all, as
        one space; fewer make larger shares that are whole rows.

        Args: whole_of: the statement inside, if a vector of it takes no longer than finding its
            place in the space that threads share: inner loops then stay whole by default where
            there are shares enough without them.
        """
        counts = range(max(1, len(loops)))
        default = 0 if whole_of is None else self._whole_loops(whole_of, loops)
        meaning = "loops around, innermost first, that threads do not share out"
        whole = self.choices.size(f"{name}.whole", counts, default, meaning)
        return list(loops[: len(loops) - whole])

    def _whole_loops(self, s: Statement, loops: Sequence[str]) -> int:
        trips = [self._trips(s, loop) for loop in loops]
        instances = prod(extent_of(s, n) for n in s.domain.names)
        shares = MIN_SHARES if instances <= FEW_INSTANCES else MANY_SHARES
        count = next((k for k in range(1, len(loops)) if prod(trips[:k]) >= shares), len(loops))
        return len(loops) - count

    def _trips(self, s: Statement, loop: str) -> int:
        """Iterations of a loop over a constant extent; 1 if it has none."""
        _, index, *halves = loop_parts(loop, s.name)
        if not halves:
            return constant_extent(s, index) or 1
        parent, half = loop.rsplit(".", 1)
        size = next(t.size for t in self.out if isinstance(t, Tile) and t.loop == parent)
        whole = self._trips(s, parent)
        return min(size, whole) if half == "i" else -(-whole // size)

    def keep_temps(self, scope: str) -> None:
        """Keep temps of bounded size in ``scope`` instead of memory."""
        for t in self.kernel.tensors:
            if t.role == "temp" and self.is_bounded(t):
                self.out.append(ComputeAt(tensor=t.name, scope=scope))  # type: ignore[arg-type]

    def is_bounded(self, t: Tensor) -> bool:
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

    def annotate_tile(self, loops: list[str]) -> None:
        """Unroll the loops of a register tile; the innermost one becomes vectors."""
        for loop in loops[:-1]:
            self.out.append(Unroll(loop=loop))
        if loops:
            self.out.append(Vectorize(loop=loops[-1]))
