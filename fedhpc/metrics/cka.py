"""Centred kernel alignment of representations, as inner products of unit vectors: how alike two models see the same n
inputs.

A representation [n,d] becomes a vector g of unit length, so that CKA(X, Y) = <g_X, g_Y>. Then what one of N clients
has in common with all, sum_j CKA(X_i, X_j), is <g_i, sum_j g_j>: one sum over clients replaces their N (N - 1) / 2
comparisons, and nobody shows its own vector (ALGORITHMS.md D.4, E.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 4  # rows of a batch from which the unbiased estimate exists


def linear_vector(x: Tensor) -> Tensor:
    """Unit vector float64 [n (n + 1) / 2] of linear CKA: the centred Gram matrix of `x` over its Frobenius norm, its
    upper triangle alone, entries off the diagonal times sqrt(2) (Kornblith et al., ICML 2019).

    x: [n,d]. Zero where all rows are equal. Biased: of independent x and y with n < d it is far above 0.
    """
    x = x.double()
    x = x - x.mean(dim=0)
    return _unit(_upper(x @ x.T))


def unbiased_vector(batches: Sequence[Tensor]) -> Tensor:
    """Unit vector float64 of minibatch CKA with the unbiased HSIC_1, its sums taken over batches before the division
    (Song et al., JMLR 2012; Nguyen, Raghu, Kornblith, ICLR 2021, equation 3).

    HSIC_1(K, L) is the inner product of the U-centred matrices over n (n - 3), so the parts of all batches lie side by
    side in one vector. batches: [n_b,d] each; no centring is needed before.

    Raises:
        ValueError: a batch of fewer than 4 rows.
    """
    parts = []
    for x in batches:
        n = len(x)
        if n < FEWEST:
            raise ValueError(f"unbiased CKA needs batches of {FEWEST} rows or more, one has {n}; make them larger")
        gram = x.double() @ x.double().T
        gram.fill_diagonal_(0.0)
        row = gram.sum(dim=1)
        centred = gram - (row[:, None] + row[None, :]) / (n - 2) + row.sum() / ((n - 1) * (n - 2))
        centred.fill_diagonal_(0.0)
        parts.append(_upper(centred) / (n * (n - 3)) ** 0.5)
    return _unit(torch.cat(parts))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """|X_c' Y_c|^2 / (|X_c' X_c| |Y_c' Y_c|), Frobenius norms, X_c and Y_c centred by column. x: [n,d], y: [n,e]."""
    return float(linear_vector(x) @ linear_vector(y))


def unbiased_cka(x: Sequence[Tensor], y: Sequence[Tensor]) -> float:
    """Minibatch CKA, slightly below 0 at times. x, y: batches of the same rows."""
    return float(unbiased_vector(x) @ unbiased_vector(y))


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1 [n,d], as CKA weights take them; a zero row stays."""
    return F.normalize(x.double(), dim=1)


def _upper(symmetric: Tensor) -> Tensor:
    """The upper triangle as a vector with the same inner products: what is off the diagonal occurs twice."""
    n = len(symmetric)
    i, j = torch.triu_indices(n, n, device=symmetric.device)
    return symmetric[i, j] * (1 + (i != j).double() * (2.0**0.5 - 1))


def _unit(vector: Tensor) -> Tensor:
    norm = vector.norm()
    return vector / norm if float(norm) > 0 else vector
