"""Fast dropout is dropout."""

from __future__ import annotations

import pytest
import torch

from fedhpc.models.dropout import dropout


@pytest.mark.parametrize("p", [0.25, 0.5, 0.1])
@pytest.mark.parametrize("channels_last", [False, True])
def test_rate_scale_and_gradient(p: float, channels_last: bool) -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 8, 30, 31) + 1
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    y = dropout(x, p, training=True)
    dropped = (y == 0).float()
    n, rate = x.numel(), round(p * 256) / 256
    sigma = (rate * (1 - rate) / n) ** 0.5
    assert abs(float(dropped.mean()) - rate) < 5 * sigma
    # Every place of the eight that share a random word is dropped as often, and neighbours independently.
    flat = dropped.permute(0, 2, 3, 1).flatten() if channels_last else dropped.flatten()
    by_byte = flat.view(-1, 8).mean(0)
    assert float((by_byte - rate).abs().max()) < 5 * sigma * 8**0.5
    both = (flat[1:] * flat[:-1]).mean()
    assert abs(float(both) - rate**2) < 5 * (rate**2 * (1 - rate**2) / n) ** 0.5 * 2
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - rate))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, kept.float() / (1 - rate))


def test_seeded_and_off_outside_training() -> None:
    x = torch.ones(5, 7)
    torch.manual_seed(3)
    first = dropout(x, 0.5, training=True)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.5, training=True))
    assert not torch.equal(first, dropout(x, 0.5, training=True))
    assert dropout(x, 0.5, training=False) is x
    assert torch.equal(dropout(x, 0.0, training=True), x)
    assert bool((dropout(x, 1.0, training=True) == 0).all())
