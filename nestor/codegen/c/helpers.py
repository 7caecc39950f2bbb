"""Small C functions that give the IR's operations their exact meaning where C has no operator.

Each is printed in front of the function that calls it. ``{t}`` is the element type in C and
``{s}`` its short name; ``{u}`` is the unsigned type of the same width.
"""

from __future__ import annotations

from nestor.ir.types import DType

C_TYPES = {
    DType.f64: "double",
    DType.f32: "float",
    DType.i64: "int64_t",
    DType.i32: "int32_t",
    DType.i16: "int16_t",
    DType.i8: "int8_t",
    DType.u8: "uint8_t",
    DType.bool: "bool",
}
"""The C type of an element; f16 and bf16 have none."""

_INTEGER = {
    "floordiv": """{{
    if (b == 0) return 0;
    if (b == -1) return ({t})(0 - ({u})a);
    return ({t})(a / b - (a % b != 0 && (a < 0) != (b < 0)));
}}""",
    "mod": """{{
    if (b == 0 || b == -1) return 0;
    {t} rest = ({t})(a % b);
    return ({t})(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
}}""",
    "truncdiv": """{{
    return ({t})(b == 0 ? 0 : b == -1 ? ({t})(0 - ({u})a) : a / b);
}}""",
    "rem": """{{
    return ({t})(b == 0 || b == -1 ? 0 : a % b);
}}""",
    "min": """{{
    return a < b ? a : b;
}}""",
    "max": """{{
    return a > b ? a : b;
}}""",
    "shl": """{{
    return b < 0 || b >= {bits} ? 0 : ({t})(({u})a << b);
}}""",
    "shr": """{{
    return ({t})(b < 0 || b >= {bits} ? (a < 0 ? -1 : 0) : a >> b);
}}""",
    "pow": """{{
    if (b < 0) return ({t})(a == 1 ? 1 : a == -1 ? (b % 2 ? -1 : 1) : 0);
    {u} out = 1, square = ({u})a;
    for (; b > 0; b /= 2, square = ({u})(square * square))
        if (b % 2) out = ({u})(out * square);
    return ({t})out;
}}""",
}
"""Bodies of ``{t} NAME({t} a, {t} b)`` on integers."""

_FLOAT = {
    # NaN of either operand wins: a comparison with one is false, so b is returned.
    "min": """{{
    return a < b || a != a ? a : b;
}}""",
    "max": """{{
    return a > b || a != a ? a : b;
}}""",
    "mod": """{{
    {t} rest = fmod{f}(a, b);
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}}""",
    "floordiv": """{{
    if (b == 0) return a / b;
    {t} rest = fmod{f}(a, b);
    {t} quotient = (a - rest) / b;
    if (rest != 0 && (b < 0) != (rest < 0)) quotient -= 1;
    if (quotient == 0) return copysign{f}(0, a / b);
    {t} low = floor{f}(quotient);
    return quotient - low > ({t})0.5 ? low + 1 : low;
}}""",
}
"""Bodies on floats; ``{f}`` is the suffix of the mathematical library."""

_SATURATE = """{{
    if (!(x > {low})) return x != x ? 0 : {least};
    return x >= {high} ? {most} : ({t})x;
}}"""


def binary_helper(op: str, dtype: DType) -> tuple[str, str] | None:
    """Name and definition of the function for ``op`` on ``dtype``; None: C has an operator."""
    bodies = _FLOAT if dtype.is_float else _INTEGER
    body = bodies.get(op)
    if body is None:
        return None
    name, c = f"{op}_{dtype}", C_TYPES[dtype]
    unsigned = f"uint{max(dtype.bits, 8)}_t"
    text = body.format(t=c, u=unsigned, bits=dtype.bits, f="f" if dtype is DType.f32 else "")
    return name, f"static inline {c} {name}({c} a, {c} b) {text}"


def sign_helper(dtype: DType) -> tuple[str, str]:
    """Name and definition of the sign: -1, 0 or 1, and 0 for NaN."""
    c = C_TYPES[dtype]
    name = f"sign_{dtype}"
    return name, f"static inline {c} {name}({c} x) {{\n    return ({c})((x > 0) - (x < 0));\n}}"


def saturate_helper(source: DType, target: DType) -> tuple[str, str]:
    """Name and definition of the cast from a float to i64 or i32: truncate, saturate, NaN to 0."""
    s, c, bits = C_TYPES[source], C_TYPES[target], target.bits
    name = f"{target}_of_{source}"
    most = f"INT{bits}_MAX"
    high = f"{float(2 ** (bits - 1))!r}" + ("f" if source is DType.f32 else "")
    # The least value itself may be returned for what lies just above it: it truncates to it.
    text = _SATURATE.format(low=f"-{high}", high=high, least=f"INT{bits}_MIN", most=most, t=c)
    return name, f"static inline {c} {name}({s} x) {text}"
