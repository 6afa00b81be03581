"""One section per algorithm, told apart by `name`. Defaults are the published setting."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedhpc.config.blending import DgbPcwConfig, GBlendConfig, HgbConfig
from fedhpc.config.distillation import FedDFConfig, FedMDConfig, FedProtoConfig, MdhflConfig, RhflConfig
from fedhpc.config.joint import CreamFlConfig, FedMvpConfig
from fedhpc.config.section import Section

ClientWeight = Literal["examples", "uniform"]
UncertaintySet = Literal["chi2", "simplex", "kl"]


class FedAvgConfig(Section):
    """Federated averaging (McMahan et al. 2017, Algorithm 1)."""

    name: Literal["fedavg"]
    weight: ClientWeight = "examples"
    """A client's weight in the mean: its number of training rows, or 1."""


class FedProxConfig(Section):
    """FedAvg with a proximal term (Li et al. 2020, Algorithm 2)."""

    name: Literal["fedprox"]
    mu: float = Field(0.01, ge=0)
    """Strength of the pull mu/2 * ||w - w_shared||^2 towards the round's start."""
    weight: ClientWeight = "examples"


class FedOptConfig(Section):
    """A server optimizer steps on the mean update (Reddi et al. 2021, Algorithm 2; momentum: Hsu et al. 2019)."""

    name: Literal["fedopt"]
    server_optimizer: Literal["momentum", "adam", "yogi"] = "adam"
    server_learning_rate: float | None = Field(None, gt=0)
    """Step size eta of the server. Default: 1 for momentum (then beta1: 0 is FedAvg), 0.01 for Adam and Yogi."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment; the momentum of `momentum`."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of the second moment. Adam and Yogi only."""
    tau: float = Field(1e-3, gt=0)
    """Degree of adaptivity: added to the root of the second moment. Adam and Yogi only."""
    weight: ClientWeight = "examples"

    @property
    def learning_rate(self) -> float:
        if self.server_learning_rate is not None:
            return self.server_learning_rate
        return 1.0 if self.server_optimizer == "momentum" else 0.01


class DroConfig(Section):
    """Distributionally robust client weights q (FedDRA, ALGORITHMS.md A.5): high losses gain weight, within a set."""

    set: UncertaintySet = "chi2"
    """Where q may go: the chi-square ball around uniform weights, the whole simplex, or a KL ball."""
    rho: float = Field(1.0, ge=0)
    """Radius of the ball. chi2: (N - 1) / 2 and more is the whole simplex; of 5 clients, 1 binds when one holds about
    0.75 of the weight, 0.1 at about 0.4."""
    update: Literal["exponentiated", "exact"] = "exponentiated"
    """A step of exponentiated gradient and a projection, or the exact worst case for the present losses."""
    step_size: float = Field(0.5, gt=0)
    """Factor of the losses in the exponent (released code: gamma 0.01 times 50 steps)."""
    apply: Literal["aggregate", "loss_scale", "lr_scale"] = "aggregate"
    """aggregate: shared <- sum q_c w_c. loss_scale, lr_scale: N q_c times a client's loss or learning rate, plain mean.
    Adam does not notice a scaled loss, so loss_scale needs SGD."""
    loss_split: Literal["val", "train"] = "val"
    """Rows on which the shared model's losses are taken after each round."""
    loss_fraction: float = Field(1.0, gt=0, le=1)
    """Share of these rows, the same ones in every round."""
    loss_baseline: Literal["none", "duplicates", "first"] = "none"
    """What is taken off a client's loss, as its level is not only the model's fault. duplicates: what identical
    captions in a batch cost even a perfect model (objective clip only). first: its own loss after its first round."""
    trim: int = Field(0, ge=0)
    """This many clients with the highest losses count with the mean of the others: weights then do not follow outliers
    that nobody can learn (as DORO does with examples: Zhai et al., ICML 2021), nor the hardest clients."""


