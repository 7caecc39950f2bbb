"""Calls of other kernels: their parameters become names of the caller's things."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from nestor.frontends.python import values
from nestor.frontends.python.expressions import ArrayRef
from nestor.frontends.python.frame import Frame
from nestor.frontends.python.parameters import Parameter
from nestor.frontends.python.tree import Node
from nestor.ir.affine import Affine

if TYPE_CHECKING:
    from nestor.frontends.python.body import Statements


def bind_call(
    caller: Statements,
    node: ast.Call,
    parameters: tuple[Parameter, ...],
    frame: Frame,
    out: list[Node],
) -> None:
    """Bind the parameters of an inlined kernel in ``frame``.

    Arrays are passed whole, or with their first indices given (``A[i]``); sizes follow from them.
    """
    given = _by_name(caller, node, parameters)
    symbols: dict[str, Affine] = {}
    pending: list[tuple[Affine, Affine, ast.expr]] = []
    for parameter in parameters:
        at = given[parameter.name]
        if parameter.kind == "array":
            ref = _array(caller, at, parameter)
            frame.bind(parameter.name, ref)
            pending += [(want, have, at) for want, have in zip(parameter.shape, ref.shape)]
        elif parameter.kind == "integer":
            value = caller.expressions.affine(at, f"the argument '{parameter.name}'")
            symbols[parameter.name] = value
        else:
            value_given = caller.expressions.value(at)
            caller.pass_scalar(parameter, value_given, frame, at, out)
    _solve(caller, pending, symbols)
    for name, size in symbols.items():
        frame.bind(name, values.integer(size))
        frame.fixed[name] = "size or int parameter"


def _by_name(
    caller: Statements, node: ast.Call, parameters: tuple[Parameter, ...]
) -> dict[str, ast.expr]:
    names = [p.name for p in parameters]
    given = dict(zip(names, node.args))
    repeated = [k.arg for k in node.keywords if k.arg in given]
    given.update({k.arg: k.value for k in node.keywords if k.arg})
    has_star = any(isinstance(a, ast.Starred) for a in node.args)
    if has_star or repeated or set(given) != set(names) or len(node.args) > len(names):
        raise caller.source.wrong(
            node,
            f"'{ast.unparse(node.func)}' takes {len(names)} argument(s): {', '.join(names)}",
            "pass each once",
        )
    return given


def _array(caller: Statements, at: ast.expr, parameter: Parameter) -> ArrayRef:
    found = caller.expressions.lower(at)
    if not isinstance(found, ArrayRef) or len(found.shape) != len(parameter.shape):
        rank = len(found.shape) if isinstance(found, ArrayRef) else 0
        raise caller.source.wrong(
            at,
            f"parameter '{parameter.name}' is an array of {len(parameter.shape)} dimension(s), "
            f"this has {rank}",
            "pass an array, or one with its first indices given, such as A[i]",
        )
    if found.dtype is not parameter.dtype:
        raise caller.source.wrong(
            at,
            f"parameter '{parameter.name}' holds {parameter.dtype}, this array {found.dtype}",
            "use the same element type in both kernels",
        )
    if any(not isinstance(i, Affine) for i in found.prefix):
        raise caller.source.unsupported(
            at, "an index of the array passed depends on data", "pass the whole array"
        )
    return found


def _solve(
    caller: Statements, pending: list[tuple[Affine, Affine, ast.expr]], symbols: dict[str, Affine]
) -> None:
    """Sizes of the callee in terms of the caller's, and equal where they must be."""
    while pending:
        waiting = []
        for want, have, at in pending:
            unknown = want.variables() - symbols.keys()
            if not unknown:
                if want.substitute(symbols) != have:
                    raise caller.source.wrong(
                        at,
                        f"its size {have} is not {want} = {want.substitute(symbols)}, "
                        "as the kernel called wants it",
                        "annotate both arrays with the same size",
                    )
                continue
            name = next(iter(unknown))
            factor = want.coefficient(name)
            rest = want - Affine(((name, factor),)) if factor else want
            if len(unknown) > 1 or not factor or name in rest.variables():
                waiting.append((want, have, at))
                continue
            total = have - rest.substitute(symbols)
            if any(c % factor for _, c in total.terms) or total.const % factor:
                raise caller.source.wrong(
                    at, f"its size {have} is not known to be {want}", "use a size of that form"
                )
            symbols[name] = Affine(
                tuple((a, c // factor) for a, c in total.terms), total.const // factor
            )
        if len(waiting) == len(pending):
            raise caller.source.wrong(
                waiting[0][2], f"the size {waiting[0][0]} cannot be solved", "use simpler sizes"
            )
        pending = waiting
