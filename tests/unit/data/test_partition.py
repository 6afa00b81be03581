"""Dealing rows to clients: nothing lost, no patient cut, skew where it was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.config.schema import (
    ColumnPartition,
    DirichletPartition,
    GroupsPartition,
    IidPartition,
    Partition,
    QuantityPartition,
)
from fedhpc.data.partition import ClientRows, partition

CLASSES = ["a", "b", "c"]


def rows_of(clients: list[ClientRows]) -> np.ndarray:
    return np.concatenate([np.concatenate([c.train, c.val, c.test]) for c in clients])


def table(seed: int, num_patients: int, missing: float = 0.1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(num_patients), random.integers(1, 4, num_patients))
    owner = random.permutation(owner)
    split = random.choice(3, num_patients, p=(0.7, 0.1, 0.2)).astype(np.int8)
    split[0] = 0
    label = random.integers(0, 3, len(owner))
    label[random.random(len(owner)) < missing] = -1
    site = (np.arange(num_patients) % 4)[owner]
    return {"patient": np.char.add("p", owner.astype(str)), "split": split[owner], "label": label, "site": site}


def deal(config: Partition, data: dict[str, np.ndarray], seed: int = 0) -> list[ClientRows]:
    return partition(
        config,
        site=(data["site"], ["north", "east", "south", "west"]),
        labels={"kind": (data["label"], CLASSES)},
        patient=data["patient"],
        split=data["split"],
        random_seed=seed,
    )


configs = st.one_of(
    st.builds(IidPartition, num_clients=st.integers(1, 12)),
    st.builds(
        DirichletPartition,
        kind=st.just("dirichlet"),
        label=st.just("kind"),
        num_clients=st.integers(1, 12),
        alpha=st.floats(1e-3, 100),
    ),
    st.builds(QuantityPartition, kind=st.just("quantity"), num_clients=st.integers(1, 12), alpha=st.floats(1e-3, 100)),
    st.just(ColumnPartition(kind="column", column="site")),
)


@settings(max_examples=120, deadline=None)
@given(config=configs, seed=st.integers(0, 2**63 - 1), num_patients=st.integers(1, 60))
def test_every_row_goes_to_one_client_and_no_patient_is_cut(config: Partition, seed: int, num_patients: int) -> None:
    data = table(seed % 1000, num_patients)
    try:
        clients = deal(config, data, seed)
    except ValueError as error:
        assert "num_clients" in str(error) or "min_examples" in str(error)
        return
    assert sorted(rows_of(clients)) == list(range(len(data["split"])))
    assert [c.id for c in clients] == list(range(len(clients)))
    owner: dict[str, int] = {}
    for client in clients:
        assert len(client.train) >= config.min_examples
        for code, name in enumerate(("train", "val", "test")):
            rows = client.rows(name)
            assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()
            assert (data["split"][rows] == code).all()
            for one in data["patient"][rows]:
                assert owner.setdefault(one, client.id) == client.id
    again = deal(config, data, seed)
    assert all(
        np.array_equal(a.train, b.train) and np.array_equal(a.test, b.test) for a, b in zip(clients, again, strict=True)
    )


def test_another_seed_deals_otherwise() -> None:
    data = table(0, 60)
    one, other = (deal(IidPartition(num_clients=3), data, seed) for seed in (0, 1))
    assert not np.array_equal(one[0].train, other[0].train)


def test_iid_deals_equal_numbers_of_patients() -> None:
    data = table(3, 61)
    clients = deal(IidPartition(num_clients=4), data)
    patients = [len(set(data["patient"][rows_of([c])])) for c in clients]
    assert max(patients) - min(patients) <= 1
    assert [c.site for c in clients] == [f"client-{k}" for k in range(4)]


def single_rows(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "patient": np.arange(n).astype(str),
        "split": random.choice(3, n, p=(0.6, 0.2, 0.2)).astype(np.int8),
        "label": random.integers(0, 3, n),
        "site": np.zeros(n, np.int64),
    }


def proportions(client: ClientRows, split: str, label: np.ndarray) -> np.ndarray:
    return np.bincount(label[client.rows(split)], minlength=3) / max(1, len(client.rows(split)))


def test_dirichlet_applies_one_draw_to_every_split() -> None:
    data = single_rows(6000)
    config = DirichletPartition(kind="dirichlet", label="kind", num_clients=4, alpha=0.5, min_examples=100)
    clients = deal(config, data)
    skew = np.std([proportions(c, "train", data["label"]) for c in clients], axis=0)
    assert skew.max() > 0.1
    for client in clients:
        for split in ("val", "test"):
            expected = proportions(client, "train", data["label"])
            assert np.abs(proportions(client, split, data["label"]) - expected).max() < 0.05


def test_large_alpha_is_even_and_small_alpha_is_not() -> None:
    data = single_rows(3000)
    even = deal(DirichletPartition(kind="dirichlet", label="kind", num_clients=3, alpha=1e6), data)
    assert np.ptp([len(c.train) for c in even]) < 20
    skewed = deal(QuantityPartition(kind="quantity", num_clients=3, alpha=0.3), data)
    assert np.ptp([len(c.train) for c in skewed]) > 300
    for client in skewed:
        if len(client.train) > 200:  # labels are mixed alike
            assert np.abs(proportions(client, "train", data["label"]) - 1 / 3).max() < 0.15


def test_rows_without_label_are_dealt_evenly() -> None:
    data = single_rows(400)
    data["label"][:] = -1
    clients = deal(DirichletPartition(kind="dirichlet", label="kind", num_clients=4, alpha=0.01), data)
    assert [c.num_rows for c in clients] == [100] * 4


def test_column_makes_one_client_a_site() -> None:
    data = table(1, 80)
    clients = deal(ColumnPartition(kind="column", column="site"), data)
    assert [c.site for c in clients] == ["north", "east", "south", "west"]
    for code, client in enumerate(clients):
        assert (data["site"][rows_of([client])] == code).all()


def test_column_by_label_names_clients_by_number() -> None:
    clients = deal(ColumnPartition(kind="column", column="kind"), single_rows(90))
    assert [c.site for c in clients] == ["client-0", "client-1", "client-2"]


def test_impossible_minimum_is_refused_with_the_best_found() -> None:
    data = single_rows(60)
    config = DirichletPartition(kind="dirichlet", label="kind", num_clients=5, alpha=0.01, min_examples=6)
    with pytest.raises(ValueError, match=r"at best \d+ training rows, min_examples is 6 .*: raise alpha"):
        deal(config, data)
    config = DirichletPartition(kind="dirichlet", label="kind", num_clients=5, alpha=0.01, min_test_examples=6)
    with pytest.raises(ValueError, match=r"test rows, min_test_examples is 6\): raise alpha"):
        deal(config, data)
    with pytest.raises(ValueError, match=r"num_clients\(9\) \* min_examples\(40\) = 360"):
        deal(DirichletPartition(kind="dirichlet", label="kind", num_clients=9, alpha=1, min_examples=40), data)


def test_refusals_name_what_to_change() -> None:
    data = single_rows(60)
    with pytest.raises(ValueError, match="lower num_clients"):
        deal(IidPartition(num_clients=61), data)
    with pytest.raises(ValueError, match=r"lower partition.num_clients"):
        deal(IidPartition(num_clients=6, min_examples=30), data)
    with pytest.raises(ValueError, match=r"partition.label is 'sort'.*it has kind"):
        deal(DirichletPartition(kind="dirichlet", label="sort", num_clients=2, alpha=1), data)
    with pytest.raises(ValueError, match=r"partition.column is 'sort'.*site, kind"):
        deal(ColumnPartition(kind="column", column="sort"), data)
    data["label"][7] = -1
    with pytest.raises(ValueError, match="1 rows have no value"):
        deal(ColumnPartition(kind="column", column="kind"), data)
    data["patient"][:] = "same"
    data["split"][:] = 0
    with pytest.raises(ValueError, match="patient 'same' has rows of.*choose another column"):
        deal(ColumnPartition(kind="column", column="kind"), data)
    data["site"][::2] = 1 - data["site"][::2]
    with pytest.raises(ValueError, match=r"put the site before the number \((east|west)-same\) and pack again"):
        deal(ColumnPartition(kind="column"), data)
    data["split"][5] = 2
    with pytest.raises(ValueError, match=r"patient 'same'.*two splits"):
        deal(IidPartition(num_clients=1), data)


def test_a_site_without_training_rows_is_refused() -> None:
    data = single_rows(60)
    data["site"] = (data["split"] == 2).astype(np.int64)
    with pytest.raises(ValueError, match=r"east \(0\)"):
        deal(ColumnPartition(kind="column"), data)


# ---------------------------------------------------------------------------------------------------- groups of sites
def cohorts(seed: int = 0) -> dict[str, np.ndarray]:
    """Two cohorts of 8 and 5 hospitals, a patient a row."""
    random = np.random.default_rng(seed)
    site = random.integers(0, 13, 400)
    site[:13] = np.arange(13)
    split = random.choice(3, 400, p=(0.7, 0.1, 0.2)).astype(np.int8)
    return {"site": site, "cohort": (site >= 8).astype(int), "split": split}


def deal_groups(data: dict[str, np.ndarray], num_groups: int = 3, seed: int = 0) -> list[ClientRows]:
    return partition(
        GroupsPartition(kind="groups", within="cohort", num_groups=num_groups),
        site=(data["site"], [f"h{k}" for k in range(13)]),
        labels={"cohort": (data["cohort"], ["BRCA", "LIHC"])},
        patient=None,
        split=data["split"],
        random_seed=seed,
    )


def test_groups_keep_hospitals_whole_and_cohorts_apart() -> None:
    data = cohorts()
    clients = deal_groups(data)
    assert [c.site for c in clients] == ["BRCA-1", "BRCA-2", "BRCA-3", "LIHC-1", "LIHC-2", "LIHC-3"]
    assert sorted(rows_of(clients)) == list(range(400))
    homes = [set(data["site"][rows_of([client])].tolist()) for client in clients]
    assert sum(len(home) for home in homes) == 13 and set.union(*homes) == set(range(13))
    for client in clients:
        assert len(set(data["cohort"][rows_of([client])].tolist())) == 1
    for first in (0, 3):  # no group is larger than another by more than a hospital
        sizes = [len(c.train) for c in clients[first : first + 3]]
        largest = np.bincount(data["site"][data["split"] == 0]).max()
        assert max(sizes) - min(sizes) <= largest
    assert [c.train.tolist() for c in deal_groups(data)] == [c.train.tolist() for c in clients]
    assert [c.train.tolist() for c in deal_groups(data, seed=1)] != [c.train.tolist() for c in clients]


def test_more_groups_than_hospitals_are_refused() -> None:
    with pytest.raises(ValueError, match="num_groups is 6, but LIHC has 5 values of site, and these stay whole"):
        deal_groups(cohorts(), 6)