class StageConfig(Section):
    """A budget in steps or epochs."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_budget(self) -> StageConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of steps and epochs")
        return self


class FedDRAConfig(Section):
    """Two-stage rounds, anchors and robust client weights (FedDRA, arXiv 2404.03854; ALGORITHMS.md A)."""

    name: Literal["feddra"]
    schedule: Literal["alternate", "sequential", "plateau", "joint"] = "alternate"
    """Stage 1 trains alignment blocks and heads on frozen encoders, stage 2 everything. alternate: both in every round;
    sequential: `stage1_rounds` of stage 1, then stage 2 only; plateau: stage 1 until its loss stops improving, then
    stage 2 only; joint: stage 2 only."""
    stage1: StageConfig = Field(default_factory=lambda: StageConfig(steps=20))
    """Budget of stage 1. Stage 2 has the budget of `fit`."""
    stage1_rounds: int | None = Field(None, ge=1)
    """sequential only: rounds before stage 2."""
    plateau_patience: int = Field(3, ge=1)
    """plateau only: rounds without improvement before stage 2."""
    plateau_min_delta: float = Field(0.01, ge=0)
    """plateau only: what counts as an improvement of the mean stage 1 loss, as a share of it."""
    stage2_start: Literal["own", "shared"] = "own"
    """alternate only: clients go on from their own stage 1 weights, or from the mean of all."""
    mu: float = Field(1.0, ge=0)
    """Weight of the constraint loss between embeddings and the anchor's. 0: no anchor."""
    constraint: Literal["mean", "sum"] = "mean"
    """Squared distances are averaged (released code: at most 4 / embed_dim, very weak) or summed over dimensions."""
    dro: DroConfig | None = Field(default_factory=DroConfig)
    """null: no robust weights; clients weigh as `weight` says."""
    weight: ClientWeight = "uniform"
    """Without dro only: a client's weight in the mean."""
    variant: Literal["sound", "upstream"] = "sound"
    """upstream: what the released code does where it differs: the anchor's alignment blocks and heads start apart from
    the model's, the loss is multiplied by q_c under any optimizer, q is back at uniform in every round, and losses are
    taken with the constraint on a tenth of the training rows."""


class ScaffoldConfig(Section):
    """Control variates against client drift (Karimireddy et al. 2020, Algorithm 1, option II). Needs plain SGD."""

    name: Literal["scaffold"]
    server_learning_rate: float = Field(1.0, gt=0)
    """Step size eta_g of the server on the mean update. Clients weigh alike, as in the paper."""


class MoonConfig(Section):
    """Model-contrastive local training (Li, He, Song 2021, Eq. 3 and 4)."""

    name: Literal["moon"]
    mu: float = Field(1.0, ge=0)
    """Weight of the model-contrastive loss; the paper tunes it over 0.1, 1, 5, 10."""
    temperature: float = Field(0.5, gt=0)
    """Cosines are divided by it."""
    weight: ClientWeight = "examples"


class QfflConfig(Section):
    """q-FedAvg: clients with high losses weigh more (Li et al. 2020, Algorithm 2)."""

    name: Literal["qffl"]
    q: float = Field(1.0, ge=0)
    """Weights are F_k^q, F_k the shared model's loss on the client's training rows. 0: FedAvg with uniform weights; the
    paper tunes it between 0.001 and 15."""
    lipschitz: float | None = Field(None, gt=0)
    """L, how fast gradients change. Default: 1 / learning rate, as in the paper. Needed for Adam and AdamW."""
    loss_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training rows on which F_k is taken, the same ones in every round."""


class AflConfig(Section):
    """Agnostic federated learning: robust client weights lambda on the simplex (Mohri et al. 2019), with local steps
    (DRFA: Deng et al. 2020)."""

    name: Literal["afl"]
    step_size: float = Field(0.1, gt=0)
    """gamma: lambda moves by it times the losses. Default: DRFA's released code."""
    loss_split: Literal["val", "train"] = "train"
    """Rows on which losses are taken; the papers' are training rows."""
    loss_fraction: float = Field(1.0, gt=0, le=1)
    """Share of these rows, the same ones in every round."""
    loss_at: Literal["end", "random_step"] = "end"
    """Losses of the round's new shared model, or of the mean model after a random number of local steps (DRFA). The
    latter doubles what is exchanged."""


class LocalConfig(Section):
    """Reference without exchange: every client trains its own model, all from the same start."""

    name: Literal["local"]


class CentralisedConfig(Section):
    """Reference without privacy: one client holds the training rows of all."""

    name: Literal["centralised"]


AlgorithmConfig = Annotated[
    FedAvgConfig
    | FedProxConfig
    | FedOptConfig
    | FedDRAConfig
    | ScaffoldConfig
    | MoonConfig
    | QfflConfig
    | AflConfig
    | MdhflConfig
    | RhflConfig
    | FedMDConfig
    | FedDFConfig
    | FedProtoConfig
    | DgbPcwConfig
    | HgbConfig
    | GBlendConfig
    | FedMvpConfig
    | CreamFlConfig
    | LocalConfig
    | CentralisedConfig,
    Field(discriminator="name"),
]

# One client holds the training rows of all.
POOLED = (CentralisedConfig, GBlendConfig)
# Every client trains its own model; nothing else is ever put in its place.
OWN_MODELS = (LocalConfig, MdhflConfig, FedMDConfig, FedProtoConfig, CreamFlConfig)
# Clients may have different networks.
DIFFERENT_NETWORKS = (*OWN_MODELS, FedDFConfig)
# Compares models on config.public.
ON_PUBLIC_DATA = (MdhflConfig, FedMDConfig, FedDFConfig, FedMvpConfig, CreamFlConfig)
# Only over modalities: model.kind: fusion.
OVER_MODALITIES = (DgbPcwConfig, HgbConfig, GBlendConfig)
