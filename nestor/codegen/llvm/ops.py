"""Operations on values: one function a family, scalar and vector alike.

The meaning of each operation is that of ``nestor/ir/numeric.py``. Elementary functions are in
``math_f32`` and ``math_f64``; here is what the instruction set nearly has.
"""

from __future__ import annotations

import math
import struct

from nestor.codegen.llvm import mathlib
from nestor.codegen.llvm.builder import FunctionBuilder, Val, bool_val, float_val, int_val
from nestor.codegen.llvm.types import REGISTER_TYPE
from nestor.errors import InternalError
from nestor.ir.expr import highest, lowest
from nestor.ir.narrow_floats import BYTES, Byte
from nestor.ir.types import DType

_FLOAT_COMPARE = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_ROUNDING = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "roundeven"}


def constant(value: float | int | bool, dtype: DType) -> Val:
    """A literal of ``dtype``."""
    if dtype is DType.bool:
        return bool_val(bool(value))
    if dtype in (DType.f32, DType.f64):
        return float_val(float(value), REGISTER_TYPE[dtype])
    if dtype.is_int:
        bits = dtype.bits
        wrapped = int(value) & ((1 << bits) - 1)
        return int_val(wrapped - (1 << bits) if wrapped >> (bits - 1) else wrapped, f"i{bits}")
    raise InternalError(f"a literal of the storage type {dtype} is a cast of an f32 one")


