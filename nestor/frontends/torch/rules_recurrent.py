"""Recurrent layers: one ``seq t`` region a layer and direction, whatever the length.

The input's projection for all steps is one contraction before the loop. In the loop, step ``t``
reads the state that step ``t - 1`` left in the output sequence (or the initial state, by a
predicated load), contracts it with the recurrent weights, and applies the gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nestor.frontends.torch import views
from nestor.frontends.torch.context import Context, cast
from nestor.frontends.torch.dtypes import compute_type
from nestor.frontends.torch.recurrent_ops import KINDS, NAMESPACE
from nestor.frontends.torch.registry import NoRule, lower
from nestor.frontends.torch.rules_contract import contract
from nestor.frontends.torch.rules_join import join
from nestor.frontends.torch.rules_reduce import state
from nestor.frontends.torch.value import Value, at_point, of_tensor
from nestor.ir.affine import Affine, affine, variable
from nestor.ir.expr import Expr, Load, binary, const, unary
from nestor.ir.monoid import sum_of
from nestor.ir.program import Domain, IndexRange, Reduction, Write
from nestor.ir.types import DType

_SOURCE = "ATen/native/RNN.cpp"
_ZERO = affine(0)
_ONE = affine(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """Weights and initial state of one layer in one direction.

    Attributes:
        w_ih, w_hh: (gates * H, input) and (gates * H, state).
        b_ih, b_hh: (gates * H), or None.
        w_hr: (P, H) projection of an LSTM's output, or None.
        h0, c0: (B, state) and (B, H).
        reverse: from the last step to the first.
    """

    w_ih: Value
    w_hh: Value
    b_ih: Value | None
    b_hh: Value | None
    w_hr: Value | None
    h0: Value
    c0: Value | None
    reverse: bool

    @property
    def state_size(self) -> Affine:
        """Width of the state that is fed back."""
        return self.w_hh.dims[1][0]


@dataclass(slots=True, kw_only=True)
class Region:
    """The time loop of one direction.

    Attributes:
        output: the layer's output sequence (T, B, directions * state), which holds the states.
        offset: where this direction's columns start in it.
        gates: (T, B, gates * H), the projected input.
        compute: the type of the arithmetic.
        slot: the next position within the loop.
    """

    ctx: Context
    direction: Direction
    output: str
    offset: Affine
    gates: Value
    steps: Affine
    batch: Affine
    compute: DType
    position: int
    slot: int = 0

    @property
    def now(self) -> Affine:
        """The sequence position that step ``t`` computes."""
        t = variable("t")
        return self.steps - 1 - t if self.direction.reverse else t

    def previous(self, b: Affine, column: Affine) -> Expr:
        """The state before step ``t``."""
        before = self.now + (1 if self.direction.reverse else -1)
        initial = at_point(self.direction.h0, ((b,), (column,)), {})
        load = Load(
            tensor=self.output,
            indices=(before, b, column + self.offset),
            dtype=initial.dtype,
            predicate=(variable("t") - 1,),
            other=initial,
        )
        return cast(load, self.compute)

    def projected(self, b: Affine, column: Affine) -> Expr:
        """The projected input of this step."""
        return cast(at_point(self.gates, ((self.now,), (b,), (column,)), {}), self.compute)

    def add(
        self,
        tensor: str,
        width: Affine,
        body: Callable[[Affine, Affine, Affine], Expr],
        target: Callable[[Affine, Affine], tuple[Affine, ...]],
        reduced: Affine | None = None,
    ) -> None:
        """One statement over (t, b, h), summed over ``k`` if there is a ``reduced`` extent.

        Args: body: the element from b, h, k; target: the write's indices from b, h.
        """
        extents = {"t": self.steps, "b": self.batch, "h": width, "k": reduced or _ONE}
        kept = {n: e for n, e in extents.items() if n == "t" or e != _ONE}
        where = {n: variable(n) if n in kept else _ZERO for n in extents}
        domain = Domain(
            ranges=tuple(IndexRange(name=n, lower=_ZERO, upper=e) for n, e in kept.items())
        )
        ranges = self.ctx.symbol_ranges()
        for n, e in kept.items():
            top = e.bounds(ranges)[1]
            ranges[n] = (0, None if top is None else max(top - 1, 0))
        element = body(where["b"], where["h"], where["k"])
        reduction = None
        if "k" in kept:
            final = (state(0, element.dtype),)
            reduction = Reduction(indices=("k",), monoid=sum_of(element.dtype), final=final)
        self.ctx.add(
            domain,
            [Write(tensor=tensor, indices=target(where["b"], where["h"]))],
            (element,),
            reduction=reduction,
            order=(self.position, "t", self.slot),
            ranges=ranges,
        )
        self.slot += 1

    def recur(self, bias: bool) -> Callable[[Affine, Affine], Expr]:
        """Contract the previous state with the recurrent weights; gives a reader of the result."""
        d, compute = self.direction, self.compute
        width = d.w_hh.dims[0][0]
        name = self.ctx.tensor(f"{self.ctx.hint}_rec", (self.batch, width), compute)

        def element(b: Affine, h: Affine, k: Affine) -> Expr:
            weight = cast(at_point(d.w_hh, ((h,), (k,)), {}), compute)
            return binary("mul", self.previous(b, k), weight)

        self.add(name, width, element, lambda b, h: (b, h), d.state_size)

        def read(b: Affine, column: Affine) -> Expr:
            product: Expr = Load(tensor=name, indices=(b, column), dtype=compute)
            if not bias or d.b_hh is None:
                return product
            return binary("add", product, cast(at_point(d.b_hh, ((column,),), {}), compute))

        return read

    def write_state(self, b: Affine, h: Affine) -> tuple[Affine, ...]:
        """Where step ``t`` leaves its state."""
        return (self.now, b, h + self.offset)


Cell = Callable[[Region], Value | None]
"""Adds a region's statements; returns the final cell state, if there is one."""


