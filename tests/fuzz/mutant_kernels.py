"""The kernels of ``mutant_cases``, as text."""

from __future__ import annotations

TAIL = """
  input x: f32[21]
  output y: f32[21]
  statement S over { 0 <= i < 21 }
    y[i] = x[i] * 2.0:f32 + 1.0:f32"""
STRIDES = """
  input x: f32[42]
  output y: f32[21]
  output z: f32[21]
  statement S over { 0 <= i < 21 }
    y[i] = x[2*i + 1] - x[i + 3]
    z[i] = x[-i + 20]"""
MATMUL = """
  input a: f32[5, 7]
  parameter b: f32[7, 19]
  input h: f32[19]
  temp c: f32[5, 19]
  output d: f32[5, 19]
  statement C over { 0 <= m < 5, 0 <= n < 19, 0 <= k < 7 }
    reduce sum(f32) over k
    s0 <- a[m, k] * b[k, n]
    c[m, n] = s0
  statement D over { 0 <= m < 5, 0 <= n < 19 }
    d[m, n] = max(c[m, n] + h[n], 0.0:f32)"""
SUM = """
  input x: f32[3, 37]
  output y: f32[3]
  statement S over { 0 <= i < 3, 0 <= k < 37 }
    reduce sum(f32) over k
    s0 <- x[i, k]
    y[i] = s0"""
MAX = """
  input x: f32[3, 37]
  output y: f32[3]
  statement S over { 0 <= i < 3, 0 <= k < 37 }
    reduce max(f32) over k
    s0 <- -abs(x[i, k]) - 1.0:f32
    y[i] = s0"""
ARGMAX = """
  input x: f32[3, 37]
  output v: f32[3]
  output p: i64[3]
  statement S over { 0 <= i < 3, 0 <= k < 37 }
    reduce argmax(f32) over k
    s0 <- x[i, k]
    s1 <- index(k)
    v[i] = s0
    p[i] = s1"""
EXTREMES = """
  input x: f32[45]
  input w: f32[45]
  output y: f32[45]
  output z: f32[45]
  output u: f32[45]
  statement S over { 0 <= i < 45 }
    y[i] = max(x[i], w[i])
    z[i] = min(x[i], w[i])
    u[i] = max(nan:f32, x[i])"""
CASTS = """
  input x: f32[45]
  output a: i8[45]
  output b: u8[45]
  output c: i32[45]
  output d: i64[45]
  output e: bool[45]
  statement S over { 0 <= i < 45 }
    a[i] = i8(x[i])
    b[i] = u8(x[i])
    c[i] = i32(x[i])
    d[i] = i64(x[i])
    e[i] = bool(x[i])"""
INTEGERS = """
  input x: i32[45]
  input w: i32[45]
  output a: i32[45]
  output b: i32[45]
  output c: i32[45]
  output d: i32[45]
  output e: i32[45]
  output f: i32[45]
  statement S over { 0 <= i < 45 }
    a[i] = floordiv(x[i], w[i])
    b[i] = mod(x[i], w[i])
    c[i] = truncdiv(x[i], w[i])
    d[i] = rem(x[i], w[i])
    e[i] = x[i] >> w[i]
    f[i] = x[i] << w[i]"""
UNSIGNED = """
  input x: u8[45]
  input w: u8[45]
  output a: u8[45]
  output b: bool[45]
  output c: f32[45]
  statement S over { 0 <= i < 45 }
    a[i] = max(x[i], w[i])
    b[i] = x[i] < w[i]
    c[i] = f32(x[i])"""
PADDED = """
  input x: f32[9]
  parameter w: f32[3]
  output y: f32[9]
  statement S over { 0 <= p < 9, 0 <= r < 3 }
    reduce sum(f32) over r
    s0 <- (x[p + r - 1] where {p + r - 1 >= 0, -p - r + 9 >= 0} else 1.0:f32) * w[r]
    y[p] = s0"""
SHIFTED = """
  input x: f32[21]
  output y: f32[21]
  statement S over { 0 <= i < 21 }
    y[i] = (x[i - 2] where {i - 2 >= 0} else 3.0:f32)"""
GATHER = """
  input t: f32[6, 5]
  input ids: i64[9]
  output y: f32[9, 5]
  statement S over { 0 <= i < 9, 0 <= j < 5 }
    y[i, j] = t[ids[i], j]"""
