from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from fedhpc.config.schema import EncoderConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.vision import ImageEncoder, build_image_encoder

SPEC = DataSpec(image_channels=1, image_size=(64, 64))
VIT = {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
RESNET = {"channels": [8, 8, 16, 16], "stem_width": 8}


def build(name: str = "vit_tiny_patch16_224", spec: DataSpec = SPEC, **keys: object) -> ImageEncoder:
    return build_image_encoder(EncoderConfig(name=name, **keys), spec)


def pictures(spec: DataSpec = SPEC) -> torch.Tensor:
    return torch.randn(3, spec.image_channels, *spec.image_size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def timm_model() -> torch.nn.Module:
    torch.manual_seed(5)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, in_chans=1, num_classes=7, **VIT).eval()


@pytest.fixture(scope="module")
def folder(timm_model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timm")
    save_for_hf(timm_model, str(path), safe_serialization=True)
    return path


# ---------------------------------------------------------------------------------- tokens
def test_vit_gives_class_token_first(timm_model: torch.nn.Module, folder: Path) -> None:
    encoder = build(pretrained=str(folder)).eval()
    tokens = encoder(pictures())
    assert tokens.shape == (3, 1 + 16, 32)
    assert encoder.width == 32
    assert torch.equal(tokens, timm_model.forward_features(pictures()))
    assert torch.equal(encoder.features(pictures()), tokens[:, 0])


def test_vit_without_class_token_gets_the_mean_of_its_patches() -> None:
    encoder = build(options={**VIT, "class_token": False, "reg_tokens": 2, "global_pool": "avg"}).eval()
    tokens = encoder(pictures())
    assert tokens.shape == (3, 1 + 2 + 16, 32)
    torch.testing.assert_close(tokens[:, 0], tokens[:, 3:].mean(dim=1))
    torch.testing.assert_close(encoder.features(pictures()), tokens[:, 0])


def test_feature_map_becomes_tokens_with_its_mean_first() -> None:
    encoder = build("resnet10t", options=RESNET).eval()
    tokens = encoder(pictures())
    maps = encoder.net.forward_features(pictures())
    assert maps.shape == (3, 16, 2, 2)
    assert tokens.shape == (3, 5, 16)
    torch.testing.assert_close(tokens[:, 0], maps.mean(dim=(2, 3)))
    assert torch.equal(tokens[:, 1 + 2 * 1 + 0], maps[:, :, 1, 0])
    torch.testing.assert_close(encoder.features(pictures()), tokens[:, 0])


def test_feature_map_with_channels_last() -> None:
    options = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    encoder = build("swin_tiny_patch4_window7_224", options=options).eval()
    tokens = encoder(pictures())
    maps = encoder.net.forward_features(pictures())
    assert maps.shape == (3, 8, 8, 16)
    assert tokens.shape == (3, 65, 16)
    assert torch.equal(tokens[:, 1 + 8 * 2 + 5], maps[:, 2, 5])
    torch.testing.assert_close(encoder.features(pictures()), maps.mean(dim=(1, 2)))


# ---------------------------------------------------------------------------------- only what learns is a parameter
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", VIT),
        ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"}),
        ("resnet10t", RESNET),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
        ("mobilenetv3_small_050", {}),
    ],
)
def test_gradient_reaches_every_parameter(name: str, options: dict[str, object]) -> None:
    for read in ("forward", "features"):
        encoder = build(name, options=options)
        getattr(encoder, read)(pictures()).square().sum().backward()
        assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.requires_grad] == []


@pytest.mark.parametrize("pretrained", ["augreg_in21k", "weights/net.safetensors"])
def test_weights_that_do_not_say_what_they_are_need_a_name(pretrained: str) -> None:
    with pytest.raises(ValueError, match="name"):
        EncoderConfig.model_validate({"pretrained": pretrained})


def test_head_of_pretrained_weights_is_dropped(folder: Path) -> None:
    assert build(pretrained=str(folder)).removed == ("net.head",)


# ---------------------------------------------------------------------------------- weights
def test_folder_name_serves_as_architecture(timm_model: torch.nn.Module, folder: Path) -> None:
    assert EncoderConfig(pretrained=str(folder)) == EncoderConfig(name=str(folder), pretrained=str(folder))
    encoder = build(str(folder), pretrained=str(folder)).eval()
    assert torch.equal(encoder(pictures()), timm_model.forward_features(pictures()))