def lstm_cell(region: Region) -> Value:
    """Gates i, f, g, o: ``c = f c + i g``, ``h = o tanh(c)``, projected if there are weights."""
    ctx, d, compute = region.ctx, region.direction, region.compute
    recurrent = region.recur(bias=False)
    assert d.c0 is not None
    c0 = d.c0
    hidden = c0.dims[1][0]
    storage = c0.dtype
    cell = ctx.tensor(f"{ctx.hint}_c", (region.batch, hidden), storage)

    def gate(b: Affine, h: Affine, which: int) -> Expr:
        column = h + hidden * which
        return binary("add", region.projected(b, column), recurrent(b, column))

    def new_cell(b: Affine, h: Affine, _: Affine) -> Expr:
        old = Load(
            tensor=cell,
            indices=(b, h),
            dtype=storage,
            predicate=(variable("t") - 1,),
            other=at_point(c0, ((b,), (h,)), {}),
        )
        kept = binary("mul", unary("sigmoid", gate(b, h, 1)), cast(old, compute))
        fresh = binary("mul", unary("sigmoid", gate(b, h, 0)), unary("tanh", gate(b, h, 2)))
        return cast(binary("add", kept, fresh), storage)

    def new_state(b: Affine, h: Affine, _: Affine) -> Expr:
        now = cast(Load(tensor=cell, indices=(b, h), dtype=storage), compute)
        return cast(binary("mul", unary("sigmoid", gate(b, h, 3)), unary("tanh", now)), storage)

    region.add(cell, hidden, new_cell, lambda b, h: (b, h))
    if d.w_hr is None:
        region.add(region.output, hidden, new_state, region.write_state)
    else:
        _project(region, d.w_hr, hidden, new_state)
    return of_tensor(cell, [(region.batch,), (hidden,)], storage)


