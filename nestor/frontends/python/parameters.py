"""Parameters of a kernel, from its annotations."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from typing import Any, Literal

from nestor.frontends.python.annotations import ArrayType, ElementType
from nestor.frontends.python.source import Source
from nestor.ir.affine import Affine
from nestor.ir.types import DType

Kind = Literal["array", "scalar", "integer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter.

    Attributes:
        kind: *array*; *scalar*: a number of ``dtype``, a tensor of shape () in the Program;
            *integer*: annotated ``int``, a symbol in the Program.
        weak: a scalar annotated ``float``, which takes the type of what it meets.
        written: the kernel assigns to elements of the array.
    """

    name: str
    kind: Kind
    dtype: DType
    shape: tuple[Affine, ...] = ()
    weak: bool = False
    written: bool = False


def read_parameters(source: Source) -> tuple[Parameter, ...]:
    """The parameters of the function. Raises: a located error for an annotation that is no type."""
    arguments = source.tree.args
    for extra in (arguments.vararg, arguments.kwarg):
        if extra is not None:
            raise source.unsupported(
                extra, "a variable number of arguments", "name every parameter"
            )
    nodes = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    found = tuple(_parameter(source, node) for node in nodes)
    _check_solvable(source, nodes, found)
    return found


def _parameter(source: Source, node: ast.arg) -> Parameter:
    if node.annotation is None:
        raise source.wrong(
            node,
            f"parameter '{node.arg}' has no type",
            f'write {node.arg}: nestor.f64["N", "M"] (an array), nestor.f64 (a number) or int',
        )
    kind = _evaluate(source, node.annotation)
    match kind:
        case ArrayType():
            return Parameter(name=node.arg, kind="array", dtype=kind.dtype, shape=kind.shape)
        case ElementType():
            return Parameter(name=node.arg, kind="scalar", dtype=kind.dtype)
        case _ if kind is int:
            return Parameter(name=node.arg, kind="integer", dtype=DType.i64)
        case _ if kind is float:
            return Parameter(name=node.arg, kind="scalar", dtype=DType.f64, weak=True)
    raise source.wrong(
        node.annotation,
        f"'{ast.unparse(node.annotation)}' is no type of a kernel's parameter",
        'use nestor.f64["N", "M"] (an array), nestor.f64 (a number), int or float',
    )


def _evaluate(source: Source, node: ast.expr) -> Any:
    """The object that an annotation means.

    Under ``from __future__ import annotations`` sizes need no quotes: ``nestor.f64[N, M]``.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.copy_location(ast.parse(node.value, mode="eval").body, node)
    if isinstance(node, ast.Subscript):
        element = _evaluate(source, node.value)
        if isinstance(element, ElementType):
            sizes = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return element[tuple(_size(source, s) for s in sizes)]
    expression = ast.Expression(node)
    try:
        return eval(compile(expression, source.file, "eval"), dict(source.names))
    except NameError as error:
        problem = f"the annotation cannot be evaluated: {error}"
        raise source.wrong(node, problem, "import the name") from None


def _size(source: Source, node: ast.expr) -> Any:
    """A size as ``ElementType`` takes it; a bare name is a global integer, or else a symbol."""
    if isinstance(node, ast.Constant):
        return node.value

    class Known(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            value = source.names.get(name.id)
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            return ast.Constant(value) if is_integer else name

    return ast.unparse(Known().visit(copy.deepcopy(node)))


def _check_solvable(source: Source, nodes: list[ast.arg], found: tuple[Parameter, ...]) -> None:
    """Every size follows from the arguments: some dimension has no other unknown in it."""
    known = {p.name for p in found if p.kind == "integer"}
    pending = [(node, size) for node, p in zip(nodes, found) for size in p.shape]
    while pending:
        waiting = []
        for node, size in pending:
            unknown = size.variables() - known
            if len(unknown) == 1 and size.coefficient(next(iter(unknown))):
                known |= unknown
            elif unknown:
                waiting.append((node, size))
        if len(waiting) == len(pending):
            node, size = waiting[0]
            names = ", ".join(sorted(size.variables() - known))
            raise source.wrong(
                node,
                f"the size '{size}' does not tell {names}",
                f"add a dimension of size {sorted(size.variables() - known)[0]}, or an int "
                "parameter of that name",
            )
        pending = waiting
