"""Elementary functions as internal LLVM functions, one per (function, type, lanes) in use.

Each is written once over ``Num``, for scalars and vectors of any length alike, in ``math_f32`` and
``math_f64``; a float32 function without code of its own goes through the float64 one, which makes
it correctly rounded nearly always. Nothing here calls a library, so that objects have no undefined
symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nestor.codegen.llvm.builder import (
    INLINE_MARK,
    FunctionBuilder,
    Val,
    bool_val,
    float_text,
    float_val,
    int_val,
    mangle,
    vec_type,
    vector_literal,
)
from nestor.errors import InternalError


class Num:
    """A value with operators, for writing formulas; a Python number among them is a literal."""

    __slots__ = ("fb", "val")

    def __init__(self, fb: FunctionBuilder, val: Val):
        self.fb = fb
        self.val = val

    def lift(self, other: Num | float | int) -> Val:
        """``other`` as a value of this one's type."""
        if isinstance(other, Num):
            return other.val
        if self.val.ty.startswith("i"):
            return int_val(int(other), self.val.ty)
        return float_val(float(other), self.val.ty)

    def like(self, value: float | int) -> Num:
        """A literal of this one's type and lanes."""
        return Num(self.fb, self.fb.broadcast(self.lift(value), self.val.lanes))

    def _op(self, opcodes: tuple[str, str], other: Num | float | int, swap: bool = False) -> Num:
        opcode = opcodes[1] if self.val.ty.startswith("i") else opcodes[0]
        a, b = self.val, self.lift(other)
        return Num(self.fb, self.fb.op(opcode, b, a) if swap else self.fb.op(opcode, a, b))

    def __add__(self, other: Num | float | int) -> Num:
        return self._op(("fadd", "add"), other)

    __radd__ = __add__

    def __sub__(self, other: Num | float | int) -> Num:
        return self._op(("fsub", "sub"), other)

    def __rsub__(self, other: Num | float | int) -> Num:
        return self._op(("fsub", "sub"), other, swap=True)

    def __mul__(self, other: Num | float | int) -> Num:
        return self._op(("fmul", "mul"), other)

    __rmul__ = __mul__

    def __truediv__(self, other: Num | float | int) -> Num:
        return self._op(("fdiv", "sdiv"), other)

    def __rtruediv__(self, other: Num | float | int) -> Num:
        return self._op(("fdiv", "sdiv"), other, swap=True)

    def __and__(self, other: Num | int) -> Num:
        return self._op(("and", "and"), other)

    def __or__(self, other: Num | int) -> Num:
        return self._op(("or", "or"), other)

    def __xor__(self, other: Num | int) -> Num:
        return self._op(("xor", "xor"), other)

    def __lshift__(self, other: Num | int) -> Num:
        return self._op(("shl", "shl"), other)

    def __rshift__(self, other: Num | int) -> Num:
        """Logical shift."""
        return self._op(("lshr", "lshr"), other)

    def shift_arithmetic(self, count: int) -> Num:
        """Arithmetic shift to the right."""
        return self._op(("ashr", "ashr"), count)

    def __neg__(self) -> Num:
        if self.val.ty.startswith("i"):
            return 0 - self
        rhs = f"fneg {self.val.full} {self.val.text}"
        return Num(self.fb, self.fb.emit(rhs, self.val.ty, self.val.lanes))

    def __invert__(self) -> Num:
        ones = bool_val(True) if self.val.ty == "i1" else int_val(-1, self.val.ty)
        return Num(self.fb, self.fb.op("xor", self.val, ones))

    def _compare(self, names: tuple[str, str], other: Num | float | int) -> Num:
        opcode = f"icmp {names[1]}" if self.val.ty.startswith("i") else f"fcmp {names[0]}"
        return Num(self.fb, self.fb.compare(opcode, self.val, self.lift(other)))

    def __lt__(self, other: Num | float | int) -> Num:
        return self._compare(("olt", "slt"), other)

    def __le__(self, other: Num | float | int) -> Num:
        return self._compare(("ole", "sle"), other)

    def __gt__(self, other: Num | float | int) -> Num:
        return self._compare(("ogt", "sgt"), other)

    def __ge__(self, other: Num | float | int) -> Num:
        return self._compare(("oge", "sge"), other)

    def equals(self, other: Num | float | int) -> Num:
        """Equal, and neither is NaN."""
        return self._compare(("oeq", "eq"), other)

    def differs(self, other: Num | float | int) -> Num:
        """Not equal, or a NaN."""
        return self._compare(("une", "ne"), other)

    def below_unsigned(self, other: Num | int) -> Num:
        """Unsigned comparison of integers."""
        return self._compare(("ult", "ult"), other)

    def is_nan(self) -> Num:
        """Unordered with itself."""
        return Num(self.fb, self.fb.compare("fcmp uno", self.val, self.val))

    def where(self, a: Num | float | int, b: Num | float | int) -> Num:
        """``a`` where this i1 holds, else ``b``; one of them is a ``Num``."""
        model = a if isinstance(a, Num) else b
        assert isinstance(model, Num)
        return Num(self.fb, self.fb.select(self.val, model.lift(a), model.lift(b)))

    def fma(self, factor: Num | float, addend: Num | float) -> Num:
        """``self*factor + addend``, rounded once."""
        values = (self.val, self.lift(factor), self.lift(addend))
        return Num(self.fb, self.fb.intrinsic("llvm.fma", *values))

    def intrinsic(self, name: str, *others: Num | float) -> Num:
        """An LLVM intrinsic of one type, e.g. ``llvm.sqrt``."""
        return Num(self.fb, self.fb.intrinsic(name, self.val, *(self.lift(o) for o in others)))

    def abs(self) -> Num:
        """Absolute value of a float."""
        return self.intrinsic("llvm.fabs")

    def sqrt(self) -> Num:
        """Square root."""
        return self.intrinsic("llvm.sqrt")

    def at_most(self, limit: float) -> Num:
        """The lesser of this and a literal; a NaN stays."""
        return (self > limit).where(limit, self)

    def at_least(self, limit: float) -> Num:
        """The greater of this and a literal; a NaN stays."""
        return (self < limit).where(limit, self)

    def with_sign_of(self, other: Num) -> Num:
        """This magnitude with ``other``'s sign."""
        return self.intrinsic("llvm.copysign", other)

    def times_power_of_two(self, n: Num) -> Num | None:
        """``self * 2ⁿ`` for integral floats ``n`` of any size, rounded once; None where the machine
        has no instruction for that."""
        fb, size = self.fb, {"float": 32, "double": 64}.get(self.val.ty, 0)
        needed = size * max(self.val.lanes, 1)
        bits = next((b for b in (128, 256, 512) if needed and needed <= b), None)
        if bits is None or not {"avx512f", "avx512vl"} <= fb.module.features:
            return None
        v, power = self._widened(bits // size), n._widened(bits // size)
        short = {"float": "ps", "double": "pd"}[v.ty]
        mask, rounding = f"i{max(8, v.lanes)}", bits == 512
        name = fb.module.declare(
            f"llvm.x86.avx512.mask.scalef.{short}.{bits}",
            v.full,
            ", ".join([v.full] * 3 + [mask] + ["i32"] * rounding),
        )
        given = f"{v.full} {v.text}, {v.full} {power.text}, {v.full} zeroinitializer, {mask} -1"
        if rounding:
            given += ", i32 4"  # as the control register says
        return self._narrowed(fb.emit(f"call {v.full} {name}({given})", v.ty, v.lanes))

    def _widened(self, lanes: int) -> Val:
        """This in the first of so many lanes; the others hold anything."""
        fb, v = self.fb, self.val
        if not v.lanes:
            rhs = f"insertelement <{lanes} x {v.ty}> poison, {v.ty} {v.text}, i64 0"
            return fb.emit(rhs, v.ty, lanes)
        return (
            v if v.lanes == lanes else fb.shuffle(v, [*range(v.lanes), *[-1] * (lanes - v.lanes)])
        )

    def _narrowed(self, wide: Val) -> Num:
        """The first lanes of a widened result, as many as this has."""
        fb, lanes = self.fb, self.val.lanes
        if not lanes:
            return Num(fb, fb.extract(wide, 0))
        return Num(fb, wide if wide.lanes == lanes else fb.shuffle(wide, list(range(lanes))))

    def look_up(self, table: Sequence[float]) -> Num | None:
        """The entry of a table of 8, 16 or 32 float32 numbers that the low bits of this i32 name;
        None where the machine cannot look up a vector's at once (AVX2 knows tables of 8)."""
        fb, index = self.fb, self.val
        lanes = min(len(table), 16)
        if len(table) not in (8, 16, 32) or index.ty != "i32" or index.lanes > lanes:
            raise InternalError(
                "a table has 8, 16 or 32 entries, and at most 8 or 16 are looked up at once"
            )
        if ("avx2" if lanes == 8 else "avx512f") not in fb.module.features:
            return None
        wide = self._widened(lanes)
        parts = [
            vector_literal([float_text(e, "float") for e in table[at : at + lanes]], "float")
            for at in range(0, len(table), lanes)
        ]
        given = [parts[0], wide, *parts[1:]]
        kind = {8: "avx2.permps", 16: "avx512.permvar.sf.512", 32: "avx512.vpermi2var.ps.512"}
        name = fb.module.declare(
            f"llvm.x86.{kind[len(table)]}", parts[0].full, ", ".join(v.full for v in given)
        )
        arguments = ", ".join(f"{v.full} {v.text}" for v in given)
        found = fb.emit(f"call {parts[0].full} {name}({arguments})", "float", lanes)
        return self._narrowed(found)

    def convert(self, opcode: str, ty: str) -> Num:
        """A conversion instruction to the element type ``ty``."""
        return Num(self.fb, self.fb.convert(opcode, self.val, ty))

    def bits(self) -> Num:
        """A float's bits as an integer."""
        return self.convert("bitcast", {"float": "i32", "double": "i64"}[self.val.ty])

    def as_float(self) -> Num:
        """An integer's bits as a float."""
        return self.convert("bitcast", {"i32": "float", "i64": "double"}[self.val.ty])

    def polynomial(self, coefficients: tuple[float, ...]) -> Num:
        """Horner's scheme; ``coefficients`` from the constant term up."""
        total: Num | float = coefficients[-1]
        for c in reversed(coefficients[:-1]):
            total = self.fma(total, c)
        assert isinstance(total, Num)
        return total


MathFunction = Callable[..., Num]
_TABLE: dict[tuple[str, str], tuple[MathFunction, bool]] = {}


def define(op: str, ty: str, *, inline: bool = True) -> Callable[[MathFunction], MathFunction]:
    """Register the code of ``op`` on ``ty``; large functions are not inlined."""

    def register(f: MathFunction) -> MathFunction:
        _TABLE[op, ty] = (f, inline)
        return f

    return register


def call_math(fb: FunctionBuilder, op: str, args: tuple[Val, ...]) -> Val:
    """``op(*args)`` for floats of equal type and lanes.

    Raises: ``InternalError`` for an operation that nothing defines.
    """
    _load_tables()
    args = fb.unify(*args)
    ty, lanes = args[0].ty, args[0].lanes
    if (op, ty) not in _TABLE:
        if ty == "float" and (op, "double") in _TABLE:
            wide = tuple(_convert_literal(fb, a) for a in args)
            return fb.convert("fptrunc", call_math(fb, op, wide), "float")
        raise InternalError(f"no code for {op} on {ty}")
    name = f"nestor.{op}.{mangle(ty, lanes)}"
    if not fb.module.has_helper(name):
        _write(fb, name, op, ty, lanes, len(args))
    given = ", ".join(f"{a.full} {a.text}" for a in args)
    fb.module.count_call(name)
    return fb.emit(f"call {vec_type(ty, lanes)} @{name}({given})", ty, lanes)


def _convert_literal(fb: FunctionBuilder, a: Val) -> Val:
    return Val(a.text, "double", 0, True) if a.literal else fb.convert("fpext", a, "double")


def _write(fb: FunctionBuilder, name: str, op: str, ty: str, lanes: int, count: int) -> None:
    function, inline = _TABLE[op, ty]
    full = vec_type(ty, lanes)
    parameters = ", ".join(f"{full} %x{i}" for i in range(count))
    marks = INLINE_MARK if inline else "noinline"
    fb.module.add_helper(name, "")
    inner = FunctionBuilder(
        fb.module, f"define internal {full} @{name}({parameters}) {marks} nounwind memory(none)"
    )
    result = function(*(Num(inner, Val(f"%x{i}", ty, lanes)) for i in range(count)))
    inner.line(f"ret {full} {inner.broadcast(result.val, lanes).text}")
    fb.module.set_helper(name, inner.finish())


def _load_tables() -> None:
    """Fill the table at first use; the modules register themselves when imported."""
    if not _TABLE:
        import nestor.codegen.llvm.math_f32
        import nestor.codegen.llvm.math_f64
        import nestor.codegen.llvm.math_remainder
        import nestor.codegen.llvm.math_trig  # noqa: F401


def integer_pow(fb: FunctionBuilder, a: Val, b: Val, signed: bool) -> Val:
    """Wrapping power by squaring; a negative exponent gives 0, but ±1 for a base of ±1.

    Exponents have at most as many bits as the type, and after that many squarings a factor other
    than 0 and ±1 has wrapped to a fixed pattern, so the loop over bits is unrolled.
    """
    a, b = fb.unify(a, b)
    base, exponent = Num(fb, a), Num(fb, b)
    bits = int(a.ty[1:])
    counted = (exponent < 0).where(exponent.like(0), exponent) if signed else exponent
    out, square = base.like(1), base
    for position in range(bits - (1 if signed else 0)):
        is_set = ((counted >> position) & 1).differs(0)
        out = is_set.where(out * square, out)
        square = square * square
    if not signed:
        return out.val
    odd = (exponent & 1).differs(0)
    minus = odd.where(base.like(-1), base.like(1))
    inverse = base.equals(1).where(base.like(1), base.equals(-1).where(minus, base.like(0)))
    return (exponent < 0).where(inverse, out).val


def random_uniform(fb: FunctionBuilder, args: list[Val], ty: str) -> Val:
    """Uniform numbers in [0, 1) of (seed, offset, index): Philox 4x32 with ten rounds.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    seed, offset, index = (Num(fb, v) for v in fb.unify(*args))
    low = 0xFFFFFFFF
    c0, c1, c2, c3 = index & low, index >> 32, offset & low, offset >> 32
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & low, (p0 >> 32) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    if ty == "float":
        return ((c0 >> 8).convert("trunc", "i32").convert("uitofp", "float") * 2.0**-24).val
    return ((((c0 << 32) | c1) >> 11).convert("sitofp", "double") * 2.0**-53).val
