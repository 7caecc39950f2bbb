"""Programs for the tests of the C printer."""

BY_HAND = """program by_hand(N: 1..) {
  input A: f64[N, N]
  input pick: i64[N]
  inout x: f64[N]
  output low: f64[N]
  output high: f64[N]
  temp w: f64[]
  temp v: f64[N]

  seq i {
    statement first over { 0 <= i < N }
      w[] = x[i]
    seq j {
      statement left over { 0 <= i < N, 0 <= j < i }
        w[] = w[] - A[i, j] * x[pick[j]]
    }
    statement last over { 0 <= i < N }
      v[i] = w[] / A[i, i]
    statement store over { 0 <= i < N }
      x[i] = v[i] + 1.0:f64
    statement two over { 0 <= i < N }
      low[i] = x[i] * 0.5:f64
      high[i] = x[i] * 2.0:f64
  }
}
"""
"""Shared loops, a scalar, a gather, two writes at once, a temporary of one cell an iteration."""
