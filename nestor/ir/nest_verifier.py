"""Check that a LoopNest keeps its rules; errors show the loops around the fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

from nestor.errors import IRError
from nestor.ir.affine import Affine, Interval
from nestor.ir.expr import IndexExpr, Load
from nestor.ir.loopnest import Alloc, Block, Compute, Guard, Loop, LoopNest, Node
from nestor.ir.printer import Printer, conditions, loop_head
from nestor.ir.program import Tensor
from nestor.ir.tensor_rules import bases_of, check_symbols, check_tensors
from nestor.ir.type_rules import Scope, Shaped, check_monoid

_CONSTANT_SCOPES = ("register", "local")
_READ_ONLY = ("input", "parameter", "constant")


def verify_nest(nest: LoopNest) -> None:
    """Raise ``IRError`` unless ``nest`` keeps the rules of ``nestor.ir.loopnest``."""
    _NestVerifier(nest).run()


@dataclass(slots=True, frozen=True)
class _Path:
    """What stands around a node.

    Attributes:
        heads: the loops, guards and allocs around, as text.
        ranges: interval of each symbol and loop index.
        arrays: tensors and buffers in scope.
        holds: what each buffer in scope holds.
        in_vector: inside a vector loop.
        surely_runs: under no guard, in no loop that may be empty.
    """

    heads: tuple[str, ...]
    ranges: Mapping[str, Interval]
    arrays: Mapping[str, Shaped]
    holds: Mapping[str, str] = field(default_factory=dict)
    in_vector: bool = False
    surely_runs: bool = True


class _NestVerifier:
    def __init__(self, nest: LoopNest) -> None:
        self.nest = nest
        self.tensors = {t.name: t for t in nest.tensors}
        self.path = _Path(
            heads=(),
            ranges={s.name: (s.lower, s.upper) for s in nest.symbols},
            arrays={t.name: Shaped(t.shape, t.dtype) for t in nest.tensors},
        )
        self.node: Node = nest.body
        self.bases: dict[str, Tensor] = {}
        self.checked_monoids: set[int] = set()

    def run(self) -> None:
        """All checks, outermost first."""
        check_symbols(self.nest.symbols, self._fail_plain)
        check_tensors(self.nest.tensors, self.nest.symbols, self._fail_plain)
        self.bases = bases_of(self.nest.tensors)
        self._visit(self.nest.body, self.path)

    def _fail_plain(self, message: str) -> NoReturn:
        raise IRError(f"nest {self.nest.name}: {message}")

    def fail(self, message: str) -> NoReturn:
        """Raise, showing the path of loops down to the current node."""
        lines = [f"  {'  ' * k}{head}" for k, head in enumerate(self.path.heads)]
        printer = Printer(self.nest.tensors)
        printer.types.update({n: a.dtype for n, a in self.path.arrays.items()})
        text = printer.node(self.node, "")
        inner = text if isinstance(self.node, Compute) else text[:1]
        lines += [f"> {'  ' * len(self.path.heads)}{line}" for line in inner]
        name = f"{self.node.statement} of " if isinstance(self.node, Compute) else ""
        raise IRError(f"{name}nest {self.nest.name}: {message}\n" + "\n".join(lines))

    # ---------------------------------------------------------------- nodes

    def _visit(self, node: Node, path: _Path) -> None:
        self.node, self.path = node, path
        match node:
            case Block():
                for child in node.body:
                    self._visit(child, path)
            case Loop():
                self._loop(node, path)
            case Alloc():
                self._alloc(node, path)
            case Guard():
                self._guard(node, path)
            case Compute():
                self._compute(node)

    def _check_affine(self, value: Affine, what: str) -> None:
        for name in sorted(value.variables() - self.path.ranges.keys()):
            self.fail(f"{what} {value}: {name} is no symbol and no loop around")

    def _loop(self, loop: Loop, path: _Path) -> None:
        if loop.index in path.ranges:
            self.fail(f"index {loop.index} is a symbol or a loop around already")
        if not loop.lower or not loop.upper:
            self.fail(f"loop {loop.index} needs at least one lower and one upper bound")
        for bound in (*loop.lower, *loop.upper):
            self._check_affine(bound, f"bound of {loop.index}")
        if loop.kind in ("vector", "unroll"):
            fixed = (*loop.lower, *loop.upper)
            if len(fixed) != 2 or any(not b.is_const for b in fixed) or loop.lower[0].const != 0:
                self.fail(f"loop {loop.index} is {loop.kind}: it must run from 0 to a constant")
        if path.in_vector and loop.kind not in ("unroll", "vector"):
            self.fail(f"a vector loop holds only unroll and vector loops, not a {loop.kind} one")
        inner = replace(
            path,
            heads=(*path.heads, loop_head(loop)),
            ranges={**path.ranges, loop.index: _span(loop, path.ranges)},
            in_vector=path.in_vector or loop.kind == "vector",
            surely_runs=path.surely_runs and _never_empty(loop, path.ranges),
        )
        self._visit(loop.body, inner)

    def _alloc(self, node: Alloc, path: _Path) -> None:
        arrays = dict(path.arrays)
        for b in node.buffers:
            if b.name in arrays:
                self.fail(f"buffer {b.name} has the name of a tensor or buffer around")
            for extent in b.shape:
                self._check_affine(extent, f"extent of buffer {b.name}")
                if b.scope in _CONSTANT_SCOPES and not extent.is_const:
                    self.fail(f"{b.scope} buffer {b.name}: extent {extent} is not constant")
                if extent.is_const and extent.const < 0:
                    self.fail(f"buffer {b.name}: extent {extent} is negative")
            arrays[b.name] = Shaped(b.shape, b.dtype)
        names = ", ".join(b.name for b in node.buffers)
        heads = (*path.heads, f"alloc {names}")
        holds = {**path.holds, **{b.name: b.holds for b in node.buffers}}
        self._visit(node.body, replace(path, heads=heads, arrays=arrays, holds=holds))

    def _guard(self, node: Guard, path: _Path) -> None:
        if not node.conditions:
            self.fail("a guard needs a condition")
        for c in node.conditions:
            self._check_affine(c, "condition")
        head = f"if {conditions(node.conditions)}"
        for child, text in ((node.body, head), (node.orelse, f"else of {head}")):
            if child is not None:
                heads = (*path.heads, text)
                self._visit(child, replace(path, heads=heads, surely_runs=False))

    # ---------------------------------------------------------------- computes

    def _compute(self, c: Compute) -> None:
        names = [n for n, _ in c.instance]
        if len(set(names)) != len(names):
            self.fail(f"an index occurs twice in the instance ({', '.join(names)})")
        for name, position in c.instance:
            self._check_affine(position, f"instance {name} =")
        if not c.stores:
            self.fail("it stores nothing")
        scope = Scope(
            fail=self.fail,
            arrays=self.path.arrays,
            indices=frozenset(self.path.ranges),
            check_access=self._check_access,
        )
        for store, value in zip(c.stores, c.values, strict=True):
            array = scope.check_indices(store.target, store.indices)
            self._check_writable(store.target)
            scope.expect(value, array.dtype, f"the value stored to {store.target}")
        if c.monoid is not None:
            self._check_state(c)
        if c.phase == "copy" and (len(c.stores) != 1 or c.stores[0].target in self.tensors):
            self.fail("a copy stores one element of a buffer")
        if c.phase == "writeback":
            self._check_writeback(c)

    def _check_writeback(self, c: Compute) -> None:
        value = c.values[0]
        if len(c.stores) != 1 or not isinstance(value, Load) or value.predicate:
            self.fail("a writeback stores one element of a buffer, without a predicate")
        held = self.path.holds.get(value.tensor)
        if held is None or c.stores[0].target != held:
            self.fail(f"a writeback reads a buffer and stores to what it holds ({held})")

    def _check_state(self, c: Compute) -> None:
        assert c.monoid is not None
        if id(c.monoid) not in self.checked_monoids:
            check_monoid(c.monoid, self.fail)
            self.checked_monoids.add(id(c.monoid))
        wanted = c.monoid.dtypes
        found = tuple(self.path.arrays[s.target].dtype for s in c.stores)
        if found != wanted:
            self.fail(
                f"monoid {c.monoid.name} combines {list(wanted)}, the stores are {list(found)}"
            )

    def _check_writable(self, name: str) -> None:
        if name not in self.tensors:
            return
        base = self.bases[name]
        if base.role in _READ_ONLY:
            self.fail(f"{base.role} {base.name} must not be written")

    def _check_access(
        self, name: str, indices: tuple[IndexExpr, ...], predicate: tuple[Affine, ...]
    ) -> None:
        """Fail if an access that surely happens lies outside for every value of the loops."""
        if predicate or not self.path.surely_runs:
            return
        for dim, (index, size) in enumerate(
            zip(indices, self.path.arrays[name].shape, strict=True)
        ):
            if not isinstance(index, Affine):
                continue
            high = index.bounds(self.path.ranges)[1]
            room = (size - 1 - index).bounds(self.path.ranges)[1]
            if (high is not None and high < 0) or (room is not None and room < 0):
                self.fail(f"{name}: index {dim}, {index}, is always outside [0, {size})")


def _span(loop: Loop, ranges: Mapping[str, Interval]) -> Interval:
    """An interval that holds the loop's index whenever its body runs."""
    lows = [b.bounds(ranges)[0] for b in loop.lower]
    highs = [b.bounds(ranges)[1] for b in loop.upper]
    known_lows = [v for v in lows if v is not None]
    known_highs = [v for v in highs if v is not None]
    return (
        max(known_lows) if known_lows else None,
        min(known_highs) - 1 if known_highs else None,
    )


def _never_empty(loop: Loop, ranges: Mapping[str, Interval]) -> bool:
    """Whether the loop runs at least once, whatever the loops around it do."""
    extents = ((high - low).bounds(ranges)[0] for high in loop.upper for low in loop.lower)
    return all(least is not None and least >= 1 for least in extents)
