"""Run one statement instance by instance, in lexicographic order, without reassociation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from nestor.ir import numeric
from nestor.ir.affine import Affine
from nestor.ir.evaluate import evaluate_scalars
from nestor.ir.instances import Plan
from nestor.ir.numeric import Value
from nestor.ir.program import Reduction
from nestor.ir.scalar import Closures, Frame, compile_affine

Check = Callable[[Mapping[str, int]], int]
"""A compiled constraint: holds where its value is ≥ 0."""


class ExactRunner:
    """The same interface as ``VectorRunner``; every float operation happens as written.

    A reduction folds from the left, starting with the identity (or the target, with ``into``).
    """

    def __init__(self, plan: Plan, arrays: Mapping[str, np.ndarray]) -> None:
        self.plan, self.arrays = plan, arrays
        statement = plan.statement
        where = f"statement {statement.name}"
        closures = Closures()
        self.elements = [closures.expr(e, where) for e in statement.elements]
        self.targets = [closures.indexer(w.tensor, w.indices, where) for w in statement.writes]
        self.names = [w.tensor for w in statement.writes]
        self.reduction = statement.reduction
        self.final = (
            [closures.expr(e, where) for e in self.reduction.final] if self.reduction else []
        )
        self.ranges = {
            r.name: (compile_affine(r.lower), compile_affine(r.upper))
            for r in statement.domain.ranges
        }
        checks = [(compile_affine(c.value), c.variables & plan.reduced) for c in plan.constraints]
        self.constraints: list[Check] = [c for c, _ in checks]
        self.point_constraints = [c for c, reduced in checks if not reduced]
        self.element_constraints = [c for c, reduced in checks if reduced]

    def run(self, fixed: Mapping[str, int]) -> None:
        """Run all instances with the symbols and ordered indices of ``fixed``."""
        plan, reduction = self.plan, self.reduction
        frame = Frame(dict(fixed), self.arrays)
        if reduction is None or self._per_instance(reduction):
            for _ in self._points(frame, plan.names, self.constraints, fixed):
                self._instance(frame)
            return
        outer = tuple(n for n in plan.names if n not in plan.reduced)
        for _ in self._points(frame, outer, self.point_constraints, fixed):
            start = self._read_targets(frame) if reduction.into else self._identity(reduction)
            state = start
            for _ in self._points(frame, reduction.indices, self.element_constraints, fixed):
                state = self._combine(reduction, state, [e(frame) for e in self.elements])
                if reduction.scan:
                    self._finish(frame, state)
            if not reduction.scan:
                self._finish(frame, state)

    def _per_instance(self, reduction: Reduction) -> bool:
        """Whether each instance combines into the target that it names itself."""
        return reduction.into and any(
            not isinstance(i, Affine) or i.variables() & self.plan.reduced
            for w in self.plan.statement.writes
            for i in w.indices
        )

    def _points(
        self,
        frame: Frame,
        names: tuple[str, ...],
        constraints: list[Check],
        fixed: Mapping[str, int],
    ) -> Iterator[None]:
        """Set ``names`` in ``frame.env`` to each of their values that the domain holds."""
        env = frame.env

        def visit(depth: int) -> Iterator[None]:
            if depth == len(names):
                if all(c(env) >= 0 for c in constraints):
                    yield
                return
            name = names[depth]
            lower, upper = self.ranges[name]
            values = range(lower(env), upper(env))
            if name in fixed:
                values = range(fixed[name], fixed[name] + 1) if fixed[name] in values else range(0)
            for value in values:
                env[name] = value
                yield from visit(depth + 1)

        yield from visit(0)
        for name in names:
            if name not in fixed:
                env.pop(name, None)

    def _instance(self, frame: Frame) -> None:
        values = [e(frame) for e in self.elements]
        if self.reduction is not None:
            values = self._combine(self.reduction, self._read_targets(frame), values)
        self._write(frame, values)

    def _finish(self, frame: Frame, state: list[Value]) -> None:
        frame.scalars = {f"s{i}": s for i, s in enumerate(state)}
        self._write(frame, [f(frame) for f in self.final])

    def _write(self, frame: Frame, values: list[Value]) -> None:
        places = [target(frame) for target in self.targets]
        for name, at, value in zip(self.names, places, values, strict=True):
            self.arrays[name][at] = value

    def _read_targets(self, frame: Frame) -> list[Value]:
        return [
            self.arrays[name][target(frame)]
            for name, target in zip(self.names, self.targets, strict=True)
        ]

    @staticmethod
    def _identity(reduction: Reduction) -> list[Value]:
        return [numeric.constant(c.value, c.dtype) for c in reduction.monoid.identity]

    @staticmethod
    def _combine(reduction: Reduction, left: list[Value], right: list[Value]) -> list[Value]:
        scalars = {f"a{i}": v for i, v in enumerate(left)}
        scalars.update({f"b{i}": v for i, v in enumerate(right)})
        return [evaluate_scalars(c, scalars) for c in reduction.monoid.combine]
