"""Promoted buffers in nests: text, rules, meaning."""

from __future__ import annotations

import numpy as np
import pytest

from nestor.errors import IRError
from nestor.ir.hashing import nest_hash
from nestor.ir.loopnest import Alloc, Loop
from nestor.ir.nest_interpreter import run_nest
from nestor.ir.nest_verifier import verify_nest
from nestor.ir.parser import parse_nest
from nestor.ir.printer import print_nest

PROMOTED = """\
nest lowrank(N: 0..9) {
  inout A: f64[5, 4]
  input X: f64[5, N]
  input Y: f64[N, 4]

  for i in 0 .. 5 {
    alloc P: f64[4] register holds A {
      vector j in 0 .. 4 {
        copy A(d0=i, d1=j) {
          P[j] = A[i, j]
        }
      }
      for k in 0 .. N {
        vector j in 0 .. 4 {
          point S(i=i, k=k, j=j) {
            P[j] = P[j] - X[i, k] * Y[k, j]
          }
        }
      }
      vector j in 0 .. 4 {
        writeback A(d0=i, d1=j) {
          A[i, j] = P[j]
        }
      }
    }
  }
}
"""


def test_text_reads_back() -> None:
    nest = parse_nest(PROMOTED)
    verify_nest(nest)
    assert print_nest(nest) == PROMOTED
    assert nest_hash(nest) != nest_hash(parse_nest(PROMOTED.replace("register", "local")))


@pytest.mark.parametrize("n", [0, 1, 6])
def test_meaning(n: int) -> None:
    rng = np.random.default_rng(n)
    a, x, y = (rng.standard_normal(s) for s in ((5, 4), (5, n), (n, 4)))
    arrays = {"A": a.copy(), "X": x, "Y": y}
    run_nest(parse_nest(PROMOTED), arrays, {"N": n})
    np.testing.assert_allclose(arrays["A"], a - x @ y)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("A[i, j] = P[j]", "A[i, j] = Y[0, j]", "reads a buffer and stores to what it holds"),
        ("register holds A", "register holds X", "what it holds"),
        ("A[i, j] = P[j]", "A[i, j] = P[j] + 1.0:f64", "stores one element of a buffer"),
        ("A[i, j] = P[j]", "P[j] = P[j]", "what it holds"),
        ("inout A", "input A", "must not be written"),
    ],
)
def test_rules(old: str, new: str, words: str) -> None:
    nest = parse_nest(PROMOTED.replace(old, new))
    with pytest.raises(IRError, match=words):
        verify_nest(nest)


def test_without_a_copy_the_buffer_is_garbage() -> None:
    nest = parse_nest(PROMOTED)
    assert isinstance(nest.body, Loop) and isinstance(nest.body.body, Alloc)
    arrays = {"A": np.ones((5, 4)), "X": np.ones((5, 1)), "Y": np.ones((1, 4))}
    start = PROMOTED.index("      vector j in 0 .. 4 {\n        copy")
    end = PROMOTED.index("      for k")
    run_nest(parse_nest(PROMOTED[:start] + PROMOTED[end:]), arrays, {"N": 1})
    assert np.isnan(arrays["A"]).all()
