"""Question 3: does every read of a buffer see the element that the Program names?

A buffer cell belongs to one execution of its ``Alloc``. For a read ``r`` that wants element ``x``:

1. a write of ``x`` to that cell comes before ``r``;
2. no write of another element to that cell comes between the last such write and ``r``
   (*clobbered*);
3. no write of ``x`` to anywhere else comes between them (*stale*).

Rule 2 is free where a cell holds one element only, rule 3 where each element is written once. An
execution of an ``Alloc`` is one stretch of time, and rule 1 finds a write in it: rule 3 looks at
writes within the same execution only. Copies and writebacks are reads of where they read from.
Order is that of sequential execution; races are asked about in ``races``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nestor.errors import IllegalSchedule, LegalityUnknown
from nestor.ir.affine import Affine
from nestor.passes.polyhedral.dependences import written_once
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


def check_buffers(model: Model, session: Session) -> None:
    """Raises: ``IllegalSchedule`` (question ``buffer``), ``LegalityUnknown``."""
    _check_mixtures(model)
    writers: dict[Place, list[Access]] = {}
    for access in model.accesses:
        if access.is_write and access.place.is_buffer:
            writers.setdefault(access.place, []).append(access)
    once: dict[str, bool] = {}
    one_element: dict[Place, bool] = {}
    seen: set[object] = set()
    for read in model.accesses:
        if read.is_write or not read.place.is_buffer:
            continue
        key = (read.site.uid, read.place, read.cell, read.element, read.predicate)
        if key in seen:
            continue
        seen.add(key)
        place, tensor = read.place, read.tensor
        if tensor not in once:
            once[tensor] = written_once(model, session, tensor)
        candidates = writers.get(place, [])
        check = _ReadCheck(model, session, read, candidates)
        check.check_written()
        if place not in one_element:
            one_element[place] = all(
                _holds_one_element(session, a, b)
                for k, a in enumerate(candidates)
                for b in candidates[: k + 1]
            )
        if not one_element[place]:
            check.check_not_clobbered()
        is_copied = any(w.site.compute.phase == "copy" for w in candidates)
        if not once[tensor] or (is_copied and _is_written(model, tensor)):
            check.check_not_stale()


def _is_written(model: Model, tensor: str) -> bool:
    root = model.alias_root(tensor)
    writes = (w for s in model.statements.values() for w in s.statement.writes)
    return any(model.alias_root(w.tensor) == root for w in writes)


def _check_mixtures(model: Model) -> None:
    """A temp is kept in memory or in buffers, not here so and there so; no aliases of buffers."""
    for access in model.accesses:
        if not access.is_write or not access.place.is_buffer:
            continue
        if access.site.compute.phase == "copy":
            continue
        root = model.alias_root(access.tensor)
        is_promoted = access.place in model.promoted
        for other in model.accesses:
            if model.alias_root(other.tensor) == root and (
                other.tensor != access.tensor or not (other.place.is_buffer or is_promoted)
            ):
                raise LegalityUnknown(
                    f"kernel '{model.kernel.name}': '{access.tensor}' is kept in "
                    f"'{access.place.name}' and in memory as '{other.tensor}'"
                )


def _holds_one_element(session: Session, a: Access, b: Access) -> bool:
    """True if equal cells of one ``Alloc`` execution hold equal elements."""
    if _has_one_origin(a, b):
        return True
    same_cell = _same(a, b, element=False)
    session.pairs += 1
    return session.is_subset(same_cell, _same(a, b, element=True))


def _has_one_origin(a: Access, b: Access) -> bool:
    """True if element minus cell is one vector for both, fixed within the ``Alloc``'s execution."""
    outside = {v.index for v in a.site.loops[: a.place.depth]}
    outside |= {s.name for s in a.site.points.symbols}

    def origin(x: Access) -> tuple[Affine, ...]:
        return tuple((e - c).simplify(x.site.points.ranges) for e, c in zip(x.element, x.cell))

    if len(a.element) != len(a.cell) or len(b.element) != len(b.cell):
        return False
    base = origin(a)
    return base == origin(b) and all(e.variables() <= outside for e in base)


def _same(a: Access, b: Access, *, element: bool) -> Any:
    """Pairs of iterations on one cell of one execution (and, with ``element``, of one element)."""
    left = a.cell + a.element if element else a.cell
    right = b.cell + b.element if element else b.cell
    rel = conflict(
        a.site.points.relation(left, a.predicate, a.free),
        b.site.points.relation(right, b.predicate, b.free),
    )
    for level in range(a.place.depth):
        rel = rel.equate(IN, level, OUT, level)
    return rel


