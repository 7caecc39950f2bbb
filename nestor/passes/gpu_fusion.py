"""Partition a Program's statements into kernels for a GPU.

A kernel's programs do not talk to each other, and what one holds lies in registers, as blocks
without addresses. So a statement joins a group where it needs no more than what the same program
has made: at the same rows, element by element. A product takes what is done to its results, and
nothing else; its tiles leave no registers for more.
"""

from __future__ import annotations

from collections.abc import Iterator

from nestor.ir.affine import Affine
from nestor.ir.expr import Load, loads
from nestor.ir.program import Program, Statement
from nestor.passes.analysis import domain_volume
from nestor.passes.contraction import contraction_of
from nestor.passes.fusion import Group, Partition, Partitioner
from nestor.passes.knobs import Choices

WHOLE = 16384
"""Largest part of a row that a program holds at once [elements]."""


def partition_for_gpu(
    program: Program, *, l2_bytes: int, processors: int, choices: Choices | None = None
) -> Partition:
    """Group ``program``'s statements into kernels. Args: processors: that programs run on."""
    return _GpuPartitioner(program, l2_bytes, processors, choices or Choices()).run()


class _GpuPartitioner(Partitioner):
    def join(self, group: Group, statement: Statement) -> bool:
        """Add a statement if the programs of a group can run it, too."""
        if len(statement.order) > 1 or group.sequential:
            return super().join(group, statement)
        rows = self.common_rows(group, statement)
        if rows is None:
            return self.refuse(group, statement, "their accesses share no index")
        reason = self._obstacle(group, statement, rows)
        if reason is not None:
            return self.refuse(group, statement, reason)
        group.add(statement, rows)
        return True

    def _obstacle(self, group: Group, statement: Statement, rows: list[str | None]) -> str | None:
        """Why a group's programs cannot or should not run a statement; None: they should."""
        if contraction_of(statement, self.tensors) is not None:
            return "a product starts a kernel of its own"
        for load in _loads(statement):
            if self.in_group(group, load.tensor) and not _is_elementwise(load):
                return f"'{load.tensor}' is read at other places than it is made at"
        writers = [s for s in group.statements if any(self._overlap(s, statement))]
        if writers:
            return "both write parts of one tensor"
        full = all(r is not None for r in rows)
        is_alike = full and len(rows) == len(statement.domain.names)
        if any(contraction_of(s, self.tensors) is not None for s in group.statements):
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
        return self.row_reason(group, statement, rows)

    def _overlap(self, a: Statement, b: Statement) -> Iterator[bool]:
        """Whether both write one tensor, for each that they write."""
        mine = {self.root[w.tensor] for w in a.writes}
        yield any(self.root[w.tensor] in mine for w in b.writes)


def is_online(s: Statement) -> bool:
    """Whether it is an attention's sum, with the softmax that runs along with it."""
    return s.reduction is not None and s.reduction.monoid.name == "online_softmax"


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
