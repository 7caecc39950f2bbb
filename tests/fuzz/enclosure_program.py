"""Run a Program on enclosures: which results are right, for every cell of every tensor.

A third reading of the semantics, independent of both interpreters: all instances of a statement are
listed as points, evaluated at once, and grouped by what they write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nestor.ir import numeric
from nestor.ir.affine import Affine
from nestor.ir.expr import (
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Index,
    IndexExpr,
    Load,
    Select,
    Unary,
    Var,
)
from nestor.ir.program import Program, Reduction, Statement
from nestor.ir.types import DType
from tests.fuzz import enclosure as enc
from tests.fuzz.enclosure import Array, Enclosure
from tests.fuzz.enclosure_reduce import Segments, fold, reduce_states

GIVEN = ("input", "inout", "parameter", "constant", "state")
Env = dict[str, Array]


class UndefinedRead(Exception):
    """A statement reads a cell that nothing wrote: the Program has no meaning."""


@dataclass(slots=True)
class Memory:
    """One tensor's cells, flat, and which of them hold a value."""

    cells: Enclosure
    defined: Array


class EnclosureRun:
    """Memory while a Program runs.

    Args: inputs: as for ``run_program``. symbols: all values.
    """

    def __init__(
        self, program: Program, inputs: Mapping[str, np.ndarray], symbols: Mapping[str, int]
    ) -> None:
        self.program, self.symbols = program, dict(symbols)
        self.shapes = {
            t.name: tuple(int(s.evaluate(self.symbols)) for s in t.shape) for t in program.tensors
        }
        self.memory: dict[str, Memory] = {}
        aliases = {t.name: t.alias_of for t in program.tensors}
        for t in program.tensors:
            if t.alias_of is None:
                given = t.role in GIVEN
                shape = self.shapes[t.name]
                data = inputs[t.name] if given else numeric.garbage(shape, t.dtype)
                cells = enc.exactly(data, t.dtype)
                self.memory[t.name] = Memory(cells, np.full(cells.size, given))
        for t in program.tensors:
            root = t.name
            while aliases[root] is not None:
                root = str(aliases[root])
            self.memory[t.name] = self.memory[root]

    def run(self) -> dict[str, Memory]:
        """Run everything; returns the memory of every tensor."""
        with numeric.quiet():
            self._ordered(list(self.program.statements), 0, {})
        return self.memory

    def _ordered(self, statements: list[Any], depth: int, fixed: dict[str, dict[str, int]]) -> None:
        for position in sorted({s.order[depth] for s in statements}):
            members = [s for s in statements if s.order[depth] == position]
            if len(members[0].order) == depth + 1:
                for s in members:
                    _StatementRun(self, s, fixed.get(s.name, {})).run()
                continue
            values = {
                s.name: _values(s, s.order[depth + 1], fixed.get(s.name, {}), self.symbols)
                for s in members
            }
            for value in sorted(set().union(*values.values())):
                inside = [s for s in members if value in values[s.name]]
                known = {
                    s.name: {**fixed.get(s.name, {}), s.order[depth + 1]: value} for s in inside
                }
                self._ordered(inside, depth + 2, known)


def _values(
    s: Statement, index: str, fixed: Mapping[str, int], symbols: Mapping[str, int]
) -> set[int]:
    points = list_points(s.domain.ranges, s.domain.constraints, fixed, symbols)
    return set(points[index].tolist())