def _before(rel: Any, a: Access, b: Access, depth: int) -> Iterator[Any]:
    """Pairs of ``rel`` in which ``b`` runs before ``a``, innermost level first.

    The writes of a compute come after its reads: pairs of one iteration are in no order.
    """
    shared, static = shared_loops(a.site, b.site)
    return ordered_pairs(rel, shared, depth, ascending=False, at_equal=static == 1)


class _ReadCheck:
    """The three rules for one read."""

    def __init__(
        self, model: Model, session: Session, read: Access, writers: Sequence[Access]
    ) -> None:
        self.model = model
        self.session = session
        self.read = read
        self.writers = writers
        # The state of a reduction that runs in its target is complete when its last change is
        # done; ``dependences`` orders those against readers. Here its start stands for the write.
        plain = [w for w in writers if not w.is_state]
        starts = [w for w in writers if w.is_state and w.site.compute.phase == "init"]
        self.right = plain or starts
        self.depth = read.place.depth

    def check_written(self) -> None:
        """Rule 1."""
        read = self.read
        relation = read.site.points.relation(read.element, read.predicate, read.free)
        open_points = relation.domain()
        for writer in self.right:
            self.session.pairs += 1
            rel = _same(read, writer, element=True)
            for pairs in _before(rel, read, writer, self.depth):
                open_points = open_points.subtract(pairs.domain())
                if self.session.is_empty(open_points):
                    return
        if not self.session.is_empty(open_points):
            raise self._refuse_unwritten(open_points)

    def check_not_clobbered(self) -> None:
        """Rule 2: a write of another element before the read is followed by a right one."""
        for other in self.writers:
            wrong = _same(self.read, other, element=False)
            wrong = wrong.subtract(_same(self.read, other, element=True))
            for pairs in _before(wrong, self.read, other, self.depth):
                self._check_repaired(pairs, other, "was overwritten by")

    def check_not_stale(self) -> None:
        """Rule 3: a write of the element elsewhere before the read is followed by a right one."""
        root = self.model.alias_root(self.read.tensor)
        for other in self.model.accesses:
            if not other.is_write or self.model.alias_root(other.tensor) != root:
                continue
            if other.site.compute.phase in TRANSFERS:
                continue
            if other.tensor != self.read.tensor:
                raise LegalityUnknown(f"'{other.tensor}' aliases a tensor with a staged copy")
            if not is_inside(other.site, self.read.place):
                continue
            is_here = other.place == self.read.place
            if is_here and _has_one_origin(self.read, other):
                continue
            self.session.pairs += 1
            moved = conflict(
                self.read.site.points.relation(
                    self.read.element, self.read.predicate, self.read.free
                ),
                other.site.points.relation(other.element, other.predicate, other.free),
            )
            for level in range(self.depth):
                moved = moved.equate(IN, level, OUT, level)
            if is_here:
                moved = moved.subtract(_same(self.read, other, element=True))
            for pairs in _before(moved, self.read, other, self.depth):
                self._check_repaired(pairs, other, "is stale after")

    def _check_repaired(self, bad: Any, other: Access, complaint: str) -> None:
        """Each pair (read, bad write) has a right write after the bad one and before the read."""
        for writer in self.right:
            if self.session.is_empty(bad):
                return
            right = _same(self.read, writer, element=True)
            everything = conflict(
                writer.site.points.relation((), (), writer.free),
                other.site.points.relation((), (), other.free),
            )
            for first in _before(right, self.read, writer, self.depth):
                for second in _before(everything, writer, other, 0):
                    bad = bad.subtract(first.apply_range(second))
        if not self.session.is_empty(bad):
            raise refuse_pair(
                self.model,
                "buffer",
                "a read of a buffer sees another element",
                self.read,
                other,
                bad,
                "{a} reads {at} from {cell}, which " + complaint + " {b}",
                "allocate the buffer inside the loop that reuses it, or copy again",
                kind="stale" if "stale" in complaint else "clobbered",
            )

    def _refuse_unwritten(self, points: Any) -> IllegalSchedule:
        read = self.read
        env = sample_site(read.site, points)
        assert env is not None
        lines = [
            f"{instance_text(read.site, env)} reads {cell_text(read.tensor, read.element, env)} "
            f"from {cell_text(read.place.name, read.cell, env)}, where it was not written before",
            *where_from(self.model.statements.get(read.site.compute.statement)),
            "fix: compute the producer before, inside the same execution of the buffer",
        ]
        facts = {
            "a": instance_facts(read.site, env),
            "tensor": read.tensor,
            "element": tuple(e.evaluate(env) for e in read.element),
            "place": read.place.name,
            "cell": tuple(c.evaluate(env) for c in read.cell),
        }
        return refuse(self.model, "buffer", "a buffer is read before it is written", lines, facts)
