"""The reference interpreter of LoopNests: loop by loop, literally. For small sizes.

Buffers are garbage (NaN, bytes 0xAB) when their ``Alloc`` is entered, so a read of a cell that was
never written shows. The lanes of a vector loop run in lockstep: each ``Compute`` evaluates its
values in all lanes before it stores any. With ``order_seed``, parallel iterations run in a shuffled
order, and vector loops at random in lockstep or lane after lane, so that illegal parallelism shows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np

from nestor.errors import IRError
from nestor.ir import numeric
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node, node_children
from nestor.ir.monoid import Monoid
from nestor.ir.numeric import Value
from nestor.ir.scalar import Closure, Closures, Frame, Indexer


def run_nest(
    nest: LoopNest,
    arrays: MutableMapping[str, np.ndarray],
    symbols: Mapping[str, int] | None = None,
    *,
    order_seed: int | None = None,
) -> None:
    """Execute ``nest`` on ``arrays``, overwriting what it writes.

    Args:
        arrays: every tensor of ``nest.tensors`` by name, with its logical shape; bf16 as float32.
            A tensor with ``alias_of`` that is missing becomes a view of its base and is added.
        symbols: values of ``nest.symbols``.
        order_seed: shuffle the iterations that the nest calls independent.
    Raises: ``IRError`` for an access outside a tensor or buffer, ``IndexOutOfRange`` for a gather.
    """
    env = {s.name: int((symbols or {})[s.name]) for s in nest.symbols}
    own: dict[str, np.ndarray] = {}
    for t in nest.tensors:
        shape = tuple(int(d.evaluate(env)) for d in t.shape)
        if t.name not in arrays and t.alias_of is not None and t.alias_of in arrays:
            arrays[t.name] = arrays[t.alias_of].reshape(shape)
        array = arrays[t.name]
        if array.shape != shape or array.dtype != numeric.numpy_dtype(t.dtype):
            raise IRError(
                f"{nest.name}: tensor {t.name} is {t.dtype}{list(shape)},"
                f" given {array.dtype}{list(array.shape)}"
            )
        own[t.name] = array
    rng = None if order_seed is None else random.Random(order_seed)
    with numeric.quiet():
        _NestRun(rng).node(nest.body, Frame(env, own))


@dataclass(slots=True)
class _Code:
    """The closures of one Compute."""

    values: list[Closure]
    targets: list[Indexer]
    names: list[str]
    combine: list[Closure] | None


class _NestRun:
    def __init__(self, rng: random.Random | None) -> None:
        self.rng = rng
        self.closures = Closures()
        self.codes: dict[int, _Code] = {}

    # ---------------------------------------------------------------- one thread, one lane

    def node(self, node: Node, frame: Frame) -> None:
        """Run ``node`` once."""
        match node:
            case Block():
                for child in node.body:
                    self.node(child, frame)
            case Loop():
                self._loop(node, frame)
            case Alloc():
                self.node(node.body, _with_buffers(node, frame))
            case Guard():
                if all(c.evaluate(frame.env) >= 0 for c in node.conditions):
                    self.node(node.body, frame)
                elif node.orelse is not None:
                    self.node(node.orelse, frame)
            case Compute():
                self._compute(node, [frame])

    def _loop(self, loop: Loop, frame: Frame) -> None:
        values = list(_values(loop, frame.env))
        if loop.kind == "vector":
            lockstep = self.rng is None or _has_merge(loop) or self.rng.random() < 0.5
            if lockstep:
                self._lanes(loop.body, [_inside(frame, loop.index, v) for v in values])
                return
        if self.rng is not None and loop.kind in ("parallel", "vector", "grid"):
            self.rng.shuffle(values)
        for value in values:
            self.node(loop.body, _inside(frame, loop.index, value))

    # ---------------------------------------------------------------- lanes in lockstep

    def _lanes(self, node: Node, lanes: Sequence[Frame]) -> None:
        """Run ``node`` in all ``lanes`` together."""
        if not lanes:
            return
        match node:
            case Block():
                for child in node.body:
                    self._lanes(child, lanes)
            case Loop(kind="vector"):
                self._lanes(
                    node.body,
                    [_inside(f, node.index, v) for f in lanes for v in _values(node, f.env)],
                )
            case Loop():
                spans = [_values(node, f.env) for f in lanes]
                for value in sorted(set().union(*spans)):
                    inner = [
                        _inside(f, node.index, value)
                        for f, span in zip(lanes, spans, strict=True)
                        if value in span
                    ]
                    self._lanes(node.body, inner)
            case Alloc():
                self._lanes(node.body, [_with_buffers(node, f) for f in lanes])
            case Guard():
                yes: list[Frame] = []
                no: list[Frame] = []
                for f in lanes:
                    holds = all(c.evaluate(f.env) >= 0 for c in node.conditions)
                    (yes if holds else no).append(f)
                self._lanes(node.body, yes)
                if node.orelse is not None:
                    self._lanes(node.orelse, no)
            case Compute():
                self._compute(node, lanes)

    # ---------------------------------------------------------------- computes

    def _compute(self, node: Compute, lanes: Sequence[Frame]) -> None:
        code = self._code(node)
        values = [[v(f) for v in code.values] for f in lanes]
        places = [[t(f) for t in code.targets] for f in lanes]
        if node.monoid is None or code.combine is None:
            self._store(code, lanes, places, values)
        elif node.phase == "merge" and len(lanes) > 1:
            self._merge(node.monoid, code, lanes, places, values)
        else:
            new = []
            for f, at, value in zip(lanes, places, values, strict=True):
                old = [f.arrays[n][p] for n, p in zip(code.names, at, strict=True)]
                new.append(_combine(code.combine, old, value))
            self._store(code, lanes, places, new)

    def _merge(
        self,
        monoid: Monoid,
        code: _Code,
        lanes: Sequence[Frame],
        places: Sequence[list[tuple[int, ...]]],
        values: Sequence[list[Value]],
    ) -> None:
        """Combine the lanes that share a target as a tree in index order, then into the target."""
        assert code.combine is not None
        groups: dict[tuple[object, ...], list[int]] = {}
        for k, (f, at) in enumerate(zip(lanes, places, strict=True)):
            cells = tuple((id(f.arrays[n]), p) for n, p in zip(code.names, at, strict=True))
            groups.setdefault(cells, []).append(k)
        for members in groups.values():
            states = [values[k] for k in members]
            while len(states) > 1:
                pairs = [
                    _combine(code.combine, states[i], states[i + 1])
                    for i in range(0, len(states) - 1, 2)
                ]
                states = pairs + states[len(pairs) * 2 :]
            f, at = lanes[members[0]], places[members[0]]
            old = [f.arrays[n][p] for n, p in zip(code.names, at, strict=True)]
            self._store(code, [f], [at], [_combine(code.combine, old, states[0])])

    @staticmethod
    def _store(
        code: _Code,
        lanes: Sequence[Frame],
        places: Sequence[list[tuple[int, ...]]],
        values: Sequence[list[Value]],
    ) -> None:
        for f, at, new in zip(lanes, places, values, strict=True):
            for name, place, value in zip(code.names, at, new, strict=True):
                f.arrays[name][place] = value

    def _code(self, node: Compute) -> _Code:
        code = self.codes.get(id(node))
        if code is None:
            where = f"{node.statement} ({node.phase})"
            combine = node.monoid.combine if node.monoid else None
            code = _Code(
                values=[self.closures.expr(v, where) for v in node.values],
                targets=[self.closures.indexer(s.target, s.indices, where) for s in node.stores],
                names=[s.target for s in node.stores],
                combine=None
                if combine is None
                else [self.closures.expr(c, where) for c in combine],
            )
            self.codes[id(node)] = code
        return code


def _combine(
    combine: Sequence[Closure], left: Sequence[Value], right: Sequence[Value]
) -> list[Value]:
    scalars = {f"a{i}": v for i, v in enumerate(left)}
    scalars.update({f"b{i}": v for i, v in enumerate(right)})
    frame = Frame({}, {}, scalars)
    return [c(frame) for c in combine]


def _values(loop: Loop, env: Mapping[str, int]) -> range:
    return range(
        max(int(b.evaluate(env)) for b in loop.lower),
        min(int(b.evaluate(env)) for b in loop.upper),
    )


def _inside(frame: Frame, index: str, value: int) -> Frame:
    return Frame({**frame.env, index: value}, frame.arrays)


def _with_buffers(node: Alloc, frame: Frame) -> Frame:
    fresh = dict(frame.arrays)
    for b in node.buffers:
        shape = tuple(int(d.evaluate(frame.env)) for d in b.shape)
        fresh[b.name] = numeric.garbage(shape, b.dtype)
    return Frame(frame.env, fresh)


def _has_merge(node: Node) -> bool:
    if isinstance(node, Compute):
        return node.phase == "merge"
    return any(_has_merge(child) for child in node_children(node))
