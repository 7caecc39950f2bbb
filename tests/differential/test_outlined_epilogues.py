"""Elementary functions behind register tiles: loops of their own, in functions of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nestor
from nestor.codegen.llvm import emit_kernel
from nestor.ir.parser import parse_nest
from nestor.target.cpu import parse_target

ACTIVATIONS = {
    "gelu": nn.GELU(),
    "tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
}


class Gated(nn.Module):
    """Two products, of which one's function scales the other."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(96, 200)
        self.up = nn.Linear(96, 200)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(self.gate(x)) * self.up(x) + torch.erf(self.up(x))


def _check(model: nn.Module, x: torch.Tensor, **options: object) -> None:
    with torch.no_grad():
        found = nestor.compile(model.eval(), (x,), **options)(x)  # type: ignore[arg-type]
        exact = model.double()(x.double())
        model.float()
    scale = float(exact.abs().max()) + 1e-30
    assert float((found.double() - exact).abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("target", ["avx2", "native"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_after_a_product(name: str, target: str) -> None:
    torch.manual_seed(0)
    for rows, columns in ((129, 200), (31, 17)):
        model = nn.Sequential(nn.Linear(70, columns), ACTIVATIONS[name])
        _check(model, torch.randn(rows, 70), target=target, threads=2)


@pytest.mark.parametrize("target", ["avx2", "native"])
def test_after_a_convolution(target: str) -> None:
    torch.manual_seed(0)
    for inner in (nn.Conv2d(20, 37, 3, stride=2, padding=1), nn.Conv2d(24, 48, 1)):
        model = nn.Sequential(inner, nn.BatchNorm2d(inner.out_channels), nn.SiLU())
        _check(model, torch.randn(2, inner.in_channels, 19, 23), target=target, threads=2)


def test_several_statements() -> None:
    torch.manual_seed(0)
    _check(Gated(), torch.randn(150, 96), threads=2)


def test_not_finite_values_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.GELU()).eval()
    x = torch.randn(64, 64)
    x[3], x[7] = float("nan"), float("inf")
    with torch.no_grad():
        found, wanted = nestor.compile(model, (x,), threads=2)(x), model(x)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.isinf(), wanted.isinf())


NEST = """
nest kernel {{
  input a: f32[64, 64]
  input b: f32[64, 64]
  output c: f32[64, 64]

  parallel S.i.o in 0 .. 8 {{
    alloc t: f32[8, 64] {scope} holds t {{
      alloc acc: f32[8, 2, 16] register holds S#0 {{
        unroll S.i in 0 .. 8 {{
          unroll S.v in 0 .. 2 {{
            vector S.j in 0 .. 16 {{
              init S(i=S.i + 8*S.i.o, j=S.j + 16*S.v) {{
                acc[S.i, S.v, S.j] = 0.0:f32
              }}
            }}
          }}
        }}
        for S.k in 0 .. 64 {{
          unroll S.i in 0 .. 8 {{
            unroll S.v in 0 .. 2 {{
              vector S.j in 0 .. 16 {{
                update S(i=S.i + 8*S.i.o, j=S.j + 16*S.v, k=S.k) with sum(f32) {{
                  acc[S.i, S.v, S.j] = a[S.i + 8*S.i.o, S.k] * b[S.k, S.j + 16*S.v]
                }}
              }}
            }}
          }}
        }}
        unroll S.i in 0 .. 8 {{
          unroll S.v in 0 .. 2 {{
            vector S.j in 0 .. 16 {{
              final S(i=S.i + 8*S.i.o, j=S.j + 16*S.v) {{
                t[S.i, S.j + 16*S.v] = acc[S.i, S.v, S.j]
              }}
            }}
          }}
        }}
      }}
      for T.i in 0 .. 8 {{
        for T.v in 0 .. 2 {{
          vector T.j in 0 .. 16 {{
            point T(i=T.i + 8*S.i.o, j=T.j + 16*T.v) {{
              c[T.i + 8*S.i.o, T.j + 16*T.v] = {function}(t[T.i, T.j + 16*T.v])
            }}
          }}
        }}
      }}
    }}
  }}
}}
"""


@pytest.mark.parametrize(
    ("function", "scope", "is_apart"),
    [("erf", "local", True), ("neg", "local", False), ("erf", "register", False)],
)
def test_which_loops_are_functions(function: str, scope: str, is_apart: bool) -> None:
    nest = parse_nest(NEST.format(function=function, scope=scope))
    text = emit_kernel(nest, parse_target("avx512"), function_name="kernel")
    assert ("call void @kernel.part" in text) is is_apart
