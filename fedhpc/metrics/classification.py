"""How good class scores are. torchmetrics does the counting; it is imported at the first call, as it takes a second."""

from __future__ import annotations

import torch
from torch import Tensor

UNLABELED = -1


def classification_metrics(logits: Tensor, label: Tensor) -> dict[str, float]:
    """ "accuracy", "balanced_accuracy", "macro_f1" and "auroc" (one class against the rest, mean over classes).

    logits: [N,K] float. label: integer [N] in 0..K-1, -1 where a row has none: such rows are left out.

    Classes without a labeled row have no recall: balanced accuracy, F1 and AUROC are means over the classes that occur
    in `label` (predictions of a missing class still count as errors of the true one). AUROC is NaN when all rows are
    of one class.

    Raises ValueError for wrong shapes, labels out of range or no labeled row; FloatingPointError for scores that are
    not finite.
    """
    if logits.ndim != 2 or label.shape != logits.shape[:1]:
        raise ValueError(f"scores are [N,K] and labels [N]; got {tuple(logits.shape)} and {tuple(label.shape)}")
    labeled = label != UNLABELED
    logits, label = logits[labeled].float(), label[labeled].long()
    num_classes = logits.shape[1]
    if len(label) == 0:
        raise ValueError("no row has a label; set data.label to a column that this split has")
    if int(label.min()) < 0 or int(label.max()) >= num_classes:
        raise ValueError(
            f"labels reach from {int(label.min())} to {int(label.max())}, the model scores {num_classes} classes; "
            f"set data.label to the column that it was trained on"
        )
    if not torch.isfinite(logits).all():
        raise FloatingPointError("a score is not finite; the model has diverged, lower fit.optimizer.learning_rate")

    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_recall

    predicted = logits.argmax(dim=1)
    present = torch.bincount(label, minlength=num_classes) > 0
    recall = multiclass_recall(predicted, label, num_classes, average="none")
    f1 = multiclass_f1_score(predicted, label, num_classes, average="none")
    return {
        "accuracy": float((predicted == label).double().mean()),
        "balanced_accuracy": float(recall[present].double().mean()),
        "macro_f1": float(f1[present].double().mean()),
        "auroc": _auroc(logits, label, present),
    }


def _auroc(logits: Tensor, label: Tensor, present: Tensor) -> float:
    """Exact area under the curve, ties count half."""
    from torchmetrics.functional.classification import binary_auroc

    classes = torch.nonzero(present).flatten().tolist()
    if len(classes) < 2:
        return float("nan")
    total = 0.0
    for c in classes:
        # Log-odds order rows as the softmax does, but do not saturate at 1. Their places stand in for them, as
        # torchmetrics squashes whatever leaves [0, 1].
        others = torch.cat([logits[:, :c], logits[:, c + 1 :]], dim=1).double()
        levels, place = torch.unique(logits[:, c].double() - others.logsumexp(dim=1), return_inverse=True)
        total += float(binary_auroc(place.double() / len(levels), (label == c).long()))
    return total / len(classes)
