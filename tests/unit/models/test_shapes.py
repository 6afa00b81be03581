"""A model of shapes alone has the tensors of the real one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedhpc.models.shapes import Shapes, has_values
from tests.allocations import allocations

from .test_stowing import ENCODERS, build


@pytest.mark.parametrize("kind", ENCODERS)
def test_names_shapes_and_what_learns_are_those_of_the_real_model(kind: str) -> None:
    real = build(kind)
    with Shapes():
        shapes = build(kind)
    assert not any(has_values(parameter) for parameter in shapes.parameters())
    told = [{n: (p.shape, p.dtype, p.requires_grad) for n, p in m.named_parameters()} for m in (real, shapes)]
    assert told[0] == told[1]
    assert {n: b.shape for n, b in real.named_buffers()} == {n: b.shape for n, b in shapes.named_buffers()}
    assert has_values(nn.Linear(2, 2).weight), "nothing is left of the context"


def test_no_more_than_one_layer_is_allocated() -> None:
    def make() -> nn.Module:
        with Shapes():
            return nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(12)))

    module, seen = allocations(make)
    with torch.no_grad():
        assert module(torch.zeros(2, 1000)).shape == (2, 1000)
    assert seen.peak < 2.1 * 4 * 1000**2
    assert seen.after < 1 << 16
