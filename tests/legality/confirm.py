"""Confirm a refusal: run kernel and nest by enumeration and look its witness up."""

from __future__ import annotations

import itertools
from typing import Any

from nestor.errors import IllegalSchedule
from nestor.ir.affine import Affine
from nestor.ir.expr import loads
from nestor.ir.loopnest import LoopNest
from nestor.ir.program import Program, Statement
from tests.legality import oracle


def confirm(kernel: Program, nest: LoopNest, refusal: IllegalSchedule) -> None:
    """Fail unless what the witness says is what happens."""
    facts: dict[str, Any] = refusal.witness
    symbols = dict(facts.get("a", {}).get("symbols", {}))
    try:
        run = oracle.NestRun(kernel, nest, symbols, strict=False)
    except KeyError:
        return  # the nest uses an index that is not in scope: it cannot run at all
    check = _Confirmation(kernel, run, facts, symbols)
    getattr(check, refusal.question)()


class _Confirmation:
    def __init__(
        self, kernel: Program, run: oracle.NestRun, facts: dict[str, Any], symbols: dict[str, int]
    ):
        self.kernel = kernel
        self.run = run
        self.facts = facts
        self.symbols = symbols

    def position(self, who: str) -> int:
        """When the instance named by the witness runs: it must."""
        return self.positions(who)[0]

    def positions(self, who: str) -> list[int]:
        """The same for each time: computes that stand in the nest twice look alike."""
        wanted = self.facts[who]
        found = []
        for at, event in enumerate(self.run.m.events):
            same = event.statement == wanted["statement"] and event.phase == wanted["phase"]
            same = same and event.instance == wanted["instance"]
            if same and event.loops == wanted["loops"]:
                found.append(at)
        assert found, f"{wanted} never runs"
        return found

    def in_domain(self, who: str) -> bool:
        wanted = self.facts[who]
        s = self._statement(who)
        phase = wanted.get("phase", "point")
        full = phase in ("point", "update") or (s.reduction is not None and s.reduction.scan)
        domain = s.domain if full else oracle.output_domain(s)
        return wanted["instance"] in list(oracle.domain_points(domain, self.symbols))

    def _statement(self, who: str) -> Statement:
        found = [s for s in self.kernel.statements if s.name == self.facts[who]["statement"]]
        assert isinstance(found[0], Statement)
        return found[0]

    def value(self) -> None:
        """The compute that differs does run."""
        self.position("a")

    def coverage(self) -> None:
        """Missing: in the domain, never run. Outside: run, not in it. Twice: run at two places."""
        a = self.facts["a"]
        if self.facts["kind"] == "missing":
            assert self.in_domain("a")
            key = (a["statement"], a["phase"], tuple(sorted(a["instance"].items())))
            assert self.run.counts[key] == 0
        elif self.facts["kind"] == "outside":
            self.position("a")
            assert not self.in_domain("a")
        else:
            assert a["instance"] == self.facts["b"]["instance"]
            self.position("b")
            key = (a["statement"], a["phase"], tuple(sorted(a["instance"].items())))
            assert self.run.counts[key] > 1

    def bounds(self) -> None:
        """The index is outside, and the access happens."""
        assert not 0 <= self.facts["index"] < self.facts["extent"]
        if "loops" in self.facts["a"]:
            self.position("a")
        else:
            assert self.in_domain("a")

    def buffer(self) -> None:
        """The read happens, and so does the write that spoils it, before."""
        last = self.positions("a")[-1]
        if "kind" in self.facts:
            assert self.position("b") < last

    def dependence(self) -> None:
        """Order: the Program runs a before b, the nest does not. Race: two iterations, one cell."""
        if self.facts["kind"] == "unordered":
            assert self.facts["a"]["instance"] != self.facts["b"]["instance"]
            return
        a, b = self.position("a"), self.position("b")
        if self.facts["kind"] == "order":
            assert a >= b
            left, right = self._order("a"), self._order("b")
            both = min(len(left), len(right))
            assert left[:both] <= right[:both]
            assert left[:both] != right[:both] or not self._is_whole("a") or not self._is_whole("b")
            left_cells, right_cells = self._elements("a"), self._elements("b")
            assert left_cells & right_cells or self.has_data_index()
            return
        loops = [e.loops for e in (self.run.m.events[a], self.run.m.events[b])]
        assert loops[0][self.facts["loop"]] != loops[1][self.facts["loop"]]
        left, right = self.run.m.events[a], self.run.m.events[b]
        met = {*left.writes} & {*right.reads, *right.writes}
        met |= {*right.writes} & {*left.reads, *left.writes}
        assert met or self.has_data_index()

    def _elements(self, who: str) -> set[oracle.Cell]:
        """What the Program's instance reads and writes, as far as its indices are in scope."""
        s = self._statement(who)
        env = {**self.facts[who]["instance"], **self.symbols}
        machine = oracle.Machine(self.kernel, self.symbols, strict=False)
        accesses = [(w.tensor, w.indices, ()) for w in s.writes]
        final = s.reduction.final if s.reduction is not None else ()
        for e in (*s.elements, *final):
            accesses += [(x.tensor, x.indices, x.predicate) for x in loads(e)]
        return {
            machine.cell(tensor, machine.index(indices, env))
            for tensor, indices, predicate in accesses
            if all(isinstance(i, Affine) and i.variables() <= env.keys() for i in indices)
            and all(p.variables() <= env.keys() and p.evaluate(env) >= 0 for p in predicate)
        }

    def has_data_index(self) -> bool:
        """Gathers, scatters and aliases are treated as touching everything."""
        if any(t.alias_of is not None for t in self.kernel.tensors):
            return True
        statements = [s for s in self.kernel.statements if isinstance(s, Statement)]
        indices = [i for s in statements for w in s.writes for i in w.indices]
        for s in statements:
            final = s.reduction.final if s.reduction is not None else ()
            indices += [i for e in (*s.elements, *final) for x in loads(e) for i in x.indices]
        return any(not isinstance(i, Affine) for i in indices)

    def _is_whole(self, who: str) -> bool:
        """Whether the witness is one instance; a merge stands for several."""
        return {x for x in self._statement(who).order if isinstance(x, str)} <= self.facts[who][
            "instance"
        ].keys()

    def _order(self, who: str) -> tuple[int, ...]:
        s = self._statement(who)
        instance = self.facts[who]["instance"]
        known = itertools.takewhile(lambda x: isinstance(x, int) or x in instance, s.order)
        key = tuple(x if isinstance(x, int) else instance[x] for x in known)
        if s.scatter == "last":
            key += tuple(instance[n] for n in s.domain.names)
        return key
