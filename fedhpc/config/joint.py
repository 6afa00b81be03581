"""A classifier over pictures and texts with frozen encoders, rows that lack one of them, and FedMVP (arXiv 2406.11048;
ALGORITHMS.md D)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fedhpc.config.encoder import EncoderConfig
from fedhpc.config.section import Section


class JointConfig(Section):
    """Encoders of pictures and texts, a joint encoder over the tokens of both, one classifier for the joint
    representation and for those of single modalities (FedMVP, D.1). Learns `data.label`."""

    kind: Literal["joint"]
    image: EncoderConfig | None = None
    """A timm encoder. Not set: a model of texts only, without a joint encoder."""
    text: EncoderConfig | None = None
    """A transformers encoder. Not set: a model of pictures only, without a joint encoder."""
    width: int = Field(512, ge=2)
    """Of representations."""
    pictures: Literal["patches", "tokens"] = "patches"
    """What the joint encoder sees of a picture. patches: a trained convolution over its pixels, as released. tokens:
    those of the image encoder."""
    patch: int = Field(16, ge=1)
    """Side of a patch in pixels; must divide the pictures' sides. pictures: patches only."""
    concat: Literal["features", "sequence"] = "features"
    """How picture and text meet after cross-attention. features: position by position, as released, which needs as many
    positions of both. sequence: one after the other, whatever their numbers."""
    cross_heads: int = Field(4, ge=1)
    """Attention heads of the layers before both meet."""
    joint_heads: int = Field(8, ge=1)
    """And of those after it."""
    joint_layers: int = Field(3, ge=1)
    """Layers after both meet."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """In the classifier."""
    missing: Literal["drop", "zeros"] = "drop"
    """What becomes of a training row that lacks a modality, and that no `completion` completed. drop: left out. zeros:
    zeros in place of what it lacks."""
    hide_completed: float = Field(0.0, ge=0, lt=1)
    """Probability that, in a training step, the joint encoder gets zeros in place of what a row was completed with: it
    learns to do without. The losses of single modalities see it all the same."""
    cache: bool = True
    """Compute what frozen encoders make of the data once, and keep it beside the packed file (or in
    data.sidecar_dir)."""

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(name for name in ("image", "text") if getattr(self, name) is not None)

    @property
    def narrow(self) -> int:
        """Width before picture and text meet."""
        return self.width if self.concat == "sequence" else self.width // 2

    @property
    def encoders(self) -> tuple[EncoderConfig, ...]:
        return tuple(encoder for encoder in (self.image, self.text) if encoder is not None)

    @property
    def frozen(self) -> bool:
        """All encoders are."""
        return all(encoder.freeze for encoder in self.encoders)

    @model_validator(mode="after")
    def _has_modalities(self) -> JointConfig:
        if not self.modalities:
            raise ValueError("no modality: set model.image, model.text or both")
        return self


class MissingConfig(Section):
    """Training rows that lose their picture or their text, on purpose: drawn once from random_seed, the same rows
    whatever the model and the algorithm, and written into the run folder. More rows lose something at a larger ratio,
    never others."""

    ratio: list[float]
    """beta, the share of a client's training rows that lose one of both: one for all, or a list: client k has the (k
    mod length)-th."""
    image_share: float = Field(0.5, ge=0, le=1)
    """Of the rows that lose something, the share that loses the picture; the others lose the text."""
    rule: Literal["random", "label", "site"] = "random"
    """random: every row alike (MCAR). label: some classes lose more than others, site: some sites do (MNAR); which
    ones is drawn."""
    label: str | None = None
    """rule: label only: the label column. Default: data.label."""
    strength: float = Field(1.0, gt=0)
    """label and site only: a row of the value most hit is e^(2 strength) times as likely to be drawn next as one of the
    value least hit."""

    @field_validator("ratio", mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @field_validator("ratio")
    @classmethod
    def _is_share(cls, value: list[float]) -> list[float]:
        if not value or not all(0 <= ratio <= 1 for ratio in value):
            raise ValueError(f"missing.ratio = {value}: each is a share; set 0 to 1, or a list of such")
        return value

    @model_validator(mode="after")
    def _one_ratio_over_sites(self) -> MissingConfig:
        if self.rule == "site" and len(self.ratio) > 1:
            raise ValueError("missing.rule: site spreads one ratio over the sites; set a single missing.ratio")
        return self

    def ratio_of(self, client: int) -> float:
        return self.ratio[client % len(self.ratio)]


class FedMvpConfig(Section):
    """FedMVP: clients weigh by how much their representations of a public set have in common with those of the others
    (arXiv 2406.11048; ALGORITHMS.md D.4). Its losses are `objective: {name: fedmvp}`."""

    name: Literal["fedmvp"]
    cka: Literal["linear", "unbiased_minibatch"] = "linear"
    """linear: over the whole public set, as released; inflated where it has fewer rows than model.width.
    unbiased_minibatch: over batches of public.batch_size."""
    representation: Literal["joint", "all"] = "joint"
    """What is compared: the joint representation, or the mean over it and those of both single modalities."""
    self_loop: bool = True
    """Count a client's likeness with itself, 1, as released: weights are then closer to uniform."""
    power: float = Field(1.0, gt=0)
    """Weights are taken to this power: above 1 they differ more."""
    prior: Literal["none", "examples"] = "none"
    """examples: weights are multiplied by the number of a client's training rows."""


class CreamFlConfig(Section):
    """CreamFL: clients own their models and agree, on public pairs, with a server's model about representations (Yu et
    al., ICLR 2023, arXiv 2302.08888). Weights and temperatures without a word are those of the released code."""

    name: Literal["creamfl"]
    inter: float = Field(0.5, ge=0)
    """Weight of the contrast against the server's representations of the other modality."""
    intra: float = Field(0.5, ge=0)
    """Weight of the contrast between the server's representations of the same modality and a client's own of before."""
    temperature: float = Field(0.5, gt=0)
    """Similarities in both are divided by it."""
    public_epochs: int = Field(1, ge=1)
    """A client's passes over the public set in each round, after its own rows (released: 5 of each, in turns)."""
    score_temperature: float = Field(1.0, ge=0.2)
    """Of the scores by which clients weigh, row by row; smaller: the best one counts more. A sum in fixed point holds
    weights between exp(-2 / t) and exp(2 / t)."""
    server_epochs: int = Field(1, ge=0)
    """The server's passes over the public pairs in each round, before the clients'."""
    server_temperature: float = Field(0.1, gt=0)
    """Of the server's contrast over a public batch. Ours: the released one is another loss (PCME's)."""
    distill: float = Field(0.3, ge=0)
    """Weight of the mean squared distance between the server's representations and the clients' ensemble."""
    distill_epochs: int = Field(1, ge=1)
    """Passes over the public set towards the ensemble, in each round."""
    public_learning_rate: float | None = Field(None, gt=0)
    """Of all steps on public data. Default: that of fit.optimizer, with its schedule."""
