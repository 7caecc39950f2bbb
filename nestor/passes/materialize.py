"""Copies that make a contraction's inner loops plain: padded operands and transposed operands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nestor.ir.affine import Affine, Interval, affine, variable
from nestor.ir.expr import Const, Expr, Load, map_expr
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Program,
    Statement,
    Tensor,
    Write,
)
from nestor.passes.analysis import (
    ProgramFacts,
    contraction_roles,
    element_count,
    is_functional,
    program_facts,
)
from nestor.passes.context import PassContext
from nestor.passes.index_maps import extremes
from nestor.passes.rewriting import (
    Names,
    first_position,
    in_order,
    map_expressions,
    names_of,
    renumber,
    replace_statements,
)
from nestor.passes.simplify import simplify_statement
from nestor.passes.strides import typical

_PAD = "pad_operands"
_MAX_PADDED_GROWTH = 8
_SMALL_ELEMS = 1 << 18

Bounds = dict[int, tuple[Affine, Affine]]
"""Padded dimensions: the inclusive range of indices that is wanted of each."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A predicated operand load: which tensor, which index ranges, what stands outside."""

    statement: int
    load: Load
    bounds: tuple[tuple[int, Affine, Affine], ...]
    other: Const


def pad_operands(program: Program, ctx: PassContext) -> Program:
    """Give contractions operands without predicates.

    Rewrite: ``Y[y] = Σ_r (X[y+r-1] if inside else 0)·w[r]`` → ``P[i] = X[i-1] if inside else 0;
        Y[y] = Σ_r P[y+r]·w[r]``. Where ``X`` is a temp with one writer, ``X`` itself gets the
        border: its writer writes at an offset, small statements fill the border, and nothing is
        copied.
    Legal when: each predicate bounds one index of the load by constants or symbols, and ``other``
        is a constant. Pooling keeps its predicates: in a vector loop over channels they are
        uniform, a scalar branch per window position.
    """
    return _Padder(program, ctx).run()


