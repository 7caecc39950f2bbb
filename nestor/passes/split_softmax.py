"""Long rows of attention in blocks of keys, each with its own maximum, combined at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nestor.ir.affine import Affine, AffineLike, FloorDiv, affine, variable
from nestor.ir.expr import Binary, Const, Expr, Load, Select, Unary, Var, binary, map_expr, unary
from nestor.ir.monoid import is_builtin
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Program,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.analysis import ProgramFacts, contraction_roles, is_functional, program_facts
from nestor.passes.context import PassContext
from nestor.passes.masked_terms import typical_extent
from nestor.passes.points import Names, is_private, same_points
from nestor.passes.register_tile import MAX_SUMMED_TERMS
from nestor.passes.rewriting import Names as FreshNames
from nestor.passes.rewriting import (
    in_order,
    map_expressions,
    map_statement_affines,
    names_of,
    renumber,
    replace_statements,
    statement_loads,
)

_NAME = "split_softmax"
_GRAIN = 64
"""Blocks are multiples of this many keys, so that blocks of other passes fit into them."""

_FEW_ROWS = 16
"""Rows of scores below which the keys themselves are run in parallel."""

_MAX_BLOCKS = 256
"""Most blocks that keys are cut into for threads to share."""

_MAX_BLOCK = 16384
"""Most keys of a block [elements]: what is kept of a row stays in a cache."""

_DEFAULT_L2_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Attention:
    """Statements of a softmax between two contractions.

    Attributes:
        scores: writers of the scores and of what only they read, first to last; the last writes
            the tensor that the softmax reads.
        names: for each statement (by name), what it calls the indices of the last of ``scores``.
        key: the index of the last of ``scores`` that the softmax runs over.
    """

    scores: tuple[Statement, ...]
    largest: Statement
    weights: Statement
    total: Statement
    result: Statement
    names: dict[str, Names]
    key: str

    def members(self) -> set[str]:
        own = (*self.scores, self.largest, self.weights, self.total, self.result)
        return {s.name for s in own}


def split_softmax(program: Program, ctx: PassContext) -> Program:
    """Take a softmax between contractions in blocks of keys.

    Rewrite: ``m[q] = max_t X[q,t]; E = exp(X - m); l = Σ_t E; O = Σ_t E·V`` → for blocks b of keys
        ``mb[q,b] = max_u X; E = exp(X - mb); lb = Σ_u E; ob = Σ_u E·V``, then over all
        ``m = max_b mb; w = exp(mb - m); l = Σ_b w·lb; O = Σ_b w·ob``.
    Legal when: nobody else reads X, m, E and l. It reassociates: results differ in the last bits.
        A block of -∞ alone counts as nothing, as it would in its row.
    Done when a row's keys and values do not stay near a core: then all rows take a block before the
        next one; and when there are few rows, so that threads share the keys.
    Source: Dao et al., "FlashAttention", NeurIPS 2022; Dao et al., "Flash-Decoding", 2023.
    """
    facts = program_facts(program)
    splitter = _Splitter(program, ctx)
    for statement in in_order(program.statements):
        if isinstance(statement, Statement):
            found = _find(statement, program, facts)
            size = None if found is None else _block(found, ctx)
            if found is not None and size is not None:
                splitter.split(found, size)
                ctx.changed(_NAME, found.result.name, f"takes keys in blocks of {size}")
    return splitter.program()


# -------------------------------------------------------------------------------------- finding


def _find(result: Statement, program: Program, facts: ProgramFacts) -> _Attention | None:
    """The attention that ends in the contraction ``result``."""
    roles = contraction_roles(result)
    if roles is None or not is_functional(result) or len(result.writes) != 1:
        return None
    if roles.others or roles.windows or result.reduction is None or len(roles.k) != 1:
        return None
    for operand in (roles.a_expr, roles.b_expr):
        weights = _writer(operand, facts, program)
        if weights is None or not isinstance(weights.elements[0], Unary):
            continue
        found = _from_weights(result, weights, program, facts)
        if found is not None:
            return found
    return None


def _from_weights(
    result: Statement, weights: Statement, program: Program, facts: ProgramFacts
) -> _Attention | None:
    """``weights`` is ``exp(X - m)`` with one reader besides ``result``: the total."""
    element = weights.elements[0]
    if weights.reduction is not None or not isinstance(element, Unary) or element.op != "exp":
        return None
    if not isinstance(element.x, Binary) or element.x.op != "sub":
        return None
    source, largest = _writer(element.x.a, facts, program), _writer(element.x.b, facts, program)
    others = [r for r in _readers(weights, facts, program) if r is not result]
    if source is None or largest is None or len(others) != 1:
        return None
    total = others[0]
    if not isinstance(total, Statement) or not _reduces(total, "sum", weights):
        return None
    if not _reduces(largest, "max", source) or not is_private(total, facts):
        return None
    wanted = ((source, [largest, weights]), (largest, [weights]), (total, [result]))
    for writer, readers in wanted:
        if {r.name for r in _readers(writer, facts, program)} != {r.name for r in readers}:
            return None
    return _named(result, weights, total, largest, source, program, facts)


def _named(
    result: Statement,
    weights: Statement,
    total: Statement,
    largest: Statement,
    source: Statement,
    program: Program,
    facts: ProgramFacts,
) -> _Attention | None:
    """Relate everybody's indices to those of the scores."""
    own = {n: n for n in _free(source)}
    names: dict[str, Names] = {source.name: own}
    for writer, reader in (
        (source, largest),
        (source, weights),
        (weights, total),
        (weights, result),
    ):
        seen = _seen(writer, reader)
        if seen is None or not set(names[writer.name].values()) <= set(seen):
            return None
        names[reader.name] = {a: seen[b] for a, b in names[writer.name].items()}
    assert largest.reduction is not None and result.reduction is not None
    keys = [n for n in own if names[largest.name][n] in largest.reduction.indices]
    if len(keys) != 1:
        return None
    (key,) = keys
    for reader in (total, result):
        assert reader.reduction is not None
        if reader.reduction.indices != (names[reader.name][key],):
            return None
    dtypes = {s.elements[0].dtype for s in (largest, weights, total, result)}
    boxes = all(r.lower == affine(0) and r.upper.is_const for r in source.domain.ranges)
    if len(dtypes) != 1 or not boxes:
        return None
    if any(not r.upper.is_const or r.lower != affine(0) for r in result.domain.ranges):
        return None
    scores = _producers(source, names, program, facts)
    return _Attention(scores, largest, weights, total, result, names, key)


