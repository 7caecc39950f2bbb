"""Rules of symbols and tensors: names, shapes, layouts, aliases. For both levels of the IR."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nestor.ir.affine import Affine
from nestor.ir.injectivity import find_collision
from nestor.ir.program import Symbol, Tensor
from nestor.ir.type_rules import Fail


def check_symbols(symbols: Sequence[Symbol], fail: Fail) -> None:
    """Names are distinct and ranges are not empty."""
    seen: set[str] = set()
    for s in symbols:
        if s.name in seen:
            fail(f"two symbols are called {s.name}")
        seen.add(s.name)
        if s.lower < 0 or (s.upper is not None and s.upper < s.lower):
            fail(f"symbol {s.name} has the range {s.lower}..{s.upper}")


def check_tensors(tensors: Sequence[Tensor], symbols: Sequence[Symbol], fail: Fail) -> None:
    """Names, shapes, layouts and aliases of ``tensors``."""
    names = frozenset(s.name for s in symbols)
    ranges = {s.name: (s.lower, s.upper) for s in symbols}
    by_name: dict[str, Tensor] = {}
    for t in tensors:
        if t.name in by_name:
            fail(f"two tensors are called {t.name}")
        by_name[t.name] = t
        extents = (*t.shape, *(t.layout.shape if t.layout else ()))
        for extent in extents:
            for v in sorted(extent.variables() - names):
                fail(f"tensor {t.name}: extent {extent} mentions {v}, which is no symbol")
            high = extent.bounds(ranges)[1]
            if high is not None and high < 0:
                fail(f"tensor {t.name}: extent {extent} is negative")
        _check_layout(t, fail)
    for t in tensors:
        if t.alias_of is not None:
            _check_alias(t, by_name, symbols, fail)


def bases_of(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """For each tensor the one whose bytes it shares; itself if it is no alias."""
    by_name = {t.name: t for t in tensors}
    out = {}
    for t in tensors:
        base = t
        while base.alias_of is not None:
            base = by_name[base.alias_of]
        out[t.name] = base
    return out


def _check_layout(t: Tensor, fail: Fail) -> None:
    layout = t.layout
    if layout is None:
        return
    if len(layout.physical) != len(layout.shape):
        fail(
            f"tensor {t.name}: its layout has {len(layout.physical)} indices"
            f" for {len(layout.shape)} extents"
        )
    logical = {f"d{k}": e for k, e in enumerate(t.shape)}
    for p in layout.physical:
        for v in sorted(p.variables() - logical.keys()):
            fail(f"tensor {t.name}: its layout mentions {v}; logical indices are {list(logical)}")
    extents = {n: e.const if e.is_const else None for n, e in logical.items()}
    if None not in extents.values() and find_collision(layout.physical, extents) is not None:
        fail(f"tensor {t.name}: its layout puts two elements into one cell")
    ranges = {n: (0, None if e is None else e - 1) for n, e in extents.items()}
    if 0 in extents.values():
        return
    for p, size in zip(layout.physical, layout.shape, strict=True):
        low, high = p.bounds(ranges)
        if (low is not None and low < 0) or (
            size.is_const and high is not None and high >= size.const
        ):
            fail(f"tensor {t.name}: physical index {p} may leave [0, {size})")


def _check_alias(
    t: Tensor, by_name: dict[str, Tensor], symbols: Sequence[Symbol], fail: Fail
) -> None:
    seen, base = {t.name}, t
    while base.alias_of is not None:
        if base.alias_of not in by_name:
            fail(f"tensor {base.name} is an alias of {base.alias_of!r}, which does not exist")
        base = by_name[base.alias_of]
        if base.name in seen:
            fail(f"tensor {t.name} is an alias of itself, by way of {base.name}")
        seen.add(base.name)
    if t.dtype is not base.dtype:
        fail(f"tensor {t.name} is {t.dtype}, but shares the bytes of {base.name}, {base.dtype}")
    if t.layout is not None or base.layout is not None:
        fail(f"tensor {t.name} is an alias of {base.name}: both must be row-major")
    for env in _samples(symbols):
        sizes = [_elements(x.shape, env) for x in (t, base)]
        if sizes[0] != sizes[1]:
            at = ", ".join(f"{k}={v}" for k, v in env.items())
            fail(
                f"tensor {t.name} has {sizes[0]} elements, but shares the bytes of"
                f" {base.name}, which has {sizes[1]}{f' (at {at})' if at else ''}"
            )


def _samples(symbols: Sequence[Symbol]) -> list[dict[str, int]]:
    """A few values of the symbols; unequal element counts at one of them are an error."""
    out = []
    for shift in (0, 1, 6):
        env = {}
        for k, s in enumerate(symbols):
            value = s.lower + shift * (k + 1)
            env[s.name] = value if s.upper is None else min(value, s.upper)
        out.append(env)
    return out


def _elements(shape: Sequence[Affine], env: dict[str, int]) -> int:
    return math.prod(int(d.evaluate(env)) for d in shape)
