"""``range(…)`` → an index that counts up by one, from affine bounds.

Rewrite: ``for i in range(a, b, s)`` → ``for i' in range(⌈(b - a)/s⌉)`` with ``i = a + s*i'``.
"""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass

from nestor.frontends.python.expressions import Expressions
from nestor.ir.affine import Affine, affine, variable


@dataclass(frozen=True, slots=True)
class Range:
    """What a loop runs over.

    Attributes:
        starts: where it starts: at their maximum, or their minimum if ``step`` is negative. More
            than one only for a step of 1 or -1.
        stops: what it stops before: their minimum, or their maximum if ``step`` is negative.
    """

    starts: tuple[Affine, ...]
    stops: tuple[Affine, ...]
    step: int

    def value(self, index: str) -> Affine:
        """Python's index in terms of the one that counts by one."""
        if self.step == 1:
            return variable(index)
        return self.starts[0] + variable(index) * self.step

    def bounds(self, index: str) -> tuple[tuple[Affine, ...], tuple[Affine, ...]]:
        """``max(lowers) ≤ index < min(uppers)``."""
        if self.step == 1:
            return self.starts, self.stops
        size, sign = abs(self.step), 1 if self.step > 0 else -1
        first = self.starts[0]
        spans = ((stop - first) * sign for stop in self.stops)
        # Counting down by one, the lowest start is reached whichever of them counting begins at.
        lowers = (affine(0), *(first - other for other in self.starts[1:]))
        return lowers, tuple((span + (size - 1)) // size for span in spans)


def read_range(expressions: Expressions, node: ast.expr) -> Range:
    """The range that a loop runs over. Raises: a located error for anything else."""
    source = expressions.source
    if (
        not isinstance(node, ast.Call)
        or expressions.callee(node.func) is not builtins.range
        or node.keywords
        or not 1 <= len(node.args) <= 3
        or any(isinstance(a, ast.Starred) for a in node.args)
    ):
        raise source.unsupported(
            node, "kernels loop over range(…) only", "write for i in range(n), and index with i"
        )
    start, stop = (None, node.args[0]) if len(node.args) == 1 else (node.args[0], node.args[1])
    step = 1
    if len(node.args) == 3:
        given = expressions.affine(node.args[2], "the step")
        if not given.is_const or given.const == 0:
            raise source.unsupported(
                node.args[2],
                "the step of a range is a constant other than 0",
                "use a number; a stride of an array is best another loop",
            )
        step = given.const
    low = (affine(0),) if start is None else expressions.candidates(start, _fold(step > 0))
    high = expressions.candidates(stop, _fold(step < 0))
    for bound, where in ((low, start), (high, stop)):
        if bound is None:
            assert where is not None
            raise source.unsupported(
                where,
                f"the bound '{ast.unparse(where)}' is not affine",
                "use indices, sizes, int parameters, // and % by constants; "
                f"{_fold(step > 0)} of such in the start, {_fold(step < 0)} in the stop",
            )
    assert low is not None and high is not None
    if abs(step) != 1 and len(low) > 1:
        assert start is not None
        raise source.unsupported(
            start,
            f"a start that is a {_fold(step > 0)}, with a step of {step}",
            "loop by steps of 1, with an `if` inside",
        )
    return Range(low, high, step)


def _fold(is_max: bool) -> str:
    return "max" if is_max else "min"
