"""Run one statement over all of its unordered instances at once, with NumPy.

Big domains are cut into boxes so that no intermediate array exceeds ``MAX_CELLS`` elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nestor.ir import folding, numeric
from nestor.ir.affine import Affine
from nestor.ir.evaluate import Evaluator, Space
from nestor.ir.expr import Binary, Expr, Load, distinct_nodes
from nestor.ir.instances import Constraint, Plan
from nestor.ir.numeric import Value
from nestor.ir.program import Reduction, Write

MAX_CELLS = 1 << 22
"""Largest intermediate array [elements]; 32 MB of float64."""

Box = dict[str, tuple[int, int]]
"""Inclusive interval of each free index."""


class VectorRunner:
    """Evaluates a statement for given values of its ordered indices.

    Args: plan: the statement; arrays: every tensor by name, C-contiguous.
    """

    def __init__(self, plan: Plan, arrays: Mapping[str, np.ndarray]) -> None:
        self.plan, self.arrays = plan, arrays
        self.statement = plan.statement
        self.where = f"statement {self.statement.name}"
        self.reduction = self.statement.reduction
        self.factors = self._contraction_factors()
        self.scatters = self._scatters()
        self.footprints = self._footprints()

    def run(self, fixed: Mapping[str, int]) -> None:
        """Run all instances with the symbols and ordered indices of ``fixed``."""
        hull = self.plan.hull(fixed)
        reduced = self.plan.reduced
        constraints, no_elements = [], False
        for c in self.plan.open_constraints(fixed):
            if any(v not in fixed for v in c.variables):
                constraints.append(c)
            elif c.value.evaluate(fixed) < 0:
                if not c.variables & reduced:
                    return
                no_elements = True
        for name, (low, high) in hull.items():
            if low > high:
                if name not in reduced:
                    return
                no_elements = True
        box = {n: b for n, b in hull.items() if n not in fixed}
        state = _Run(self, dict(fixed), constraints, no_elements)
        state.split(box)

    def _contraction_factors(self) -> tuple[Expr, Expr] | None:
        """The factors if the statement is a plain sum of products."""
        r = self.reduction
        if r is None or r.scan or len(self.statement.elements) != 1:
            return None
        element = self.statement.elements[0]
        if folding.simple_op(r.monoid, 0) != "add" or not isinstance(element, Binary):
            return None
        return (element.a, element.b) if element.op == "mul" else None

    def _scatters(self) -> bool:
        """Whether elements combine into targets that the reduced indices choose."""
        if self.reduction is None or not self.reduction.into:
            return False
        return any(
            not isinstance(i, Affine) or i.variables() & self.plan.reduced
            for w in self.statement.writes
            for i in w.indices
        )

    def _footprints(self) -> list[frozenset[str]]:
        """Sets of indices; an intermediate array may span each of them."""
        dims = self.plan.dims
        every = frozenset(self.plan.names)
        if self.reduction is None:
            return [every]
        if self.factors is not None and not self.scatters:
            return [dims(self.factors[0]), dims(self.factors[1]), every - self.plan.reduced]
        own = self.reduction.state_indices or (None,) * len(self.statement.elements)
        out = []
        for element, names in zip(self.statement.elements, own, strict=True):
            mine = every - self.plan.reduced if names is None else frozenset(names)
            used = dims(element) | self.plan.reduced
            out.append(used | mine if self.scatters else used)
        return [*out, every - self.plan.reduced]


class _Run:
    """One call of ``VectorRunner.run``: the fixed variables and what limits the box."""

    def __init__(
        self,
        runner: VectorRunner,
        fixed: dict[str, int],
        constraints: list[Constraint],
        no_elements: bool,
    ) -> None:
        self.runner, self.fixed, self.no_elements = runner, fixed, no_elements
        self.plan, self.statement = runner.plan, runner.statement
        self.constraints = constraints
        reduced = runner.plan.reduced
        self.point_constraints = [c for c in constraints if not c.variables & reduced]
        # A contraction's operands are not masked, so a constrained one takes the general way.
        self.factors = None if any(c.variables & reduced for c in constraints) else runner.factors

    # ---------------------------------------------------------------- boxes

    def split(self, box: Box) -> None:
        """Cut ``box`` until its intermediates fit, and run the pieces in lexicographic order."""
        keep_order = self.statement.scatter == "last" or self.runner.scatters
        names = [n for n in box if n not in self.plan.reduced or self.runner.scatters]
        pieces = self._cut(box, names, keep_order)
        if pieces is None:
            self._run_box(box)
            return
        for piece in pieces:
            self.split(piece)

    def _cut(self, box: Box, names: Sequence[str], keep_order: bool) -> list[Box] | None:
        """Pieces of ``box`` along the outermost of ``names`` that shrinks it; None if it fits."""
        cells, widest = 0, frozenset[str]()
        for footprint in self.runner.footprints:
            size = math.prod(max(0, hi - lo + 1) for n, (lo, hi) in box.items() if n in footprint)
            if size > cells:
                cells, widest = size, footprint
        if cells <= MAX_CELLS:
            return None
        for name in names:
            low, high = box[name]
            if high > low and (keep_order or name in widest):
                extent = high - low + 1
                step = max(1, extent // min(extent, -(-cells // MAX_CELLS)))
                return [
                    {**box, name: (at, min(at + step - 1, high))}
                    for at in range(low, high + 1, step)
                ]
        return None

    def _space(self, box: Box, drop: frozenset[str] = frozenset()) -> Space:
        """The space of ``box``; dropped indices keep an axis of extent 1 but have no value."""
        lows = [low for low, _ in box.values()]
        extents = [1 if name in drop else high - low + 1 for name, (low, high) in box.items()]
        space = Space(self.fixed, list(box), lows, extents)
        for name in drop:
            space.env.pop(name, None)
            space.axis.pop(name, None)
        return space

    @staticmethod
    def _mask(space: Space, constraints: Sequence[Constraint]) -> Value | None:
        if not constraints:
            return None
        mask: Value = True
        for c in constraints:
            mask = mask & (c.value.evaluate(space.env) >= 0)
        return None if np.all(mask) else mask

    def _run_box(self, box: Box) -> None:
        if self.statement.reduction is None:
            self._pointwise(box)
        elif self.runner.scatters:
            if not self.no_elements:
                self._combine_into_targets(box, self.statement.reduction)
        else:
            self._reduce(box, self.statement.reduction)

    # ---------------------------------------------------------------- pointwise

    def _evaluator(
        self, space: Space, mask: Value | None, scalars: Mapping[str, Value] | None = None
    ) -> Evaluator:
        return Evaluator(self.runner.arrays, space, mask, scalars, self.runner.where)

    def _pointwise(self, box: Box) -> None:
        space = self._space(box)
        mask = self._mask(space, self.constraints)
        if mask is not None and not np.any(mask):
            return
        evaluator = self._evaluator(space, mask)
        values = [evaluator.expr(e) for e in self.statement.elements]
        for write, value in zip(self.statement.writes, values, strict=True):
            self._store(evaluator, write, value, mask)

    def _store(self, ev: Evaluator, write: Write, value: Value, mask: Value | None) -> None:
        """Write ``value`` where ``mask``; the last instance wins where targets coincide."""
        array = self.runner.arrays[write.tensor]
        if mask is None and self.statement.scatter is None:
            view = ev.strided(write.tensor, array, write.indices)
            if view is not None:
                if np.ndim(value):
                    axes = zip(view.shape, np.shape(value), strict=True)
                    last = tuple(slice(-1, None) if v == 1 else slice(None) for v, _ in axes)
                    value = value[last]
                view[...] = value
                return
        exists = True if mask is None else mask
        target, values, keep = self._targets(ev, write, (value,), exists)
        array.reshape(-1)[target[keep]] = values[0][keep]

    @staticmethod
    def _targets(
        ev: Evaluator, write: Write, values: Sequence[Value], exists: Value
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Flat target, values and existence of each instance, in lexicographic order."""
        array = ev.arrays[write.tensor]
        indices = ev.checked_indices(write.tensor, array.shape, write.indices, exists)
        flat: Value = np.int64(0)
        for index, size in zip(indices, array.shape, strict=True):
            flat = flat * size + index
        shape = np.broadcast_shapes(np.shape(flat), np.shape(exists), *map(np.shape, values))
        lines = [np.broadcast_to(x, shape).reshape(-1) for x in (flat, exists, *values)]
        return lines[0], lines[2:], lines[1]

    # ---------------------------------------------------------------- reductions

    def _reduce(self, box: Box, reduction: Reduction) -> None:
        outer = self._space(box, frozenset() if reduction.scan else self.plan.reduced)
        if reduction.scan and self.no_elements:
            return
        constraints = self.constraints if reduction.scan else self.point_constraints
        mask = self._mask(outer, constraints)
        if mask is not None and not np.any(mask):
            return
        states = self._states(box, reduction)
        if reduction.into:
            ev = self._evaluator(outer, mask)
            start = [
                ev.load(Load(tensor=w.tensor, indices=w.indices, dtype=d))
                for w, d in zip(self.statement.writes, reduction.monoid.dtypes, strict=True)
            ]
            states = folding.combine(reduction.monoid, start, states)
        scalars = {f"s{i}": s for i, s in enumerate(states)}
        ev = self._evaluator(outer, mask, scalars)
        values = [ev.expr(e) for e in reduction.final]
        for write, value in zip(self.statement.writes, values, strict=True):
            self._store(ev, write, value, mask)

    def _states(self, box: Box, reduction: Reduction) -> list[Value]:
        """The combined state at each point of ``box`` (for a scan: the running ones)."""
        if self.no_elements:
            return folding.identity(reduction.monoid)
        if not reduction.scan:
            free = [n for n in reduction.indices if n in box]
            pieces = self._cut(box, free, keep_order=True)
            if pieces is not None:
                states = self._states(pieces[0], reduction)
                for piece in pieces[1:]:
                    states = folding.combine(
                        reduction.monoid, states, self._states(piece, reduction)
                    )
                return states
        space = self._space(box)
        axes = [space.axis[n] for n in reduction.indices if n in space.axis]
        if self.factors is not None:
            ev = self._evaluator(space, self._mask(space, self.point_constraints))
            a, b = ev.expr(self.factors[0]), ev.expr(self.factors[1])
            return [folding.contract(a, b, axes, space.extents, self.factors[0].dtype)]
        elements = self._elements(space, reduction)
        if reduction.scan:
            return folding.scan(reduction.monoid, elements, axes, space.extents)
        return folding.fold(reduction.monoid, elements, axes, space.extents)

    def _elements(self, space: Space, reduction: Reduction) -> list[Value]:
        """Element of each component; the identity where an instance does not exist."""
        mask = self._mask(space, self.constraints)
        ev = self._evaluator(space, mask)
        values = [ev.expr(e) for e in self.statement.elements]
        if mask is None:
            return values
        return [
            np.where(self._own(mask, space, reduction, i), v, numeric.constant(c.value, c.dtype))
            for i, (v, c) in enumerate(zip(values, reduction.monoid.identity, strict=True))
        ]

    def _own(self, mask: Value, space: Space, reduction: Reduction, component: int) -> Value:
        """``mask`` without the axes that a component does not have."""
        own = None if reduction.state_indices is None else reduction.state_indices[component]
        if own is None or np.ndim(mask) == 0:
            return mask
        keep = {*own, *reduction.indices}
        axes = tuple(a for n, a in space.axis.items() if n not in keep)
        return np.any(mask, axis=axes, keepdims=True) if axes else mask

    def _combine_into_targets(self, box: Box, reduction: Reduction) -> None:
        """Combine every element into the target it names, in lexicographic order."""
        space = self._space(box)
        mask = self._mask(space, self.constraints)
        ev = self._evaluator(space, mask)
        values = [ev.expr(e) for e in self.statement.elements]
        exists: Value = np.ones(space.extents, bool) if mask is None else mask
        arrays = [self.runner.arrays[w.tensor].reshape(-1) for w in self.statement.writes]
        lines = [
            self._targets(ev, w, (v,), exists)
            for w, v in zip(self.statement.writes, values, strict=True)
        ]
        ops = [folding.simple_op(reduction.monoid, i) for i in range(len(values))]
        if all(op is not None for op in ops):
            for array, op, (target, value, keep) in zip(arrays, ops, lines, strict=True):
                folding.ufunc_of(op or "").at(array, target[keep], value[0][keep])
            return
        keep = lines[0][2]
        for k in np.flatnonzero(keep):
            left = [a[line[0][k]] for a, line in zip(arrays, lines, strict=True)]
            right = [line[1][0][k] for line in lines]
            for a, line, new in zip(
                arrays, lines, folding.combine(reduction.monoid, left, right), strict=True
            ):
                a[line[0][k]] = new


def reads_own_target(plan: Plan, bases: Mapping[str, str]) -> bool:
    """Whether a statement loads a tensor that it also writes (aliases resolved by ``bases``)."""
    written = {bases[w.tensor] for w in plan.statement.writes}
    return any(
        bases[n.tensor] in written
        for e in plan.statement.elements
        for n in distinct_nodes(e)
        if isinstance(n, Load)
    )
