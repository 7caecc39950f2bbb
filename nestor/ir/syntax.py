"""What the printer and the parser of the IR's text agree on: operators, keywords, names."""

from __future__ import annotations

import re

from nestor.ir.types import DType

INFIX: dict[str, tuple[str, int]] = {
    "or": ("|", 1),
    "xor": ("^", 2),
    "and": ("&", 3),
    "eq": ("==", 4),
    "ne": ("!=", 4),
    "lt": ("<", 4),
    "le": ("<=", 4),
    "gt": (">", 4),
    "ge": (">=", 4),
    "shl": ("<<", 5),
    "shr": (">>", 5),
    "add": ("+", 6),
    "sub": ("-", 6),
    "mul": ("*", 7),
    "div": ("/", 7),
}
"""Operation → (symbol, precedence); higher binds tighter, all associate to the left."""

SYMBOLS = {symbol: (op, level) for op, (symbol, level) in INFIX.items()}
NEGATION = 8
"""Precedence of the prefix minus."""

ROLES = ("input", "output", "inout", "parameter", "constant", "state", "temp")
PHASES = ("point", "init", "update", "merge", "final", "copy", "writeback")
LOOP_WORDS = {
    "for": "serial",
    "parallel": "parallel",
    "vector": "vector",
    "unroll": "unroll",
    "grid": "grid",
}
SCOPES = ("arena", "shared", "local", "register")
TYPES = {d.value: d for d in DType}

KEYWORDS = frozenset(
    "program nest statement extern monoid seq at over reduce scan into scatter where else if and"
    " alias layout of index select true false none nan inf max min block alloc holds in with"
    " reads writes named noncommutative".split()
) | {*ROLES, *PHASES, *LOOP_WORDS, *SCOPES, *TYPES}

NAME = re.compile(r"[^\W\d]\w*(?:[.#]\w+)*")


def quote_name(name: str) -> str:
    """A name as it stands in text: in backticks where it is no plain identifier."""
    if NAME.fullmatch(name) and name not in KEYWORDS:
        return name
    escaped = name.replace("\\", "\\\\").replace("`", "\\`").replace("\n", "\\n")
    return f"`{escaped}`"


def unquote_name(text: str) -> str:
    """Inverse of ``quote_name``."""
    if not text.startswith("`"):
        return text
    plain = {"n": "\n"}
    return re.sub(r"\\(.)", lambda m: plain.get(m[1], m[1]), text[1:-1])