def test_folder_as_name_alone_has_random_weights(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = build(str(folder)).eval()
    loaded = build(pretrained=str(folder)).eval()
    assert encoder(pictures()).shape == loaded(pictures()).shape
    assert not torch.equal(encoder(pictures()), loaded(pictures()))
    assert "pretrained" in caplog.text


@pytest.mark.parametrize("with_head", [True, False])
def test_bare_safetensors_file(timm_model: torch.nn.Module, folder: Path, tmp_path: Path, with_head: bool) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if with_head or not k.startswith("head.")}, tmp_path / "w.safetensors")
    encoder = build(pretrained=str(tmp_path / "w.safetensors"), options=VIT).eval()
    assert torch.equal(encoder(pictures()), timm_model.forward_features(pictures()))


def test_incomplete_file_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["blocks.0.mlp.fc1.weight"]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc1\.weight"):
        build(pretrained=str(tmp_path / "w.safetensors"), options=VIT)


def test_other_picture_size_and_channels_are_adapted(folder: Path) -> None:
    spec = DataSpec(image_channels=3, image_size=(32, 96))
    encoder = build(pretrained=str(folder), spec=spec).eval()
    assert encoder(pictures(spec)).shape == (3, 1 + 2 * 6, 32)
    original = build(pretrained=str(folder))
    torch.testing.assert_close(
        encoder.net.patch_embed.proj.weight.sum(dim=1), original.net.patch_embed.proj.weight[:, 0], rtol=1e-4, atol=1e-5
    )


def test_same_seed_same_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build(options=VIT))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------------------- freeze
def test_frozen_encoder_stays_in_eval_mode() -> None:
    encoder = build("resnet10t", options=RESNET, freeze=True)
    parent = torch.nn.Sequential(encoder).train()
    assert parent.training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(pictures())
    assert all(torch.equal(before[name], buffer) for name, buffer in encoder.named_buffers())


def test_building_moves_no_running_statistics_and_ends_in_train_mode() -> None:
    encoder = build("resnet10t", options=RESNET)
    assert encoder.training
    assert all(int(b) == 0 for name, b in encoder.named_buffers() if name.endswith("num_batches_tracked"))


# ---------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"name": "vit_tinny_patch16_224"}, "did you mean .*vit_tiny_patch16_224"),
        ({"name": "vit_tiny_patch16_224.augreg_in21k"}, "pretrained: augreg_in21k"),
        ({"pretrained": "nosuchtag"}, "timm has .*augreg_in21k"),
        ({"pretrained": "./nowhere"}, "does not exist"),
        ({"pretrained": "./nowhere.safetensors"}, "does not exist"),
        ({"options": {"wdith": 3}}, "wdith"),
        ({"options": {"depht": 3}}, "did you mean depth"),
        ({"name": "resnet10t", "options": {"chanels": [4, 8, 8, 8]}}, "did you mean channels"),
        ({"options": {"in_chans": 3}}, "in_chans is taken from the packed set"),
        ({"options": {"patch_size": 12}}, "12 x 12 do not fill"),
        ({"options": {"embed_dim": 33, "num_heads": 2}}, "cannot build"),
    ],
)
def test_user_mistakes_are_named(keys: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(**{"name": "vit_tiny_patch16_224", **keys})  # type: ignore[arg-type]


def test_weights_of_another_network(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a vit_tiny_patch16_224; set name: vit_tiny_patch16_224"):
        build("test_vit", pretrained=str(folder))


def test_pickled_weights_are_refused(timm_model: torch.nn.Module, tmp_path: Path) -> None:
    save_for_hf(timm_model, str(tmp_path), safe_serialization=False)
    assert (tmp_path / "pytorch_model.bin").is_file()
    with pytest.raises(ValueError, match="pickles are not read"):
        build(pretrained=str(tmp_path))
    with pytest.raises(ValueError, match="pickles are not read"):
        build(pretrained=str(tmp_path / "pytorch_model.bin"))


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"holds a bert; towers are clip_vision_model"):
        build(pretrained=str(tmp_path))


def test_set_without_pictures() -> None:
    with pytest.raises(ValueError, match="has no pictures"):
        build(spec=DataSpec(vocab_size=10, max_tokens=4))


def test_wrong_batch_shape() -> None:
    with pytest.raises(ValueError, match=r"\(1, 64, 64\), the batch has \(3, 64, 64\)"):
        build("resnet10t", options=RESNET)(torch.zeros(2, 3, 64, 64))
