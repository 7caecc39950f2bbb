"""When is a compiled model correct? One answer, used by the tests and by the harness.

The reference is the same model in float64. A result is correct when its error against it is at most
four times what float32 eager itself is off, or four units in the last place of the output's
scale where that is larger: a compiler may round differently, not worse.

What is judged is a sample: the model's outputs at one input or, where an output holds but a few
numbers, at several inputs, stacked. Both sides' errors are the largest over that same sample.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nestor.benchmarking.outputs import arrays

ALLOWED_FACTOR = 4.0
"""Times float32 eager's own error, and units in the last place of the output's scale."""


class _DoubleThroughout(TorchFunctionMode):
    """Turn every float32 that a model asks for by name into float64.

    Some networks compute a norm or a rotation in float32 whatever their weights are; a reference
    that did so would hide errors of the very size that is judged here.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def reference(model: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """What the model computes in float64 throughout, flattened.

    The model itself is left alone; its copy in float64 takes twice the weights' memory meanwhile.
    """
    double = copy.deepcopy(model).double()
    raised = [x.double() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad(), _DoubleThroughout():
        return arrays(double(*raised))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How far outputs are from the float64 reference.

    Attributes:
        error: largest absolute error of the judged outputs.
        eager_error: largest absolute error of float32 eager.
        allowed: the largest error that passes, over the outputs.
        relative: ``error`` over the largest magnitude of its output.
        correct: whether every output passes.
        reason: the first output that fails and why; empty if correct.
    """

    error: float
    eager_error: float
    allowed: float
    relative: float
    correct: bool
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


LEAST_ELEMENTS = 32
"""A sample's outputs have at least so many elements each.

At one input a single number of eager's may be right to the last digit by luck, and then its error
there does not tell how far off eager is.
"""


def inputs_per_sample(outputs: Any) -> int:
    """How many inputs a sample takes of a model that returns ``outputs`` at one of them."""
    found = (a for a in arrays(outputs) if a.size and np.issubdtype(a.dtype, np.floating))
    return max((math.ceil(LEAST_ELEMENTS / a.size) for a in found), default=1)


def stack_outputs(outputs: Sequence[Any]) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """A model's outputs at several inputs as those at one: each stacked along a new first axis.

    Raises: ValueError if the inputs' outputs differ in number or shape.
    """
    if len(outputs) == 1:
        return arrays(outputs[0])
    columns = zip(*(arrays(o) for o in outputs), strict=True)
    return [np.stack(column) for column in columns]


def _largest_error(own: Any, ref: Any) -> float:
    """The largest absolute error of a floating-point output where both are finite; else 0."""
    if not own.size or not np.issubdtype(own.dtype, np.floating):
        return 0.0
    both = np.isfinite(own) & np.isfinite(ref)
    difference = np.where(both, own, 0.0).astype(np.float64) - np.where(both, ref, 0.0)
    return float(np.abs(difference).max())


def judge(outputs: Any, eager: Any, exact: Any) -> Verdict:
    """Compare ``outputs`` with the float64 reference ``exact``, beside float32 ``eager``.

    All three are of one sample (``stack_outputs`` where it has several inputs). Integer and boolean
    outputs must be equal to eager's. NaN and infinities must stand where the reference has them.
    """
    got, own, ref = arrays(outputs), arrays(eager), arrays(exact)
    if not len(got) == len(own) == len(ref):
        reason = f"{len(got)} outputs, eager has {len(own)}"
        return Verdict(
            error=float("inf"), eager_error=0.0, allowed=0.0, relative=float("inf"),
            correct=False, reason=reason,
        )  # fmt: skip
    verdicts = [_judge_one(i, *one) for i, one in enumerate(zip(got, own, ref, strict=True))]
    failed = next((v for v in verdicts if not v.correct), None)
    return Verdict(
        error=max((v.error for v in verdicts), default=0.0),
        eager_error=max((v.eager_error for v in verdicts), default=0.0),
        allowed=max((v.allowed for v in verdicts), default=0.0),
        relative=max((v.relative for v in verdicts), default=0.0),
        correct=failed is None,
        reason=failed.reason if failed else "",
    )


def _judge_one(position: int, got: Any, own: Any, ref: Any) -> Verdict:
    """The verdict on one output."""
    wrong = ""
    if got.shape != own.shape:
        wrong = f"shape {got.shape}, eager has {own.shape}"
    elif got.dtype != own.dtype:
        wrong = f"dtype {got.dtype}, eager has {own.dtype}"
    elif got.size and not np.issubdtype(got.dtype, np.floating):
        differing = int(np.count_nonzero(got != own))
        wrong = f"{differing} of {got.size} elements differ from eager" if differing else ""
    if wrong:
        return Verdict(
            error=float("inf"), eager_error=0.0, allowed=0.0, relative=float("inf"),
            correct=False, reason=f"output {position}: {wrong}",
        )  # fmt: skip
    if not got.size or not np.issubdtype(got.dtype, np.floating):
        return Verdict(error=0.0, eager_error=0.0, allowed=0.0, relative=0.0, correct=True)
    return _judge_floats(position, got, own, ref)


def _judge_floats(position: int, got: Any, own: Any, ref: Any) -> Verdict:
    """The verdict on one floating-point output whose shape and dtype are right."""
    finite = np.isfinite(ref)
    misplaced = int(np.count_nonzero(~_same_special(got, ref) & ~finite))
    misplaced += int(np.count_nonzero(~np.isfinite(got) & finite))
    exact = np.where(finite, ref, 0.0).astype(np.float64)
    error = float(np.abs(np.where(finite, got, 0.0).astype(np.float64) - exact).max())
    eager_error = _largest_error(own, ref)
    scale = float(np.abs(exact).max())
    # One unit in the last place of the output's largest magnitude, in the output's own type.
    ulp = float(np.spacing(np.asarray(scale, dtype=got.dtype)))
    allowed = ALLOWED_FACTOR * max(eager_error, ulp)
    reason = ""
    if misplaced:
        reason = f"output {position}: {misplaced} NaN or infinities where float64 has none, or else"
    elif not error <= allowed:
        reason = f"output {position}: error {error:.3g} > {allowed:.3g} (eager {eager_error:.3g})"
    return Verdict(
        error=float("inf") if misplaced else error,
        eager_error=eager_error,
        allowed=allowed,
        relative=error / scale if scale else error,
        correct=not reason,
        reason=reason,
    )


def _same_special(got: Any, ref: Any) -> Any:
    """Where both are NaN, or the same infinity."""
    return (np.isnan(got) & np.isnan(ref)) | (got == ref)