INDEX_ADD = """
  input x: f32[9, 5]
  input ids: i64[9]
  inout u: f32[4, 5]
  statement S over { 0 <= i < 9, 0 <= j < 5 }
    reduce sum(f32) over i into
    s0 <- x[i, j]
    u[ids[i], j] = s0"""
ROWS = """
  input x: f32[7, 13]
  output y: f32[13, 7]
  statement S over { 0 <= i < 13, 0 <= j < 7 }
    y[i, j] = x[j, i] + 1.0:f32"""
STORAGE = """
  input x: f32[45]
  input h: bf16[45]
  output a: f16[45]
  output b: bf16[45]
  output c: f32[45]
  statement S over { 0 <= i < 45 }
    a[i] = f16(x[i])
    b[i] = bf16(x[i])
    c[i] = f32(h[i]) + 1.0:f32"""
ROUNDING = """
  input x: f32[45]
  output a: f32[45]
  output b: f32[45]
  output c: f32[45]
  output d: f32[45]
  statement S over { 0 <= i < 45 }
    a[i] = round(f32(index(i)) * 0.5:f32 - 5.0:f32)
    b[i] = floor(x[i])
    c[i] = trunc(x[i])
    d[i] = sign(x[i])"""
MATH = """
  input x: f32[45]
  output a: f32[45]
  output b: f32[45]
  output c: f32[45]
  output d: f32[45]
  statement S over { 0 <= i < 45 }
    a[i] = exp(x[i])
    b[i] = tanh(x[i])
    c[i] = erf(x[i])
    d[i] = sin(x[i])"""
TRIANGLE = """
  input x: f32[11, 11]
  inout u: f32[11, 11]
  statement S over { 0 <= i < 11, 0 <= j < 11 : i - j >= 0 }
    u[i, j] = x[i, j] * 2.0:f32"""
LAYOUT = """
  input x: f32[6, 10] layout [d1//4, d0, d1%4] of [3, 6, 4]
  output y: f32[10, 6] layout [d1, d0] of [6, 10]
  statement S over { 0 <= i < 6, 0 <= j < 10 }
    y[j, i] = x[i, j] * 3.0:f32"""
SCAN = """
  input x: f32[4, 9]
  output y: f32[4, 9]
  statement S over { 0 <= i < 4, 0 <= j < 9 }
    scan sum(f32) over j
    s0 <- x[i, j]
    y[i, j] = s0"""
BLUR = """
  input x: f32[6, 10]
  temp a: f32[6, 10]
  output y: f32[6, 8]
  statement A over { 0 <= i < 6, 0 <= j < 10 }
    a[i, j] = x[i, j] * x[i, j]
  statement Y over { 0 <= i < 6, 0 <= j < 8 }
    y[i, j] = a[i, j] + (a[i, j + 1] + a[i, j + 2])"""
COLUMN = """
  input x: f32[6, 10]
  temp a: f32[6, 10]
  output y: f32[4, 10]
  statement A over { 0 <= i < 6, 0 <= j < 10 }
    a[i, j] = x[i, j] * x[i, j]
  statement Y over { 0 <= i < 4, 0 <= j < 10 }
    y[i, j] = a[i, j] + (a[i + 1, j] + a[i + 2, j])"""
AHEAD = """
  input x: f32[6]
  temp a: f32[6]
  output y: f32[6]
  statement A over { 0 <= i < 6 }
    a[i] = x[i] * x[i]
  statement Y over { 0 <= i < 6 }
    y[i] = (a[i + 1] where {-i + 4 >= 0} else 0.0:f32)"""
BEHIND = """
  input x: f32[6]
  temp a: f32[6]
  output y: f32[6]
  statement A over { 0 <= i < 6 }
    a[i] = x[i] * x[i]
  statement Y over { 0 <= i < 6 }
    y[i] = a[i] + (a[i - 1] where {i - 1 >= 0} else 0.0:f32)"""
WELFORD = """
  input x: f32[3, 21]
  output m: f32[3]
  output v: f32[3]
  statement S over { 0 <= i < 3, 0 <= k < 21 }
    reduce welford(f32) over k
    s0 <- x[i, k]
    s1 <- 0.0:f32
    s2 <- 1.0:f32
    m[i] = s0
    v[i] = s1 / s2"""
