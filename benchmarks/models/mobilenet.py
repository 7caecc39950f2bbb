"""MobileNetV3-Large, after table 1 of "Searching for MobileNetV3" (Howard et al., 2019)."""

from __future__ import annotations

from torch import Tensor, nn

# Kernel, width inside, width after, squeeze-and-excitation, hard swish, stride.
_BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)


def _unit(
    before: int, after: int, kernel: int, stride: int, groups: int, act: nn.Module
) -> nn.Sequential:
    """A convolution that keeps the size over the stride, a batch norm, an activation."""
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after, eps=1e-3), act)


class _Excitation(nn.Module):
    """Scale channels by what their means say; a quarter as wide inside, a multiple of eight."""

    def __init__(self, width: int):
        super().__init__()
        inside = max(8, 8 * ((width // 4 + 4) // 8))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, inside, 1),
            nn.ReLU(),
            nn.Conv2d(inside, width, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with scaled channels, shape (B, C, H, W)."""
        scaled: Tensor = x * self.gate(x)
        return scaled


class _Block(nn.Module):
    """Widen, filter each channel, perhaps excite, narrow; and add the input where it fits."""

    def __init__(
        self, before: int, kernel: int, inside: int, after: int, excite: bool, swish: bool,
        stride: int,
    ):  # fmt: skip
        super().__init__()
        act: type[nn.Module] = nn.Hardswish if swish else nn.ReLU
        parts: list[nn.Module] = []
        if inside != before:
            parts.append(_unit(before, inside, 1, 1, 1, act()))
        parts.append(_unit(inside, inside, kernel, stride, inside, act()))
        if excite:
            parts.append(_Excitation(inside))
        parts.append(_unit(inside, after, 1, 1, 1, nn.Identity()))
        self.body = nn.Sequential(*parts)
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, H, W) to (B, after, H / stride, W / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class MobileNetV3Large(nn.Module):
    """The network at width 1.0.

    Args: classes: how many logits it gives.
    """

    def __init__(self, classes: int):
        super().__init__()
        parts: list[nn.Module] = [_unit(3, 16, 3, 2, 1, nn.Hardswish())]
        before = 16
        for kernel, inside, after, excite, swish, stride in _BLOCKS:
            parts.append(_Block(before, kernel, inside, after, excite, swish, stride))
            before = after
        parts.append(_unit(before, 960, 1, 1, 1, nn.Hardswish()))
        self.features = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(960, 1280), nn.Hardswish(), nn.Linear(1280, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
