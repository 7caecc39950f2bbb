"""Confirm a refusal: run kernel and nest by enumeration and look its witness up."""

from __future__ import annotations

from typing import Any

from nestor.errors import IllegalSchedule
from nestor.ir.affine import affine
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
        wanted = self.facts[who]
        for at, event in enumerate(self.run.m.events):
            same = event.statement == wanted["statement"] and event.phase == wanted["phase"]
            same = same and event.instance == wanted["instance"]
            if same and event.loops == wanted["loops"]:
                return at
        raise AssertionError(f"{wanted} never runs")

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
        at = self.position("a")
        if "kind" in self.facts:
            assert self.position("b") < at

    def dependence(self) -> None:
        """Order: the Program runs a before b, the nest does not. Race: two iterations, one cell."""
        if self.facts["kind"] == "unordered":
            assert self.facts["a"]["instance"] != self.facts["b"]["instance"]
            return
        a, b = self.position("a"), self.position("b")
        if self.facts["kind"] == "order":
            assert a >= b
            assert self._order("a") < self._order("b")
            return
        loops = [e.loops for e in (self.run.m.events[a], self.run.m.events[b])]
        assert loops[0][self.facts["loop"]] != loops[1][self.facts["loop"]]
        left, right = self.run.m.events[a], self.run.m.events[b]
        met = {*left.writes} & {*right.reads, *right.writes}
        met |= {*right.writes} & {*left.reads, *left.writes}
        assert met or self.has_data_index()

    def has_data_index(self) -> bool:
        """Gathers, scatters and aliases are treated as touching everything."""
        if any(t.alias_of is not None for t in self.kernel.tensors):
            return True
        return any(
            not isinstance(i, type(affine(0)))
            for s in self.kernel.statements
            if isinstance(s, Statement)
            for w in s.writes
            for i in w.indices
        ) or any(t.name == "ids" for t in self.kernel.tensors)

    def _order(self, who: str) -> tuple[int, ...]:
        s = self._statement(who)
        instance = self.facts[who]["instance"]
        key = tuple(x if isinstance(x, int) else instance[x] for x in s.order)
        if s.scatter == "last":
            key += tuple(instance[n] for n in s.domain.names)
        return key
