"""Long rows of attention in blocks of keys, each with its own maximum, combined at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nestor.ir.affine import Affine, AffineLike, FloorDiv, affine, variable
from nestor.ir.expr import (
    Binary,
    Const,
    Expr,
    Index,
    Load,
    Select,
    Unary,
    Var,
    binary,
    map_expr,
    unary,
)
from nestor.ir.program import (
    Domain,
    IndexRange,
    Program,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.analysis import (
    contraction_roles,
    expression_variables,
    program_facts,
)
from nestor.passes.attention import Attention, find_attention
from nestor.passes.context import PassContext
from nestor.passes.masked_terms import block_of_terms, row_length, typical_extent
from nestor.passes.register_tile import MAX_SUMMED_TERMS
from nestor.passes.replacing import Replacements
from nestor.passes.rewriting import (
    in_order,
    map_expressions,
    map_statement_affines,
)
from nestor.passes.statement_facts import free_indices

_NAME = "split_softmax"
_GRAIN = 64
"""Blocks are multiples of this many keys, so that blocks of other passes fit into them."""

_FEW_ROWS = 16
"""Rows of scores below which the keys themselves are run in parallel."""

_MAX_BLOCKS = 256
"""Most blocks that keys are cut into for threads to share."""

_MAX_BLOCK_BYTES = 1 << 15
"""Most bytes of a block's scores in one row: a register tile of rows stays in a cache, and within
half of what a kernel may have on its stack."""

_PARTS = (2, 3, 4, 6, 8, 16, 32)
"""Numbers of blocks that a search compares."""

_DEFAULT_L2_BYTES = 1 << 20


def split_softmax(program: Program, ctx: PassContext) -> Program:
    """Take a softmax between contractions in blocks of keys.

    Rewrite: ``m[q] = max_t X[q,t]; E = exp(X - m); l = Σ_t E; O = Σ_t E·V`` → for blocks b of keys
        ``mb[q,b] = max_u X; E = exp(X - mb); lb = Σ_u E; ob = Σ_u E·V``, then over all
        ``m = max_b mb; w = exp(mb - m); l = Σ_b w·lb; O = Σ_b w·ob``.
    Legal when: nobody else reads X, m, E and l. It reassociates: results differ in the last bits.
        A block of -∞ alone counts as nothing, as it would in its row.
    Done when a row's keys and values do not stay near a core: then all rows take a block before the
        next one; when there are few rows, so that threads share the keys; and when the number of
        keys is a symbol, so that a row of scores is as long as a block and stays near. Blocks are
        then all of one size: what lies behind the last key is -∞, and read from nowhere.
    Source: Dao et al., "FlashAttention", NeurIPS 2022; Dao et al., "Flash-Decoding", 2023.
    """
    facts = program_facts(program)
    out = Replacements(program, ctx)
    for statement in in_order(program.statements):
        if isinstance(statement, Statement):
            found = find_attention(statement, program, facts)
            size = None if found is None else _block(found, program, ctx)
            if found is not None and size is not None:
                _AttentionSplit(out, found, size).write()
                ctx.changed(_NAME, found.result.name, f"takes keys in blocks of {size}")
    return out.program()


def _block(found: Attention, program: Program, ctx: PassContext) -> int | None:
    """Keys of a block; None: the row stays whole."""
    source = found.scores[-1]
    rows = math.prod(typical_extent(source, n) for n in free_indices(source) if n != found.key)
    extent = source.domain.range_of(found.key).upper
    if not extent.is_const:
        return _symbolic_block(found, extent.bounds(program.symbol_ranges())[1], rows, ctx)
    keys = extent.const
    default = _even_block(found, keys, rows, ctx) or 0
    values = [0]
    for parts in _PARTS:
        size = -(-keys // parts // _GRAIN) * _GRAIN
        if (
            _GRAIN <= size < keys
            and size <= _longest_block(found)
            and _may_split(found, keys, size)
        ):
            values.append(size)
    meaning = "keys of a block of attention; 0: the row stays whole"
    return ctx.choices.size(f"keys {rows}x{keys}", values, default, meaning) or None


def _even_block(found: Attention, keys: int, rows: int, ctx: PassContext) -> int | None:
    """Keys of a block by the rules; None: the row stays whole."""
    l2_bytes = _DEFAULT_L2_BYTES if ctx.target is None else ctx.target.l2_bytes
    most = keys
    if _reuse(found) >= ctx.options.min_relayout_rows:
        most = min(_longest_block(found), l2_bytes // 2 // _row_bytes(found))
    if rows < _FEW_ROWS:
        most = min(most, max(MAX_SUMMED_TERMS, keys // _MAX_BLOCKS))
    if keys <= most or (rows < _FEW_ROWS and keys < 2 * MAX_SUMMED_TERMS):
        return None
    most = max(_GRAIN, most // _GRAIN * _GRAIN)
    even = -(-keys // -(-keys // most))
    least = min(most, -(-even // _GRAIN) * _GRAIN)
    return next((n for n in range(least, most + 1, _GRAIN) if _may_split(found, keys, n)), None)


def _symbolic_block(
    found: Attention, longest: int | None, rows: int, ctx: PassContext
) -> int | None:
    """Keys of a block of a row of symbolic length, of at most ``longest`` keys if that is known."""
    l2_bytes = _DEFAULT_L2_BYTES if ctx.target is None else ctx.target.l2_bytes
    most = min(_longest_block(found), l2_bytes // 2 // _row_bytes(found))
    if rows < _FEW_ROWS:
        most = min(most, MAX_SUMMED_TERMS)
    if longest is not None:
        most = min(most, -(-longest // _GRAIN) * _GRAIN)
    # Constraints count in blocks of their own, of which a block has at least two.
    least = 2 * _GRAIN
    sizes = range(max(least, most // _GRAIN * _GRAIN), least - 1, -_GRAIN)
    return next((n for n in sizes if _may_split(found, None, n)), None)


def _may_split(found: Attention, keys: int | None, size: int) -> bool:
    """Whether every row of every block still has a result of its own.

    Args: keys: of a row; None: a symbol.

    A constraint that says which keys count drops an output point only where it mentions no key: so
    the keys of a block must not all be alike to it.
    """
    members = (*found.scores, found.largest, found.weights, found.total, found.result)
    for s in members:
        key = found.names[s.name][found.key]
        for c in s.domain.constraints:
            for atom, _ in c.terms:
                if isinstance(atom, str) or key not in atom.num.variables():
                    continue
                if not isinstance(atom, FloorDiv) or atom.num != variable(key):
                    return False
                if size % atom.den or size == atom.den:
                    return False
                if keys is not None and 0 < keys % size <= atom.den:
                    return False
    return True


def _reuse(found: Attention) -> int:
    """How many rows of scores read the same keys and values."""
    return math.prod(typical_extent(found.result, n) for n in _shared_rows(found))


def _shared_rows(found: Attention) -> tuple[str, ...]:
    """Indices of the result that move with the weights and not with the values."""
    roles = contraction_roles(found.result)
    assert roles is not None
    is_first = isinstance(roles.a_expr, Load) and (
        roles.a_expr.tensor == found.weights.writes[0].tensor
    )
    return roles.m if is_first else roles.n


def _longest_block(found: Attention) -> int:
    """Most keys of a block, however little is read for each [elements]."""
    return _MAX_BLOCK_BYTES // found.weights.elements[0].dtype.bytes


def _row_bytes(found: Attention) -> int:
    """Bytes of the keys' or the values' part for one key, whichever is more [bytes]."""
    rows = found.names[found.result.name].values()
    widths = [[n for n in free_indices(found.result) if n not in rows]]
    statements = [found.result]
    for s in found.scores:
        if s.reduction is not None:
            widths.append(list(s.reduction.indices))
            statements.append(s)
    most = 1
    for s, names in zip(statements, widths):
        count = s.elements[0].dtype.bytes
        for n in names:
            count *= typical_extent(s, n)
        most = max(most, count)
    return most


# -------------------------------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class _Blocks:
    """``count`` blocks of ``size`` keys from block ``first`` on, whose keys start at ``start``.

    A single block has no index of its own. With ``end``, all keys from there on are none: the last
    block is not full.
    """

    first: int
    count: Affine
    size: int
    start: int
    end: Affine | None = None

    @property
    def is_single(self) -> bool:
        return self.count == affine(1)


class _AttentionSplit:
    def __init__(self, out: Replacements, found: Attention, size: int):
        self.out = out
        self.found = found
        self.size = size
        self.tensors = {t.name: t for t in out.source.tensors}
        source = found.scores[-1]
        self.rows = [n for n in free_indices(source) if n != found.key]
        self.blocks = self._cut(source.domain.range_of(found.key).upper)
        self.count = self.blocks[-1].count + self.blocks[-1].first
        self.b = "b"
        while any(self.b in s.domain.names for s in self._all()):
            self.b += "b"
        row_shape = tuple(source.domain.range_of(n).upper for n in self.rows)
        dtype = found.weights.elements[0].dtype
        kind = found.result.name
        self.part_max = self._tensor(f"{kind}_max", (*row_shape, self.count), dtype)
        self.part_sum = self._tensor(f"{kind}_sum", (*row_shape, self.count), dtype)
        self.scale = self._tensor(f"{kind}_scale", (*row_shape, self.count), dtype)
        self.order = self._part_order()
        ranges = {r.name: r.upper for r in found.result.domain.ranges}
        shape = tuple(self.count if n == self.b else ranges[n] for n in self.order)
        self.part = self._tensor(f"{kind}_part", shape, dtype)

    def _cut(self, keys: Affine) -> list[_Blocks]:
        size = self.size
        if not keys.is_const:
            longest = keys.bounds(self.out.source.symbol_ranges())[1]
            single = longest is not None and longest <= size
            count = affine(1) if single else (keys + (size - 1)) // size
            return [_Blocks(0, count, size, 0, keys)]
        whole, rest = divmod(keys.const, size)
        blocks = [_Blocks(0, affine(whole), size, 0)] if whole else []
        if rest:
            blocks.append(_Blocks(whole, affine(1), rest, whole * size))
        return blocks

    def _all(self) -> tuple[Statement, ...]:
        f = self.found
        return (*f.scores, f.largest, f.weights, f.total, f.result)

    def _tensor(self, wish: str, shape: tuple[Affine, ...], dtype: object) -> Tensor:
        name = self.out.names.fresh(wish)
        made = Tensor(name=name, shape=shape, dtype=dtype, role="temp")  # type: ignore[arg-type]
        self.out.tensors.append(made)
        return made

    def _part_order(self) -> list[str]:
        """Indices of a block's result: all rows of a block lie together."""
        rows = _shared_rows(self.found)
        free = free_indices(self.found.result)
        at = next((p for p, n in enumerate(free) if n in rows), max(0, len(free) - 1))
        return [*free[:at], self.b, *free[at:]]

    def write(self) -> None:
        """Make the statements; they stand where the last one stood."""
        f = self.found
        made: list[Statement] = []
        for blocks in self.blocks:
            made += self._of_blocks(blocks)
        made += self._combined()
        self.out.placed[f.result.name] = made
        self.out.gone |= f.members()

    # Blocks

    def _of_blocks(self, blocks: _Blocks) -> list[Statement]:
        f = self.found
        moved: dict[str, tuple[Tensor, int]] = {}
        made: list[Statement] = []
        for s in f.scores:
            s = self._ending(s, blocks, is_last=s is f.scores[-1])
            made.append(self._split_temp(s, blocks, moved))
        largest = self._split(self._bounded(f.largest, blocks), blocks, moved)
        made.append(self._partial(largest, self._at(self.part_max, f.largest, blocks)))
        weights = self._split_temp(self._bounded(f.weights, blocks), blocks, moved)
        made.append(map_expressions(weights, lambda e: self._own_maximum(e, blocks)))
        total = self._split(self._bounded(f.total, blocks), blocks, moved)
        made.append(self._partial(total, self._at(self.part_sum, f.total, blocks)))
        result = self._split(self._bounded(f.result, blocks, exactly=True), blocks, moved)
        place = tuple(self._block_index(blocks) if n == self.b else variable(n) for n in self.order)
        made.append(self._partial(result, Write(tensor=self.part.name, indices=place)))
        return made

    def _bounded(self, s: Statement, blocks: _Blocks, *, exactly: bool = False) -> Statement:
        """``s`` without the keys from the end on, to whole groups of a register tile's columns if
        not ``exactly``."""
        if blocks.end is None:
            return s
        key = variable(self.found.names[s.name][self.found.key])
        symbols = self.out.source.symbol_ranges()
        terms = row_length(self.found.scores[-1], self.found.key, symbols)
        group = block_of_terms(self.out.ctx, terms)
        first = key if exactly else key // group * group
        constraints = (*s.domain.constraints, blocks.end - 1 - first)
        return replace(s, domain=replace(s.domain, constraints=constraints))

    def _ending(self, s: Statement, blocks: _Blocks, *, is_last: bool) -> Statement:
        """A statement of the scores that reads nothing behind the last key; the last one writes -∞
        there."""
        if blocks.end is None:
            return s
        key = self.found.names[s.name][self.found.key]
        alive = blocks.end - 1 - variable(key)
        own = {w.tensor for t in self.found.scores for w in t.writes}

        def visit(node: Expr) -> Expr:
            if not isinstance(node, Load) or node.tensor in own:
                return node
            if key not in expression_variables(node):
                return node
            other = node.other or Const(value=0, dtype=node.dtype)
            return replace(node, predicate=(*node.predicate, alive), other=other)

        s = map_expressions(self._bounded(s, blocks), lambda e: map_expr(e, visit))
        if not is_last:
            return s

        def kept(value: Expr) -> Expr:
            low = Const(value=float("-inf"), dtype=value.dtype)
            return Select(condition=binary("ge", Index(value=alive), zero), a=value, b=low)

        zero = Const(value=0, dtype=Index(value=alive).dtype)
        if s.reduction is None:
            return replace(s, elements=(kept(s.elements[0]),))
        final = tuple(kept(f) for f in s.reduction.final)
        return replace(s, reduction=replace(s.reduction, final=final))

    def _block_index(self, blocks: _Blocks) -> Affine:
        return affine(blocks.first) if blocks.is_single else variable(self.b) + blocks.first

    def _at(self, tensor: Tensor, s: Statement, blocks: _Blocks) -> Write:
        names = self.found.names[s.name]
        rows = tuple(variable(names[n]) for n in self.rows)
        return Write(tensor=tensor.name, indices=(*rows, self._block_index(blocks)))

    def _split(
        self, s: Statement, blocks: _Blocks, moved: Mapping[str, tuple[Tensor, int]]
    ) -> Statement:
        """``s`` with its key index counted in blocks; loads of split temps follow."""
        key = self.found.names[s.name][self.found.key]
        within = variable(key)
        value = within + blocks.start
        if not blocks.is_single:
            value = value + variable(self.b) * blocks.size
        mapping: dict[str, AffineLike] = {key: value}

        def visit(node: Expr) -> Expr:
            if not isinstance(node, Load) or node.tensor not in moved:
                return node
            tensor, at = moved[node.tensor]
            own = [variable(self.b)] if not blocks.is_single else []
            indices = (*node.indices[:at], *own, within, *node.indices[at + 1 :])
            return replace(node, tensor=tensor.name, indices=indices)

        def body(a: Affine) -> Affine:
            return a.substitute(mapping)

        ranges: list[IndexRange] = []
        for r in s.domain.ranges:
            if r.name != key:
                ranges.append(r)
                continue
            if not blocks.is_single:
                ranges.append(IndexRange(name=self.b, lower=affine(0), upper=blocks.count))
            ranges.append(IndexRange(name=key, lower=affine(0), upper=affine(blocks.size)))
        constraints = tuple(body(c) for c in s.domain.constraints)
        # Ordering: affines first, which would otherwise shift the places in split temps again.
        shifted = map_statement_affines(s, body)
        shifted = map_expressions(shifted, lambda e: map_expr(e, visit))
        domain = Domain(ranges=tuple(ranges), constraints=constraints)
        return replace(shifted, name=self.out.names.fresh(s.name), domain=domain)

    def _split_temp(
        self, s: Statement, blocks: _Blocks, moved: dict[str, tuple[Tensor, int]]
    ) -> Statement:
        """A statement whose result has the key as an index: it gets a temp of blocks."""
        key = self.found.names[s.name][self.found.key]
        old = self.tensors[s.writes[0].tensor]
        at = list(s.writes[0].indices).index(variable(key))
        own = (blocks.count,) if not blocks.is_single else ()
        shape = (*old.shape[:at], *own, affine(blocks.size), *old.shape[at + 1 :])
        made = self._tensor(old.name, shape, old.dtype)
        new = self._split(s, blocks, moved)
        b = (variable(self.b),) if not blocks.is_single else ()
        old_indices = s.writes[0].indices
        indices = (*old_indices[:at], *b, variable(key), *old_indices[at + 1 :])
        moved[old.name] = (made, at)
        return replace(new, writes=(Write(tensor=made.name, indices=indices),))

    def _partial(self, s: Statement, place: Write) -> Statement:
        """A reduction that keeps its bare state."""
        assert s.reduction is not None
        state = Var(name="s0", dtype=s.reduction.monoid.dtypes[0])
        return replace(s, reduction=replace(s.reduction, final=(state,)), writes=(place,))

    def _own_maximum(self, element: Expr, blocks: _Blocks) -> Expr:
        """``exp(X - m)`` with the maximum of the block; 0 where that is -∞, so that the block's
        weights are 0 and not NaN."""
        assert isinstance(element, Unary) and isinstance(element.x, Binary)
        place = self._at(self.part_max, self.found.weights, blocks)
        load = Load(tensor=place.tensor, indices=place.indices, dtype=self.part_max.dtype)
        low = Const(value=float("-inf"), dtype=load.dtype)
        zero = Const(value=0, dtype=load.dtype)
        safe = Select(condition=binary("eq", load, low), a=zero, b=load)
        return unary("exp", binary("sub", element.x.a, safe))

    # All blocks

    def _combined(self) -> list[Statement]:
        f = self.found
        scale = self._scales()
        made = [self._over_blocks(f.largest, self._read(self.part_max, f.largest)), scale]
        weighted = binary(
            "mul", self._read(self.scale, f.total), self._read(self.part_sum, f.total)
        )
        made.append(self._over_blocks(f.total, weighted))
        part = Load(
            tensor=self.part.name, indices=tuple(map(variable, self.order)), dtype=self.part.dtype
        )
        weighted = binary("mul", self._read(self.scale, f.result), part)
        made.append(self._over_blocks(f.result, weighted))
        return made

    def _read(self, tensor: Tensor, s: Statement) -> Load:
        names = self.found.names[s.name]
        rows = tuple(variable(names[n]) for n in self.rows)
        return Load(tensor=tensor.name, indices=(*rows, variable(self.b)), dtype=tensor.dtype)

    def _over_blocks(self, s: Statement, element: Expr) -> Statement:
        """``s`` reducing ``element`` over blocks instead of its own over keys."""
        key = self.found.names[s.name][self.found.key]
        block = IndexRange(name=self.b, lower=affine(0), upper=self.count)
        ranges = tuple(block if r.name == key else r for r in s.domain.ranges)
        constraints = tuple(c for c in s.domain.constraints if key not in c.variables())
        assert s.reduction is not None
        return replace(
            s,
            name=self.out.names.fresh(s.name),
            domain=Domain(ranges=ranges, constraints=constraints),
            elements=(element,),
            reduction=replace(s.reduction, indices=(self.b,)),
        )

    def _scales(self) -> Statement:
        """``w = exp(mb - m)``: what a block's sums count for."""
        f = self.found
        source = f.scores[-1]
        largest = f.largest.writes[0]
        back = {v: n for n, v in f.names[f.largest.name].items()}
        mapping: dict[str, AffineLike] = {v: variable(n) for v, n in back.items()}
        whole = Load(
            tensor=largest.tensor,
            indices=tuple(i.substitute(mapping) for i in largest.indices if isinstance(i, Affine)),
            dtype=f.weights.elements[0].dtype,
        )
        rows = tuple(map(variable, self.rows))
        part = Load(tensor=self.part_max.name, indices=(*rows, variable(self.b)), dtype=whole.dtype)
        block = IndexRange(name=self.b, lower=affine(0), upper=self.count)
        ranges = tuple(source.domain.range_of(n) for n in self.rows)
        return Statement(
            name=self.out.names.fresh(f"{f.weights.name}_scale"),
            domain=Domain(ranges=(*ranges, block)),
            order=f.result.order[:1],
            writes=(Write(tensor=self.scale.name, indices=(*rows, variable(self.b))),),
            elements=(unary("exp", binary("sub", part, whole)),),
            origin=f.result.origin,
        )
