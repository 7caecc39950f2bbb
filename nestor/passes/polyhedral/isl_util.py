"""The thin layer over islpy: contexts, text of affines, integer sets, a budget.

Names of loops and symbols never reach isl (they may hold dots and ``#``): dimensions are
``i0, i1, …`` by position, symbols ``p0, p1, …``. Sets are made from text, which measured cheaper
than building constraint by constraint through the Python bindings.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import islpy as isl

from nestor.errors import IRError, LegalityUnknown
from nestor.ir.affine import Affine, FloorDiv, Interval, variable
from nestor.ir.program import Symbol

IN, OUT, SET, PARAM = isl.dim_type.in_, isl.dim_type.out, isl.dim_type.set, isl.dim_type.param

_LOCAL = threading.local()


def context() -> Any:
    """The isl context of the calling thread (isl contexts must not be shared by threads)."""
    found = getattr(_LOCAL, "context", None)
    if found is None:
        found = _LOCAL.context = isl.Context()
    return found


def affine_text(value: Affine, names: Mapping[str, str]) -> str:
    """``value`` in isl's syntax. Raises: ``IRError`` for a variable that is not in scope."""
    parts: list[str] = []
    for atom, c in value.terms:
        if isinstance(atom, str):
            if atom not in names:
                raise _unknown_name(atom, value)
            body = names[atom]
        elif isinstance(atom, FloorDiv):
            body = f"floor(({affine_text(atom.num, names)})/{atom.den})"
        else:
            body = f"(({affine_text(atom.num, names)}) mod {atom.den})"
        parts.append(f"{c}*{body}")
    if value.const or not parts:
        parts.append(str(value.const))
    return " + ".join(parts)


def free_variable(position: int) -> Affine:
    """The stand-in for a data-dependent index: any value within its dimension."""
    return variable(f"?{position}")


