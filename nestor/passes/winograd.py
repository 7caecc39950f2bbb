"""Fewer multiplications where a sum of products slides a window of three: Winograd's F(2, 3)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Expr, Load, Var, binary, substitute_vars
from nestor.ir.monoid import sum_of
from nestor.ir.program import (
    AnyStatement,
    Domain,
    IndexRange,
    Program,
    Reduction,
    Statement,
    Tensor,
    Write,
)
from nestor.ir.types import DType
from nestor.passes.analysis import ProgramFacts, program_facts, weight_tensors
from nestor.passes.context import PassContext
from nestor.passes.rewriting import Names, in_order, names_of, renumber, replace_statements
from nestor.passes.simplify import simplify_statement
from nestor.passes.winograd_cost import choose_way
from nestor.passes.winograd_epilogue import Epilogue, find_epilogue, make_room, own_epilogue
from nestor.passes.winograd_tiles import (
    OUTPUTS,
    POINTS,
    TAPS,
    Position,
    input_transform,
    output_transform,
    positions,
    weight_transform,
)
from nestor.passes.winograd_windows import Windows, find_windows, mapped_load

_NAME = "transform_windows"


def transform_windows(program: Program, ctx: PassContext) -> Program:
    """Compute two neighbouring results of a three-wide window from four products instead of six.

    Rewrite (one window; with two, each transform applies along both):
        ``Y[y,o] = Σ_c,r X[y+r,c]·W[r,c,o]`` →
        ``U[0..3,c,o] = W0, (W0+W1+W2)/2, (W0-W1+W2)/2, W2`` (from weights alone: hoisted);
        ``V[0..3,t,c] = X0-X2, X1+X2, X2-X1, X1-X3`` with ``Xj = X[2*t+j,c]``;
        ``M[p,t,o] = Σ_c V[p,t,c]·U[p,c,o]``;
        ``Y[2*t,o] = M0+M1+M2; Y[2*t+1,o] = M1-M2-M3``, and what follows ``Y`` element by element
        on the same instance. Fusion then runs all but ``U`` in one kernel, some tiles at a time
        (``V`` and ``M`` never reach memory), unless tiles are numbered through (``choose_way``).
    Legal when: the statement is a sum of products of a plain load and a load of weights, over one
        or two windows of constant extents; the load depends on each window's position and tap by
        their sum alone (so stride is dilation); no index is shared by both factors and the result
        (no groups). It reassociates the sum: the coefficients are 0, ±1 and ±1/2, so errors stay
        within a small multiple of the sum's own (bound: Lavin's F(2×2, 3×3); larger tiles would
        lose digits). A finite result stays finite unless a transform overflows; NaN taints the
        same results; where the sum is infinite it may become NaN.
    Source: Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast
        Algorithms for Convolutional Neural Networks", CVPR 2016.
    """
    return _Transformer(program, ctx).run()


@dataclass(slots=True)
class _Transformer:
    program: Program
    ctx: PassContext
    facts: ProgramFacts = field(init=False)
    names: Names = field(init=False)
    weights: set[str] = field(init=False)
    tensors: dict[str, Tensor] = field(init=False)
    absorbed: dict[str, list[Statement]] = field(default_factory=dict)
    """Name of a statement that followed a window's sum → what stands in its place."""

    def __post_init__(self) -> None:
        self.facts = program_facts(self.program)
        self.names = names_of(self.program)
        self.weights = weight_tensors(self.program)
        self.tensors = dict(self.facts.tensors)

    def run(self) -> Program:
        out: list[AnyStatement] = []
        for statement in in_order(self.program.statements):
            if statement.name in self.absorbed:
                out += self.absorbed[statement.name]
                continue
            made = self._transform(statement) if isinstance(statement, Statement) else None
            out += [statement] if made is None else made
        if all(a is b for a, b in zip(out, in_order(self.program.statements))):
            return self.program
        return replace_statements(self.program, renumber(out), self.tensors.values())

    def _transform(self, statement: Statement) -> list[Statement] | None:
        windows = find_windows(statement, self.tensors, self.weights)
        if windows is None:
            return None
        way, reason = choose_way(windows, self.ctx)
        if way == "direct":
            self.ctx.refused(_NAME, statement.name, reason or "decided beforehand")
            return None
        windows = replace(windows, merged=way == "apart")
        found = find_epilogue(self.program, self.facts, statement, windows)
        for epilogue in (found, own_epilogue(statement)):
            room = None if epilogue is None else self._room(epilogue, windows)
            if epilogue is not None and room is not None:
                return self._emit(windows, epilogue, room, [])
        return self._stage(windows)

    def _room(self, epilogue: Epilogue, windows: Windows) -> dict[str, Tensor] | None:
        """Where an epilogue writes: temps, whose layout is free and whose size may grow."""
        if not all(self.facts.is_private_temp(w.tensor) for w in epilogue.writes):
            return None
        return make_room(epilogue, windows, self.tensors)

    def _stage(self, windows: Windows) -> list[Statement] | None:
        """Write a temp of its own, and copy it to where the result belongs."""
        statement = windows.statement
        assert statement.reduction is not None
        write = statement.writes[0]
        old = self.tensors[write.tensor]
        name = self.names.fresh(f"{old.name}_tiles")
        temp = replace(old, name=name, role="temp", alias_of=None, layout=None)
        epilogue = replace(own_epilogue(statement), writes=(replace(write, tensor=name),))
        room = make_room(epilogue, windows, {name: temp})
        if room is None:
            self.ctx.refused(_NAME, statement.name, "its result cannot have a border")
            return None
        free = [r for r in statement.domain.ranges if r.name not in statement.reduction.indices]
        copy = Statement(
            name=self.names.fresh(f"{statement.name}_copy"),
            domain=Domain(ranges=tuple(free)),
            order=statement.order,
            writes=(write,),
            elements=(Load(tensor=name, indices=write.indices, dtype=old.dtype),),
            origin=statement.origin,
        )
        return self._emit(windows, epilogue, room, [copy])

    # ------------------------------------------------------------------------------ statements

    def _emit(
        self, w: Windows, epilogue: Epilogue, room: dict[str, Tensor], copies: list[Statement]
    ) -> list[Statement]:
        """All statements that stand for one; the last ones wait for the epilogue's place."""
        copied, w = self._operand_copy(w)
        weights, u = self._weight_statements(w)
        inputs, v = self._input_statement(w)
        products, m = self._products(w, u, v)
        self.tensors.update(room)
        out = self._output_statement(w, epilogue, m)
        symbols = self.program.symbol_ranges()
        shapes = {t.name: t.shape for t in self.tensors.values()}
        made = [
            simplify_statement(s, symbols, shapes) for s in (*copied, *weights, inputs, products)
        ]
        last = [simplify_statement(out, symbols, shapes), *copies]
        count = POINTS ** len(w.pairs)
        self.ctx.changed(_NAME, w.statement.name, f"{count} products for each tile of the window")
        if epilogue.reader is None:
            return [*made, *last]
        self.absorbed[epilogue.reader.name] = last
        return made

    def _temp(self, wish: str, shape: tuple[Affine, ...], dtype: DType) -> str:
        name = self.names.fresh(wish)
        self.tensors[name] = Tensor(name=name, shape=shape, dtype=dtype, role="temp")
        return name

    def _operand_copy(self, w: Windows) -> tuple[list[Statement], Windows]:
        """A temp for an operand whose layout is not ours: tiles are read channels last."""
        old = self.tensors[w.operand.tensor]
        if self.facts.is_private_temp(old.name):
            return [], w
        name = self._temp(f"{old.name}_tiles", old.shape, old.dtype)
        ranges = [
            IndexRange(name=f"d{d}", lower=affine(0), upper=e) for d, e in enumerate(old.shape)
        ]
        indices = tuple(variable(r.name) for r in ranges)
        load = Load(tensor=old.name, indices=indices, dtype=old.dtype)
        write = Write(tensor=name, indices=indices)
        copy = self._pointwise(f"{name}_s", ranges, [write], [load], w)
        return [copy], replace(w, operand=replace(w.operand, tensor=name))

    def _weight_statements(self, w: Windows) -> tuple[list[Statement], str]:
        """One statement a window: taps become points, along one dimension after the other."""
        kept = [w.statement.domain.range_of(n) for n in (*w.columns, *w.summed)]
        indices = tuple(variable(r.name) for r in kept)
        extents = tuple(r.upper for r in kept)
        out: list[Statement] = []
        previous = ""
        rank = len(w.pairs)
        for stage in range(1, rank + 1):
            leading = (*[POINTS] * stage, *[TAPS] * (rank - stage))
            flat = POINTS**rank if stage == rank else None
            shape = tuple(affine(e) for e in ((flat,) if flat else leading)) + extents
            name = self._temp(f"{w.weight.tensor}_points", shape, w.weight.dtype)

            def read(at: Position, source: str = previous) -> Expr:
                if not source:
                    taps = {tap: affine(r) for (_, tap), r in zip(w.pairs, at)}
                    return mapped_load(w.weight, taps)
                fixed = tuple(affine(p) for p in at)
                return Load(tensor=source, indices=(*fixed, *indices), dtype=w.weight.dtype)

            elements = weight_transform(read, leading, stage - 1, w.weight.dtype)
            writes = [
                Write(
                    tensor=name,
                    indices=(
                        *((affine(n),) if flat else tuple(affine(p) for p in at)),
                        *indices,
                    ),
                )
                for n, at in enumerate(positions(leading))
            ]
            out.append(self._pointwise(f"{name}_s", kept, writes, elements, w))
            previous = name
        return out, previous

    def _input_statement(self, w: Windows) -> tuple[Statement, str]:
        """Four elements along each window of a tile, transformed; what is outside reads as zero."""
        kept = [*w.row_ranges(), *(w.statement.domain.range_of(n) for n in w.summed)]
        indices = (*w.row_indices(), *(variable(n) for n in w.summed))
        shape = (
            *(r.upper for r in w.row_dims()),
            *(w.statement.domain.range_of(n).upper for n in w.summed),
        )
        rank = len(w.pairs)
        name = self._temp(
            f"{w.operand.tensor}_points", (affine(POINTS**rank), *shape), w.operand.dtype
        )
        elements = input_transform(lambda at: w.operand_at(at), rank)
        writes = [Write(tensor=name, indices=(affine(n), *indices)) for n in range(POINTS**rank)]
        return self._pointwise(f"{name}_s", kept, writes, elements, w), name

    def _products(self, w: Windows, u: str, v: str) -> tuple[Statement, str]:
        """A sum over channels for each point of a tile."""
        statement = w.statement
        dtype = w.operand.dtype
        point = w.fresh_index("p")
        columns = [statement.domain.range_of(n) for n in w.columns]
        summed = [statement.domain.range_of(n) for n in w.summed]
        points = affine(POINTS ** len(w.pairs))
        shape = (points, *(r.upper for r in w.row_dims()), *(r.upper for r in columns))
        name = self._temp(f"{statement.name}_points", shape, dtype)
        zero = affine(0)
        p, rows = variable(point), tuple(variable(r.name) for r in w.row_dims())
        channels = tuple(variable(r.name) for r in summed)
        results = tuple(variable(r.name) for r in columns)
        made = Statement(
            name=self.names.fresh(f"{name}_s"),
            domain=Domain(
                ranges=(
                    IndexRange(name=point, lower=zero, upper=points),
                    *w.row_dims(),
                    *columns,
                    *summed,
                )
            ),
            order=statement.order,
            writes=(Write(tensor=name, indices=(p, *rows, *results)),),
            elements=(
                binary(
                    "mul",
                    Load(tensor=v, indices=(p, *rows, *channels), dtype=dtype),
                    Load(tensor=u, indices=(p, *results, *channels), dtype=dtype),
                ),
            ),
            reduction=Reduction(
                indices=w.summed, monoid=sum_of(dtype), final=(Var(name="s0", dtype=dtype),)
            ),
            origin=statement.origin,
        )
        return made, name

    def _output_statement(self, w: Windows, epilogue: Epilogue, m: str) -> Statement:
        """Two results along each window of a tile, and what follows each of them."""
        dtype = w.operand.dtype
        kept = [*w.row_ranges(), *(w.statement.domain.range_of(n) for n in w.columns)]
        indices = (*w.row_indices(), *(variable(n) for n in w.columns))
        rank = len(w.pairs)

        def read(at: Position) -> Expr:
            number = sum(p * POINTS ** (rank - 1 - d) for d, p in enumerate(at))
            return Load(tensor=m, indices=(affine(number), *indices), dtype=dtype)

        assert w.statement.reduction is not None
        writes: list[Write] = []
        elements: list[Expr] = []
        for at, result in zip(positions((OUTPUTS,) * rank), output_transform(read, rank)):
            value = substitute_vars(w.at_result(w.statement.reduction.final[0], at), {"s0": result})
            for write, element in epilogue.at_result(w, at, value):
                writes.append(write)
                elements.append(element)
        name = self.names.fresh(f"{writes[0].tensor}_s")
        made = self._pointwise(name, kept, writes, elements, w)
        reader = epilogue.reader
        return made if reader is None else replace(made, order=reader.order, origin=reader.origin)

    def _pointwise(
        self,
        name: str,
        ranges: list[IndexRange],
        writes: list[Write],
        elements: list[Expr],
        w: Windows,
    ) -> Statement:
        return Statement(
            name=self.names.fresh(name),
            domain=Domain(ranges=tuple(ranges)),
            order=w.statement.order,
            writes=tuple(writes),
            elements=tuple(elements),
            origin=w.statement.origin,
        )