def list_points(
    ranges: Any, constraints: Any, fixed: Mapping[str, int], symbols: Mapping[str, int]
) -> Env:
    """Every point of a domain, in lexicographic order: one array an index."""
    env: Env = {}
    count = 1
    for r in ranges:
        scope = {**symbols, **env}
        low = np.broadcast_to(np.asarray(r.lower.evaluate(scope), np.int64), (count,))
        high = np.broadcast_to(np.asarray(r.upper.evaluate(scope), np.int64), (count,))
        lengths = np.maximum(high - low, 0)
        parent = np.repeat(np.arange(count), lengths)
        first = np.cumsum(lengths) - lengths
        value = np.arange(int(lengths.sum())) - first[parent] + low[parent]
        env = {n: v[parent] for n, v in env.items()}
        env[r.name] = value
        if r.name in fixed:
            keep = value == fixed[r.name]
            env = {n: v[keep] for n, v in env.items()}
        count = int(env[r.name].size)
    scope = {**symbols, **env}
    keep = np.ones(count, np.bool_)
    for c in constraints:
        keep &= np.broadcast_to(np.asarray(c.evaluate(scope)) >= 0, (count,))
    out = {n: v[keep] for n, v in env.items()}
    out[""] = np.arange(int(keep.sum()))  # the number of points, for domains without indices
    return out