@dataclass(slots=True, eq=False)
class Points:
    """Integer points: the iterations of a ``Compute``, or the instances of a statement.

    ``constraints`` hold all (each ``≥ 0``); of each group in ``choices`` at least one conjunction.
    """

    names: tuple[str, ...]
    symbols: tuple[Symbol, ...]
    constraints: tuple[Affine, ...]
    choices: tuple[tuple[tuple[Affine, ...], ...], ...] = ()
    ranges: Mapping[str, Interval] = field(default_factory=dict)
    _cache: dict[object, Any] = field(default_factory=dict)

    def domain(self, predicate: tuple[Affine, ...] = ()) -> Any:
        """The points where ``predicate`` holds, as an ``isl.Set``."""
        return self._domain((), predicate)

    def relation(
        self,
        outputs: tuple[Affine, ...],
        predicate: tuple[Affine, ...] = (),
        free: tuple[Affine, ...] = (),
    ) -> Any:
        """The map from points (and free variables ``?0 < free[0], …``) to ``outputs``."""
        key = (outputs, predicate, free)
        if key not in self._cache:
            inputs = self._domain(free, ()).get_space()
            space = inputs.from_domain().add_dims(OUT, len(outputs))
            target = isl.MultiAff.zero(space)
            for k, output in enumerate(outputs):
                target = target.set_aff(k, self._aff(output, free))
            whole = isl.Map.from_multi_aff(target)
            self._cache[key] = whole.intersect_domain(self._domain(free, predicate))
        return self._cache[key]

    def _domain(self, free: tuple[Affine, ...], predicate: tuple[Affine, ...]) -> Any:
        key = ("domain", free, predicate)
        if key not in self._cache:
            if predicate:
                found = self._domain(free, ())
                for condition in predicate:
                    found = found.intersect(_nonnegative(self._aff(condition, free)))
            else:
                found = isl.Set.read_from_str(context(), self._text(free))
            self._cache[key] = found
        return self._cache[key]

    def _aff(self, value: Affine, free: tuple[Affine, ...]) -> Any:
        """``value`` as an ``isl.Aff`` over the points."""
        key = ("aff", value, free)
        if key not in self._cache:
            columns = self._columns(free)
            space = self._domain(free, ()).get_space()
            found = isl.Aff.zero_on_domain(isl.LocalSpace.from_space(space))
            found = found.set_constant_val(value.const)
            for atom, c in value.terms:
                if isinstance(atom, str):
                    if atom not in columns:
                        raise _unknown_name(atom, value)
                    found = found.add_coefficient_val(*columns[atom], c)
                    continue
                inner = self._aff(atom.num, free)
                is_div = isinstance(atom, FloorDiv)
                inner = (
                    inner.scale_down_val(atom.den).floor() if is_div else inner.mod_val(atom.den)
                )
                found = found.add(inner.scale_val(c))
            self._cache[key] = found
        return self._cache[key]

    def _columns(self, free: tuple[Affine, ...]) -> dict[str, tuple[Any, int]]:
        names = {s.name: (PARAM, k) for k, s in enumerate(self.symbols)}
        names.update((n, (IN, k)) for k, n in enumerate(self.names))
        names.update((f"?{k}", (IN, len(self.names) + k)) for k in range(len(free)))
        return names

    def _text(self, free: tuple[Affine, ...]) -> str:
        names = {s.name: f"p{k}" for k, s in enumerate(self.symbols)}
        names.update((n, f"i{k}") for k, n in enumerate(self.names))
        dims = [f"i{k}" for k in range(len(self.names))] + [f"g{k}" for k in range(len(free))]
        where = [f"{affine_text(c, names)} >= 0" for c in self.constraints]
        for group in self.choices:
            options = [
                " and ".join(f"{affine_text(c, names)} >= 0" for c in option) for option in group
            ]
            where.append("(" + " or ".join(f"({o})" for o in options) + ")")
        for k, extent in enumerate(free):
            where.append(f"0 <= g{k} < {affine_text(extent, names)}")
        for k, symbol in enumerate(self.symbols):
            where.append(f"p{k} >= {symbol.lower}")
            if symbol.upper is not None:
                where.append(f"p{k} <= {symbol.upper}")
        head = f"[{', '.join(f'p{k}' for k in range(len(self.symbols)))}] -> "
        condition = (" : " + " and ".join(where)) if where else ""
        return f"{head}{{ [{', '.join(dims)}]{condition} }}"


def _nonnegative(value: Any) -> Any:
    return isl.PwAff.from_aff(value).nonneg_set()


def _unknown_name(name: str, value: Affine) -> IRError:
    return IRError(f"'{name}' in '{value}' is neither a loop around it nor a symbol")


def pairs_by_level(
    rel: Any, shared: int, start: int, *, ascending: bool
) -> Iterator[tuple[int, Any]]:
    """Split pairs of iterations by the outermost shared loop in which they differ.

    Yields ``(level, pairs)``: equal in the loops before ``level`` and, at ``level``, in < out
    (``ascending``) or in > out. Last comes ``(shared, pairs equal in all)``. Loops before ``start``
    are taken as equal. One level at a time: a lexicographic order on the whole vector measured
    a hundred times dearer.
    """
    for level in range(start):
        rel = rel.equate(IN, level, OUT, level)
    for level in range(start, shared):
        order = rel.order_lt if ascending else rel.order_gt
        yield level, order(IN, level, OUT, level)
        rel = rel.equate(IN, level, OUT, level)
    yield shared, rel


def ordered_pairs(
    rel: Any, shared: int, start: int, *, ascending: bool, at_equal: bool
) -> Iterator[Any]:
    """The pairs of ``rel`` with in before out (``ascending``) or after it, innermost level first.

    ``at_equal``: whether pairs that are equal in all shared loops count too. Most proofs end at the
    innermost level, so the outer ones are made only when asked for.
    """
    for level in range(start):
        rel = rel.equate(IN, level, OUT, level)
    prefixes = [rel]
    for level in range(start, shared):
        rel = rel.equate(IN, level, OUT, level)
        prefixes.append(rel)
    if at_equal:
        yield rel
    for level in range(shared - 1, start - 1, -1):
        prefix = prefixes[level - start]
        order = prefix.order_lt if ascending else prefix.order_gt
        yield order(IN, level, OUT, level)


