"""Canonical names and hashes: equal for kernels that differ only in names.

Names of tensors, statements, indices, symbols, loops and buffers are replaced by their order of
appearance and positions in an order by their ranks; origins are left out. A hash covers every field
of every node that takes part in equality, so a new field cannot be forgotten. Shared subexpressions
are visited once: the cost is that of the expression's graph, not of its tree.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, Index, IndexExpr, Load, map_children
from nestor.ir.loopnest import Alloc, Block, Buffer, Compute, Guard, Loop, LoopNest, Node, Store
from nestor.ir.monoid import Monoid
from nestor.ir.program import (
    AnyStatement,
    Domain,
    Extern,
    IndexRange,
    Order,
    Program,
    Reduction,
    Statement,
    Symbol,
    Tensor,
    TensorRef,
    Write,
)


def canonical_hash(kernel: Program) -> str:
    """SHA-256 [hex] of a kernel up to names; shapes, types, roles, layouts and orders count."""
    return _digest(canonicalize(kernel)[0])


def nest_hash(nest: LoopNest) -> str:
    """SHA-256 [hex] of a nest up to the names of tensors, statements, loops and buffers."""
    return _digest(canonicalize_nest(nest))


def canonicalize(kernel: Program) -> tuple[Program, dict[str, str]]:
    """Rename symbols ``n0…``, tensors ``t0…``, statements ``S0…`` and indices ``i0…``.

    Returns: the renamed kernel, called ``kernel``, and old → new name of symbols, tensors and
        statements (indices are renamed by their place in each domain).
    """
    symbols = {s.name: f"n{k}" for k, s in enumerate(kernel.symbols)}
    tensors = {t.name: f"t{k}" for k, t in enumerate(kernel.tensors)}
    names = {s.name: f"S{k}" for k, s in enumerate(kernel.statements)}
    ranks = _position_ranks(kernel.statements)
    renamed = Program(
        name="kernel",
        symbols=_symbols(kernel.symbols, symbols),
        tensors=tuple(_tensor(t, tensors, symbols) for t in kernel.tensors),
        statements=tuple(
            _extern(s, names[s.name], tensors, ranks)
            if isinstance(s, Extern)
            else _statement(s, names[s.name], tensors, symbols, ranks)
            for s in kernel.statements
        ),
    )
    return renamed, {**symbols, **tensors, **names}


def canonicalize_nest(nest: LoopNest) -> LoopNest:
    """Rename a nest's symbols ``n0…``, tensors ``t0…``, loops ``l0…``, buffers ``b0…``.

    Statements become ``S0…`` and the index names of instances ``x0…``, by first appearance.
    """
    symbols = {s.name: f"n{k}" for k, s in enumerate(nest.symbols)}
    tensors = {t.name: f"t{k}" for k, t in enumerate(nest.tensors)}
    return LoopNest(
        name="nest",
        symbols=_symbols(nest.symbols, symbols),
        tensors=tuple(_tensor(t, tensors, symbols) for t in nest.tensors),
        body=_NestRenamer(tensors).node(nest.body, symbols, tensors),
    )


# ------------------------------------------------------------------------------------- renaming


class _Renamer:
    """Renames variables and tensors in expressions; one per scope, since it remembers nodes."""

    def __init__(self, variables: Mapping[str, str], arrays: Mapping[str, str]) -> None:
        self.variables, self.arrays = variables, arrays
        self._memo: dict[int, tuple[Expr, Expr]] = {}

    def affine(self, value: Affine) -> Affine:
        return value.substitute(self.variables)

    def affines(self, values: tuple[Affine, ...]) -> tuple[Affine, ...]:
        return tuple(map(self.affine, values))

    def expr(self, node: Expr) -> Expr:
        known = self._memo.get(id(node))
        if known is None:
            known = node, self._expr(node)
            self._memo[id(node)] = known
        return known[1]

    def _expr(self, node: Expr) -> Expr:
        if isinstance(node, Index):
            return Index(value=self.affine(node.value), dtype=node.dtype)
        if isinstance(node, Load):
            return Load(
                tensor=self.arrays.get(node.tensor, node.tensor),
                indices=self.indices(node.indices),
                dtype=node.dtype,
                predicate=self.affines(node.predicate),
                other=None if node.other is None else self.expr(node.other),
            )
        return map_children(node, self.expr)

    def indices(self, indices: tuple[IndexExpr, ...]) -> tuple[IndexExpr, ...]:
        return tuple(self.affine(i) if isinstance(i, Affine) else self.expr(i) for i in indices)


def _symbols(symbols: tuple[Symbol, ...], names: Mapping[str, str]) -> tuple[Symbol, ...]:
    return tuple(replace(s, name=names[s.name]) for s in symbols)


def _tensor(t: Tensor, tensors: Mapping[str, str], symbols: Mapping[str, str]) -> Tensor:
    rename = _Renamer(symbols, {})
    layout = t.layout
    if layout is not None:
        layout = replace(layout, shape=rename.affines(layout.shape))
    return replace(
        t,
        name=tensors[t.name],
        shape=rename.affines(t.shape),
        layout=layout,
        alias_of=None if t.alias_of is None else tensors.get(t.alias_of, t.alias_of),
    )


def _position_ranks(statements: tuple[AnyStatement, ...]) -> dict[Order, dict[int, int]]:
    """For the positions that lead up to each position: position → rank among its siblings."""
    seen: dict[Order, set[int]] = {}
    for s in statements:
        path: Order = ()
        for entry in s.order:
            if isinstance(entry, int):
                seen.setdefault(path, set()).add(entry)
                path = (*path, entry)
    return {path: {p: k for k, p in enumerate(sorted(found))} for path, found in seen.items()}


def _order(
    order: Order, ranks: Mapping[Order, Mapping[int, int]], indices: Mapping[str, str]
) -> Order:
    out: list[int | str] = []
    path: Order = ()
    for entry in order:
        if isinstance(entry, int):
            out.append(ranks[path][entry])
            path = (*path, entry)
        else:
            out.append(indices.get(entry, entry))
    return tuple(out)


def _extern(
    s: Extern, name: str, tensors: Mapping[str, str], ranks: Mapping[Order, Mapping[int, int]]
) -> Extern:
    def argument(value: object) -> object:
        if isinstance(value, TensorRef):
            return TensorRef(name=tensors.get(value.name, value.name))
        return tuple(map(argument, value)) if isinstance(value, tuple) else value

    return replace(
        s,
        name=name,
        arguments=tuple(map(argument, s.arguments)),
        inputs=tuple(tensors[n] for n in s.inputs),
        outputs=tuple(tensors[n] for n in s.outputs),
        order=_order(s.order, ranks, {}),
        origin=None,
    )


def _statement(
    s: Statement,
    name: str,
    tensors: Mapping[str, str],
    symbols: Mapping[str, str],
    ranks: Mapping[Order, Mapping[int, int]],
) -> Statement:
    indices = {n: f"i{k}" for k, n in enumerate(s.domain.names)}
    rename = _Renamer({**symbols, **indices}, tensors)
    domain = Domain(
        ranges=tuple(
            IndexRange(
                name=indices[r.name], lower=rename.affine(r.lower), upper=rename.affine(r.upper)
            )
            for r in s.domain.ranges
        ),
        constraints=rename.affines(s.domain.constraints),
    )
    return Statement(
        name=name,
        domain=domain,
        order=_order(s.order, ranks, indices),
        writes=tuple(
            Write(tensor=tensors[w.tensor], indices=rename.indices(w.indices)) for w in s.writes
        ),
        elements=tuple(map(rename.expr, s.elements)),
        reduction=None if s.reduction is None else _reduction(s.reduction, indices, rename),
        scatter=s.scatter,
    )


def _reduction(r: Reduction, indices: Mapping[str, str], rename: _Renamer) -> Reduction:
    own = r.state_indices
    if own is not None:
        own = tuple(None if o is None else tuple(indices[n] for n in o) for o in own)
    return replace(
        r,
        indices=tuple(indices[n] for n in r.indices),
        final=tuple(map(rename.expr, r.final)),
        state_indices=own,
    )


class _NestRenamer:
    """Counts loops, buffers, statements and instance names in order of appearance."""

    def __init__(self, tensors: Mapping[str, str]) -> None:
        self.tensors = tensors
        self.loops = self.buffers = 0
        self.statements: dict[str, str] = {}
        self.held: dict[str, str] = {}
        self.instance_names: dict[tuple[str, str], str] = {}

    def node(self, node: Node, variables: Mapping[str, str], arrays: Mapping[str, str]) -> Node:
        """``node`` renamed; ``variables`` and ``arrays`` are those in scope."""
        rename = _Renamer(variables, arrays)
        match node:
            case Block():
                return Block(body=tuple(self.node(c, variables, arrays) for c in node.body))
            case Loop():
                name = f"l{self.loops}"
                self.loops += 1
                return Loop(
                    index=name,
                    lower=rename.affines(node.lower),
                    upper=rename.affines(node.upper),
                    kind=node.kind,
                    body=self.node(node.body, {**variables, node.index: name}, arrays),
                )
            case Alloc():
                return self._alloc(node, variables, arrays)
            case Guard():
                orelse = node.orelse
                return Guard(
                    conditions=rename.affines(node.conditions),
                    body=self.node(node.body, variables, arrays),
                    orelse=None if orelse is None else self.node(orelse, variables, arrays),
                )
            case Compute():
                return self._compute(node, rename)

    def _alloc(self, node: Alloc, variables: Mapping[str, str], arrays: Mapping[str, str]) -> Alloc:
        rename = _Renamer(variables, arrays)
        inner, buffers = dict(arrays), []
        for b in node.buffers:
            name = f"b{self.buffers}"
            self.buffers += 1
            inner[b.name] = name
            shape = rename.affines(b.shape)
            holds = self._holds(b.holds)
            buffers.append(
                Buffer(name=name, dtype=b.dtype, shape=shape, scope=b.scope, holds=holds)
            )
        return Alloc(buffers=tuple(buffers), body=self.node(node.body, variables, inner))

    def _holds(self, held: str) -> str:
        if held in self.tensors:
            return self.tensors[held]
        statement, mark, component = held.partition("#")
        if mark:
            return f"{self._statement(statement)}#{component}"
        return self.held.setdefault(held, f"h{len(self.held)}")

    def _statement(self, name: str) -> str:
        return self.statements.setdefault(name, f"S{len(self.statements)}")

    def _compute(self, node: Compute, rename: _Renamer) -> Compute:
        instance = []
        for name, value in node.instance:
            key = node.statement, name
            new = self.instance_names.setdefault(key, f"x{len(self.instance_names)}")
            instance.append((new, rename.affine(value)))
        return Compute(
            statement=self._statement(node.statement),
            phase=node.phase,
            instance=tuple(instance),
            stores=tuple(
                Store(
                    target=rename.arrays.get(s.target, s.target),
                    indices=rename.indices(s.indices),
                )
                for s in node.stores
            ),
            values=tuple(map(rename.expr, node.values)),
            monoid=node.monoid,
        )


# ------------------------------------------------------------------------------------- digests


def _digest(root: object) -> str:
    """SHA-256 of a tree of dataclasses, tuples, enums and scalars, by structure."""
    # The object is kept beside its digest, so that its id is not reused meanwhile.
    memo: dict[int, tuple[object, bytes]] = {}

    def visit(value: object) -> bytes:
        if isinstance(value, tuple):
            return b"(" + b"".join(map(visit, value)) + b")"
        if isinstance(value, enum.Enum):
            return f"{type(value).__name__}.{value.name};".encode()
        if not is_dataclass(value):
            return f"{type(value).__name__}:{value!r};".encode()
        known = memo.get(id(value))
        if known is None:
            hashed = hashlib.sha256(type(value).__name__.encode())
            for f in fields(value):
                if f.compare and not (f.name == "name" and isinstance(value, Monoid)):
                    hashed.update(f.name.encode() + b"=")
                    hashed.update(visit(getattr(value, f.name)))
            known = value, hashed.digest()
            memo[id(value)] = known
        return known[1]

    return hashlib.sha256(visit(root)).hexdigest()
