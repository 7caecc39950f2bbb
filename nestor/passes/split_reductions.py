"""Products that are only reduced, in blocks that stay near: their results never reach memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, AffineLike, affine, variable
from nestor.ir.expr import Expr, Load, Select, Var, binary, map_expr, unary
from nestor.ir.program import (
    Domain,
    IndexRange,
    Layout,
    Program,
    Statement,
    Tensor,
    Write,
)
from nestor.ir.types import DType
from nestor.passes.analysis import (
    domain_volume,
    expression_variables,
    program_facts,
    weight_tensors,
    zero_of,
)
from nestor.passes.context import PassContext
from nestor.passes.picked_elements import ElementPicker
from nestor.passes.product_reductions import (
    ReducedProduct,
    find_reduced_product,
    shifted_parts,
)
from nestor.passes.replacing import Replacements
from nestor.passes.rewriting import (
    in_order,
    map_expressions,
    map_statement_affines,
)
from nestor.passes.statement_facts import reuse_extent

_NAME = "split_reductions"
_GRAIN = 32
"""Blocks are multiples of this many terms: two vectors of the widest unit."""

_MAX_BLOCK = 256
"""Most terms of a block [elements]: a few rows of it stay in a first-level cache."""

_LEAST_TERMS, _LEAST_REUSE = 2 * _GRAIN, 8
"""Fewest terms of a reduction, and fewest rows that read the same operand, for which it pays."""

_DEFAULT_L2_BYTES = 1 << 20


def split_reductions(program: Program, ctx: PassContext) -> Program:
    """Reduce products block by block, where nothing but reductions needs them.

    Rewrite: ``P[t,v] = Σ_k A[t,k]·B[v,k]; r[t] = final(⊕_v f(P[t,v]))`` → for blocks b of terms
        ``P'[t,b,u] = Σ_k A[t,k]·B[b·U+u,k]; s[b,t] = ⊕_u f(P'[t,b,u])``, then
        ``r[t] = final(⊕_b s[b,t])``. A sum of ``exp(f - m)`` with m the row's maximum takes that
        of the block, and counts ``exp(s - m)`` fold when blocks are combined. Single elements that
        somebody reads at places known at run time are dot products of their own.
    Legal when: all reductions run over the same free index v of the product, in any order, and all
        readers of the product are pointwise, such reductions, or readers of single elements. It
        reassociates: results differ in the last bits. How many blocks there are does not depend on
        the number of threads.
    Done when the product exceeds the second-level cache, and an operand's block fits into half
        of it. Fusion then keeps P' in a buffer of a few rows.
    Source: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025;
        Dao et al., "FlashAttention", NeurIPS 2022.
    """
    out, facts = _Rewriter(program, ctx), program_facts(program)
    for statement in in_order(program.statements):
        found = find_reduced_product(statement, program, facts)
        if found is None:
            continue
        size = _block(found, ctx)
        if size is not None and out.split(found, size):
            how = f"reduced in blocks of {size}"
            ctx.changed(_NAME, found.product.name, how)
    return out.program()


def _block(found: ReducedProduct, ctx: PassContext) -> int | None:
    """Terms of a block; None: the product stays as it is."""
    l2_bytes = _DEFAULT_L2_BYTES if ctx.target is None else ctx.target.l2_bytes
    product = found.product
    assert product.reduction is not None
    key_range = product.domain.range_of(found.key)
    operand = found.moving_operand()
    if operand is None or operand.predicate or not key_range.upper.is_const:
        return None
    reduced = product.reduction.indices
    if any(not product.domain.range_of(n).upper.is_const for n in reduced):
        return None
    terms = found.key_extent()
    if terms < _LEAST_TERMS or found.reuse() < _LEAST_REUSE:
        return None
    summed = domain_volume(product.domain, frozenset(reduced))
    results = math.prod(reuse_extent(product, n) for n in (*found.rows(), found.key))
    if results * product.elements[0].dtype.bytes <= l2_bytes:
        return None
    most = l2_bytes // 2 // max(1, summed * operand.dtype.bytes)
    most = min(_MAX_BLOCK, most // _GRAIN * _GRAIN)
    if most < _GRAIN:
        ctx.refused(_NAME, product.name, f"{_GRAIN} rows of '{operand.tensor}' are not near")
        return None
    if terms <= most:
        return terms
    even = -(-terms // -(-terms // most))
    return min(most, -(-even // _GRAIN) * _GRAIN)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """``count`` blocks of ``size`` terms from block ``first`` on, whose terms start at ``start``.

    A single block has no index of its own.
    """

    first: int
    count: int
    size: int
    start: int


class _Rewriter(Replacements):
    """Rewrites a program, product by product."""

    def __init__(self, source: Program, ctx: PassContext):
        super().__init__(source, ctx)
        self.weights = weight_tensors(source)

    def split(self, found: ReducedProduct, size: int) -> bool:
        """Replace what was found; False: an element cannot be picked, or something is taken."""
        involved = {s.name for s in (*found.members(), *found.picks)}
        if not involved.isdisjoint(self.gone):
            return False
        picker = ElementPicker(found, self.names)
        picked: dict[str, list[Statement]] = {}
        for reader in found.picks:
            made = picker.pick(reader)
            if made is None:
                self.ctx.refused(_NAME, found.product.name, f"'{reader.name}' needs it whole")
                return False
            picked[reader.name] = made
        self.tensors += picker.tensors
        last = max(found.members(), key=lambda s: s.order[0])
        self.placed.update(picked)
        self.placed[last.name] = _ProductSplit(self, found, size).statements()
        self.gone |= involved
        return True

    def dtype_of(self, name: str) -> DType:
        """Of a tensor of the source: sums of halves are taken in float32 and stored as halves."""
        return next(t.dtype for t in self.source.tensors if t.name == name)

    def temp(self, wish: str, shape: tuple[Affine, ...], dtype: DType) -> Tensor:
        """A new temp. Its layout is spelled out, so that ``assign_layouts`` leaves it: terms of a
        block lie together."""
        order = tuple(variable(f"d{d}") for d in range(len(shape)))
        layout = Layout(physical=order, shape=shape)
        name = self.names.fresh(wish)
        made = Tensor(name=name, shape=shape, dtype=dtype, role="temp", layout=layout)
        self.tensors.append(made)
        return made


class _ProductSplit:
    """Makes the statements that stand for one reduced product."""

    def __init__(self, out: _Rewriter, found: ReducedProduct, size: int):
        self.out = out
        self.found = found
        whole, rest = divmod(found.key_extent(), size)
        self.blocks = [_Blocks(0, whole, size, 0)] if whole else []
        if rest:
            self.blocks.append(_Blocks(whole, 1, rest, whole * size))
        self.count = whole + (1 if rest else 0)
        self.b = "b"
        while any(self.b in s.domain.names for s in found.members()):
            self.b += "b"
        self.rows = found.rows()
        ranges = found.product.domain.range_of
        self.row_shape = tuple(ranges(n).upper for n in self.rows)
        self.parts: dict[str, list[Tensor]] = {}

    def statements(self) -> list[Statement]:
        """Blocks of everything, then what combines them."""
        if self.count == 1:
            return self._of_blocks(self.blocks[0])
        shape = (affine(self.count), *self.row_shape)
        for s in self.found.reductions:
            assert s.reduction is not None
            dtypes = s.reduction.monoid.dtypes
            self.parts[s.name] = [self.out.temp(f"{s.name}_part", shape, d) for d in dtypes]
        made = [s for blocks in self.blocks for s in self._of_blocks(blocks)]
        return made + [self._combined(s) for s in self.found.reductions]

    # Blocks

    def _of_blocks(self, blocks: _Blocks) -> list[Statement]:
        f = self.found
        moved: dict[str, Tensor] = {}
        made: list[Statement] = []
        for s in (f.product, *f.needed()):
            new = self._in_blocks(s, blocks, moved)
            shape = (*self.row_shape, *self._own(blocks), affine(blocks.size))
            dtype = self.out.dtype_of(s.writes[0].tensor)
            tensor = self.out.temp(s.writes[0].tensor, shape, dtype)
            place = self._place(s, blocks)
            moved[s.writes[0].tensor] = tensor
            new = replace(new, writes=(Write(tensor=tensor.name, indices=place),))
            if s is f.product:
                made += self._with_panels(new, blocks)
            else:
                made.append(new)
        for s in f.reductions:
            new = self._in_blocks(s, blocks, moved)
            made.append(new if self.count == 1 else self._partial(s, new, blocks))
        return made

    def _own(self, blocks: _Blocks) -> tuple[Affine, ...]:
        return (affine(blocks.count),) if blocks.count > 1 else ()

    def _place(self, s: Statement, blocks: _Blocks) -> tuple[Affine, ...]:
        """Where ``s`` finds its element of a temp of blocks."""
        names = self.found.names[s.name]
        rows = tuple(variable(names[n]) for n in self.rows)
        own = (variable(self.b),) if blocks.count > 1 else ()
        return (*rows, *own, variable(names[self.found.key]))

    def _part_place(self, s: Statement, blocks: _Blocks | None) -> tuple[Affine, ...]:
        """Where ``s`` finds its partial state of a block; None: of block ``b``."""
        names = self.found.names[s.name]
        b = variable(self.b)
        if blocks is not None:
            b = affine(blocks.first) if blocks.count == 1 else b + blocks.first
        return (b, *(variable(names[n]) for n in self.rows))

    def _in_blocks(self, s: Statement, blocks: _Blocks, moved: Mapping[str, Tensor]) -> Statement:
        """``s`` with its key index counted in blocks; loads of temps in blocks follow."""
        key = self.found.names[s.name][self.found.key]
        value = variable(key) + blocks.start
        if blocks.count > 1:
            value = value + variable(self.b) * blocks.size
        mapping: dict[str, AffineLike] = {key: value}
        place = self._place(s, blocks)

        def visit(node: Expr) -> Expr:
            if not isinstance(node, Load) or node.tensor not in moved:
                return node
            return replace(node, tensor=moved[node.tensor].name, indices=place)

        ranges: list[IndexRange] = []
        for r in s.domain.ranges:
            if r.name != key:
                ranges.append(r)
                continue
            if blocks.count > 1:
                ranges.append(IndexRange(name=self.b, lower=affine(0), upper=affine(blocks.count)))
            ranges.append(IndexRange(name=key, lower=affine(0), upper=affine(blocks.size)))
        # Ordering: affines first, which would otherwise shift the places in temps again.
        shifted = map_statement_affines(s, lambda a: a.substitute(mapping))
        shifted = map_expressions(shifted, lambda e: map_expr(e, visit))
        return replace(
            shifted, name=self.out.names.fresh(s.name), domain=Domain(ranges=tuple(ranges))
        )

    def _with_panels(self, product: Statement, blocks: _Blocks) -> list[Statement]:
        """``product`` after a copy of the weight that it reads in blocks, block by block: a
        schedule can then store it in panels."""
        operand = self.found.moving_operand()
        assert operand is not None
        if operand.tensor not in self.out.weights or self.count == 1:
            return [product]
        loads = [x for x in product.loads if x.tensor == operand.tensor]
        key, used = self.found.key, expression_variables(loads[0])
        if len(set(loads)) != 1 or not used <= set(product.domain.names):
            return [product]
        names = [n for n in product.domain.names if n in used and n not in (self.b, key)]
        names = [*([self.b] if blocks.count > 1 else []), *names, key]
        ranges = tuple(product.domain.range_of(n) for n in names)
        copy = self.out.temp(f"{operand.tensor}_b", tuple(r.upper for r in ranges), operand.dtype)
        place = tuple(map(variable, names))
        load = Load(tensor=copy.name, indices=place, dtype=operand.dtype)
        made = Statement(
            name=self.out.names.fresh(f"{copy.name}_s"),
            domain=Domain(ranges=ranges),
            order=product.order,
            writes=(Write(tensor=copy.name, indices=place),),
            elements=(loads[0],),
            origin=product.origin,
        )

        def visit(node: Expr) -> Expr:
            return load if node == loads[0] else node

        return [made, map_expressions(product, lambda e: map_expr(e, visit))]

    def _partial(self, s: Statement, new: Statement, blocks: _Blocks) -> Statement:
        """A reduction of a block that keeps its bare state."""
        reduction = new.reduction
        assert reduction is not None
        dtypes = reduction.monoid.dtypes
        state = tuple(Var(name=f"s{c}", dtype=d) for c, d in enumerate(dtypes))
        place = self._part_place(s, blocks)
        writes = tuple(Write(tensor=t.name, indices=place) for t in self.parts[s.name])
        if s.name in self.found.shifted:
            largest = self.parts[self.found.shifted[s.name].name][0]
            load = Load(tensor=largest.name, indices=place, dtype=largest.dtype)
            new = replace(new, elements=(_shifted_by_block(new.elements[0], load),))
        return replace(new, reduction=replace(reduction, final=state), writes=writes)

    # All blocks

    def _combined(self, s: Statement) -> Statement:
        """``s`` reducing the states of blocks instead of single terms."""
        reduction = s.reduction
        assert reduction is not None
        key = self.found.names[s.name][self.found.key]
        block = IndexRange(name=self.b, lower=affine(0), upper=affine(self.count))
        ranges = tuple(block if r.name == key else r for r in s.domain.ranges)
        place = self._part_place(s, None)
        elements: tuple[Expr, ...] = tuple(
            Load(tensor=t.name, indices=place, dtype=t.dtype) for t in self.parts[s.name]
        )
        if s.name in self.found.shifted:
            elements = (self._weighted(s, elements[0], place),)
        return replace(
            s,
            name=self.out.names.fresh(s.name),
            domain=Domain(ranges=ranges),
            elements=elements,
            reduction=replace(reduction, indices=(self.b,)),
        )

    def _weighted(self, s: Statement, part: Expr, place: tuple[Affine, ...]) -> Expr:
        """A block's sum times ``exp(mb - m)``: what it counts for beside the row's maximum."""
        largest = self.parts[self.found.shifted[s.name].name][0]
        parts = shifted_parts(s.elements[0])
        assert parts is not None
        own = Load(tensor=largest.name, indices=place, dtype=largest.dtype)
        return binary("mul", unary("exp", binary("sub", own, parts[1])), part)


def _shifted_by_block(element: Expr, largest: Load) -> Expr:
    """``exp(x - m)`` with the maximum of the block; 0 for an infinite one: a block of -∞ alone then
    sums to 0 and not to NaN, and its weight is 0 too."""
    parts = shifted_parts(element)
    assert parts is not None
    finite = Select(condition=unary("isinf", largest), a=zero_of(largest.dtype), b=largest)
    return unary("exp", binary("sub", parts[0], finite))
