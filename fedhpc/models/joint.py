"""Frozen encoders of pictures and texts, a joint encoder over the tokens of both, one classifier for all (FedMVP,
arXiv 2406.11048; ALGORITHMS.md D.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhpc.config.blocks import block_prefixes
from fedhpc.config.joint import JointConfig
from fedhpc.interfaces import Batch, BlockName, DataSpec
from fedhpc.models.dropout import dropout
from fedhpc.models.text import build_text_encoder
from fedhpc.models.vision import build_image_encoder


class CrossLayer(nn.Module):
    """A transformer layer, norms first, that asks with one sequence and reads another: x + attention(norm x, norm y),
    then x + MLP(norm x) with ReLU and four times the width."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B,T,width] asks y [B,S,width]; mask bool [B,S], True where y is read -> [B,T,width]."""
        asks, read = self.norm1(x), self.norm1(y)
        shape = (len(x), -1, self.num_heads, x.shape[2] // self.num_heads)
        query, key, value = (
            linear(z).view(shape).transpose(1, 2)
            for linear, z in ((self.query, asks), (self.key, read), (self.value, read))
        )
        where = None if mask is None else mask[:, None, None, :]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=where)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class JointEncoder(nn.Module):
    """Picture and text positions -> joint positions. image_width: 0 where the picture's have the right width already.

    A self-attention layer over the picture, cross-attention of each on the other, both side by side, then layers whose
    keys and values are what was put side by side, not what the layer before made of it.
    """

    def __init__(self, config: JointConfig, image_width: int, text_width: int) -> None:
        super().__init__()
        self.by_sequence = config.concat == "sequence"
        narrow = config.narrow
        self.image_in = nn.Identity() if image_width == 0 else nn.Linear(image_width, narrow)
        self.text_in = nn.Linear(text_width, narrow)
        self.image_layer = CrossLayer(narrow, config.cross_heads)
        self.image_asks = CrossLayer(narrow, config.cross_heads)
        self.text_asks = CrossLayer(narrow, config.cross_heads)
        self.layers = nn.ModuleList(CrossLayer(config.width, config.joint_heads) for _ in range(config.joint_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self, image: Tensor, text: Tensor, mask: Tensor, has_image: Tensor, has_text: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """image [B,T,Di], text [B,L,Dt], mask bool [B,L] of the text's tokens, has_* bool [B]: what a row lacks counts
        as zeros.

        Returns joint positions [B,P,width], and a mask bool [B,P] of those that count, or None for all.
        """
        x = with_positions(self.image_in(image) * has_image[:, None, None])
        y = with_positions(self.text_in(text) * has_text[:, None, None])
        mask = mask & has_text[:, None]
        first = torch.zeros_like(mask)
        first[:, 0] = True
        mask = mask | first  # something to read, also in a row without text
        x = self.image_layer(x, x)
        seen, read = self.image_asks(x, y, mask), self.text_asks(y, x)
        counts: Tensor | None = None
        if self.by_sequence:
            both = torch.cat([seen, read], dim=1)
            counts = torch.cat([mask.new_ones(seen.shape[:2]), mask], dim=1)
        else:
            both = torch.cat([seen, read], dim=2)
        out = both
        for layer in self.layers:
            out = layer(out, both, counts)
        return self.norm(out), counts


class JointModel(nn.Module):
    """The whole client model. With one modality: its encoder, projection and the classifier.

    Raises ValueError when the data lack a modality, have fewer than 2 classes, or do not fit the joint encoder.
    """

    def __init__(self, config: JointConfig, spec: DataSpec) -> None:
        super().__init__()
        if spec.num_classes < 2:
            raise ValueError(
                f"model.kind: joint needs at least 2 classes, the data have {spec.num_classes}; set data.label"
            )
        self.config = config
        width = config.width
        self.image_encoder = None if config.image is None else build_image_encoder(config.image, spec)
        self.text_encoder = None if config.text is None else build_text_encoder(config.text, spec)
        if self.image_encoder is not None:
            self.image_project = nn.Linear(self.image_encoder.width, width)
        if self.text_encoder is not None:
            self.text_project = nn.Linear(self.text_encoder.width, width)
        self.embed = nn.Linear(width, width)
        if self.image_encoder is not None and self.text_encoder is not None:
            image_width = self.image_encoder.width
            if config.pictures == "patches":
                _check_patches(config, spec)
                image_width = 0
                self.patches = nn.Conv2d(spec.image_channels, config.narrow, config.patch, config.patch)
                positions = (spec.image_size[0] // config.patch) * (spec.image_size[1] // config.patch)
            else:
                positions = 1 + self.image_encoder.num_regions()
            _check_positions(config, positions, spec.max_tokens)
            self.joint = JointEncoder(config, image_width, self.text_encoder.width)
            self.joint_head = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.classifier = nn.Linear(width, spec.num_classes)
        self.block_prefixes: Mapping[BlockName, tuple[str, ...]] = block_prefixes(config)

    @property
    def has_joint(self) -> bool:
        return self.image_encoder is not None and self.text_encoder is not None

    # ---------------------------------------------------------------------------------------------- frozen encoders
    def features(self, batch: Batch) -> dict[str, Tensor]:
        """What the encoders make of "image" and "tokens", of those that the batch has: "image_tokens" [B,T,Di] (T = 1,
        the global one, where the joint encoder reads patches), "text_tokens" [B,L,Dt], "text_mask" bool [B,L].

        The same names in a batch stand in for it: frozen encoders see each row once.
        """
        found = {}
        if self.image_encoder is not None and "image" in batch:
            whole = self.has_joint and self.config.pictures == "tokens"
            found["image_tokens"] = (
                self.image_encoder(batch["image"])
                if whole
                else self.image_encoder.features(batch["image"]).unsqueeze(1)
            )
        if self.text_encoder is not None and "tokens" in batch:
            mask = self.text_encoder.mask(batch["tokens"])
            tokens = self.text_encoder(batch["tokens"], mask)
            found |= {"text_tokens": tokens if self.has_joint else tokens[:, :1], "text_mask": mask}
        return found

    # ------------------------------------------------------------------------------------------------------ forward
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """batch: "image" [B,C,H,W] and "tokens" [B,L], or what `features` gives; "has_image", "has_text" bool [B], all
        True where they are not there; "made_image", "made_text" bool [B]: which of it only stands in, for
        config.hide_completed.

        Returns "logits" [B,K], of the joint representation or the only modality's; "image", "text" [B,width] of length
        1 and "joint" [B,width] at most that; "logits/image", "logits/text" [B,K], by the same classifier.
        """
        known = {**batch, **{k: v for k, v in self.features(_unknown(batch)).items() if k not in batch}}
        out: dict[str, Tensor] = {}
        for name in self.config.modalities:
            projected = getattr(self, f"{name}_project")(known[f"{name}_tokens"][:, 0].float())
            out[name] = F.normalize(self.embed(projected), dim=1)
            out[f"logits/{name}"] = self.classifier(out[name])
        if not self.has_joint:
            [name] = self.config.modalities
            return out | {"logits": out[f"logits/{name}"]}
        out["joint"] = joint = self._joint(known)
        hidden = dropout(self.joint_head[0](joint).relu(), self.config.dropout, self.training)
        out["logits"] = self.classifier(self.joint_head[1](hidden) + joint)
        return out

    def _joint(self, known: Batch) -> Tensor:
        """[B,width]: the mean over positions of unit vectors."""
        if self.config.pictures == "patches":
            image = self.patches(known["image"]).flatten(2).transpose(1, 2)
        else:
            image = known["image_tokens"]
        text = known["text_tokens"]
        every = torch.ones(len(text), dtype=torch.bool, device=text.device)
        has_image, has_text = (self._seen(name, known, every) for name in ("image", "text"))
        positions, counts = self.joint(image.float(), text.float(), known["text_mask"], has_image, has_text)
        unit = F.normalize(self.embed(positions), dim=2)
        if counts is None:
            return unit.mean(dim=1)
        return (unit * counts[:, :, None]).sum(dim=1) / counts.sum(dim=1, keepdim=True)

    def _seen(self, name: str, known: Batch, every: Tensor) -> Tensor:
        """bool [B]: rows that have a modality, without stand-ins that are hidden in this step."""
        has = known.get(f"has_{name}", every)
        if not self.training or f"made_{name}" not in known:
            return has
        hidden = torch.rand(len(has), device=has.device) < self.config.hide_completed
        return has & ~(known[f"made_{name}"] & hidden)


def with_positions(x: Tensor) -> Tensor:
    """x [B,T,D] plus sinusoids of the position (Vaswani et al. 2017)."""
    _, length, width = x.shape
    place = torch.arange(length, dtype=torch.float32, device=x.device)[:, None]
    step = torch.arange(0, width, 2, dtype=torch.float32, device=x.device)
    angle = place * torch.exp(-math.log(10_000.0) / width * step)
    return x + torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


def _unknown(batch: Batch) -> Batch:
    """Inputs whose features the batch lacks."""
    given = {"image": "image_tokens", "tokens": "text_tokens"}
    return {name: batch[name] for name, made in given.items() if name in batch and made not in batch}


def _check_patches(config: JointConfig, spec: DataSpec) -> None:
    height, width = spec.image_size
    if height % config.patch or width % config.patch:
        raise ValueError(
            f"model.patch: {config.patch} does not divide pictures of {height} x {width}; set a divisor, or "
            "model.pictures: tokens"
        )


def _check_positions(config: JointConfig, image: int, text: int) -> None:
    if config.concat == "features" and image != text:
        cut = f"data.max_tokens: {image}" if image < text else f"texts packed with --max-tokens {image}"
        raise ValueError(
            f"model.concat: features puts positions of pictures and texts side by side, but there are {image} and "
            f"{text}; set model.concat: sequence, or {cut}"
        )
