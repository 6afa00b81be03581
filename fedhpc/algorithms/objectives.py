"""Loss terms. The maths works on tensors; a Loss applies it to what a model made of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedhpc.config.schema import DualEncoderConfig, RunConfig
from fedhpc.interfaces import Batch, Loss

IGNORED_LABEL = -1  # a row without this label


def contrastive_loss(image: Tensor, text: Tensor, temperature: Tensor | float) -> Tensor:
    """Image-text alignment L_ITA = CE(s, I) + CE(s^T, I) with s = image @ text.T / temperature; a scalar.

    image, text: [B,E] unit vectors, row i of one belongs to row i of the other. temperature: a number or [1].
    The SUM of both directions, each a mean over the batch (FedDRA, arXiv 2404.03854, released code; ALGORITHMS.md A.3).
    """
    similarity = image @ text.T / temperature
    pairs = torch.arange(similarity.shape[0], device=similarity.device)
    return F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)


def cross_entropy_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross entropy over the rows with a label; 0, with a gradient of zeros, when none has one.

    logits: [B,K]. label: integer [B], -1 where a row has none.
    """
    label = label.long()
    total = F.cross_entropy(logits.float(), label, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (label != IGNORED_LABEL).sum().clamp(min=1)


def image_text_alignment(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """`contrastive_loss` of a dual encoder's embeddings. KeyError when the batch lacked images or tokens."""
    with torch.autocast(out["image"].device.type, enabled=False):  # similarities / 0.07 are too coarse in bfloat16
        return contrastive_loss(out["image"].float(), out["text"].float(), out["log_temperature"].exp())


def cross_entropy(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """`cross_entropy_loss` of a classifier's logits against batch["label"]."""
    return cross_entropy_loss(out["logits"], batch["label"])


def build_loss(config: RunConfig) -> Loss:
    """What a client minimises when its algorithm names nothing else."""
    return image_text_alignment if isinstance(config.model, DualEncoderConfig) else cross_entropy
