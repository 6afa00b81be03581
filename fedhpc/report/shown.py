"""Metrics that tables show, and their headings."""

from __future__ import annotations

from collections.abc import Mapping

CLASSES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
}
UNSEEN = " (unseen)"  # ends the name of a client whose site took no part in training
SHOWN: Mapping[str, Mapping[str, str]] = {
    "dual_encoder": {
        "in_batch_top_1": "top-1",
        "in_batch_top_5": "top-5",
        "recall_at_1": "R@1",
        "recall_at_5": "R@5",
        "recall_at_10": "R@10",
        "macro_recall_at_1": "macro R@1",
        "chance_recall_at_1": "chance R@1",
    },
    "classifier": CLASSES,
    "fusion": CLASSES,
    "joint": CLASSES
    | {
        "accuracy_image": "picture alone",
        "accuracy_text": "text alone",
        "accuracy_image_zeros": "picture, zero text",
        "accuracy_text_zeros": "text, zero picture",
    },
}
