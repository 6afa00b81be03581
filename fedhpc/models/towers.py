"""Vision towers of transformers' vision-language models, in timm's clothes: CLIP, SigLIP and BLIP-2.

transformers is imported when a tower is built.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedhpc.config.schema import EncoderConfig
from fedhpc.interfaces import DataSpec

CHANNELS = 3  # BLIP-2's are fixed, and pretrained ones have no other
# model type of a folder of a whole model -> of its tower
WHOLE_MODELS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "blip-2": "blip_2_vision_model"}
CLASSES = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "blip_2_vision_model": "Blip2VisionModel",
}
TOWERS = tuple(CLASSES)
FROM_DATA = ("image_size", "num_channels")


class Tower(nn.Module):
    """A vision tower with what `ImageEncoder` asks of a timm network.

    forward_features(images [B,C,H,W]) gives [B,T,width] after the tower's last norm; token 0 is the class token, where
    there is one (not in SigLIP). One grey channel is seen as three equal ones. Position embeddings are interpolated
    where pictures have another size than the tower was trained for.
    """

    def __init__(self, net: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.net = net
        config: Any = net.config
        self.has_class_token = config.model_type != "siglip_vision_model"
        self.num_prefix_tokens = int(self.has_class_token)
        self._normalises_after = config.model_type == "clip_vision_model"  # the others' outputs are normalised already
        self._options = {} if image_size == (config.image_size,) * 2 else {"interpolate_pos_encoding": True}

    @property
    def cls_token(self) -> Tensor | None:
        embeddings: Any = self.net.embeddings
        return cast(Tensor, embeddings.class_embedding) if self.has_class_token else None

    def forward_features(self, images: Tensor) -> Tensor:
        wide = images.expand(-1, CHANNELS, -1, -1) if images.shape[1] == 1 else images
        tokens = self.net(pixel_values=wide, **self._options).last_hidden_state
        if self._normalises_after:
            tokens = cast(Any, self.net).post_layernorm(tokens)
        return cast(Tensor, tokens)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)


def is_tower(config: EncoderConfig) -> bool:
    """Whether model.image means a tower of transformers rather than a network of timm."""
    if config.name in TOWERS:
        return True
    folder = Path(config.pretrained or config.name).expanduser() / "config.json"
    return folder.is_file() and "architecture" not in (read := json.loads(folder.read_text())) and "model_type" in read


def build_tower(config: EncoderConfig, spec: DataSpec) -> Tower:
    """The tower that `config` names.

    name: one of TOWERS; or a folder, whose architecture is then taken. pretrained: a folder of a tower or of the whole
    model that it belongs to, with model.safetensors, or a hub id. Loading is strict.

    Raises:
        ValueError: unknown options, weights that do not fit, and pictures that it cannot read.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if spec.image_channels not in (1, CHANNELS):
        raise ValueError(
            f"model.image.name: {config.name} reads pictures of 1 or 3 channels, the set has {spec.image_channels}; "
            "choose a timm network"
        )
    height, width = spec.image_size
    source = config.pretrained or (config.name if config.name not in TOWERS else None)
    if source is None:
        settings = _with_options(CONFIG_MAPPING[config.name](), config)
        if height != width:
            raise ValueError(f"model.image.name: {config.name} needs square pictures, the set has {height} x {width}")
        settings.image_size = height
    else:
        settings = _with_options(_settings_of(source, config), config)
    if min(height, width) < settings.patch_size or height % settings.patch_size or width % settings.patch_size:
        raise ValueError(
            f"model.image: patches of {settings.patch_size} x {settings.patch_size} do not fill pictures of {height} "
            f"x {width}; set options.patch_size to a divisor, or pack another image size ({config.name})"
        )
    if config.pretrained is None:
        net = _class_of(settings)(settings)
        if any(parameter.dtype != torch.float32 for parameter in net.parameters()):
            net = net.float()  # models of shapes alone have no values to be cast
        return Tower(net, spec.image_size)
    return Tower(_weights(config.pretrained, settings), spec.image_size)


def _settings_of(source: str, config: EncoderConfig) -> Any:
    """The tower's settings in a folder or at a hub id, of the tower alone or of the whole model."""
    from transformers.models.auto.configuration_auto import AutoConfig

    path = Path(source).expanduser()
    try:
        settings = AutoConfig.from_pretrained(str(path) if path.is_dir() else source)
    except OSError as error:
        raise ValueError(f"model.image: cannot load {source}: {error}; give a folder with config.json") from error
    if settings.model_type in WHOLE_MODELS:
        settings = settings.vision_config
    if settings.model_type not in TOWERS or (config.name in TOWERS and settings.model_type != config.name):
        raise ValueError(
            f"model.image.name: {config.name}, but {source} holds a {settings.model_type}; towers are "
            f"{', '.join(TOWERS)}"
        )
    return settings


def _with_options(settings: Any, config: EncoderConfig) -> Any:
    taken = sorted(set(FROM_DATA) & config.options.keys())
    if taken:
        raise ValueError(f"model.image.options: {', '.join(taken)} is taken from the packed set; remove it")
    unknown = [key for key in config.options if not hasattr(settings, key)]
    if unknown:
        close = difflib.get_close_matches(unknown[0], list(settings.to_dict()), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"model.image.options: {settings.model_type} has no {', '.join(unknown)}{hint}")
    return type(settings).from_dict({**settings.to_dict(), **config.options})


def _weights(source: str, settings: Any) -> nn.Module:
    path = Path(source).expanduser()
    try:
        net, info = _class_of(settings).from_pretrained(
            str(path) if path.is_dir() else source,
            config=settings,
            dtype=torch.float32,
            use_safetensors=True,  # pickles are not read
            output_loading_info=True,
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"model.image.pretrained: cannot load {source}: {error}; give a folder with config.json and "
            "model.safetensors, or - on a machine with network - a hub id"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"model.image.pretrained: {source} lacks {', '.join(missing[:3])}; it does not fit the tower")
    return cast(nn.Module, net)


def _class_of(settings: Any) -> Any:
    import transformers

    return getattr(transformers, CLASSES[settings.model_type])
