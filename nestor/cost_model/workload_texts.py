"""Programs of the common families of operators with drawn sizes, as the IR's text.

A family is a function from a ``Draw`` to a text. Sizes are those of transformers and convolutional
networks, now and then an odd one, so that tails occur.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
WIDTHS = (64, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
CHANNELS = (3, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
ROWS = (1, 8, 16, 32, 50, 64, 77, 100, 128, 196, 197, 256, 384, 512, 1024)
IMAGES = (7, 8, 14, 16, 19, 28, 32, 35, 56, 64, 80, 112, 128, 160, 224)


class Draw:
    """Draws sizes; equal seeds give equal texts."""

    def __init__(self, seed: str):
        self.random = random.Random(seed)

    def one(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return self.random.choice(options)

    def size(self, options: Sequence[int], odd: float = 0.2) -> int:
        """One of ``options``, or with probability ``odd`` a number near it."""
        value = self.one(options)
        if value > 4 and self.random.random() < odd:
            value = max(2, value + self.random.randint(-value // 4, value // 4))
        return value

    def chance(self, share: float) -> bool:
        """True in ``share`` of the cases."""
        return self.random.random() < share


def _program(tensors: Sequence[str], statements: Sequence[str]) -> str:
    lines = [f"  {t}" for t in tensors]
    for s in statements:
        head, *rest = (line.strip() for line in s.strip().splitlines())
        lines += [f"  statement {head}", *(f"    {line}" for line in rest)]
    return "\n".join(["program workload {", *lines, "}"])


def _over(**extents: int) -> str:
    return "over { " + ", ".join(f"0 <= {n} < {e}" for n, e in extents.items()) + " }"


def _same(x: str) -> str:
    return x


def _exp(x: str) -> str:
    return f"exp({x})"


def _tanh(x: str) -> str:
    return f"tanh({x})"


def _relu(x: str) -> str:
    return f"max({x}, 0.0:f32)"


def _gelu(x: str) -> str:
    return f"{x} * 0.5:f32 * (erf({x} * 0.70710678:f32) + 1.0:f32)"


def _silu(x: str) -> str:
    return f"{x} * sigmoid({x})"


def _epilogue(d: Draw, channel: str, extent: int) -> tuple[list[str], str]:
    """Extra tensors and the final map of a product's sum ``s0``."""
    tensors: list[str] = []
    value = "s0"
    if d.chance(0.5):
        tensors, value = [f"parameter bias: f32[{extent}]"], f"(s0 + bias[{channel}])"
    activation = d.one((_same, _same, _relu, _relu, _gelu, _silu))
    return tensors, activation(value)


def _product(
    d: Draw, m: int, n: int, k: int, batch: tuple[tuple[str, int], ...] = (), weight: bool = True
) -> str:
    """A product of matrices in any of the four orders of storage."""
    names = [name for name, _ in batch]
    sizes = [size for _, size in batch]

    def stored(swap: bool, i: tuple[str, int], j: tuple[str, int]) -> tuple[str, str]:
        a, b = (j, i) if swap else (i, j)
        shape = ", ".join(map(str, [*sizes, a[1], b[1]]))
        return shape, ", ".join([*names, a[0], b[0]])

    a_shape, a_at = stored(d.chance(0.2), ("i", m), ("k", k))
    b_shape, b_at = stored(d.chance(0.6), ("k", k), ("j", n))
    extra, value = _epilogue(d, "j", n) if weight else ([], d.one(("s0", "s0 * 0.125:f32")))
    role = "parameter" if weight else "input"
    domain = _over(**dict(batch), i=m, j=n, k=k)
    out = ", ".join([*names, "i", "j"])
    return _program(
        [
            f"input A: f32[{a_shape}]",
            f"{role} B: f32[{b_shape}]",
            *extra,
            f"output C: f32[{', '.join(map(str, [*sizes, m, n]))}]",
        ],
        [
            f"""S {domain}
            reduce sum(f32) over k
            s0 <- A[{a_at}] * B[{b_at}]
            C[{out}] = {value}"""
        ],
    )


def matmul(d: Draw) -> str:
    """A dense layer, or a product of two activations."""
    return _product(d, d.size(ROWS), d.size(WIDTHS), d.size(WIDTHS), weight=d.chance(0.7))


