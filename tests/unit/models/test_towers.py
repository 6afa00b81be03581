"""Vision towers of transformers: what they give, from random weights and from folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedhpc.config.schema import EncoderConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.vision import build_image_encoder

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
SPEC = DataSpec(image_channels=1, image_size=(32, 32))


def encoder(name: str, spec: DataSpec = SPEC, pretrained: str | None = None, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_image_encoder(EncoderConfig(name=name, pretrained=pretrained, options=options), spec)


@pytest.mark.parametrize(
    ("name", "tokens"), [("clip_vision_model", 17), ("siglip_vision_model", 17), ("blip_2_vision_model", 17)]
)
def test_a_tower_gives_tokens_and_every_parameter_learns(name: str, tokens: int) -> None:
    made = encoder(name, **SMALL)
    pictures = torch.randn(2, 1, 32, 32)
    out = made(pictures)
    assert out.shape == (2, tokens, 32)
    torch.testing.assert_close(made.features(pictures), out[:, 0])
    assert made.regions(out).shape == (2, 16, 32)
    out[:, 0].sum().backward()
    lone = [n for n, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert not lone, "a parameter without gradient would cross the wire for nothing"


def test_clip_is_transformers_own(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(1)
    theirs = CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=32)).eval()
    theirs.save_pretrained(tmp_path)
    made = encoder("clip_vision_model", DataSpec(3, (32, 32)), str(tmp_path)).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(made.features(pictures), theirs(pictures).pooler_output)


def test_the_tower_of_a_whole_model_is_taken_and_resized(tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    text = {k: v for k, v in SMALL.items() if k != "patch_size"} | {"vocab_size": 50}
    whole = SiglipModel(SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": 16}))
    whole.save_pretrained(tmp_path)
    made = encoder(str(tmp_path), SPEC, str(tmp_path))
    assert made(torch.randn(1, 1, 32, 32)).shape == (1, 17, 32)
    stored = whole.vision_model.state_dict()["embeddings.patch_embedding.weight"]
    assert torch.equal(made.net.net.embeddings.patch_embedding.weight, stored)


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        (SPEC, {**SMALL, "patch_size": 7}, "patches of 7 x 7 do not fill pictures of 32 x 32"),
        (SPEC, {"hiden_size": 8}, "did you mean hidden_size"),
        (SPEC, {"image_size": 8}, "taken from the packed set"),
        (DataSpec(2, (32, 32)), SMALL, "1 or 3 channels, the set has 2"),
        (DataSpec(1, (32, 16)), SMALL, "square"),
    ],
)
def test_mistakes_are_named(spec: DataSpec, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encoder("clip_vision_model", spec, **options)
