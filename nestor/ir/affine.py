"""Quasi-affine integer expressions: the index language of domains, accesses and loop bounds.

An ``Affine`` is an integer combination of atoms plus a constant. An atom is a variable (loop index
or shape symbol, a ``str``), or the floor division or modulus of an ``Affine`` by a positive
constant. Equal values built in different ways have one normal form for the linear part; ``//`` and
``%`` are normalised by the local rules in ``FloorDiv``/``Mod`` construction and, given the ranges
of the variables, by ``simplify``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union

Interval = tuple[int | None, int | None]
"""Inclusive bounds; None is unbounded."""


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """``floor(num / den)``, den > 0."""

    num: Affine
    den: int

    def __str__(self) -> str:
        return f"{_operand(self.num)}//{self.den}"


@dataclass(frozen=True, slots=True)
class Mod:
    """``num - den * floor(num / den)``, in ``[0, den)``, den > 0."""

    num: Affine
    den: int

    def __str__(self) -> str:
        return f"{_operand(self.num)}%{self.den}"


Atom = Union[str, FloorDiv, Mod]
AffineLike = Union["Affine", int, str]


@dataclass(frozen=True, slots=True)
class Affine:
    """``sum(coefficient * atom) + const``; terms sorted by their text, no zero coefficients.

    Build with ``affine``, the operators ``+ - * // %`` and ``affine_sum``, never directly.
    """

    terms: tuple[tuple[Atom, int], ...] = ()
    const: int = 0

    def __add__(self, other: AffineLike) -> Affine:
        return affine_sum(((self, 1), (affine(other), 1)))

    __radd__ = __add__

    def __sub__(self, other: AffineLike) -> Affine:
        return affine_sum(((self, 1), (affine(other), -1)))

    def __rsub__(self, other: AffineLike) -> Affine:
        return affine(other) - self

    def __neg__(self) -> Affine:
        return self * -1

    def __mul__(self, factor: int) -> Affine:
        if factor == 0:
            return Affine()
        if factor == 1:
            return self
        return Affine(tuple((a, c * factor) for a, c in self.terms), self.const * factor)

    __rmul__ = __mul__

    def __floordiv__(self, den: int) -> Affine:
        return floor_div(self, den)

    def __mod__(self, den: int) -> Affine:
        return modulo(self, den)

    @property
    def is_const(self) -> bool:
        """True if no atom occurs."""
        return not self.terms

    def coefficient(self, atom: Atom) -> int:
        """Coefficient of ``atom`` (0 if absent) at the top level; looks into no ``//`` or ``%``."""
        return next((c for a, c in self.terms if a == atom), 0)

    def variables(self) -> frozenset[str]:
        """Names of all variables, also those inside ``//`` and ``%``."""
        out: set[str] = set()
        for atom, _ in self.terms:
            out |= {atom} if isinstance(atom, str) else atom.num.variables()
        return frozenset(out)

    def substitute(self, mapping: Mapping[str, AffineLike]) -> Affine:
        """Replace variables by expressions; variables that are not in ``mapping`` stay."""
        if not self.terms:
            return self
        parts: list[tuple[Affine, int]] = []
        for atom, c in self.terms:
            if isinstance(atom, str):
                new = affine(mapping[atom]) if atom in mapping else variable(atom)
            elif isinstance(atom, FloorDiv):
                new = floor_div(atom.num.substitute(mapping), atom.den)
            else:
                new = modulo(atom.num.substitute(mapping), atom.den)
            parts.append((new, c))
        return affine_sum(parts, self.const)

    def evaluate(self, env: Mapping[str, Any]) -> Any:
        """Value under ``env``; works for ints and for NumPy integer arrays alike."""
        total: Any = self.const
        for atom, c in self.terms:
            if isinstance(atom, str):
                value = env[atom]
            elif isinstance(atom, FloorDiv):
                value = atom.num.evaluate(env) // atom.den
            else:
                value = atom.num.evaluate(env) % atom.den
            total = total + c * value
        return total

    def bounds(self, ranges: Mapping[str, Interval]) -> Interval:
        """Inclusive interval that holds every value, given inclusive ``ranges`` of variables."""
        lo: int | None = self.const
        hi: int | None = self.const
        for atom, c in self.terms:
            a_lo, a_hi = _atom_bounds(atom, ranges)
            if c < 0:
                a_lo, a_hi = a_hi, a_lo
            lo = None if lo is None or a_lo is None else lo + c * a_lo
            hi = None if hi is None or a_hi is None else hi + c * a_hi
        return lo, hi

    def simplify(self, ranges: Mapping[str, Interval]) -> Affine:
        """Rewrite ``//`` and ``%`` that the ranges decide, e.g. ``(8*i + j)//8 → i``, 0 ≤ j < 8."""
        if all(isinstance(a, str) for a, _ in self.terms):
            return self
        parts: list[tuple[Affine, int]] = []
        for atom, c in self.terms:
            if isinstance(atom, str):
                parts.append((variable(atom), c))
            elif isinstance(atom, FloorDiv):
                parts.append((_simplify_div(atom.num.simplify(ranges), atom.den, ranges), c))
            else:
                parts.append((_simplify_mod(atom.num.simplify(ranges), atom.den, ranges), c))
        return affine_sum(parts, self.const)

    def __str__(self) -> str:
        out = ""
        for atom, c in self.terms:
            text = str(atom)
            if not isinstance(atom, str) and (abs(c) != 1 or (c < 0 and not out)):
                text = f"({text})"
            body = text if abs(c) == 1 else f"{abs(c)}*{text}"
            if out:
                out += f" - {body}" if c < 0 else f" + {body}"
            else:
                out = f"-{body}" if c < 0 else body
        if self.const or not out:
            k = self.const
            out += (f" - {-k}" if k < 0 else f" + {k}") if out else str(k)
        return out

    __repr__ = __str__


