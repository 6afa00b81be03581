import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.metrics import retrieval
from fedhpc.metrics.retrieval import (
    chance_in_batch_top_k,
    chance_recall_at_k,
    in_batch_top_k,
    macro_recall_at_k,
    recall_at_k,
    retrieval_ranks,
)


def embeddings(seed: int, rows: int, coarse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of [rows,3] vectors; coarse: small integers, so that similarities are exact and often tie."""
    generator = torch.Generator().manual_seed(seed)
    if coarse:
        return tuple(torch.randint(-1, 2, (rows, 3), generator=generator).float() for _ in range(2))  # type: ignore[return-value]
    return tuple(F.normalize(torch.randn(rows, 3, generator=generator), dim=1) for _ in range(2))  # type: ignore[return-value]


def brute_force_rank(similarity: list[float], right: list[bool]) -> int:
    """Sort the gallery, wrong items before right ones at equal similarity; the place of the first right one."""
    order = sorted(range(len(right)), key=lambda j: (-similarity[j], right[j]))
    return 1 + next(place for place, j in enumerate(order) if right[j])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_recall_against_brute_force(seed: int, rows: int, groups: int, coarse: bool) -> None:
    image, text = embeddings(seed, rows, coarse)
    group = torch.randint(0, groups, (rows,), generator=torch.Generator().manual_seed(seed))
    recall = recall_at_k(image, text, group, ks=(1, 2, 5))
    macro = macro_recall_at_k(image, text, group, ks=(1, 2))
    ranks = {}
    for name, (query, gallery) in {"image_to_text": (image, text), "text_to_image": (text, image)}.items():
        similarity = (query @ gallery.T).tolist()
        ranks[name] = [
            brute_force_rank(similarity[i], [bool(group[i] == group[j]) for j in range(rows)]) for i in range(rows)
        ]
    for name, found in ranks.items():
        for k in (1, 2, 5):
            assert recall[f"{name}_recall_at_{k}"] == pytest.approx(sum(r <= k for r in found) / rows)
        for k in (1, 2):
            members = [
                [r <= k for r, g in zip(found, group.tolist(), strict=True) if g == c] for c in set(group.tolist())
            ]
            expected = sum(sum(m) / len(m) for m in members) / len(members)
            assert macro[f"{name}_macro_recall_at_{k}"] == pytest.approx(expected)
    for name, values in (("recall_at_1", recall), ("macro_recall_at_1", macro)):
        assert values[name] == pytest.approx((values[f"image_to_text_{name}"] + values[f"text_to_image_{name}"]) / 2)


def test_golden_ranks() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    gallery = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
    assert retrieval_ranks(query, gallery, torch.tensor([0, 1, 2])).tolist() == [2, 3, 2]
    assert retrieval_ranks(query, gallery, torch.tensor([0, 0, 2])).tolist() == [1, 2, 2]


def test_perfect_model_scores_one_and_collapsed_model_scores_zero() -> None:
    eye = torch.eye(6)
    group = torch.arange(6)
    assert set(recall_at_k(eye, eye, group).values()) == {1.0}
    assert in_batch_top_k(eye, eye, 3) == {"in_batch_top_1": 1.0, "in_batch_top_5": 1.0}
    point = torch.full((6, 4), 0.5)
    collapsed = recall_at_k(point, point, group, ks=(1, 5, 6))
    assert collapsed["recall_at_1"] == collapsed["recall_at_5"] == 0.0
    assert collapsed["recall_at_6"] == 1.0  # the whole gallery
    assert in_batch_top_k(point, point, 3, ks=(1, 2)) == {"in_batch_top_1": 0.0, "in_batch_top_2": 0.0}


def test_slabs_change_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = embeddings(0, 50, coarse=True)
    whole = retrieval_ranks(image, text, torch.arange(50))
    monkeypatch.setattr(retrieval, "SLAB", 170)
    assert torch.equal(retrieval_ranks(image, text, torch.arange(50)), whole)


def test_slabs_bound_memory() -> None:
    sizes = [s.stop - s.start for s in retrieval._slabs(20_000, 20_000)]
    assert max(sizes) * 20_000 <= retrieval.SLAB
    assert sum(min(s.stop, 20_000) - s.start for s in retrieval._slabs(20_000, 20_000)) == 20_000


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 10))
def test_chance_against_counting(group: list[int], k: int) -> None:
    total = len(group)
    expected = sum(1 - math.comb(total - group.count(g), k) / math.comb(total, k) if k <= total else 1 for g in group)
    found = chance_recall_at_k(torch.tensor(group), ks=(k,))
    assert found == {f"chance_recall_at_{k}": pytest.approx(expected / total)}


def test_chance_against_simulation() -> None:
    group = torch.tensor([0] * 5 + [1] * 3 + [2] * 12)
    generator = torch.Generator().manual_seed(0)
    runs = []
    for _ in range(400):
        image = F.normalize(torch.randn(20, 16, generator=generator), dim=1)
        text = F.normalize(torch.randn(20, 16, generator=generator), dim=1)
        runs.append(recall_at_k(image, text, group, ks=(1, 3)))
    chance = chance_recall_at_k(group, ks=(1, 3))
    for k in (1, 3):
        mean = sum(run[f"recall_at_{k}"] for run in runs) / len(runs)
        assert mean == pytest.approx(chance[f"chance_recall_at_{k}"], abs=0.02)


# ------------------------------------------------------------------------------------------------------------- in batch
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(2, 6))
def test_in_batch_against_brute_force(seed: int, rows: int, batch_size: int) -> None:
    image, text = embeddings(seed, rows, coarse=True)
    hits = {1: 0, 2: 0}
    for i in range(rows):
        start = (i // batch_size) * batch_size
        if start + batch_size > rows:  # the last, smaller batch: the pool is the last batch_size rows
            start = max(0, rows - batch_size)
        pool = range(start, min(start + batch_size, rows))
        for query, gallery in ((image, text), (text, image)):
            rank = brute_force_rank([float(query[i] @ gallery[j]) for j in pool], [j == i for j in pool])
            for k in hits:
                hits[k] += rank <= k
    found = in_batch_top_k(image, text, batch_size, ks=(1, 2))
    assert found == {f"in_batch_top_{k}": pytest.approx(count / (2 * rows)) for k, count in hits.items()}


def test_in_batch_chance_is_k_over_pool() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(4001, 32, generator=generator), dim=1) for _ in range(2))
    found, chance = in_batch_top_k(image, text, 8), chance_in_batch_top_k(4001, 8)
    assert chance == {"chance_in_batch_top_1": 1 / 8, "chance_in_batch_top_5": 5 / 8}
    assert found["in_batch_top_1"] == pytest.approx(1 / 8, abs=0.02)
    assert found["in_batch_top_5"] == pytest.approx(5 / 8, abs=0.02)
    assert chance_in_batch_top_k(4, 8) == {"chance_in_batch_top_1": 1 / 4, "chance_in_batch_top_5": 1.0}


# --------------------------------------------------------------------------------------------------------------- errors
def test_user_mistakes_are_named() -> None:
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="pool of 2 or more; there are 1 rows"):
        in_batch_top_k(eye[:1], eye[:1], 8)
    with pytest.raises(ValueError, match=r"batch_size is 1"):
        in_batch_top_k(eye, eye, 1)
    with pytest.raises(ValueError, match=r"\(3, 3\), \(2, 3\), \(3,\)"):
        recall_at_k(eye, eye[:2], torch.arange(3))
    with pytest.raises(ValueError, match="k counts from 1"):
        recall_at_k(eye, eye, torch.arange(3), ks=(0,))
    with pytest.raises(ValueError, match="at least one item"):
        chance_recall_at_k(torch.zeros(0, dtype=torch.int64))


def test_diverged_model_has_no_score() -> None:
    eye = torch.eye(3)
    with pytest.raises(FloatingPointError, match="not finite"):
        recall_at_k(eye * float("nan"), eye, torch.arange(3))
    with pytest.raises(FloatingPointError, match="not finite"):
        in_batch_top_k(eye, eye / 0, 2)
