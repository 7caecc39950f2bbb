"""The enumeration oracle: is a nest right, decided by running every instance symbolically?

For small constant domains. Kernel and nest are executed one instance at a time; a memory cell holds
a *token*, the interned history of how its value came about (an expression over tokens, or a
reduction's base and multiset of elements). A nest is right if

* every statement instance runs exactly once,
* no access leaves its memory and no buffer cell is read before it is written,
* no two iterations of a parallel, vector or grid loop touch a cell that one of them writes,
* all tensors that are seen from outside end with the same tokens as the kernel's.

It shares no code with the checker and is far too slow for real kernels.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nestor.ir.affine import Affine
from nestor.ir.expr import Binary, Cast, Const, Expr, Index, Load, Var, children
from nestor.ir.loopnest import Alloc, Block, Buffer, Compute, Guard, Loop, LoopNest, Node
from nestor.ir.program import Domain, Program, Statement

Cell = tuple[Any, ...]
Env = dict[str, int]


LIMIT = 200_000
"""Computes of one run, and points of one domain, at most; a few seconds' worth."""


class TooLarge(Exception):
    """There is more to enumerate than ``LIMIT``: nothing is known."""


class Violation(Exception):
    """The nest is wrong; ``question`` says in which respect."""

    def __init__(self, question: str, text: str):
        super().__init__(f"{question}: {text}")
        self.question = question


_TOKENS: dict[object, int] = {}
_BY_NUMBER: list[object] = []


def token(value: object) -> int:
    """The number of a structure; equal structures have equal numbers."""
    if value not in _TOKENS:
        _TOKENS[value] = len(_BY_NUMBER)
        _BY_NUMBER.append(value)
    return _TOKENS[value]


def forget() -> None:
    """Drop all tokens; those of different runs are never compared."""
    _TOKENS.clear()
    _BY_NUMBER.clear()


@dataclass
class Frame:
    """One execution of a concurrent loop: which iterations touched which cell, and how."""

    kind: str
    iteration: int = 0
    touched: dict[Cell, dict[int, set[tuple[bool, object]]]] = field(default_factory=dict)


@dataclass
class Event:
    """One execution of a ``Compute``: who, where, and the cells that it touched."""

    statement: str
    phase: str
    loops: Env
    instance: Env
    reads: list[Cell] = field(default_factory=list)
    writes: list[Cell] = field(default_factory=list)


