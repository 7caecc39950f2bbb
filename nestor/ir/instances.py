"""Which instances a statement has: its domain as a box (hull) and the constraints left over.

Shared by the vectorised and the instance-by-instance interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nestor.ir.affine import Affine, Interval, affine
from nestor.ir.expr import Expr, Index, Load, distinct_nodes
from nestor.ir.program import Statement


@dataclass(slots=True)
class Constraint:
    """``value ≥ 0``, and the domain's indices it mentions."""

    value: Affine
    variables: frozenset[str]


@dataclass(slots=True)
class Plan:
    """What is known about a statement before any variable has a value.

    Attributes:
        names: domain indices; reduced: those that a reduction consumes.
        bounds: the constraints that each range states, by index.
        constraints: further constraints of the domain.
    """

    statement: Statement
    names: tuple[str, ...]
    reduced: frozenset[str]
    bounds: dict[str, tuple[Constraint, Constraint]]
    constraints: list[Constraint]
    _dims: dict[int, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, statement: Statement) -> Plan:
        """Analyse ``statement``."""
        names = statement.domain.names
        known = frozenset(names)

        def constraint(value: Affine) -> Constraint:
            return Constraint(value, value.variables() & known)

        bounds = {
            r.name: (
                constraint(affine(r.name) - r.lower),
                constraint(r.upper - 1 - affine(r.name)),
            )
            for r in statement.domain.ranges
        }
        reduction = statement.reduction
        return cls(
            statement=statement,
            names=names,
            reduced=frozenset(reduction.indices) if reduction else frozenset(),
            bounds=bounds,
            constraints=[constraint(c) for c in statement.domain.constraints],
        )

    def dims(self, node: Expr) -> frozenset[str]:
        """The domain's indices that an expression mentions."""
        key = id(node)
        if key not in self._dims:
            self._dims[key] = expr_variables(node) & frozenset(self.names)
        return self._dims[key]

    def hull(self, fixed: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Inclusive interval of each domain index; fixed ones are points; empty if low > high."""
        ranges: dict[str, Interval] = {name: (v, v) for name, v in fixed.items()}
        out: dict[str, tuple[int, int]] = {}
        for r in self.statement.domain.ranges:
            if r.name in fixed:
                low, high = fixed[r.name], fixed[r.name]
            else:
                least, most = r.lower.bounds(ranges)[0], r.upper.bounds(ranges)[1]
                if least is None or most is None:
                    raise KeyError(f"{self.statement.name}: the range of {r.name} is unbounded")
                low, high = least, most - 1
            ranges[r.name] = (low, high)
            out[r.name] = (low, high)
        return out

    def open_constraints(self, fixed: Mapping[str, int]) -> list[Constraint]:
        """Constraints that the hull of the free indices does not already state."""
        out = list(self.constraints)
        for name, pair in self.bounds.items():
            for c in pair:
                if name in fixed or any(v != name and v not in fixed for v in c.variables):
                    out.append(c)
        return out


def expr_variables(node: Expr) -> frozenset[str]:
    """Names of all indices and symbols that occur in an expression's affines."""
    out: set[str] = set()
    for n in distinct_nodes(node):
        if isinstance(n, Index):
            out |= n.value.variables()
        elif isinstance(n, Load):
            for index in n.indices:
                if isinstance(index, Affine):
                    out |= index.variables()
            for condition in n.predicate:
                out |= condition.variables()
    return frozenset(out)
