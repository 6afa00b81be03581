"""Convolutions that oneDNN gets wrong on CPUs."""

from __future__ import annotations

import torch
from torch import nn

VECTOR = 8  # float32 values of AVX2


def channels_last(module: nn.Module) -> nn.Module:
    """The module in that memory format. Raises ValueError as `check_narrow` does, where it is on a CPU."""
    if all(parameter.device.type == "cpu" for parameter in module.parameters()):
        check_narrow(module)
    return module.to(memory_format=torch.channels_last)


def check_narrow(module: nn.Module) -> None:
    """Raises ValueError for a trained 1x1 convolution with a stride over fewer than 8 channels.

    In channels_last memory its weights' gradient is wrong, and is written past the end of its workspace: the process
    aborts at some later time, or does not (uxlfoundation/oneDNN issue 6035; seen with torch 2.15 on AVX2).
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or not layer.weight.requires_grad:
            continue
        if layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.in_channels < VECTOR:
            raise ValueError(
                f"the network's {name} is a 1x1 convolution with stride {max(layer.stride)} over {layer.in_channels} "
                f"channels, which oneDNN trains wrongly on CPUs, and writes into others' memory; give it {VECTOR} "
                "channels or more, or set fit.channels_last: false"
            )
