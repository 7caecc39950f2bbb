"""Compile a small network, compare with PyTorch, and read the report.

Run: python examples/compile_mlp.py
"""

import torch
from torch import nn

import nestor


def main() -> None:
    """Compile, call, compare."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10), nn.Softmax(-1)).eval()
    x = torch.randn(32, 64)

    fast = nestor.compile(model, (x,))
    with torch.inference_mode():
        expected = model(x)
    difference = float((fast(x) - expected).abs().max())

    print(fast.report())
    print(f"\nlargest difference from PyTorch: {difference:.2g}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
