"""Convolutions that oneDNN gets wrong are refused; those that are let through it gets right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedhpc.client.engine import Engine
from fedhpc.config.schema import EncoderConfig, FitConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.narrow import check_narrow
from fedhpc.models.small import BUILDERS, build_small


class Shortcut(nn.Module):
    def __init__(self, channels: int, stride: int = 2, **options: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 8, options.pop("kernel", 1), stride, bias=False, **options)


def test_a_narrow_strided_convolution_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"network's down is a 1x1 .* stride 2 over 4 channels.*channels_last: false"):
        check_narrow(Shortcut(4))


@pytest.mark.parametrize("layer", [Shortcut(8), Shortcut(4, stride=1), Shortcut(4, kernel=3), Shortcut(4, groups=4)])
def test_others_are_let_through(layer: nn.Module) -> None:
    check_narrow(layer)


def test_a_frozen_one_is_let_through() -> None:
    check_narrow(Shortcut(4).requires_grad_(False))


def test_engines_look_where_memory_is_channels_last() -> None:
    config = {"steps": 1, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
    with pytest.raises(ValueError, match="the network's down"):
        Engine(Shortcut(4), lambda out, batch: out["x"], FitConfig.model_validate(config), torch.device("cpu"))


def narrowest(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"width": 0.01, "stride": 8}
    spec = DataSpec(image_channels=3, image_size=(32, 32), num_classes=8)
    return build_small(EncoderConfig(name=name, options=options), spec)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_the_narrowest_networks_are_let_through(name: str) -> None:
    check_narrow(narrowest(name))


@pytest.mark.parametrize("name", ["resnet10", "resnet12"])  # those with strides in 1x1 convolutions
def test_the_narrowest_networks_have_the_same_gradients_in_both_memory_formats(name: str) -> None:
    net, pictures, found = narrowest(name), torch.randn(24, 3, 32, 32), []
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=layout).zero_grad()
        net(pictures.contiguous(memory_format=layout)).square().sum().backward()
        found.append({key: p.grad.contiguous() for key, p in net.named_parameters() if p.grad is not None})
    assert found[0].keys() == dict(net.named_parameters()).keys()
    for key, gradient in found[0].items():
        assert (found[1][key] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-4, key
