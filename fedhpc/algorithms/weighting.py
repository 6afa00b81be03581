"""Weights over clients that lean towards those with high losses: updates, and projections on sets around the uniform.

All take and return float64 [N] on the CPU, so that every rank comes to the same bits. Sources: ALGORITHMS.md A.5, E.1.

    chi2     {q on the simplex, (N |q|^2 - 1) / 2 <= rho}      Namkoong and Duchi, NeurIPS 2016; FedDRA
    kl       {q on the simplex, KL(q | 1/N) <= rho}
    simplex  all of it                                        AFL: Mohri, Sivek, Suresh, ICML 2019
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fedhpc.config.algorithms import UncertaintySet

MAX_EXPONENT = 5.0  # one round changes the ratio of two weights by at most e^10
BISECTIONS = 1200  # at most; about 55 come down to the last bit of float64, more where two losses nearly tie
LARGEST = 1e300  # a factor that times 1 is still a number


def uniform(num_clients: int) -> Tensor:
    return torch.full((num_clients,), 1 / num_clients, dtype=torch.float64)


def chi_square(q: Tensor) -> float:
    """D(q | 1/N) = (N |q|^2 - 1) / 2: 0 for uniform weights, (N - 1) / 2 when one client has all."""
    return float((len(q) * (q * q).sum() - 1) / 2)


def kl_divergence(q: Tensor) -> float:
    """KL(q | 1/N) in nats: 0 for uniform weights, log N when one client has all."""
    return float(torch.xlogy(q, q * len(q)).sum())


def exponentiated(q: Tensor, losses: Tensor, step_size: float) -> Tensor:
    """q_c exp(step_size l_c) / sum: exponentiated gradient ascent (Group DRO: Sagawa et al., ICLR 2020; FedDRA).

    Losses are taken against their mean, which cancels, so that the bound on exponents (5) meets outliers only.
    """
    exponent = (step_size * (losses - losses.mean())).clamp(-MAX_EXPONENT, MAX_EXPONENT)
    raised = q * exponent.exp()
    return raised / raised.sum()


def project_simplex(v: Tensor) -> Tensor:
    """The nearest point (Euclidean) with q >= 0 and sum 1: (v - eta)_+ (Duchi et al., ICML 2008)."""
    ordered = v.sort(descending=True).values
    place = torch.arange(1, len(v) + 1, dtype=v.dtype)
    excess = ordered.cumsum(0) - 1
    kept = int((ordered * place > excess).nonzero().max())
    return (v - excess[kept] / (kept + 1)).clamp(min=0)


def project(q: Tensor, kind: UncertaintySet, rho: float) -> Tensor:
    """The point of the set that is nearest to q (Euclidean for chi2 and simplex, in KL for kl).

    chi2: p = (q - eta)_+ / (1 + lambda N) with the smallest lambda >= 0 that fits, which is the projection of q / (1 +
    lambda N) on the simplex. kl: p ~ q^s with the largest s <= 1 that fits.
    """
    if kind == "simplex":
        return project_simplex(q)
    if kind == "chi2":
        return _largest(lambda s: project_simplex(s * q), lambda p: chi_square(p) <= rho, 1.0)
    return _largest(lambda s: _softmax(s * q.clamp(min=1e-300).log()), lambda p: kl_divergence(p) <= rho, 1.0)


def worst_case(losses: Tensor, kind: UncertaintySet, rho: float) -> Tensor:
    """argmax over the set of sum_c q_c l_c; ties share alike.

    chi2: q = (l - eta)_+ / (lambda N), which is 1/N + sqrt(2 rho / N) (l - mean) / |l - mean| while that is >= 0.
    kl: q ~ exp(l / lambda).
    """
    spread = float(losses.max() - losses.min())
    if spread == 0:
        return uniform(len(losses))
    level = (losses - losses.max()) / spread  # scale and offset do not matter
    top = (level == 0).double() / (level == 0).sum()
    if kind == "simplex":
        return top
    if kind == "chi2":
        fits: Callable[[Tensor], bool] = lambda p: chi_square(p) <= rho  # noqa: E731
        return top if fits(top) else _largest(lambda t: project_simplex(t * level), fits, _beyond(level, 2.0))
    fits = lambda p: kl_divergence(p) <= rho  # noqa: E731
    return top if fits(top) else _largest(lambda t: _softmax(t * level), fits, _beyond(level, 1e4))


def updated(
    q: Tensor,
    losses: Tensor,
    kind: UncertaintySet,
    rho: float,
    update: Literal["exponentiated", "exact"],
    step_size: float,
) -> Tensor:
    """The next weights: a step and a projection, or the exact inner maximum."""
    if rho == 0 and kind != "simplex":
        return uniform(len(q))  # to the last bit, which a bisection on a divergence that is flat there would miss
    if update == "exact":
        return worst_case(losses, kind, rho)
    return project(exponentiated(q, losses, step_size), kind, rho)


def _largest(point: Callable[[float], Tensor], fits: Callable[[Tensor], bool], top: float) -> Tensor:
    """point(s) for the largest s in [0, top] that fits; divergence grows with s, and s = 0 gives uniform weights."""
    if fits(point(top)):
        return point(top)
    low, high = 0.0, top
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if fits(point(middle)) else (low, middle)
    return point(low)


def _beyond(level: Tensor, times: float) -> float:
    """A factor at which the point of factor * level has reached its end: `times` over the gap below the highest."""
    gap = float(-level[level < 0].max())
    return times / gap if gap > times / LARGEST else LARGEST


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=0)
