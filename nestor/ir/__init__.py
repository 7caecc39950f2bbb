"""The intermediate representation, and what it means.

Two levels share one expression language. A ``Program`` says *what* is computed: tensors, and
statements over them. A ``LoopNest`` says *how*: loops, buffers, threads, vectors. The interpreters
(``run_program``, ``run_nest``) define the meaning; this page states it in words.

Values and types
----------------
Types are f64, f32, f16, bf16, f8e4m3, f8e5m2, i64, i32, i16, i8, u8 and bool. Operands have equal
types; there are no implicit conversions. The floats below f32 are storage types: they are loaded,
stored, selected and cast, and all arithmetic is written as cast to f32, operate, cast back (each
cast rounds once). A bool is
0 or 1 in memory. Comparisons, ``isnan`` and ``isinf`` give bool.

Integers
--------
* ``add sub mul neg abs shl`` wrap (two's complement; u8 modulo 256): ``abs(i8 -128)`` is -128.
* ``floordiv`` rounds down and ``mod`` has the divisor's sign (Python); ``truncdiv`` rounds towards
  zero and ``rem`` has the dividend's sign (C). Division by zero gives 0 for all four; the least
  value divided by -1 wraps to itself, with remainder 0. ``div`` is for floats only.
* ``shl`` and ``shr`` by a negative amount or by the width or more give 0, but an arithmetic
  ``shr`` of a negative value gives -1. ``shr`` is arithmetic on signed types, logical on u8.
* ``pow`` wraps; with a negative exponent it is 0, except ±1 for a base of ±1.
* ``and or xor not`` are bitwise on integers and logical on bool. ``not`` of an integer is its
  complement. On bool there are also the comparisons, ``min`` and ``max``, and nothing else.

Floats
------
IEEE 754, round to nearest even, denormals kept, infinities and NaN as they come; no operation
traps, and no compiler may assume that they are absent (never ``nnan``, ``ninf``).

* ``div`` by zero is an infinity or NaN. ``rem`` is C's ``fmod``, exactly; ``mod`` is ``fmod`` plus
  the divisor where the signs differ and the remainder is not zero; ``truncdiv`` is
  ``trunc(a / b)``; ``floordiv`` is Python's and PyTorch's ``a // b``, and ``a / b`` for b = 0.
* ``min`` and ``max`` give NaN if either operand is NaN. Which zero ``max(0.0, -0.0)`` gives is not
  fixed; nor is the payload or sign of a NaN.
* ``round`` goes to the nearest integer, ties to even. ``sign`` of NaN and of ±0 is 0.
* ``sqrt``, ``div``, ``reciprocal`` (``1 / x``) and the arithmetic operations are correctly rounded.
  The other functions mean the real function, rounded; the interpreter computes them in double
  precision, a code generator states its error in ULP. ``rsqrt`` is ``1 / sqrt(x)``, ``sigmoid`` is
  ``1 / (1 + exp(-x))``, ``exp2``, ``expm1``, ``log1p``, ``erf``, ``lgamma`` as in C; the domains'
  edges are C's (``log(0) = -inf``, ``log(-1)`` is NaN, ``lgamma`` of a pole is +inf).
* *Contraction*: ``a*b + c`` may be evaluated with one rounding. ``fma(a, b, c)`` always is.
* *Reassociation* is allowed within one reduction or scan, whose monoid is associative by
  declaration, and nowhere else. Intermediate sums may be wider than the type.

Casts
-----
* float → i64 or i32: truncates; out of range gives the nearest bound, NaN gives 0.
* float → i16, i8 or u8: as to i32, then the low bits are kept (300.0 → u8 is 44; PyTorch's way).
* integer → narrower integer keeps the low bits; to a wider one extends by the source's sign.
* anything → bool is ``x ≠ 0`` (NaN is true); bool → number is 0 or 1.
* to f32 or f64 rounds to nearest even; to a storage type goes through f32 (f64 → f32 → bf16).
* f8e4m3 has no infinity: what is beyond 448 becomes that.

Instances and order
-------------------
A statement has one instance per point of its domain. Statements run in lexicographic order of their
``order`` (positions, and the values of the indices between them): two statements that agree on a
prefix interleave by the *values* of their indices. Indices outside the order are unordered: their
instances may run in any order or at once, and IR in which that changes a result is wrong. An
instance evaluates all its elements, then writes. Every subexpression may be evaluated at every
instance (both sides of a ``Select``, the ``other`` of a load, a gather's index), so each load in
it must be valid by itself; what is not selected has no effect.

Loads, gathers and scatters
---------------------------
A ``Load`` whose predicate fails yields ``other`` and reads nothing. Affine accesses must lie inside
their tensor wherever their predicate holds. An index that is an expression (a gather, or the target
of a scatter) is checked at run time where the predicate holds: outside, ``IndexOutOfRange`` is
raised; negative values do not wrap.

A pointwise statement writes each element at most once, unless it has ``scatter``: ``unique``
promises distinct targets, ``last`` runs the instances in lexicographic order of the domain.

Reductions and scans
--------------------
The state of an output point is the combination, by the monoid, of the elements at all values of the
reduced indices; it starts from the identity, which may join in more than once. If the monoid does
not commute, elements combine in ascending lexicographic order of ``Reduction.indices``. The output
points are the values of the other indices that satisfy every range and constraint which mentions no
reduced index; a point without elements gets ``final(identity)``. ``final`` may contain loads and
indices of the output point.

With ``into`` the state starts from what the targets hold. If a target's indices mention reduced
indices or are data (``index_add``, the gradient of a gather), each element combines into its own
target, in lexicographic order for a monoid that does not commute.

A *scan* writes ``final`` of the running state, the own element included, at every index, in
ascending lexicographic order of ``Reduction.indices``; it may be computed as a tree.

``state_indices`` gives a component indices of its own (a projection of the domain): the component
is the same for all values of the others.

Aliases
-------
A tensor with ``alias_of`` is the same bytes as another, row-major, with as many elements of the
same type. A write to one is a write to the other; dependences are those of the whole tensor.
Tensors without it never overlap.

Random numbers
--------------
``random_uniform(seed, offset, index)`` (int64 arguments) is in [0, 1): Philox4x32-10 with key
``seed`` and counter ``(index, offset)``, low words first. An f32 is the top 24 bits of word 0 times
2⁻²⁴, an f64 the top 53 bits of ``word0·2³² + word1`` times 2⁻⁵³. It is a pure function.

Loop nests
----------
A nest means its literal execution, loop by loop, with fresh undefined buffers at each ``Alloc``.
*parallel* iterations may run in any order or at once, each with its own buffers allocated inside.
A *vector* loop runs in lockstep: each ``Compute`` evaluates its values in all lanes before it
stores any. A ``merge`` in a vector loop combines the lanes as a tree in index order, then into
the target; elsewhere it acts as ``update``. Affine accesses are logical: layouts change addresses,
never values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nestor.ir.affine import Affine, FloorDiv, Mod, affine, affine_sum, floor_div, modulo, variable
from nestor.ir.expr import (
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
)
from nestor.ir.loopnest import Alloc, Block, Buffer, Compute, Guard, Loop, LoopNest, Node, Store
from nestor.ir.monoid import Monoid
from nestor.ir.program import (
    Domain,
    Extern,
    IndexRange,
    Kernel,
    Layout,
    Origin,
    Program,
    Reduction,
    Statement,
    Symbol,
    Tensor,
    TensorRef,
    Write,
    box,
)
from nestor.ir.types import DType

if TYPE_CHECKING:
    from nestor.ir.hashing import canonical_hash, canonicalize, nest_hash
    from nestor.ir.interpreter import infer_symbols, run_nest, run_program
    from nestor.ir.parser import parse_nest, parse_program
    from nestor.ir.printer import print_nest, print_program
    from nestor.ir.verifier import verify_nest, verify_program

_LAZY = {
    "canonical_hash": "hashing",
    "canonicalize": "hashing",
    "infer_symbols": "interpreter",
    "nest_hash": "hashing",
    "parse_nest": "parser",
    "parse_program": "parser",
    "print_nest": "printer",
    "print_program": "printer",
    "run_nest": "interpreter",
    "run_program": "interpreter",
    "verify_nest": "verifier",
    "verify_program": "verifier",
}


def __getattr__(name: str) -> Any:
    """Load the printer, parser, verifier, hashing and interpreters at first use."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


__all__ = [
    "Affine",
    "Alloc",
    "Binary",
    "Block",
    "Buffer",
    "Call",
    "Cast",
    "Compute",
    "Const",
    "DType",
    "Domain",
    "Expr",
    "Extern",
    "FloorDiv",
    "Guard",
    "Index",
    "IndexExpr",
    "IndexRange",
    "Kernel",
    "Layout",
    "Load",
    "Loop",
    "LoopNest",
    "Mod",
    "Monoid",
    "Node",
    "Origin",
    "Program",
    "Reduction",
    "Select",
    "Statement",
    "Store",
    "Symbol",
    "Tensor",
    "TensorRef",
    "Unary",
    "Var",
    "Write",
    "affine",
    "affine_sum",
    "box",
    "canonical_hash",
    "canonicalize",
    "floor_div",
    "infer_symbols",
    "modulo",
    "nest_hash",
    "parse_nest",
    "parse_program",
    "print_nest",
    "print_program",
    "run_nest",
    "run_program",
    "variable",
    "verify_nest",
    "verify_program",
]