class Machine:
    """Memory, and the evaluation of expressions to tokens.

    Not ``strict``: what is wrong does not stop the run, so that a witness can be looked up.
    """

    def __init__(self, kernel: Program, symbols: Mapping[str, int], strict: bool = True):
        self.kernel = kernel
        self.strict = strict
        self.events: list[Event] = []
        self.symbols = dict(symbols)
        self.memory: dict[Cell, int] = {}
        self.shapes = {
            t.name: tuple(s.evaluate(self.symbols) for s in t.shape) for t in kernel.tensors
        }
        self.roots = {t.name: t.alias_of or t.name for t in kernel.tensors}
        self.frames: list[Frame] = []
        self.buffers: dict[str, tuple[Buffer, int, tuple[int, ...]]] = {}
        self.tag: object = None
        self.steps: dict[str, dict[tuple[int, ...], list[Env]]] = {}

    # Memory

    def cell(self, name: str, index: tuple[int, ...]) -> Cell:
        """The cell behind an index; aliases share the cells of their root."""
        if name in self.buffers:
            _, execution, shape = self.buffers[name]
            key: Cell = (name, execution, *index)
        else:
            shape = self.shapes[name]
            flat = 0
            for i, extent in zip(index, shape):
                flat = flat * extent + i
            key = (self.roots[name], flat)
        is_outside = any(not 0 <= i < e for i, e in zip(index, shape))
        if self.strict and (len(index) != len(shape) or is_outside):
            raise Violation("bounds", f"{name}{list(index)} of shape {shape}")
        return key

    def _touch(self, key: Cell, is_write: bool, tag: object) -> None:
        vectors = [f for f in self.frames if f.kind == "vector"]
        for frame in self.frames:
            mark = tag if vectors and frame is vectors[-1] else None
            frame.touched.setdefault(key, {}).setdefault(frame.iteration, set()).add(
                (is_write, mark)
            )

    def read(self, name: str, index: tuple[int, ...], tag: object = None) -> int:
        """Token of a cell; unwritten kernel memory holds a token of its own."""
        key = self.cell(name, index)
        self._touch(key, False, tag)
        if self.events:
            self.events[-1].reads.append(key)
        if key not in self.memory:
            if name in self.buffers and self.strict:
                raise Violation("buffer", f"{name}{list(index)} is read before it is written")
            self.memory[key] = token(("initial", key))
        return self.memory[key]

    def write(self, name: str, index: tuple[int, ...], value: int, tag: object = None) -> None:
        """Store a token."""
        key = self.cell(name, index)
        self._touch(key, True, tag)
        if self.events:
            self.events[-1].writes.append(key)
        self.memory[key] = value

    def close_frame(self) -> None:
        """End a concurrent loop: two iterations on one cell, one of them writing, are a race."""
        frame = self.frames.pop()
        if not self.strict:
            return
        for key, by_iteration in frame.touched.items():
            marks = {m for s in by_iteration.values() for m in s}
            if len(by_iteration) < 2 or not any(w for w, _ in marks):
                continue
            tags = {t for _, t in marks}
            if len(tags) == 1 and tags != {None}:
                continue  # lanes of one merge
            raise Violation("dependence", f"iterations {sorted(by_iteration)[:2]} race on {key}")

    # Expressions

    def value(self, e: Expr, env: Env, state: Mapping[str, int] | None = None) -> int:
        """Token of an expression."""
        match e:
            case Const():
                return token(("const", repr(e.value), e.dtype))
            case Index():
                return token(("index", e.value.evaluate(env), e.dtype))
            case Var():
                assert state is not None
                return state[e.name]
            case Load():
                if any(p.evaluate(env) < 0 for p in e.predicate):
                    assert e.other is not None
                    return self.value(e.other, env, state)
                return self.read(e.tensor, self.index(e.indices, env))
        inner = tuple(self.value(c, env, state) for c in children(e))
        name = getattr(e, "op", getattr(e, "function", type(e).__name__))
        return token((type(e).__name__, name, e.dtype, inner))

    def index(self, indices: tuple[Any, ...], env: Env) -> tuple[int, ...]:
        """Concrete indices."""
        return tuple(
            i.evaluate(env) if isinstance(i, Affine) else self.concrete(i, env) for i in indices
        )

    def concrete(self, e: Expr, env: Env) -> int:
        """The integer of a data-dependent index; integer inputs hold made-up small numbers."""
        match e:
            case Const():
                return int(e.value)
            case Index():
                return int(e.value.evaluate(env))
            case Cast():
                return self.concrete(e.x, env)
            case Binary(op="add"):
                return self.concrete(e.a, env) + self.concrete(e.b, env)
            case Load():
                index = self.index(e.indices, env)
                self.read(e.tensor, index)
                return (7 * sum((k + 1) * i for k, i in enumerate(index)) + 3) % 4
        raise NotImplementedError(type(e).__name__)


# Reductions: a state is its base token, or ("acc", base, group, elements). Elements of one group
# combine in any order; those of groups that run one after the other do not mix.


