"""The four networks for small pictures: their sizes are the originals', their strides what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedhpc.config.schema import ClassifierConfig, EncoderConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.small import BUILDERS, build_small
from fedhpc.models.zoo import Classifier, build_networks

# Parameters without the classifier. ResNets: 3x3 stem, basic blocks, 1x1 shortcuts, added up by hand; the others as
# torchvision publishes them: 2,278,604 - 1,025,000 and 3,504,872 - 1,281,000.
PARAMETERS = {"resnet10": 4_898_112, "resnet12": 4_972_096, "shufflenet": 1_253_604, "mobilenetv2": 2_223_872}


def spec(side: int, channels: int = 3) -> DataSpec:
    return DataSpec(image_channels=channels, image_size=(side, side), num_classes=8)


def last_map(net: nn.Module, side: int) -> int:
    """Height of the last feature map."""
    sides: list[int] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            sides.append(output.shape[2])

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, side, side))
    return sides[-1]


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_sizes_are_the_originals(name: str) -> None:
    net = build_small(EncoderConfig(name=name), spec(32))
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    assert net.width == {"shufflenet": 1024, "mobilenetv2": 1280}.get(name, 512)


@pytest.mark.parametrize("name", sorted(BUILDERS))
@pytest.mark.parametrize(
    ("side", "options", "left"),
    [(32, {}, 4), (64, {}, 4), (128, {}, 4), (32, {"stride": 16}, 2), (64, {"stride": 8}, 8), (64, {"stride": 32}, 2)],
)
def test_strides(name: str, side: int, options: dict[str, int], left: int) -> None:
    net = build_small(EncoderConfig(name=name, options={"width": 0.125, **options}), spec(side))
    assert last_map(net, side) == left


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_pictures_of_one_channel_and_narrow_networks(name: str) -> None:
    config = ClassifierConfig(kind="classifier", networks=[{"name": name, "options": {"width": 0.25}}], embed_dim=16)  # type: ignore[list-item]
    model = build_networks(config, spec(32, channels=1), 0)
    assert isinstance(model, Classifier)
    out = model({"image": torch.randn(3, 1, 32, 32)})
    assert out["logits"].shape == (3, 8) and out["image_features"].shape == (3, 16)
    out["logits"].square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) < PARAMETERS[name] / 5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"width": 0}, "width = 0, a factor on the channels; set more than 0"),
        ({"width": True}, "width = True"),
        ({"stride": 4}, "stride = 4 with pictures of 32 px; set 8, 16 or 32"),
        ({"depth": 2}, "depth unknown; it knows width and stride"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], complaint: str) -> None:
    config = ClassifierConfig(kind="classifier", networks=["resnet10", {"name": "resnet12", "options": options}])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=rf"model.networks\[1\].*{complaint}"):
        build_networks(config, spec(32), 1)
