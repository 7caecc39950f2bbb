"""Loop nests: explicit loops, buffers with scopes, annotations. What code generators read.

A ``LoopNest`` stands by itself: it can be printed, interpreted, checked against the kernel that it
implements, and turned into code. Accesses are *logical* (a tensor's ``layout`` is applied by the
code generator); buffers that the schedule made are ordinary row-major arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Union

from nestor.ir.affine import Affine
from nestor.ir.expr import Expr, IndexExpr
from nestor.ir.monoid import Monoid
from nestor.ir.program import Symbol, Tensor
from nestor.ir.types import DType

LoopKind = Literal["serial", "parallel", "vector", "unroll", "grid"]
Scope = Literal["arena", "shared", "local", "register"]
Phase = Literal["point", "init", "update", "merge", "final", "copy", "writeback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """Storage that a schedule made; lives for one execution of its ``Alloc``.

    ``holds``: the kernel tensor whose elements it keeps (a staged copy, a computed-at temp, a
    promoted tile), or ``STATEMENT#component`` for the accumulator of a reduction.
    ``register`` and ``local`` shapes are constant.
    """

    name: str
    dtype: DType
    shape: tuple[Affine, ...]
    scope: Scope
    holds: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The target of a ``Compute``: a kernel tensor (logical indices) or a buffer."""

    target: str
    indices: tuple[IndexExpr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """One phase of one statement instance.

    =========  ====================================================================================
    phase      meaning
    =========  ====================================================================================
    point      ``stores = values``: a pointwise statement, or one step of a scatter
    init       ``stores = values``: an accumulator gets the monoid's identity (or, with ``into``,
               the target's contents)
    update     ``stores = monoid.combine(stores, values)``: ``values`` is the element
    merge      the same, where ``values`` are partial states (lanes of a split reduction); in a
               ``vector`` loop the lanes are combined as a tree in index order
    final      ``stores = values``: the final map of the state, read from the accumulator
    copy       ``stores = values``: one element of a staged buffer, read from the tensor it holds
    writeback  ``stores = values``: one element of a promoted buffer goes back to the tensor it
               holds
    =========  ====================================================================================

    All values are evaluated before any store. ``instance`` maps the statement's domain indices
    (for init, merge and final: without the reduced ones; for copy and writeback: the logical
    indices ``d0, d1, …`` of the tensor held, whose name is ``statement``) to the loops around. A
    *scan* has init, then for each index update and final.

    A buffer with writebacks is *promoted*: while its ``Alloc`` runs, statements read and write
    elements of the tensor in it as they would in memory.
    """

    statement: str
    phase: Phase
    instance: tuple[tuple[str, Affine], ...]
    stores: tuple[Store, ...]
    values: tuple[Expr, ...]
    monoid: Monoid | None = None

    def __post_init__(self) -> None:
        if (self.monoid is not None) != (self.phase in ("update", "merge")):
            raise ValueError(f"{self.statement}: phase {self.phase} and monoid do not fit")
        if len(self.stores) != len(self.values):
            raise ValueError(f"{self.statement}: {len(self.stores)} stores of {len(self.values)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """``for index in range(max(lower), min(upper))``, unit step.

    Kinds: *serial*; *parallel* (a parallel loop that is the only child of another forms one
    collapsed space with it); *vector* and *unroll* have constant bounds, 0 … extent; a vector loop
    holds no other loop but *unroll* and *vector* ones; *grid* is for GPUs: each iteration is a
    program, and vector loops in each other are the dimensions of its tiles.
    """

    index: str
    lower: tuple[Affine, ...]
    upper: tuple[Affine, ...]
    kind: LoopKind
    body: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Children one after the other."""

    body: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alloc:
    """Buffers that live while ``body`` runs, fresh (undefined) each time; private to a thread."""

    buffers: tuple[Buffer, ...]
    body: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """``body`` where every condition is ``≥ 0``, else ``orelse``. Inside a vector loop: a mask."""

    conditions: tuple[Affine, ...]
    body: Node
    orelse: Node | None = None


Node = Union[Loop, Block, Alloc, Guard, Compute]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopNest:
    """A kernel made explicit. ``tensors``: those of the kernel that memory is passed for, in the
    calling order of the native function; kernel temps that became buffers are not among them."""

    name: str
    symbols: tuple[Symbol, ...]
    tensors: tuple[Tensor, ...]
    body: Node


def node_children(node: Node) -> tuple[Node, ...]:
    """Direct children of a nest node."""
    match node:
        case Loop() | Alloc():
            return (node.body,)
        case Guard():
            return (node.body,) if node.orelse is None else (node.body, node.orelse)
        case Block():
            return node.body
        case Compute():
            return ()


def computes(node: Node) -> Iterator[Compute]:
    """Every ``Compute`` in a nest, in the order of the text."""
    if isinstance(node, Compute):
        yield node
    for child in node_children(node):
        yield from computes(child)
