"""Question 0: does every ``Compute`` compute what the Program says?

Expressions are compared node by node with the statement's, its indices replaced through the
compute's instance map. What is left to prove elsewhere is collected: which element every access
means and where it is kept (``Access``), and how reductions use their state (``StateUse``).
"""

from __future__ import annotations

from typing import NoReturn

from nestor.errors import IRError, LegalityUnknown
from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Const, Expr, Index, IndexExpr, Load, Var, children
from nestor.ir.loopnest import Store
from nestor.ir.program import Reduction, Tensor, Write
from nestor.passes.polyhedral.isl_util import Session, free_variable
from nestor.passes.polyhedral.model import (
    Access,
    AccessRole,
    Model,
    Place,
    Site,
    StatementInfo,
    StateRole,
    StateUse,
)
from nestor.passes.polyhedral.witness import instance_facts, instance_text, refuse, sample_site


def check_values(model: Model, session: Session) -> None:
    """Compare all computes; fill ``model.accesses`` and ``model.uses``.

    Raises: ``IllegalSchedule`` (question ``value``) where a compute differs from its statement.
    """
    for site in model.sites:
        try:
            _SiteCheck(model, session, site).check()
        except _NeverRunsError:
            continue


class _SiteCheck:
    """One ``Compute`` against its statement."""

    def __init__(self, model: Model, session: Session, site: Site):
        self.model = model
        self.session = session
        self.site = site
        self.compute = site.compute
        self.ranges = site.points.ranges
        self.instance: dict[str, Affine] = site.instance

    def check(self) -> None:
        """Dispatch on the phase."""
        phase = self.compute.phase
        if phase == "copy":
            self._check_copy()
            return
        if phase == "writeback":
            self._check_writeback()
            return
        info = self.model.statements.get(self.compute.statement)
        if info is None:
            raise IRError(f"the nest runs '{self.compute.statement}', which no statement is called")
        reduction = info.statement.reduction
        if (phase == "point") != (reduction is None):
            self._fail(f"phase '{phase}' does not fit the statement")
        self._check_instance(info)
        if reduction is None:
            self._check_point(info)
        elif phase == "update":
            self._check_update(info, reduction)
        elif phase == "init":
            self._check_init(info, reduction)
        elif phase == "merge":
            self._check_merge(info, reduction)
        else:
            self._check_final(info, reduction)

    # Phases

    def _check_instance(self, info: StatementInfo) -> None:
        full = self.compute.phase in ("point", "update")
        full = full or (self.compute.phase == "final" and info.is_scan)
        wanted = info.statement.domain.names if full else info.output_names
        if info.is_scattering and self.compute.phase != "update":
            self._fail("a reduction into data-dependent places has updates only")
        if not full:  # what a scan's init says about reduced indices has no meaning
            self.instance = {n: a for n, a in self.instance.items() if n not in info.reduced}
        if set(self.instance) != set(wanted) or len(self.compute.instance) < len(wanted):
            self._fail(f"its instance names {sorted(self.instance)} instead of {sorted(wanted)}")

    def _check_point(self, info: StatementInfo) -> None:
        s = info.statement
        self._count(len(s.writes))
        for write, store in zip(s.writes, self.compute.stores):
            self._write(write, store)
        for element, value in zip(s.elements, self.compute.values):
            self.match(element, value)

    def _check_update(self, info: StatementInfo, reduction: Reduction) -> None:
        if self.compute.monoid != reduction.monoid:
            self._fail("it combines with another monoid")
        self._count(len(reduction.monoid.identity))
        for c, store in enumerate(self.compute.stores):
            self._state(info, reduction, c, store.target, store.indices, "update")
        for element, value in zip(info.statement.elements, self.compute.values):
            self.match(element, value)

    def _check_init(self, info: StatementInfo, reduction: Reduction) -> None:
        identity = reduction.monoid.identity
        self._count(len(identity))
        is_into = [isinstance(v, Load) for v in self.compute.values]
        for c, (store, value) in enumerate(zip(self.compute.stores, self.compute.values)):
            if is_into[c] != is_into[0]:
                self._fail("its components start partly from the target")
            role: StateRole = "init_into" if is_into[c] else "init"
            self._state(info, reduction, c, store.target, store.indices, role)
            if not is_into[c]:
                self.match(identity[c], value)
                continue
            if not reduction.into:
                self._fail("it starts from the target's contents, not from the identity")
            write = info.statement.writes[c]
            tensor = self.model.tensors[write.tensor]
            wanted = Load(tensor=write.tensor, indices=write.indices, dtype=tensor.dtype)
            self.match(wanted, value)

    def _check_merge(self, info: StatementInfo, reduction: Reduction) -> None:
        if self.compute.monoid != reduction.monoid:
            self._fail("it combines with another monoid")
        if not reduction.monoid.commutative or info.is_scan:
            self._fail("it merges partial states of a reduction whose order is fixed")
        self._count(len(reduction.monoid.identity))
        for c, (store, value) in enumerate(zip(self.compute.stores, self.compute.values)):
            self._state(info, reduction, c, store.target, store.indices, "merge")
            if not isinstance(value, Load) or value.predicate:
                self._fail("it does not merge a stored state")
            self._state(info, reduction, c, value.tensor, value.indices, "partial", value)

    def _check_final(self, info: StatementInfo, reduction: Reduction) -> None:
        s = info.statement
        self._count(len(s.writes))
        for write, store in zip(s.writes, self.compute.stores):
            self._write(write, store)
        for final, value in zip(reduction.final, self.compute.values):
            self.match(final, value)

    def _check_copy(self) -> None:
        self._count(1)
        store, value = self.compute.stores[0], self.compute.values[0]
        place = self._place(store.target)
        if not place.is_buffer or place.holds not in self.model.tensors:
            self._fail(f"it copies into '{store.target}', which holds no tensor")
        if not isinstance(value, Load) or self._place(value.tensor).holds != place.holds:
            self._fail(f"it does not copy an element of '{place.holds}'")
        if value.predicate:
            raise LegalityUnknown("a staged copy under a predicate is not understood")
        rank = len(self.model.tensors[place.holds].shape)
        names = [f"d{k}" for k in range(rank)]
        if sorted(self.instance) != sorted(names):
            self._fail(f"its instance names {sorted(self.instance)} instead of {names}")
        element = tuple(self.instance[n] for n in names)
        source = self._place(value.tensor)
        cell = self._affines(value.indices)
        if not source.is_buffer:
            for wanted, got in zip(element, cell):
                self.same(wanted, got, (), f"it copies another element of '{place.holds}'")
        self._check_dtype(place, value)
        self._check_dtype(source, value)
        self._access("read", source, cell, place.holds, element)
        self._access("write", place, self._affines(store.indices), place.holds, element)

    def _check_writeback(self) -> None:
        self._count(1)
        store, value = self.compute.stores[0], self.compute.values[0]
        if not isinstance(value, Load) or value.predicate:
            self._fail("it writes back something else than an element of a buffer")
        source, target = self._place(value.tensor), self._place(store.target)
        tensor = self.model.tensors.get(source.holds)
        if not source.is_buffer or tensor is None or target.holds != tensor.name:
            self._fail(f"it writes back to '{store.target}', which '{value.tensor}' does not hold")
        if target.is_buffer:
            raise LegalityUnknown(f"'{source.name}' is written back to the buffer '{target.name}'")
        writes = (w.tensor for s in self.model.statements.values() for w in s.statement.writes)
        if tensor.name not in writes:
            self._fail(f"it writes back to '{tensor.name}', which no statement writes")
        names = [f"d{k}" for k in range(len(tensor.shape))]
        if sorted(self.instance) != sorted(names):
            self._fail(f"its instance names {sorted(self.instance)} instead of {names}")
        element = tuple(self.instance[n] for n in names)
        for wanted, got in zip(element, self._affines(store.indices)):
            self.same(wanted, got, (), f"it writes back to another element of '{tensor.name}'")
        self._check_dtype(source, value)
        self._check_dtype(target, value)
        cell = self._affines(value.indices)
        if len(cell) != len(source.shape):
            self._fail(f"'{source.name}' is indexed with {len(cell)} indices")
        self._access("read", source, cell, tensor.name, element)
        self._access("write", target, element, tensor.name, element)

    # Stores

    def _write(self, write: Write, store: Store) -> None:
        place = self._place(store.target)
        tensor = self.model.tensors[write.tensor]
        if place.holds != write.tensor:
            self._fail(f"it stores to '{store.target}' instead of '{write.tensor}'")
        self._check_lasting(place, tensor)
        if place.dtype is not tensor.dtype:
            self._fail(f"'{store.target}' does not have the type of '{write.tensor}'")
        cell, element, free = self._locate(place, write.tensor, write.indices, store.indices, ())
        self._access("write", place, cell, write.tensor, element, (), free)

    def _state(
        self,
        info: StatementInfo,
        reduction: Reduction,
        component: int,
        target: str,
        indices: tuple[IndexExpr, ...],
        role: StateRole,
        load: Load | None = None,
    ) -> None:
        """A use of component ``component``: in an accumulator, or where the result is written."""
        place = self._place(target)
        dtype = reduction.monoid.dtypes[component]
        if place.dtype is not dtype or (load is not None and load.dtype is not dtype):
            self._fail(f"'{target}' does not have the type of the reduction's state")
        point = tuple(self.instance[n] for n in info.output_names)
        full = all(n in self.instance for n in info.reduced)
        step = tuple(self.instance[n] for n in info.reduced) if full else ()
        if place.is_buffer and place.holds == f"{info.statement.name}#{component}":
            cell = self._affines(indices)
        else:
            cell, element, free = self._state_in_target(
                info, component, place, indices, load is None
            )
            if place in self.model.promoted:
                # A promoted buffer stands for the tensor: the state's own rules are about that,
                # and that the buffer has the right contents is asked like that of any read.
                if role not in ("init", "init_into"):
                    self._access("read", place, cell, place.holds, element, (), free)
                place, cell = self.model.places[place.holds], element
        use = StateUse(self.site, role, component, place, cell, point, step)
        self.model.uses.setdefault((info.statement.name, component), []).append(use)

    def _state_in_target(
        self,
        info: StatementInfo,
        component: int,
        place: Place,
        indices: tuple[IndexExpr, ...],
        is_store: bool,
    ) -> tuple[tuple[Affine, ...], tuple[Affine, ...], tuple[Affine, ...]]:
        """The state lives where the result goes. Returns cell, element and free extents."""
        s, reduction = info.statement, info.statement.reduction
        assert reduction is not None
        fits = len(s.writes) == len(reduction.monoid.identity)
        if not fits or place.holds != s.writes[component].tensor or info.is_scan:
            self._fail(f"it keeps its state in '{place.name}', which is no accumulator of it")
        write = s.writes[component]
        tensor = self.model.tensors[write.tensor]
        self._check_lasting(place, tensor)
        cell, element, free = self._locate(place, write.tensor, write.indices, indices, ())
        if is_store:
            self._access("write", place, cell, write.tensor, element, (), free, is_state=True)
        return cell, element, free

    def _check_lasting(self, place: Place, tensor: Tensor) -> None:
        """What is seen from outside does not stay in a buffer."""
        if place.is_buffer and tensor.role != "temp" and place not in self.model.promoted:
            self._fail(
                f"'{tensor.name}' is seen from outside but is written only to a buffer: "
                f"'{place.name}' is never written back"
            )

    # Expressions

    def match(self, wanted: Expr, got: Expr, when: tuple[Affine, ...] = ()) -> None:
        """``got`` computes ``wanted`` wherever ``when`` holds."""
        if isinstance(wanted, Var) and isinstance(got, Load):
            self._match_state(wanted, got)
            return
        if isinstance(wanted, Load):
            self._match_load(wanted, got, when)
            return
        if isinstance(wanted, Index):
            if not isinstance(got, Index) or got.dtype is not wanted.dtype:
                self._fail(f"it has {_name(got)} where the statement has an index")
            self.same(wanted.value.substitute(self.instance), got.value, when, "an index differs")
            return
        inner, given = children(wanted), children(got)
        if not _same_node(wanted, got) or len(inner) != len(given):
            self._fail(f"it has {_name(got)} where the statement has {_name(wanted)}")
        for x, y in zip(inner, given):
            self.match(x, y, when)

    def _match_state(self, wanted: Var, got: Load) -> None:
        info = self.model.statements[self.compute.statement]
        reduction = info.statement.reduction
        if self.compute.phase != "final" or reduction is None or got.predicate:
            self._fail(f"it reads '{got.tensor}' where the statement has {_name(wanted)}")
        component = int(wanted.name[1:])
        self._state(info, reduction, component, got.tensor, got.indices, "final", got)

    def _match_load(self, wanted: Load, got: Expr, when: tuple[Affine, ...]) -> None:
        predicate = tuple(p.substitute(self.instance) for p in wanted.predicate)
        if not isinstance(got, Load):
            if wanted.other is None or not self._never((*when, *predicate)):
                self._fail(f"it has {_name(got)} where the statement reads '{wanted.tensor}'")
            self.match(wanted.other, got, when)
            return
        place = self._place(got.tensor)
        if place.holds != wanted.tensor:
            self._fail(f"it reads '{got.tensor}' where the statement reads '{wanted.tensor}'")
        if got.dtype is not wanted.dtype or place.dtype is not got.dtype:
            self._fail(f"'{got.tensor}' does not have the type of '{wanted.tensor}'")
        self._same_predicate(predicate, got.predicate, when)
        if wanted.other is not None and got.other is not None:
            self.match(wanted.other, got.other, when)
        inside = (*when, *got.predicate)
        cell, element, free = self._locate(
            place, wanted.tensor, wanted.indices, got.indices, inside
        )
        self._access("read", place, cell, wanted.tensor, element, got.predicate, free)

    def _locate(
        self,
        place: Place,
        tensor: str,
        wanted: tuple[IndexExpr, ...],
        got: tuple[IndexExpr, ...],
        when: tuple[Affine, ...],
    ) -> tuple[tuple[Affine, ...], tuple[Affine, ...], tuple[Affine, ...]]:
        """Cell and element of an access, and the extents of their data-dependent indices."""
        if len(got) != len(place.shape):
            self._fail(f"'{place.name}' has {len(place.shape)} dimensions, not {len(got)}")
        element: list[Affine] = []
        cell = [g if isinstance(g, Affine) else None for g in got]
        free: list[Affine] = []
        for k, w in enumerate(wanted):
            if isinstance(w, Affine):
                element.append(w.substitute(self.instance))
                continue
            g = got[k] if k < len(got) else None
            if g is None or isinstance(g, Affine):
                self._fail(f"index {k} of '{place.name}' is not the statement's")
            self.match(w, g, when)
            cell[k] = free_variable(len(free))
            element.append(free_variable(len(free)))
            free.append(self.model.tensors[tensor].shape[k])
        if any(c is None for c in cell):
            self._fail(f"an index of '{place.name}' is read from a tensor; the statement's is not")
        known = tuple(c for c in cell if c is not None)
        if not place.is_buffer:
            for e, c in zip(element, known):
                self.same(e, c, when, f"it accesses another element of '{tensor}'")
        return known, tuple(element), tuple(free)

    def same(self, a: Affine, b: Affine, when: tuple[Affine, ...], complaint: str) -> None:
        """Prove ``a = b`` at every iteration where ``when`` holds."""
        if a == b:
            return
        difference = (a - b).simplify(self.ranges)
        if difference == affine(0):
            return
        if any(name.startswith("?") for name in difference.variables()):
            self._fail(complaint)
        for apart in (difference - 1, -difference - 1):
            points = self.site.points.domain((*when, apart))
            if not self.session.is_empty(points):
                self._fail(f"{complaint}: {b} instead of {a}", points)

    def _same_predicate(
        self, wanted: tuple[Affine, ...], got: tuple[Affine, ...], when: tuple[Affine, ...]
    ) -> None:
        if wanted == got or self._reduced(wanted) == self._reduced(got):
            return
        points = self.site.points
        left, right = points.domain((*when, *wanted)), points.domain((*when, *got))
        for apart in (left.subtract(right), right.subtract(left)):
            if not self.session.is_empty(apart):
                self._fail("the predicate of a load differs", apart)

    def _reduced(self, predicate: tuple[Affine, ...]) -> frozenset[Affine]:
        """The conditions that the loops' ranges leave open, simplified."""
        simple = (p.simplify(self.ranges) for p in predicate)
        lows = ((p, p.bounds(self.ranges)[0]) for p in simple)
        return frozenset(p for p, low in lows if low is None or low < 0)

    def _never(self, predicate: tuple[Affine, ...]) -> bool:
        return self.session.is_empty(self.site.points.domain(predicate))

    # Small things

    def _place(self, name: str) -> Place:
        place = self.site.buffers.get(name) or self.model.places.get(name)
        if place is None:
            raise IRError(f"'{self.compute.statement}' uses '{name}', which nothing allocates")
        return place

    def _affines(self, indices: tuple[IndexExpr, ...]) -> tuple[Affine, ...]:
        out = tuple(i for i in indices if isinstance(i, Affine))
        if len(out) != len(indices):
            self._fail("a buffer's index is read from a tensor")
        return out

    def _check_dtype(self, place: Place, load: Load) -> None:
        if place.dtype is not load.dtype:
            self._fail(f"'{place.name}' does not have the type of what is copied")

    def _access(
        self,
        role: AccessRole,
        place: Place,
        cell: tuple[Affine, ...],
        tensor: str,
        element: tuple[Affine, ...],
        predicate: tuple[Affine, ...] = (),
        free: tuple[Affine, ...] = (),
        *,
        is_state: bool = False,
    ) -> None:
        self.model.accesses.append(
            Access(
                site=self.site, role=role, place=place, cell=cell,
                tensor=tensor, element=element, predicate=predicate, free=free, is_state=is_state,
            )
        )  # fmt: skip

    def _count(self, wanted: int) -> None:
        if len(self.compute.stores) != wanted:
            self._fail(f"it stores {len(self.compute.stores)} values instead of {wanted}")
        for store in self.compute.stores:
            if len(store.indices) != len(self._place(store.target).shape):
                self._fail(f"'{store.target}' is indexed with {len(store.indices)} indices")

    def _fail(self, complaint: str, points: object = None) -> NoReturn:
        """Refuse, with the first iteration where it shows; a compute that never runs is fine."""
        site = self.site
        env = sample_site(site, points if points is not None else site.points.domain())
        if env is None:
            raise _NeverRunsError
        lines = [f"{instance_text(site, env)}: {complaint}"]
        witness = {"a": instance_facts(site, env), "complaint": complaint}
        raise refuse(self.model, "value", "a compute differs from its statement", lines, witness)


class _NeverRunsError(Exception):
    """The compute has no iterations: whatever it says is harmless."""


def _same_node(a: Expr, b: Expr) -> bool:
    if type(a) is not type(b) or a.dtype is not b.dtype:
        return False
    if isinstance(a, Const | Var):
        return a == b
    return getattr(a, "op", None) == getattr(b, "op", None) and getattr(
        a, "function", None
    ) == getattr(b, "function", None)


def _name(e: Expr) -> str:
    match e:
        case Const():
            return f"the constant {e.value}"
        case Load():
            return f"a read of '{e.tensor}'"
        case Var():
            return f"the state '{e.name}'"
        case _:
            return f"'{getattr(e, 'op', getattr(e, 'function', type(e).__name__.lower()))}'"
