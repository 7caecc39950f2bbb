"""Types and scopes of expressions: which operand types each operation takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from nestor.ir.affine import Affine, Interval
from nestor.ir.expr import (
    BINARY_OPS,
    BITWISE,
    COMPARE,
    FLOAT_UNARY,
    UNARY_OPS,
    Binary,
    Call,
    Cast,
    Const,
    Expr,
    Index,
    IndexExpr,
    Load,
    Select,
    Unary,
    Var,
    highest,
    lowest,
)
from nestor.ir.monoid import Monoid
from nestor.ir.numeric import CALLS
from nestor.ir.printer import Printer
from nestor.ir.types import DType

Fail = Callable[[str], NoReturn]


@dataclass(slots=True)
class Shaped:
    """What an access may name: a tensor or a buffer."""

    shape: tuple[Affine, ...]
    dtype: DType


@dataclass(slots=True)
class Scope:
    """What an expression may refer to.

    Attributes:
        fail: raises a located error.
        arrays: tensors and buffers by name.
        indices: variables that affines may mention.
        vars: types of the ``Var`` nodes that may occur.
        check_access: called for each load and store with affine indices: name, indices, predicate.
        hint: names that exist but not here, and why.
    """

    fail: Fail
    arrays: Mapping[str, Shaped]
    indices: frozenset[str]
    vars: Mapping[str, DType] = field(default_factory=dict)
    check_access: Callable[[str, tuple[IndexExpr, ...], tuple[Affine, ...]], None] | None = None
    hint: Mapping[str, str] = field(default_factory=dict)
    _checked: dict[int, DType] = field(default_factory=dict)

    def text(self, node: Expr) -> str:
        """``node`` as text, for messages."""
        printer = Printer(())
        printer.types.update({name: a.dtype for name, a in self.arrays.items()})
        printer.vars.update(self.vars)
        return printer.expr(node)

    # ---------------------------------------------------------------- affines and accesses

    def check_affine(self, value: Affine, what: str) -> None:
        """Every variable of ``value`` is in scope."""
        for name in sorted(value.variables() - self.indices):
            why = self.hint.get(name, "is no index or symbol here")
            self.fail(f"{what} {value}: {name} {why}")

    def check_indices(
        self, name: str, indices: tuple[IndexExpr, ...], predicate: tuple[Affine, ...] = ()
    ) -> Shaped:
        """An access names an existing array with the right number of well-formed indices."""
        array = self.arrays.get(name)
        if array is None:
            self.fail(f"no tensor is called {name!r}")
        if len(indices) != len(array.shape):
            self.fail(f"{name} has {len(array.shape)} dimensions, but {len(indices)} indices")
        for index in indices:
            if isinstance(index, Affine):
                self.check_affine(index, f"index of {name}")
                continue
            dtype = self.check(index)
            if not dtype.is_int:
                self.fail(f"index {self.text(index)} of {name} is {dtype}, not an integer")
        if self.check_access is not None:
            self.check_access(name, indices, predicate)
        return array

    # ---------------------------------------------------------------- expressions

    def check(self, node: Expr) -> DType:
        """The type of ``node``; fails where its parts do not fit."""
        known = self._checked.get(id(node))
        if known is None:
            known = self._check(node)
            self._checked[id(node)] = known
        return known

    def expect(self, node: Expr, dtype: DType, what: str) -> None:
        """``node`` is well-formed and of type ``dtype``."""
        found = self.check(node)
        if found is not dtype:
            self.fail(f"{what} is {found}, not {dtype}: {self.text(node)}")

    def _check(self, node: Expr) -> DType:
        match node:
            case Const():
                self._check_const(node)
            case Index():
                self.check_affine(node.value, "the value of")
                if not node.dtype.is_int:
                    self.fail(f"index({node.value}) has type {node.dtype}, not an integer")
            case Var():
                self._check_var(node)
            case Load():
                self._check_load(node)
            case Unary():
                self._check_unary(node, self.check(node.x))
            case Binary():
                self._check_binary(node, self.check(node.a), self.check(node.b))
            case Select():
                self.expect(node.condition, DType.bool, "the condition of select")
                self.expect(node.b, self.check(node.a), "the second value of select")
            case Cast():
                self.check(node.x)
            case Call():
                self._check_call(node)
        return node.dtype

    def _check_const(self, node: Const) -> None:
        if node.dtype.is_int and not int(lowest(node.dtype)) <= node.value <= highest(node.dtype):
            self.fail(f"the constant {node.value} does not fit in {node.dtype}")

    def _check_var(self, node: Var) -> None:
        expected = self.vars.get(node.name)
        if expected is None:
            known = ", ".join(self.vars) or "none"
            self.fail(f"scalar {node.name} has no value here (those with one: {known})")
        if expected is not node.dtype:
            self.fail(f"scalar {node.name} is {expected}, used as {node.dtype}")

    def _check_load(self, node: Load) -> None:
        for condition in node.predicate:
            self.check_affine(condition, f"predicate of {node.tensor}")
        array = self.check_indices(node.tensor, node.indices, node.predicate)
        if array.dtype is not node.dtype:
            self.fail(f"load of {node.tensor} as {node.dtype}, but it is {array.dtype}")
        if node.other is not None:
            self.expect(node.other, node.dtype, f"the other value of the load of {node.tensor}")

    def _refuse_storage(self, op: str, dtype: DType) -> None:
        if dtype.is_storage_only:
            self.fail(f"{op} on {dtype}: a storage type; cast to f32, operate, cast back")

    def _check_unary(self, node: Unary, x: DType) -> None:
        op = node.op
        if op not in UNARY_OPS:
            self.fail(f"no unary operation is called {op!r}")
        self._refuse_storage(op, x)
        if op == "not":
            fits, wanted = not x.is_float, "an integer or a bool"
        elif op in FLOAT_UNARY or op in ("isnan", "isinf"):
            fits, wanted = x.is_float, "a float"
        else:
            fits, wanted = x is not DType.bool, "a number"
        if not fits:
            self.fail(f"{op} takes {wanted}, not {x}: {self.text(node)}")

    def _check_binary(self, node: Binary, a: DType, b: DType) -> None:
        op = node.op
        if op not in BINARY_OPS:
            self.fail(f"no binary operation is called {op!r}")
        if a is not b:
            self.fail(f"the operands of {op} are {a} and {b}: {self.text(node)}")
        self._refuse_storage(op, a)
        if op in COMPARE:
            return
        if op in BITWISE:
            is_shift = op in ("shl", "shr")
            fits = a.is_int or (a is DType.bool and not is_shift)
            wanted = "integers" if is_shift else "integers or bools"
        elif op in ("div", "atan2"):
            fits, wanted = a.is_float, "floats"
        elif op in ("min", "max"):
            fits, wanted = True, ""
        else:
            fits, wanted = a is not DType.bool, "numbers"
        if not fits:
            self.fail(f"{op} takes {wanted}, not {a}: {self.text(node)}")

    def _check_call(self, node: Call) -> None:
        entry = CALLS.get(node.function)
        if entry is None:
            self.fail(f"no function is called {node.function!r}; known: {', '.join(sorted(CALLS))}")
        kinds = entry[0]
        if len(node.args) != len(kinds):
            self.fail(f"{node.function} takes {len(kinds)} arguments, not {len(node.args)}")
        if node.dtype not in (DType.f32, DType.f64):
            self.fail(f"{node.function} gives f32 or f64, not {node.dtype}")
        for k, (arg, kind) in enumerate(zip(node.args, kinds, strict=True)):
            wanted = node.dtype if kind == "float" else DType(kind)
            self.expect(arg, wanted, f"argument {k} of {node.function}")


def check_monoid(monoid: Monoid, fail: Fail) -> None:
    """A monoid's combine is over ``a{i}``, ``b{i}`` and constants, of the identity's types."""
    names = {f"{side}{i}": d for side in "ab" for i, d in enumerate(monoid.dtypes)}
    scope = Scope(fail=fail, arrays={}, indices=frozenset(), vars=names)
    for i, (identity, combine) in enumerate(zip(monoid.identity, monoid.combine, strict=True)):
        scope.check(identity)
        scope.expect(combine, identity.dtype, f"component {i} of monoid {monoid.name}")


def extreme(
    value: Affine, ranges: Mapping[str, tuple[Affine, Affine]], *, largest: bool
) -> Affine | None:
    """The largest or smallest value of a linear ``value``, as an affine of symbols.

    Args: ranges: inclusive bounds of each index, innermost last, over symbols and earlier indices.
    Returns: None if ``value`` is not linear.
    """
    if any(not isinstance(a, str) for a, _ in value.terms):
        return None
    for name in reversed(list(ranges)):
        factor = value.coefficient(name)
        if factor:
            low, high = ranges[name]
            value = value.substitute({name: high if (factor > 0) == largest else low})
            if any(not isinstance(a, str) for a, _ in value.terms):
                return None
    return value


def is_surely_negative(value: Affine, symbols: Mapping[str, Interval]) -> bool:
    """Whether ``value < 0`` for every value of the symbols."""
    high = value.bounds(symbols)[1]
    return high is not None and high < 0
