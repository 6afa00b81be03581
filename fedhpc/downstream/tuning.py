"""Training of new layers, alone or with the image encoder: AdamW, early stopping on val, the best epoch kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fedhpc.config.downstream import TuneConfig
from fedhpc.config.fit import FitConfig
from fedhpc.models.narrow import channels_last


def thawed_copy(encoder: Any, fit: FitConfig) -> nn.Module:
    """A copy of an image encoder all of whose parameters learn, though the run (of `fit`) may have frozen it.

    Raises ValueError where oneDNN would train it wrongly, as fedhpc.models.narrow says.
    """
    twin: Any = copy.deepcopy(encoder)
    if hasattr(twin, "frozen"):
        twin.frozen = False
    module: nn.Module = twin.requires_grad_(True)
    return channels_last(module) if fit.channels_last else module


def fit_with_patience(
    module: nn.Module,
    groups: list[dict[str, Any]],
    losses: Callable[[int], Iterable[Tensor]],
    score: Callable[[], float],
    config: TuneConfig,
) -> tuple[int, float]:
    """Train `module` in place; it ends with the weights of its best epoch, in eval mode.

    groups: parameters and learning rates, as for torch.optim. losses(epoch): the losses of an epoch's batches, made
    lazily under the present weights. score(): higher is better, asked in eval mode after each epoch.
    Returns the best epoch (from 1) and its score. Raises FloatingPointError when a loss is not finite.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    best, best_epoch, kept = -math.inf, 0, copy.deepcopy(module.state_dict())
    for epoch in range(1, config.max_epochs + 1):
        module.train()
        for loss in losses(epoch):
            if not math.isfinite(float(loss.detach())):
                raise FloatingPointError(f"the loss became {float(loss.detach())}; lower fit.learning_rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            found = score()
        if found > best:
            best, best_epoch = found, epoch
            kept = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    module.load_state_dict(kept)
    module.eval()
    return best_epoch, best
