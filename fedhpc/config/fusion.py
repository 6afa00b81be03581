"""Classifiers over several modalities (ALGORITHMS.md C.1), who holds which modality, and how they are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from fedhpc.config.encoder import EncoderConfig
from fedhpc.config.section import Section

NetworkName = Literal["mrna", "mrna_full", "image_features", "clinical"]
# Hidden widths and dropout as published (DGB + PCW, models/multimodal.py and, for mrna, models/misc.py).
NETWORKS: Mapping[str, tuple[tuple[int, ...], float]] = {
    "mrna": ((2048, 1024, 64), 0.6),
    "mrna_full": ((16384, 8192, 4096, 2048, 512, 128, 64), 0.2),
    "image_features": ((64, 64), 0.2),
    "clinical": ((), 0.2),
}


class TabularConfig(Section):
    """A tabular modality and its encoder: linear layers with ReLU and dropout, columns -> widths -> `model.width`."""

    network: NetworkName | None = None
    """Widths and dropout of a published encoder: ``mrna`` 2048-1024-64 (dropout 0.6), ``mrna_full``
    16384-8192-4096-2048-512-128-64 (513.7M parameters for 20,531 genes), ``image_features`` 64-64, ``clinical`` none
    (0.2 each). Set this or `widths`."""
    widths: tuple[int, ...] | None = None
    """Hidden widths; [] is a single layer. Set this or `network`."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """After each layer. Default: the published network's, else 0.2."""
    labels: list[str] = Field(default_factory=list)
    """Make the modality from these label columns, one column a class, instead of reading ``tabular/NAME``."""
    thumbnail: int | None = Field(None, ge=1)
    """Make the modality from the pictures, shrunk to this height and width (area means), instead of reading it."""
    words: bool = False
    """Make the modality from the texts: a column for each token of the vocabulary, log(1 + how often it occurs)."""
    clip: float | None = Field(5.0, gt=0)
    """Values are pulled in to this many standard deviations from the mean. null: as they are."""

    @model_validator(mode="after")
    def _one_network(self) -> TabularConfig:
        if (self.network is None) == (self.widths is None):
            raise ValueError(f"set exactly one of network ({', '.join(NETWORKS)}) and widths")
        if any(width < 1 for width in self.widths or ()):
            raise ValueError(f"widths: {list(self.widths or ())} must all be 1 or more")
        if sum([bool(self.labels), self.thumbnail is not None, self.words]) > 1:
            raise ValueError("labels, thumbnail and words are sources of one modality; set one of them")
        return self

    @property
    def hidden(self) -> tuple[int, ...]:
        if self.widths is not None:
            return self.widths
        assert self.network is not None
        return NETWORKS[self.network][0]

    @property
    def rate(self) -> float:
        """Dropout in effect."""
        if self.dropout is not None:
            return self.dropout
        return NETWORKS[self.network][1] if self.network is not None else 0.2


class FusionConfig(Section):
    """An encoder for each modality, and a classifier over the features of each combination of modalities that a client
    holds (DGB + PCW, C.1). Learns `data.label`."""

    kind: Literal["fusion"]
    image: EncoderConfig | None = None
    """A timm encoder of pictures, followed by a linear layer."""
    text: EncoderConfig | None = None
    """A transformers encoder of texts, followed by a linear layer."""
    tabular: dict[str, TabularConfig] = Field(default_factory=dict)
    """Tabular modalities by their name in the packed file (``rna`` reads ``tabular/rna``)."""
    width: int = Field(16, ge=1)
    """Features that each encoder gives."""
    head_hidden: int = Field(16, ge=1)
    """Hidden width of the classifiers."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """In the classifiers, and on features of pictures and texts."""
    modality_dropout: float = Field(0.0, ge=0, lt=1)
    """In training, each modality of a row is left out of the classifier with this probability, though never all."""
    missing: Literal["heads", "zeros"] = "heads"
    """heads: a classifier for each combination that some client holds. zeros: every client trains the whole model, with
    zeros for what it lacks (zero-filling)."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the order of features and names: image, text, tabular ones as written."""
        plain = [name for name in ("image", "text") if getattr(self, name) is not None]
        return (*plain, *self.tabular)

    @property
    def reads_text(self) -> bool:
        return self.text is not None or any(one.words for one in self.tabular.values())

    @model_validator(mode="after")
    def _has_modalities(self) -> FusionConfig:
        if not self.modalities:
            raise ValueError("no modality: set model.image, model.text or model.tabular")
        for name in self.tabular:
            if name in ("image", "text") or not name or set(name) & set("+/*?[]"):
                raise ValueError(f"tabular: a modality cannot be named {name!r}; use letters, digits, '_' and '-'")
        return self


class ModalitiesConfig(Section):
    """Which client holds which modalities (model.kind: fusion)."""

    preset: Literal[
        "natural", "upper_bound", "tri_modal", "bi_modal", "uni_dominant", "bi_dominant", "tri_dominant"
    ] = "natural"
    """natural: what at least half of a client's training rows have. upper_bound: everybody holds all. The others deal
    modalities to clients in groups of three, and withhold the rest (docs/dgb_pcw.md): tri_modal: all, all but one, a
    single one; bi_modal: the first two modalities, the first, the second; uni_, bi_, tri_dominant: two of three clients
    hold one modality, all but one, or all."""
    of_client: list[list[str]] | None = None
    """Modalities of each client in the order of ids, instead of a preset."""
    min_contributors: int | None = Field(None, ge=2)
    """A block that fewer clients hold is never summed: a sum of one or two shows each. null: no such limit, but under
    aggregation.secure what a masked sum needs."""
    small: Literal["merge", "skip"] = "merge"
    """What becomes of a combination of fewer than min_contributors clients. merge: they use the smallest larger
    combination's classifier, with zeros for what they lack. skip (also where there is none): their classifier stays at
    home."""

    @model_validator(mode="after")
    def _one_way(self) -> ModalitiesConfig:
        if self.of_client is not None and "preset" in self.model_fields_set and self.preset != "natural":
            raise ValueError("set modalities.preset or modalities.of_client, not both")
        if self.of_client is not None and any(not held for held in self.of_client):
            raise ValueError("of_client: every client needs at least one modality")
        return self