def _producers(
    source: Statement, names: dict[str, Names], program: Program, facts: ProgramFacts
) -> tuple[Statement, ...]:
    """``source`` after the statements whose results it alone reads, at the same points."""
    chain = [source]
    while True:
        reader = chain[0]
        before: list[Statement] = []
        for load in statement_loads(reader):
            writer = _writer(load, facts, program)
            if writer is None or writer in chain or writer in before:
                continue
            if [r.name for r in _readers(writer, facts, program)] != [reader.name]:
                continue
            seen = _seen(writer, reader)
            back = {b: a for a, b in seen.items()} if seen else {}
            if set(names[reader.name].values()) == set(back) and set(back.values()) == set(
                _free(writer)
            ):
                names[writer.name] = {a: back[b] for a, b in names[reader.name].items()}
                before.append(writer)
        if len(before) != 1:
            return tuple(chain)
        chain = [*before, *chain]


def _free(s: Statement) -> list[str]:
    reduced = s.reduction.indices if s.reduction else ()
    return [n for n in s.domain.names if n not in reduced]


def _writer(node: Expr, facts: ProgramFacts, program: Program) -> Statement | None:
    """The one statement that writes what a plain load of a private temp reads."""
    if not isinstance(node, Load) or node.predicate:
        return None
    numbers = facts.writers.get(facts.roots[node.tensor], [])
    if len(numbers) != 1:
        return None
    writer = program.statements[numbers[0]]
    return writer if isinstance(writer, Statement) and is_private(writer, facts) else None


def _readers(writer: Statement, facts: ProgramFacts, program: Program) -> list[AnyStatement]:
    return [program.statements[n] for n in facts.readers.get(writer.writes[0].tensor, [])]