def batched_matmul(d: Draw) -> str:
    """Heads of attention: scores, or their weighted sums."""
    heads, head, rows = d.one((4, 6, 8, 12, 16)), d.one((32, 64, 80, 128)), d.size(ROWS)
    n, k = (rows, head) if d.chance(0.5) else (head, rows)
    return _product(d, rows, n, k, (("b", heads),), weight=False)


def matvec(d: Draw) -> str:
    """One token, or a few, through a dense layer."""
    return _product(d, d.one((1, 1, 1, 2, 4)), d.size(WIDTHS), d.size(WIDTHS))


def skinny_matmul(d: Draw) -> str:
    """One side much smaller than the others."""
    small, large = d.size((2, 4, 8, 10, 16, 24, 32)), d.size((2048, 4096, 8192, 16384))
    m, n, k = d.one(
        ((large, small, d.size(WIDTHS[:6])), (small, large, d.size(WIDTHS[:6])), (64, small, large))
    )
    return _product(d, m, n, k)


def _convolution(
    d: Draw,
    rank: int,
    channels: tuple[int, int],
    image: int,
    taps: int,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> str:
    """A convolution of ``rank`` spatial dimensions, padded to keep the image's size."""
    into, out = channels
    into, out = max(1, into // groups) * groups, max(1, out // groups) * groups
    per_in, per_out = into // groups, out // groups
    batch = d.one((1, 1, 1, 2, 4))
    reach = dilation * (taps - 1)
    border = reach // 2
    size = max(1, (image + 2 * border - reach - 1) // stride + 1)
    space, windows = "yxz"[:rank], "rst"[:rank]
    at = [f"{stride}*{p} + {dilation}*{t} - {border}" for p, t in zip(space, windows)]
    tests = [t for a in at for t in (f"{a} >= 0", f"{image - 1} - ({a}) >= 0")]
    channel = f"{per_in}*g + c" if groups > 1 else "c"
    load = f"X[{', '.join(['n', channel, *at])}]"
    if border:
        load = f"({load} where {{{', '.join(tests)}}} else 0.0:f32)"
    o = f"{per_out}*g + o" if groups > 1 else "o"
    extents = {"n": batch, **({"g": groups} if groups > 1 else {}), "o": per_out}
    extents |= dict.fromkeys(space, size) | {"c": per_in} | dict.fromkeys(windows, taps)
    extra, value = _epilogue(d, o, out)
    shape = ", ".join([str(image)] * rank)
    kernel = ", ".join([str(taps)] * rank)
    return _program(
        [
            f"input X: f32[{batch}, {into}, {shape}]",
            f"parameter W: f32[{out}, {per_in}, {kernel}]",
            *extra,
            f"output Y: f32[{batch}, {out}, {', '.join([str(size)] * rank)}]",
        ],
        [
            f"""S {_over(**extents)}
            reduce sum(f32) over {", ".join(["c", *windows])}
            s0 <- {load} * W[{", ".join([o, "c", *windows])}]
            Y[{", ".join(["n", o, *space])}] = {value}"""
        ],
    )


def conv2d(d: Draw) -> str:
    """Dense, strided or dilated windows."""
    stride = d.one((1, 1, 2))
    dilation = d.one((1, 1, 1, 2)) if stride == 1 else 1
    channels = (d.size(CHANNELS), d.size(CHANNELS[1:]))
    return _convolution(d, 2, channels, d.size(IMAGES), d.one((3, 3, 3, 5, 7)), stride, dilation)


def conv1x1(d: Draw) -> str:
    """Products of channels at each point."""
    channels = (d.size(CHANNELS[1:]), d.size(CHANNELS[1:]))
    return _convolution(d, 2, channels, d.size(IMAGES), 1, d.one((1, 1, 1, 2)))


def conv_grouped(d: Draw) -> str:
    """Windows over groups of channels."""
    groups = d.one((2, 4, 8, 32))
    width = d.one((128, 256, 512))
    return _convolution(d, 2, (width, width), d.size(IMAGES), 3, d.one((1, 1, 2)), groups=groups)


def conv1d(d: Draw) -> str:
    """Audio and sequences."""
    length = d.size((64, 128, 256, 500, 1000, 1500, 3000))
    channels = (d.size((1, 16, 64, 80, 128, 256, 384)), d.size(CHANNELS[3:]))
    return _convolution(d, 1, channels, length, d.one((3, 3, 5, 7, 15)), d.one((1, 1, 2)))


def conv3d(d: Draw) -> str:
    """Video and volumes."""
    channels = (d.size(CHANNELS[:8]), d.size(CHANNELS[1:9]))
    return _convolution(d, 3, channels, d.size((7, 8, 14, 16, 28)), 3, d.one((1, 1, 2)))


def conv_depthwise(d: Draw) -> str:
    """A window for each channel of its own."""
    channels, image, taps = d.size(CHANNELS[3:]), d.size(IMAGES), d.one((3, 3, 5, 7))
    stride = d.one((1, 1, 2))
    border = taps // 2
    size = (image + 2 * border - taps) // stride + 1
    y, x = f"{stride}*y + r - {border}", f"{stride}*x + s - {border}"
    last = image - 1
    tests = f"{y} >= 0, {last} - ({y}) >= 0, {x} >= 0, {last} - ({x}) >= 0"
    extra, value = _epilogue(d, "c", channels)
    return _program(
        [
            f"input X: f32[1, {channels}, {image}, {image}]",
            f"parameter W: f32[{channels}, {taps}, {taps}]",
            *extra,
            f"output Y: f32[1, {channels}, {size}, {size}]",
        ],
        [
            f"""S {_over(n=1, c=channels, y=size, x=size, r=taps, s=taps)}
            reduce sum(f32) over r, s
            s0 <- (X[n, c, {y}, {x}] where {{{tests}}} else 0.0:f32) * W[c, r, s]
            Y[n, c, y, x] = {value}"""
        ],
    )


def conv_transposed(d: Draw) -> str:
    """Upsampling by windows that overlap in the result, stride 2."""
    into, out, image = d.size(CHANNELS[1:12]), d.size(CHANNELS[:12]), d.size(IMAGES[:8])
    taps = d.one((2, 3, 4))
    size = 2 * image
    y, x = "(y + 1 - r)//2", "(x + 1 - s)//2"
    tests = ", ".join(
        f"{a} >= 0"
        for i, at in ((y, "y + 1 - r"), (x, "x + 1 - s"))
        for a in (f"0 - ({at})%2", at, f"{image - 1} - {i}")
    )
    return _program(
        [
            f"input X: f32[1, {into}, {image}, {image}]",
            f"parameter W: f32[{into}, {out}, {taps}, {taps}]",
            f"output Y: f32[1, {out}, {size}, {size}]",
        ],
        [
            f"""S {_over(n=1, o=out, y=size, x=size, c=into, r=taps, s=taps)}
            reduce sum(f32) over c, r, s
            s0 <- (X[n, c, {y}, {x}] where {{{tests}}} else 0.0:f32) * W[c, o, r, s]
            Y[n, o, y, x] = s0"""
        ],
    )


def reduction(d: Draw) -> str:
    """Sums, maxima, squares over rows, columns or the middle."""
    a, b, c = d.size((1, 4, 16, 64, 256)), d.size(WIDTHS), d.size((1, 16, 64, 256, 1024))
    op = d.one(("sum", "sum", "max", "min"))
    element = d.one(("X[i, j, k]", "X[i, j, k] * X[i, j, k]")) if op == "sum" else "X[i, j, k]"
    reduced = d.one((("j",), ("k",), ("i", "j"), ("j", "k"), ("i", "k")))
    extents = {"i": a, "j": b, "k": c}
    kept = [n for n in extents if n not in reduced]
    return _program(
        [
            f"input X: f32[{a}, {b}, {c}]",
            f"output Y: f32[{', '.join(str(extents[n]) for n in kept)}]",
        ],
        [
            f"""S {_over(**extents)}
            reduce {op}(f32) over {", ".join(reduced)}
            s0 <- {element}
            Y[{", ".join(kept)}] = {d.one(("s0", "s0 * 0.0078125:f32"))}"""
        ],
    )


def softmax(d: Draw) -> str:
    """Along rows, perhaps scaled before."""
    rows, width = d.size((64, 256, 1024, 2048, 4096)), d.size((32, 77, 128, 197, 512, 1024, 4096))
    x = d.one(("X[i, j]", "X[i, j] * 0.125:f32"))
    domain = _over(i=rows, j=width)
    return _program(
        [
            f"input X: f32[{rows}, {width}]",
            f"temp m: f32[{rows}]",
            f"temp t: f32[{rows}]",
            f"output Y: f32[{rows}, {width}]",
        ],
        [
            f"""M {domain}
            reduce max(f32) over j
            s0 <- {x}
            m[i] = s0""",
            f"""T {domain}
            reduce sum(f32) over j
            s0 <- exp({x} - m[i])
            t[i] = s0""",
            f"""Y {domain}
            Y[i, j] = exp({x} - m[i]) / t[i]""",
        ],
    )


def normalisation(d: Draw) -> str:
    """Layer or root-mean-square normalisation, perhaps of a sum."""
    rows, width = d.size((16, 64, 128, 512, 1024, 2048)), d.size(WIDTHS)
    domain, scale = _over(i=rows, j=width), f"{1.0 / width:.9f}:f32"
    is_rms, is_residual = d.chance(0.4), d.chance(0.4)
    x = "(X[i, j] + R[i, j])" if is_residual else "X[i, j]"
    centred = x if is_rms else f"({x} - m[i])"
    mean = f"""M {domain}
            reduce sum(f32) over j
            s0 <- {x}
            m[i] = s0 * {scale}"""
    bias = "" if is_rms else " + b[j]"
    return _program(
        [
            f"input X: f32[{rows}, {width}]",
            *([f"input R: f32[{rows}, {width}]"] if is_residual else []),
            f"parameter w: f32[{width}]",
            *([] if is_rms else [f"parameter b: f32[{width}]", f"temp m: f32[{rows}]"]),
            f"temp v: f32[{rows}]",
            f"output Y: f32[{rows}, {width}]",
        ],
        [
            *([] if is_rms else [mean]),
            f"""V {domain}
            reduce sum(f32) over j
            s0 <- {centred} * {centred}
            v[i] = rsqrt(s0 * {scale} + 0.00001:f32)""",
            f"""Y {domain}
            Y[i, j] = {centred} * v[i] * w[j]{bias}""",
        ],
    )


def pointwise(d: Draw) -> str:
    """Activations, sums and products, operands broadcast along rows or columns."""
    a, b, c = d.size((1, 2, 8, 64)), d.size(WIDTHS), d.size((16, 49, 64, 196, 784, 1024))
    other = d.one(("i, j, k", "j", "k", "i, j"))
    extents = {"i": a, "j": b, "k": c}
    shape = ", ".join(str(extents[n]) for n in other.split(", "))
    base = d.one(("X[i, j, k]", f"(X[i, j, k] + Z[{other}])", f"(X[i, j, k] * Z[{other}])"))
    value = d.one((_relu, _gelu, _silu, _same, _exp, _tanh))(base)
    is_used = "Z[" in base
    return _program(
        [
            f"input X: f32[{a}, {b}, {c}]",
            *([f"input Z: f32[{shape}]"] if is_used else []),
            f"output Y: f32[{a}, {b}, {c}]",
        ],
        [
            f"""S {_over(**extents)}
            Y[i, j, k] = {value}"""
        ],
    )


def transpose(d: Draw) -> str:
    """Permuted copies of two to four dimensions."""
    rank = d.one((2, 3, 4))
    options = {2: WIDTHS, 3: (8, 12, 64, 128, 197, 256), 4: (4, 8, 12, 28, 32, 64)}[rank]
    extents = {f"i{p}": d.size(options) for p in range(rank)}
    names = list(extents)
    order = names[:]
    while order == names:
        d.random.shuffle(order)
    return _program(
        [
            f"input X: f32[{', '.join(str(extents[n]) for n in names)}]",
            f"output Y: f32[{', '.join(str(extents[n]) for n in order)}]",
        ],
        [
            f"""S {_over(**{n: extents[n] for n in order})}
            Y[{", ".join(order)}] = X[{", ".join(names)}]"""
        ],
    )


def pooling(d: Draw) -> str:
    """Greatest or mean values of windows."""
    channels, image = d.size(CHANNELS[1:]), d.size(IMAGES[4:])
    taps, stride = d.one(((2, 2), (3, 2), (3, 1)))
    size = (image - taps) // stride + 1
    op = d.one(("max", "sum"))
    value = "s0" if op == "max" else f"s0 * {1.0 / taps**2:.9f}:f32"
    domain = _over(c=channels, y=size, x=size, r=taps, s=taps)
    return _program(
        [
            f"input X: f32[{channels}, {image}, {image}]",
            f"output Y: f32[{channels}, {size}, {size}]",
        ],
        [
            f"""S {domain}
            reduce {op}(f32) over r, s
            s0 <- X[c, {stride}*y + r, {stride}*x + s]
            Y[c, y, x] = {value}"""
        ],
    )


def stencil(d: Draw) -> str:
    """One sweep over a grid."""
    rank = d.one((2, 2, 3))
    n = d.size((128, 256, 512, 1024) if rank == 2 else (32, 48, 64, 96, 128))
    names = "ijk"[:rank]
    corners = d.chance(0.3) and rank == 2
    offsets = [(0,) * rank] + [
        tuple(s if p == q else 0 for q in range(rank)) for p in range(rank) for s in (-1, 1)
    ]
    if corners:
        offsets += [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    loads = [f"A[{', '.join(f'{x} + {o + 1}' for x, o in zip(names, off))}]" for off in offsets]
    value = f"({' + '.join(loads)}) * {1.0 / len(loads):.9f}:f32"
    return _program(
        [
            f"input A: f32[{', '.join([str(n)] * rank)}]",
            f"output B: f32[{', '.join([str(n - 2)] * rank)}]",
        ],
        [
            f"""S {_over(**dict.fromkeys(names, n - 2))}
            B[{", ".join(names)}] = {value}"""
        ],
    )


def attention(d: Draw) -> str:
    """Scores, their softmax, and the weighted sums of values."""
    heads, head = d.one((4, 8, 12, 16)), d.one((32, 64, 80, 128))
    rows, keys = d.size(ROWS), d.size(ROWS[4:])
    shape, pairs = f"f32[{heads}, {rows}", _over(h=heads, q=rows, k=keys)
    return _program(
        [
            f"input Q: {shape}, {head}]",
            f"input K: f32[{heads}, {keys}, {head}]",
            f"input V: f32[{heads}, {keys}, {head}]",
            f"temp s: {shape}, {keys}]",
            f"temp m: {shape}]",
            f"temp t: {shape}]",
            f"temp p: {shape}, {keys}]",
            f"output O: {shape}, {head}]",
        ],
        [
            f"""S {_over(h=heads, q=rows, k=keys, d=head)}
            reduce sum(f32) over d
            s0 <- Q[h, q, d] * K[h, k, d]
            s[h, q, k] = s0 * {head**-0.5:.9f}:f32""",
            f"""M {pairs}
            reduce max(f32) over k
            s0 <- s[h, q, k]
            m[h, q] = s0""",
            f"""T {pairs}
            reduce sum(f32) over k
            s0 <- exp(s[h, q, k] - m[h, q])
            t[h, q] = s0""",
            f"""P {pairs}
            p[h, q, k] = exp(s[h, q, k] - m[h, q]) / t[h, q]""",
            f"""O {_over(h=heads, q=rows, d=head, k=keys)}
            reduce sum(f32) over k
            s0 <- p[h, q, k] * V[h, k, d]
            O[h, q, d] = s0""",
        ],
    )


def gather(d: Draw) -> str:
    """Rows of a table by number."""
    rows, table = d.size((16, 64, 256, 1024, 4096)), d.size((1000, 5000, 20000))
    width = d.size(WIDTHS[:10])
    return _program(
        [
            f"input I: i64[{rows}]",
            f"parameter E: f32[{table}, {width}]",
            f"output Y: f32[{rows}, {width}]",
        ],
        [
            f"""S {_over(i=rows, j=width)}
            Y[i, j] = E[I[i], j]"""
        ],
    )


FAMILIES: dict[str, Callable[[Draw], str]] = {
    f.__name__: f
    for f in (
        matmul, batched_matmul, matvec, skinny_matmul, conv2d, conv1x1, conv_grouped,
        conv_depthwise, conv_transposed, conv1d, conv3d, reduction, softmax, normalisation,
        pointwise, transpose, pooling, stencil, attention, gather,
    )
}  # fmt: skip
"""Family name → function that draws a Program's text."""
