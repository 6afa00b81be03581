"""FedMVP's losses (ALGORITHMS.md D.2): joint and single-modality representations of a row are pulled together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedhpc.interfaces import Batch

IGNORED_LABEL = -1
MODALITIES = ("image", "text")


def matching_loss(joint: Tensor, single: Tensor, temperature: float) -> Tensor:
    """MCM for one modality: the mean over 2B rows Z = [joint; single] of -log of the share that a row's partner has
    among all other rows, exp(<., .> / temperature). NT-Xent, as in GMC (Poklukar et al., ICML 2022).

    joint, single: [B,D]; row i of one belongs to row i of the other. 0 for B = 0.
    """
    b = len(joint)
    if b == 0:
        return joint.sum()
    z = torch.cat([joint, single])
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * b, dtype=torch.bool, device=z.device), float("-inf"))
    partner = torch.arange(2 * b, device=z.device).roll(b)
    return F.cross_entropy(similarity, partner)


def margin_loss(
    joint: Tensor,
    single: Tensor,
    joint_loss: Tensor,
    single_loss: Tensor,
    form: Literal["batch", "per_sample"],
) -> Tensor:
    """RAM for one modality: the distance of representations where the single modality's cross entropy is lower.

    joint, single: [B,D]; joint_loss, single_loss: cross entropy by row [B].
    batch: 1[mean single < mean joint] |joint - single|_F / B. per_sample: the mean over rows of 1[single_i < joint_i]
    |joint_i - single_i|, single without gradient.
    """
    b = max(1, len(joint))
    if form == "batch":
        gate = (single_loss.sum() < joint_loss.sum()).float()
        return gate * _norm((joint - single).flatten()) / b
    gate = (single_loss < joint_loss).float()
    return (gate * _norm(joint - single.detach())).sum() / b


def mvp_loss(
    out: Mapping[str, Tensor],
    batch: Batch,
    *,
    mcm: float,
    ram: float,
    temperature: float,
    ram_form: Literal["batch", "per_sample"],
    normalise: bool,
) -> Tensor:
    """CE of the joint logits + mcm L_MCM + ram L_RAM over what `JointModel` makes of a batch.

    A row counts in a modality's terms where it has that modality (batch["has_image"], batch["has_text"]; all where they
    are not there), and a label.
    """
    label = batch["label"].long()
    known = label != IGNORED_LABEL
    joint_loss = F.cross_entropy(out["logits"].float(), label, ignore_index=IGNORED_LABEL, reduction="none")
    loss = joint_loss.sum() / known.sum().clamp(min=1)
    joint = out["joint"].float()
    for name in MODALITIES:
        has = batch.get(f"has_{name}", torch.ones_like(known))
        single, logits = out[name].float(), out[f"logits/{name}"].float()
        if mcm:
            matched = F.normalize(joint[has], dim=1) if normalise else joint[has]
            # The mean over B rows of both modalities, as released: a modality that few rows have counts less.
            share = has.sum() / len(has)
            loss = loss + mcm * share * matching_loss(matched, single[has], temperature)
        if ram:
            both = has & known
            single_loss = F.cross_entropy(logits[both], label[both], reduction="none")
            share = both.sum() / len(has)
            loss = loss + ram * share * margin_loss(joint[both], single[both], joint_loss[both], single_loss, ram_form)
    return loss


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, with gradient 0 at 0."""
    square = x.square().sum(dim=-1)
    return torch.where(square > 0, square.clamp(min=1e-24).sqrt(), torch.zeros_like(square))
