"""Kernels with tiles to promote: the kernel, the nest before, and what to promote."""

from __future__ import annotations

from nestor.ir.loopnest import LoopNest
from nestor.ir.parser import parse_nest, parse_program
from nestor.ir.program import Program
from nestor.passes.promotion import promote

Case = tuple[Program, LoopNest]

LU = """\
program lu(N: 1..7) {
  inout A: f32[N, N]

  seq k { seq i { seq j {
    statement S over { 0 <= k < N, k + 1 <= i < N, k + 1 <= j < N }
      A[i, j] = A[i, j] - A[i, k] * A[k, j]
  } } }
}
"""
LU_REST = """\
      for i in 2*io .. min(2*io + 2, N) {
        for j in 2*jo .. min(2*jo + 2, N) {
          for r in 2*ko .. min(2*ko + 2, i, j) {
            point S(k=r, i=i, j=j) {
              A[i, j] = A[i, j] - A[i, r] * A[r, j]
            }
          }
        }
      }
"""
LU_NEST = f"""\
nest lu(N: 1..7) {{
  inout A: f32[N, N]

  for ko in 0 .. (N + 1)//2 {{
    for io in ko .. (N + 1)//2 {{
      for jo in ko .. (N + 1)//2 {{
        for k in 2*ko .. min(2*ko + 2, 2*io, 2*jo) {{
          unroll ii in 0 .. 2 {{
            vector jj in 0 .. 2 {{
              if N - 1 - 2*io - ii >= 0, N - 1 - 2*jo - jj >= 0 {{
                point S(k=k, i=2*io + ii, j=2*jo + jj) {{
                  A[2*io + ii, 2*jo + jj] = A[2*io + ii, 2*jo + jj]
                    - A[2*io + ii, k] * A[k, 2*jo + jj]
                }}
              }}
            }}
          }}
        }}
        if ko - io >= 0 {{
{LU_REST}
        }} else {{
          if ko - jo >= 0 {{
{LU_REST}
          }}
        }}
      }}
    }}
  }}
}}
"""

GEMM_TENSORS = """\
  inout C: f32[5, 6]
  input A: f32[5, 4]
  input B: f32[4, 6]
"""
GEMM = f"""\
program gemm {{
{GEMM_TENSORS}
  seq i {{ seq j {{ seq k {{
    statement S over {{ 0 <= i < 5, 0 <= j < 6, 0 <= k < 4 }}
      C[i, j] = C[i, j] + A[i, k] * B[k, j]
  }} }} }}
}}
"""
GEMM_NEST = f"""\
nest gemm {{
{GEMM_TENSORS}
  parallel io in 0 .. 3 {{
    for ko in 0 .. 2 {{
      parallel jo in 0 .. 2 {{
        for k in 2*ko .. 2*ko + 2 {{
          unroll ii in 0 .. 2 {{
            vector jj in 0 .. 3 {{
              if 4 - 2*io - ii >= 0 {{
                point S(i=2*io + ii, j=3*jo + jj, k=k) {{
                  C[2*io + ii, 3*jo + jj] = C[2*io + ii, 3*jo + jj]
                    + A[2*io + ii, k] * B[k, 3*jo + jj]
                }}
              }}
            }}
          }}
        }}
      }}
    }}
  }}
}}
"""

SUMS = f"""\
program sums {{
{GEMM_TENSORS}
  statement S over {{ 0 <= i < 5, 0 <= j < 6, 0 <= k < 4 }}
    reduce sum(f32) over k into
    s0 <- A[i, k] * B[k, j]
    C[i, j] = s0
}}
"""

SOLVE_TENSORS = """\
  inout x: f32[6]
  input L: f32[6, 6]
"""
SOLVE = f"""\
program solve {{
{SOLVE_TENSORS}
  seq i {{
    seq j {{
      statement S over {{ 0 <= i < 6, 0 <= j < i }}
        x[i] = x[i] - L[i, j] * x[j]
    }}
    statement D over {{ 0 <= i < 6 }}
      x[i] = x[i] / L[i, i]
  }}
}}
"""
SOLVE_NEST = f"""\
nest solve {{
{SOLVE_TENSORS}
  for i in 0 .. 6 {{
    for j in 0 .. i {{
      point S(i=i, j=j) {{
        x[i] = x[i] - L[i, j] * x[j]
      }}
    }}
    point D(i=i) {{
      x[i] = x[i] / L[i, i]
    }}
  }}
}}
"""

