"""The table of lowering rules: one an ATen operator, each naming where its meaning is defined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

RuleFunction = Callable[..., Any]
"""``rule(ctx, *arguments, **keywords)``: arguments as in its schema, tensors as ``Value``.

Returns a ``Value``, or a tuple of them for an operator with several results.
"""
F = TypeVar("F", bound=RuleFunction)


@dataclass(frozen=True, slots=True)
class Rule:
    """A lowering rule and the place that defines what it must compute."""

    operator: str
    function: RuleFunction
    source: str


RULES: dict[str, Rule] = {}


def lower(*operators: str, source: str) -> Callable[[F], F]:
    """Register the decorated function as the rule of ``operators``.

    Args: operators: full names with overload, ``aten.relu.default``; source: where the operator's
        meaning is defined.
    """

    def register(function: F) -> F:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"two rules for {operator}")
            RULES[operator] = Rule(operator, function, source)
        return function

    return register


class NoRule(Exception):
    """Raised by a rule for arguments that it does not cover; the call becomes an ``Extern``."""
