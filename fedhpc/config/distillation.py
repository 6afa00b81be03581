"""Algorithms whose clients own different networks: what crosses are class scores on public data, or prototypes."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from fedhpc.config.section import Section

Confidence = Literal["none", "rhfl", "rhfl_plus", "stable"]


class SceConfig(Section):
    """Symmetric cross-entropy alpha CE + beta RCE (Wang et al., ICCV 2019). Defaults: the released code of MDH-FL."""

    alpha: float = Field(0.1, ge=0)
    """Weight of the cross-entropy, which fits."""
    beta: float = Field(1.0, ge=0)
    """Weight of the reverse cross-entropy, which a wrong label moves less."""
    A: float = Field(math.log(1e-4), lt=0)
    """What log 0 counts as. RCE = -A (1 - p of the label), so only beta * A matters."""


class RefinementConfig(Section):
    """Dynamic label refinement of RHFL+: labels give way to the network's own softened scores as rounds go by."""

    alpha: float = Field(0.4, ge=0)
    beta: float = Field(0.9, ge=0)
    temperature: float = Field(4.0, gt=0)
    """Logits are divided by it."""
    mu: float = Field(10.0, gt=0)
    """In round t of T the own scores count t / (mu T + t): at most 1 / (mu + 1)."""


class MdhflConfig(Section):
    """Alignment of different networks on public data, robust to wrong labels (arXiv 2308.00155; ALGORITHMS.md B)."""

    name: Literal["mdhfl"]
    ccr: Confidence = "stable"
    """How much a client's scores count with the others. none: all alike; rhfl, rhfl_plus: as released; stable: rhfl
    with the sum of |F| below, so that no sign flips."""
    eta: float | None = Field(None, ge=0)
    """How far confidence leans. Default: 0.5; 1.2 for rhfl_plus."""
    loss_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training rows on which confidence takes its loss, the same ones in every round."""
    fresh_adam: bool = False
    """A new optimizer for each public batch, as released: a step then is about learning_rate * sign(gradient)."""
    public_learning_rate: float | None = Field(None, gt=0)
    """Of the steps on public data. Default: that of fit.optimizer, with its schedule."""
    pretrain_epochs: int = Field(0, ge=0)
    """Local epochs before the first alignment (in round 0)."""
    sce: SceConfig = Field(default_factory=SceConfig)
    """The local loss."""
    last: Literal["training", "alignment"] = "training"
    """What a round, and so the run, ends with: local training as in the paper, or the alignment."""
    targets: Literal["batch", "round"] = "batch"
    """What a client learns from on a public batch. batch: what the others' models make of it in that very step, as in
    the paper. round: what they made of it before all steps of the round, in eval mode: one forward pass more, and one
    sum over clients in place of one a batch."""
    refinement: RefinementConfig | None = None
    """Label refinement in place of `sce` in local training; confidence still takes the loss of `sce`."""
    variant: Literal["sound", "upstream"] = "sound"
    """upstream: what the released code does where it differs: rhfl's confidence whatever its sign, and a new optimizer
    for each public batch and each local training."""


class RhflConfig(MdhflConfig):
    """RHFL (Fang and Ye, CVPR 2022) with its settings; RHFL+ (2024) is {ccr: rhfl_plus, refinement: {}}."""

    name: Literal["rhfl"]  # type: ignore[assignment]
    ccr: Confidence = "rhfl"
    fresh_adam: bool = True
    pretrain_epochs: int = Field(40, ge=0)


class FedMDConfig(Section):
    """FedMD (Li and Wang 2019): every client learns the mean scores of all on public data, then its own rows."""

    name: Literal["fedmd"]
    digest_epochs: int = Field(1, ge=1)
    """Passes over the public data towards the consensus, each round."""
    loss: Literal["mae", "kl"] = "mae"
    """Distance to the consensus: mean absolute error of logits, or KL of softmaxes."""
    public_learning_rate: float | None = Field(None, gt=0)
    """Of the steps on public data. Default: that of fit.optimizer, with its schedule."""
    pretrain_epochs: int = Field(0, ge=0)
    """Local epochs before the first consensus (in round 0)."""


class FedDFConfig(Section):
    """FedDF (Lin et al., NeurIPS 2020): networks of one kind are averaged, each mean then learns what all say."""

    name: Literal["feddf"]
    distill_epochs: int = Field(1, ge=1)
    """Passes over the public data, each round."""
    public_learning_rate: float | None = Field(None, gt=0)
    """Of the steps on public data. Default: that of fit.optimizer, with its schedule."""
    pretrain_epochs: int = Field(0, ge=0)
    """Local epochs before the first mean (in round 0)."""


class FedProtoConfig(Section):
    """FedProto (Tan et al., AAAI 2022): clients pull the features of a class towards the mean of all clients'."""

    name: Literal["fedproto"]
    weight: float = Field(1.0, ge=0)
    """lambda, of the squared distance to the prototype of the label (mean over features)."""
    pretrain_epochs: int = Field(0, ge=0)
    """Local epochs before the first prototypes (in round 0)."""