class Ops:
    """Emits operations into one function.

    Args: fb: where to. fp_contract: products may be fused into sums.
    """

    def __init__(self, fb: FunctionBuilder, fp_contract: bool):
        self.fb = fb
        self.flags = "contract " if fp_contract else ""

    # --- unary -----------------------------------------------------------------------------

    def unary(self, op: str, x: Val, dtype: DType) -> Val:
        """``op(x)``."""
        if dtype.is_storage_only:
            single = self.cast(x, dtype, DType.f32)
            result = self.unary(op, single, DType.f32)
            return result if result.ty == "i1" else self.cast(result, DType.f32, dtype)
        if dtype.is_float:
            return self._float_unary(op, x, dtype)
        return self._int_unary(op, x, dtype)

    def _float_unary(self, op: str, x: Val, dtype: DType) -> Val:
        fb = self.fb
        if op == "neg":
            return fb.emit(f"fneg {x.full} {x.text}", x.ty, x.lanes)
        if op == "abs":
            return fb.intrinsic("llvm.fabs", x)
        if op == "isnan":
            return fb.compare("fcmp uno", x, float_val(0.0, x.ty))
        if op == "isinf":
            return fb.compare(
                "fcmp oeq", fb.intrinsic("llvm.fabs", x), float_val(float("inf"), x.ty)
            )
        if op in _ROUNDING:
            return fb.intrinsic(f"llvm.{_ROUNDING[op]}", x)
        if op == "sqrt":
            return fb.intrinsic("llvm.sqrt", x)
        if op == "rsqrt":
            return fb.op("fdiv", float_val(1.0, x.ty), fb.intrinsic("llvm.sqrt", x))
        if op == "reciprocal":
            return fb.op("fdiv", float_val(1.0, x.ty), x)
        if op == "sign":
            zero, one = float_val(0.0, x.ty), float_val(1.0, x.ty)
            positive = fb.select(fb.compare("fcmp ogt", x, zero), one, zero)
            minus = float_val(-1.0, x.ty)
            return fb.select(fb.compare("fcmp olt", x, zero), minus, positive)
        return mathlib.call_math(fb, op, (x,))

    def _int_unary(self, op: str, x: Val, dtype: DType) -> Val:
        fb = self.fb
        zero = bool_val(False) if dtype is DType.bool else int_val(0, x.ty)
        if op == "not":
            return fb.op("xor", x, bool_val(True) if dtype is DType.bool else int_val(-1, x.ty))
        if op in ("isnan", "isinf"):
            return bool_val(False)
        if dtype is DType.bool or (dtype is DType.u8 and op in ("abs",)):
            return x
        if op == "neg":
            return fb.op("sub", zero, x)
        if op == "abs":
            return fb.intrinsic("llvm.abs", x, extra="i1 false")
        if op == "sign":
            if dtype is DType.u8:
                return fb.convert("zext", fb.compare("icmp ne", x, zero), x.ty)
            up = fb.convert("zext", fb.compare("icmp sgt", x, zero), x.ty)
            down = fb.convert("sext", fb.compare("icmp slt", x, zero), x.ty)
            return fb.op("or", up, down)
        if op in ("floor", "ceil", "trunc", "round"):
            return x
        raise InternalError(f"no code for {op} on {dtype}")

    # --- binary ----------------------------------------------------------------------------

    def binary(self, op: str, a: Val, b: Val, dtype: DType) -> Val:
        """``a op b`` for operands of ``dtype``."""
        if dtype.is_storage_only:
            result = self.binary(
                op, self.cast(a, dtype, DType.f32), self.cast(b, dtype, DType.f32), DType.f32
            )
            return result if result.ty == "i1" else self.cast(result, DType.f32, dtype)
        if dtype.is_float:
            return self._float_binary(op, a, b, dtype)
        return self._int_binary(op, a, b, dtype)

    def _float_binary(self, op: str, a: Val, b: Val, dtype: DType) -> Val:
        fb = self.fb
        if op in ("add", "sub", "mul"):
            return fb.op(f"f{op} {self.flags}".strip(), a, b)
        if op == "div":
            return fb.op("fdiv", a, b)
        if op in _FLOAT_COMPARE:
            return fb.compare(f"fcmp {_FLOAT_COMPARE[op]}", a, b)
        if op in ("min", "max"):
            return self._float_extreme(op, a, b)
        if op == "truncdiv":
            return fb.intrinsic("llvm.trunc", fb.op("fdiv", a, b))
        return mathlib.call_math(fb, op, fb.unify(a, b))

    def _float_extreme(self, op: str, a: Val, b: Val) -> Val:
        """NaN wins; of zeros either. A comparison and a select with a literal are one instruction.

        ``a`` is what a reduction carries: whether ``b`` is a NaN can be asked without waiting.
        """
        fb = self.fb
        if b.literal and not a.literal:
            a, b = b, a
        if a.literal and a.text != float_val(math.nan, a.ty).text:
            predicate = "fcmp ogt" if op == "max" else "fcmp olt"
            return fb.select(fb.compare(predicate, a, b), a, b)
        return fb.intrinsic(f"llvm.{op}imum", b, a, flags="nsz ")

    def _int_binary(self, op: str, a: Val, b: Val, dtype: DType) -> Val:
        fb = self.fb
        signed = dtype.is_signed and dtype is not DType.bool
        if op in ("and", "or", "xor"):
            return fb.op(op, a, b)
        if op in ("eq", "ne"):
            return fb.compare(f"icmp {op}", a, b)
        if op in ("lt", "le", "gt", "ge"):
            return fb.compare(f"icmp {'s' if signed else 'u'}{op}", a, b)
        if op in ("min", "max"):
            if dtype is DType.bool:
                return fb.op("and" if op == "min" else "or", a, b)
            return fb.intrinsic(f"llvm.{'s' if signed else 'u'}{op}", a, b)
        if dtype is DType.bool:
            if op in ("add", "mul"):
                return fb.op("or" if op == "add" else "and", a, b)
            raise InternalError(f"no code for {op} on bool")
        if op in ("add", "sub", "mul"):
            return fb.op(op, a, b)
        if op in ("shl", "shr"):
            return self._shift(op, a, b, dtype)
        if op in ("div", "floordiv", "truncdiv", "mod", "rem"):
            return self._divide(op, a, b, signed)
        if op == "pow":
            return mathlib.integer_pow(fb, a, b, signed)
        raise InternalError(f"no code for {op} on {dtype}")

    def _shift(self, op: str, a: Val, b: Val, dtype: DType) -> Val:
        """A count outside the width shifts everything out."""
        fb, bits = self.fb, int_val(dtype.bits, a.ty)
        fits = fb.compare("icmp ult", b, bits)
        count = fb.select(fits, b, int_val(0, a.ty))
        if op == "shl":
            return fb.select(fits, fb.op("shl", a, count), int_val(0, a.ty))
        if not dtype.is_signed:
            return fb.select(fits, fb.op("lshr", a, count), int_val(0, a.ty))
        return fb.op("ashr", a, fb.select(fits, b, int_val(dtype.bits - 1, a.ty)))

    def _divide(self, op: str, a: Val, b: Val, signed: bool) -> Val:
        """Division by zero gives 0, and the least integer over -1 wraps: neither may trap."""
        fb = self.fb
        zero, one = int_val(0, a.ty), int_val(1, a.ty)
        is_zero = fb.compare("icmp eq", b, zero)
        if not signed:
            safe = fb.select(is_zero, one, b)
            opcode = "urem" if op in ("mod", "rem") else "udiv"
            return fb.select(is_zero, zero, fb.op(opcode, a, safe))
        is_minus = fb.compare("icmp eq", b, int_val(-1, a.ty))
        safe = fb.select(fb.op("or", is_zero, is_minus), one, b)
        rest = fb.op("srem", a, safe)
        if op == "rem":
            # With a replaced divisor the remainder is 0, as it should be.
            return rest
        signs_differ = fb.compare("icmp slt", fb.op("xor", rest, b), zero)
        adjust = fb.op("and", fb.compare("icmp ne", rest, zero), signs_differ)
        if op == "mod":
            return fb.op("add", rest, fb.select(adjust, b, zero))
        quotient = fb.op("sdiv", a, safe)
        if op != "truncdiv":
            quotient = fb.op("add", quotient, fb.convert("sext", adjust, a.ty))
        quotient = fb.select(is_minus, fb.op("sub", zero, a), quotient)
        return fb.select(is_zero, zero, quotient)

    def fma(self, a: Val, b: Val, c: Val) -> Val:
        """``a*b + c`` with one rounding."""
        return self.fb.intrinsic("llvm.fma", a, b, c)

    # --- casts -----------------------------------------------------------------------------

    def cast(self, x: Val, source: DType, target: DType) -> Val:
        """Convert; out-of-range floats saturate, NaN gives 0, integers wrap."""
        if source is target:
            return x
        if source is DType.f16:
            return self.cast(self._half_to_float(x), DType.f32, target)
        if source is DType.bf16:
            wide = self.fb.convert("zext", x, "i32")
            bits = self.fb.op("shl", wide, int_val(16, "i32"))
            return self.cast(self.fb.convert("bitcast", bits, "float"), DType.f32, target)
        if source in BYTES:
            return self.cast(self._from_byte(x, source), DType.f32, target)
        if target.is_storage_only:
            single = self.cast(x, source, DType.f32)
            if target in BYTES:
                return self._to_byte(single, BYTES[target])
            return self._float_to_half(single) if target is DType.f16 else self._to_bf16(single)
        if target is DType.bool:
            if source.is_float:
                return self.fb.compare("fcmp une", x, float_val(0.0, x.ty))
            return self.fb.compare("icmp ne", x, int_val(0, x.ty))
        if source.is_float:
            return self._from_float(x, target)
        return self._from_int(x, source, target)

    def _from_int(self, x: Val, source: DType, target: DType) -> Val:
        fb, ty = self.fb, REGISTER_TYPE[target]
        signed = source.is_signed and source is not DType.bool
        if target.is_float:
            if x.literal and source is not DType.bool:
                # Literals are written signed, whatever their type.
                value = int(x.text) if signed else int(x.text) & ((1 << source.bits) - 1)
                return constant(float(value), target)
            return fb.convert("sitofp" if signed else "uitofp", x, ty)
        if source.bits == target.bits:
            return x
        if target.bits < source.bits:
            return fb.convert("trunc", x, ty)
        return fb.convert("sext" if signed else "zext", x, ty)

    def _from_float(self, x: Val, target: DType) -> Val:
        fb, ty = self.fb, REGISTER_TYPE[target]
        if target.is_float:
            return fb.convert("fpext" if ty == "double" else "fptrunc", x, ty)
        wide = target if target in (DType.i64, DType.i32) else DType.i32
        return self._from_int(self._saturate(x, wide), wide, target)

    def _saturate(self, x: Val, target: DType) -> Val:
        """The hardware gives the least integer for all it cannot represent; mend the others."""
        fb, ty = self.fb, REGISTER_TYPE[target]
        limit = float_val(2.0 ** (target.bits - 1), x.ty)
        low = float_val(-(2.0 ** (target.bits - 1)), x.ty)
        above = fb.compare("fcmp oge", x, limit)
        below = fb.compare("fcmp olt", x, low)
        invalid = fb.op("or", above, fb.compare("fcmp ult", x, low))
        safe = fb.select(invalid, float_val(0.0, x.ty), x)
        value = fb.convert("fptosi", safe, ty)
        value = fb.select(above, int_val(int(highest(target)), ty), value)
        return fb.select(below, int_val(int(lowest(target)), ty), value)

    def _half_to_float(self, x: Val) -> Val:
        return self.fb.convert("fpext", x, "float")

    def _float_to_half(self, x: Val) -> Val:
        return self.fb.convert("fptrunc", x, "half")

    def _to_bf16(self, x: Val) -> Val:
        """Round to nearest even on the bits; a NaN keeps its upper bits and stays one."""
        fb = self.fb
        bits = fb.convert("bitcast", x, "i32")
        upper = fb.op("lshr", bits, int_val(16, "i32"))
        bias = fb.op("add", fb.op("and", upper, int_val(1, "i32")), int_val(0x7FFF, "i32"))
        rounded = fb.op("lshr", fb.op("add", bits, bias), int_val(16, "i32"))
        quiet = fb.op("or", upper, int_val(0x40, "i32"))
        is_nan = fb.compare("fcmp uno", x, float_val(0.0, "float"))
        return fb.convert("trunc", fb.select(is_nan, quiet, rounded), "i16")

    def _from_byte(self, x: Val, source: DType) -> Val:
        """Through f16, whose exponent is as long or longer: what is denormal here may be so there,
        and conversions of f16 mind no flag that says denormals are zero."""
        fb = self.fb
        wide = fb.convert("zext", x, "i16")
        if source is DType.f8e5m2:
            half = fb.op("shl", wide, int_val(8, "i16"))
            return fb.convert("fpext", fb.convert("bitcast", half, "half"), "float")
        magnitude = fb.op("and", wide, int_val(0x7F, "i16"))
        sign = fb.op("shl", fb.op("and", wide, int_val(0x80, "i16")), int_val(8, "i16"))
        half = fb.op("or", fb.op("shl", magnitude, int_val(7, "i16")), sign)
        single = fb.convert("fpext", fb.convert("bitcast", half, "half"), "float")
        scaled = fb.op("fmul", single, float_val(256.0, "float"))
        is_nan = fb.compare("icmp eq", magnitude, int_val(0x7F, "i16"))
        return fb.select(is_nan, float_val(math.nan, "float"), scaled)

    def _to_byte(self, x: Val, kind: Byte) -> Val:
        """Round to nearest even on the bits; below the least normal number by adding one whose last
        bit is worth as much as the byte's."""
        fb, cut = self.fb, 23 - kind.mantissa

        def bits_of(value: float) -> Val:
            return int_val(struct.unpack("<i", struct.pack("<f", value))[0], "i32")

        bits = fb.convert("bitcast", x, "i32")
        size = fb.op("and", bits, int_val(0x7FFFFFFF, "i32"))
        odd = fb.op("and", fb.op("lshr", size, int_val(cut, "i32")), int_val(1, "i32"))
        moved = ((kind.bias - 127) << 23) + (1 << (cut - 1)) - 1
        normal = fb.op("add", fb.op("add", size, int_val(moved, "i32")), odd)
        normal = fb.op("lshr", normal, int_val(cut, "i32"))
        magic = 2.0 ** (23 + 1 - kind.bias - kind.mantissa)
        added = fb.op("fadd", fb.convert("bitcast", size, "float"), float_val(magic, "float"))
        small = fb.op("sub", fb.convert("bitcast", added, "i32"), bits_of(magic))
        is_small = fb.compare("icmp slt", size, bits_of(2.0 ** (1 - kind.bias)))
        found = fb.select(is_small, small, normal)
        # Half a step past the largest value; there the tie goes to what is beyond it, if anything.
        step = 2.0 ** (math.frexp(kind.largest)[1] - 1 - kind.mantissa)
        edge = bits_of(kind.largest + step / 2)
        if kind.infinity is None:
            beyond, test = 0x7E, "icmp sgt"
        else:
            beyond, test = kind.infinity, "icmp sge"
        found = fb.select(fb.compare(test, size, edge), int_val(beyond, "i32"), found)
        is_nan = fb.compare("icmp sgt", size, int_val(0x7F800000, "i32"))
        found = fb.select(is_nan, int_val(0x7F, "i32"), found)
        sign = fb.op("and", fb.op("lshr", bits, int_val(24, "i32")), int_val(0x80, "i32"))
        return fb.convert("trunc", fb.op("or", found, sign), "i8")
