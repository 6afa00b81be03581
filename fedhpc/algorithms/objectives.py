"""Loss terms. The maths works on tensors; a Loss applies it to what a model made of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fedhpc.algorithms.local_alignment import local_contrastive_loss, local_similarity
from fedhpc.algorithms.mvp_losses import mvp_loss
from fedhpc.config.joint import FedMvpConfig
from fedhpc.config.objectives import ConvirtConfig, GloriaConfig, MvpConfig, SiglipConfig
from fedhpc.config.schema import DualEncoderConfig, FusionConfig, RunConfig
from fedhpc.interfaces import Batch, Loss

IGNORED_LABEL = -1  # a row without this label


# --------------------------------------------------------------------------------------------------------- maths
def contrastive_loss(image: Tensor, text: Tensor, temperature: Tensor | float) -> Tensor:
    """Image-text alignment L_ITA = CE(s, I) + CE(s^T, I) with s = image @ text.T / temperature; a scalar.

    image, text: [B,E] unit vectors, row i of one belongs to row i of the other. temperature: a number or [1].
    The SUM of both directions, each a mean over the batch (FedDRA, arXiv 2404.03854, released code; ALGORITHMS.md A.3).
    """
    similarity = image @ text.T / temperature
    pairs = torch.arange(similarity.shape[0], device=similarity.device)
    return F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)


def weighted_contrastive_loss(image: Tensor, text: Tensor, temperature: Tensor | float, image_weight: float) -> Tensor:
    """lambda * CE(s, I) + (1 - lambda) * CE(s^T, I), s as in `contrastive_loss` (ConVIRT, Zhang et al. 2020).

    image_weight: lambda, the weight of finding the text of a picture.
    """
    similarity = image @ text.T / temperature
    pairs = torch.arange(similarity.shape[0], device=similarity.device)
    forth, back = F.cross_entropy(similarity, pairs), F.cross_entropy(similarity.T, pairs)
    return image_weight * forth + (1 - image_weight) * back


def sigmoid_loss(image: Tensor, text: Tensor, temperature: Tensor | float, bias: Tensor | float) -> Tensor:
    """-1/B sum_ij log sigmoid(z_ij (image_i . text_j / temperature + bias)), z = 1 for pairs and -1 for all others.

    image, text: [B,E] unit vectors. temperature, bias: numbers or [1]; SigLIP's t is 1 / temperature. Divided by B, not
    B * B (Zhai et al. 2023, algorithm 1).
    """
    logits = image @ text.T / temperature + bias
    sign = 2 * torch.eye(logits.shape[0], dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum() / logits.shape[0]


def cross_entropy_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross entropy over the rows with a label; 0, with a gradient of zeros, when none has one.

    logits: [B,K]. label: integer [B], -1 where a row has none.
    """
    label = label.long()
    total = F.cross_entropy(logits.float(), label, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (label != IGNORED_LABEL).sum().clamp(min=1)


# -------------------------------------------------------------------------------------------------------- losses
# Over a dual encoder's outputs. KeyError when the batch lacked images or tokens. Without autocast: similarities divided
# by a temperature of 0.07 are too coarse in bfloat16.


def image_text_alignment(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """`contrastive_loss` of a dual encoder's embeddings."""
    with torch.autocast(out["image"].device.type, enabled=False):
        return contrastive_loss(out["image"].float(), out["text"].float(), out["log_temperature"].exp())


def weighted_alignment(out: Mapping[str, Tensor], batch: Batch, *, image_weight: float) -> Tensor:
    """`weighted_contrastive_loss` of a dual encoder's embeddings."""
    with torch.autocast(out["image"].device.type, enabled=False):
        image, text = out["image"].float(), out["text"].float()
        return weighted_contrastive_loss(image, text, out["log_temperature"].exp(), image_weight)


def sigmoid_alignment(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """`sigmoid_loss` of a dual encoder's embeddings."""
    with torch.autocast(out["image"].device.type, enabled=False):
        image, text = out["image"].float(), out["text"].float()
        return sigmoid_loss(image, text, out["log_temperature"].exp(), out["logit_bias"])


def word_region_alignment(
    out: Mapping[str, Tensor], batch: Batch, *, attention_scale: float, word_scale: float, local_weight: float
) -> Tensor:
    """`contrastive_loss` of a dual encoder's embeddings, plus `local_weight` times that of words and regions."""
    with torch.autocast(out["image"].device.type, enabled=False):
        temperature = out["log_temperature"].exp()
        mask = out["text_mask"][:, 1:]
        regions, words = out["image_regions"].float(), out["text_words"].float()
        similarity = local_similarity(regions, words, mask, attention_scale, word_scale)
        local = local_contrastive_loss(similarity, mask.any(dim=1), temperature)
        return contrastive_loss(out["image"].float(), out["text"].float(), temperature) + local_weight * local


def cross_entropy(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """`cross_entropy_loss` of a classifier's logits against batch["label"]."""
    return cross_entropy_loss(out["logits"], batch["label"])


def fused_cross_entropy(out: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Mean over the classifiers that train with a batch (one, unless data are pooled) of their `cross_entropy_loss`."""
    losses = [cross_entropy_loss(logits, batch["label"]) for name, logits in out.items() if name.startswith("head/")]
    return torch.stack(losses).mean()


def build_loss(config: RunConfig) -> Loss:
    """What a client minimises when its algorithm names nothing else."""
    objective = config.objective
    if objective is None and isinstance(config.algorithm, FedMvpConfig):
        objective = MvpConfig(name="fedmvp")
    if isinstance(objective, MvpConfig):
        return partial(mvp_loss, **objective.model_dump(exclude={"name"}))
    if isinstance(objective, ConvirtConfig):
        return partial(weighted_alignment, image_weight=objective.image_weight)
    if isinstance(objective, SiglipConfig):
        return sigmoid_alignment
    if isinstance(objective, GloriaConfig):
        return partial(word_region_alignment, **objective.model_dump(exclude={"name"}))
    if isinstance(config.model, FusionConfig):
        return fused_cross_entropy
    return image_text_alignment if isinstance(config.model, DualEncoderConfig) else cross_entropy
