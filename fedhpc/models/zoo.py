"""From a config's model section to a module. All modules take a batch, return named outputs, and name their blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedhpc.config.blocks import block_prefixes
from fedhpc.config.objectives import CrossEntropyConfig, MvpConfig, ObjectiveConfig
from fedhpc.config.schema import ClassifierConfig, DualEncoderConfig, EncoderConfig, FusionConfig, JointConfig, Model
from fedhpc.interfaces import Batch, BlockName, DataSpec
from fedhpc.models.dropout import dropout
from fedhpc.models.dual_encoder import DualEncoder
from fedhpc.models.fusion import FusionModel
from fedhpc.models.joint import JointModel
from fedhpc.models.small import BUILDERS, SmallNetwork, build_small
from fedhpc.models.vision import ImageEncoder, build_image_encoder

CNN_WIDTHS = {"cnn": (32, 64, 128), "cnn_tiny": (8, 16, 32)}  # channels of both convolutions, features
CNN_DROPOUT = 0.5


def build_model(config: Model, spec: DataSpec, objective: ObjectiveConfig | None = None) -> nn.Module:
    """The model of `config` for the data of `spec`, in train mode on the CPU, with what `objective` needs beyond it.

    Random weights come from torch's global generator: the same torch.manual_seed gives the same model.
    The module's forward(batch) returns a dict of tensors; `block_prefixes` maps block names to parameter name prefixes.

    Raises ValueError when config and data do not fit.
    """
    if isinstance(config, DualEncoderConfig):
        assert not isinstance(objective, CrossEntropyConfig | MvpConfig), "config.checks refuses it"
        return DualEncoder(config, spec, objective)
    if isinstance(config, FusionConfig):
        return FusionModel(config, spec)
    if isinstance(config, JointConfig):
        return JointModel(config, spec)
    return Classifier(config, spec)


def build_networks(config: ClassifierConfig, spec: DataSpec, item: int) -> Classifier:
    """The `item`-th of config.networks, as `build_model`. Raises ValueError that names it."""
    try:
        return Classifier(config.of(item), spec)
    except ValueError as error:
        raise ValueError(str(error).replace("model.image", f"model.networks[{item}]")) from error


class CnnEncoder(nn.Module):
    """The network of the throughput benchmark (McMahan et al. 2017's CIFAR network as LEAF and pfl-research use it).

    Two 3x3 convolutions without padding, a 2x2 maximum, dropout 0.25, one linear layer: [B,C,H,W] -> [B,width].
    """

    def __init__(self, widths: tuple[int, int, int], spec: DataSpec) -> None:
        super().__init__()
        first, second, self.width = widths
        height, width = spec.image_size
        rows, columns = (height - 4) // 2, (width - 4) // 2
        if rows < 1 or columns < 1:
            raise ValueError(f"model.image.name: cnn needs pictures of at least 6 x 6, the set has {height} x {width}")
        self.conv1 = nn.Conv2d(spec.image_channels, first, 3)
        self.conv2 = nn.Conv2d(first, second, 3)
        self.linear = nn.Linear(second * rows * columns, self.width)
        self.inplace = True  # as of nn.ReLU; hooks on layers cannot have it

    def features(self, images: Tensor) -> Tensor:
        relu = torch.relu_ if self.inplace else torch.relu
        # ReLU after the maximum instead of before it: the same numbers and gradients, a quarter of the work.
        x = relu(self.conv1(images))
        x = relu(torch.max_pool2d(self.conv2(x), 2))
        x = dropout(x, 0.25, self.training)
        # Features in the order height, width, channel: without a copy where memory is channels_last.
        return relu(self.linear(x.permute(0, 2, 3, 1).flatten(1)))

    forward = features


class Classifier(nn.Module):
    """An image encoder and a linear layer over its features."""

    def __init__(self, config: ClassifierConfig, spec: DataSpec) -> None:
        super().__init__()
        if spec.num_classes < 2:
            raise ValueError(
                f"model.kind: classifier needs at least 2 classes, the data have {spec.num_classes}; set data.label"
            )
        self.dropout = config.head_dropout or 0.0
        [image] = config.encoders
        self.encoder: CnnEncoder | ImageEncoder | SmallNetwork
        if image.name in CNN_WIDTHS:
            _check_own(image, spec, ("pretrained", "options", "freeze"))
            self.encoder = CnnEncoder(CNN_WIDTHS[image.name], spec)
            if config.head_dropout is None:
                self.dropout = CNN_DROPOUT
        elif image.name in BUILDERS:
            _check_own(image, spec, ("pretrained", "freeze"))
            self.encoder = build_small(image, spec)
        else:
            self.encoder = build_image_encoder(image, spec)
        self.embed = nn.Identity() if config.embed_dim is None else nn.Linear(self.encoder.width, config.embed_dim)
        self.head = nn.Linear(config.embed_dim or self.encoder.width, spec.num_classes)
        self.block_prefixes: Mapping[BlockName, tuple[str, ...]] = block_prefixes(config)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """batch["image"] [B,C,H,W] -> "logits" [B,num_classes], "image_features" [B,width or embed_dim]."""
        features = self.embed(self.encoder.features(batch["image"]))
        kept = dropout(features, self.dropout, self.training) if self.dropout else features
        return {"logits": self.head(kept), "image_features": features}


def _check_own(config: EncoderConfig, spec: DataSpec, not_taken: tuple[str, ...]) -> None:
    if spec.image_channels == 0:
        raise ValueError("model.image is set, but the packed set has no pictures")
    idle = [key for key in not_taken if getattr(config, key)]
    if idle:
        raise ValueError(
            f"model.image: {', '.join(idle)} is not for name: {config.name}; remove it, or choose a timm network"
        )
