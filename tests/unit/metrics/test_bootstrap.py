"""The bootstrap resamples patients; weighted metrics equal plain ones on the repeated rows; Dice by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedhpc.metrics.bootstrap import CHUNK, bootstrap_intervals, resample_weights
from fedhpc.metrics.classification import classification_metrics
from fedhpc.metrics.segmentation import dice
from fedhpc.metrics.weighted import weighted_classification, weighted_group_mean, weighted_mean


def test_weights_count_whole_clusters() -> None:
    cluster = torch.tensor([7, 3, 7, 9, 3, 7])
    weight = torch.cat(list(resample_weights(cluster, 500, 0)))
    assert weight.shape == (500, 6)
    for rows in ([0, 2, 5], [1, 4], [3]):
        assert (weight[:, rows] == weight[:, rows[:1]]).all(), "rows of a patient go together"
    assert (weight[:, 0] + weight[:, 1] + weight[:, 3] == 3).all(), "as many patients as there are"
    assert abs(float(weight[:, 3].mean()) - 1) < 0.15
    assert torch.equal(weight, torch.cat(list(resample_weights(cluster, 500, 0))))
    assert not torch.equal(weight, torch.cat(list(resample_weights(cluster, 500, 1))))


def test_chunks_add_up() -> None:
    rows = CHUNK // 3
    chunks = list(resample_weights(torch.zeros(rows, dtype=torch.int64), 7, 0))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]


def test_interval_of_a_mean_is_that_of_theory() -> None:
    """Independent rows: the interval of a mean is about +- 1.96 standard errors. Rows in pairs of equals: sqrt(2) as
    wide."""
    values = torch.from_numpy(np.random.default_rng(0).normal(size=400))
    twice = values.repeat(2)

    def width(numbers: Tensor, cluster: Tensor) -> float:
        low, high = bootstrap_intervals(lambda w: {"m": weighted_mean(numbers, w)}, cluster, 4000, 0.95, 0)["m"]
        assert low < float(numbers.mean()) < high
        return high - low

    alone = width(values, torch.arange(400))
    expected = 2 * 1.96 * float(values.std(correction=0)) / math.sqrt(400)
    assert alone == pytest.approx(expected, rel=0.06)
    assert width(twice, torch.arange(400).repeat(2)) == pytest.approx(alone, rel=0.06)
    assert width(twice, torch.arange(800)) == pytest.approx(alone / math.sqrt(2), rel=0.06)


def test_resamples_without_a_value_are_left_out() -> None:
    def sometimes(weight: Tensor) -> dict[str, Tensor]:
        value = weight[:, 0].clone()
        return {"half": value.masked_fill(value == 0, math.nan), "never": torch.full_like(value, math.nan)}

    found = bootstrap_intervals(sometimes, torch.arange(4), 300, 0.9, 0)
    assert found["half"][0] == 1.0 and all(math.isnan(x) for x in found["never"])
    with pytest.raises(ValueError, match="needs rows"):
        bootstrap_intervals(sometimes, torch.arange(0), 300, 0.9, 0)


@pytest.mark.parametrize("seed", range(4))
def test_weighted_classification_is_that_of_repeated_rows(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(size=(40, 4)).round(1)).float()  # with ties
    label = torch.from_numpy(random.integers(0, 3, 40))  # class 3 never occurs
    times = torch.from_numpy(random.integers(0, 4, (6, 40))).double()
    times[-1, label != 0] = 0  # one class alone
    found = weighted_classification(logits, label, times)
    for row in range(6):
        rows = torch.repeat_interleave(torch.arange(40), times[row].long())
        for name, value in classification_metrics(logits[rows], label[rows]).items():
            assert float(found[name][row]) == pytest.approx(value, abs=2e-7, nan_ok=True), (name, row)
    assert math.isnan(float(found["auroc"][-1])) and not math.isnan(float(found["auroc"][0]))


def test_weighted_means_by_hand() -> None:
    values, group = torch.tensor([1.0, 0.0, 1.0, 0.5]), torch.tensor([5, 5, 2, 2])
    weight = torch.tensor([[1.0, 1, 1, 1], [3, 1, 0, 0], [0, 2, 1, 1]]).double()
    assert weighted_mean(values, weight).tolist() == [2.5 / 4, 0.75, 1.5 / 4]
    # groups: 5 -> (1 + 0)/2, 2 -> (1 + 0.5)/2; then group 5 alone; then 0 and 0.75
    assert weighted_group_mean(values, group, weight).tolist() == [0.625, 0.75, 0.375]


def test_dice_by_hand() -> None:
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    predicted = torch.zeros_like(mask)
    mask[0, :2], predicted[0, 1:3] = True, True  # 8 and 8 pixels, 4 in common
    mask[1, 0, 0], predicted[1, 0, :3] = True, True  # 1 and 3, 1 in common
    mask[2, 0] = True  # missed
    assert dice(predicted, mask).tolist() == [0.5, 0.5, 0.0, 1.0]  # the last: nothing there, nothing found
    assert dice(mask, mask).tolist() == [1.0] * 4
    with pytest.raises(ValueError, match=r"bool \[N,H,W\]"):
        dice(predicted.float(), mask)
