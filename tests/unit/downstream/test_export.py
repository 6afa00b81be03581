"""What timm and transformers load from an export is the run's model, and fedhpc starts from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from fedhpc.config.joint import JointConfig
from fedhpc.config.load import load_config
from fedhpc.data.hdf5 import PackedFile
from fedhpc.downstream.loading import TrainedRun, image_encoder, load_run
from fedhpc.export import export_run
from fedhpc.models.blocks import FlatModel
from fedhpc.models.zoo import build_model

from .conftest import Trained

RESNET = "model.image={name: resnet10t, options: {channels: [8, 8, 16, 16], stem_width: 4}}"
# ConvNeXt's last norm is in its head, which fedhpc drops and timm's strict loading demands.
CONVNEXT = "model.image={name: convnext_atto, options: {depths: [1, 1, 1, 1], dims: [8, 8, 16, 16]}}"
VIT = "fit.steps=3"  # the smoke config's own


def pictures(run: TrainedRun, count: int = 7) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, run.spec.image_channels, *run.spec.image_size, generator=random)


@torch.no_grad()
def timm_tokens(folder: Path, images: torch.Tensor) -> torch.Tensor:
    net = timm.create_model(f"local-dir:{folder / 'image'}", pretrained=True, num_classes=0).eval()
    out = net.forward_features(images)
    if out.ndim == 4:
        out = out.flatten(2).transpose(1, 2)
        out = torch.cat([out.mean(dim=1, keepdim=True), out], dim=1)
    return out


@pytest.mark.parametrize("network", [VIT, RESNET, CONVNEXT], ids=["vit", "resnet", "convnext"])
def test_timm_loads_the_same_image_encoder_and_fedhpc_starts_from_it(
    network: str, trained: Trained, tmp_path: Path
) -> None:
    folder = trained("fedavg", network)
    run = load_run(folder)
    to = tmp_path / "out"
    export_run(folder, to)
    images = pictures(run)
    with torch.no_grad():
        mine = image_encoder(run.module)(images)
    assert torch.allclose(timm_tokens(to, images), mine, atol=1e-6)
    # The weights moved in training: an initial network would not pass by chance.
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.allclose(build_model(run.config.model, run.spec).eval().image_encoder(images), mine, atol=1e-3)
    name = run.config.model.image.name
    again = load_config(
        folder / "config.yaml",
        [f"model.image={{name: {name}, pretrained: {to / 'image'}}}", f"model.text.pretrained={to / 'text'}"],
    )
    started = build_model(again.model, run.spec).eval()
    with torch.no_grad():
        assert torch.allclose(started.image_encoder(images), mine, atol=1e-6)
        tokens = torch.randint(5, run.spec.vocab_size, (4, run.spec.max_tokens))
        assert torch.allclose(started.text_encoder(tokens), run.module.text_encoder(tokens), atol=1e-6)
    described = json.loads((to / "image" / "config.json").read_text())["pretrained_cfg"]
    assert described["mean"] == [0.5] and described["input_size"] == [1, 32, 32] and "license" not in described


def test_a_joint_model_freezes_what_was_exported(trained: Trained, tmp_path: Path) -> None:
    run = load_run(trained("fedavg"))
    export_run(run.folder, tmp_path / "out")
    encoders = {name: {"name": getattr(run.config.model, name).name} for name in ("image", "text")}
    told = {name: {**one, "pretrained": str(tmp_path / "out" / name), "freeze": True} for name, one in encoders.items()}
    joint = JointConfig(kind="joint", **told, width=16, pictures="tokens", concat="sequence", joint_layers=1)
    torch.manual_seed(1)
    model = build_model(joint, replace(run.spec, num_classes=3))
    images, tokens = pictures(run), torch.randint(5, run.spec.vocab_size, (4, run.spec.max_tokens))
    with torch.no_grad():
        assert torch.allclose(model.image_encoder(images), image_encoder(run.module)(images), atol=1e-6)
        assert torch.allclose(model.text_encoder(tokens), run.module.text_encoder(tokens), atol=1e-6)
    assert set(FlatModel(model).shared) == {"head/image", "head/text", "joint", "embed", "classifier"}


def test_transformers_loads_the_same_text_encoder_and_tokenizer(trained: Trained, tmp_path: Path) -> None:
    run = load_run(trained("fedavg"))
    export_run(run.folder, tmp_path / "out")
    net = AutoModel.from_pretrained(tmp_path / "out" / "text").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "text")
    with PackedFile(run.data_path) as packed:
        rows = np.arange(0, packed.num_rows, 9)
        texts, stored = packed.texts(rows), torch.from_numpy(packed.read("tokens", rows)).long()
    padded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(padded["input_ids"], stored) and padded["input_ids"].shape[1] == run.spec.max_tokens
    assert torch.equal(padded["attention_mask"].bool(), run.module.text_encoder.mask(stored))
    with torch.no_grad():
        states = net(**padded).last_hidden_state
        assert torch.allclose(states, run.module.text_encoder(stored), atol=1e-6)
    assert not any("pooler" in key for key in load_file(tmp_path / "out" / "text" / "model.safetensors"))


def test_the_rest_and_the_card(trained: Trained, tmp_path: Path) -> None:
    run = load_run(trained("fedavg"))
    to = tmp_path / "out"
    export_run(run.folder, to)
    rest = load_file(to / "heads.safetensors")
    state = run.module.state_dict()
    outside = {name for name in state if not name.startswith(("image_encoder.", "text_encoder."))}
    assert {key.partition("//")[2] for key in rest} == outside
    assert {key.partition("//")[0] for key in rest} == {
        "align/image", "align/text", "head/image", "head/text", "temperature"
    }  # fmt: skip
    assert all(torch.equal(tensor, state[key.partition("//")[2]]) for key, tensor in rest.items())
    card = (to / "README.md").read_text()
    results = json.loads((run.folder / "results.json").read_text())
    for part in (
        "# smoke-fedavg", "generated by a program, not real", "CC0-1.0", run.checksum, "fedavg, 2 of 2 rounds",
        "Not a medical device", f"| recall_at_10 | {results['summary']['recall_at_10']['mean']:.3f}", "```yaml",
        "AutoModel", "random weights",
    ):  # fmt: skip
        assert part in card, part
    assert "not of these weights" not in card
    assert load_config(to / "config.yaml") == run.config
    assert not list(tmp_path.glob(".*")), "no half-written folder stays"


def test_what_is_there_is_kept(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_run(trained("fedavg"), tmp_path / "out")  # an empty folder will do
    with pytest.raises(ValueError, match="is not empty"):
        export_run(trained("fedavg"), tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        export_run(trained("fedavg"), tmp_path / "file")


def test_a_classifier_and_its_clients_own_layers(trained: Trained, tmp_path: Path) -> None:
    folder = trained("classifier")
    export_run(folder, tmp_path / "mean")
    export_run(folder, tmp_path / "own", "2")
    mean, own = load_run(folder), load_run(folder, 2)
    for to, run in ((tmp_path / "mean", mean), (tmp_path / "own", own)):
        images = pictures(run)
        with torch.no_grad():
            assert torch.allclose(timm_tokens(to, images), run.module.encoder(images), atol=1e-6)
        assert not (to / "text").exists() and set(load_file(to / "heads.safetensors")) == {
            "head/image//head.weight", "head/image//head.bias"
        }  # fmt: skip
        assert "They are not of these weights" in (to / "README.md").read_text()
    with torch.no_grad():
        assert not torch.allclose(mean.module.encoder(images), own.module.encoder(images), atol=1e-4)


def test_a_network_that_is_not_timms_is_refused(trained: Trained, tmp_path: Path) -> None:
    folder = trained("classifier", "model.image={name: cnn_tiny}", "aggregation.local_blocks=[]")
    with pytest.raises(ValueError, match="cnn_tiny is no timm network"):
        export_run(folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["CLIPVisionModel", "SiglipVisionModel", "Blip2VisionModel"])
def test_transformers_loads_the_same_vision_tower_and_fedhpc_starts_from_it(
    name: str, trained: Trained, tmp_path: Path
) -> None:
    kind = {"CLIPVisionModel": "clip", "SiglipVisionModel": "siglip", "Blip2VisionModel": "blip_2"}[name]
    options = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, patch_size: 8}"
    network = f"model.image={{name: {kind}_vision_model, options: {options}}}"
    folder = trained("fedavg", network)
    run = load_run(folder)
    export_run(folder, tmp_path / "out")
    net = getattr(transformers, name).from_pretrained(tmp_path / "out" / "image").eval()
    images = pictures(run)
    mine = image_encoder(run.module)
    with torch.no_grad():
        tokens = net(images.expand(-1, 3, -1, -1)).last_hidden_state
        tokens = net.post_layernorm(tokens) if name == "CLIPVisionModel" else tokens
        expected = mine.net(images)
    assert torch.allclose(tokens, expected, atol=1e-6)
    again = load_config(
        folder / "config.yaml", [f"model.image={{name: {kind}_vision_model, pretrained: {tmp_path / 'out' / 'image'}}}"]
    )
    with torch.no_grad():
        assert torch.allclose(build_model(again.model, run.spec).eval().image_encoder.net(images), expected, atol=1e-6)
    assert f"{name}.from_pretrained" in (tmp_path / "out" / "README.md").read_text()
