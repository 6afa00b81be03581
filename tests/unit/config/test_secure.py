"""What `fedhpc check` says about masked sums and lost clients."""

from __future__ import annotations

import pytest

from fedhpc.config import check

from .conftest import CLASSIFIER, Load, Problems

SECURE = "aggregation.secure=true"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["aggregation.arithmetic=float32"], "masks cancel in sums of integers only; set arithmetic: fixed_point"),
        (["partition.num_clients=2"], "the partition has 2 clients that train, and a sum over fewer than"),
        (["cohort.size=2"], "cohort.size = 2, and a sum over fewer than aggregation.min_contributors = 3 c"),
        (["aggregation.min_contributors=5"], "the partition has 4 clients that train"),
        (["algorithm={name: centralised}"], "where one client holds all rows: there is nothing to hide"),
        (["partition={kind: column, column: site, leave_out: [site-a]}"], "set evaluation.clients: shown"),
        (["aggregation.ring_bits=32"], "ring_bits = 32 with fraction_bits = 32 leaves no range for sums; set"),
    ],
)  # fmt: skip
def test_masks_against_the_rest(load: Load, problems: Problems, overrides: list[str], line: str) -> None:
    found = problems(SECURE, *overrides)
    assert len(found) == 1, found
    assert line in found[0]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["aggregation.min_contributors=4"], "min_contributors = 4: has no effect without aggregation.secure"),
        (["aggregation.min_contributors=2", SECURE], "min_contributors = 2: not accepted; set an integer >= 3"),
        (["aggregation.arithmetic=float32", "aggregation.ring_bits=32"], "ring_bits = 32: has no effect with"),
        (["algorithm={name: local}", "cohort.dropout={probability: 0.1}"], "has no effect with algorithm.name: local"),
        (["cohort.dropout={probability: 1.5}"], "cohort.dropout.probability = 1.5: not accepted"),
        (["cohort.dropout={when: after}"], "cohort.dropout.probability: missing"),
    ],
)  # fmt: skip
def test_keys_of_masks_and_losses(load: Load, problems: Problems, overrides: list[str], line: str) -> None:
    found = problems(*overrides)
    assert len(found) == 1, found
    assert line in found[0]


def test_who_is_shown_follows_the_masks_unless_told(load: Load) -> None:
    assert load().shows_clients
    assert not load("evaluation.clients=mean").shows_clients
    assert not load(SECURE).shows_clients
    assert load(SECURE, "evaluation.clients=shown").shows_clients
    shown = "evaluation.clients=shown"
    assert check(load(SECURE, shown, "partition={kind: column, column: site, leave_out: [site-a]}")) == []
    assert check(load(CLASSIFIER, "data.label=x", SECURE)) == []
    assert check(load(SECURE, "mesh.shard=2")) == []  # each shard is masked by itself


def test_means_of_one_network_need_enough_clients_of_it(problems: Problems) -> None:
    feddf = (SECURE, "algorithm={name: feddf}", "public={size: 8}", "data.label=finding")
    two = "model={kind: classifier, networks: [resnet10t, resnet18]}"
    (line,) = problems(*feddf, two)
    assert "of 4 clients 2 networks have 2 each" in line and "set 6 clients, or fewer model.networks" in line
    assert problems(*feddf, two, "partition.num_clients=6") == []