SYMBOL = """program p(N: 1..) {
  input x: f32[N, 3]
  output y: f32[3, N]
  statement S over { 0 <= i < N, 0 <= j < 3 }
    y[j, i] = x[-i + N - 1, j]
}"""
SELECT = """
  input x: f32[45]
  input b: bool[45]
  output y: f32[45]
  output z: bool[45]
  statement S over { 0 <= i < 45 }
    y[i] = select(x[i] >= 0.0:f32, 1.0:f32, 2.0:f32)
    z[i] = b[i] & isnan(x[i]) | not(b[i])"""
SEIDEL = """
  inout u: f32[9]
  seq t {
    seq i {
      statement S over { 0 <= t < 3, 1 <= i < 8 }
        u[i] = u[i - 1] + (u[i] + u[i + 1])
    }
  }"""
JACOBI = """
  inout a: f32[9]
  inout b: f32[9]
  seq t {
    statement S over { 0 <= t < 3, 1 <= i < 8 }
      b[i] = a[i - 1] + a[i + 1]
    statement R over { 0 <= t < 3, 1 <= i < 8 }
      a[i] = b[i]
  }"""
ANTI = """
  input x: f32[9]
  inout u: f32[10]
  output y: f32[9]
  statement S over { 0 <= i < 9 }
    y[i] = u[i]
  statement R over { 0 <= i < 9 }
    u[i + 1] = x[i]"""
OUTPUT = """
  input x: f32[9]
  inout u: f32[10]
  statement S over { 0 <= i < 9 }
    u[i] = x[i]
  statement R over { 0 <= i < 9 }
    u[i + 1] = -x[i]"""
COMPOSE = """
  input x: i64[3, 7]
  output p: i64[3]
  output q: i64[3]
  monoid compose noncommutative { 1:i64, 0:i64 : a0 * b0, a1 * b0 + b1 }
  statement S over { 0 <= i < 3, 0 <= k < 7 }
    reduce compose over k
    s0 <- x[i, k]
    s1 <- x[i, k] + 1:i64
    p[i] = s0
    q[i] = s1"""
CHAIN = """
  input x: f32[4, 6]
  temp a: f32[6, 4]
  temp b: f32[24]
  output y: f32[24]
  output z: f32[4, 6]
  statement A over { 0 <= i < 6, 0 <= j < 4 }
    a[i, j] = x[j, i] * 1.0:f32 + 0.0:f32
  statement B over { 0 <= k < 24 }
    b[k] = a[k//4, k%4] * 2.0:f32
  statement Y over { 0 <= k < 24 }
    y[k] = (b[k - 1] where {k - 1 >= 0} else 5.0:f32) - 1.0:f32
  statement Z over { 0 <= i < 4, 0 <= j < 6 }
    z[i, j] = select(index(i) < 9:i64, x[i, j], 0.0:f32) * 0.0:f32"""
COMPARED = """
  input x: f32[9]
  output y: f32[9]
  statement Y over { 0 <= i < 9 }
    y[i] = select(index(i) < 4:i64, x[i], 0.0:f32)"""
SCALED = """
  input x: f32[5, 6]
  parameter w: f32[4, 6]
  parameter g: f32[4]
  parameter b: f32[4]
  temp c: f32[5, 4]
  output y: f32[5, 4]
  statement C over { 0 <= m < 5, 0 <= n < 4, 0 <= k < 6 }
    reduce sum(f32) over k
    s0 <- x[m, k] * w[n, k]
    c[m, n] = s0
  statement Y over { 0 <= m < 5, 0 <= n < 4 }
    y[m, n] = b[n] - c[m, n] * g[n]"""
MERGED = """
  input x: f32[4, 6]
  output y: f32[24]
  statement Y over { 0 <= k < 24 }
    y[k] = x[k//6, k%6] * 2.0:f32"""
TWINS = """
  input x: f32[5]
  temp a: f32[5]
  temp b: f32[5]
  output y: f32[5]
  statement A over { 0 <= i < 5 }
    a[i] = exp(x[i])
  statement B over { 0 <= i < 5 }
    b[i] = exp(x[-i + 4])
  statement Y over { 0 <= i < 5 }
    y[i] = a[i] - b[i]"""