def _split(state: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    found = _BY_NUMBER[state]
    if isinstance(found, tuple) and found[0] == "acc":
        return found[1], found[2], found[3]
    return state, (), ()


def _joined(base: int, group: tuple[int, ...], elements: tuple[int, ...], is_ordered: bool) -> int:
    if not elements:
        return base
    return token(("acc", base, group, elements if is_ordered else tuple(sorted(elements))))


def combine(state: int, element: int, is_ordered: bool, group: tuple[int, ...] = ()) -> int:
    """The state with one more element."""
    base, own, elements = _split(state)
    if elements and own != group:
        base, elements = state, ()
    return _joined(base, group, (*elements, element), is_ordered)


def merged(state: int, other: int, identity: int, is_ordered: bool) -> int:
    """Two states combined; a base other than the identity counts as an element."""
    base, own, elements = _split(state)
    other_base, group, more = _split(other)
    if other_base != identity:
        more = (*more, token(("base", other_base)))
    if not more:
        return state
    if elements and own != group:
        base, elements = state, ()
    return _joined(base, group, elements + more, is_ordered)


def group_of(s: Statement, env: Mapping[str, int]) -> tuple[int, ...]:
    """The values of the indices in whose order the reductions of ``s`` run one after the other."""
    assert s.reduction is not None
    return tuple(env[x] for x in s.order if isinstance(x, str) and x not in s.reduction.indices)


def is_ordered(s: Statement) -> bool:
    """True if the order of a reduction's elements matters."""
    assert s.reduction is not None
    return s.reduction.scan or not s.reduction.monoid.commutative


# The kernel


def domain_points(domain: Domain, symbols: Mapping[str, int]) -> Iterator[Env]:
    """Every instance, in lexicographic order. Raises: ``TooLarge``, midway."""
    visits = itertools.count()

    def extend(k: int, env: Env) -> Iterator[Env]:
        if next(visits) > LIMIT:
            raise TooLarge(f"a domain of more than {LIMIT} points")
        if k == len(domain.ranges):
            if all(c.evaluate(env) >= 0 for c in domain.constraints):
                yield {r.name: env[r.name] for r in domain.ranges}
            return
        r = domain.ranges[k]
        for v in range(r.lower.evaluate(env), r.upper.evaluate(env)):
            yield from extend(k + 1, {**env, r.name: v})

    yield from extend(0, dict(symbols))


def output_domain(s: Statement) -> Domain:
    """The domain without reduced indices."""
    reduced = set(s.reduction.indices) if s.reduction else set()
    return Domain(
        ranges=tuple(r for r in s.domain.ranges if r.name not in reduced),
        constraints=tuple(c for c in s.domain.constraints if not c.variables() & reduced),
    )


def run_kernel(kernel: Program, symbols: Mapping[str, int]) -> dict[Cell, int]:
    """Memory after the kernel ran as its definition says."""
    m = Machine(kernel, symbols)
    units: list[tuple[tuple[int, ...], int, tuple[int, ...], Statement, Env]] = []
    for position, s in enumerate(kernel.statements):
        assert isinstance(s, Statement)
        is_unit = s.reduction is None or _is_scattering(s)
        domain = s.domain if is_unit else output_domain(s)
        for env in domain_points(domain, symbols):
            key = tuple(x if isinstance(x, int) else env.get(x, 0) for x in s.order)
            units.append((key, position, tuple(env.values()), s, env))
    units.sort(key=lambda u: u[:3])
    for _, _, _, s, env in units:
        _run_unit(m, s, {**env, **m.symbols})
    return m.memory


def _labelled(s: Statement, value: int, env: Mapping[str, int]) -> int:
    """A value with the instance that computed it: instances are not to be swapped for others."""
    return token((s.name, tuple(env[n] for n in s.domain.names), value))


def _started(s: Statement, value: int, env: Mapping[str, int]) -> int:
    """The identity with the output point whose state it starts."""
    names = output_domain(s).names
    return token(("start", s.name, tuple(env[n] for n in names), value))


def _is_scattering(s: Statement) -> bool:
    """Whether elements combine into their targets one by one."""
    if s.reduction is None or not s.reduction.into:
        return False
    reduced = set(s.reduction.indices)
    if reduced & {x for x in s.order if isinstance(x, str)}:
        return True
    indices = [i for w in s.writes for i in w.indices]
    return any(not isinstance(i, Affine) or i.variables() & reduced for i in indices)


def _run_unit(m: Machine, s: Statement, env: Env) -> None:
    if s.reduction is None:
        values = [_labelled(s, m.value(e, env), env) for e in s.elements]
        for w, v in zip(s.writes, values):
            m.write(w.tensor, m.index(w.indices, env), v)
        return
    r = s.reduction
    ordered = is_ordered(s)
    if _is_scattering(s):
        element = _labelled(s, token(tuple(m.value(e, env) for e in s.elements)), env)
        for w in s.writes:
            at = m.index(w.indices, env)
            m.write(w.tensor, at, combine(m.read(w.tensor, at), element, ordered, group_of(s, env)))
        return
    if r.into:
        state = [m.read(w.tensor, m.index(w.indices, env)) for w in s.writes]
    else:
        state = [_started(s, m.value(c, env), env) for c in r.monoid.identity]
    for step in _steps(m, s).get(tuple(env[n] for n in output_domain(s).names), ()):
        here = {**step, **m.symbols}
        element = _labelled(s, token(tuple(m.value(e, here) for e in s.elements)), here)
        state = [combine(c, element, ordered, group_of(s, here)) for c in state]
        if r.scan:
            _finish(m, s, state, here)
    if not r.scan:
        _finish(m, s, state, env)


def _steps(m: Machine, s: Statement) -> dict[tuple[int, ...], list[Env]]:
    """The instances of a reduction by output point, each point's in the order of its indices."""
    if s.name not in m.steps:
        assert s.reduction is not None
        names, reduced = output_domain(s).names, s.reduction.indices
        found: dict[tuple[int, ...], list[Env]] = {}
        for p in domain_points(s.domain, m.symbols):
            found.setdefault(tuple(p[n] for n in names), []).append(p)
        for points in found.values():
            points.sort(key=lambda p: tuple(p[i] for i in reduced))
        m.steps[s.name] = found
    return m.steps[s.name]


def _finish(m: Machine, s: Statement, state: list[int], env: Env) -> None:
    assert s.reduction is not None
    named = {f"s{c}": v for c, v in enumerate(state)}
    values = [m.value(f, env, named) for f in s.reduction.final]
    for w, v in zip(s.writes, values):
        m.write(w.tensor, m.index(w.indices, env), v)


# The nest


class NestRun:
    """One execution of a nest."""

    def __init__(
        self, kernel: Program, nest: LoopNest, symbols: Mapping[str, int], strict: bool = True
    ):
        self.m = Machine(kernel, symbols, strict)
        self.statements = {s.name: s for s in kernel.statements}
        self.counts: Counter[tuple[str, str, tuple[tuple[str, int], ...]]] = Counter()
        self.executions = itertools.count()
        self.visit(nest.body, dict(self.m.symbols))

    def visit(self, node: Node, env: Env) -> None:
        """Execute a node."""
        match node:
            case Block():
                for child in node.body:
                    self.visit(child, env)
            case Guard():
                if all(c.evaluate(env) >= 0 for c in node.conditions):
                    self.visit(node.body, env)
                elif node.orelse is not None:
                    self.visit(node.orelse, env)
            case Alloc():
                saved = dict(self.m.buffers)
                for b in node.buffers:
                    shape = tuple(s.evaluate(env) for s in b.shape)
                    self.m.buffers[b.name] = (b, next(self.executions), shape)
                self.visit(node.body, env)
                self.m.buffers = saved
            case Loop():
                self._loop(node, env)
            case Compute():
                self._compute(node, env)

    def _loop(self, node: Loop, env: Env) -> None:
        low = max(b.evaluate(env) for b in node.lower)
        high = min(b.evaluate(env) for b in node.upper)
        is_concurrent = node.kind in ("parallel", "vector", "grid")
        if is_concurrent:
            self.m.frames.append(Frame(node.kind))
        for i in range(low, high):
            if is_concurrent:
                self.m.frames[-1].iteration = i
            self.visit(node.body, {**env, node.index: i})
        if is_concurrent:
            self.m.close_frame()

    def _compute(self, node: Compute, env: Env) -> None:
        m = self.m
        if len(m.events) > LIMIT:
            raise TooLarge(f"more than {LIMIT} computes")
        loops = {n: v for n, v in env.items() if n not in m.symbols}
        here = {n: a.evaluate(env) for n, a in node.instance if a.variables() <= env.keys()}
        m.events.append(Event(node.statement, node.phase, loops, here))
        s = self.statements.get(node.statement)
        if node.phase in ("point", "update", "final"):
            instance = tuple((n, a.evaluate(env)) for n, a in node.instance)
            names = _names(s, node.phase)
            self.counts[node.statement, node.phase, _sorted(dict(instance), names)] += 1
        values = [m.value(v, env) for v in node.values]
        if s is not None and node.phase == "point":
            values = [_labelled(s, v, dict(instance)) for v in values]
        targets = [(t.target, m.index(t.indices, env)) for t in node.stores]
        if node.phase == "init" and s is not None:
            point = {n: a.evaluate(env) for n, a in node.instance if a.variables() <= env.keys()}
            values = [
                v if isinstance(e, Load) else _started(s, v, point)
                for v, e in zip(values, node.values)
            ]
        if node.phase in ("update", "merge"):
            assert s is not None and s.reduction is not None
            if node.monoid != s.reduction.monoid and self.m.strict:
                raise Violation("value", "another monoid")
            if node.phase == "update":
                values = [_labelled(s, token(tuple(values)), dict(instance))]
            values = self._combined(node, s, env, targets, values)
        tag = ("merge", id(node)) if node.phase == "merge" else None
        for (name, index), v in zip(targets, values):
            m.write(name, index, v, tag)

    def _combined(
        self,
        node: Compute,
        s: Statement,
        env: Env,
        targets: list[tuple[str, tuple[int, ...]]],
        values: list[int],
    ) -> list[int]:
        tag = ("merge", id(node)) if node.phase == "merge" else None
        states = [self.m.read(name, index, tag) for name, index in targets]
        if node.phase == "update":
            group = group_of(s, {n: a.evaluate(env) for n, a in node.instance})
            return [combine(c, values[0], is_ordered(s), group) for c in states]
        assert s.reduction is not None
        point = {n: a.evaluate(env) for n, a in node.instance}
        identity = [_started(s, self.m.value(c, {}), point) for c in s.reduction.monoid.identity]
        return [merged(a, b, i, is_ordered(s)) for a, b, i in zip(states, values, identity)]


def _names(s: Statement | None, phase: str) -> list[str]:
    if s is None:
        raise Violation("value", "a statement that the kernel does not have")
    names = s.domain.names
    if s.reduction is not None and phase == "final" and not s.reduction.scan:
        names = tuple(n for n in names if n not in s.reduction.indices)
    return sorted(names)


def _sorted(instance: Env, names: list[str]) -> tuple[tuple[str, int], ...]:
    return tuple((n, instance.get(n, -(10**9))) for n in names)


def find_violation(
    kernel: Program, nest: LoopNest, symbols: Mapping[str, int] | None = None
) -> Violation | None:
    """The first way in which ``nest`` is wrong, or None if it is right.

    Without ``symbols``, a kernel that has some is run for all of their values.
    Raises: ``TooLarge``.
    """
    if symbols is None:
        names = [s.name for s in kernel.symbols]
        ranges = [range(s.lower, (s.upper or s.lower + 8) + 1) for s in kernel.symbols]
        found = (
            _violation_at(kernel, nest, dict(zip(names, values)))
            for values in itertools.product(*ranges)
        )
        return next((v for v in found if v is not None), None)
    return _violation_at(kernel, nest, dict(symbols))


def _violation_at(kernel: Program, nest: LoopNest, symbols: dict[str, int]) -> Violation | None:
    try:
        run = NestRun(kernel, nest, symbols)
        _check_counts(kernel, run, symbols)
    except Violation as found:
        return found
    except KeyError as unknown:
        return Violation("malformed", f"{unknown} is not in scope")
    wanted = run_kernel(kernel, symbols)
    for t in kernel.tensors:
        if t.role == "temp" or t.alias_of is not None:
            continue
        for flat in range(_size(run.m.shapes[t.name])):
            key = (t.name, flat)
            initial = token(("initial", key))
            if wanted.get(key, initial) != run.m.memory.get(key, initial):
                return Violation("value", f"'{t.name}' ends with a wrong value at {flat}")
    return None


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _check_counts(kernel: Program, run: NestRun, symbols: Mapping[str, int]) -> None:
    wanted: Counter[tuple[str, str, tuple[tuple[str, int], ...]]] = Counter()
    final_names = {(s, p) for s, p, _ in run.counts}
    for s in kernel.statements:
        assert isinstance(s, Statement)
        phases = [("point", s.domain)] if s.reduction is None else [("update", s.domain)]
        if s.reduction is not None and (s.name, "final") in final_names:
            phases.append(("final", s.domain if s.reduction.scan else output_domain(s)))
        for phase, domain in phases:
            for env in domain_points(domain, symbols):
                wanted[s.name, phase, _sorted(env, sorted(env))] += 1
    if wanted != run.counts:
        extra, missing = run.counts - wanted, wanted - run.counts
        raise Violation("coverage", f"extra {list(extra)[:1]}, missing {list(missing)[:1]}")
