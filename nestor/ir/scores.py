"""Scores of a softmax that a mask may hide."""

from __future__ import annotations

import math

from nestor.ir.expr import Const, Expr, Select, Unary


def visible(score: Expr) -> Expr | None:
    """The test of a score that is −∞ where it fails; None where there is none."""
    if not isinstance(score, Select):
        return None
    if _is_hidden(score.b):
        return score.condition
    return Unary(op="not", x=score.condition) if _is_hidden(score.a) else None


def _is_hidden(value: Expr) -> bool:
    return isinstance(value, Const) and value.dtype.is_float and value.value == -math.inf