WAVE = """\
program wave {
  inout A: f32[3, 8]

  seq r { seq t { seq i {
    statement S over { 0 <= r < 3, 0 <= t < 3, 0 <= i < 5 }
      A[r, i + 1] = A[r, i] + A[r, i + 1] * A[r, i + 2]
  } } }
}
"""
WAVE_NEST = """\
nest wave {
  inout A: f32[3, 8]

  parallel r in 0 .. 3 {
    for t in 0 .. 3 {
      unroll i in 0 .. 5 {
        point S(r=r, t=t, i=i) {
          A[r, i + 1] = A[r, i] + A[r, i + 1] * A[r, i + 2]
        }
      }
    }
  }
}
"""


SQUARE_TENSORS = """\
  inout C: f32[N, N]
  input A: f32[N, 5]
"""
SQUARE = f"""\
program square(N: 1..7) {{
{SQUARE_TENSORS}
  seq i {{ seq j {{ seq k {{
    statement S over {{ 0 <= i < N, 0 <= j < i + 1, 0 <= k < 5 }}
      C[i, j] = C[i, j] + A[i, k] * A[j, k]
  }} }} }}
}}
"""
SQUARE_NEST = f"""\
nest square(N: 1..7) {{
{SQUARE_TENSORS}
  for ko in 0 .. 2 {{
    parallel jo in 0 .. (N + 1)//2 {{
      for io in jo .. (N + 1)//2 {{
        for k in 3*ko .. min(5, 3*ko + 3) {{
          for ii in 0 .. min(2, N - 2*io) {{
            vector jj in 0 .. 2 {{
              if 2*io + ii - 2*jo - jj >= 0 {{
                point S(i=2*io + ii, j=2*jo + jj, k=k) {{
                  C[2*io + ii, 2*jo + jj] = C[2*io + ii, 2*jo + jj]
                    + A[2*io + ii, k] * A[2*jo + jj, k]
                }}
              }}
            }}
          }}
        }}
      }}
    }}
  }}
}}
"""


def square() -> Case:
    """A tile of the product in registers, and a block of the operand turned, in a local buffer."""
    kernel = parse_program(SQUARE)
    nest = promote(parse_nest(SQUARE_NEST), kernel, "C", "k")
    return kernel, promote(nest, kernel, "A", "io", "local")


def lu() -> Case:
    """Tiles of the trailing matrix, which other parts of the matrix update."""
    kernel = parse_program(LU)
    return kernel, promote(parse_nest(LU_NEST), kernel, "A", "k")


def gemm() -> Case:
    """A tile of the product, in blocks of the reduced loop."""
    kernel = parse_program(GEMM)
    return kernel, promote(parse_nest(GEMM_NEST), kernel, "C", "k")


def sums() -> Case:
    """The same as a reduction that adds to its target."""
    kernel = parse_program(SUMS)
    text = GEMM_NEST.replace("nest gemm", "nest sums")
    start = text.index("                point S")
    end = text.index("                }\n", start)
    update = (
        "                update S(i=2*io + ii, j=3*jo + jj, k=k) with sum(f32) {\n"
        "                  C[2*io + ii, 3*jo + jj] = A[2*io + ii, k] * B[k, 3*jo + jj]\n"
    )
    return kernel, promote(parse_nest(text[:start] + update + text[end:]), kernel, "C", "k")


def solve() -> Case:
    """One element, while the others are read."""
    kernel = parse_program(SOLVE)
    return kernel, promote(parse_nest(SOLVE_NEST), kernel, "x", "j")


def wave() -> Case:
    """A row with its halo, in place."""
    kernel = parse_program(WAVE)
    return kernel, promote(parse_nest(WAVE_NEST), kernel, "A", "t", "local")


PROMOTED = {f.__name__: f for f in (lu, gemm, sums, solve, wave, square)}