def _project(
    region: Region,
    weight: Value,
    hidden: Affine,
    full_state: Callable[[Affine, Affine, Affine], Expr],
) -> None:
    """The state is a projection of the LSTM's full output."""
    compute = region.compute
    storage = weight.dtype
    name = region.ctx.tensor(f"{region.ctx.hint}_full", (region.batch, hidden), storage)
    region.add(name, hidden, full_state, lambda b, h: (b, h))
    if compute is not storage:
        raise NoRule  # the sum would need a rounding of its own

    def element(b: Affine, p: Affine, k: Affine) -> Expr:
        left = Load(tensor=name, indices=(b, k), dtype=storage)
        return binary("mul", left, at_point(weight, ((p,), (k,)), {}))

    region.add(region.output, weight.dims[0][0], element, region.write_state, hidden)


def gru_cell(region: Region) -> None:
    """Gates r, z, n: ``h = (h - n) z + n`` with ``n = tanh(x + r (W h + b))``."""
    recurrent = region.recur(bias=True)
    hidden = region.direction.state_size

    def new_state(b: Affine, h: Affine, _: Affine) -> Expr:
        columns = [h + hidden * k for k in range(3)]
        reset, update = (
            unary("sigmoid", binary("add", region.projected(b, c), recurrent(b, c)))
            for c in columns[:2]
        )
        inner = binary("mul", reset, recurrent(b, columns[2]))
        new = unary("tanh", binary("add", region.projected(b, columns[2]), inner))
        rest = binary("mul", binary("sub", region.previous(b, h), new), update)
        return cast(binary("add", rest, new), region.direction.h0.dtype)

    region.add(region.output, hidden, new_state, region.write_state)


def _rnn_cell(activation: Callable[[Expr], Expr]) -> Cell:
    def cell(region: Region) -> None:
        recurrent = region.recur(bias=False)

        def new_state(b: Affine, h: Affine, _: Affine) -> Expr:
            total = binary("add", region.projected(b, h), recurrent(b, h))
            return cast(activation(total), region.direction.h0.dtype)

        region.add(region.output, region.direction.state_size, new_state, region.write_state)

    return cell


CELLS: dict[str, tuple[Cell, bool]] = {
    "lstm": (lstm_cell, True),
    "gru": (gru_cell, False),
    "rnn_tanh": (_rnn_cell(lambda x: unary("tanh", x)), True),
    "rnn_relu": (_rnn_cell(lambda x: binary("max", x, const(0, x.dtype))), True),
}
"""Each cell, and whether the recurrent bias may join the input's before the loop."""


# -------------------------------------------------------------------------------------- layers


def _layer(
    ctx: Context, kind: str, x: Value, directions: Sequence[Direction]
) -> tuple[Value, list[Value], list[Value]]:
    """All directions of one layer: the output sequence, the last states, the last cells."""
    cell, joins_bias = CELLS[kind]
    compute = compute_type(x.dtype)
    steps, batch = x.dims[0][0], x.dims[1][0]
    width = directions[0].state_size
    total = width * len(directions)
    output = ctx.tensor(f"{ctx.hint}_y", (steps, batch, total), x.dtype)
    last: list[Value] = []
    cells: list[Value] = []
    for k, d in enumerate(directions):
        gates = _project_input(ctx, x, d, joins_bias, compute)
        region = Region(
            ctx=ctx,
            direction=d,
            output=output,
            offset=width * k,
            gates=gates,
            steps=steps,
            batch=batch,
            compute=compute,
            position=ctx.position(),
        )
        found = cell(region)
        if found is not None:
            cells.append(found)
        last.append(_last_state(output, region, width, x.dtype))
    return of_tensor(output, [(steps,), (batch,), (total,)], x.dtype), last, cells


def _last_state(output: str, region: Region, width: Affine, dtype: DType) -> Value:
    """The state after the last step, as a view of the output sequence."""
    whole = of_tensor(output, [(e,) for e in region.ctx.tensors[output].shape], dtype)
    end = _ZERO if region.direction.reverse else region.steps - 1
    step = views.select(whole, 0, end)
    assert step is not None
    part = views.narrow(step, 1, region.offset, 1, width)
    assert part is not None
    return part


