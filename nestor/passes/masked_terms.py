"""Leave out the terms of a softmax that a mask makes zero: causal masks and sliding windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from nestor.ir.affine import Affine, AffineLike, Interval, variable
from nestor.ir.expr import (
    Binary,
    Cast,
    Const,
    Expr,
    Index,
    Load,
    Select,
    Unary,
    map_affines,
    map_expr,
    walk,
)
from nestor.ir.monoid import is_builtin
from nestor.ir.program import AnyStatement, Program, Statement
from nestor.ir.types import DType
from nestor.passes.analysis import (
    ProgramFacts,
    contraction_roles,
    is_functional,
    is_pointwise,
    node_count,
    program_facts,
)
from nestor.passes.context import PassContext
from nestor.passes.points import Names, is_private, plain_index, same_points
from nestor.passes.register_tile import VectorUnit, choose_register_tile
from nestor.passes.rewriting import first_position, replace_statements
from nestor.passes.statement_facts import reuse_extent

_NAME = "skip_masked_terms"
KEY_VECTORS = 2, 4
"""Vectors of a block of terms, of short rows and of long ones: the columns of a register tile. A
narrow tile is high and leaves out more; a wide one keeps fewer rows near."""

_SHORT_ROW = 1024
"""Longest row that counts as short [elements]."""

_MAX_LOOKUPS = 4
"""Temps behind temps that are looked up for a mask."""

_MAX_NODES = 100
"""Largest expression that is looked up [nodes]."""

_NEGATED = {"ge": "lt", "gt": "le", "le": "gt", "lt": "ge"}
Masked = Literal["-inf", "0"]


def skip_masked_terms(program: Program, ctx: PassContext) -> Program:
    """Bound a softmax and its sums to the blocks of terms that a mask leaves.

    Rewrite: ``X[q,t] = S[q,t] if t ≤ q else -inf; m[q] = max_t X; E = exp(X - m); l = Σ_t E;
        O = Σ_t E·V`` → the same statements over ``{q, t | 32*(t//32) ≤ 14*(q//14) + 13}`` alone:
        blocks of terms that are masked for every row of a tile are not computed.
    Legal when: what is left out is the identity of each reduction that takes it (-∞ of a maximum, 0
        of a sum), and nobody else reads it. Where a masked score, a row's maximum or a value that a
        zero weighs is NaN or an infinity, the original may give NaN there and the result not.
    Source: the skipped blocks of Dao et al., "FlashAttention", NeurIPS 2022, section 3.1.
    """
    masks = _Masks(program, program_facts(program))
    tile = _tile(ctx)
    statements = list(program.statements)
    for number, alive in masks.found:
        members, keys = masks.follow(number, alive)
        if not masks.pays(members, keys, tile):
            continue
        bound = masks.relaxed(number, alive, keys, tile)
        for member, names in members.items():
            statement = statements[member]
            assert isinstance(statement, Statement)
            mapping: dict[str, AffineLike] = {a: variable(b) for a, b in names.items()}
            constraints = (*statement.domain.constraints, bound.substitute(mapping))
            domain = replace(statement.domain, constraints=constraints)
            statements[member] = replace(statement, domain=domain)
            ctx.changed(_NAME, statement.name, f"runs only where {constraints[-1]} ≥ 0")
    return replace_statements(program, statements)


@dataclass(frozen=True, slots=True)
class _RegisterTile:
    """Blocks that are a CPU's register tiles."""

    unit: VectorUnit

    def terms(self, row: int) -> int:
        """Terms of a block, in rows of ``row`` of them."""
        return KEY_VECTORS[row > _SHORT_ROW] * self.unit.lanes(4)

    def rows(self, extent: int, terms: int) -> int:
        """Rows of a block of so many terms, of ``extent``."""
        return choose_register_tile(extent, terms, self.unit.lanes(4), self.unit.registers)[0]


@dataclass(frozen=True, slots=True)
class _FixedTile:
    """Blocks of one size."""

    size: tuple[int, int]

    def terms(self, row: int) -> int:
        """See ``_RegisterTile``."""
        return self.size[1]

    def rows(self, extent: int, terms: int) -> int:
        """See ``_RegisterTile``."""
        return self.size[0]


def _tile(ctx: PassContext) -> _RegisterTile | _FixedTile:
    if ctx.options.mask_tile is not None:
        return _FixedTile(ctx.options.mask_tile)
    target = ctx.target
    if target is None:
        return _RegisterTile(VectorUnit())
    return _RegisterTile(VectorUnit(bits=target.vector_bits, registers=target.vector_registers))


class _Masks:
    """Which statements write masked values, and how far each mask reaches.

    ``found``: pairs of a statement's number and an affine over its indices: where that is negative,
    the statement writes -∞. A *member* is a statement that need not run there; its ``Names`` tell
    what it calls the indices that the affine speaks of.
    """

    def __init__(self, program: Program, facts: ProgramFacts):
        self.statements = program.statements
        self.facts = facts
        self.symbols = program.symbol_ranges()
        self.in_order = sorted(
            range(len(program.statements)), key=lambda n: first_position(program.statements[n])
        )
        self.found: list[tuple[int, Affine]] = []
        for number in self.in_order:
            written = _written(program.statements[number], facts)
            if written is not None:
                written = self._looked_up(written, _MAX_LOOKUPS)
                for alive in dict.fromkeys(_comparisons(written)):
                    if _value_at(written, alive, {}) == "-inf":
                        self.found.append((number, alive))

    def _looked_up(self, node: Expr, depth: int) -> Expr:
        """``node`` with loads of temps that a pointwise statement fills replaced by what it writes:
        a mask that many layers read is a tensor of its own."""

        def visit(x: Expr) -> Expr:
            if not isinstance(x, Load) or x.predicate or not depth:
                return x
            numbers = self.facts.writers.get(self.facts.roots[x.tensor], [])
            writer = self.statements[numbers[0]] if len(numbers) == 1 else None
            if not isinstance(writer, Statement) or not is_pointwise(writer):
                return x
            if not is_private(writer, self.facts) or node_count(writer.elements[0]) > _MAX_NODES:
                return x
            mapping: dict[str, AffineLike] = {}
            for w, r in zip(writer.writes[0].indices, x.indices, strict=True):
                name = plain_index(w) if isinstance(w, Affine) else None
                if name is not None and isinstance(r, Affine):
                    mapping[name] = r
            if set(mapping) != set(writer.domain.names):
                return x
            element = map_affines(writer.elements[0], lambda a: a.substitute(mapping))
            return self._looked_up(element, depth - 1)

        return map_expr(node, visit)

    def follow(self, first: int, alive: Affine) -> tuple[dict[int, Names], set[str]]:
        """Members, and those indices of the statement ``first`` that are summed over.

        Members after the first one write or reduce masked values; those before it compute what is
        thrown away.
        """
        source = self._statement(first)
        own = [n for n in source.domain.names if n in alive.variables()]
        members: dict[int, Names] = {first: {n: n for n in own}}
        values: dict[str, Masked] = {source.writes[0].tensor: "-inf"}
        writers = {source.writes[0].tensor: first}
        ends: set[int] = set()
        for number in self.in_order[self.in_order.index(first) + 1 :]:
            statement = self.statements[number]
            if not isinstance(statement, Statement) or not is_functional(statement):
                continue
            names = self._seen_by(statement, members, writers)
            if names is None:
                continue
            here = _renamed(alive, names)
            if statement.reduction is not None:
                if _drops_masked(statement, here, values):
                    members[number] = names
                    ends.add(number)
            elif is_private(statement, self.facts):
                value = _value_at(statement.elements[0], here, values)
                if value is not None:
                    members[number] = names
                    values[statement.writes[0].tensor] = value
                    writers[statement.writes[0].tensor] = number
        self._add_producers(members)
        members = self._closed(members, ends)
        return members, self._keys(members, ends)

    def _keys(self, members: Mapping[int, Names], ends: set[int]) -> set[str]:
        keys: set[str] = set()
        for number in ends & set(members):
            reduction = self._statement(number).reduction
            assert reduction is not None
            keys |= {a for a, b in members[number].items() if b in reduction.indices}
        return keys

    def _statement(self, number: int) -> Statement:
        statement = self.statements[number]
        assert isinstance(statement, Statement)
        return statement

    def _seen_by(
        self, reader: Statement, members: Mapping[int, Names], writers: Mapping[str, int]
    ) -> Names | None:
        """What a reader of masked values calls the mask's indices, if its loads agree on that."""
        found: list[Names | None] = []
        for load in reader.loads:
            if load.tensor in writers:
                found.append(self._mapped(writers[load.tensor], members, load, reader))
        return found[0] if found and all(f == found[0] for f in found) else None

    def _mapped(
        self, writer: int, members: Mapping[int, Names], load: Load, reader: Statement
    ) -> Names | None:
        names = same_points(self._statement(writer), load, reader)
        if names is None or not set(members[writer].values()) <= set(names):
            return None
        return {a: names[b] for a, b in members[writer].items()}

    def _add_producers(self, members: dict[int, Names]) -> None:
        """Statements whose results only members read."""
        work = list(members)
        while work:
            number = work.pop()
            reader = self._statement(number)
            for load in reader.loads:
                writers = self.facts.writers.get(self.facts.roots[load.tensor], [])
                if len(writers) != 1 or writers[0] in members:
                    continue
                source = self.statements[writers[0]]
                if not isinstance(source, Statement) or not is_private(source, self.facts):
                    continue
                if not load.dtype.is_float:
                    continue  # a mask itself: other layers and weight programs want it whole
                names = same_points(source, load, reader)
                back = {b: a for a, b in names.items()} if names else {}
                if set(members[number].values()) <= set(back):
                    members[writers[0]] = {a: back[b] for a, b in members[number].items()}
                    work.append(writers[0])

    def _closed(self, members: dict[int, Names], ends: set[int]) -> dict[int, Names]:
        """``members`` without those that somebody reads where they would not run."""
        kept = dict(members)
        while True:
            lost = [n for n in kept if n not in ends and not self._is_only_read_by(n, kept)]
            if not lost:
                return kept
            for n in lost:
                del kept[n]

    def _is_only_read_by(self, number: int, kept: Mapping[int, Names]) -> bool:
        if not is_private(self._statement(number), self.facts):
            return False
        name = self._statement(number).writes[0].tensor
        for reader_number in self.facts.readers.get(name, []):
            reader = self.statements[reader_number]
            if reader_number not in kept or not isinstance(reader, Statement):
                return False
            places = [x for x in reader.loads if x.tensor == name]
            if any(self._mapped(number, kept, x, reader) != kept[reader_number] for x in places):
                return False
            if any(_reads(f, name) for f in (reader.reduction.final if reader.reduction else ())):
                return False  # the final map runs for every output point
        return True

    def pays(
        self, members: Mapping[int, Names], keys: set[str], tile: _RegisterTile | _FixedTile
    ) -> bool:
        """A contraction is among the members, and the masked index has several blocks."""
        if len(keys) != 1:
            return False
        (key,) = keys
        for number, names in members.items():
            statement = self._statement(number)
            if contraction_roles(statement) is not None:
                # Where all terms lie in one block, a constraint would not speak of terms any more,
                # but of results.
                r = statement.domain.range_of(names[key])
                most = (r.upper - r.lower).bounds(self.symbols)[1]
                terms = row_length(statement, names[key], self.symbols)
                block = tile.terms(terms)
                return terms > block and (most is None or most > block)
        return False

    def relaxed(
        self, number: int, alive: Affine, keys: set[str], tile: _RegisterTile | _FixedTile
    ) -> Affine:
        """An affine that is negative where ``alive`` is, for all rows of a tile and all terms of a
        block; over the indices of the statement ``number``."""
        statement = self._statement(number)
        block = tile.terms(max(row_length(statement, key, self.symbols) for key in keys))
        corner: dict[str, AffineLike] = {}
        for atom, c in alive.terms:
            if not isinstance(atom, str) or atom not in statement.domain.names:
                continue
            size = block
            if atom not in keys:
                rows = typical_extent(statement, atom)
                size = tile.rows(rows, block)
            first = variable(atom) // size * size
            corner[atom] = first + (size - 1) if c > 0 else first
        return alive.substitute(corner)


def _renamed(alive: Affine, names: Names) -> Affine:
    mapping: dict[str, AffineLike] = {a: variable(b) for a, b in names.items()}
    return alive.substitute(mapping)


def block_of_terms(ctx: PassContext, terms: int) -> int:
    """Terms of a block in which constraints count, in rows of ``terms``."""
    return _tile(ctx).terms(terms)


def row_length(statement: Statement, name: str, symbols: Mapping[str, Interval]) -> int:
    """Extent of an index that a softmax runs over; a symbolic one counts as long if it may be."""
    r = statement.domain.range_of(name)
    if (r.upper - r.lower).is_const:
        return typical_extent(statement, name)
    most = (r.upper - r.lower).bounds(symbols)[1]
    return _SHORT_ROW + 1 if most is None else min(most, _SHORT_ROW + 1)


def typical_extent(statement: Statement, name: str) -> int:
    """Extent of an index; a symbolic one is taken to be worth a tile."""
    return reuse_extent(statement, name)


def _reads(expression: Expr, name: str) -> bool:
    return any(isinstance(n, Load) and n.tensor == name for n in walk(expression))


def _written(statement: AnyStatement, facts: ProgramFacts) -> Expr | None:
    """What a statement of one private result stores: its element, or its sum's final map."""
    if not isinstance(statement, Statement) or not is_private(statement, facts):
        return None
    if statement.reduction is None:
        return statement.elements[0] if is_pointwise(statement) else None
    return statement.reduction.final[0]


# ------------------------------------------------------------------------------- masked values


def _comparisons(node: Expr) -> Iterator[Affine]:
    """What keeps a value: affines that are negative where some mask in ``node`` hides it."""
    for n in walk(node):
        if isinstance(n, Select):
            for part in _parts(n.condition, "and"):
                alive = _difference(part, negate=False)
                if alive is not None:
                    yield alive
            for part in _parts(n.condition, "or"):
                alive = _difference(part, negate=True)
                if alive is not None:
                    yield alive


def _parts(node: Expr, op: str) -> Iterator[Expr]:
    if isinstance(node, Binary) and node.op == op:
        yield from _parts(node.a, op)
        yield from _parts(node.b, op)
    else:
        yield node


def _difference(test: Expr, *, negate: bool) -> Affine | None:
    """An affine that is ≥ 0 exactly where a comparison of indices holds (or does not)."""
    if isinstance(test, Unary) and test.op == "not":
        return _difference(test.x, negate=not negate)
    if not isinstance(test, Binary) or test.op not in _NEGATED:
        return None
    a, b = _as_affine(test.a), _as_affine(test.b)
    if a is None or b is None:
        return None
    op = _NEGATED[test.op] if negate else test.op
    alive = {"ge": a - b, "gt": a - b - 1, "le": b - a, "lt": b - a - 1}[op]
    return None if _is_crooked(alive) else alive


def _is_crooked(alive: Affine) -> bool:
    """Whether an index stands alone and inside a quotient too, ``q - 64*(q//64)``: the greatest
    value over a tile is then not at one of its ends."""
    plain = {atom for atom, _ in alive.terms if isinstance(atom, str)}
    inside = [atom.num.variables() for atom, _ in alive.terms if not isinstance(atom, str)]
    return any(not plain.isdisjoint(names) for names in inside)


def _as_affine(node: Expr) -> Affine | None:
    if isinstance(node, Index):
        return node.value
    if isinstance(node, Const) and not node.dtype.is_float:
        return Affine((), int(node.value))
    return None


def _value_at(node: Expr, alive: Affine, known: Mapping[str, Masked]) -> Masked | None:
    """The value of ``node`` where ``alive`` is negative, if that is -∞ or 0; other operands are
    taken to be finite."""
    match node:
        case Const() if node.dtype.is_float:
            return "-inf" if node.value == float("-inf") else "0" if node.value == 0 else None
        case Load():
            return known.get(node.tensor)
        case Cast() if node.dtype.is_float:
            value = _value_at(node.x, alive, known)
            return None if value == "-inf" and node.dtype is DType.f8e4m3 else value
        case Unary() if node.op == "exp":
            return "0" if _value_at(node.x, alive, known) == "-inf" else None
        case Select():
            if alive in (_difference(p, negate=False) for p in _parts(node.condition, "and")):
                return _value_at(node.b, alive, known)
            if alive in (_difference(p, negate=True) for p in _parts(node.condition, "or")):
                return _value_at(node.a, alive, known)
            both = {_value_at(node.a, alive, known), _value_at(node.b, alive, known)}
            return both.pop() if len(both) == 1 else None
        case Binary():
            return _binary_at(node, alive, known)
        case _:
            return None


def _binary_at(node: Binary, alive: Affine, known: Mapping[str, Masked]) -> Masked | None:
    a, b = _value_at(node.a, alive, known), _value_at(node.b, alive, known)
    if node.op == "add" and "-inf" in (a, b):
        return "-inf"
    if node.op == "sub" and a == "-inf" and b != "-inf":
        return "-inf"
    if node.op == "mul":
        if "0" in (a, b) and "-inf" not in (a, b):
            return "0"
        scale = node.b if a == "-inf" else node.a
        is_positive = isinstance(scale, Const) and float(scale.value) > 0
        return "-inf" if "-inf" in (a, b) and is_positive else None
    if node.op == "div" and a == "0":
        return "0"
    return None


def _drops_masked(statement: Statement, alive: Affine, known: Mapping[str, Masked]) -> bool:
    """A maximum of -∞ or a sum of zeros over an index that the mask speaks of."""
    reduction = statement.reduction
    assert reduction is not None
    if reduction.scan or len(statement.elements) != 1:
        return False
    if not is_builtin(reduction.monoid) or alive.variables().isdisjoint(reduction.indices):
        return False
    if any(_reads(f, name) for f in reduction.final for name in known):
        return False
    identity = {"max": "-inf", "sum": "0"}.get(reduction.monoid.name)
    return identity is not None and _value_at(statement.elements[0], alive, known) == identity