def conflict(a: Any, b: Any) -> Any:
    """Pairs of points that ``a`` and ``b`` map to the same place."""
    return a.apply_range(b.reverse())


@dataclass(slots=True, eq=False)
class Session:
    """One check: its budget and what it counts."""

    deadline: float
    seconds: float
    queries: int = 0
    pairs: int = 0

    def is_empty(self, x: Any) -> bool:
        """Ask isl. Raises: ``LegalityUnknown`` past the time limit."""
        self.queries += 1
        if time.monotonic() > self.deadline:
            raise LegalityUnknown(f"the legality check took longer than {self.seconds:g} s")
        return bool(x.is_empty())

    def is_subset(self, a: Any, b: Any) -> bool:
        """Ask isl whether ``a ⊆ b``."""
        self.queries += 1
        if time.monotonic() > self.deadline:
            raise LegalityUnknown(f"the legality check took longer than {self.seconds:g} s")
        return bool(a.is_subset(b))


@contextlib.contextmanager
def operations_limited(limit: int, what: str) -> Iterator[None]:
    """Within, isl may use ``limit`` operations. Raises: ``LegalityUnknown`` past them."""
    ctx = context()
    ctx.reset_operations()
    ctx.set_max_operations(limit)
    try:
        yield
    except isl.Error:
        if is_spent():
            raise LegalityUnknown(f"{what} needs more than {limit} isl operations") from None
        raise
    finally:
        ctx.set_max_operations(0)
        ctx.reset_operations()


def is_spent() -> bool:
    """Whether isl's operations are used up: it then refuses everything.

    Its errors do not always say so: text that it stops reading midway is called a syntax error.
    """
    try:
        isl.Set.read_from_str(context(), "{ [i] : 0 <= i <= 1 and (i mod 2) = 0 }").is_empty()
    except isl.Error:
        return True
    return False


def coordinates(x: Any) -> tuple[list[int], list[int]] | None:
    """One point of a set or of a wrapped relation: (symbols, coordinates); None if it is empty.

    Symbols are as small as they can be, the first one before the others: a counter-example at
    small sizes is read, and tried, with less effort than one at the sizes that isl happens to pick.
    """
    points = x.wrap() if isinstance(x, (isl.Map, isl.BasicMap)) else x
    point = points.sample_point()
    if point.is_void():
        return None
    params = points.dim(PARAM)
    for k in range(params):
        points, point = _with_least_symbol(points, point, k)
    return (
        [_coordinate(point, PARAM, k) for k in range(params)],
        [_coordinate(point, SET, k) for k in range(points.dim(SET))],
    )


def _with_least_symbol(points: Any, point: Any, k: int) -> tuple[Any, Any]:
    """Narrow ``points`` to the least value of symbol ``k`` that is not negative, by bisection."""
    low, high = 0, _coordinate(point, PARAM, k)
    while low < high:
        middle = (low + high) // 2
        lower = points.upper_bound_val(PARAM, k, middle)
        found = lower.sample_point()
        if found.is_void():
            low = middle + 1
        else:
            points, point = lower, found
            high = _coordinate(found, PARAM, k)
    return points.lower_bound_val(PARAM, k, high).upper_bound_val(PARAM, k, high), point


def _coordinate(point: Any, kind: Any, k: int) -> int:
    return int(point.get_coordinate_val(kind, k).to_python())


def union_of(sets: Sequence[Any]) -> Any:
    """The union of at least one set or map."""
    total = sets[0]
    for other in sets[1:]:
        total = total.union(other)
    return total
