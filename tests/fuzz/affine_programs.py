"""Random affine Programs as the front end for Python loops makes them: full orders, in place.

Subscripts are drawn first and the arrays are made to fit afterwards: each dimension starts where
the least subscript is and ends behind the greatest, so that offsets between accesses stay what they
were and nothing is out of bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from nestor.ir.affine import Affine, FloorDiv, Mod, affine, affine_sum, variable
from nestor.ir.expr import Expr, Load, Var, binary, const, loads, map_expr, unary
from nestor.ir.monoid import max_of, min_of, prod_of, sum_of
from nestor.ir.program import (
    Domain,
    IndexRange,
    Order,
    Program,
    Reduction,
    Statement,
    Symbol,
    Tensor,
    Write,
)
from nestor.ir.types import DType
from nestor.passes.accumulations import recognize_accumulations
from tests.fuzz.generate_programs import Case
from tests.legality.oracle import TooLarge, domain_points

LEAST_SYMBOL = 1
MAX_INSTANCES = 500
"""Instances of a whole Program at the sizes at which it runs."""

MAX_DEPTH = 4
NAMES = "ijkl"
Span = tuple[Affine, Affine]
"""Least and greatest value, over the symbols."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Where in the nest we are: the loops around, their order, and what they range over."""

    ranges: tuple[IndexRange, ...] = ()
    constraints: tuple[Affine, ...] = ()
    order: Order = ()
    spans: tuple[tuple[str, Span], ...] = ()

    @property
    def names(self) -> list[str]:
        """Indices, outermost first."""
        return [r.name for r in self.ranges]

    def within(self, r: IndexRange, constraints: tuple[Affine, ...], position: int) -> Scope:
        """One loop further in."""
        low = span_of(r.lower, dict(self.spans))[0]
        high = span_of(r.upper - 1, dict(self.spans))[1]
        return Scope(
            ranges=(*self.ranges, r),
            constraints=self.constraints + constraints,
            order=(*self.order, position, r.name),
            spans=(*self.spans, (r.name, (low, high))),
        )


@dataclass(slots=True)
class Shape:
    """One array: what its subscripts were so far, by dimension."""

    name: str
    rank: int
    role: str
    low: list[Affine | None] = field(default_factory=list)
    high: list[Affine | None] = field(default_factory=list)


