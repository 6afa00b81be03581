"""Metrics under many row weights at once: what a bootstrap asks for. weight: float64 [R,N], how often a row counts.

With whole numbers for weights, each equals the plain metric of a set in which every row stands that often.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """values [N] -> float64 [R]."""
    return weight @ values.double() / weight.sum(dim=1)


def weighted_group_mean(values: Tensor, group: Tensor, weight: Tensor) -> Tensor:
    """The mean over groups (those with weight) of the mean over their rows. values [N], group integer [N] -> [R]."""
    names, member = torch.unique(group, return_inverse=True)
    size = weight.new_zeros(len(weight), len(names)).index_add_(1, member, weight)
    total = weight.new_zeros(len(weight), len(names)).index_add_(1, member, weight * values.double())
    present = size > 0
    means = torch.where(present, total / size.clamp(min=1e-300), 0)
    return means.sum(dim=1) / present.sum(dim=1)


def weighted_classification(logits: Tensor, label: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """As `classification_metrics`: "accuracy", "balanced_accuracy", "macro_f1", "auroc", each float64 [R].

    logits: [N,K] float. label: integer [N] in 0..K-1, no row without a label.
    """
    num_classes = logits.shape[1]
    predicted = logits.argmax(dim=1)
    right = (predicted == label).double()
    of_class = torch.nn.functional.one_hot(label.long(), num_classes).double()
    support = weight @ of_class  # [R,K]
    hits = weight @ (of_class * right[:, None])
    calls = weight @ torch.nn.functional.one_hot(predicted, num_classes).double()
    present = support > 0
    count = present.sum(dim=1)
    recall = hits / support.clamp(min=1e-300)
    f1 = 2 * hits / (support + calls).clamp(min=1e-300)
    return {
        "accuracy": weighted_mean(right, weight),
        "balanced_accuracy": torch.where(present, recall, 0).sum(dim=1) / count,
        "macro_f1": torch.where(present, f1, 0).sum(dim=1) / count,
        "auroc": _auroc(logits, label, weight, present),
    }


def _auroc(logits: Tensor, label: Tensor, weight: Tensor, present: Tensor) -> Tensor:
    """One class against the rest, mean over the classes with weight; nan where all weight is on one class."""
    total = weight.new_zeros(len(weight))
    for c in range(logits.shape[1]):
        if not bool(present[:, c].any()):
            continue
        # Log-odds, as in `classification_metrics`; equal ones share a level.
        others = torch.cat([logits[:, :c], logits[:, c + 1 :]], dim=1).double()
        _, level = torch.unique(logits[:, c].double() - others.logsumexp(dim=1), return_inverse=True)
        num_levels = int(level.max()) + 1
        mine = label == c
        positive = weight.new_zeros(len(weight), num_levels).index_add_(1, level[mine], weight[:, mine])
        negative = weight.new_zeros(len(weight), num_levels).index_add_(1, level[~mine], weight[:, ~mine])
        below = negative.cumsum(dim=1) - negative / 2  # ties count half
        pairs = positive.sum(dim=1) * negative.sum(dim=1)
        area = (positive * below).sum(dim=1) / pairs.clamp(min=1e-300)
        total += torch.where(present[:, c], area, 0)
    count = present.sum(dim=1)
    return torch.where(count > 1, total / count, torch.nan)
