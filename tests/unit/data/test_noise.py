"""Wrong training labels: how often, for whom, and always the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from fedhpc.config.noise import Noise
from fedhpc.data.noise import noisy_labels, transition, write_noise
from fedhpc.data.partition import ClientRows

CLASSES = [f"class-{k}" for k in range(13)]
NONE = np.empty(0, np.int64)


def noise(**keys: Any) -> Noise:
    made: Noise = TypeAdapter(Noise).validate_python(keys)
    return made


def clients(rows: int = 40_000, count: int = 2) -> tuple[np.ndarray, list[ClientRows]]:
    """Labels, and clients whose last tenth of rows is for tests."""
    labels = np.random.default_rng(0).integers(0, 13, rows).astype(np.int32)
    parts = np.split(np.arange(rows), count)
    cut = rows // count * 9 // 10
    return labels, [ClientRows(k, "x", part[:cut], NONE, part[cut:]) for k, part in enumerate(parts)]


def test_transitions_golden() -> None:
    symmetric = transition(noise(kind="symmetric", rate=0.2), 0, CLASSES)
    assert symmetric[0, 1] == pytest.approx(0.016667, abs=1e-6)  # ALGORITHMS.md B.3, C = 13
    assert symmetric[5, 5] == pytest.approx(0.8)
    pair = transition(noise(kind="pair", rate=0.3), 0, CLASSES)
    assert pair[3, 4] == pair[12, 0] == 0.3 and pair[3, 3] == 0.7 and pair[3, 5] == 0
    mixed = noise(kind="confusion", matrix={"class-2": {"class-7": 0.25, "class-0": 0.1}}, clients=[1])
    other = transition(mixed, 1, CLASSES)
    assert other[2, 7] == 0.25 and other[2, 0] == 0.1 and other[2, 2] == pytest.approx(0.65) and other[7, 7] == 1
    assert (transition(mixed, 0, CLASSES) == np.eye(13)).all(), "client 0 is not named"
    for matrix in (symmetric, pair, other):
        assert matrix.sum(1) == pytest.approx(np.ones(13))


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "symmetric", "rate": 0.6},
        {"kind": "pair", "rate": [0.1, 0.4]},
        {"kind": "confusion", "matrix": {"class-3": {"class-4": 0.5}}},
    ],
)
def test_labels_change_as_often_as_they_should(keys: dict[str, Any]) -> None:
    labels, held = clients()
    given = noisy_labels(noise(**keys), labels, CLASSES, held, 7)
    for client in held:
        expected = transition(noise(**keys), client.id, CLASSES)
        found = np.zeros((13, 13))
        np.add.at(found, (labels[client.train], given[client.train]), 1)
        found /= found.sum(1, keepdims=True)
        assert np.abs(found - expected).max() < 5 * 0.5 / np.sqrt(len(client.train) / 13)
        assert (given[client.test] == labels[client.test]).all(), "test labels stay clean"
    assert (noisy_labels(noise(**keys), labels, CLASSES, held, 7) == given).all()
    assert (noisy_labels(noise(**keys), labels, CLASSES, held, 8) != given).any()


def test_a_client_keeps_its_noise_whatever_the_others_have() -> None:
    labels, held = clients()
    both = noisy_labels(noise(kind="symmetric", rate=0.3), labels, CLASSES, held, 0)
    one = noisy_labels(noise(kind="symmetric", rate=[0.3, 0.0]), labels, CLASSES, held, 0)
    assert (both[held[0].train] == one[held[0].train]).all()
    assert (one[held[1].train] == labels[held[1].train]).all()


def test_a_higher_rate_makes_more_of_the_same_rows_wrong() -> None:
    labels, held = clients()
    low, high = (noisy_labels(noise(kind="symmetric", rate=r), labels, CLASSES, held, 0) != labels for r in (0.2, 0.5))
    assert (high[low]).all() and high.sum() > 2 * low.sum()


def test_missing_labels_stay_missing(tmp_path: Path) -> None:
    labels, held = clients(260)
    labels[::3] = -1
    given = noisy_labels(noise(kind="symmetric", rate=0.9), labels, CLASSES, held, 0)
    assert (given[::3] == -1).all()
    write_noise(tmp_path / "noise.csv", labels, given, CLASSES, held)
    lines = (tmp_path / "noise.csv").read_text().splitlines()
    assert lines[0] == "client,row,label,given"
    assert len(lines) - 1 == sum((labels[c.train] >= 0).sum() for c in held)


def test_unknown_names_are_refused() -> None:
    labels, held = clients(260)
    with pytest.raises(ValueError, match="noise.matrix: monocyte is no class of data.label; these are class-0"):
        noisy_labels(noise(kind="confusion", matrix={"monocyte": {"class-1": 0.2}}), labels, CLASSES, held, 0)
    with pytest.raises(ValueError, match="there is no client 5; the run has 0 to 1"):
        noisy_labels(noise(kind="confusion", matrix={}, clients=[5]), labels, CLASSES, held, 0)
    with pytest.raises(ValidationError, match="add up to 1.2"):
        noise(kind="confusion", matrix={"class-1": {"class-2": 0.6, "class-3": 0.6}})
    with pytest.raises(ValidationError, match="each is a share"):
        noise(kind="pair", rate=1.5)
