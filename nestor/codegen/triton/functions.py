"""Functions that Triton has no name for, from the one definition that there is of them.

``codegen/llvm`` writes every operation of the IR as straight LLVM code on scalars; here that code
is translated, line by line, into a Triton function on blocks. So an operation means the same on
every target, its accuracy included. What branches there, and what a GPU does better in its own way,
stands in ``library``.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence

from nestor.codegen.llvm.builder import FunctionBuilder, ModuleBuilder, Val
from nestor.codegen.llvm.mathlib import random_uniform
from nestor.codegen.llvm.ops import Ops
from nestor.codegen.llvm.types import REGISTER_TYPE
from nestor.errors import InternalError
from nestor.ir.types import DType

_TYPES = {
    "double": "tl.float64", "float": "tl.float32", "i64": "tl.int64", "i32": "tl.int32",
    "i16": "tl.int16", "i8": "tl.int8", "i1": "tl.int1",
}  # fmt: skip

_UNSIGNED = {"i64": "tl.uint64", "i32": "tl.uint32", "i16": "tl.uint16", "i8": "tl.uint8"}

_INFIX = {
    "fadd": "+", "fsub": "-", "fmul": "*", "add": "+", "sub": "-", "mul": "*", "and": "&",
    "or": "|", "xor": "^", "shl": "<<", "ashr": ">>", "sdiv": "//", "srem": "%",
}  # fmt: skip

_ON_UNSIGNED = {"lshr": ">>", "udiv": "//", "urem": "%"}

_COMPARE = {
    "eq": "==", "ne": "!=", "slt": "<", "sle": "<=", "sgt": ">", "sge": ">=", "ult": "<",
    "ule": "<=", "ugt": ">", "uge": ">=", "oeq": "==", "une": "!=", "olt": "<", "ole": "<=",
    "ogt": ">", "oge": ">=",
}  # fmt: skip
"""By predicate. Python's comparisons are false for a NaN, but ``!=``, as LLVM's ordered ones."""

_UNORDERED = {"ult": ">=", "ule": ">", "ugt": "<=", "uge": "<"}
"""Of floats: what must not hold."""

_INTRINSICS = {
    "fma": "tl.fma", "fabs": "tl.abs", "abs": "tl.abs", "floor": "tl.floor", "ceil": "tl.ceil",
    "trunc": "lib.trunc", "roundeven": "lib.round", "copysign": "lib.copysign",
    "smax": "tl.maximum", "smin": "tl.minimum",
}  # fmt: skip

_OWN = {
    "sin": "tl.sin", "cos": "tl.cos", "tan": "lib.tan", "rem": "lib.rem", "reduce": "",
}  # fmt: skip
"""What is not translated, since it branches: functions of ``library``, or of Triton itself."""

_DEFINITION = re.compile(r"define internal \w+ @([\w.]+)\(([^)]*)\) .*\{")
_ASSIGNMENT = re.compile(r"  (%\w+) = (.*)")
_CALL = re.compile(r"call (?:nsz )?(\w+) @([\w.]+)\((.*)\)")
_FLAGS = frozenset({"nsz", "contract"})


def unary_function(op: str, dtype: DType) -> tuple[str, dict[str, str]]:
    """The name of ``op`` on blocks of ``dtype``; and the sources of what is needed, by name.

    Args: dtype: no type that is only stored, such as bf16.
    """
    return _function(f"{op}_{dtype}", (dtype,), lambda ops, x: ops.unary(op, x[0], dtype))


def binary_function(op: str, dtype: DType) -> tuple[str, dict[str, str]]:
    """As ``unary_function``, of two blocks."""
    name = f"{op}_{dtype}"
    return _function(name, (dtype, dtype), lambda ops, x: ops.binary(op, x[0], x[1], dtype))


def cast_function(source: DType, target: DType) -> tuple[str, dict[str, str]]:
    """As ``unary_function``: a conversion."""
    name = f"{source}_to_{target}"
    return _function(name, (source,), lambda ops, x: ops.cast(x[0], source, target), target)


def uniform_function(dtype: DType) -> tuple[str, dict[str, str]]:
    """As ``unary_function``: random numbers of seed, offset and index."""
    return _function(
        f"random_uniform_{dtype}",
        (DType.i64,) * 3,
        lambda ops, x: random_uniform(ops.fb, list(x), REGISTER_TYPE[dtype]),
        dtype,
    )


def _function(
    name: str,
    given: Sequence[DType],
    write: Callable[[Ops, Sequence[Val]], Val],
    result: DType | None = None,
) -> tuple[str, dict[str, str]]:
    """A function and all that it calls, from what ``write`` writes for LLVM."""
    module = ModuleBuilder()
    arguments = [Val(f"%x{n}", REGISTER_TYPE[d]) for n, d in enumerate(given)]
    text = ", ".join(f"{a.ty} {a.text}" for a in arguments)
    fb = FunctionBuilder(module, f"define internal any @{name}({text}) nounwind")
    value = write(Ops(fb, fp_contract=False), arguments)
    fb.line(f"ret {value.ty} {value.text}")
    module.add_function(fb.finish())
    sources: dict[str, str] = {}
    for found in module.text().split("\n}"):
        start = found.find("define internal")
        if start < 0:
            continue
        function = _Translation(found[start:].splitlines())
        if function.operation not in _OWN:
            sources[function.name] = function.source()
    if DType.u8 in given or result is DType.u8:  # LLVM's integers have no sign
        sources = _on_signed(name, given, result or given[0], sources)
    return name, sources


def _on_signed(
    name: str, given: Sequence[DType], result: DType, sources: dict[str, str]
) -> dict[str, str]:
    """Give the function, whose bytes are signed, bytes without a sign."""
    inner = f"{name}_signed"
    sources[inner] = sources.pop(name).replace(f"def {name}(", f"def {inner}(")
    bits = ".to(tl.int8, bitcast=True)"
    args = ", ".join(f"x{n}{bits if d is DType.u8 else ''}" for n, d in enumerate(given))
    back = ".to(tl.uint8, bitcast=True)" if result is DType.u8 else ""
    parameters = ", ".join(f"x{n}" for n in range(len(given)))
    sources[name] = f"@triton.jit\ndef {name}({parameters}):\n    return {inner}({args}){back}\n"
    return sources


class _Translation:
    """One LLVM function as a Triton function."""

    def __init__(self, lines: Sequence[str]):
        head = _DEFINITION.match(lines[0])
        if head is None:
            raise InternalError(f"no function begins with {lines[0]!r}")
        self.name, self.operation = _name(head[1])
        self._parameters = [p.split()[1].lstrip("%") for p in head[2].split(", ")]
        self._lines = lines[1:]

    def source(self) -> str:
        """Its source. Raises: ``InternalError`` for code that branches."""
        head = ["@triton.jit", f"def {self.name}({', '.join(self._parameters)}):"]
        body = [self._line(text) for text in self._lines if text.startswith("  ")]
        return "\n".join([*head, *(f"    {text}" for text in body)]) + "\n"

    def _line(self, text: str) -> str:
        if text.startswith("  ret "):
            ty, value = text.split(maxsplit=2)[1:]
            return f"return {self._operand(value, ty, typed=True)}"
        found = _ASSIGNMENT.match(text)
        if found is None:
            raise InternalError(f"{self.name} has no straight code: {text.strip()}")
        return f"{found[1].lstrip('%')} = {self._value(found[2])}"

    def _value(self, text: str) -> str:
        call = _CALL.fullmatch(text)
        if call is not None:
            return self._call(*call.groups())
        opcode, *rest = (w for w in text.split(" ") if w not in _FLAGS)
        if opcode == "select":
            return self._select(" ".join(rest))
        if opcode in ("icmp", "fcmp"):
            return self._compare(rest[0], *self._pair(rest[1:]))
        if opcode == "fneg":
            return f"{self._operand(rest[1], rest[0])} * -1.0"  # as ``expressions`` has it
        if len(rest) == 4 and rest[2] == "to":
            return self._convert(opcode, rest[0], rest[1], rest[3])
        ty, a, b = self._pair(rest)
        left, right = self._operand(a, ty), self._operand(b, ty)
        if opcode in _INFIX:
            return f"{left} {_INFIX[opcode]} {right}"
        if opcode in _ON_UNSIGNED:
            bits = f".to({_UNSIGNED[ty]}, bitcast=True)"
            sides = (f"{self._operand(x, ty, typed=True)}{bits}" for x in (a, b))
            whole = f" {_ON_UNSIGNED[opcode]} ".join(sides)
            return f"({whole}).to({_TYPES[ty]}, bitcast=True)"
        if opcode == "fdiv":
            typed = (self._operand(x, ty, typed=True) for x in (a, b))
            return f"tl.div_rn({', '.join(typed)})" if ty == "float" else f"{left} / {right}"
        raise InternalError(f"no Triton code for LLVM's {text!r}")

    def _pair(self, words: Sequence[str]) -> tuple[str, str, str]:
        ty, a, b = words
        return ty, a.rstrip(","), b

    def _compare(self, predicate: str, ty: str, a: str, b: str) -> str:
        if predicate == "uno":
            left = self._operand(a, ty)
            return f"{left} != {left}"
        left, right = self._operand(a, ty), self._operand(b, ty, typed=predicate[0] == "u")
        if predicate in _UNORDERED and ty in ("float", "double"):
            return f"~({left} {_UNORDERED[predicate]} {right})"
        if predicate in _UNORDERED:
            bits = f".to({_UNSIGNED[ty]}, bitcast=True)"
            left, right = f"{left}{bits}", f"{right}{bits}"
        return f"{left} {_COMPARE[predicate]} {right}"

    def _select(self, text: str) -> str:
        (condition, first, second) = (part.split(" ") for part in text.split(", "))
        a = self._operand(first[1], first[0], typed=True)
        b = self._operand(second[1], second[0], typed=True)
        return f"tl.where({self._operand(condition[1], 'i1', typed=True)}, {a}, {b})"

    def _convert(self, opcode: str, ty: str, value: str, to: str) -> str:
        source = self._operand(value, ty, typed=True)
        if opcode == "bitcast":
            return f"{source}.to({_TYPES[to]}, bitcast=True)"
        if opcode == "sext" and ty == "i1":
            return f"-({source}.to({_TYPES[to]}))"
        if opcode in ("uitofp", "zext") and ty != "i1":
            return f"{source}.to({_UNSIGNED[ty]}, bitcast=True).to({_TYPES[to]})"
        return f"{source}.to({_TYPES[to]})"

    def _call(self, ty: str, function: str, arguments: str) -> str:
        pairs = [a.split() for a in arguments.split(", ")]
        typed = [self._operand(value, kind, typed=True) for kind, value in pairs]
        if function.startswith("nestor."):
            name, operation = _name(function)
            return f"{_OWN.get(operation, name)}({', '.join(typed)})"
        name = function.split(".")[1]
        if name == "sqrt":
            return f"tl.sqrt{'_rn' if ty == 'float' else ''}({typed[0]})"
        if name not in _INTRINSICS:
            raise InternalError(f"no Triton code for LLVM's {function}")
        return f"{_INTRINSICS[name]}({', '.join(typed[: 1 if name == 'abs' else None])})"

    def _operand(self, text: str, ty: str, *, typed: bool = False) -> str:
        """A name or a literal; a literal beside a block needs no type."""
        if text.startswith("%"):
            return text[1:]
        literal = _literal(text, ty)
        return f"tl.full((), {literal}, {_TYPES[ty]})" if typed else literal


def _name(function: str) -> tuple[str, str]:
    """The Triton name of an LLVM function, and its operation if it is of the mathematical library:
    ``math_erf_f64`` and ``erf``."""
    if not function.startswith("nestor."):
        return function, ""
    _, operation, *_ = function.split(".")
    return function.replace("nestor.", "math_").replace(".", "_"), operation


def _literal(text: str, ty: str) -> str:
    if ty in ("float", "double"):
        (value,) = struct.unpack("<d", struct.pack("<Q", int(text, 16)))
        if math.isfinite(value):
            return repr(value)
        return 'float("nan")' if math.isnan(value) else f'float("{value}")'
    if ty == "i1":
        return {"true": "True", "false": "False"}[text]
    bits, value = int(ty[1:]), int(text)
    value &= (1 << bits) - 1  # LLVM takes a literal without a sign as well
    return str(value - (1 << bits) if value >> (bits - 1) else value)
