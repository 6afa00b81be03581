"""Models in one flat buffer: nothing is lost, nothing moves, and training cannot tell."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from fedhpc.config.blocks import NORM_WORDS, trained_blocks
from fedhpc.config.load import load_config
from fedhpc.interfaces import DataSpec
from fedhpc.models.blocks import ALIGNMENT, NORM_LAYERS, FlatModel, block_of
from fedhpc.models.zoo import build_model
from tests.conftest import ROOT

SPEC = DataSpec(image_channels=1, image_size=(32, 32), vocab_size=99, max_tokens=12, pad_token=0, num_classes=0)


class Small(nn.Module):
    block_prefixes: Mapping[str, tuple[str, ...]] = {"encoder/image": ("conv.", "norm."), "head": ("head.", "scale")}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3))) * self.scale


def test_values_survive_and_views_are_the_parameters() -> None:
    module = Small().to(memory_format=torch.channels_last)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    flat = FlatModel(module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert set(flat.blocks) == {"encoder/image", "head"}
    assert module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    block = flat.blocks["encoder/image"]
    assert list(block) == [
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
    ]
    assert torch.equal(block["conv.weight"], module.conv.weight)
    block.flat.fill_(2.0)
    assert float(module.conv.weight.detach().mean()) == 2.0 and float(module.norm.running_var.mean()) == 2.0
    assert block.buffers.numel() == 2 * ALIGNMENT


def test_every_tensor_starts_aligned_and_padding_is_zero() -> None:
    flat = FlatModel(Small())
    for block in flat.blocks.values():
        for spec in block.layout.specs:
            assert spec.offset % ALIGNMENT == 0
            assert block.view(spec).data_ptr() % 64 == 0
        for name in block:
            block[name].fill_(1.0)
    used = flat.flat == 1.0
    assert int(used.sum()) == sum(t.numel() for b in flat.blocks.values() for t in b.values())
    assert bool((flat.flat[~used] == 0).all())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_training_on_the_flat_buffer_equals_training_without(channels_last: bool, fused: bool) -> None:
    torch.manual_seed(0)
    plain = Small()
    if channels_last:
        plain = plain.to(memory_format=torch.channels_last)
    flattened = copy.deepcopy(plain)
    FlatModel(flattened)
    x = torch.randn(4, 3, 8, 8)
    for module in (plain, flattened):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    for (name, a), b in zip(plain.state_dict().items(), flattened.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def test_frozen_parameters_and_counters_stay_out() -> None:
    module = Small()
    module.conv.weight.requires_grad_(False)
    module.head.requires_grad_(False)
    module.scale.requires_grad_(False)
    flat = FlatModel(module)
    assert set(flat.blocks) == {"encoder/image"}, "a block without anything to learn crosses no wire"
    assert "conv.weight" not in flat.blocks["encoder/image"]
    module.train()(torch.randn(2, 3, 8, 8))
    assert int(module.norm.num_batches_tracked) == 1
    flat.load(flat.shared)
    assert int(module.norm.num_batches_tracked) == 0, "counters go back to their first value"


@pytest.mark.parametrize(
    ("patterns", "local"),
    [
        (["batch_norm"], {"local/encoder/image": 4}),
        (["norm"], {"local/encoder/image": 4}),
        (["head"], {"local/head": 3}),
        (["*.bias"], {"local/encoder/image": 2, "local/head": 1}),
    ],
)
def test_local_patterns(patterns: list[str], local: dict[str, int]) -> None:
    flat = FlatModel(Small(), patterns)
    assert {name: len(block) for name, block in flat.local.items()} == local
    assert not set(flat.shared) & set(local)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\*nrm\* matches no tensor.*encoder/image, head.*batch_norm"):
        FlatModel(Small(), ["*nrm*"])
    with pytest.raises(ValueError, match="float64.*fit.precision"):
        FlatModel(Small().double())


def test_the_longest_prefix_decides() -> None:
    prefixes = {"a": ("net.",), "b": ("net.head.",)}
    assert block_of("net.conv.weight", prefixes) == "a"
    assert block_of("net.head.weight", prefixes) == "b"


@pytest.mark.parametrize("freeze", ["", "model.image.freeze=true", "model.text.freeze=true"])
@pytest.mark.parametrize(
    "more",
    [[], ["model.align=false", "~model.align_heads"], ["objective={name: siglip}"], ["objective={name: gloria}"]],
)
def test_the_config_knows_the_blocks_that_a_model_will_have(freeze: str, more: list[str]) -> None:
    config = load_config(ROOT / "configs" / "smoke" / "fedavg.yaml", [*([freeze] if freeze else []), *more])
    model = build_model(config.model, SPEC, config.objective)
    assert set(trained_blocks(config)) == set(FlatModel(model).blocks)
    assert set(NORM_WORDS) == set(NORM_LAYERS)
