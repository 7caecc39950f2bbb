"""One Triton kernel from one loop nest: signature, programs of the grid, loops, tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from nestor.codegen.triton.blocks import Context, Register
from nestor.codegen.triton.computes import combine_function, emit_compute, emit_scan, scan_parts
from nestor.codegen.triton.hidden_tiles import emit_test
from nestor.codegen.triton.names import FAILED, Names
from nestor.codegen.triton.online import reduced_monoids
from nestor.codegen.triton.states import narrow_states
from nestor.errors import Unsupported
from nestor.ir.affine import Affine, affine
from nestor.ir.loopnest import (
    Alloc,
    Block,
    Compute,
    Guard,
    Loop,
    LoopNest,
    Node,
    computes,
    node_children,
)
from nestor.ir.schedule import Warps
from nestor.ir.types import DType

CODEGEN_VERSION = 3
"""Of what kernels' times depend on; measured ones of another version only seed a search."""

PLAIN = Warps(count=4, stages=3)


@dataclass(frozen=True, slots=True)
class Siblings:
    """Several calls of one kernel that are started as one.

    Attributes: count: how many. apart: the tensors that each has its own of.
    """

    count: int
    apart: frozenset[str]


ALONE = Siblings(1, frozenset())

_WIDE = 1 << 31
"""From so many elements on, a tensor's offsets need 64 bits."""


