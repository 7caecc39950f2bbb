"""A string builder for LLVM IR: typed values, scopes, value numbering, hoisting.

Text is made directly, since a kernel has thousands of instructions and an object model costs ten
times more. Every pure instruction is numbered by its text: asking twice in the same scope (or an
enclosing one) returns the first result.

A *scope* is a region of the code whose start dominates the rest of it: the function, the body of a
loop, one side of a branch. Each scope keeps a *head*: a list at its start to which address
arithmetic that depends on no inner loop may be added while inner code is being written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable


class Val:
    """An SSA value or a literal; never changed.

    Attributes:
        text: ``%v12`` or a literal of the element's type.
        ty: LLVM's name of the element's type, e.g. ``float``.
        lanes: 0 for a scalar, else the number of vector elements.
        literal: True if ``text`` is a scalar constant.
        full: LLVM's type of the whole value.
    """

    __slots__ = ("full", "lanes", "literal", "text", "ty")

    def __init__(self, text: str, ty: str, lanes: int = 0, literal: bool = False):
        self.text = text
        self.ty = ty
        self.lanes = lanes
        self.literal = literal
        self.full = f"<{lanes} x {ty}>" if lanes else ty

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Val) and (self.text, self.full) == (other.text, other.full)

    def __hash__(self) -> int:
        return hash((self.text, self.full))


def int_val(value: int, ty: str = "i64") -> Val:
    """An integer literal."""
    return Val(str(value), ty, 0, True)


def bool_val(value: bool) -> Val:
    """An i1 literal."""
    return Val("true" if value else "false", "i1", 0, True)


def float_text(value: float, ty: str) -> str:
    """LLVM's exact hexadecimal literal; a float is written as the double of equal value."""
    if ty == "float":
        value = round_to_f32(value)
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def round_to_f32(value: float) -> float:
    """The nearest float32, as a Python float; too large values become infinite."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def float_val(value: float, ty: str) -> Val:
    """A ``float`` or ``double`` literal."""
    return Val(float_text(value, ty), ty, 0, True)


def vector_literal(items: list[str], ty: str) -> Val:
    """A constant vector; its text is the whole literal, its ``literal`` mark stays False."""
    body = ", ".join(f"{ty} {item}" for item in items)
    return Val(f"<{body}>", ty, len(items))


def vec_type(ty: str, lanes: int) -> str:
    """``ty`` or ``<lanes x ty>``."""
    return f"<{lanes} x {ty}>" if lanes else ty


_SHORT = {"float": "f32", "double": "f64", "half": "f16", "ptr": "p0"}


def mangle(ty: str, lanes: int) -> str:
    """The suffix that LLVM's overloaded intrinsics carry, e.g. ``v16f32``."""
    short = _SHORT.get(ty, ty)
    return f"v{lanes}{short}" if lanes else short


INLINE_MARK = "INLINE_IF_FEW"
"""Stands in a helper's header for ``alwaysinline`` or ``noinline``, by the number of its calls."""

INLINE_CALLS = 4
"""A helper called from more places stays a function: 20 copies of erf in the epilogue of a register
tile take LLVM 0.5 s, while the calls cost nothing beside the tile's reduced loop."""


class ModuleBuilder:
    """What a module holds besides the code of its functions: declarations, helpers, metadata.

    Args: features: instruction sets, in LLVM's names, whose own operations the code may use.
    """

    def __init__(self, features: Iterable[str] = ()) -> None:
        self.features = frozenset(features)
        self._declarations: dict[str, str] = {}
        self._helpers: dict[str, str] = {}
        self._calls: dict[str, int] = {}
        self._functions: list[str] = []
        self._globals: dict[str, str] = {}
        self._metadata: list[str] = []

    def declare(self, name: str, result: str, arguments: str) -> str:
        """Declare ``@name`` once; returns ``@name``."""
        if name not in self._declarations:
            self._declarations[name] = f"declare {result} @{name}({arguments})"
        return f"@{name}"

    def has_helper(self, name: str) -> bool:
        """True once ``add_helper(name, …)`` was called."""
        return name in self._helpers

    def add_helper(self, name: str, text: str) -> None:
        """Add an internal function definition, once."""
        self._helpers.setdefault(name, text)

    def set_helper(self, name: str, text: str) -> None:
        """Give a helper its text; ``add_helper`` reserved the name while it was being written."""
        self._helpers[name] = text

    def count_call(self, name: str) -> None:
        """Note one more place that calls a helper."""
        self._calls[name] = self._calls.get(name, 0) + 1

    def calls(self) -> dict[str, int]:
        """How many places call each helper so far."""
        return dict(self._calls)

    def set_calls(self, calls: dict[str, int]) -> None:
        """Go back to what ``calls`` gave; helpers that are new since then keep their count."""
        self._calls.update(calls)

    def count_functions(self) -> int:
        """How many functions were added so far."""
        return len(self._functions)

    def drop_functions(self, count: int) -> None:
        """Forget all functions but the first ``count``."""
        del self._functions[count:]

    def add_global(self, name: str, text: str) -> str:
        """Add a global definition, once; returns ``@name``."""
        self._globals.setdefault(name, text)
        return f"@{name}"

    def add_function(self, text: str) -> None:
        """Add a finished function."""
        self._functions.append(text)

    def metadata(self, text: str) -> str:
        """Add a numbered metadata node; returns ``!n``. ``{self}`` stands for its own name."""
        name = f"!{len(self._metadata)}"
        self._metadata.append(text.replace("{self}", name))
        return name

    def _finished(self, name: str, text: str) -> str:
        few = self._calls.get(name, 0) <= INLINE_CALLS
        return text.replace(INLINE_MARK, "alwaysinline" if few else "noinline", 1)

    def text(self) -> str:
        """The whole module."""
        parts = [
            *self._globals.values(),
            *self._declarations.values(),
            *self._functions,
            *(self._finished(name, text) for name, text in self._helpers.items()),
            *(f"!{i} = {m}" for i, m in enumerate(self._metadata)),
        ]
        return "\n".join(parts) + "\n"


