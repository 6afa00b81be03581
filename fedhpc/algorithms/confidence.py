"""How much a client's scores count with the others (RHFL's client confidence re-weighting; ALGORITHMS.md B.1.5).

    F_k = (previous loss - loss) / loss         learning efficiency times label quality
    a_k = 1 / (K - 1) + eta F_k / denominator
    w_k = e^a_k / sum_j e^a_j                   rhfl, stable; rhfl_plus: a_k / sum_j a_j

Every client computes its own F, a and w; what crosses are three sums. A client's weight is known to nobody else.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from fedhpc.config.distillation import Confidence
from fedhpc.interfaces import Block, Blocks, Client, Federation, Loss, PerClient

LOSS = "confidence/loss"  # in client state: its loss when it was last measured ...
WEIGHTS = "confidence/weights"  # ... and, for rhfl_plus, its model then
ETA = {"none": 0.0, "rhfl": 0.5, "rhfl_plus": 1.2, "stable": 0.5}
TINY = 1e-8


def efficiency(previous: float, present: float, moved: float = 0.0) -> float:
    """F = (previous - present) / present, divided by 1 + how far the model moved (rhfl_plus)."""
    return (previous - present) / max(present, TINY) / (moved + 1)


def leaning(F: float, sum_F: float, sum_abs_F: float, clients: int, kind: Confidence, eta: float) -> float:
    """a_k. A sum of zero, where the released code divides by it, leaves all alike."""
    denominator = {"rhfl": sum_F, "rhfl_plus": sum_abs_F, "stable": sum_abs_F + TINY}[kind]
    return 1 / (clients - 1) + (eta * F / denominator if denominator else 0.0)


def mean_distance(present: Blocks, before: Blocks) -> float:
    """How far a model moved: L2 norm of the change of each trainable tensor, mean over tensors (RHFL+, released)."""
    norms = [
        float((present[name][spec.name].cpu() - before[name][spec.name].cpu()).norm())
        for name in present
        for spec in present[name].layout.specs
        if spec.trainable
    ]
    return math.fsum(norms) / max(len(norms), 1)


class ConfidenceWeights:
    """Weights of a round's cohort, each at its client.

    Args:
        loss: what confidence is taken from, on `fraction` of a client's training rows, with the labels that it has.
        eta: as published for `kind` when not given.
    """

    def __init__(self, kind: Confidence, eta: float | None, loss: Loss, fraction: float) -> None:
        self.kind = kind
        self._eta = ETA[kind] if eta is None else eta
        self._loss = loss
        self._fraction = fraction

    def weights(self, fed: Federation) -> PerClient[float]:
        """w_k of every client here: 1 / (K - 1) until somebody has two losses to compare."""
        clients = len(fed.cohort)
        alike = 1 / (clients - 1)
        if self.kind == "none":
            return fed.each(lambda client: alike)
        found = fed.each(self.measure)  # F, |F|, and whether it is known
        sum_F, sum_abs_F, known = fed.sum(found, shape=(3,)).tolist()
        if not known:
            return fed.each(lambda client: alike)
        raised = fed.each(partial(self._raised, sum_F, sum_abs_F, clients), found)
        total = float(fed.sum(raised))
        return fed.each(lambda client, own: float(own) / total, raised)

    def measure(self, client: Client) -> Tensor:
        """[F, |F|, 1], or zeros for a client that has no earlier loss; float64."""
        client.resume()
        present = client.measure("train", self._loss, fraction=self._fraction)
        previous, client.state[LOSS] = client.state.get(LOSS), present
        moved = 0.0
        if self.kind == "rhfl_plus":
            now = client.read()
            before = client.state.get(WEIGHTS)
            moved = 0.0 if before is None else mean_distance(now, before)
            client.state[WEIGHTS] = {name: Block(b.flat.clone(), b.layout) for name, b in now.items()}
        if previous is None:
            return torch.zeros(3, dtype=torch.float64)
        F = efficiency(previous, present, moved)
        return torch.tensor([F, abs(F), 1.0], dtype=torch.float64)

    def _raised(self, sum_F: float, sum_abs_F: float, clients: int, client: Client, found: Tensor) -> Tensor:
        a = leaning(float(found[0]), sum_F, sum_abs_F, clients, self.kind, self._eta)
        return torch.tensor(a if self.kind == "rhfl_plus" else math.exp(a), dtype=torch.float64)
