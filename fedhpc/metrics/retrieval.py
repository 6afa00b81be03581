"""Image-text retrieval: how often the right item is among the first k of a ranking by cosine similarity.

Embeddings are [N,E] float, unit vectors (dot products are the similarities); row i of `image` belongs to row i of
`text`. Similarities are computed in float32, a slab of rows at a time.

Ties count against the model: a right item ranks behind every wrong item that is at least as similar. So a model that
maps all inputs to one point scores 0, not 1. FloatingPointError when an embedding is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

SLAB = 2**22  # similarities held at once: 16 MiB


def retrieval_ranks(query: Tensor, gallery: Tensor, group: Tensor) -> Tensor:
    """Rank, from 1, of the best right item for each query; int64 [N].

    group: integer [N], of queries and gallery alike; gallery items of the query's group are right. The rank is 1 + the
    number of wrong items whose similarity is not below that of the best right one.
    """
    _check(query, gallery, group)
    ranks = torch.empty(len(query), dtype=torch.int64, device=query.device)
    group = group.to(query.device)
    for rows in _slabs(len(query), len(gallery)):
        similarity = query[rows].float() @ gallery.float().T
        right = group[rows, None] == group[None, :]
        best = similarity.masked_fill(~right, float("-inf")).amax(dim=1, keepdim=True)
        ranks[rows] = 1 + ((similarity >= best) & ~right).sum(dim=1)
    return ranks


def recall_at_k(image: Tensor, text: Tensor, group: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of queries with a right item in the first k of the full gallery of N.

    group: integer [N]; items of one group are right for each other (identical text, equal labels, or arange(N)).
    Returns "image_to_text_recall_at_K", "text_to_image_recall_at_K" and their mean "recall_at_K" for each k.
    """
    forth, back = retrieval_ranks(image, text, group), retrieval_ranks(text, image, group)
    return _both_ways("recall_at", ks, lambda ranks, k: _mean(ranks <= k), forth, back)


def macro_recall_at_k(image: Tensor, text: Tensor, group: Tensor, ks: Sequence[int] = (1,)) -> dict[str, float]:
    """As `recall_at_k`, averaged over the queries of each group first, then over groups: rare groups count as much.

    Returns "image_to_text_macro_recall_at_K", "text_to_image_macro_recall_at_K", "macro_recall_at_K".
    """
    forth, back = retrieval_ranks(image, text, group), retrieval_ranks(text, image, group)
    _, member = torch.unique(group.to(forth.device), return_inverse=True)
    size = torch.bincount(member).double()

    def mean_of_groups(ranks: Tensor, k: int) -> float:
        hits = torch.zeros_like(size).index_add_(0, member, (ranks <= k).double())
        return float((hits / size).mean())

    return _both_ways("macro_recall_at", ks, mean_of_groups, forth, back)


def chance_recall_at_k(group: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """What `recall_at_k` is for a random ranking: "chance_recall_at_K", exact, the mean over queries.

    With m right items among N, the first k have none with probability C(N-m,k) / C(N,k).
    """
    total = len(group)
    if total == 0:
        raise ValueError("chance of retrieval needs at least one item")
    _, sizes = torch.unique(group, return_counts=True)
    right = sizes.double().cpu()
    result = {}
    for k in _checked(ks):
        miss = torch.ones_like(right)
        for drawn in range(min(k, total)):
            miss *= (total - right - drawn).clamp(min=0) / (total - drawn)
        result[f"chance_recall_at_{k}"] = float((right * (1 - miss)).sum() / total)
    return result


def in_batch_top_k(image: Tensor, text: Tensor, batch_size: int, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of queries whose own pair is in the first k of a pool of `batch_size` consecutive rows, mean of directions.

    FedDRA's precision_at_k (released code): only the own pair is right, even where another text reads the same. The
    rows of a last, smaller batch are ranked within the last `batch_size` rows, so that every query has as many
    candidates; with fewer than `batch_size` rows in all, the pool is all of them. Returns "in_batch_top_K" for each k.

    Raises ValueError when there are fewer than 2 rows, or batch_size is below 2.
    """
    total = len(image)
    if total < 2 or batch_size < 2:
        raise ValueError(
            f"in-batch retrieval needs a pool of 2 or more; there are {total} rows and evaluation.batch_size is "
            f"{batch_size}; set it to 2 or more, and partition.min_examples so that every client has rows to score"
        )
    pair = torch.arange(total, device=image.device)
    _check(image, text, pair)
    ranks: tuple[list[Tensor], list[Tensor]] = ([], [])
    for first in range(0, total, batch_size):
        start = max(0, min(first, total - batch_size))
        pool = slice(start, start + batch_size)
        for found, (query, gallery) in zip(ranks, ((image, text), (text, image)), strict=True):
            found.append(retrieval_ranks(query[pool], gallery[pool], pair[pool])[first - start :])
    forth, back = (torch.cat(found) for found in ranks)
    return {f"in_batch_top_{k}": (_mean(forth <= k) + _mean(back <= k)) / 2 for k in _checked(ks)}


def chance_in_batch_top_k(num_rows: int, batch_size: int, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """What `in_batch_top_k` is for a random ranking: "chance_in_batch_top_K" = k / pool."""
    pool = min(num_rows, batch_size)
    return {f"chance_in_batch_top_{k}": min(1.0, k / pool) for k in _checked(ks)}


def _slabs(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, SLAB // max(1, columns))
    return (slice(first, first + step) for first in range(0, rows, step))


def _both_ways(
    name: str, ks: Sequence[int], score: Callable[[Tensor, int], float], forth: Tensor, back: Tensor
) -> dict[str, float]:
    result = {}
    for k in _checked(ks):
        there, again = score(forth, k), score(back, k)
        result[f"image_to_text_{name}_{k}"] = there
        result[f"text_to_image_{name}_{k}"] = again
        result[f"{name}_{k}"] = (there + again) / 2
    return result


def _mean(hits: Tensor) -> float:
    return float(hits.double().mean())


def _checked(ks: Sequence[int]) -> Sequence[int]:
    if any(k < 1 for k in ks):
        raise ValueError(f"k counts from 1, got {list(ks)}")
    return ks


def _check(query: Tensor, gallery: Tensor, group: Tensor) -> None:
    if query.ndim != 2 or query.shape != gallery.shape or group.shape != query.shape[:1] or len(query) == 0:
        raise ValueError(
            f"retrieval compares [N,E] with [N,E] in groups [N], N > 0; got {tuple(query.shape)}, "
            f"{tuple(gallery.shape)}, {tuple(group.shape)}"
        )
    if not (torch.isfinite(query).all() and torch.isfinite(gallery).all()):
        raise FloatingPointError(
            "an embedding is not finite: the model has diverged; lower fit.optimizer.learning_rate"
        )