ZERO = Affine()
ONE = Affine((), 1)


def variable(name: str) -> Affine:
    """The variable ``name`` as an expression."""
    return Affine(((name, 1),))


def affine(value: AffineLike) -> Affine:
    """Coerce: an int is a constant, a str a variable, an ``Affine`` itself."""
    if isinstance(value, Affine):
        return value
    if isinstance(value, str):
        return variable(value)
    return Affine((), int(value))


def affine_sum(parts: Iterable[tuple[Affine, int]], const: int = 0) -> Affine:
    """``sum(factor * part) + const`` in normal form."""
    acc: dict[Atom, int] = {}
    for part, factor in parts:
        const += part.const * factor
        for atom, c in part.terms:
            acc[atom] = acc.get(atom, 0) + c * factor
    items = [(a, c) for a, c in acc.items() if c]
    if len(items) > 1:
        items.sort(key=_term_key)
    return Affine(tuple(items), const)


def floor_div(num: AffineLike, den: int) -> Affine:
    """``floor(num / den)``; multiples of ``den`` move out: ``(8*i + j)//4 → 2*i + j//4``."""
    num = affine(num)
    if den <= 0:
        raise ValueError(f"floor division by {den}: the divisor must be a positive constant")
    if den == 1:
        return num
    outside, inside = _split_multiples(num, den)
    if inside.is_const:
        return outside + inside.const // den
    if len(inside.terms) == 1 and inside.const >= 0:
        atom, c = inside.terms[0]
        # floor(floor(a / p) / q) = floor(a / (p q))
        if isinstance(atom, FloorDiv) and c == 1 and inside.const == 0:
            return outside + floor_div(atom.num, atom.den * den)
    return outside + Affine(((FloorDiv(inside, den), 1),))


def modulo(num: AffineLike, den: int) -> Affine:
    """``num`` modulo ``den``; multiples of ``den`` vanish: ``(8*i + j)%4 → j%4``."""
    num = affine(num)
    if den <= 0:
        raise ValueError(f"modulus {den}: it must be a positive constant")
    if den == 1:
        return ZERO
    _, inside = _split_multiples(num, den)
    if inside.is_const:
        return Affine((), inside.const % den)
    return Affine(((Mod(inside, den), 1),))


