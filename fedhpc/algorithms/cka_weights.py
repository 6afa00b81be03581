"""FedMVP's client weights (ALGORITHMS.md D.4) without a gather: what leaves a client is its share of one sum.

With unit vectors g_i, CKA(i, j) = <g_i, g_j> (metrics/cka.py). A client's importance is its summed likeness with all,
<g_i, sum_j g_j>, less <g_i, g_i> = 1 without the self-loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedhpc.config.joint import FedMvpConfig
from fedhpc.metrics.cka import FEWEST, linear_vector, unbiased_vector, unit_rows

LEAST = 1e-6  # importance of a client that has nothing in common with the others, so that weights never add up to 0
SINGLE = ("image", "text")


def representations(config: FedMvpConfig) -> tuple[str, ...]:
    """Names of the outputs that are compared."""
    return ("joint", *SINGLE) if config.representation == "all" else ("joint",)


def vector(config: FedMvpConfig, seen: Sequence[Sequence[Tensor]]) -> Tensor:
    """The unit vector of a client, float64 [vector_length].

    seen: for each of `representations`, its batches [n_b,d] on the public set. Of several the vectors lie side by side,
    so that products are the mean of their CKA.
    """
    parts = []
    for batches in seen:
        rows = [unit_rows(batch) for batch in batches]
        parts.append(linear_vector(torch.cat(rows)) if config.cka == "linear" else unbiased_vector(rows))
    return torch.cat(parts) / len(parts) ** 0.5


def vector_length(config: FedMvpConfig, sizes: Sequence[int]) -> int:
    """Of `vector`, for public batches of these sizes."""
    parts = [sum(sizes)] if config.cka == "linear" else sizes
    return len(representations(config)) * sum(n * (n + 1) // 2 for n in parts)


def importance(config: FedMvpConfig, own: Tensor, total: Tensor, examples: int) -> float:
    """A client's weight before all are divided by their sum.

    own: its vector; total: the sum over the cohort's clients, both float64 [vector_length].
    """
    common = float(own @ total.to(own.device))
    if not config.self_loop:
        common -= float(own @ own)
    weight = max(common, LEAST) ** config.power
    return weight * examples if config.prior == "examples" else weight


def mean_likeness(total: Tensor, clients: int) -> float:
    """The mean CKA of two different clients, from the sum alone: (|sum|^2 - N) / (N (N - 1))."""
    return (float(total @ total) - clients) / (clients * max(1, clients - 1))


def check_public(config: FedMvpConfig, sizes: Sequence[int]) -> None:
    """Raises ValueError for a public set on which nothing can be compared."""
    if sum(sizes) < FEWEST:
        raise ValueError(
            f"the public set has {sum(sizes)} rows, and of fewer than {FEWEST} nothing can be told of clients; "
            "set public.size: 512, or another public.path"
        )
    if config.cka == "unbiased_minibatch" and min(sizes) < FEWEST:
        raise ValueError(
            f"a public batch has {min(sizes)} rows, and algorithm.cka: unbiased_minibatch needs {FEWEST}; set "
            f"public.batch_size: {FEWEST} or more"
        )
