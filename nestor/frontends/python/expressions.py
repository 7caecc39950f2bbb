"""Python expressions → typed values of the IR."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from nestor.errors import Unsupported
from nestor.frontends.python import values
from nestor.frontends.python.annotations import ElementType
from nestor.frontends.python.conditions import (
    FALSE,
    TRUE,
    Dnf,
    TooManyCases,
    both,
    compare_affine,
    condition_expr,
    either,
    negate,
)
from nestor.frontends.python.functions import KEEPS_INTEGERS, known_function
from nestor.frontends.python.source import Source
from nestor.frontends.python.values import TypeProblem, Value, dtype_named
from nestor.ir.affine import Affine
from nestor.ir.expr import Binary, Const, Expr, IndexExpr, Load, Select, Unary, const
from nestor.ir.types import DType

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne",
}  # fmt: skip


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """An array of the kernel, or what is left of it after its first indices are given."""

    tensor: str
    dtype: DType
    shape: tuple[Affine, ...]
    prefix: tuple[IndexExpr, ...] = ()


class Names(Protocol):
    """What names mean where an expression stands."""

    source: Source

    def lookup(self, node: ast.Name) -> Value | ArrayRef | Any:
        """A value, an array, or any Python object. Raises: a located error."""


class Expressions:
    """Lowers the expressions of one function.

    Attributes: data_guard: a condition on data under which an index that is data is valid.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self._guard: Dnf = TRUE
        self.data_guard: Expr | None = None

    @property
    def source(self) -> Source:
        """Where the expressions are from."""
        return self.names.source

    # ------------------------------------------------------------------------------ entry points

    def value(self, node: ast.expr) -> Value:
        """The typed value of ``node``."""
        found = self._located(node, lambda: self.lower(node))
        if isinstance(found, ArrayRef):
            raise self.source.unsupported(
                node,
                f"array '{found.tensor}' has {len(found.shape)} dimension(s) left to index",
                "index every dimension; kernels compute on elements, in loops",
            )
        if not isinstance(found, Value):
            raise self._no_value(node, found)
        return found

    def affine(self, node: ast.expr, what: str) -> Affine:
        """``node`` as an affine integer. Raises: a located error naming ``what``."""
        found = self.value(node).affine
        if found is None:
            raise self.source.unsupported(
                node,
                f"{what} is not affine in loop indices and sizes",
                "use sums, multiples, // and % by constants of indices, sizes and int parameters",
            )
        return found

    @contextlib.contextmanager
    def guarded(self, condition: Dnf) -> Iterator[None]:
        """Loads made inside happen only where ``condition`` holds."""
        before = self._guard
        try:
            # Too many cases: the loads are then unconditional, and have to be valid everywhere.
            with contextlib.suppress(TooManyCases):
                self._guard = both(before, condition)
            yield
        finally:
            self._guard = before

    @contextlib.contextmanager
    def data_guarded(self, condition: Expr) -> Iterator[None]:
        """Indices that are data matter only where ``condition`` holds."""
        before = self.data_guard
        whole = condition if before is None else Binary(op="and", a=before, b=condition)
        self.data_guard = whole
        try:
            yield
        finally:
            self.data_guard = before

    def captured(self, node: ast.expr) -> Any:
        """The Python object that a name means, such as a type; a literal's value."""
        return self.callee(node)

    def candidates(self, node: ast.expr, function: str) -> tuple[Affine, ...] | None:
        """Affines whose ``function`` (min or max) is ``node``; None if there are none."""
        match node:
            case ast.Call(func=func, args=args, keywords=[]) if args:
                target = self.callee(func)
                if target is None or known_function(target) != ("fold", function):
                    return self._single(node)
                parts = [self.candidates(a, function) for a in args]
                if any(p is None for p in parts):
                    return None
                return tuple(dict.fromkeys(x for p in parts if p is not None for x in p))
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.FloorDiv() as op, right=right):
                whole = self._single(node)
                if whole is not None:
                    return whole
                first, second = self.candidates(left, function), self._single(right)
                if isinstance(op, ast.Add) and (first is None or second is None):
                    first, second = self.candidates(right, function), self._single(left)
                if first is None or second is None:
                    return None
                shift = second[0]
                if isinstance(op, ast.FloorDiv):
                    if not shift.is_const or shift.const <= 0:
                        return None
                    return tuple(f // shift.const for f in first)
                return tuple(f + shift if isinstance(op, ast.Add) else f - shift for f in first)
            case _:
                return self._single(node)

    def _single(self, node: ast.expr) -> tuple[Affine] | None:
        if not _may_be_affine(node):
            return None
        found = self.value(node).affine
        return None if found is None else (found,)

    # ------------------------------------------------------------------------------ conditions

    def condition(self, node: ast.expr) -> Dnf | None:
        """``node`` as an affine condition; None if it depends on data."""
        try:
            return self._condition(node)
        except TooManyCases:
            return None

    def _condition(self, node: ast.expr) -> Dnf | None:
        match node:
            case ast.Constant(value=bool(value)):
                return TRUE if value else FALSE
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self._condition(operand)
                return None if inner is None else negate(inner)
            case ast.BoolOp(op=op, values=parts):
                found = [self._condition(p) for p in parts]
                if any(f is None for f in found):
                    return None
                join = both if isinstance(op, ast.And) else either
                out = TRUE if isinstance(op, ast.And) else FALSE
                for f in found:
                    assert f is not None
                    out = join(out, f)
                return out
            case ast.Compare(left=left, ops=ops, comparators=rights):
                out = TRUE
                for a, comparison, b in zip((left, *rights), ops, rights):
                    one = self._compare(a, comparison, b)
                    if one is None:
                        return None
                    out = both(out, one)
                return out
            case _:
                if _may_be_affine(node):
                    whole = self.value(node).affine
                    if whole is not None:
                        return compare_affine(ast.NotEq(), whole, whole * 0)
                return None

    def _compare(self, a: ast.expr, op: ast.cmpop, b: ast.expr) -> Dnf | None:
        left, right = self._single(a), self._single(b)
        if left is not None and right is not None:
            return compare_affine(op, left[0], right[0])
        if isinstance(op, (ast.Gt, ast.GtE)):
            flipped: ast.cmpop = ast.Lt() if isinstance(op, ast.Gt) else ast.LtE()
            return self._compare(b, flipped, a)
        if not isinstance(op, (ast.Lt, ast.LtE)):
            return None
        for left_fold, right_fold, join in (("max", "min", both), ("min", "max", either)):
            lefts = left or self.candidates(a, left_fold)
            rights = right or self.candidates(b, right_fold)
            if lefts is None or rights is None:
                continue
            out = TRUE if join is both else FALSE
            for x in lefts:
                for y in rights:
                    one = compare_affine(op, x, y)
                    assert one is not None
                    out = join(out, one)
            return out
        return None

    def truth(self, node: ast.expr) -> Expr:
        """``node`` as a bool expression, affine or not."""
        return self._located(node, lambda: self._truth(node))

    def _truth(self, node: ast.expr) -> Expr:
        affine = self.condition(node)
        if affine is not None:
            return condition_expr(affine)
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Unary(op="not", x=self._truth(operand))
            case ast.BoolOp(op=op, values=parts):
                return self._bool_op(op, parts)
            case ast.Compare():
                return self._comparison(node)
            case _:
                return values.truth(self.value(node))

    def _bool_op(self, op: ast.boolop, parts: Sequence[ast.expr]) -> Expr:
        """What stands right of an affine condition is evaluated only where that decides nothing."""
        name = "and" if isinstance(op, ast.And) else "or"
        out: Expr | None = None
        with contextlib.ExitStack() as stack:
            for part in parts:
                affine = self.condition(part)
                one = self._truth(part)
                out = one if out is None else Binary(op=name, a=out, b=one)
                if affine is not None:
                    stack.enter_context(self.guarded(affine if name == "and" else negate(affine)))
        assert out is not None
        return out

    def _comparison(self, node: ast.Compare) -> Expr:
        out: Expr | None = None
        for a, op, b in zip((node.left, *node.comparators), node.ops, node.comparators):
            name = _COMPARISONS.get(type(op))
            if name is None:
                raise self.source.unsupported(
                    node, "kernels compare numbers only", "use < <= > >= == !="
                )
            one = values.apply_binary(name, self.value(a), self.value(b)).expr
            out = one if out is None else Binary(op="and", a=out, b=one)
        assert out is not None
        return out

    # ------------------------------------------------------------------------------ lowering

    def _located(self, node: ast.expr, work: Callable[[], T]) -> T:
        try:
            return work()
        except TypeProblem as problem:
            hint = "convert an operand, e.g. nestor.f64(x)"
            raise self.source.wrong(node, str(problem), hint) from None

    def lower(self, node: ast.expr) -> Any:
        """What ``node`` is: a ``Value``, an ``ArrayRef``, a shape, or a Python object."""
        match node:
            case ast.Constant(value=bool() | int() | float() as value):
                return values.number(value)
            case ast.Name():
                return self._object(node, self.names.lookup(node))
            case ast.Attribute():
                return self._attribute(node)
            case ast.Subscript():
                return self._subscript(node)
            case ast.BinOp(left=left, op=op, right=right):
                return self.operate(node, op, self.value(left), self.value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return values.apply_unary("neg", self.value(operand))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand)
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return values.apply_unary("not", self.value(operand))
            case ast.UnaryOp(op=ast.Not()) | ast.Compare() | ast.BoolOp():
                return Value(self._truth(node))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.select(test, body, orelse)
            case ast.Call():
                return self._call(node)
            case _:
                raise self._refusal(node)

    def operate(self, node: ast.expr, op: ast.operator, a: Value, b: Value) -> Value:
        """``a op b``."""
        if isinstance(op, ast.MatMult):
            raise self.source.unsupported(node, "@ works on whole arrays", "write the loops out")
        return values.apply_operator(op, a, b)

    def select(self, test: ast.expr, body: ast.expr, orelse: ast.expr) -> Value:
        """``body if test else orelse``; an affine test guards the loads of either side."""
        affine = self.condition(test)
        if affine is None:
            holds = self._truth(test)
            with self.data_guarded(holds):
                a = self.value(body)
            with self.data_guarded(Unary(op="not", x=holds)):
                b = self.value(orelse)
            return values.choose(holds, a, b)
        if affine == TRUE:
            return self.value(body)
        if affine == FALSE:
            return self.value(orelse)
        with self.guarded(affine):
            a = self.value(body)
        with self.guarded(negate(affine)):
            b = self.value(orelse)
        return values.choose(condition_expr(affine), a, b)

    def _attribute(self, node: ast.Attribute) -> Any:
        if isinstance(node.value, ast.Name):
            owner = self.names.lookup(node.value)
            if isinstance(owner, ArrayRef):
                if node.attr == "shape":
                    return owner.shape
                raise self.source.unsupported(
                    node,
                    f"arrays have no .{node.attr} in a kernel",
                    "use elements A[i, j] and A.shape[k]",
                )
        found = self.callee(node)
        if found is None:
            raise self._refusal(node)
        return self._object(node, found)

    def _object(self, node: ast.expr, found: Any) -> Any:
        """A captured Python object: numbers become literals."""
        if isinstance(found, (bool, int, float)) and not isinstance(found, np.generic):
            return values.number(found)
        if isinstance(found, np.generic):
            constant = _numpy_constant(found)
            return found if constant is None else Value(constant)
        if isinstance(found, np.ndarray):
            raise self.source.unsupported(
                node,
                "a global array is not an argument",
                "pass it as a parameter of the kernel",
            )
        return found

    def callee(self, node: ast.expr) -> Any | None:
        """The Python object that a dotted name means; None if it is no such name."""
        if isinstance(node, ast.Name):
            found = self.names.lookup(node)
            return None if isinstance(found, (Value, ArrayRef)) else found
        if isinstance(node, ast.Attribute):
            owner = self.callee(node.value)
            return None if owner is None else getattr(owner, node.attr, None)
        return None

    # ------------------------------------------------------------------------------ arrays

    def _subscript(self, node: ast.Subscript) -> Any:
        owner = self.lower(node.value)
        if isinstance(owner, tuple):  # A.shape[k]
            axis = self.affine(node.slice, "the axis")
            if not axis.is_const or not -len(owner) <= axis.const < len(owner):
                raise self.source.wrong(
                    node, f"the shape has {len(owner)} sizes", "index one of them"
                )
            return values.integer(owner[axis.const])
        if not isinstance(owner, ArrayRef):
            raise self.source.unsupported(node, "only arrays can be indexed", "index a parameter")
        ref = self.narrowed(node, owner)
        return ref if ref.shape else Value(self.load(ref))

    def narrowed(self, node: ast.Subscript, owner: ArrayRef) -> ArrayRef:
        """``owner`` with further indices given."""
        given = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if len(given) > len(owner.shape):
            total = len(owner.prefix) + len(owner.shape)
            raise self.source.wrong(
                node,
                f"array '{owner.tensor}' has {total} dimension(s), "
                f"but {len(owner.prefix) + len(given)} indices",
                "give one index a dimension",
            )
        indices = [self._index(g, size) for g, size in zip(given, owner.shape)]
        return ArrayRef(
            owner.tensor,
            owner.dtype,
            owner.shape[len(given) :],
            (*owner.prefix, *indices),
        )

    def _index(self, node: ast.expr, size: Affine) -> IndexExpr:
        if isinstance(node, ast.Slice) or (
            isinstance(node, ast.Constant) and node.value is Ellipsis
        ):
            raise self.source.unsupported(
                node, "kernels compute on elements, not on slices", "write a loop over the index"
            )
        value = self.value(node)
        affine = value.affine
        if affine is None:
            if not value.dtype.is_int:
                raise self.source.wrong(
                    node, f"an index is an integer, this is {value.dtype}", "use //, or int(x)"
                )
            if self.data_guard is None:
                return value.expr
            zero = const(0, value.dtype)
            return Select(condition=self.data_guard, a=value.expr, b=zero)
        if affine.is_const and affine.const < 0:
            return size + affine  # Python counts a constant negative index from the end
        return affine

    def load(self, ref: ArrayRef) -> Expr:
        """The element that ``ref`` names, read only where the guards hold."""
        plain = Load(tensor=ref.tensor, indices=ref.prefix, dtype=ref.dtype)
        if self._guard == TRUE:
            return plain
        out: Expr = const(0, ref.dtype)
        for case in reversed(self._guard):
            out = Load(
                tensor=ref.tensor, indices=ref.prefix, dtype=ref.dtype, predicate=case, other=out
            )
        return out

    # ------------------------------------------------------------------------------ calls

    def _call(self, node: ast.Call) -> Value:
        target = self.callee(node.func)
        if isinstance(target, ElementType):
            (x,) = self._arguments(node, 1)
            return Value(values.convert(x, target.dtype))
        kind, op = known_function(target) or ("", "")
        match kind:
            case "unary" | "integer":
                (x,) = self._arguments(node, 1)
                made = values.apply_unary(op, x, as_float=op not in KEEPS_INTEGERS)
                if kind == "integer":
                    return Value(values.convert(made, DType.i64), x.weak)
                return made
            case "binary":
                a, b = self._arguments(node, 2)
                return values.apply_binary(op, a, b)
            case "fold":
                return self._fold(node, op)
            case "where":
                self._arguments_count(node, 3)
                return self.select(*node.args)
            case "len":
                self._arguments_count(node, 1)
                owner = self.lower(node.args[0])
                if isinstance(owner, ArrayRef) and owner.shape:
                    return values.integer(owner.shape[0])
            case "python":
                (x,) = self._arguments(node, 1)
                if op == "i64" and x.affine is not None:
                    return x
                return Value(values.convert(x, DType(op)), weak=True)
            case "cast":
                (x,) = self._arguments(node, 1)
                return Value(values.convert(x, dtype_named(op)))
        raise self._unknown_call(node, target)

    def _unknown_call(self, node: ast.Call, target: Any) -> Unsupported:
        name = ast.unparse(node.func)
        if hasattr(target, "__nestor_kernel__"):
            return self.source.unsupported(
                node,
                f"kernel '{name}' returns nothing",
                "call it as a statement of its own; it writes to its array arguments",
            )
        return self.source.unsupported(
            node,
            f"'{name}' cannot be called in a kernel",
            "use functions of math or numpy on elements, min, max, abs, round, "
            "or another @nestor.kernel",
        )

    def _arguments_count(self, node: ast.Call, count: int) -> None:
        if node.keywords or len(node.args) != count or _has_star(node):
            raise self.source.wrong(
                node,
                f"'{ast.unparse(node.func)}' takes {count} plain argument(s) here",
                "pass them by position",
            )

    def _arguments(self, node: ast.Call, count: int) -> list[Value]:
        self._arguments_count(node, count)
        return [self.value(a) for a in node.args]

    def _fold(self, node: ast.Call, op: str) -> Value:
        if node.keywords or _has_star(node) or len(node.args) < 2:
            raise self.source.unsupported(
                node, f"{op} of two or more numbers only", f"write {op}(a, b), or a loop"
            )
        parts = [self.value(a) for a in node.args]
        whole = [p.affine for p in parts]
        if all(w is not None and w.is_const for w in whole):
            numbers = [w.const for w in whole if w is not None]
            return values.number(min(numbers) if op == "min" else max(numbers))
        out = parts[0]
        for part in parts[1:]:
            out = values.apply_binary(op, out, part)
        return out

    # ------------------------------------------------------------------------------ refusals

    def _no_value(self, node: ast.expr, found: Any) -> Unsupported:
        return self.source.unsupported(
            node,
            f"'{ast.unparse(node)}' is no number ({type(found).__name__})",
            "use numbers, array elements, parameters and global int or float constants",
        )

    def _refusal(self, node: ast.expr) -> Unsupported:
        known = {
            "NamedExpr": ("assignment inside an expression", "assign on a line of its own"),
            "ListComp": ("a list comprehension", "write a loop"),
            "GeneratorExp": ("a generator", "write a loop that accumulates"),
            "Lambda": ("a lambda", "write the expression out"),
            "Tuple": ("a tuple", "assign one value at a time"),
            "List": ("a list", "use a local array: nestor.zeros((n,), nestor.f64)"),
            "Constant": ("a constant that is no number", "use int, float or bool"),
        }
        what, instead = known.get(
            type(node).__name__,
            (f"'{ast.unparse(node)}'", "use arithmetic, comparisons, calls and array elements"),
        )
        return self.source.unsupported(node, f"{what} is not part of the kernel language", instead)


def _has_star(node: ast.Call) -> bool:
    return any(isinstance(a, ast.Starred) for a in node.args)


def _may_be_affine(node: ast.expr) -> bool:
    """Whether ``node`` has the form of an affine expression; then lowering it has no side effect
    and cannot fail for want of a guard."""
    allowed = (
        ast.Constant, ast.Name, ast.BinOp, ast.UnaryOp, ast.Attribute, ast.Subscript,
        ast.operator, ast.unaryop, ast.expr_context,
    )  # fmt: skip
    return all(isinstance(n, allowed) or _is_length(n) for n in ast.walk(node)) and not any(
        isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not) for n in ast.walk(node)
    )


def _is_length(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"


def _numpy_constant(found: np.generic) -> Const | None:
    """A NumPy scalar as a constant; None if its type is none of the IR's."""
    if found.dtype.kind == "b":
        return const(bool(found), DType.bool)
    try:
        return const(found.item(), dtype_named(str(found.dtype)))
    except (KeyError, ValueError):
        return None