class _StatementRun:
    def __init__(self, run: EnclosureRun, statement: Statement, fixed: Mapping[str, int]) -> None:
        self.memory, self.shapes, self.symbols = run.memory, run.shapes, run.symbols
        self.s, self.fixed = statement, fixed

    def run(self) -> None:
        """Evaluate all instances, then write."""
        s = self.s
        env = list_points(s.domain.ranges, s.domain.constraints, self.fixed, self.symbols)
        if s.reduction is None:
            values = [self.value(e, env) for e in s.elements]
            self._write(env, values)
        elif self._is_scattering(s.reduction):
            self._scatter(s.reduction, env)
        else:
            self._reduce(s.reduction, env)

    # Writing

    def _write(self, env: Env, values: list[Enclosure]) -> None:
        """In order of instances: where two write one cell, the last wins."""
        for w, value in zip(self.s.writes, values, strict=True):
            at, _ = self.position(w.tensor, w.indices, env)
            memory = self.memory[w.tensor]
            last = np.full(memory.cells.size, -1)
            np.maximum.at(last, at, np.arange(at.size))
            cells = np.nonzero(last >= 0)[0]
            memory.cells.put(cells, value.take(last[cells]))
            memory.defined[cells] = True

    def _is_scattering(self, r: Reduction) -> bool:
        reduced = set(r.indices)
        return r.into and any(
            not isinstance(i, Affine) or bool(i.variables() & reduced)
            for w in self.s.writes
            for i in w.indices
        )

    def _scatter(self, r: Reduction, env: Env) -> None:
        elements = [self.value(e, env) for e in self.s.elements]
        w = self.s.writes[0]
        at, _ = self.position(w.tensor, w.indices, env)
        memory = self.memory[w.tensor]
        cells = np.unique(at)
        keys = np.concatenate([cells, at])
        joined = [join(memory.cells.take(cells), e) for e in elements]
        states = self._states(r, joined, keys, cells.size)
        memory.cells.put(cells, states[0])
        memory.defined[cells] = True

    def _states(
        self, r: Reduction, elements: list[Enclosure], keys: Array, points: int
    ) -> list[Enclosure]:
        order = np.argsort(keys, kind="stable")
        _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
        assert counts.size == points
        at = Segments(starts, counts)
        ordered = [e.take(order) for e in elements]
        combine = self._combiner(r)
        if points == 0:
            return [e.take(np.zeros(0, np.int64)) for e in elements]
        if not r.monoid.commutative:
            return fold(ordered, at, combine)
        return reduce_states(r.monoid, ordered, at, combine)

    def _combiner(self, r: Reduction) -> Any:
        def combine(left: list[Enclosure], right: list[Enclosure]) -> list[Enclosure]:
            names = {f"a{c}": v for c, v in enumerate(left)}
            names.update({f"b{c}": v for c, v in enumerate(right)})
            size = np.arange(left[0].size)
            return [self.value(e, {"": size}, names) for e in r.monoid.combine]

        return combine

    # Reductions and scans

    def _reduce(self, r: Reduction, env: Env) -> None:
        reduced = set(r.indices)
        outer = [x for x in self.s.domain.ranges if x.name not in reduced]
        names = [x.name for x in outer]
        known = {*names, *self.symbols}
        own = [c for c in self.s.domain.constraints if c.variables() <= known]
        points = list_points(outer, own, self.fixed, self.symbols)
        count = points[""].size
        lookup = {key: k for k, key in enumerate(_rows(points, names))}
        ids = np.array([lookup[key] for key in _rows(env, names)], np.int64)
        sort = np.lexsort([*(env[n] for n in reversed(r.indices)), ids])
        env, ids = {n: v[sort] for n, v in env.items()}, ids[sort]
        env[""] = np.arange(ids.size)
        elements = [self.value(e, env) for e in self.s.elements]
        start = self._start(r, points)
        if r.scan:
            self._scan(r, env, ids, elements, start)
            return
        # Every point begins with its start; the identity may join any number of times.
        keys = np.concatenate([np.arange(count), ids])
        if r.into:
            states = self._states(r, [join(a, e) for a, e in zip(start, elements)], keys, count)
        else:
            states = start
            filled = np.unique(ids)
            for state, new in zip(states, self._states(r, elements, ids, filled.size)):
                state.put(filled, new)
        self._finish(r, states, points)

    def _start(self, r: Reduction, points: Env) -> list[Enclosure]:
        if r.into:
            return [self.load(w.tensor, w.indices, points) for w in self.s.writes]
        return [self.value(c, points) for c in r.monoid.identity]

    def _scan(
        self, r: Reduction, env: Env, ids: Array, elements: list[Enclosure], start: list[Enclosure]
    ) -> None:
        """One segment for each prefix."""
        positions = np.arange(ids.size)
        first = np.searchsorted(ids, ids, side="left")
        lengths = positions - first + 1
        owner = np.repeat(positions, lengths)
        offset = np.arange(int(lengths.sum())) - (np.cumsum(lengths) - lengths)[owner]
        source = first[owner] + offset
        parts = [e.take(source) for e in elements]
        keys = owner
        if r.into:
            parts = [join(a.take(ids), p) for a, p in zip(start, parts)]
            keys = np.concatenate([positions, owner])
        self._finish(r, self._states(r, parts, keys, ids.size), env)

    def _finish(self, r: Reduction, states: list[Enclosure], env: Env) -> None:
        names = {f"s{c}": v for c, v in enumerate(states)}
        self._write(env, [self.value(f, env, names) for f in r.final])

    # Expressions

    def value(self, e: Expr, env: Env, scalars: Mapping[str, Enclosure] | None = None) -> Enclosure:
        """The enclosure of ``e`` at every point of ``env``."""
        size = env[""].size
        match e:
            case Const():
                return enc.exactly(
                    np.broadcast_to(numeric.constant(e.value, e.dtype), (size,)), e.dtype
                )
            case Index():
                return enc.cast(enc.exactly(self.affine(e.value, env), DType.i64), e.dtype)
            case Var():
                assert scalars is not None
                return scalars[e.name]
            case Load():
                other = None if e.other is None else self.value(e.other, env, scalars)
                return self.load(e.tensor, e.indices, env, e.predicate, other)
            case Unary():
                return enc.unary(e.op, self.value(e.x, env, scalars))
            case Binary():
                return enc.binary(
                    e.op, self.value(e.a, env, scalars), self.value(e.b, env, scalars)
                )
            case Select():
                parts = [self.value(x, env, scalars) for x in (e.condition, e.a, e.b)]
                return enc.where(*parts)
            case Cast():
                return enc.cast(self.value(e.x, env, scalars), e.dtype)
            case Call(function="fma"):
                return enc.fma(*(self.value(x, env, scalars) for x in e.args))
            case Call():
                args = [self.value(x, env, scalars) for x in e.args]
                unsure = np.logical_or.reduce([x.open for x in args])
                out = enc.exactly(
                    np.asarray(numeric.call(e.function, tuple(x.lo for x in args), e.dtype)),
                    e.dtype,
                )
                return enc.where(
                    enc.known(unsure, DType.bool, np.zeros(size, np.bool_)),
                    enc.anything(e.dtype, size),
                    out,
                )

    def affine(self, a: Affine, env: Env) -> Array:
        """An affine at every point."""
        value = a.evaluate({**self.symbols, **env})
        return np.broadcast_to(np.asarray(value, np.int64), env[""].shape)

    def position(
        self, tensor: str, indices: tuple[IndexExpr, ...], env: Env, keep: Array | None = None
    ) -> tuple[Array, Array]:
        """Flat positions of an access, and where it is made (``keep``)."""
        shape = self.shapes[tensor]
        keep = np.ones(env[""].shape, np.bool_) if keep is None else keep
        flat = np.zeros(env[""].shape, np.int64)
        for i, extent in zip(indices, shape, strict=True):
            at = self.affine(i, env) if isinstance(i, Affine) else self.value(i, env).lo
            bad = keep & ((at < 0) | (at >= extent))
            if bad.any():
                raise IndexError(f"{self.s.name}: {tensor} at {at[bad][0]} of {extent}")
            flat = flat * extent + np.where(keep, at, 0)
        return flat, keep

    def load(
        self,
        tensor: str,
        indices: tuple[IndexExpr, ...],
        env: Env,
        predicate: tuple[Affine, ...] = (),
        other: Enclosure | None = None,
    ) -> Enclosure:
        """Elements where the predicate holds, else ``other``."""
        keep = np.ones(env[""].shape, np.bool_)
        for p in predicate:
            keep &= self.affine(p, env) >= 0
        flat, keep = self.position(tensor, indices, env, keep)
        memory = self.memory[tensor]
        if not memory.defined[flat[keep]].all():
            raise UndefinedRead(f"{self.s.name} reads {tensor} where nothing was written")
        if memory.cells.size == 0:
            assert other is not None or not keep.size
            return enc.anything(memory.cells.dtype, 0) if other is None else other
        out = memory.cells.take(flat)
        if other is None:
            return out
        return enc.where(enc.exactly(keep, DType.bool), out, other)


