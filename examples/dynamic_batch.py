"""Compile once for every batch size: the batch is a symbol of the generated code.

Run: python examples/dynamic_batch.py
"""

import torch
from torch import nn

import nestor


def main() -> None:
    """One compilation, four batch sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).eval()
    batch = torch.export.Dim("batch", min=1, max=256)
    # The example's batch must not be 1: torch.export takes sizes 0 and 1 for constants.
    fast = nestor.compile(model, (torch.randn(2, 16),), dynamic_shapes=({0: batch},))

    for size in (1, 3, 17, 256):
        x = torch.randn(size, 16)
        with torch.inference_mode():
            difference = float((fast(x) - model(x)).abs().max())
        print(f"batch {size:3}: largest difference from PyTorch {difference:.2g}")
        assert difference < 1e-5
    try:
        fast(torch.randn(257, 16))
    except nestor.InputError as error:
        print(f"batch 257: {error}")


if __name__ == "__main__":
    main()