def _reduces(s: Statement, monoid: str, of: Statement) -> bool:
    """A plain maximum or sum, over one index, of what ``of`` writes."""
    r = s.reduction
    return (
        r is not None
        and r.monoid.name == monoid
        and is_builtin(r.monoid)
        and len(r.indices) == 1
        and not r.scan
        and not r.into
        and is_functional(s)
        and isinstance(s.elements[0], Load)
        and s.elements[0].tensor == of.writes[0].tensor
    )


def _seen(writer: Statement, reader: Statement) -> Names | None:
    """What ``reader`` calls the indices of ``writer``, whose result it reads at one place."""
    places = {x for x in statement_loads(reader) if x.tensor == writer.writes[0].tensor}
    return same_points(writer, places.pop(), reader) if len(places) == 1 else None


def _block(found: _Attention, ctx: PassContext) -> int | None:
    """Keys of a block; None: the row stays whole."""
    source = found.scores[-1]
    extents = {r.name: r.upper.const for r in source.domain.ranges}
    keys = extents[found.key]
    rows = math.prod(extents[n] for n in _free(source) if n != found.key)
    l2_bytes = _DEFAULT_L2_BYTES if ctx.target is None else ctx.target.l2_bytes
    most = keys
    if _reuse(found) >= ctx.options.min_relayout_rows:
        most = min(_MAX_BLOCK, l2_bytes // 2 // _row_bytes(found))
    if rows < _FEW_ROWS:
        most = min(most, max(MAX_SUMMED_TERMS, keys // _MAX_BLOCKS))
    most = max(_GRAIN, most // _GRAIN * _GRAIN)
    if keys <= most or (rows < _FEW_ROWS and keys < 2 * MAX_SUMMED_TERMS):
        return None
    even = -(-keys // -(-keys // most))
    least = min(most, -(-even // _GRAIN) * _GRAIN)
    return next((n for n in range(least, most + 1, _GRAIN) if _may_split(found, keys, n)), None)


def _may_split(found: _Attention, keys: int, size: int) -> bool:
    """Whether every row of every block still has a result of its own.

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
                if size % atom.den or size == atom.den or 0 < keys % size <= atom.den:
                    return False
    return True


def _reuse(found: _Attention) -> int:
    """How many rows of scores read the same keys and values."""
    return math.prod(typical_extent(found.result, n) for n in _shared_rows(found))


def _shared_rows(found: _Attention) -> tuple[str, ...]:
    """Indices of the result that move with the weights and not with the values."""
    roles = contraction_roles(found.result)
    assert roles is not None
    is_first = isinstance(roles.a_expr, Load) and (
        roles.a_expr.tensor == found.weights.writes[0].tensor
    )
    return roles.m if is_first else roles.n


def _row_bytes(found: _Attention) -> int:
    """Bytes of the keys' or the values' part for one key, whichever is more [bytes]."""
    rows = found.names[found.result.name].values()
    widths = [[n for n in _free(found.result) if n not in rows]]
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

    A single block has no index of its own.
    """

    first: int
    count: int
    size: int
    start: int


@dataclass(slots=True)
class _Splitter:
    """Rewrites a program, attention by attention."""

    source: Program
    ctx: PassContext
    names: FreshNames = field(init=False)
    tensors: list[Tensor] = field(init=False)
    placed: dict[str, list[Statement]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = names_of(self.source)
        self.tensors = list(self.source.tensors)

    def program(self) -> Program:
        """The program with everything that was split."""
        if not self.placed:
            return self.source
        out: list[AnyStatement] = []
        for statement in in_order(self.source.statements):
            out += self.placed.get(statement.name, [])
            if statement.name not in self.gone:
                out.append(statement)
        read = {x.tensor for s in out if isinstance(s, Statement) for x in statement_loads(s)}
        read |= {w.tensor for s in out if isinstance(s, Statement) for w in s.writes}
        kept = [t for t in self.tensors if t.role != "temp" or t.name in read or t.alias_of]
        return replace_statements(self.source, renumber(out), kept)

    def split(self, found: _Attention, size: int) -> None:
        """Replace the statements of ``found``; the new ones stand where the last one stood."""
        _AttentionSplit(self, found, size).write()


class _AttentionSplit:
    def __init__(self, splitter: _Splitter, found: _Attention, size: int):
        self.out = splitter
        self.found = found
        self.size = size
        self.tensors = {t.name: t for t in splitter.source.tensors}
        source = found.scores[-1]
        self.rows = [n for n in _free(source) if n != found.key]
        keys = source.domain.range_of(found.key).upper.const
        whole, rest = divmod(keys, size)
        self.blocks = [_Blocks(0, whole, size, 0)] if whole else []
        if rest:
            self.blocks.append(_Blocks(whole, 1, rest, whole * size))
        self.count = whole + (1 if rest else 0)
        self.b = "b"
        while any(self.b in s.domain.names for s in self._all()):
            self.b += "b"
        row_shape = tuple(source.domain.range_of(n).upper for n in self.rows)
        dtype = found.weights.elements[0].dtype
        kind = found.result.name
        self.part_max = self._tensor(f"{kind}_max", (*row_shape, affine(self.count)), dtype)
        self.part_sum = self._tensor(f"{kind}_sum", (*row_shape, affine(self.count)), dtype)
        self.scale = self._tensor(f"{kind}_scale", (*row_shape, affine(self.count)), dtype)
        self.order = self._part_order()
        ranges = {r.name: r.upper for r in found.result.domain.ranges}
        shape = tuple(affine(self.count) if n == self.b else ranges[n] for n in self.order)
        self.part = self._tensor(f"{kind}_part", shape, dtype)

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
        free = _free(self.found.result)
        at = next((p for p, n in enumerate(free) if n in rows), max(0, len(free) - 1))
        return [*free[:at], self.b, *free[at:]]

    def write(self) -> None:
        """Make the statements."""
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
            made.append(self._split_temp(s, blocks, moved))
        largest = self._split(f.largest, blocks, moved)
        made.append(self._partial(largest, self._at(self.part_max, f.largest, blocks)))
        weights = self._split_temp(f.weights, blocks, moved)
        made.append(map_expressions(weights, lambda e: self._own_maximum(e, blocks)))
        total = self._split(f.total, blocks, moved)
        made.append(self._partial(total, self._at(self.part_sum, f.total, blocks)))
        result = self._split(f.result, blocks, moved)
        place = tuple(self._block_index(blocks) if n == self.b else variable(n) for n in self.order)
        made.append(self._partial(result, Write(tensor=self.part.name, indices=place)))
        return made

    def _block_index(self, blocks: _Blocks) -> Affine:
        return affine(blocks.first) if blocks.count == 1 else variable(self.b) + blocks.first

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
        if blocks.count > 1:
            value = value + variable(self.b) * blocks.size
        mapping: dict[str, AffineLike] = {key: value}

        def visit(node: Expr) -> Expr:
            if not isinstance(node, Load) or node.tensor not in moved:
                return node
            tensor, at = moved[node.tensor]
            own = [variable(self.b)] if blocks.count > 1 else []
            indices = (*node.indices[:at], *own, within, *node.indices[at + 1 :])
            return replace(node, tensor=tensor.name, indices=indices)

        def body(a: Affine) -> Affine:
            return a.substitute(mapping)

        ranges: list[IndexRange] = []
        for r in s.domain.ranges:
            if r.name != key:
                ranges.append(r)
                continue
            if blocks.count > 1:
                ranges.append(IndexRange(name=self.b, lower=affine(0), upper=affine(blocks.count)))
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
        own = (affine(blocks.count),) if blocks.count > 1 else ()
        shape = (*old.shape[:at], *own, affine(blocks.size), *old.shape[at + 1 :])
        made = self._tensor(old.name, shape, old.dtype)
        new = self._split(s, blocks, moved)
        b = (variable(self.b),) if blocks.count > 1 else ()
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
        block = IndexRange(name=self.b, lower=affine(0), upper=affine(self.count))
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
        block = IndexRange(name=self.b, lower=affine(0), upper=affine(self.count))
        ranges = tuple(source.domain.range_of(n) for n in self.rows)
        return Statement(
            name=self.out.names.fresh(f"{f.weights.name}_scale"),
            domain=Domain(ranges=(*ranges, block)),
            order=f.result.order[:1],
            writes=(Write(tensor=self.scale.name, indices=(*rows, variable(self.b))),),
            elements=(unary("exp", binary("sub", part, whole)),),
            origin=f.result.origin,
        )