class Scope:
    """A dominating region: the list at its start, and the keys of what is numbered in it."""

    __slots__ = ("head", "in_body", "in_head", "pointers")

    def __init__(self, head: list[str]):
        self.head = head
        self.in_head: list[str] = []
        self.in_body: list[str] = []
        self.pointers: dict[object, Val] = {}


class FunctionBuilder:
    """Writes one function: ``alloca`` first, then each scope's head where the scope starts."""

    def __init__(self, module: ModuleBuilder, header: str):
        self.module = module
        self._header = header
        self._allocas: list[str] = []
        self._segments: list[list[str]] = []
        self._counter = 0
        self.label = "entry"
        self.scopes: list[Scope] = []
        self._heads: dict[str, Val] = {}
        self._bodies: dict[str, Val] = {}
        self._out: list[str] = []
        self.push_scope()

    # --- structure -----------------------------------------------------------------------------

    def push_scope(self) -> None:
        """Start a scope here. The current block must dominate all that follows in it."""
        head: list[str] = []
        self._out = []
        self._segments += [head, self._out]
        self.scopes.append(Scope(head))

    def pop_scope(self) -> None:
        """End the innermost scope: what was numbered in it is forgotten."""
        scope = self.scopes.pop()
        for key in scope.in_head:
            del self._heads[key]
        for key in scope.in_body:
            del self._bodies[key]

    def fresh(self, hint: str = "v") -> str:
        """A name that nothing else has (without ``%``)."""
        self._counter += 1
        return f"{hint}{self._counter}"

    def start_block(self, label: str) -> None:
        """Begin the basic block ``label``; the one before must have ended in a terminator."""
        self.label = label
        self._out.append(f"{label}:")

    def line(self, text: str) -> None:
        """An instruction without a result or a terminator."""
        self._out.append("  " + text)

    def alloca(self, text: str, hint: str) -> str:
        """``alloca text`` in the entry block; returns ``%name``."""
        name = "%" + self.fresh(hint)
        self._allocas.append(f"  {name} = alloca {text}")
        return name

    def finish(self) -> str:
        """The function's text."""
        lines = [f"{self._header} {{", "entry:", *self._allocas]
        for segment in self._segments:
            lines += segment
        return "\n".join([*lines, "}"])

    # --- values --------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Index of the innermost scope."""
        return len(self.scopes) - 1

    def emit(self, rhs: str, ty: str, lanes: int = 0) -> Val:
        """A pure instruction here; numbered, so the result may be an earlier one."""
        found = self._bodies.get(rhs) or self._heads.get(rhs)
        if found is not None:
            return found
        value = self._bodies[rhs] = self.effect(rhs, ty, lanes)
        self.scopes[-1].in_body.append(rhs)
        return value

    def emit_at(self, depth: int, rhs: str, ty: str) -> Val:
        """A pure scalar instruction in the head of scope ``depth``.

        All its operands must be available there (heads of that scope or outer ones); the text then
        names a value of that scope, so that an equal text is never numbered further out.
        """
        found = self._heads.get(rhs)
        if found is not None:
            return found
        self._counter += 1
        value = Val(f"%a{self._counter}", ty)
        scope = self.scopes[depth]
        scope.head.append(f"  {value.text} = {rhs}")
        scope.in_head.append(rhs)
        self._heads[rhs] = value
        return value

    def effect(self, rhs: str, ty: str, lanes: int = 0) -> Val:
        """An instruction with a result that must not be numbered (a load of changing memory)."""
        self._counter += 1
        value = Val(f"%v{self._counter}", ty, lanes)
        self._out.append(f"  {value.text} = {rhs}")
        return value

    def broadcast(self, value: Val, lanes: int) -> Val:
        """``value`` in all ``lanes``; itself if it is a vector already or ``lanes`` is 0."""
        if lanes == 0 or value.lanes == lanes:
            return value
        if value.literal:
            return Val(f"splat ({value.ty} {value.text})", value.ty, lanes)
        full = vec_type(value.ty, lanes)
        one = self.emit(
            f"insertelement {full} poison, {value.ty} {value.text}, i64 0", value.ty, lanes
        )
        mask = f"<{lanes} x i32> zeroinitializer"
        return self.emit(f"shufflevector {full} {one.text}, {full} poison, {mask}", value.ty, lanes)

    def unify(self, *values: Val) -> tuple[Val, ...]:
        """All values as scalars, or all as vectors if one of them is."""
        lanes = max(v.lanes for v in values)
        return tuple(self.broadcast(v, lanes) for v in values)

    def op(self, opcode: str, a: Val, b: Val) -> Val:
        """A two-operand instruction whose result has the operands' type."""
        a, b = self.unify(a, b)
        return self.emit(f"{opcode} {a.full} {a.text}, {b.text}", a.ty, a.lanes)

    def compare(self, predicate: str, a: Val, b: Val) -> Val:
        """``icmp``/``fcmp``: ``predicate`` carries the opcode, e.g. ``icmp slt``."""
        a, b = self.unify(a, b)
        return self.emit(f"{predicate} {a.full} {a.text}, {b.text}", "i1", a.lanes)

    def select(self, condition: Val, a: Val, b: Val) -> Val:
        """``condition ? a : b``; a scalar condition may choose between vectors."""
        if condition.literal:
            return a if condition.text == "true" else b
        if a == b:
            return a
        a, b = self.unify(a, b)
        if condition.lanes:
            a, b = self.broadcast(a, condition.lanes), self.broadcast(b, condition.lanes)
        rhs = f"select {condition.full} {condition.text}, {a.full} {a.text}, {b.full} {b.text}"
        return self.emit(rhs, a.ty, a.lanes)

    def convert(self, opcode: str, value: Val, ty: str) -> Val:
        """A conversion instruction (``sext``, ``fptrunc``, ``bitcast`` of equal lanes, …)."""
        rhs = f"{opcode} {value.full} {value.text} to {vec_type(ty, value.lanes)}"
        return self.emit(rhs, ty, value.lanes)

    def intrinsic(self, name: str, *args: Val, extra: str = "", flags: str = "") -> Val:
        """An overloaded intrinsic of one type, e.g. ``llvm.fma``; ``extra``: further arguments."""
        values = self.unify(*args)
        ty, lanes, full = values[0].ty, values[0].lanes, values[0].full
        types = ", ".join([full] * len(values) + [x.split()[0] for x in extra.split(",") if x])
        symbol = self.module.declare(f"{name}.{mangle(ty, lanes)}", full, types)
        given = ", ".join([*(f"{full} {v.text}" for v in values), *([extra] if extra else [])])
        return self.emit(f"call {flags}{full} {symbol}({given})", ty, lanes)

    def intrinsic_reduce(self, kind: str, value: Val) -> Val:
        """``llvm.vector.reduce.KIND`` of an integer or i1 vector."""
        name = f"llvm.vector.reduce.{kind}.{mangle(value.ty, value.lanes)}"
        symbol = self.module.declare(name, value.ty, value.full)
        return self.emit(f"call {value.ty} {symbol}({value.full} {value.text})", value.ty)

    def extract(self, value: Val, lane: int) -> Val:
        """One lane of a vector; a scalar is every lane of itself."""
        if not value.lanes:
            return value
        return self.emit(f"extractelement {value.full} {value.text}, i64 {lane}", value.ty)

    def shuffle(self, value: Val, lanes: list[int], other: Val | None = None) -> Val:
        """``lanes`` of ``value`` (and of ``other``, counted on); -1 is undefined."""
        mask = ", ".join(f"i32 {i}" if i >= 0 else "i32 poison" for i in lanes)
        second = "poison" if other is None else other.text
        rhs = (
            f"shufflevector {value.full} {value.text}, {value.full} {second}, "
            f"<{len(lanes)} x i32> <{mask}>"
        )
        return self.emit(rhs, value.ty, len(lanes))