def _project_input(ctx: Context, x: Value, d: Direction, joins_bias: bool, compute: DType) -> Value:
    """``x W_ihᵀ`` for all steps at once, and the biases that do not depend on the state."""
    gates = contract(ctx, x, d.w_ih, "tbi,gi->tbg", out=compute)
    biases = [b for b in (d.b_ih, d.b_hh if joins_bias else None) if b is not None]
    if not biases:
        return gates

    def add(g: Expr, first: Expr, *rest: Expr) -> Expr:
        for other in rest:
            first = binary("add", first, other)
        return binary("add", g, first)

    return ctx.map(add, gates, *biases, compute=compute, out=compute)


def _directions(
    ctx: Context,
    params: Sequence[Value],
    h0: Value,
    c0: Value | None,
    has_biases: bool,
    layers: int,
    bidirectional: bool,
) -> Iterator[list[Direction]]:
    """The directions of each layer, from the flat list of parameters."""
    count = 2 if bidirectional else 1
    each = len(params) // (layers * count)
    for layer in range(layers):
        found = []
        for k in range(count):
            n = layer * count + k
            group = [ctx.flat_all(p) for p in params[n * each : (n + 1) * each]]
            has_projection = each == (5 if has_biases else 3)
            found.append(
                Direction(
                    w_ih=group[0],
                    w_hh=group[1],
                    b_ih=group[2] if has_biases else None,
                    b_hh=group[3] if has_biases else None,
                    w_hr=group[-1] if has_projection else None,
                    h0=_state_of(h0, n),
                    c0=None if c0 is None else _state_of(c0, n),
                    reverse=k == 1,
                )
            )
        yield found


def _state_of(states: Value, n: int) -> Value:
    found = views.select(states, 0, affine(n))
    assert found is not None
    return found


def _recurrence(
    ctx: Context,
    kind: str,
    x: Value,
    h0: Value,
    c0: Value | None,
    params: Sequence[Value],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, ...]:
    if train and dropout:
        raise NoRule
    if x.rank != 3:
        raise NoRule
    x = ctx.flat_all(views.transpose(x, 0, 1) if batch_first else x)
    h0 = ctx.flat_all(h0)
    c0 = None if c0 is None else ctx.flat_all(c0)
    last: list[Value] = []
    cells: list[Value] = []
    for directions in _directions(ctx, params, h0, c0, has_biases, layers, bidirectional):
        x, states, layer_cells = _layer(ctx, kind, x, directions)
        last += states
        cells += layer_cells
    out = views.transpose(x, 0, 1) if batch_first else x
    results = [out, _stack(ctx, last, 1)]
    if cells:
        results.append(_stack(ctx, cells, 2))
    return tuple(results)


def _stack(ctx: Context, values: Sequence[Value], position: int) -> Value:
    """Stacked final states, made only if somebody reads them."""
    if position not in ctx.used:
        return values[0]
    return join(ctx, [views.unsqueeze(v, 0) for v in values], 0, values[0].dtype)


@lower("aten.lstm.input", f"{NAMESPACE}.lstm.default", source=_SOURCE)
def lower_lstm(ctx: Context, x: Value, hx: Sequence[Value], *rest: Any) -> tuple[Value, ...]:
    """``nn.LSTM``: output sequence, last states, last cells."""
    return _recurrence(ctx, "lstm", x, hx[0], hx[1], *rest)


def _declare(kind: str) -> None:
    @lower(f"aten.{kind}.input", f"{NAMESPACE}.{kind}.default", source=_SOURCE)
    def rule(ctx: Context, x: Value, hx: Value, *rest: Any) -> tuple[Value, ...]:
        return _recurrence(ctx, kind, x, hx, None, *rest)


for _kind in KINDS:
    _declare(_kind)
