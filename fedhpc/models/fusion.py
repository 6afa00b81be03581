"""Late fusion: an encoder for each modality, a classifier for each combination of modalities (DGB + PCW,
arXiv 2401.03609; ALGORITHMS.md C.1).

Blocks: ``encoder/<modality>``, ``head/<combination>`` (modalities joined by +), ``probe/<modality>``. What a batch
holds decides which of them work: a client that lacks a modality never touches its encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedhpc.config.blocks import block_prefixes
from fedhpc.config.fusion import FusionConfig
from fedhpc.interfaces import Batch, BlockName, DataSpec
from fedhpc.models.dropout import dropout
from fedhpc.models.tabular import Mlp, build_tabular_encoder
from fedhpc.models.text import TextEncoder, build_text_encoder
from fedhpc.models.vision import ImageEncoder, build_image_encoder

Combination = tuple[str, ...]


def column_of(modality: str) -> str:
    """Its name in a batch."""
    return {"image": "image", "text": "tokens"}.get(modality, f"tabular/{modality}")


def name_of(combination: Sequence[str]) -> str:
    return "+".join(combination)


class FusionModel(nn.Module):
    """The whole model: all encoders, and the heads and probes that `spec.fusion` lists.

    Raises ValueError when the data lack what an encoder reads, or have fewer than 2 classes.
    """

    def __init__(self, config: FusionConfig, spec: DataSpec) -> None:
        super().__init__()
        if spec.num_classes < 2:
            raise ValueError(
                f"model.kind: fusion needs at least 2 classes, the data have {spec.num_classes}; set data.label"
            )
        self.modalities = config.modalities
        self.config = config
        self.spec = spec
        self.encoders = nn.ModuleDict({m: self._encoder(m) for m in self.modalities})
        self.heads = nn.ModuleDict({name_of(c): self._head(len(c)) for c in spec.fusion.heads})
        self.probes = nn.ModuleDict({m: self._head(1) for m in spec.fusion.probes})
        self.block_prefixes: Mapping[BlockName, tuple[str, ...]] = {
            **block_prefixes(config),
            **{f"head/{c}": (f"heads.{c}.",) for c in self.heads},
            **{f"probe/{m}": (f"probes.{m}.",) for m in self.probes},
        }

    def _encoder(self, modality: str) -> nn.Module:
        config, spec = self.config, self.spec
        if modality == "image":
            assert config.image is not None
            return Projected(build_image_encoder(config.image, spec), config.width, config.dropout)
        if modality == "text":
            assert config.text is not None
            return Projected(build_text_encoder(config.text, spec), config.width, config.dropout)
        return build_tabular_encoder(config.tabular[modality], spec.fusion.columns[modality], config.width)

    def _head(self, num_modalities: int) -> Mlp:
        config = self.config
        widths = (num_modalities * config.width, config.head_hidden, self.spec.num_classes)
        return Mlp(widths, config.dropout, last=True)

    # ------------------------------------------------------------------------------------------------ ownership
    def combination(self, held: frozenset[str]) -> Combination:
        """Modalities in the model's order."""
        return tuple(m for m in self.modalities if m in held)

    def head_of(self, held: Combination) -> Combination:
        """The head that a client with these modalities uses; under zero-filling that of all modalities."""
        return self.modalities if self.config.missing == "zeros" else self.spec.fusion.head_of.get(held, held)

    def heads_of(self, held: Combination) -> list[Combination]:
        """All heads that a client with these modalities trains, its own first."""
        own, beside = self.head_of(held), self.spec.fusion.beside
        within = [c for c in self.spec.fusion.heads if c != own and set(c) <= set(held)]
        return [own, *(c for c in within if beside == "all" or (beside == "single" and len(c) == 1))]

    def blocks_of(self, held: frozenset[str]) -> frozenset[BlockName]:
        """What a client with these modalities owns."""
        combination = self.combination(held)
        encoders = self.modalities if self.config.missing == "zeros" else combination
        return frozenset(
            {f"encoder/{m}" for m in encoders}
            | {f"head/{name_of(c)}" for c in self.heads_of(combination)}
            | {f"probe/{m}" for m in combination if m in self.probes}
        )

    def columns_of(self, held: frozenset[str]) -> frozenset[str]:
        """Names in a batch that a client with these modalities can fill; others pass (label, row)."""
        return frozenset(column_of(m) for m in held)

    # -------------------------------------------------------------------------------------------------- forward
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """batch: what it has of "image" [B,C,H,W], "tokens" [B,L], "tabular/<name>" [B,D].

        Returns "logits" [B,K] of the combination's own head, the same as "head/<combination>", as many heads as
        `heads_of` lists; "probe/<modality>" [B,K]; "features/<modality>" [B,width]. Raises ValueError for a batch
        without any modality, or whose combination has no head.
        """
        held = tuple(m for m in self.modalities if column_of(m) in batch)
        if not held or self.head_of(held) not in self.spec.fusion.heads:
            raise ValueError(
                f"the batch has {name_of(held) or 'no modality'}, for which there is no classifier; there are some for "
                f"{', '.join(self.heads)}"
            )
        features = {m: self._features(m, batch[column_of(m)]) for m in held}
        example = features[held[0]]
        if self.config.missing == "zeros":
            for m in self.modalities:
                if m not in features:
                    features[m] = self._features(m, self._nothing(m, len(example), example))
        out = {f"features/{m}": x for m, x in features.items()}
        out |= {f"probe/{m}": self.probes[m](x.detach()) for m, x in features.items() if m in self.probes}
        kept = self._drop_modalities(features)
        for combination in self.heads_of(held):
            given = kept if len(combination) > 1 else features
            parts = [given[m] if m in given else torch.zeros_like(example) for m in combination]
            out[f"head/{name_of(combination)}"] = self.heads[name_of(combination)](torch.cat(parts, dim=1))
        out["logits"] = out[f"head/{name_of(self.head_of(held))}"]
        return out

    def _features(self, modality: str, x: Tensor) -> Tensor:
        features: Tensor = self.encoders[modality](x)
        return features.float()

    def _nothing(self, modality: str, rows: int, like: Tensor) -> Tensor:
        """Zeros for a modality that a batch lacks."""
        spec = self.spec
        if modality == "image":
            return like.new_zeros(rows, spec.image_channels, *spec.image_size)
        if modality == "text":
            return torch.full((rows, spec.max_tokens), spec.pad_token, dtype=torch.int64, device=like.device)
        return like.new_zeros(rows, spec.fusion.columns[modality])

    def _drop_modalities(self, features: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """In training, zeros in place of a row's modality with the configured probability; one always stays."""
        rate = self.config.modality_dropout
        if not self.training or rate == 0 or len(features) < 2:
            return features
        example = next(iter(features.values()))
        noise = torch.rand(len(example), len(features), device=example.device)
        keep = noise >= rate
        keep |= noise == noise.amax(dim=1, keepdim=True)  # the luckiest stays in any case
        return {m: x * keep[:, place, None] for place, (m, x) in enumerate(features.items())}


class Projected(nn.Module):
    """A ready-made encoder's global features, a linear layer, ReLU and dropout: [B,...] -> [B,width]."""

    def __init__(self, encoder: ImageEncoder | TextEncoder, width: int, rate: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(encoder.width, width)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        encoder = self.encoder
        features = encoder.features(x) if isinstance(encoder, ImageEncoder) else encoder(x)[:, 0]
        return dropout(self.linear(features.float()).relu(), self.rate, self.training)
