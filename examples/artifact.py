"""Save a compiled model to one file, and run it in a process that never imports PyTorch.

Run: python examples/artifact.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nestor

RUN = """
import sys
import numpy as np
import nestor

model = nestor.load(sys.argv[1])
np.save(sys.argv[3], model(np.load(sys.argv[2])))
assert "torch" not in sys.modules
"""


def main() -> None:
    """Compile and save here, load and run in another process, compare."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    x = torch.randn(2, 3, 32, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nestor.compile(model, (x,), strict=True).save(folder / "net.nst")
        np.save(folder / "x.npy", x.numpy())
        files = [str(folder / f) for f in ("net.nst", "x.npy", "y.npy")]
        subprocess.run([sys.executable, "-c", RUN, *files], check=True)
        got = np.load(folder / "y.npy")
        size = (folder / "net.nst").stat().st_size
    with torch.inference_mode():
        difference = float(np.abs(got - model(x).numpy()).max())
    print(f"artifact: {size / 1024:.0f} KiB; largest difference from PyTorch: {difference:.2g}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
