"""Windows that leave out what lies beyond the image, instead of reading a border of zeros there.

``pad_operands`` gives images a border, so that the loops of a convolution are plain. Where lanes
are channels, a window's rows above and below the image are whole iterations of a loop, whose bounds
can leave them out, and so are its columns where one register tile holds a whole line: there every
position is known when code is written. What is left out is neither stored, read nor multiplied: of
windows of 5×5 over 7×7 pixels that is a third of the multiply-adds and more of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from nestor.ir.affine import Affine, affine
from nestor.ir.expr import Const, Expr, Load, map_expr
from nestor.ir.program import AnyStatement, Layout, Program, Statement, Tensor
from nestor.passes.analysis import (
    ProgramFacts,
    contraction_roles,
    is_functional,
    is_pointwise,
    program_facts,
)
from nestor.passes.context import PassContext
from nestor.passes.contraction import contraction_of
from nestor.passes.contraction_tile import contraction_tile, shared_window
from nestor.passes.register_tile import VectorUnit
from nestor.passes.rewriting import map_expressions, replace_statements
from nestor.passes.statement_facts import constant_extent

_NAME = "trim_windows"

_MAX_PLACES = 1 << 12
"""Most places of one dimension that are counted one by one."""


def trim_windows(program: Program, ctx: PassContext) -> Program:
    """Take borders off images whose windows can do without.

    Rewrite: ``P[0] = P[H+1] = 0; P[h+1] = f(h); Y[c,y] = Σ_r P[c,y+r]·w[c,r]`` → ``P[h] = f(h);
        Y[c,y] = Σ_{r: 0 ≤ y+r-1 < H} P[c,y+r-1]·w[c,r]``, dimension by dimension.
    Legal when: ``P`` is a temp; one statement writes its inside and others nothing but zeros around
        it; whoever reads the border is a sum of products that has a plain load of it as a factor.
        Left out are terms of 0·w: an infinite or NaN weight no longer shows there.
    Done when lanes are channels, for dimensions that are loops around the register tile (bounds of
        the loop over taps say what is left) or lie in it whole (known when code is written).
    """
    facts = program_facts(program)
    statements = list(program.statements)
    tensors = dict(facts.tensors)
    gone: set[int] = set()
    for tensor in program.tensors:
        image = _bordered(program, facts, tensor.name)
        dims = image and _dims_to_trim(program, facts, image, _unit(ctx))
        if not image or not dims or not _is_wanted(tensor, dims, ctx):
            continue
        tensors[tensor.name] = _without_border(tensor, dims)
        gone |= {n for n in image.slabs if not _is_inside(program.statements[n], dims)}
        for number in {image.writer, *image.slabs, *facts.readers[tensor.name]} - gone:
            statement = statements[number]
            assert isinstance(statement, Statement)
            statements[number] = _trimmed(statement, tensor.name, dims)
        ctx.changed(_NAME, tensor.name, f"no border in dimensions {sorted(dims)}")
    kept = [s for n, s in enumerate(statements) if n not in gone]
    return replace_statements(program, kept, tensors.values())


@dataclass(frozen=True, slots=True)
class _Side:
    """Where the inside of a bordered dimension starts, and how long it is."""

    start: int
    extent: int

    def holds(self, places: set[int]) -> bool:
        return all(self.start <= p < self.start + self.extent for p in places)

    def avoids(self, places: set[int]) -> bool:
        return not any(self.start <= p < self.start + self.extent for p in places)


@dataclass(frozen=True, slots=True)
class _Bordered:
    """A temp with a border of zeros: the numbers of the statements that write its inside and the
    border, and the dimensions that have one."""

    name: str
    writer: int
    slabs: tuple[int, ...]
    sides: Mapping[int, _Side]


def _is_wanted(tensor: Tensor, dims: Mapping[int, _Side], ctx: PassContext) -> bool:
    """Whether the border goes. Knob: ``border SHAPE``."""
    shape = "x".join(map(str, tensor.shape))
    name = f"border {shape} in {','.join(map(str, sorted(dims)))}"
    meaning = "a border of zeros around an image: stored, or left out of the windows' loops"
    return ctx.choices.word(name, ("stored", "left out"), "left out", meaning) == "left out"


def _unit(ctx: PassContext) -> VectorUnit:
    if ctx.target is None:
        return VectorUnit()
    return VectorUnit(bits=ctx.target.vector_bits, registers=ctx.target.vector_registers)


def _bordered(program: Program, facts: ProgramFacts, name: str) -> _Bordered | None:
    """``name`` as an image with a border; None if it is none."""
    writers = facts.writers.get(name, [])
    if len(writers) < 2 or not facts.is_private_temp(name) or name not in facts.readers:
        return None
    slabs = tuple(n for n in writers if _is_zero(program.statements[n]))
    rest = [n for n in writers if n not in slabs]
    if len(rest) != 1:
        return None
    writer = program.statements[rest[0]]
    if not isinstance(writer, Statement) or not is_functional(writer):
        return None
    writes = [w for w in writer.writes if w.tensor == name]
    if len(writes) != 1 or rest[0] in facts.readers[name] or writer.domain.constraints:
        return None
    layout = facts.tensors[name].layout
    if layout is not None and {str(p) for p in layout.physical} != _names(layout):
        return None
    sides: dict[int, _Side] = {}
    for d, (index, extent) in enumerate(zip(writes[0].indices, facts.tensors[name].shape)):
        places = _places(writer, index)
        if places is None or not extent.is_const or len(places) == extent.const:
            continue
        first, last = min(places), max(places)
        if last - first + 1 == len(places):
            sides[d] = _Side(first, len(places))
    return _Bordered(name, rest[0], slabs, sides) if sides else None


def _names(layout: Layout) -> set[str]:
    """The dimensions that a layout which only orders them has."""
    return {f"d{d}" for d in range(len(layout.physical))}


def _is_zero(s: AnyStatement) -> bool:
    """Whether ``s`` writes nothing but zeros."""
    if not isinstance(s, Statement) or not is_pointwise(s) or not is_functional(s):
        return False
    return len(s.writes) == 1 and all(isinstance(e, Const) and e.value == 0 for e in s.elements)


def _places(s: Statement, index: object) -> set[int] | None:
    """The values that an affine ``index`` takes over the ranges of ``s``; None if they are not
    known, or too many to count."""
    if not isinstance(index, Affine):
        return None
    ranges: list[range] = []
    names = sorted(index.variables())
    count = 1
    for name in names:
        if name not in s.domain.names:
            return None
        r = s.domain.range_of(name)
        if not r.lower.is_const or not r.upper.is_const:
            return None
        ranges.append(range(r.lower.const, r.upper.const))
        count *= len(ranges[-1])
    if count > _MAX_PLACES:
        return None
    return {int(index.evaluate(dict(zip(names, at)))) for at in product(*ranges)}


def _dims_to_trim(
    program: Program, facts: ProgramFacts, image: _Bordered, unit: VectorUnit
) -> dict[int, _Side]:
    """The dimensions whose border can go: no reader needs it, and it is made of whole slabs."""
    dims = dict(image.sides)
    for number in facts.readers[image.name]:
        reader = program.statements[number]
        if not isinstance(reader, Statement) or not is_functional(reader):
            return {}
        for load in reader.loads:
            if load.tensor != image.name:
                continue
            if load.predicate:
                return {}
            dims = {
                d: side
                for d, side in dims.items()
                if _may_trim(reader, load, d, side, facts.tensors, unit)
            }
    if any(_is_cut(program.statements[number], dims) for number in image.slabs):
        return {}
    return dims


def _may_trim(
    s: Statement, load: Load, d: int, side: _Side, tensors: Mapping[str, Tensor], unit: VectorUnit
) -> bool:
    """Whether ``s`` can do without the border that ``load`` may read in dimension ``d``."""
    index = load.indices[d]
    places = _places(s, index)
    if places is None or not isinstance(index, Affine):
        return False
    if side.holds(places):
        return True
    roles = contraction_roles(s)
    c = contraction_of(s, tensors)
    if roles is None or c is None or load not in (roles.a_expr, roles.b_expr):
        return False
    window = shared_window(s, c)
    names = index.variables()
    if window is None or window.across or c.vector in names or not names & set(c.reduced):
        return False
    if window.row in names:
        row, rows, _ = contraction_tile(s, c, unit)
        return row == window.row and rows == constant_extent(s, window.row)
    return window.tap not in names


def _is_cut(slab: AnyStatement, dims: Mapping[int, _Side]) -> bool:
    """Whether a part of what ``slab`` writes would be left without the borders of ``dims``."""
    assert isinstance(slab, Statement)
    places = [(side, _places(slab, slab.writes[0].indices[d])) for d, side in dims.items()]
    if any(p is None for _, p in places):
        return True
    known = [(side, p) for side, p in places if p is not None]
    return not all(side.holds(p) for side, p in known) and not any(
        side.avoids(p) for side, p in known
    )


def _is_inside(slab: AnyStatement, dims: Mapping[int, _Side]) -> bool:
    """Whether what ``slab`` writes is still there without the borders of ``dims``."""
    assert isinstance(slab, Statement)
    written = slab.writes[0].indices
    return all(side.holds(_places(slab, written[d]) or set()) for d, side in dims.items())


def _without_border(tensor: Tensor, dims: Mapping[int, _Side]) -> Tensor:
    shape = tuple(
        affine(dims[d].extent) if d in dims else extent for d, extent in enumerate(tensor.shape)
    )
    layout = tensor.layout
    if layout is not None:
        extents = {f"d{d}": extent for d, extent in enumerate(shape)}
        physical = layout.physical
        layout = Layout(physical=physical, shape=tuple(extents[str(p)] for p in physical))
    return replace(tensor, shape=shape, layout=layout)


def _trimmed(s: Statement, name: str, dims: Mapping[int, _Side]) -> Statement:
    """``s`` with the places of ``name`` counted from its inside, and without terms beyond it."""

    def moved(indices: tuple[Affine | Expr, ...]) -> tuple[Affine | Expr, ...]:
        return tuple(
            i - dims[d].start if d in dims and isinstance(i, Affine) else i
            for d, i in enumerate(indices)
        )

    def visit(node: Expr) -> Expr:
        if isinstance(node, Load) and node.tensor == name:
            return replace(node, indices=moved(node.indices))
        return node

    wanted = [c for x in s.loads if x.tensor == name for c in _beyond(s, x, dims)]
    constraints = tuple(dict.fromkeys((*s.domain.constraints, *wanted)))
    return replace(
        map_expressions(s, lambda e: map_expr(e, visit)),
        domain=replace(s.domain, constraints=constraints),
        writes=tuple(
            replace(w, indices=moved(w.indices)) if w.tensor == name else w for w in s.writes
        ),
    )


def _beyond(s: Statement, load: Load, dims: Mapping[int, _Side]) -> Iterator[Affine]:
    """What must not be negative for ``load`` to stay inside."""
    for d, side in dims.items():
        index = load.indices[d]
        assert isinstance(index, Affine)
        if not side.holds(_places(s, index) or set()):
            yield index - side.start
            yield affine(side.start + side.extent - 1) - index
