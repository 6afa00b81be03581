"""Rules that put the updates of n clients together when some of them cannot be trusted, on slices of coordinates.

Every rank has the same coordinates of all clients' updates, and no rank has all. A rule that looks at whole updates
(norms, distances) adds up what the ranks' slices come to. Every client counts alike: its number of rows is its own
claim. Coordinates are worked on in `float64` and one client after the other, in operations that round each element by
itself, and sums over coordinates are made chunk by chunk: the result does not depend on how coordinates are dealt out.

Sources:
    median, trimmed mean: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates", ICML 2018, Definitions 1 and 2.
    Krum, Multi-Krum: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent", NeurIPS 2017.
    norm filtering: Gupta, Liu, Vaidya, "Byzantine Fault-Tolerant Distributed Machine Learning with Norm-Based
        Comparative Gradient Elimination", DSN workshops 2021.
    centred clipping: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slices:
    """One rank's coordinates of all clients' updates.

    Attributes:
        rows: float32 [n, s], in the order of clients.
        centre: float32 [s], the last aggregate; zeros before the first.
        over_ranks: (what to add up of a chunk: float64 [n or 1, m] -> float64 [*shape], the values to walk through
            [n or 1, s], shape) -> the sum over all chunks of all ranks, float64 [*shape], of trainable weights alone.
    """

    rows: Tensor
    centre: Tensor
    over_ranks: Callable[[Callable[[Tensor], Tensor], Tensor, tuple[int, ...]], Tensor]

    def norms(self, about: Tensor | None = None) -> list[float]:
        """L2 norms of whole updates [n], less `about` [s] where given."""
        values = self.rows if about is None else self.rows.double() - about
        return self.over_ranks(_squares, values, (len(self.rows),)).sqrt().tolist()

    def distances(self) -> Tensor:
        """Squared distances between whole updates: float64 [n, n] on the CPU."""
        n = len(self.rows)
        gram = self.over_ranks(_products, self.rows, (n, n)).cpu()
        squares = gram.diagonal()
        return (squares[:, None] + squares[None, :] - gram - gram.T).clamp_(min=0)


def _squares(chunk: Tensor) -> Tensor:
    return chunk.square().sum(1)


def _products(chunk: Tensor) -> Tensor:
    return chunk @ chunk.T


@dataclass(frozen=True)
class Verdict:
    """What a rule made of the updates."""

    aggregate: Tensor  # float32 [s]
    kept: tuple[int, ...] | None = None  # places of the clients that it chose, by rules that choose


Rule = Callable[[Slices], Verdict]


def mean_of(rows: Tensor, which: Iterable[int]) -> Tensor:
    """float32 [s]: the mean of some rows [n, s], added up in float64 in their order."""
    places = list(which)
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for place in places:
        total.add_(rows[place])
    return total.div_(len(places)).float()


def median(slices: Slices) -> Verdict:
    """Of every coordinate: the middle value, or the mean of the middle two."""
    ordered = slices.rows.sort(dim=0, stable=True).values
    n = len(ordered)
    return Verdict(mean_of(ordered, range((n - 1) // 2, n // 2 + 1)))


def trimmed_mean(num_byzantine: int) -> Rule:
    """Of every coordinate: the mean without the f largest and the f smallest values."""

    def rule(slices: Slices) -> Verdict:
        ordered = slices.rows.sort(dim=0, stable=True).values
        return Verdict(mean_of(ordered, range(num_byzantine, len(ordered) - num_byzantine)))

    return rule


def krum(num_byzantine: int, num_kept: int | None = 1) -> Rule:
    """The mean of the `num_kept` updates with the lowest scores; n - f of them when not given. Ties go to the lower
    client."""

    def rule(slices: Slices) -> Verdict:
        n = len(slices.rows)
        scores = krum_scores(slices.distances(), num_byzantine)
        best = sorted(range(n), key=lambda i: (scores[i], i))[: n - num_byzantine if num_kept is None else num_kept]
        return _chosen(slices, best)

    return rule


def krum_scores(distances: Tensor, num_byzantine: int) -> list[float]:
    """Of each client: its squared distances to the n - f - 2 nearest others, added up. distances: float64 [n, n]."""
    n = len(distances)
    others = [sorted(d for j, d in enumerate(row) if j != i) for i, row in enumerate(distances.tolist())]
    return [math.fsum(near[: n - num_byzantine - 2]) for near in others]


def norm_filter(num_byzantine: int) -> Rule:
    """The mean without the f updates of the largest norm. Of equal norms the lower clients stay."""

    def rule(slices: Slices) -> Verdict:
        norms = slices.norms()
        smallest = sorted(range(len(norms)), key=lambda i: (norms[i], i))[: len(norms) - num_byzantine]
        return _chosen(slices, smallest)

    return rule


def centred_clipping(radius: float | None, iterations: int) -> Rule:
    """v <- v + mean_i (x_i - v) min(1, tau / |x_i - v|), from the last aggregate on (Algorithm 2, Eq. 10).

    radius: tau; the median of |x_i - v| when not given."""

    def rule(slices: Slices) -> Verdict:
        v = slices.centre.double()
        for _ in range(iterations):
            norms = slices.norms(v)
            tau = _middle(norms) if radius is None else radius
            step = torch.zeros_like(v)
            for row, norm in zip(slices.rows, norms, strict=True):
                step.add_((row.double() - v).mul_(1.0 if norm <= tau else tau / norm))
            v = v + step.div_(len(norms))
        return Verdict(v.float())

    return rule


def _middle(values: list[float]) -> float:
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _chosen(slices: Slices, places: Iterable[int]) -> Verdict:
    kept = tuple(sorted(places))
    return Verdict(mean_of(slices.rows, kept), kept)
