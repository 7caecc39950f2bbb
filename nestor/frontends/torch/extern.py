"""Operators without a rule: calls of PyTorch, as data that can be printed and run again.

``Extern.arguments`` is ``(positional, keywords)``: a tuple, and a tuple of ``(name, value)``
pairs. A value is a JSON scalar, a ``TensorRef``, a tuple of values, or a tagged tuple:
``("size", affine)`` for a symbolic integer, ``("torch", kind, text)`` for a dtype, device, layout
or memory format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nestor.errors import Unsupported
from nestor.frontends.torch import (
    dtypes,
    recurrent_ops,  # noqa: F401 - importing it declares its operators, which may be called here
)
from nestor.frontends.torch.context import Context
from nestor.frontends.torch.sizes import affine_from_torch
from nestor.frontends.torch.value import Value, of_tensor
from nestor.ir.affine import Affine
from nestor.ir.program import Extern, TensorRef


def emit_extern(ctx: Context, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Append an ``Extern`` for ``target``; returns its results as values.

    Raises: Unsupported when a result is no dense tensor of known shape.
    """
    inputs: list[str] = []

    def encode(x: Any) -> object:
        if isinstance(x, Value):
            name = ctx.name_of(ctx.flat_all(x))
            inputs.append(name)
            return TensorRef(name=name)
        if isinstance(x, tuple | list):
            return tuple(encode(v) for v in x)
        if x is None or isinstance(x, bool | int | float | str):
            return x
        if isinstance(x, Affine):
            return ("size", x)
        if isinstance(x, torch.dtype | torch.device | torch.layout | torch.memory_format):
            return ("torch", type(x).__name__, str(x))
        raise Unsupported(f"{target} at {ctx.origin}: an argument of type {type(x).__name__}")

    arguments = (
        tuple(encode(a) for a in args),
        tuple((k, encode(v)) for k, v in kwargs.items()),
    )
    metas = ctx.meta if isinstance(ctx.meta, tuple | list) else (ctx.meta,)
    outputs = [_declare(ctx, target, m) for m in metas]
    ctx.statements.append(
        Extern(
            name=ctx.fresh(f"S_{ctx.hint}"),
            operator=str(target),
            arguments=arguments,
            inputs=tuple(dict.fromkeys(inputs)),
            outputs=tuple(name for name, _ in outputs),
            order=(ctx.position(),),
            origin=ctx.origin,
        )
    )
    values = tuple(value for _, value in outputs)
    return values if isinstance(ctx.meta, tuple | list) else values[0]


def _declare(ctx: Context, target: Any, meta: Any) -> tuple[str, Value]:
    if not isinstance(meta, torch.Tensor):
        raise Unsupported(f"{target} at {ctx.origin} gives a {type(meta).__name__}, not a tensor")
    try:
        shape = [affine_from_torch(s) for s in meta.shape]
        if any(not s.variables() <= ctx.symbols.keys() for s in shape):
            raise Unsupported(
                "the size of its result depends on data; use torch.where or a mask instead"
            )
        dtype = dtypes.from_torch(meta.dtype)
    except Unsupported as error:
        raise Unsupported(
            f"{target} at {ctx.origin}: {error}\n  fix: replace this operator in the model"
        ) from None
    name = ctx.tensor(ctx.hint, shape, dtype)
    return name, of_tensor(name, [(s,) for s in shape], dtype)


def run_extern(
    extern: Extern, tensors: Mapping[str, torch.Tensor], symbols: Mapping[str, int] | None = None
) -> tuple[torch.Tensor, ...]:
    """Call the operator; the results in the order of ``extern.outputs``."""
    positional, keywords = extern.arguments
    assert isinstance(positional, tuple) and isinstance(keywords, tuple)

    def decode(x: Any) -> Any:
        if isinstance(x, TensorRef):
            return tensors[x.name]
        if isinstance(x, tuple):
            if len(x) == 2 and x[0] == "size" and isinstance(x[1], Affine):
                return int(x[1].evaluate(symbols or {}))
            if len(x) == 3 and x[0] == "torch":
                return _torch_object(x[1], x[2])
            return [decode(v) for v in x]
        return x

    result = resolve(extern.operator)(
        *(decode(a) for a in positional), **{k: decode(v) for k, v in keywords}
    )
    found = tuple(result) if isinstance(result, tuple | list) else (result,)
    return tuple(t.contiguous() for t in found)


def _torch_object(kind: str, text: str) -> Any:
    if kind == "device":
        return torch.device(text)
    return getattr(torch, text.removeprefix("torch."))


def resolve(name: str) -> Any:
    """The operator overload called ``namespace.operator.overload``."""
    namespace, operator, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), operator), overload)
