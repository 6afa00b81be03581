"""CreamFL's contrasts and how its aggregation weighs clients (arXiv 2302.08888), on tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def inter_modal_loss(own: Tensor, other: Tensor, places: Tensor, temperature: float) -> Tensor:
    """A client's representation of a public row finds, among those that the server has of all public rows in the
    *other* modality, the same row's: mean over the batch of -log softmax_j(<own_i, other_j> / temperature)[places_i].

    own [B,D], other [rows,D] of length 1; places int64 [B]: which public rows the batch has.
    """
    return F.cross_entropy(own @ other.T / temperature, places)


def intra_modal_loss(own: Tensor, same: Tensor, before: Tensor, temperature: float) -> Tensor:
    """Nearer to the server's representation of the row in the *same* modality than to what the client's own model made
    of it at the start of the round, as MOON's: mean of -log e^a / (e^a + e^b), a = <own, same>/t, b = <own, before>/t.

    All [B,D] of length 1.
    """
    near, far = (own * same).sum(dim=1), (own * before).sum(dim=1)
    return F.softplus((far - near) / temperature).mean()


def weights_of_rows(own: Tensor, other: Tensor, temperature: float) -> Tensor:
    """exp(score) of each public row, before clients' are divided by their sum: float64 [rows].

    score_k = log( exp(<own_k, other_k>/t) / sum_{j != k} exp(<own_k, other_j>/t) ), own: the client's representations,
    other: the server's of the other modality, float64 [rows,D] of length 1. A softmax over clients does not notice a
    common factor, so it is the *mean* over j that stands below: the result lies between exp(-2/t) and exp(2/t) whatever
    the client does and however many rows there are, and fixed point can sum it.
    """
    similarity = own @ other.T / temperature
    right = similarity.diagonal()
    wrong = similarity.masked_fill(torch.eye(len(own), dtype=torch.bool, device=own.device), float("-inf"))
    return (right - wrong.logsumexp(dim=1)).exp() * (len(own) - 1)


def share_of_mean(own: Tensor, other: Tensor, temperature: float) -> Tensor:
    """What a client puts into the two sums of the aggregate, side by side: [exp(score) own, exp(score)], float64
    [rows,D+1]."""
    own, other = (F.normalize(x.double(), dim=1) for x in (own, other))
    weight = weights_of_rows(own, other, temperature)[:, None]
    return torch.cat([weight * own, weight], dim=1)


def mean_of_shares(total: Tensor) -> Tensor:
    """sum_c exp(score_c) own_c / sum_c exp(score_c) = the softmax over clients applied: float32 [rows,D].

    total: float64 [rows,D+1], the sum of all clients' `share_of_mean`.
    """
    return (total[:, :-1] / total[:, -1:]).float()