def join(a: Enclosure, b: Enclosure) -> Enclosure:
    """The points of ``a``, then those of ``b``."""
    return Enclosure(
        a.dtype, *(np.concatenate([x, y]) for x, y in zip(a.fields(), b.fields(), strict=True))
    )


def _rows(env: Env, names: list[str]) -> list[tuple[int, ...]]:
    if not names:
        return [()] * int(env[""].size)
    return list(zip(*(env[n].tolist() for n in names), strict=True))


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A value that is not allowed."""

    tensor: str
    index: tuple[int, ...]
    got: object
    wanted: str

    def __str__(self) -> str:
        return f"{self.tensor}{list(self.index)} is {self.got}, not {self.wanted}"


def find_mismatch(tensor: str, memory: Memory, got: np.ndarray) -> Mismatch | None:
    """The first cell of ``got`` that its enclosure does not allow."""
    cells = memory.cells
    flat = np.asarray(got).reshape(-1)
    if cells.dtype.is_float:
        value = flat.astype(np.float64)
        is_nan = np.isnan(value)
        good = np.where(is_nan, cells.nan, cells.num & (value >= cells.lo) & (value <= cells.hi))
    else:
        good = cells.open | (flat == cells.lo)
    if bool(np.all(good)):
        return None
    k = int(np.nonzero(~good)[0][0])
    index = tuple(int(i) for i in np.unravel_index(k, np.shape(got)))
    return Mismatch(tensor, index, flat[k], describe(cells, k))


def describe(cells: Enclosure, k: int) -> str:
    """One cell's enclosure as text."""
    if not cells.dtype.is_float:
        return "anything" if cells.open[k] else str(cells.lo[k])
    parts = []
    if cells.num[k]:
        low, high = float(cells.lo[k]), float(cells.hi[k])
        parts.append(repr(low) if low == high else f"[{low!r}, {high!r}]")
    if cells.nan[k]:
        parts.append("nan")
    return " or ".join(parts)
