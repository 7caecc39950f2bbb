"""A symbol that occurs in a predicate or a constraint alone is still a symbol of its kernel."""

from __future__ import annotations

import pytest

from nestor.ir import parse_program, verify_program
from nestor.passes.canonical import canonicalize_kernel
from nestor.passes.fusion import FusedKernel

PREDICATE = "y[i] = (x[i] where {N - i - 1 >= 0} else 0.0:f32)"
INDEX = "y[i] = f32(index(N - i))"


@pytest.mark.parametrize(
    "domain, body",
    [("0 <= i < 5", PREDICATE), ("0 <= i < 5", INDEX), ("0 <= i < 5 : N - i >= 0", "y[i] = x[i]")],
)
def test_symbols_stay(domain: str, body: str) -> None:
    text = f"""program p(N: 1..) {{
  input x: f32[5]
  inout y: f32[5]
  statement S over {{ {domain} }}
    {body}
}}"""
    kernel, _ = canonicalize_kernel(FusedKernel(parse_program(text), {"S": ("i",)}))
    assert len(kernel.kernel.symbols) == 1
    verify_program(kernel.kernel)