def span_of(value: Affine, spans: dict[str, Span]) -> Span:
    """Bounds of ``value`` over the symbols; a name without a span is one of them."""
    low, high = affine(value.const), affine(value.const)
    for atom, c in value.terms:
        if isinstance(atom, str):
            a, b = spans.get(atom, (variable(atom), variable(atom)))
        elif isinstance(atom, Mod):
            a, b = affine(0), affine(atom.den - 1)
        else:
            assert isinstance(atom, FloorDiv)
            a, b = (x // atom.den for x in span_of(atom.num, spans))
        if c < 0:
            a, b = b, a
        low, high = low + a * c, high + b * c
    return low, high


def extreme(a: Affine | None, b: Affine, pick: Callable[[int, int], int]) -> Affine:
    """At most (``min``) or at least (``max``) both: coefficients and constants one by one.

    All atoms are symbols, or quotients of them, and so never negative.
    """
    if a is None:
        return b
    atoms = dict.fromkeys([x for x, _ in (*a.terms, *b.terms)])
    parts = [(Affine(((x, 1),)), pick(a.coefficient(x), b.coefficient(x))) for x in atoms]
    return affine_sum(parts, pick(a.const, b.const))


class Maker:
    """One Program under construction."""

    def __init__(self, rng: Random):
        self.rng = rng
        self.symbols = rng.choice([[], ["N"], ["N"], ["N"], ["N", "M"], ["N", "M"]])
        self.dtype = rng.choice([DType.f64] * 5 + [DType.f32, DType.i64])
        self.shapes: dict[str, Shape] = {}
        self.statements: list[Statement] = []
        self.features: set[str] = {str(self.dtype)}
        self.plainness = rng.choice([0.5, 0.75, 0.9, 0.97])
        for k in range(rng.randrange(2, 6)):
            rank = rng.choice([0, 1, 1, 2, 2, 2, 3])
            role = "input" if k and rng.random() < 0.35 else "inout"
            self._array(f"{'ABCDEFGH'[k]}", rank, role)

    def _array(self, name: str, rank: int, role: str) -> Shape:
        found = Shape(name, rank, role, [None] * rank, [None] * rank)
        self.shapes[name] = found
        return found

    # ------------------------------------------------------------------------- loops

    def build(self) -> None:
        """Loops and statements."""
        count = self.rng.choice([1, 1, 2, 2, 2, 3, 3, 4, 5])
        self._body(Scope(), count)
        if not self.statements:
            self._statement(Scope(), 0)

    def _body(self, scope: Scope, budget: int) -> None:
        """``budget`` statements within the loops of ``scope``."""
        position, depth = 0, len(scope.ranges)
        while budget > 0:
            part = self.rng.randint(1, budget)
            stop = {0: 0.04, 1: 0.3, 2: 0.55, 3: 0.75}.get(depth, 1.0)
            if self.rng.random() < stop:
                if budget > 1 and self.rng.random() < 0.25 and depth:
                    self._through_temp(scope, position)
                    position, budget = position + 2, budget - 2
                    continue
                self._statement(scope, position)
                part = 1
            else:
                r, constraints = self._range(scope)
                self._body(scope.within(r, constraints, position), part)
            position, budget = position + 1, budget - part

    def _size(self) -> Affine:
        roll = self.rng.random()
        if self.symbols and roll < 0.75:
            return variable(self.rng.choice(self.symbols)) + self.rng.choice([0] * 6 + [1, 3])
        return affine(self.rng.choice([1, 2, 3, 4, 5, 6, 7]))

    def _range(self, scope: Scope) -> tuple[IndexRange, tuple[Affine, ...]]:
        """A loop: mostly a box or a triangle, sometimes odd."""
        name, rng = NAMES[len(scope.ranges)], self.rng
        zero, size = affine(0), self._size()
        outer = variable(rng.choice(scope.names)) if scope.names else None
        kind = rng.choice(
            ["box"] * 10 + ["stencil"] * 3 + ["odd", "one", "empty"]
            + (["triangle"] * 5 + ["band", "band", "div", "mod", "half"] if outer else [])
        )  # fmt: skip
        low, high, more = zero, size, ()
        if kind == "stencil":
            low, high = affine(1), size - rng.choice([1, 1, 2])
        elif kind == "odd":
            low, high = affine(rng.choice([-2, 1, 2, 3])), (size + rng.choice([1, 3])) // 2 + 1
        elif kind == "one":
            low = rng.choice([zero, affine(3)])
            high = low + 1
        elif kind == "empty":
            high = low = rng.choice([zero, affine(2), size])
        elif outer is not None and kind == "triangle":
            low, high = rng.choice(
                [(zero, outer), (zero, outer + 1), (outer, size), (outer + 1, size),
                 (zero, size - outer), (zero, outer + 3)]
            )  # fmt: skip
        elif outer is not None and kind == "band":
            reach = rng.choice([1, 2])
            low, high = outer - reach, outer + reach + 1
            if rng.random() < 0.7:
                index = variable(name)
                more = (index, size - 1 - index)
        elif outer is not None and kind == "div":
            low, high = outer // 2, (outer + size) // 2 + 1
        elif outer is not None and kind == "mod":
            high = outer % 3 + 1
        elif outer is not None and kind == "half":
            low = outer * 2
            high = low + 2
        self.features.add(f"loop {kind}")
        return IndexRange(name=name, lower=low, upper=high), tuple(more)

    # ------------------------------------------------------------------------- statements

    def _statement(self, scope: Scope, position: int) -> None:
        writable = [s for s in self.shapes.values() if s.role == "inout"]
        target = self.rng.choice(writable)
        if scope.names and self.rng.random() < 0.22:
            self._accumulation(scope, position)
            return
        index = self._subscripts(scope, target)
        value = self._value(scope, target, index)
        scope = self._narrowed(scope)
        self._add(scope, position, target, index, value)

    def _narrowed(self, scope: Scope) -> Scope:
        """Perhaps under an ``if``."""
        if not scope.names or self.rng.random() > 0.12:
            return scope
        a = variable(self.rng.choice(scope.names))
        b = variable(self.rng.choice(scope.names))
        condition = self.rng.choice(
            [a - b, b - a, a - 1, affine(3) - a, -(a % 2), a + b - 2, -((a + b) % 3)]
        )
        self.features.add("if")
        return replace(scope, constraints=(*scope.constraints, condition))

    def _accumulation(self, scope: Scope, position: int) -> None:
        """``x[outer indices] = x[outer indices] op element``, mostly in loops of its own."""
        rng = self.rng
        while len(scope.names) < MAX_DEPTH and rng.random() < 0.75:
            r, constraints = self._range(scope)
            scope, position = scope.within(r, constraints, position), 0
        outer = scope.names[: rng.randrange(len(scope.names))] if scope.names else []
        fitting = [s for s in self.shapes.values() if s.role == "inout" and s.rank <= len(outer)]
        if not fitting:
            fitting = [self._array(f"R{len(self.shapes)}", len(outer), "inout")]
        target = rng.choice(fitting)
        index = [variable(n) for n in rng.sample(outer, target.rank)]
        self._note(target, scope, index)
        op = rng.choice(["add", "add", "add", "min", "max"] + ["mul"] * (self.dtype.is_float))
        others = [s for s in self.shapes.values() if s is not target and s.role != "temp"]
        if others and rng.random() < 0.8:
            place = rng.choice(others)
            element = self._mix([self._load(place, self._subscripts(scope, place))])
        else:
            element = self._value(scope, target, index)
        scope = self._narrowed(scope)
        self.features.add(f"accumulate {op}")
        if others and rng.random() < 0.15:
            names = tuple(n for n in scope.names if n not in outer)
            makers = {"add": sum_of, "mul": prod_of, "min": min_of, "max": max_of}
            reduction = Reduction(
                indices=names,
                monoid=makers[op](self.dtype),
                final=(Var(name="s0", dtype=self.dtype),),
                into=True,
            )
            if target.name not in {x.tensor for x in loads(element)}:
                self.features.add("reduction in order")
                self._add(scope, position, target, index, element, reduction)
                return
        value = binary(op, self._load(target, index), element)
        self._add(scope, position, target, index, value)

    def _load(self, shape: Shape, index: list[Affine]) -> Expr:
        return Load(tensor=shape.name, indices=tuple(index), dtype=self.dtype)

    def _through_temp(self, scope: Scope, position: int) -> None:
        """``t = …; A[…] = … t …``: a scalar temporary, or one expanded over loops around."""
        count = self.rng.choice([0, len(scope.names), self.rng.randint(0, len(scope.names))])
        names = sorted(self.rng.sample(scope.names, count))
        temp = self._array(f"t{len(self.shapes)}", count, "temp")
        index = [variable(n) for n in names]
        self._note(temp, scope, index)
        self._add(scope, position, temp, index, self._value(scope, None, []))
        read = Load(tensor=temp.name, indices=tuple(index), dtype=self.dtype)
        writable = [s for s in self.shapes.values() if s.role == "inout"]
        target = self.rng.choice(writable)
        place = self._subscripts(scope, target)
        value = self._mix([read, *self._loads(scope, target, place)])
        self.features.add(f"temp of {'no' if not count else 'some'} loops")
        self._add(self._narrowed(scope), position + 1, target, place, value)

    def _add(
        self,
        scope: Scope,
        position: int,
        target: Shape,
        index: list[Affine],
        value: Expr,
        reduction: Reduction | None = None,
    ) -> None:
        self.statements.append(
            Statement(
                name=f"S{len(self.statements)}",
                domain=Domain(ranges=scope.ranges, constraints=scope.constraints),
                order=(*scope.order, position),
                writes=(Write(tensor=target.name, indices=tuple(index)),),
                elements=(value,),
                reduction=reduction,
            )
        )

    # ------------------------------------------------------------------------- accesses

    def _subscripts(self, scope: Scope, shape: Shape) -> list[Affine]:
        """Subscripts of an access; mostly the indices around, each once."""
        pool = self.rng.sample(scope.names, len(scope.names))
        if self.rng.random() < 0.7:
            pool.sort()
        index = []
        for d in range(shape.rank):
            own = pool[d] if d < len(pool) else None
            index.append(self._subscript(scope, own))
        self._note(shape, scope, index)
        return index

    def _subscript(self, scope: Scope, name: str | None) -> Affine:
        rng = self.rng
        if name is None:
            return affine(rng.choice([0, 0, 1, 2]))
        own = variable(name)
        if rng.random() < self.plainness:
            return own
        other = variable(rng.choice(scope.names))
        kind = rng.choice(["offset"] * 6 + ["sum", "less", "twice", "back", "div", "mod", "const"])
        self.features.add(f"subscript {kind}")
        return {
            "offset": own + rng.choice([-2, -1, -1, 1, 1, 2]),
            "sum": own + other,
            "less": own - other,
            "twice": own * 2 + rng.choice([0, 1]),
            "back": self._size() - 1 - own,
            "div": (own + rng.choice([0, 1])) // rng.choice([2, 3]),
            "mod": (own + rng.choice([0, 1])) % rng.choice([2, 3]),
            "const": affine(rng.choice([0, 1])),
        }[kind]

    def _note(self, shape: Shape, scope: Scope, index: list[Affine]) -> None:
        """The array must hold what ``index`` reaches."""
        for d, value in enumerate(index):
            low, high = span_of(value, dict(scope.spans))
            shape.low[d] = extreme(shape.low[d], low, min)
            shape.high[d] = extreme(shape.high[d], high, max)

    def _loads(self, scope: Scope, target: Shape | None, index: list[Affine]) -> list[Expr]:
        """One to three reads; of the target, of the same place, or around it."""
        rng = self.rng
        known = [s for s in self.shapes.values() if s.role != "temp"]
        found: list[Expr] = []
        for _ in range(rng.choice([1, 1, 2, 2, 3])):
            shape = target if target is not None and rng.random() < 0.35 else rng.choice(known)
            if shape is target and rng.random() < 0.5:
                place = list(index)
                if rng.random() < 0.4 and place:
                    d = rng.randrange(len(place))
                    place[d] = place[d] + rng.choice([-1, -1, 1, -2])
                    self.features.add("stencil")
                self._note(shape, scope, place)
            else:
                place = self._subscripts(scope, shape)
            found.append(Load(tensor=shape.name, indices=tuple(place), dtype=self.dtype))
        return found

    def _value(self, scope: Scope, target: Shape | None, index: list[Affine]) -> Expr:
        if self.rng.random() < 0.05:
            return const(3 if self.dtype is DType.i64 else 0.625, self.dtype)
        return self._mix(self._loads(scope, target, index))

    def _mix(self, loads: list[Expr]) -> Expr:
        """One value of all; floats stay small, so that none becomes infinite."""
        rng, dtype = self.rng, self.dtype
        total = loads[0]
        if dtype is DType.i64:
            for x in loads[1:]:
                total = binary(rng.choice(["add", "sub", "mul", "min", "xor"]), total, x)
            return binary("add", total, const(rng.choice([0, 1]), dtype))
        for x in loads[1:]:
            op = rng.choice(["add", "add", "sub", "mul", "min", "max"])
            total = binary(op, total, x)
            if op in ("add", "sub"):
                total = binary("mul", total, const(0.5, dtype))
        if rng.random() < 0.1:
            total = unary("neg", total)
        return binary("mul", total, const(0.9, dtype)) if rng.random() < 0.5 else total

    # ------------------------------------------------------------------------- the whole

    def program(self, name: str) -> Program:
        """The Program, with arrays that fit."""
        shifts = {
            s.name: [-x if x is not None else affine(0) for x in s.low]
            for s in self.shapes.values()
        }

        def moved(tensor: str, indices: tuple[object, ...]) -> tuple[Affine, ...]:
            return tuple(i + s for i, s in zip(indices, shifts[tensor]))  # type: ignore[operator]

        def visit(e: Expr) -> Expr:
            if isinstance(e, Load):
                return replace(e, indices=moved(e.tensor, e.indices))
            return e

        statements = tuple(
            replace(
                s,
                writes=tuple(replace(w, indices=moved(w.tensor, w.indices)) for w in s.writes),
                elements=tuple(map_expr(e, visit) for e in s.elements),
            )
            for s in self.statements
        )
        tensors = tuple(self._tensor(s) for s in self.shapes.values())
        symbols = tuple(Symbol(name=s, lower=LEAST_SYMBOL) for s in self.symbols)
        return Program(name=name, symbols=symbols, tensors=tensors, statements=statements)

    def _tensor(self, shape: Shape) -> Tensor:
        extents = []
        for low, high in zip(shape.low, shape.high):
            extent = affine(1) if low is None or high is None else high - low + 1
            positive = extreme(extent, affine(0), max) - max(extent.const, 0)
            least = sum(c for a, c in positive.terms if isinstance(a, str)) * LEAST_SYMBOL
            extents.append(positive + max(extent.const, 1 - least))
        return Tensor(
            name=shape.name,
            shape=tuple(extents),
            dtype=self.dtype,
            role=shape.role,  # type: ignore[arg-type]
        )


def random_affine_case(seed: int) -> Case:
    """A Program and sizes at which it has at most ``MAX_INSTANCES`` instances."""
    for attempt in range(100):
        rng = Random(f"affine {seed} {attempt}")
        maker = Maker(rng)
        maker.build()
        program = without_unused(maker.program(f"affine{seed}"))
        if rng.random() < 0.7:
            program = recognize_accumulations(program)
        if any(isinstance(s, Statement) and s.reduction for s in program.statements):
            maker.features.add("reduction")
        symbols = {s.name: rng.choice([1, 2, 3, 4, 5, 5, 6, 6, 7, 9]) for s in program.symbols}
        for _ in range(12):
            if has_at_most(program, symbols, MAX_INSTANCES):
                features = frozenset(maker.features | sizes_of(program, symbols))
                return Case(seed, program, symbols, {}, features, gentle=True)
            symbols = {n: max(1, v - 1) for n, v in symbols.items()}
    raise AssertionError(f"no program of seed {seed} is small enough")


def without_unused(program: Program) -> Program:
    """Without arrays that no statement mentions."""
    from tests.fuzz import shrink

    return shrink.without_unused(program)


def has_at_most(program: Program, symbols: dict[str, int], limit: int) -> bool:
    """Whether the program has so few instances."""
    total = 0
    try:
        for s in program.statements:
            assert isinstance(s, Statement)
            for _ in domain_points(s.domain, symbols):
                total += 1
                if total > limit:
                    return False
    except TooLarge:
        return False
    return True


def sizes_of(program: Program, symbols: dict[str, int]) -> set[str]:
    """What is special about how many statements, loops and instances there are."""
    found = {f"{len(program.statements)} statements"}
    for s in program.statements:
        assert isinstance(s, Statement)
        count = sum(1 for _ in domain_points(s.domain, symbols))
        found.add(f"depth {len(s.domain.ranges)}")
        if count < 2:
            found.add("empty domain" if count == 0 else "one instance")
        if any(not isinstance(a, str) for r in s.domain.ranges for a, _ in r.upper.terms):
            found.add("rounded bound")
    return found
