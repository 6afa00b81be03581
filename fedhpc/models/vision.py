"""Image encoders from timm, read as token sequences whose first token stands for the whole picture.

timm is imported when an encoder is built, not before: it takes half a second and pulls in torchvision.
"""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedhpc.config.schema import EncoderConfig
from fedhpc.interfaces import DataSpec
from fedhpc.models.towers import build_tower, is_tower
from fedhpc.models.unused import drop_unused

logger = logging.getLogger(__name__)

FROM_DATA = {"in_chans": "channels", "img_size": "size", "num_classes": "classes"}


class ImageEncoder(nn.Module):
    """A timm network; forward gives tokens [B,T,width], token 0 is the global one.

    Token 0 is the class token where the network has one. Other transformers get the mean of their patch tokens put in
    front, convolutional networks the mean of their feature map [B,width,H,W], followed by its H*W positions.

    width: features a token. frozen: weights stay as they are, and the encoder in eval mode whatever train() says.
    """

    def __init__(self, net: nn.Module, spec: DataSpec, *, freeze: bool = False) -> None:
        super().__init__()
        self.net = net
        self.in_shape = (spec.image_channels, *spec.image_size)
        self.frozen = freeze
        # timm's formats: NHWC is what Swin-like transformers give, NLC a plain token sequence.
        self._channels_last = str(getattr(net, "output_fmt", "NCHW")).upper().endswith("NHWC")
        self._has_class_token = isinstance(getattr(net, "cls_token", None), Tensor)
        self._num_prefix = int(getattr(net, "num_prefix_tokens", 0))
        picture = torch.zeros(1, *self.in_shape)
        self.removed = drop_unused(self, lambda: self.features(picture))
        self.eval()
        with torch.no_grad():
            self.width: int = self.features(picture).shape[1]
        self.train()
        if freeze:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> ImageEncoder:
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """images [B,C,H,W] float -> tokens [B,T,width]. ValueError when C, H, W are not what it was built for."""
        x = self._run(images)
        if x.ndim == 3 and self._has_class_token:
            return x
        x = self._as_sequence(x)
        return torch.cat([self._mean(x), x], dim=1)

    def features(self, images: Tensor) -> Tensor:
        """images [B,C,H,W] float -> the global token alone [B,width]."""
        x = self._run(images)
        if x.ndim == 2:
            return x
        if x.ndim == 3 and self._has_class_token:
            return x[:, 0]
        if x.ndim == 4 and not self._channels_last:
            return x.mean(dim=(2, 3))
        return self._mean(self._as_sequence(x))[:, 0]

    def regions(self, tokens: Tensor) -> Tensor:
        """Of forward's tokens [B,T,width], those that stand for a place in the picture [B,R,width]: neither the global
        one nor class tokens and registers."""
        return tokens[:, max(1, self._num_prefix) if self._has_class_token else 1 + self._num_prefix :]

    def num_regions(self) -> int:
        """How many tokens `regions` leaves. Before the encoder moves to a GPU."""
        training = self.training
        self.eval()
        with torch.no_grad():
            tokens = self(torch.zeros(1, *self.in_shape))
        self.train(training)
        return self.regions(tokens).shape[1]

    def _run(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.in_shape:
            raise ValueError(
                f"the image encoder was built for pictures of channels, height, width {self.in_shape}, "
                f"the batch has {tuple(images.shape[1:])}; feed it the packed set that the model was built from"
            )
        return cast(Tensor, cast(Any, self.net).forward_features(images))

    def _as_sequence(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return x.flatten(1, 2) if self._channels_last else x.flatten(2).transpose(1, 2)
        return x.unsqueeze(1) if x.ndim == 2 else x

    def _mean(self, x: Tensor) -> Tensor:
        return x[:, self._num_prefix :].mean(dim=1, keepdim=True)


def build_image_encoder(config: EncoderConfig, spec: DataSpec) -> ImageEncoder:
    """The encoder that `config` names, for pictures of `spec`.

    name: a timm name; or a folder written by timm (``config.json``) or a hub id, whose architecture is then taken; or a
    vision tower of transformers (towers.py).
    pretrained: a folder written by timm with ``model.safetensors``; a ``.safetensors`` file for `name`; a hub id
    (``hf-hub:owner/model``); or a tag of timm's own weights (``augreg_in21k``). Loading is strict; position embeddings
    are resampled to the size of the pictures, and the first convolution to their channels, by timm.

    Raises ValueError for unknown names, weights that do not fit, options that the network does not take, and pictures
    that it cannot read.
    """
    if spec.image_channels == 0:
        raise ValueError("model.image is set, but the packed set has no pictures; pack them, or remove the encoder")
    if is_tower(config):
        return ImageEncoder(build_tower(config, spec), spec, freeze=config.freeze)
    taken = sorted(FROM_DATA.keys() & config.options.keys())
    if taken:
        raise ValueError(f"model.image.options: {', '.join(taken)} is taken from the packed set; remove it")
    source, arguments = _source(config)
    net = _create(source, config, spec, arguments)
    _check_patches(config, net, spec)
    try:
        return ImageEncoder(net, spec, freeze=config.freeze)
    except (RuntimeError, AssertionError, ValueError) as error:
        height, width = spec.image_size
        raise ValueError(
            f"model.image.name: {config.name} cannot read pictures of {spec.image_channels} x {height} x {width}: "
            f"{error}; choose another network or pack another image size"
        ) from error


def _source(config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    """timm's model name and the arguments that say where weights come from."""
    name, pretrained = config.name, config.pretrained
    from_name = _location(name, "name")
    if pretrained is None:
        if from_name is not None:
            logger.warning("model.image: only the architecture of %s; set pretrained to load weights", name)
            return from_name, {"num_classes": 0}
        base, tag = _known(name)
        if tag:
            raise ValueError(
                f"model.image.name: {name} names weights, but pretrained is not set; "
                f"set name: {base} and pretrained: {tag}, or remove .{tag} for random weights"
            )
        return base, {"num_classes": 0}
    # Classes are left as the weights have them: only then does timm load strictly. The head is dropped afterwards.
    path = Path(pretrained).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(
                f"model.image.pretrained: {pretrained} is no .safetensors file; convert it, pickles are not read"
            )
        if from_name is not None:
            raise ValueError(
                f"model.image.pretrained: {pretrained} is a bare file; set name to the timm name of its network"
            )
        base, _ = _known(name)
        return base, {"pretrained": True, "pretrained_cfg_overlay": _describe_file(base, path)}
    located = _location(pretrained, "pretrained")
    if located is None:
        base, _ = _known(name)
        tag = pretrained.removeprefix(f"{base}.")
        _known(f"{base}.{tag}")
        return f"{base}.{tag}", {"pretrained": True}
    if located.startswith("local-dir:") and not (path / "model.safetensors").is_file():
        raise ValueError(
            f"model.image.pretrained: {pretrained} has no model.safetensors; convert its weights, pickles are not read"
        )
    return located, {"pretrained": True}


def _location(text: str, key: str) -> str | None:
    """timm's address of a local folder or a hub id; None for a plain name."""
    path = Path(text).expanduser()
    if path.is_dir():
        config = path / "config.json"
        if not config.is_file() or "architecture" not in json.loads(config.read_text()):
            raise ValueError(
                f"model.image.{key}: {text} has no config.json that names a timm architecture; "
                f"save the model with timm.models.save_for_hf"
            )
        return f"local-dir:{path}"
    if text.startswith("hf-hub:"):
        return text
    if text.startswith((".", "/", "~")) or text.endswith(".safetensors"):
        raise ValueError(
            f"model.image.{key}: {text} does not exist; give a folder written by timm, a .safetensors file or a hub id"
        )
    return f"hf-hub:{text}" if "/" in text else None


def _known(name: str) -> tuple[str, str]:
    """Architecture and tag of a timm name."""
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has them all"
        raise ValueError(f"model.image.name: timm has no network {base}; {hint}")
    if tag:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
        if tag not in tags:
            have = ", ".join(tags) or "none"
            raise ValueError(f"model.image.pretrained: {base} has no weights {tag}; timm has {have}")
    return base, tag


def _describe_file(base: str, path: Path) -> dict[str, Any]:
    """What timm must know of bare weights: how many classes and channels they were trained for."""
    from safetensors import safe_open
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(base)
    described: dict[str, Any] = {"file": str(path), "custom_load": False, "num_classes": 0, "label_offset": 0}
    with safe_open(path, framework="pt") as weights:
        keys = set(weights.keys())
        for classifier in _names(known.classifier if known else None):
            if f"{classifier}.weight" in keys:
                described["num_classes"] = weights.get_slice(f"{classifier}.weight").get_shape()[0]
        for first in _names(known.first_conv if known else None):
            if f"{first}.weight" in keys and known is not None:
                channels = weights.get_slice(f"{first}.weight").get_shape()[1]
                described["input_size"] = (channels, *known.input_size[1:])
    return described


def _names(value: Any) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _create(source: str, config: EncoderConfig, spec: DataSpec, arguments: dict[str, Any]) -> nn.Module:
    import timm

    arguments = {**arguments, **config.options, "in_chans": spec.image_channels}
    try:
        try:
            net = timm.create_model(source, img_size=spec.image_size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            net = timm.create_model(source, **arguments)  # convolutional networks take pictures of any size
    except OSError as error:
        raise ValueError(
            f"model.image: cannot fetch {source}, and there is no folder {source.removeprefix('hf-hub:')} here: "
            f"{error}; on a node without network set pretrained to a local folder"
        ) from error
    except (TypeError, RuntimeError, ValueError, AssertionError, KeyError, AttributeError) as error:
        options = ", ".join(config.options) or "none set"
        raise ValueError(
            f"model.image: timm cannot build {source} (options: {options}): {error}{_meant(source, str(error))}"
        ) from error
    built = getattr(net, "pretrained_cfg", {}).get("architecture")
    plain = _location(config.name, "name") is None
    if plain and built not in (None, config.name.partition(".")[0]):
        raise ValueError(
            f"model.image.name: {config.name}, but pretrained: {config.pretrained} holds a {built}; set name: {built}"
        )
    return net


def _meant(source: str, error: str) -> str:
    """An option that the network has, near the one that the error says it does not."""
    import timm

    unknown = re.search(r"unexpected keyword argument '(\w+)'", error)
    if unknown is None:
        return ""
    try:
        with torch.device("meta"):
            known = inspect.signature(type(timm.create_model(source)).__init__).parameters
    except (RuntimeError, NotImplementedError):  # it computes with its weights
        return ""
    near = difflib.get_close_matches(unknown[1], set(known) - {"self", "kwargs"}, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _check_patches(config: EncoderConfig, net: nn.Module, spec: DataSpec) -> None:
    """timm's patch embedding silently drops the right and lower edge when patches do not fill the picture."""
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if patch is None or getattr(net.patch_embed, "dynamic_img_pad", False):
        return
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    if spec.image_size[0] % rows or spec.image_size[1] % columns:
        raise ValueError(
            f"model.image: patches of {rows} x {columns} do not fill pictures of {spec.image_size[0]} x "
            f"{spec.image_size[1]}; set options.patch_size to a divisor, or pack another image size ({config.name})"
        )
