"""Partition a Program's statements into kernels for a GPU.

A kernel's programs do not talk to each other, and what one holds lies in registers, as blocks
without addresses. So a statement joins a group where it needs no more than what the same program
has made: at the same rows, element by element. A product takes what is done to its results, and
nothing else; its tiles leave no registers for more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine
from nestor.ir.expr import Load, loads
from nestor.ir.program import Extern, Program, Statement
from nestor.passes.analysis import domain_volume
from nestor.passes.contraction import contraction_of
from nestor.passes.fusion import FusedKernel, Group, Partitioner
from nestor.passes.host_loops import HostLoop, take_out_loops
from nestor.passes.knobs import Choices
from nestor.passes.online_attention import is_online
from nestor.passes.statement_facts import free_indices, is_constant

WHOLE = 16384
"""Largest part of a row that a program holds at once [elements]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPartition:
    """Kernels in running order.

    Attributes: loops: what runs again and again, by its first and one past its last part.
        main: the Program that the kernels are of, without those loops. refused: as of a partition.
    """

    main: Program
    parts: list[FusedKernel | Extern]
    loops: tuple[tuple[HostLoop, int, int], ...]
    refused: list[str]


def partition_for_gpu(
    program: Program, *, l2_bytes: int, processors: int, choices: Choices | None = None
) -> GpuPartition:
    """Group ``program``'s statements into kernels.

    Args: processors: that programs run on.
    Raises: ``Unsupported`` for sequential loops within each other.
    """
    main, loops = take_out_loops(program)
    partitioner = _GpuPartitioner(main, l2_bytes, processors, choices or Choices(), loops)
    found = partitioner.run()
    parts = list(found.parts)
    places = []
    for loop in loops:
        parts, first, last = _gathered(parts, loop)
        places.append((loop, first, last))
    return GpuPartition(main=main, parts=parts, loops=tuple(places), refused=found.refused)


def _gathered(
    parts: list[FusedKernel | Extern], loop: HostLoop
) -> tuple[list[FusedKernel | Extern], int, int]:
    """The parts of a loop side by side, what stood between them before; where they begin and end.

    What stands between was there before the loop in the Program, so none of it needs the loop.
    """
    inside = [p for p in parts if _runs_in(p, loop)]
    positions = [n for n, p in enumerate(parts) if _runs_in(p, loop)]
    first, last = positions[0], positions[-1]
    between = [p for p in parts[first:last] if not _runs_in(p, loop)]
    begin = first + len(between)
    moved = [*parts[:first], *between, *inside, *parts[last + 1 :]]
    return moved, begin, begin + len(inside)


def _runs_in(part: FusedKernel | Extern, loop: HostLoop) -> bool:
    return isinstance(part, FusedKernel) and part.kernel.statements[0].name in loop.statements


