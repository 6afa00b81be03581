"""The joint model: what it gives, what a missing modality does, which shapes are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedhpc.config.joint import JointConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.blocks import FlatModel
from fedhpc.models.joint import JointModel

SPEC = DataSpec(image_channels=1, image_size=(32, 32), vocab_size=50, max_tokens=6, num_classes=3)
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL = {"width": 16, "cross_heads": 2, "joint_heads": 2, "joint_layers": 1}


def build(spec: DataSpec = SPEC, **keys: Any) -> JointModel:
    torch.manual_seed(0)
    given = {
        "image": {"name": "test_vit", "freeze": True},
        "text": {"name": "bert", "freeze": True, "options": TEXT},
        "concat": "sequence",
        **SMALL,
        **keys,
    }
    return JointModel(JointConfig(kind="joint", **given), spec)


def batch(n: int = 4) -> dict[str, Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(1, 50, (n, 6))
    tokens[0, 3:] = 0
    return {"image": torch.randn(n, 1, 32, 32), "tokens": tokens}


@pytest.mark.parametrize(
    "keys",
    [
        {"pictures": "tokens"},
        {"pictures": "patches", "patch": 16},
        {"pictures": "patches", "patch": 16, "concat": "features", "spec": 4},
        {"text": None},
        {"image": None},
    ],
    ids=["tokens", "patches", "features", "image_only", "text_only"],
)
def test_outputs(keys: dict[str, Any]) -> None:
    length = keys.pop("spec", 6)
    spec = DataSpec(image_channels=1, image_size=(32, 32), vocab_size=50, max_tokens=length, num_classes=3)
    model = build(spec, **keys).eval()
    data = {**batch(), "tokens": batch()["tokens"][:, :length]}
    out = model(data)
    assert out["logits"].shape == (4, 3)
    for name in model.config.modalities:
        torch.testing.assert_close(out[name].norm(dim=1), torch.ones(4))
        torch.testing.assert_close(out[f"logits/{name}"], model.classifier(out[name]))
    if model.has_joint:
        assert out["joint"].shape == (4, 16)
        assert bool((out["joint"].norm(dim=1) <= 1 + 1e-5).all())
    out["logits"].sum().backward()
    frozen = [p for name, p in model.named_parameters() if "encoder." in name]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert not [b for b in FlatModel(model).blocks if b.startswith("encoder/")], "frozen encoders cross no wire"


@pytest.mark.parametrize("pictures", ["tokens", "patches"])
def test_cached_features_stand_in_for_their_encoders(pictures: str) -> None:
    model = build(pictures=pictures).eval()
    data = batch()
    plain = model(data)
    with torch.no_grad():
        features = model.features(data)
    cached = model({**features, **({"image": data["image"]} if pictures == "patches" else {})})
    for name in plain:
        assert torch.equal(plain[name], cached[name]), name


@pytest.mark.parametrize("concat", ["sequence", "features"])
@pytest.mark.parametrize("pictures", ["tokens", "patches"])
def test_what_a_row_lacks_is_nowhere_in_its_joint_representation(concat: str, pictures: str) -> None:
    length = 6 if concat == "sequence" else (5 if pictures == "tokens" else 4)
    spec = DataSpec(image_channels=1, image_size=(32, 32), vocab_size=50, max_tokens=length, num_classes=3)
    if concat == "features" and pictures == "tokens":
        probe = build(spec, pictures=pictures)
        length = 1 + probe.image_encoder.num_regions()  # type: ignore[union-attr]
    model = build(DataSpec(1, (32, 32), 50, length, 0, 3), pictures=pictures, concat=concat).eval()
    torch.manual_seed(2)
    data = {"image": torch.randn(3, 1, 32, 32), "tokens": torch.randint(1, 50, (3, length))}
    other = {"image": torch.randn(3, 1, 32, 32), "tokens": torch.randint(1, 50, (3, length))}
    none, every = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    for raw, lacks in (("image", "has_image"), ("tokens", "has_text")):
        flags = {"has_image": every, "has_text": every, lacks: none}
        base = model({**data, **flags})["joint"]
        changed = model({**data, raw: other[raw], **flags})["joint"]
        assert torch.equal(base, changed)
        assert bool(torch.isfinite(base).all())
        assert not torch.allclose(base, model({**data, raw: other[raw]})["joint"])


def test_what_stands_in_is_hidden_as_often_as_told_and_in_training_alone() -> None:
    model = build(pictures="tokens", hide_completed=0.75, dropout=0.0)
    n = 400
    data = {name: values[:1].expand(n, *values.shape[1:]) for name, values in batch().items()}
    stands_in = torch.arange(n) % 2 == 0
    data |= {"made_text": stands_in, "has_text": torch.ones(n, dtype=torch.bool)}
    with torch.no_grad():
        seen, bare = model.eval()(data)["joint"], model({**data, "has_text": torch.zeros(n, dtype=torch.bool)})["joint"]
        torch.manual_seed(3)
        trained = model.train()(data)["joint"]
    torch.testing.assert_close(seen, seen[:1].expand_as(seen))
    hidden = (trained - bare[0]).norm(dim=1) < 1e-4
    assert ((trained - seen[0]).norm(dim=1) < 1e-4)[~hidden].all()
    assert not hidden[~stands_in].any(), "a row's own text is never hidden"
    assert 0.65 < float(hidden[stands_in].double().mean()) < 0.85


def test_padding_does_not_matter() -> None:
    model = build(pictures="tokens").eval()
    data = batch()
    short = {"image": data["image"][:1], "tokens": data["tokens"][:1, :3]}
    torch.testing.assert_close(model(data)["joint"][:1], model(short)["joint"])


@pytest.mark.parametrize(
    ("keys", "spec", "complaint"),
    [
        ({"pictures": "patches", "concat": "features"}, {}, r"there are 4 and 6; set model.concat: sequence, or "
         r"data.max_tokens: 4"),
        ({"pictures": "patches", "patch": 5}, {}, "5 does not divide pictures of 32 x 32"),
        ({}, {"num_classes": 1}, "needs at least 2 classes"),
    ],
)  # fmt: skip
def test_refused_shapes(keys: dict[str, Any], spec: dict[str, Any], complaint: str) -> None:
    known = {"image_channels": 1, "image_size": (32, 32), "vocab_size": 50, "max_tokens": 6, "num_classes": 3}
    with pytest.raises(ValueError, match=complaint):
        build(DataSpec(**{**known, **spec}), **keys)