_ONLY_READ = ("input", "parameter", "constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonKernel:
    """A kernel's source, and how it is launched.

    Attributes:
        name: of its function. source: of a module that has it.
        tensors: what the arguments that are pointers point to, in order, to ``dtypes``; then the
            sizes ``symbols``. Siblings' own ones stand beside each other, under the same name.
        written: positions of the tensors that it writes.
        checks: whether there is one more between them: a pointer to an i32, which becomes 1 if an
            index that is data lies outside its tensor.
        grid: extents whose product is the number of programs.
    """

    name: str
    source: str
    tensors: tuple[str, ...]
    dtypes: tuple[DType, ...]
    written: tuple[int, ...]
    symbols: tuple[str, ...]
    checks: bool
    grid: tuple[Affine, ...]

    def programs(self, sizes: dict[str, int]) -> int:
        """How many programs there are. Args: sizes: of the symbols."""
        return prod(int(e.evaluate(sizes)) for e in self.grid)


def emit_kernel(
    nest: LoopNest,
    *,
    name: str = "kernel",
    summary: str = "",
    precision: str = "ieee",
    warps: Warps = PLAIN,
    siblings: Siblings = ALONE,
) -> TritonKernel:
    """The source of a nest for a GPU.

    Args: summary: what it computes, for people. precision: of products of f32, as ``tl.dot`` has
        it. warps: how programs run. siblings: calls that it makes at once.
    Raises: ``Unsupported`` for a nest that no single kernel can run.
    """
    return _Emitter(nest, name, summary, precision, warps, siblings).emit()


class _Emitter:
    def __init__(
        self,
        nest: LoopNest,
        name: str,
        summary: str,
        precision: str,
        warps: Warps,
        siblings: Siblings,
    ):
        self.nest, self.name, self.summary, self.warps = nest, name, summary, warps
        self.siblings = siblings
        names = Names()
        pointers = names.all(t.name for t in nest.tensors)
        self.pointers = {
            name: [names.fresh(f"{p}_{n}") for n in range(siblings.count)]
            if name in siblings.apart
            else [p]
            for name, p in pointers.items()
        }
        self.ctx = Context(
            tensors={t.name: t for t in nest.tensors},
            pointers=pointers,
            names=names,
            ranges={s.name: (s.lower, s.upper) for s in nest.symbols},
            wide=any(_is_wide(t.shape) for t in nest.tensors),
            precision=precision,
            boxes={} if warps.descriptors else None,
        )
        self.ctx.loops.update(names.all(s.name for s in nest.symbols))
        self.grid: list[Loop] = []

    def emit(self) -> TritonKernel:
        """The whole module."""
        ctx, nest = self.ctx, self.nest
        body = nest.body
        while isinstance(body, Loop) and body.kind == "grid":
            self.grid.append(body)
            body = body.body
        self._programs()
        self._tiles(body)
        self._node(body)
        symbols = [ctx.loops[s.name] for s in nest.symbols]
        failed = [FAILED] if ctx.checks else []
        pointers = [p for own in self.pointers.values() for p in own]
        arguments = ", ".join([*pointers, *failed, *symbols])
        tensors = [t for t in nest.tensors for _ in self.pointers[t.name]]
        grid = [loop.upper[0] for loop in self.grid]
        summary = self.summary or nest.name
        head = [
            f'"""{summary}"""',
            "",
            "import triton",
            "import triton.language as tl",
            "",
            "from nestor.codegen.triton import library as lib",
            "",
            *self._combines(),
            "",
            "@triton.jit",
            f"def {self.name}({arguments}):",
        ]
        return TritonKernel(
            name=self.name,
            source="\n".join([*head, *ctx.boxes_made(), *(ctx.lines or ["    pass"])]) + "\n",
            tensors=tuple(t.name for t in tensors),
            dtypes=tuple(t.dtype for t in tensors),
            written=tuple(n for n, t in enumerate(tensors) if t.role not in _ONLY_READ),
            symbols=tuple(s.name for s in nest.symbols),
            checks=ctx.checks,
            grid=(affine(self.siblings.count), *grid) if self.siblings.count > 1 else tuple(grid),
        )

    def _combines(self) -> list[str]:
        """How monoids that are reduced along a tile's loop combine, each as a function."""
        lines: list[str] = []
        seen: dict[str, None] = {}
        for compute in computes(self.nest.body):
            for monoid in reduced_monoids(compute):
                seen.setdefault(combine_function(monoid, self.ctx.functions))
        for text in (*self.ctx.functions.values(), *seen):
            lines += ["", *text.splitlines(), ""]
        return lines

    def _programs(self) -> None:
        """The indices of the grid's loops from the program's number, the innermost fastest."""
        ctx, count = self.ctx, self.siblings.count
        if not self.grid and count == 1:
            return
        for loop in self.grid:
            if len(loop.upper) != 1 or any(x.const or x.terms for x in loop.lower):
                raise Unsupported(f"grid loop {loop.index} does not run from 0 to one bound")
            if not loop.upper[0].variables() <= {s.name for s in self.nest.symbols}:
                raise Unsupported(f"grid loop {loop.index} is longer for some programs than others")
        self._first_program()
        grid = self.grid
        if self.warps.group > 1 and len(grid) > 1:
            self._grouped(*grid[-2:], is_last=len(grid) == 2 and count == 1)
            grid = grid[:-2]
        for position, loop in enumerate(reversed(grid)):
            extent = ctx.affine(loop.upper[0]).text
            name = ctx.names.fresh(loop.index)
            if position == len(grid) - 1 and count == 1:
                ctx.line(f"{name} = program")
            else:
                ctx.line(f"{name} = program % ({extent})")
                ctx.line(f"program = program // ({extent})")
            self._name(loop, name)
        self._own_pointers()

    def _own_pointers(self) -> None:
        """Which of the siblings' tensors a program works on; what is left of its number tells."""
        for name in (t.name for t in self.nest.tensors if t.name in self.siblings.apart):
            *others, text = self.pointers[name]
            for n, pointer in reversed([*enumerate(others)]):
                text = f"tl.where(program == {n}, {pointer}, {text})"
            self.ctx.line(f"{self.ctx.pointers[name]} = {text}")

    def _first_program(self) -> None:
        """The number of the iteration of the grid; a persistent program has several."""
        ctx = self.ctx
        wide = ".to(tl.int64)" if ctx.wide else ""
        if not self.warps.persistent:
            ctx.line(f"program = tl.program_id(0){wide}")
            return
        count = " * ".join(
            [f"({ctx.affine(loop.upper[0]).text})" for loop in self.grid]
            + [f"{self.siblings.count}"] * (self.siblings.count > 1)
        )
        turn = ctx.names.fresh("turn")
        how = "warp_specialize=True" if self.warps.specialize else "flatten=True"
        ctx.line(f"for {turn} in tl.range(tl.program_id(0), {count}, tl.num_programs(0), {how}):")
        ctx.depth += 1
        ctx.line(f"program = tl.cast({turn}, {'tl.int64' if wide else 'tl.int32'})")

    def _name(self, loop: Loop, name: str) -> None:
        """A loop of the grid: what its index is called, and its range."""
        ctx = self.ctx
        ctx.loops[loop.index] = name
        high = loop.upper[0].bounds(ctx.ranges)[1]
        ctx.ranges[loop.index] = (0, None if high is None else high - 1)

    def _grouped(self, outer: Loop, inner: Loop, *, is_last: bool) -> None:
        """The indices of two loops, some iterations of the first side by side: their programs read
        the same while it is in the caches."""
        ctx, group = self.ctx, self.warps.group
        rows, columns = (ctx.affine(loop.upper[0]).text for loop in (outer, inner))
        row, column = ctx.names.fresh(outer.index), ctx.names.fresh(inner.index)
        place, first = ctx.names.fresh("place"), ctx.names.fresh("first")
        if is_last:
            ctx.line(f"{place} = program")
        else:
            ctx.line(f"{place} = program % (({rows}) * ({columns}))")
            ctx.line(f"program = program // (({rows}) * ({columns}))")
        ctx.line(f"{first} = {place} // ({group} * ({columns})) * {group}")
        ctx.line(f"{place} = {place} % ({group} * ({columns}))")
        many = f"tl.minimum(({rows}) - {first}, {group})"
        ctx.line(f"{row} = {first} + {place} % {many}")
        ctx.line(f"{column} = {place} // {many}")
        self._name(outer, row)
        self._name(inner, column)

    def _tiles(self, node: Node) -> None:
        """Name the elements along the loops of tiles, once at the top; equal sizes share a name."""
        ctx = self.ctx
        lanes: dict[int, str] = {}
        for loop in _tile_loops(node):
            size = loop.upper[0].const
            if loop.index in ctx.sizes:
                if ctx.sizes[loop.index] != size:
                    raise Unsupported(f"tile loop {loop.index} has several sizes")
                continue
            if size & (size - 1):
                raise Unsupported(f"tile loop {loop.index} runs {size} times, no power of 2")
            ctx.sizes[loop.index] = size
            ctx.ranges[loop.index] = (0, size - 1)
            if size not in lanes:
                lanes[size] = ctx.names.fresh(f"to_{size}")
                ctx.line(f"{lanes[size]} = tl.arange(0, {size})")
            ctx.loops[loop.index] = lanes[size]

    def _node(self, node: Node) -> None:
        ctx = self.ctx
        match node:
            case Block():
                for child in node.body:
                    self._node(child)
            case Alloc():
                self._alloc(node)
            case Guard():
                self._guard(node)
            case Compute():
                emit_compute(ctx, node)
            case Loop(kind="vector" | "unroll"):
                self._tile(node)
            case Loop(kind="serial"):
                self._serial(node)
            case Loop():
                raise Unsupported(f"{node.kind} loop {node.index} inside the grid's")

    def _tile(self, loop: Loop) -> None:
        """One more dimension of the tile; a scan along it takes both of its computes at once."""
        ctx = self.ctx
        axes, conditions = ctx.axes, ctx.conditions
        ctx.axes = (*axes, loop.index)
        scan = scan_parts(loop.body)
        if scan is not None:
            update, final, tests = scan
            ctx.conditions = (*conditions, *tests)
            emit_scan(ctx, update, final)
        else:
            self._node(loop.body)
        ctx.axes, ctx.conditions = axes, conditions

    def _alloc(self, node: Alloc) -> None:
        ctx = self.ctx
        before = dict(ctx.registers)
        for b in node.buffers:
            if not all(e.is_const for e in b.shape):
                raise Unsupported(f"buffer {b.name} has no constant size")
            shape = tuple(e.const for e in b.shape)
            places = tuple(d for d, size in enumerate(shape) if size > 1)
            ctx.registers[b.name] = Register(b.dtype, shape, places=places)
        for compute in computes(node.body):
            if compute.phase == "update":
                narrow_states(ctx, compute)
        self._node(node.body)
        ctx.registers = before

    def _guard(self, node: Guard) -> None:
        ctx = self.ctx
        before = ctx.conditions
        if ctx.axes or not _stores_memory_alone(node.body):
            if node.orelse is not None:
                raise Unsupported("a choice between two ways for elements of one tile")
            ctx.conditions = (*before, *node.conditions)
            self._node(node.body)
        else:
            test = ctx.condition(node.conditions)
            ctx.line(f"if {test.text or 'True'}:")
            ctx.depth += 1
            self._node(node.body)
            ctx.depth -= 1
            if node.orelse is not None:
                ctx.line("else:")
                ctx.depth += 1
                self._node(node.orelse)
                ctx.depth -= 1
        ctx.conditions = before

    def _serial(self, loop: Loop) -> None:
        ctx = self.ctx
        low = _most([ctx.affine(b).text for b in loop.lower], "max")
        high = _most([ctx.affine(b).text for b in loop.upper], "min")
        name = ctx.names.fresh(loop.index)
        ctx.loops[loop.index] = name
        before = ctx.ranges.get(loop.index)
        lows = [b.bounds(ctx.ranges)[0] for b in loop.lower]
        highs = [b.bounds(ctx.ranges)[1] for b in loop.upper]
        known = [h for h in highs if h is not None]
        ctx.ranges[loop.index] = (
            max((x for x in lows if x is not None), default=None),
            min(known) - 1 if known else None,
        )
        bounds = high if low == "0" else f"{low}, {high}"
        is_innermost = not any(x.kind == "serial" for x in _loops(loop.body))
        is_split = self.warps.specialize and not self.warps.persistent and is_innermost
        turns = f"tl.range({bounds}, warp_specialize=True)" if is_split else f"range({bounds})"
        ctx.line(f"for {name} in {turns}:")
        loads, depth = dict(ctx.loads), ctx.depth
        ctx.depth += 1
        if self.warps.skip and emit_test(ctx, loop.body):
            ctx.depth += 1
        self._node(loop.body)
        ctx.depth = depth
        ctx.loads = {k: v for k, v in loads.items() if k in ctx.loads}
        if before is not None:
            ctx.ranges[loop.index] = before


def _most(texts: list[str], name: str) -> str:
    """The greatest or least of several bounds."""
    out = texts[0]
    for text in texts[1:]:
        out = f"tl.{name}imum({out}, {text})"
    return out


def _tile_loops(node: Node) -> list[Loop]:
    return [loop for loop in _loops(node) if loop.kind in ("vector", "unroll")]


def _loops(node: Node) -> Iterator[Loop]:
    """All loops in ``node``, outermost first."""
    if isinstance(node, Loop):
        yield node
    for child in node_children(node):
        yield from _loops(child)


def _stores_memory_alone(node: Node) -> bool:
    """Whether nothing that a register holds is changed: values would have to be the same type and
    shape on both ways."""
    match node:
        case Compute():
            return node.phase in ("point", "final", "writeback")
        case Block():
            return all(_stores_memory_alone(child) for child in node.body)
        case Alloc():
            return True
        case Loop():
            return _stores_memory_alone(node.body)
        case Guard():
            rest = node.orelse is None or _stores_memory_alone(node.orelse)
            return rest and _stores_memory_alone(node.body)


def _is_wide(shape: tuple[Affine, ...]) -> bool:
    if not all(e.is_const for e in shape):
        return True
    return prod(e.const for e in shape) >= _WIDE