class _GpuPartitioner(Partitioner):
    def __init__(
        self,
        program: Program,
        l2_bytes: int,
        cores: int,
        choices: Choices,
        loops: Sequence[HostLoop],
    ):
        super().__init__(program, l2_bytes, cores, choices)
        self._loop_of = {name: loop for loop in loops for name in loop.statements}

    def join(self, group: Group, statement: Statement) -> bool:
        """Add a statement if the programs of a group can run it, too."""
        loop = self._loop_of.get(statement.name)
        if loop is not self._loop_of.get(group.statements[0].name):
            return self.refuse(group, statement, "they are not steps of the same loop")
        rows = self.common_rows(group, statement)
        if rows is None:
            return self.refuse(group, statement, "their accesses share no index")
        reason = self._obstacle(group, statement, rows)
        if reason is not None:
            return self.refuse(group, statement, reason)
        group.add(statement, rows)
        return True

    def make_kernel(self, group: Group, name: str) -> Program:
        """See ``Partitioner``; what a step leaves to the next one is no temp."""
        kernel = super().make_kernel(group, name)
        loop = self._loop_of.get(group.statements[0].name)
        if loop is None:
            return kernel
        return replace(
            kernel,
            tensors=tuple(
                replace(t, role="inout")
                if t.role == "temp" and _is_carried(group.statements, t.name, loop)
                else t
                for t in kernel.tensors
            ),
        )

    def _obstacle(self, group: Group, statement: Statement, rows: list[str | None]) -> str | None:
        """Why a group's programs cannot or should not run a statement; None: they should."""
        if contraction_of(statement, self.tensors, takes_bytes=True) is not None:
            return "a product starts a kernel of its own"
        if any(scatters(s) for s in group.statements):
            return "a scatter has a kernel of its own"
        for load in _loads(statement):
            if self.in_group(group, load.tensor) and not _is_elementwise(load):
                return f"'{load.tensor}' is read at other places than it is made at"
        if is_online(statement):
            values = {x.tensor for e in statement.elements[1:] for x in loads(e)}
            if any(self.in_group(group, name) for name in values):
                return "what a softmax weighs lies in memory"
        written = {self.root[w.tensor] for w in statement.writes}
        for s in group.statements:
            if any(self.root[w.tensor] in written for w in s.writes):
                return "both write parts of one tensor"
            if any(self.root[x.tensor] in written for x in _loads(s)):
                return "other programs may still read what it overwrites"
        full = all(r is not None for r in rows)
        is_alike = full and len(rows) == len(statement.domain.names)
        if any(
            contraction_of(s, self.tensors, takes_bytes=True) is not None for s in group.statements
        ):
            if is_alike or is_online(statement):
                return None
            return "a product's tile is no whole row"
        if is_alike and statement.reduction is None:
            return None
        keep = [p for p, r in enumerate(rows) if r is not None]
        for s in (*group.statements, statement):
            places = rows if s is statement else group.shared[s.name]
            inner = frozenset(s.domain.names) - {places[p] for p in keep}
            if domain_volume(s.domain, inner) > WHOLE:
                return f"a row of '{s.name}' has {domain_volume(s.domain, inner)} elements"
            if (unknown := self._unbounded(s, (*group.statements, statement), inner)) is not None:
                return f"the length of '{s.name}' along '{unknown}' is known only when it runs"
        return self.row_reason(group, statement, rows)

    def _unbounded(
        self, s: Statement, kernel: Sequence[Statement], inner: frozenset[str]
    ) -> str | None:
        """An index of a row along which a program would have to hold more than it can know."""
        made = {self.root[w.tensor] for k in kernel for w in k.writes}
        read = {self.root[x.tensor] for k in kernel for x in _loads(k)}
        held = frozenset(free_indices(s)) if s.reduction is not None else frozenset[str]()
        places = [x.indices for x in _loads(s) if self.root[x.tensor] in made]
        places += [w.indices for w in s.writes if self.root[w.tensor] in read]
        for index in (i for place in places for i in place):
            held |= index.variables() if isinstance(index, Affine) else frozenset()
        return next((n for n in sorted(held & inner) if not is_constant(s, n)), None)


def scatters(s: Statement) -> bool:
    """Whether instances may write to one place that only their data tells."""
    return s.scatter is not None or (s.reduction is not None and s.reduction.into)


def _is_carried(statements: Sequence[Statement], tensor: str, loop: HostLoop) -> bool:
    """Whether a step of a loop may read of a tensor what an earlier step wrote."""
    for s in statements:
        writes = [w for w in s.writes if w.tensor == tensor]
        places = [x.indices for x in s.loads if x.tensor == tensor]
        places += [w.indices for w in writes]
        for i in (i for place in places for i in place):
            if not isinstance(i, Affine) or loop.symbol in i.variables():
                return True
        if writes and any(loop.symbol in c.variables() for c in s.domain.constraints):
            return True
    first = next(s for s in statements if _uses(s, tensor))
    return any(x.tensor == tensor for x in first.loads)


def _uses(s: Statement, tensor: str) -> bool:
    return tensor in {*(x.tensor for x in s.loads), *(w.tensor for w in s.writes)}


def _loads(s: Statement) -> Iterator[Load]:
    final = s.reduction.final if s.reduction else ()
    return (load for e in (*s.elements, *final) for load in loads(e))


def _is_elementwise(load: Load) -> bool:
    """Whether each index is a plain one, or a constant."""
    for index in load.indices:
        if not isinstance(index, Affine):
            return False
        if index.terms and (len(index.terms) > 1 or index.const or index.terms[0][1] != 1):
            return False
        if any(not isinstance(atom, str) for atom, _ in index.terms):
            return False
    return True
