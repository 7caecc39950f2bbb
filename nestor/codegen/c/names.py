"""Identifiers of C that clash with nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from nestor.ir import names

KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if"
    " inline int long register restrict return short signed sizeof static struct switch typedef"
    " union unsigned void volatile while bool true false asm typeof free malloc linux unix"
    " int8_t int16_t int32_t int64_t uint8_t uint32_t uint64_t NAN INFINITY NULL exp exp2 expm1"
    " log log2 log1p sqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc"
    " floor ceil trunc rint lgamma fmod pow atan2 fma copysign fabs isinf isnan".split()
)
"""Words that a local name must not hide or cannot be: C's own, and what the headers declare."""


def fresh_name(wanted: str, taken: Collection[str]) -> str:
    """``wanted`` as an identifier, with a number behind it if it is taken or C's."""
    name = re.sub(r"\W", "_", wanted, flags=re.ASCII) or "v"
    if name[0].isdigit() or name.startswith("_"):
        name = f"v{name}"
    return names.fresh_name(name, KEYWORDS.union(taken), first=2)


def name_all(wanted: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A distinct identifier for each of ``wanted``."""
    used = set(taken)
    out: dict[str, str] = {}
    for name in wanted:
        out[name] = fresh_name(name, used)
        used.add(out[name])
    return out
