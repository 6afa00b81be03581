import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fedhpc.algorithms.objectives import cross_entropy
from fedhpc.config.schema import ClassifierConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.blocks import FlatModel
from fedhpc.models.zoo import Classifier, build_model

CIFAR = DataSpec(image_channels=3, image_size=(32, 32), num_classes=10)
RESNET = {"name": "resnet10t", "options": {"channels": [8, 8, 16, 16], "stem_width": 8}}


def build(image: dict[str, object], spec: DataSpec = CIFAR, **keys: object) -> Classifier:
    model = build_model(ClassifierConfig(kind="classifier", image=image, **keys), spec)  # type: ignore[arg-type]
    assert isinstance(model, Classifier)
    return model


def make_batch(rows: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(rows) % 10
    return {"image": torch.randn(rows, 3, 32, 32, generator=generator), "label": label}


def wake(model: torch.nn.Module) -> None:
    """ResNet's last norms start at zero, which hides the gradient of what lies before them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and not parameter.any():
                parameter.fill_(0.5)


def test_cnn_is_the_network_of_the_throughput_benchmark() -> None:
    model = build({"name": "cnn"})
    assert sum(p.numel() for p in model.parameters()) == 1_626_442
    assert sum(p.numel() for p in build({"name": "cnn_tiny"}).parameters()) == 224 + 1168 + 100_384 + 330


@pytest.mark.parametrize("channels_last", [False, True])
def test_cnn_by_hand(channels_last: bool) -> None:
    model = build({"name": "cnn_tiny"}).eval()
    batch = make_batch()
    x = F.relu(F.conv2d(batch["image"], model.encoder.conv1.weight, model.encoder.conv1.bias))
    x = F.max_pool2d(F.relu(F.conv2d(x, model.encoder.conv2.weight, model.encoder.conv2.bias)), 2)
    x = x.movedim(1, 3).reshape(len(x), -1)  # the linear layer reads height, width, channel
    features = F.relu(F.linear(x, model.encoder.linear.weight, model.encoder.linear.bias))
    expected = F.linear(features, model.head.weight, model.head.bias)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        batch["image"] = batch["image"].to(memory_format=torch.channels_last)
    out = model(batch)
    assert set(out) == {"logits", "image_features"}
    torch.testing.assert_close(out["image_features"], features)
    torch.testing.assert_close(out["logits"], expected)


def test_cnn_has_dropout_of_its_own_unless_told() -> None:
    batch = make_batch(64)
    torch.manual_seed(0)
    model = build({"name": "cnn_tiny"})
    assert model.dropout == 0.5
    assert not torch.equal(model(batch)["logits"], model(batch)["logits"])
    assert build({"name": "cnn_tiny"}, head_dropout=0.0).dropout == 0.0
    assert build(RESNET).dropout == 0.0
    assert torch.equal(model.eval()(batch)["logits"], model(batch)["logits"])


@pytest.mark.parametrize("image", [{"name": "cnn"}, {"name": "cnn_tiny"}, RESNET])
def test_gradient_reaches_every_parameter(image: dict[str, object]) -> None:
    model = build(image)
    wake(model)
    cross_entropy(model(make_batch(8)), make_batch(8)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("image", [{"name": "cnn_tiny"}, RESNET])
def test_blocks(image: dict[str, object]) -> None:
    model = build(image)
    assert set(FlatModel(model).shared) == {"encoder/image", "head/image"}


def test_frozen_encoder_leaves_the_head() -> None:
    model = build({**RESNET, "freeze": True})
    cross_entropy(model(make_batch()), make_batch()).backward()
    assert set(FlatModel(model).shared) == {"head/image"}


def test_same_seed_same_model() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build({"name": "cnn_tiny"}))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("image", "spec", "match"),
    [
        ({"name": "cnn"}, DataSpec(image_channels=3, image_size=(32, 32)), r"set data\.label"),
        ({"name": "cnn"}, DataSpec(image_channels=3, image_size=(5, 32), num_classes=2), "at least 6 x 6"),
        ({"name": "cnn"}, DataSpec(num_classes=2), "no pictures"),
        ({"name": "cnn", "options": {"x": 1}}, CIFAR, "options is not for name: cnn"),
        ({"name": "cnn", "pretrained": "x"}, CIFAR, "pretrained is not for name: cnn"),
        ({"name": "cnn", "freeze": True}, CIFAR, "freeze is not for name: cnn"),
    ],
)
def test_user_mistakes_are_named(image: dict[str, object], spec: DataSpec, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build(image, spec)


def test_slow_libraries_are_imported_only_where_needed() -> None:
    program = (
        "import sys, torch, fedhpc.models.zoo, fedhpc.algorithms.objectives, fedhpc.metrics.retrieval\n"
        "import fedhpc.metrics.classification\n"
        "from fedhpc.config.schema import ClassifierConfig\n"
        "from fedhpc.interfaces import DataSpec\n"
        "config = ClassifierConfig(kind='classifier', image={'name': 'cnn_tiny'})\n"
        "fedhpc.models.zoo.build_model(config, DataSpec(image_channels=3, image_size=(32, 32), num_classes=10))\n"
        "print({'timm', 'transformers', 'torchmetrics', 'torchvision'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
