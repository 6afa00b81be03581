"""The four networks of RHFL and MDH-FL, for small pictures: ResNet10, ResNet12, ShuffleNet, MobileNetV2.

ResNets are timm's with one basic block a stage (ResNet12: two in the first), as in the released code; ShuffleNet (v2,
the released code has its own v1 with 2 groups) and MobileNetV2 are torchvision's. What differs is how often they halve
a picture: the originals five times, which leaves one pixel of 32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedhpc.config.schema import EncoderConfig
from fedhpc.interfaces import DataSpec

STRIDES = (8, 16, 32)
LAST_MAP = 4  # pixels, height and width, that are left of a picture where no stride is set


class SmallNetwork(nn.Module):
    """features: images [B,C,H,W] -> [B,width], the mean of the last feature map."""

    def __init__(self, net: nn.Module, spec: DataSpec) -> None:
        super().__init__()
        self.net = net
        training = net.training
        net.eval()
        with torch.no_grad():
            self.width: int = net(torch.zeros(1, spec.image_channels, *spec.image_size)).shape[1]
        net.train(training)

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)
        return features

    forward = features


def build_small(config: EncoderConfig, spec: DataSpec) -> SmallNetwork:
    """The network that `config` names, for pictures of `spec`.

    options.width: factor on all numbers of channels (1). options.stride: how much smaller the last feature map is than
    the picture: 8, 16 or 32; the largest that leaves 4 x 4 when not set (8 for 32 px, 16 for 64 px).

    Raises ValueError for other options and for values that do not fit.
    """
    where = f"model.image.options of {config.name}"
    if unknown := sorted(set(config.options) - {"width", "stride"}):
        raise ValueError(f"{where}: {', '.join(unknown)} unknown; it knows width and stride")
    width, side = config.options.get("width", 1.0), min(spec.image_size)
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 4:
        raise ValueError(f"{where}: width = {width}, a factor on the channels; set more than 0 and at most 4")
    fitting = [stride for stride in STRIDES if stride * LAST_MAP <= side]
    stride = config.options.get("stride", max(fitting, default=STRIDES[0]))
    if stride not in STRIDES or stride > side:
        raise ValueError(f"{where}: stride = {stride} with pictures of {side} px; set 8, 16 or 32, at most {side}")
    return SmallNetwork(BUILDERS[config.name](float(width), int(stride), spec.image_channels), spec)


def _channels(count: int, width: float, fewest: int = 4) -> int:
    return max(fewest, 4 * round(count * width / 4))


def _resnet(layers: tuple[int, ...], width: float, stride: int, in_channels: int) -> nn.Module:
    import timm

    # Fewer channels than a vector holds make oneDNN write past its memory (models/narrow.py).
    stem, *channels = (_channels(count, width, fewest=16) for count in (64, 64, 128, 256, 512))
    # timm ties the stem's width to its kind; the kind is replaced below.
    net: Any = timm.create_model(
        "resnet18", layers=layers, channels=channels, stem_type="deep", stem_width=stem // 2, num_classes=0
    )
    net.conv1 = _convolution(in_channels, stem, 1 if stride == 8 else 2)
    if stride < 32:
        net.maxpool = nn.Identity()
    return net


def _resnet10(width: float, stride: int, in_channels: int) -> nn.Module:
    return _resnet((1, 1, 1, 1), width, stride, in_channels)


def _resnet12(width: float, stride: int, in_channels: int) -> nn.Module:
    return _resnet((2, 1, 1, 1), width, stride, in_channels)


def _shufflenet(width: float, stride: int, in_channels: int) -> nn.Module:
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    channels = [_channels(count, width) for count in (24, 116, 232, 464, 1024)]
    net = ShuffleNetV2([4, 8, 4], channels)
    net.conv1[0] = _convolution(in_channels, channels[0], 1 if stride == 8 else 2)
    if stride < 32:
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    return net


def _mobilenetv2(width: float, stride: int, in_channels: int) -> nn.Module:
    from torchvision.models.mobilenetv2 import MobileNetV2
    from torchvision.ops.misc import Conv2dNormActivation

    # expansion, channels, blocks, stride of the first block: table 2 of Sandler et al. 2018
    settings = [
        *([1, 16, 1, 1], [6, 24, 2, 1 if stride == 8 else 2], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1]),
        *([6, 160, 3, 2], [6, 320, 1, 1]),
    ]
    net = MobileNetV2(width_mult=width, inverted_residual_setting=settings, round_nearest=4)
    stem: Any = net.features[0]
    stem[0] = _convolution(in_channels, stem[0].out_channels, 2 if stride == 32 else 1)
    last: Any = net.features[-1]  # torchvision never makes it narrower
    net.features[-1] = Conv2dNormActivation(
        last[0].in_channels, _channels(1280, width), kernel_size=1, activation_layer=nn.ReLU6
    )
    net.classifier = nn.Identity()
    return net


def _convolution(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


BUILDERS = {"resnet10": _resnet10, "resnet12": _resnet12, "shufflenet": _shufflenet, "mobilenetv2": _mobilenetv2}
