"""LoopNests as text, for the tests of the IR."""

from __future__ import annotations

TILED_MATMUL = """\
nest matmul(M: 1..64) {
  input A: f32[M, 6]
  parameter B: f32[6, 8]
  output C: f32[M, 8]

  parallel io in 0 .. (M + 3)//4 {
    alloc acc: f32[4, 8] register holds `C0#0` {
      unroll ii in 0 .. 4 {
        vector j in 0 .. 8 {
          init C0(i=4*io + ii, j=j) {
            acc[ii, j] = 0.0:f32
          }
        }
      }
      for k in 0 .. 6 {
        unroll ii in 0 .. 4 {
          vector j in 0 .. 8 {
            if M - 4*io - ii - 1 >= 0 {
              update C0(i=4*io + ii, j=j, k=k) with sum(f32) {
                acc[ii, j] = A[4*io + ii, k] * B[k, j]
              }
            }
          }
        }
      }
      for ii in 0 .. min(4, M - 4*io) {
        vector j in 0 .. 8 {
          final C0(i=4*io + ii, j=j) {
            C[4*io + ii, j] = acc[ii, j]
          }
        }
      }
    }
  }
}
"""

SPLIT_SUM = """\
nest split_sum {
  input X: f32[3, 10]
  output Y: f32[3]

  for i in 0 .. 3 {
    alloc acc: f32[] register holds `S#0`, part: f32[4] register holds `S#0` {
      init S(i=i) {
        acc[] = 0.0:f32
      }
      vector l in 0 .. 4 {
        init S(i=i) {
          part[l] = 0.0:f32
        }
      }
      for ko in 0 .. 3 {
        vector l in 0 .. 4 {
          if 9 - 4*ko - l >= 0 {
            update S(i=i, k=4*ko + l) with sum(f32) {
              part[l] = X[i, 4*ko + l]
            }
          }
        }
      }
      vector l in 0 .. 4 {
        merge S(i=i) with sum(f32) {
          acc[] = part[l]
        }
      }
      final S(i=i) {
        Y[i] = acc[]
      }
    }
  }
}
"""

EVERYTHING = """\
nest `odd name`(N: 1..) {
  input X: f16[N, 4] layout [d1//2, d0, d1%2] of [2, N, 2]
  state `a b`: f32[N]
  temp V: f32[4, N] alias W
  temp W: f32[4*N]

  monoid compose noncommutative { 1.0:f32, 0.0:f32 : a0 * b0, b0 * a1 + b1 }
  monoid sum.2 named sum { 0:i64 : a0 + b0 + 1:i64 }
  block {
    for S.i in max(0, N - 8) .. min(N, 64, 2*N + 1) {
      if N - S.i - 1 >= 0, S.i - 3 >= 0 {
        point S(i=S.i) {
          `a b`[S.i] = f32(X[S.i, (S.i + 3)%4]) * -0.0:f32
          W[4*(S.i//2)] = select(true, nan:f32, -inf:f32)
        }
      } else {
      }
    }
  }
  grid g in 0 .. 2 {
    alloc c: i64[3] shared holds `T#0`, d: f32[N, 2] arena holds W, e: f32[2] local holds `U#1` {
      init T(i=g) {
        c[0] = 0:i64
      }
      copy W(d0=g) {
        d[0, 1] = (W[g] where {g - 1 >= 0} else W[2*N]:f64)
      }
      update T(i=g) with sum.2 {
        c[0] = index(g//2 + g%3)
      }
      update U() with compose {
        e[0] = 1.0:f32
        e[1] = random_uniform(1:i64, index(N), c[0]):f32
      }
    }
  }
}
"""
