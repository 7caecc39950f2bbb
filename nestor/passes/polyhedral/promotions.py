"""Question 3 for promoted buffers: do buffer and memory agree when it matters?

A *promoted* buffer holds elements of a tensor for the length of its ``Alloc``'s execution; computes
of phase ``writeback`` put them back. ``buffers`` proves that whoever reads the buffer, writebacks
too, finds the element's latest value there. Here is asked about memory:

4. what a statement writes to the buffer is written back to memory later in the same execution;
5. what is read from memory within the execution was not written to the buffer before, unless it
   was written back in between.

Outside of the execution memory is the latest by rule 4. So each read sees what it would see if the
statements accessed memory alone: dependences and the state of reductions are asked about that nest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nestor.errors import IllegalSchedule, LegalityUnknown
from nestor.passes.polyhedral.isl_util import IN, OUT, Session, conflict, ordered_pairs
from nestor.passes.polyhedral.model import (
    TRANSFERS,
    Access,
    Model,
    Place,
    is_inside,
    shared_loops,
)
from nestor.passes.polyhedral.witness import (
    cell_text,
    instance_facts,
    instance_text,
    refuse,
    refuse_pair,
    sample_site,
    where_from,
)


def check_promotions(model: Model, session: Session) -> None:
    """Raises: ``IllegalSchedule`` (question ``buffer``), ``LegalityUnknown``."""
    for place in sorted(model.promoted, key=lambda p: p.uid):
        _PromotionCheck(model, session, place).check()


class _PromotionCheck:
    """The rules for one buffer."""

    def __init__(self, model: Model, session: Session, place: Place) -> None:
        self.model = model
        self.session = session
        self.place = place
        own = [a for a in model.accesses if a.place == place]
        moving = {a.site.uid for a in own if a.site.compute.phase == "writeback"}
        self.writes = _distinct(
            [a for a in own if a.is_write and a.site.compute.phase not in TRANSFERS]
        )
        self.writebacks = [a for a in own if a.site.uid in moving and not a.is_write]

    def check(self) -> None:
        """Both rules."""
        for write in self.writes:
            self._check_written_back(write)
        root = self.model.alias_root(self.place.holds)
        reads = [
            a
            for a in self.model.accesses
            if not a.is_write
            and not a.place.is_buffer
            and self.model.alias_root(a.tensor) == root
            and is_inside(a.site, self.place)
        ]
        for read in _distinct(reads):
            if read.tensor != self.place.holds:
                raise LegalityUnknown(f"'{read.tensor}' aliases a promoted tensor")
            for write in self.writes:
                self._check_memory(read, write)

    def _check_written_back(self, write: Access) -> None:
        """Rule 4."""
        relation = write.site.points.relation(write.element, write.predicate, write.free)
        open_points = relation.domain()
        for back in self.writebacks:
            same = self._pairs(write, back, in_cell=True)
            for pairs in self._ordered(same, write, back, ascending=True):
                open_points = open_points.subtract(pairs.domain())
                if self.session.is_empty(open_points):
                    return
        if not self.session.is_empty(open_points):
            raise self._refuse_lost(write, open_points)

    def _check_memory(self, read: Access, write: Access) -> None:
        """Rule 5."""
        meeting = self._pairs(read, write, in_cell=False)
        if self.session.is_empty(meeting):
            return
        for bad in self._ordered(meeting, read, write, ascending=False):
            for back in self.writebacks:
                if self.session.is_empty(bad):
                    break
                for pairs in self._repaired(read, back, write):
                    bad = bad.subtract(pairs)
            if not self.session.is_empty(bad):
                raise refuse_pair(
                    self.model,
                    "buffer",
                    "memory lags behind a promoted buffer",
                    read,
                    write,
                    bad,
                    "{a} reads {at} from memory, but {b} wrote it to the buffer "
                    f"'{self.place.name}', which is written back later",
                    "do not promote the tensor around a loop that reads the elements otherwise",
                    kind="stale",
                )

    def _repaired(self, read: Access, back: Access, write: Access) -> Iterator[Any]:
        """Pairs (read, write) with a writeback of the element after the write, before the read."""
        later = self._pairs(read, back, in_cell=False)
        earlier = self._pairs(back, write, in_cell=True)
        seconds = list(self._ordered(earlier, back, write, ascending=False))
        for first in self._ordered(later, read, back, ascending=False):
            for second in seconds:
                yield first.apply_range(second)

    # Relations

    def _pairs(self, a: Access, b: Access, *, in_cell: bool) -> Any:
        """Iterations within one execution that touch one element (``in_cell``: kept in one)."""
        left = (*a.element, *a.cell) if in_cell else a.element
        right = (*b.element, *b.cell) if in_cell else b.element
        self.session.pairs += 1
        rel = conflict(
            a.site.points.relation(left, a.predicate, a.free),
            b.site.points.relation(right, b.predicate, b.free),
        )
        for level in range(self.place.depth):
            rel = rel.equate(IN, level, OUT, level)
        return rel

    def _ordered(self, rel: Any, a: Access, b: Access, *, ascending: bool) -> Iterator[Any]:
        """The pairs in which ``a`` runs before ``b`` (``ascending``) or after it."""
        shared, static = shared_loops(a.site, b.site)
        at_equal = static == (-1 if ascending else 1)
        return ordered_pairs(rel, shared, self.place.depth, ascending=ascending, at_equal=at_equal)

    # Refusals

    def _refuse_lost(self, write: Access, points: Any) -> IllegalSchedule:
        env = sample_site(write.site, points)
        assert env is not None
        lines = [
            f"{instance_text(write.site, env)} writes {cell_text(write.tensor, write.element, env)}"
            f" to {cell_text(self.place.name, write.cell, env)}, which is not written back after",
            *where_from(self.model.statements.get(write.site.compute.statement)),
            "fix: write every changed element back after the loop, before the buffer ends",
        ]
        facts = {
            "a": instance_facts(write.site, env),
            "tensor": write.tensor,
            "element": tuple(e.evaluate(env) for e in write.element),
            "place": self.place.name,
            "cell": tuple(c.evaluate(env) for c in write.cell),
            "lost": True,
        }
        headline = "a promoted element is not written back"
        return refuse(self.model, "buffer", headline, lines, facts)


def _distinct(accesses: list[Access]) -> list[Access]:
    keyed = {(a.site.uid, a.place, a.cell, a.element, a.predicate): a for a in accesses}
    return list(keyed.values())
