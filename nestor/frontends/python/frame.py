"""What names mean inside one function, and what is known about scalars across a whole kernel."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from nestor.frontends.python.expressions import ArrayRef
from nestor.frontends.python.source import Source
from nestor.frontends.python.values import Value, common_type
from nestor.ir.affine import Affine
from nestor.ir.expr import Const, Var, const
from nestor.ir.types import DType


class Restart(Exception):
    """Something was learnt about a scalar that earlier lines depend on: lower them again."""


@dataclass(slots=True)
class Knowledge:
    """What outlives a restart.

    Attributes:
        types: type of each scalar that holds data, and whether it is weak.
        declared: scalars whose type an annotation fixes.
        demoted: scalars that cannot be replaced by an affine integer or a literal.
    """

    types: dict[str, tuple[DType, bool]] = field(default_factory=dict)
    declared: set[str] = field(default_factory=set)
    demoted: set[str] = field(default_factory=set)
    changed: bool = False

    def note_type(self, key: str, value: Value) -> None:
        """Widen the type of scalar ``key`` so that it holds ``value``."""
        if key in self.declared:
            return
        old = self.types.get(key)
        new = (value.dtype, value.weak)
        if old is not None:
            new = common_type(Value(_dummy(old[0]), old[1]), Value(_dummy(new[0]), new[1]))
        if new != old:
            self.types[key] = new
            self.changed = True

    def demote(self, key: str) -> None:
        """Treat ``key`` as data from now on."""
        if key not in self.demoted:
            self.demoted.add(key)
            raise Restart


def _dummy(dtype: DType) -> Const:
    return const(0, dtype)


class Frame:
    """Names inside one function: parameters, loop indices, sizes, scalars, globals.

    A scalar whose every assignment is an affine integer or a literal is replaced by that value,
    within the block of the assignment; any other holds data (a ``Var``).

    Attributes:
        prefix: makes the scalars of an inlined kernel distinct.
        indices: names of the loop indices around.
        fixed: names that cannot be assigned, and what they are.
    """

    def __init__(self, source: Source, prefix: str, knowledge: Knowledge) -> None:
        self.source, self.prefix, self.knowledge = source, prefix, knowledge
        self.blocks: list[dict[str, Value | ArrayRef]] = [{}]
        self.indices: set[str] = set()
        self.propagated: set[str] = set()
        self.fixed: dict[str, str] = {}
        stored = [n for n in ast.walk(source.tree) if isinstance(n, ast.Name)]
        targets = {
            n.target.id
            for n in ast.walk(source.tree)
            if isinstance(n, ast.For) and isinstance(n.target, ast.Name)
        }
        self.loop_names = targets
        # A name is in ``assigned`` if something else than a loop stores to it.
        loop_nodes = {id(n.target) for n in ast.walk(source.tree) if isinstance(n, ast.For)}
        self.assigned = {
            n.id for n in stored if isinstance(n.ctx, ast.Store) and id(n) not in loop_nodes
        }

    def key(self, name: str) -> str:
        """The scalar that ``name`` is, unique in the kernel."""
        return f"{self.prefix}{name}"

    def bound(self, name: str) -> Value | ArrayRef | None:
        """What ``name`` is bound to in the blocks around, innermost first."""
        for block in reversed(self.blocks):
            if name in block:
                return block[name]
        return None

    def bind(self, name: str, value: Value | ArrayRef) -> None:
        """Bind in the innermost block."""
        self.blocks[-1][name] = value

    def propagate(self, name: str, value: Value) -> bool:
        """Replace ``name`` by ``value`` in the rest of the block; False if it holds data."""
        key = self.key(name)
        if key in self.knowledge.demoted:
            return False
        outer = any(name in block for block in self.blocks[:-1])
        if outer or key in self.knowledge.types:
            self.knowledge.demote(key)
        self.propagated.add(name)
        self.bind(name, value)
        return True

    def hold(self, name: str) -> str:
        """``name`` holds data: its key."""
        key = self.key(name)
        if name in self.propagated:
            self.knowledge.demote(key)
        return key

    def lookup(self, node: ast.Name) -> Value | ArrayRef | Any:
        """See ``expressions.Names``."""
        name = node.id
        found = self.bound(name)
        if found is not None:
            return found
        if name in self.assigned:
            key = self.key(name)
            known = self.knowledge.types.get(key)
            if known is not None:
                return Value(Var(name=key, dtype=known[0]), known[1])
            if key not in self.knowledge.demoted and name in self.propagated:
                self.knowledge.demote(key)
            raise self.source.wrong(
                node, f"'{name}' has no value here", f"assign to {name} before this line"
            )
        if name in self.loop_names:
            raise self.source.unsupported(
                node,
                f"the loop index '{name}' is used outside its loop",
                "write the value that it would have, e.g. n - 1",
            )
        if name in self.source.names:
            return self.source.names[name]
        raise self.source.wrong(
            node,
            f"'{name}' is not defined",
            "use parameters, sizes named in annotations, local names or global constants",
        )

    def is_index(self, value: Affine) -> bool:
        """Whether ``value`` mentions a loop index."""
        return bool(value.variables() & self.indices)
