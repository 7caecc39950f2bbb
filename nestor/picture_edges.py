"""Which iteration depends on which, by running through the accesses of a small instance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nestor.ir.affine import Affine
from nestor.ir.expr import IndexExpr, loads
from nestor.ir.program import Program, Statement
from nestor.picture_instances import Instance, Instances, index_order


@dataclass(frozen=True, slots=True)
class Edge:
    """``target`` must run after ``source``.

    ``kind``: ``flow`` (the last write before a read), ``anti`` (a read and the next write),
    ``output`` (a write and the next one), or ``reduction`` for updates of one accumulator, which
    may change places.
    """

    source: Instance
    target: Instance
    kind: str


_Cell = tuple[str, tuple[int, ...]]


def find_edges(program: Program, instances: Instances) -> list[Edge]:
    """Dependences between neighbours in time at each element; accesses by data are left out."""
    statements = {s.name: s for s in program.statements if isinstance(s, Statement)}
    roots = {t.name: t.alias_of or t.name for t in program.tensors}
    last_write: dict[_Cell, Instance] = {}
    readers: dict[_Cell, dict[Instance, None]] = {}
    edges: dict[Edge, None] = {}

    def add(source: Instance | None, target: Instance, kind: str, cell: _Cell) -> None:
        if source is None or source == target:
            return
        if _is_reordered(statements, source, target, cell, roots):
            kind = "reduction"
        edges[Edge(source, target, kind)] = None

    for instance, env in _in_program_order(program, statements, instances):
        s = statements[instance[0]]
        read = set(_reads(s, env, roots))
        for cell in sorted(read):
            add(last_write.get(cell), instance, "flow", cell)
            readers.setdefault(cell, {})[instance] = None
        for cell in sorted(set(_writes(s, env, roots))):
            for reader in readers.pop(cell, {}):
                add(reader, instance, "anti", cell)
            add(last_write.get(cell), instance, "output", cell)
            last_write[cell] = instance
    return list(edges)


def _in_program_order(
    program: Program, statements: Mapping[str, Statement], instances: Instances
) -> list[tuple[Instance, dict[str, int]]]:
    keyed: list[tuple[tuple[Any, ...], Instance, dict[str, int]]] = []
    position = {s.name: k for k, s in enumerate(program.statements)}
    for name, points in instances.points.items():
        s = statements[name]
        ordered = index_order(s)
        rest = [n for n in ordered if n not in s.order]
        for at in points:
            env = dict(zip(ordered, at))
            time = tuple(env[x] if isinstance(x, str) else x for x in s.order)
            inner = tuple(env[n] for n in rest)
            keyed.append(((time, position[name], inner), (name, at), {**instances.sizes, **env}))
    keyed.sort(key=lambda item: item[0])
    return [(instance, env) for _, instance, env in keyed]


def _reads(s: Statement, env: Mapping[str, int], roots: Mapping[str, str]) -> Iterator[_Cell]:
    for element in s.elements:
        for load in loads(element):
            if all(p.evaluate(env) >= 0 for p in load.predicate):
                yield from _cell(load.tensor, load.indices, env, roots)
    if s.reduction is not None and s.reduction.into:
        yield from _writes(s, env, roots)


def _writes(s: Statement, env: Mapping[str, int], roots: Mapping[str, str]) -> Iterator[_Cell]:
    for w in s.writes:
        yield from _cell(w.tensor, w.indices, env, roots)


def _cell(
    tensor: str, indices: tuple[IndexExpr, ...], env: Mapping[str, int], roots: Mapping[str, str]
) -> Iterator[_Cell]:
    values = []
    for i in indices:
        if not isinstance(i, Affine):
            return
        values.append(int(i.evaluate(env)))
    yield roots[tensor], tuple(values)


def _is_reordered(
    statements: Mapping[str, Statement],
    source: Instance,
    target: Instance,
    cell: _Cell,
    roots: Mapping[str, str],
) -> bool:
    """Two updates of one accumulator of one statement."""
    s = statements[source[0]]
    if source[0] != target[0] or s.reduction is None or not s.reduction.monoid.commutative:
        return False
    ordered = index_order(s)
    same = all(
        a == b for n, a, b in zip(ordered, source[1], target[1]) if n not in s.reduction.indices
    )
    return same and any(roots[w.tensor] == cell[0] for w in s.writes)