def _split_multiples(num: Affine, den: int) -> tuple[Affine, Affine]:
    """``num = den * outside + inside`` with every coefficient of ``inside`` in ``[0, den)``."""
    if all(0 <= c < den for _, c in num.terms) and 0 <= num.const < den:
        return ZERO, num
    outside = Affine(tuple((a, c // den) for a, c in num.terms if c // den), num.const // den)
    inside = Affine(tuple((a, c % den) for a, c in num.terms if c % den), num.const % den)
    return outside, inside


def _operand(num: Affine) -> str:
    """Text of a dividend; a plain variable needs no parentheses."""
    text = str(num)
    return text if num.const == 0 and num.terms == ((text, 1),) else f"({text})"


def _term_key(term: tuple[Atom, int]) -> str:
    atom = term[0]
    return atom if isinstance(atom, str) else str(atom)


def _atom_bounds(atom: Atom, ranges: Mapping[str, Interval]) -> Interval:
    if isinstance(atom, str):
        return ranges.get(atom, (None, None))
    lo, hi = atom.num.bounds(ranges)
    if isinstance(atom, FloorDiv):
        return (
            None if lo is None else lo // atom.den,
            None if hi is None else hi // atom.den,
        )
    if lo is not None and hi is not None and lo // atom.den == hi // atom.den:
        return lo % atom.den, hi % atom.den
    return 0, atom.den - 1


def _simplify_div(num: Affine, den: int, ranges: Mapping[str, Interval]) -> Affine:
    """Split off the largest part divisible by ``den`` whose remainder stays within one period."""
    coarse = _split_common(num, den, ranges)
    if coarse is not None:
        whole, _, step = coarse
        return _simplify_div(whole, den // step, ranges)
    done = floor_div(num, den)
    return _decide(done, num, den, ranges, lambda outside, _rest: outside)


def _simplify_mod(num: Affine, den: int, ranges: Mapping[str, Interval]) -> Affine:
    coarse = _split_common(num, den, ranges)
    if coarse is not None:
        whole, rest, step = coarse
        return _simplify_mod(whole, den // step, ranges) * step + rest
    done = modulo(num, den)
    return _decide(done, num, den, ranges, lambda _outside, rest: rest)


def _split_common(
    num: Affine, den: int, ranges: Mapping[str, Interval]
) -> tuple[Affine, Affine, int] | None:
    """``num = step * whole + rest``, 0 ≤ rest < step, with a ``step > 1`` that divides ``den``.

    So ``(8*i + j)//128 → i//16`` and ``(8*i + j)%128 → 8*(i%16) + j`` for 0 ≤ j < 8.
    """
    steps = {math.gcd(c, den) for _, c in num.terms} - {1, den}
    for step in sorted(steps, reverse=True):
        whole, rest = _split_exact(num, step)
        inside = rest.const % step
        whole, rest = whole + (rest.const - inside) // step, rest - (rest.const - inside)
        lo, hi = rest.bounds(ranges)
        if rest.terms and whole.terms and lo is not None and hi is not None:
            if lo // step == hi // step:
                return whole + lo // step, rest - lo // step * step, step
    return None


def _decide(
    default: Affine,
    num: Affine,
    den: int,
    ranges: Mapping[str, Interval],
    pick: Callable[[Affine, Affine], Affine],
) -> Affine:
    """If ``num = den*q + r`` with ``0 ≤ r < den`` is provable, return ``pick(q, r)``."""
    for split in (_split_multiples(num, den), _split_exact(num, den), _split_nearest(num, den)):
        outside, rest = split
        lo, hi = rest.bounds(ranges)
        if lo is not None and hi is not None and lo // den == hi // den:
            q = lo // den
            return pick(outside + q, rest - q * den)
    return default


def _split_nearest(num: Affine, den: int) -> tuple[Affine, Affine]:
    """As ``_split_multiples`` with coefficients in ``(-den/2, den/2]``: ``7*j`` is ``8*j - j``."""
    outside = Affine(
        tuple((a, q) for a, c in num.terms if (q := (2 * c + den - 1) // (2 * den))),
        num.const // den,
    )
    return outside, num - outside * den


def _split_exact(num: Affine, den: int) -> tuple[Affine, Affine]:
    """Take out only terms that are exact multiples of ``den`` (keeps negative rests negative)."""
    outside = Affine(
        tuple((a, c // den) for a, c in num.terms if c % den == 0),
        num.const // den if num.const % den == 0 else 0,
    )
    return outside, num - outside * den
