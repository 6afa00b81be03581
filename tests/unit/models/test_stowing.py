"""A model that is built while most of it is put away is to the bit the model that is built whole."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from fedhpc.config.schema import EncoderConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.stowing import FileKeeper, Stowing
from fedhpc.models.text import build_text_encoder
from fedhpc.models.vision import build_image_encoder
from tests.allocations import allocations

SPEC = DataSpec(1, (16, 16), vocab_size=300, max_tokens=12)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODERS = {
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8}),
    "clip": ("clip_vision_model", {**SMALL, "patch_size": 8}),
    "siglip": ("siglip_vision_model", {**SMALL, "patch_size": 8}),
    "blip2": ("blip_2_vision_model", {**SMALL, "patch_size": 8}),
    "bert": ("bert", SMALL),
    "distilbert": ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
}


def build(kind: str, pretrained: str | None = None) -> nn.Module:
    name, options = ENCODERS[kind]
    given = {} if pretrained is not None and kind != "vit" else options
    config = EncoderConfig.model_validate({"name": name, "options": given, "pretrained": pretrained})
    torch.manual_seed(3)
    return build_text_encoder(config, SPEC) if "bert" in kind else build_image_encoder(config, SPEC)


def stowed(folder: Path) -> Stowing:
    """So tight that parameters come and go."""
    return Stowing(FileKeeper(folder), smallest=1 << 10, window=1 << 14)


def check_same(whole: nn.Module, away: nn.Module, stowing: Stowing) -> None:
    assert [*dict(whole.named_parameters())] == [*dict(away.named_parameters())]
    assert sum(stowing.stowed(away).values()) > 4 * (1 << 14), "nothing had to be put away"
    others = dict(away.named_parameters())
    for name, parameter in whole.named_parameters():
        assert others[name].requires_grad == parameter.requires_grad
        with stowing.present(others[name]) as values:
            assert torch.equal(values, parameter), name
    for (name, buffer), (_, other) in zip(whole.named_buffers(), away.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name


@pytest.mark.parametrize("kind", ENCODERS)
def test_random_weights_are_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole = build(kind)
    drawn = torch.rand(3)  # random numbers go on where they would
    with stowed(tmp_path) as stowing:
        away = build(kind)
    assert torch.equal(torch.rand(3), drawn)
    check_same(whole, away, stowing)


@pytest.mark.parametrize("kind", ["vit", "clip", "bert"])
def test_weights_of_a_folder_are_the_same_bits(kind: str, tmp_path: Path) -> None:
    net = build(kind).net
    if kind == "vit":
        path = tmp_path / "weights.safetensors"
        save_model(net, str(path))
    else:
        path = tmp_path / "folder"
        (net.net if kind == "clip" else net).save_pretrained(path)
    whole = build(kind, str(path))
    with stowed(tmp_path) as stowing:
        away = build(kind, str(path))
    check_same(whole, away, stowing)


def test_what_is_gone_is_forgotten_and_what_is_changed_is_kept(tmp_path: Path) -> None:
    keeper = FileKeeper(tmp_path)
    with Stowing(keeper, smallest=1, window=0) as stowing:
        first, second = nn.Linear(8, 8), nn.Linear(8, 8)
        with torch.no_grad():
            first.weight.fill_(2.0)
            second.weight.copy_(first.weight.t() * 3)
            first.weight[1].zero_()
        nn.Linear(8, 8)  # what was used last stays until something else is
    gc.collect()
    assert first.weight.untyped_storage().nbytes() == 0
    assert len(keeper._places) == 4
    with stowing.present(first.weight) as weight:
        assert weight.sum() == 2.0 * 56
    with stowing.present(second.weight) as weight:
        assert torch.equal(weight, torch.full((8, 8), 6.0))
    del second, weight
    gc.collect()
    assert len(keeper._places) == 2
    nn.Linear(8, 8).weight.sum()  # nothing is left of the context


def test_a_part_of_the_model_is_in_memory(tmp_path: Path) -> None:
    """Twelve equal layers, and room for one."""

    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(12)))

    def make_stowed() -> nn.Module:
        with Stowing(FileKeeper(tmp_path), window=1 << 22):
            return make()

    whole, plain = allocations(make)
    size = sum(4 * p.numel() for p in whole.parameters())
    assert plain.peak >= plain.after >= size, "or the measurement is wrong"
    away, stowed = allocations(make_stowed)
    assert sum(4 * p.numel() for p in away.parameters()) == size
    assert stowed.peak < 3.1 / 12 * size, "the layer that is made, the one before it, and one to spare"
    assert stowed.after < 2.1 / 12 * size
