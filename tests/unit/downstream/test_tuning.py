"""The copy of an encoder that a downstream task trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedhpc.config.fit import FitConfig
from fedhpc.downstream.tuning import thawed_copy


class Encoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frozen = True
        self.down = nn.Conv2d(channels, 8, 1, stride=2)
        self.requires_grad_(False)


def fit(channels_last: bool) -> FitConfig:
    optimizer = {"name": "sgd", "learning_rate": 0.1}
    return FitConfig.model_validate({"steps": 1, "optimizer": optimizer, "channels_last": channels_last})


def test_a_frozen_encoder_learns_and_the_run_keeps_its_own() -> None:
    encoder = Encoder(8)
    twin = thawed_copy(encoder, fit(True))
    assert all(parameter.requires_grad for parameter in twin.parameters()) and not twin.frozen
    assert not any(parameter.requires_grad for parameter in encoder.parameters()) and encoder.frozen
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(next(twin.parameters()), next(encoder.parameters()))


def test_what_was_frozen_over_the_run_is_refused_before_it_is_trained_wrongly() -> None:
    """The run's engine lets a frozen narrow convolution through."""
    with pytest.raises(ValueError, match="the network's down is a 1x1 convolution"):
        thawed_copy(Encoder(4), fit(True))
    thawed_copy(Encoder(4), fit(False))
