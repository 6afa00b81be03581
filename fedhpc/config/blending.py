"""Sections of the algorithms that weigh modalities by how they overfit and generalise (ALGORITHMS.md C)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedhpc.config.section import Section

ClientWeight = Literal["examples", "uniform"]


class DgbPcwConfig(Section):
    """Distributed gradient blending and proximity-aware client weighting (arXiv 2401.03609; ALGORITHMS.md C.2, C.3)."""

    name: Literal["dgb_pcw"]
    variant: Literal["normalized", "upstream_product", "upstream_hook"] = "normalized"
    """Learning rates from the weights w of a client's index set I (its modalities and its combination). normalized:
    |I| w_m for encoder m, |I| w_C for the classifier, 1 on average. As released: product: w_m w_C and w_C; hook: w_m
    and w_C."""
    rates: Literal["blended", "shuffled", "static"] = "blended"
    """Where ratios come from. Controls: shuffled: those of the round dealt to combinations at random. static: none, but
    the factors in `static_rates`."""
    static_rates: dict[str, float] = Field(default_factory=dict)
    """static only: factor on the learning rate of a block (``encoder/image: 3``); 1 where a block is not named. As with
    blended ones, clients with one modality keep their rates."""
    similarity: Literal["cosine", "dot"] | None = "cosine"
    """How a client's update is compared with the shared one, to weigh its losses (PCW). null: losses weigh alike."""
    start_round: int = Field(2, ge=2)
    """Rounds count from 0; before this one all learning rates stay as they are. Two rounds of losses are needed."""
    epsilon: float = Field(1e-4, ge=0)
    """Added to O^2, times the squared mean loss. Upstream: 0."""
    winsorise: float | None = Field(10.0, ge=1)
    """Ratios are cut to this many times their median. null: as they are."""
    ema: float = Field(0.5, ge=0, lt=1)
    """What a ratio keeps of its past, from round to round."""
    loss_ema: float = Field(0.0, ge=0, lt=1)
    """What losses keep of their past, before differences are taken: single rounds are noisy."""
    generalisation: Literal["absolute", "improvement"] = "absolute"
    """G: how much the validation loss changed, or how much it fell (0 where it rose)."""
    clip: tuple[float, float] | None = (0.1, 3.0)
    """normalized only: bounds of the factors. null: none."""
    probes: Literal["never", "unpopulated", "always", "heads"] = "unpopulated"
    """A modality's own losses come from the clients that hold it alone; where nobody does (or always), from probes:
    classifiers that each holder trains on its features without moving them. heads: every holder trains the classifier
    of those who hold nothing else, and it moves the encoder, as in gradient blending on pooled data."""
    weight: ClientWeight = "examples"
    """A client's weight in the mean of the blocks that it owns."""

    @model_validator(mode="after")
    def _bounds(self) -> DgbPcwConfig:
        if self.clip is not None and not 0 <= self.clip[0] <= 1 <= self.clip[1]:
            raise ValueError(f"clip: [{self.clip[0]:g}, {self.clip[1]:g}] must hold 1, the mean; set [0.1, 3]")
        if any(rate < 0 for rate in self.static_rates.values()):
            raise ValueError("static_rates: factors on learning rates must be 0 or more")
        if self.rates == "static" and not self.static_rates:
            raise ValueError("rates: static needs static_rates, a factor for at least one block")
        return self


class HgbConfig(Section):
    """Hierarchical gradient blending (Chen, Li, INFOCOM 2022, as in plato): clients blend their modalities' losses, and
    weigh in the mean by how well they generalise."""

    name: Literal["hgb"]
    epsilon: float = Field(1e-4, ge=0)
    """Added to O^2, times the squared loss."""
    winsorise: float | None = Field(10.0, ge=1)
    """A client's modality weights are cut to this many times their median. null: as they are."""
    start_round: int = Field(2, ge=2)
    """Before this round all weigh alike."""
    client_weight: Literal["blended", "examples"] = "blended"
    """blended: G_k / (2 O_k^2), as published. examples: rows; only the blending at the clients is left."""
    max_client_weight: float = Field(10.0, gt=0)
    """Bound of G_k / (2 O_k^2), which explodes where O_k is near 0."""


class GBlendConfig(Section):
    """Gradient blending on pooled data (Wang, Tran, Feiszli, CVPR 2020): reference without privacy."""

    name: Literal["gblend"]
    super_epoch: int = Field(10, ge=1)
    """Rounds between estimates of the weights (online G-Blend)."""
    epsilon: float = Field(1e-4, ge=0)
    """Added to O^2, times the squared loss. Published: 0."""