@dataclass(slots=True)
class _Padder:
    program: Program
    ctx: PassContext
    facts: ProgramFacts = field(init=False)
    names: Names = field(init=False)
    statements: list[AnyStatement] = field(init=False)
    tensors: dict[str, Tensor] = field(init=False)
    before: dict[int, list[Statement]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.facts = program_facts(self.program)
        self.names = names_of(self.program)
        self.statements = list(self.program.statements)
        self.tensors = dict(self.facts.tensors)

    def run(self) -> Program:
        requests: dict[str, list[_Request]] = {}
        for number, statement in enumerate(self.program.statements):
            for request in self._requests(number, statement):
                requests.setdefault(request.load.tensor, []).append(request)
        for name, group in requests.items():
            if not self._embed(name, group):
                self._copy(name, group)
        if not self.before:
            return self.program
        out: list[AnyStatement] = []
        numbers = {id(s): n for n, s in enumerate(self.program.statements)}
        for old in in_order(self.program.statements):
            out += self.before.get(numbers[id(old)], [])
            out.append(self.statements[numbers[id(old)]])
        return replace_statements(self.program, renumber(out), self.tensors.values())

    # ------------------------------------------------------------------------------ requests

    def _requests(self, number: int, statement: AnyStatement) -> list[_Request]:
        roles = contraction_roles(statement)
        if roles is None or not isinstance(statement, Statement) or not is_functional(statement):
            return []
        found = []
        for load in {roles.a, roles.b}:
            if not load.predicate:
                continue
            bounds = _padded_bounds(load, statement.domain)
            if bounds is None or not isinstance(load.other, Const):
                reason = f"the predicate of '{load.tensor}' is not a range of its indices"
                self.ctx.refused(_PAD, statement.name, reason)
                continue
            if self._grows_too_much(load, bounds):
                self.ctx.refused(
                    _PAD, statement.name, f"a padded '{load.tensor}' would be too large"
                )
                continue
            key = tuple((d, low, high) for d, (low, high) in sorted(bounds.items()))
            found.append(_Request(number, load, key, load.other))
        return found

    def _grows_too_much(self, load: Load, bounds: Bounds) -> bool:
        old = element_count(self.tensors[load.tensor])
        new = old
        for d, (low, high) in bounds.items():
            new = (
                new // max(1, typical(self.tensors[load.tensor].shape[d])) * typical(high - low + 1)
            )
        return new > _SMALL_ELEMS and new > _MAX_PADDED_GROWTH * old

    # -------------------------------------------------------------------------------- copies

    def _copy(self, name: str, group: list[_Request]) -> None:
        """One padded copy for all readers where their borders agree in kind, else one for each."""
        group = sorted(group, key=lambda r: first_position(self.statements[r.statement]))
        same_kind = len({r.other for r in group}) == 1 and all(
            _covers_interior(r, self.tensors[name], self._domain(r)) for r in group
        )
        hull = self._union(name, group) if same_kind and len(group) > 1 else None
        if hull is not None:
            self._copy_for(name, hull, group)
            return
        kinds: dict[object, list[_Request]] = {}
        for request in group:
            kinds.setdefault((request.bounds, request.load.predicate, request.other), []).append(
                request
            )
        for requests in kinds.values():
            bounds = {d: (low, high) for d, low, high in requests[0].bounds}
            self._copy_for(name, bounds, requests)

    def _copy_for(self, name: str, bounds: Bounds, requests: list[_Request]) -> None:
        """Copy ``name`` over ``bounds`` before the first reader; all readers take the copy."""
        copy = self._make_copy(name, bounds, requests[0])
        self.ctx.changed(_PAD, name, f"copied into '{copy}' with its border")
        for request in requests:
            self._read_padded(request, copy, {d: low for d, (low, _) in bounds.items()})

    def _make_copy(self, name: str, bounds: Bounds, request: _Request) -> str:
        old = self.tensors[name]
        new_name = self.names.fresh(f"{name}_pad")
        shape = list(old.shape)
        indices = [variable(f"d{d}") for d in range(len(shape))]
        for d, (low, high) in bounds.items():
            shape[d] = high - low + 1
            indices[d] = indices[d] + low
        self.tensors[new_name] = replace(
            old, name=new_name, shape=tuple(shape), role="temp", alias_of=None, layout=None
        )
        predicate = self._predicate(request, bounds, indices, old)
        load = replace(request.load, indices=tuple(indices), predicate=predicate)
        ranges = tuple(
            IndexRange(name=f"d{d}", lower=affine(0), upper=e) for d, e in enumerate(shape)
        )
        reader = self.program.statements[request.statement]
        statement = Statement(
            name=f"{new_name}_s",
            domain=Domain(ranges=ranges),
            order=reader.order[:1],
            writes=(Write(tensor=new_name, indices=tuple(variable(r.name) for r in ranges)),),
            elements=(load,),
            origin=reader.origin,
        )
        shapes = {t.name: t.shape for t in self.tensors.values()}
        statement = simplify_statement(statement, self.program.symbol_ranges(), shapes)
        self.before.setdefault(request.statement, []).append(statement)
        return new_name

    def _predicate(
        self, request: _Request, bounds: Bounds, indices: list[Affine], tensor: Tensor
    ) -> tuple[Affine, ...]:
        """Where the copy reads ``tensor``: inside it where the request's border is its outside."""
        domain = self._domain(request)
        if _covers_interior(request, tensor, domain):
            return tuple(p for d in bounds for p in (indices[d], tensor.shape[d] - 1 - indices[d]))
        found = []
        for constraint in request.load.predicate:
            match = _range_constraint(constraint, request.load, domain)
            assert match is not None
            d, sign, rest = match
            found.append(indices[d] * sign + rest)
        return tuple(found)

    def _domain(self, request: _Request) -> Domain:
        statement = self.program.statements[request.statement]
        assert isinstance(statement, Statement)
        return statement.domain

    def _read_padded(self, request: _Request, new: str, lows: dict[int, Affine]) -> None:
        """The request's load reads ``new``, shifted and without predicate."""
        shifted = _shift(replace(request.load, predicate=(), other=None), new, lows)

        def visit(node: Expr) -> Expr:
            return shifted if node == request.load else node

        statement = self.statements[request.statement]
        assert isinstance(statement, Statement)
        self.statements[request.statement] = map_expressions(
            statement, lambda e: map_expr(e, visit)
        )

    # ----------------------------------------------------------------------- a border of its own

    def _embed(self, name: str, group: list[_Request]) -> bool:
        """Let ``name`` itself have a border, if it is a temp that one statement writes."""
        writers = self.facts.writers.get(name, [])
        if not self.facts.is_private_temp(name) or len(writers) != 1:
            return False
        writer = self.statements[writers[0]]
        if not isinstance(writer, Statement) or not is_functional(writer):
            return False
        if len({r.other for r in group}) != 1 or not _fills(writer, self.tensors[name]):
            return False
        if not all(_covers_interior(r, self.tensors[name], self._domain(r)) for r in group):
            return False
        bounds = self._union(name, group)
        readers = [self.statements[n] for n in self.facts.readers[name]]
        if bounds is None or not all(_has_affine_reads(r, name, bounds) for r in readers):
            return False
        self._give_border(name, bounds, group[0].other, writers[0])
        lows = {d: low for d, (low, _) in bounds.items()}
        for number in self.facts.readers[name]:
            padded = {r.load for r in group if r.statement == number}
            self._shift_reads(number, name, lows, padded)
        self.ctx.changed(_PAD, name, "written with a border")
        return True

    def _union(self, name: str, group: list[_Request]) -> Bounds | None:
        """The hull of what is asked for and the tensor itself; None if symbols make it unclear."""
        ranges = self.program.symbol_ranges()
        shape = self.tensors[name].shape
        out: Bounds = {}
        for request in group:
            for d, low, high in request.bounds:
                known_low, known_high = out.get(d, (affine(0), shape[d] - 1))
                least = _least(known_low, low, ranges)
                greatest = _least(-known_high, -high, ranges)
                if least is None or greatest is None:
                    return None
                out[d] = (least, -greatest)
        return out

    def _give_border(self, name: str, bounds: Bounds, other: Const, writer_number: int) -> None:
        old = self.tensors[name]
        shape = list(old.shape)
        for d, (low, high) in bounds.items():
            shape[d] = high - low + 1
        self.tensors[name] = replace(old, shape=tuple(shape), layout=None)
        writer = self.statements[writer_number]
        assert isinstance(writer, Statement)
        writes = tuple(
            replace(
                w,
                indices=tuple(
                    i - bounds[d][0] if d in bounds and isinstance(i, Affine) else i
                    for d, i in enumerate(w.indices)
                ),
            )
            if w.tensor == name
            else w
            for w in writer.writes
        )
        self.statements[writer_number] = replace(writer, writes=writes)
        border = _border_statements(
            self.tensors[name], old.shape, bounds, other, writer, self.names
        )
        self.before.setdefault(writer_number, []).extend(border)

    def _shift_reads(
        self, number: int, name: str, lows: dict[int, Affine], padded: set[Load]
    ) -> None:
        """Loads of a tensor that got a border shift; those that asked for it lose the predicate."""

        def visit(node: Expr) -> Expr:
            if not isinstance(node, Load) or node.tensor != name:
                return node
            if node in padded:
                return _shift(replace(node, predicate=(), other=None), name, lows)
            return _shift(node, name, lows)

        statement = self.statements[number]
        assert isinstance(statement, Statement)
        self.statements[number] = map_expressions(statement, lambda e: map_expr(e, visit))


def _shift(load: Load, name: str, lows: dict[int, Affine]) -> Load:
    indices = tuple(
        i - lows[d] if d in lows and isinstance(i, Affine) else i
        for d, i in enumerate(load.indices)
    )
    return replace(load, tensor=name, indices=indices)


def _least(a: Affine, b: Affine, ranges: dict[str, Interval]) -> Affine | None:
    """The lesser of two affines of symbols, if their order is provable."""
    low, high = (b - a).bounds(ranges)
    if low is not None and low >= 0:
        return a
    return b if high is not None and high <= 0 else None


def _range_constraint(
    constraint: Affine, load: Load, domain: Domain
) -> tuple[int, int, Affine] | None:
    """(d, sign, rest) with ``constraint = sign * indices[d] + rest``, rest over symbols only."""
    names = set(domain.names)
    for d, index in enumerate(load.indices):
        if not isinstance(index, Affine) or not index.variables() & names:
            continue
        for sign in (1, -1):
            rest = constraint - index * sign
            if not rest.variables() & names:
                return d, sign, rest
    return None


def _padded_bounds(load: Load, domain: Domain) -> Bounds | None:
    """For each dimension that a predicate bounds, the range of its index over the domain."""
    bounds: Bounds = {}
    used = [n for i in load.indices if isinstance(i, Affine) for n in i.variables()]
    if len(set(used) & set(domain.names)) < sum(n in domain.names for n in used):
        return None  # on a diagonal a condition does not say which dimension it guards
    for constraint in load.predicate:
        match = _range_constraint(constraint, load, domain)
        if match is None:
            return None
        index = load.indices[match[0]]
        assert isinstance(index, Affine)
        pair = extremes(index, domain)
        if pair is None:
            return None
        bounds[match[0]] = pair
    return bounds


def _covers_interior(request: _Request, tensor: Tensor, domain: Domain) -> bool:
    """The predicate holds exactly inside the tensor: ``0 ≤ index ≤ extent - 1``."""
    for constraint in request.load.predicate:
        match = _range_constraint(constraint, request.load, domain)
        if match is None:
            return False
        d, sign, rest = match
        if rest != (affine(0) if sign > 0 else tensor.shape[d] - 1):
            return False
    return True


def _fills(writer: Statement, tensor: Tensor) -> bool:
    """One affine write; as the only writer, the statement writes all that is read."""
    return all(
        isinstance(i, Affine) for w in writer.writes if w.tensor == tensor.name for i in w.indices
    ) and (sum(1 for w in writer.writes if w.tensor == tensor.name) == 1)


def _has_affine_reads(reader: AnyStatement, name: str, bounds: Bounds) -> bool:
    if not isinstance(reader, Statement):
        return False
    return all(
        isinstance(load.indices[d], Affine)
        for load in reader.loads
        if load.tensor == name
        for d in bounds
    )


def _border_statements(
    tensor: Tensor,
    interior: tuple[Affine, ...],
    bounds: Bounds,
    other: Const,
    like: Statement,
    names: Names,
) -> list[Statement]:
    """Fill the border: per padded dimension one slab, or one for each side where they differ.

    A slab spans the whole of later padded dimensions and the interior of earlier ones, so slabs are
    disjoint.
    """
    out: list[Statement] = []
    done: list[int] = []
    for d in sorted(bounds):
        low, high = bounds[d]
        before, after = -low, high - (interior[d] - 1)
        slabs: list[tuple[Affine, Affine, bool]] = []  # start, thickness, both sides
        if before == after and (before + interior[d]).is_const:
            slabs.append((affine(0), before, True))
        else:
            slabs.append((affine(0), before, False))
            slabs.append((before + interior[d], after, False))
        for start, thickness, both in slabs:
            if thickness == affine(0):
                continue
            out.append(
                _slab(
                    tensor, interior, bounds, other, like, names, done, (d, start, thickness, both)
                )
            )
        done.append(d)
    return out


def _slab(
    tensor: Tensor,
    interior: tuple[Affine, ...],
    bounds: Bounds,
    other: Const,
    like: Statement,
    names: Names,
    done: list[int],
    slab: tuple[int, Affine, Affine, bool],
) -> Statement:
    at, start, thickness, both = slab
    ranges: list[IndexRange] = []
    indices: list[Affine] = []
    for d, extent in enumerate(tensor.shape):
        name = f"d{d}"
        index = variable(name)
        if d == at:
            extent = thickness
            index = index + start
            if both:
                ranges.append(IndexRange(name="side", lower=affine(0), upper=affine(2)))
                index = index + variable("side") * (thickness + interior[d]).const
        elif d in done:
            extent = interior[d]
            index = index - bounds[d][0]
        ranges.append(IndexRange(name=name, lower=affine(0), upper=extent))
        indices.append(index)
    return Statement(
        name=names.fresh(f"{tensor.name}_border"),
        domain=Domain(ranges=tuple(ranges)),
        order=like.order[:1],
        writes=(Write(tensor=tensor.name, indices=tuple(indices)),),
        elements=(other,),
        origin=like.origin,
    )
