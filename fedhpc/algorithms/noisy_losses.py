"""Losses of classifiers that wrong labels mislead less, and the distances of alignment on public data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedhpc.algorithms.objectives import IGNORED_LABEL, cross_entropy_loss
from fedhpc.config.distillation import RefinementConfig, SceConfig
from fedhpc.interfaces import Batch, Loss

SMALLEST_SCORE = 1e-7
SMALLEST_LABEL = 1e-4  # label refinement's, as released


def symmetric_cross_entropy(logits: Tensor, label: Tensor, alpha: float, beta: float, A: float) -> Tensor:
    """alpha CE + beta RCE (Wang et al., ICCV 2019), means over the rows with a label; a scalar.

    RCE = -sum_c p_c log y_c with log 0 = A: for one label, -A (1 - p of the label). logits [B,K]; label integer [B], -1
    where a row has none.
    """
    logits, label = logits.float(), label.long()
    known = label != IGNORED_LABEL
    own = logits.softmax(dim=1).gather(1, label.clamp(min=0)[:, None])[:, 0]
    # A score is at least 1e-7, as released, where all K classes count: the sum over the others is 1 - p up to K * 1e-7.
    reverse = -A * (1 - own.clamp(SMALLEST_SCORE, 1.0))
    reverse = (reverse * known).sum() / known.sum().clamp(min=1)
    return alpha * cross_entropy_loss(logits, label) + beta * reverse


def refined_cross_entropy(
    logits: Tensor, label: Tensor, progress: float, alpha: float, beta: float, temperature: float, mu: float
) -> Tensor:
    """Dynamic label refinement of RHFL+ (2024; ALGORITHMS.md B.1.6), mean over the rows with a label; a scalar.

    With p = softmax(logits / temperature) and v = progress / (mu + progress): y = (1 - v) max(onehot, 1e-4) + v p,
    which is not differentiated; loss = -alpha sum y log p - beta sum p log y. progress: rounds done, as a share of all.
    """
    label = label.long()
    known = label != IGNORED_LABEL
    log_p = (logits.float() / temperature).log_softmax(dim=1)
    p = log_p.exp()
    v = progress / (mu + progress)
    onehot = F.one_hot(label.clamp(min=0), logits.shape[1]).to(p.dtype).clamp(min=SMALLEST_LABEL)
    refined = (1 - v) * onehot + v * p.detach()
    loss = -alpha * (refined * log_p).sum(dim=1) - beta * (p * refined.log()).sum(dim=1)
    return (loss * known).sum() / known.sum().clamp(min=1)


def distance_to_rest(logits: Tensor, rest: Tensor) -> Tensor:
    """KL of a weighted sum of others' scores to one's own, mean over rows; a scalar.

    logits [B,K]; rest [B,K] = sum over others of w_j R_j. Its gradient is that of sum_j w_j KL(R_j | R_k)
    (ALGORITHMS.md B.5); the value lacks the spread among the others, a constant.
    """
    weight = rest.sum(dim=1, keepdim=True)
    own = torch.xlogy(rest, rest / weight.clamp(min=SMALLEST_SCORE)) - rest * logits.float().log_softmax(dim=1)
    return own.sum(dim=1).mean()


def sce_loss(config: SceConfig) -> Loss:
    """`symmetric_cross_entropy` of a classifier's logits."""

    def loss(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return symmetric_cross_entropy(out["logits"], batch["label"], config.alpha, config.beta, config.A)

    return loss


def refined_loss(config: RefinementConfig, progress: float) -> Loss:
    """`refined_cross_entropy` of a classifier's logits."""

    def loss(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return refined_cross_entropy(out["logits"], batch["label"], progress, **config.model_dump())

    return loss
