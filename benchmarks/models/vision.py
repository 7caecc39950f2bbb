"""Networks of images, at published sizes with random weights."""

from __future__ import annotations

from torch import nn

from benchmarks.models.case import model
from benchmarks.models.inputs import normal
from benchmarks.models.mobilenet import MobileNetV3Large
from benchmarks.models.wrappers import FirstOutput


@model(normal(3, 224, 224))
def resnet50() -> nn.Module:
    """ResNet-50 (He et al., 2015), 1,000 classes."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return FirstOutput(ResNetForImageClassification(ResNetConfig(num_labels=1000)), "pixel_values")


@model(normal(3, 224, 224))
def mobilenetv2() -> nn.Module:
    """MobileNetV2 at width 1.0 (Sandler et al., 2018), 1,001 classes."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(num_labels=1001)
    return FirstOutput(MobileNetV2ForImageClassification(config), "pixel_values")


@model(normal(3, 224, 224))
def convnext_tiny() -> nn.Module:
    """ConvNeXt-tiny (Liu et al., 2022), 1,000 classes."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(num_labels=1000)
    return FirstOutput(ConvNextForImageClassification(config), "pixel_values")


@model(normal(3, 224, 224))
def vit_base() -> nn.Module:
    """ViT-base, patches of 16 (Dosovitskiy et al., 2020), 1,000 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    return FirstOutput(ViTForImageClassification(ViTConfig(num_labels=1000)), "pixel_values")


@model(normal(3, 224, 224))
def mobilenetv3_large() -> nn.Module:
    """MobileNetV3-Large at width 1.0 (Howard et al., 2019), 1,000 classes."""
    return MobileNetV3Large(1000)


@model(normal(3, 224, 224))
def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0 (Tan and Le, 2019), 1,000 classes.

    Its last pool, written as windows of 1280×1280 over 7×7 pixels, is written as the mean that it
    is: OpenVINO takes no window larger than its image.
    """
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        num_labels=1000,
    )
    network = EfficientNetForImageClassification(config)
    network.efficientnet.pooler = nn.AdaptiveAvgPool2d(1)
    return FirstOutput(network, "pixel_values")
