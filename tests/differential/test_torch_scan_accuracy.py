"""Long running sums: the error does not grow with the length beyond the output's rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import nestor


@pytest.mark.parametrize("axis", [0, 1])
def test_long_running_sums_are_off_by_a_rounding(axis: int) -> None:
    x = torch.rand((5000, 6) if axis == 0 else (6, 5000), generator=torch.manual_seed(1))

    class Running(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(x, axis)

    got = nestor.compile(Running(), x)(x).numpy()
    exact = np.cumsum(x.double().numpy(), axis)
    assert (np.abs(got - exact) <= 0.51 * np.spacing(np.abs(got))).all()
