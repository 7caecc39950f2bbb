"""Messages and checks about a call's inputs that are off the fast path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestor.errors import InputError
from nestor.runtime.manifest import ExternCall, InputSpec, KernelCall
from nestor.runtime.plan import InputTensor
from nestor.runtime.tensors import BITS_ONLY, DTYPE_NAMES, NUMPY_DTYPES, Library


def describe(value: object) -> str:
    """What the caller passed, briefly."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return f"{value!r:.40}"
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


def tensor_error(tensor: InputTensor, library: Library, problem: str) -> InputError:
    """The error for a tensor of the wrong dtype, device or layout, with what to do."""
    wanted = DTYPE_NAMES[tensor.dtype]
    if problem.startswith("dtype"):
        way = f"to(torch.{wanted})" if library.name == "torch" else f"astype('{wanted}')"
        fix = f"{tensor.name}.{way}"
        if tensor.dtype in BITS_ONLY and library.name == "numpy":
            fix = f"pass a tensor of PyTorch, or the bits as {NUMPY_DTYPES[tensor.dtype]}"
        return InputError(
            f"input '{tensor.name}': {problem}, but the model was compiled for {wanted}"
            f"\n  fix: {fix}"
        )
    way = library.move if problem.startswith("device") else "to_dense()"
    if problem.startswith("a "):
        way = "detach()"
    return InputError(
        f"input '{tensor.name}': {problem}, but the model runs on plain tensors in {library.place}"
        f"\n  fix: {tensor.name}.{way}"
    )


def check_plain(spec: InputSpec, value: object) -> None:
    """Check an input that is not a tensor. Raises InputError."""
    if spec.kind == "integer":
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"input '{spec.name}': an integer expected, got {describe(value)}")
    elif spec.kind == "constant":
        same_kind = type(value) is type(spec.constant)
        if not same_kind or value != spec.constant:
            raise InputError(
                f"input '{spec.name}': {describe(value)}, but the model was compiled with the "
                f"constant {spec.constant!r}\n  fix: compile again for another value"
            )


def check_overwritten(
    tensors: Sequence[InputTensor], inputs: Sequence[Any], libraries: Sequence[Library]
) -> None:
    """Refuse inputs that are overwritten and cannot be, or that share memory with others.

    Raises: InputError.
    """
    ranges = []
    for tensor, library in zip(tensors, libraries):
        value = inputs[tensor.position]
        if tensor.is_overwritten and not library.is_writable(value):
            raise InputError(
                f"input '{tensor.name}' is overwritten by the model, but it is read-only or has "
                f"several indices for one element\n  fix: pass a copy"
            )
        ranges.append((tensor, _extent(value, library)))
    for tensor, (low, high) in ranges:
        for other, (other_low, other_high) in ranges:
            if tensor is other or not tensor.is_overwritten:
                continue
            if low < other_high and other_low < high:
                raise InputError(
                    f"input '{tensor.name}' is overwritten by the model and shares memory with "
                    f"input '{other.name}'\n  fix: pass a copy of one of them"
                )


def _extent(value: Any, library: Library) -> tuple[int, int]:
    """First and one past the last address that an array may touch."""
    item = int(value.itemsize)
    strides = value.stride() if library.name == "torch" else [s // item for s in value.strides]
    reach = [(n - 1) * s * item for n, s in zip(value.shape, strides, strict=True)]
    start = library.pointer(value)
    if 0 in value.shape:
        return start, start
    low = start + sum(r for r in reach if r < 0)
    return low, start + sum(r for r in reach if r > 0) + item


def call_name(call: KernelCall | ExternCall) -> str:
    """How reports name a call."""
    if isinstance(call, ExternCall):
        return call.operator
    return call.name or f"kernel {call.function}"
