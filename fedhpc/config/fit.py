"""Local training: the optimizer, and what a client does in its turn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedhpc.config.section import Section


class OptimizerConfig(Section):
    """The local optimizer of every client. It starts anew in each round unless `keep_state`."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    """SGD only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam and AdamW only."""
    eps: float = Field(1e-8, gt=0)
    """Adam and AdamW only."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate over the whole run: cosine and linear fall to zero at the last step of the last round."""
    warmup_rounds: float = Field(0.0, ge=0)
    """The learning rate rises linearly from zero over this many rounds."""
    keep_state: bool | None = None
    """Carry moments from round to round in client state, those of steps on public data too. Default: only where a
    client never receives new weights (`local`, `centralised`, and where clients own their models)."""


class FitConfig(Section):
    """What a client does in its turn: a budget in steps or epochs, and how a step is made."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps a round. Set this or `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the client's training rows a round. Set this or `steps`."""
    batch_size: int = Field(32, ge=1)
    drop_last: bool = True
    """Leave out an epoch's last, smaller batch (unless it is the only one)."""
    optimizer: OptimizerConfig
    clip_norm: float | None = Field(None, gt=0)
    """Scale gradients down to this L2 norm."""
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients are averaged in one optimizer step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; weights and the exchange stay float32."""
    channels_last: bool = True
    """Memory format of pictures and convolutions."""
    compile: bool = False
    """torch.compile the model. Pays on large models only."""

    @model_validator(mode="after")
    def _one_budget(self) -> FitConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of fit.steps and fit.epochs")
        return self
