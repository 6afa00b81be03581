"""Deal the rows of a packed file to clients: patients are never cut, and no row is lost."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fedhpc.config.schema import (
    ColumnPartition,
    DirichletPartition,
    GroupsPartition,
    IidPartition,
    Partition,
    QuantityPartition,
)
from fedhpc.data.hdf5 import SPLITS, PackedFile

Array = np.ndarray
_DRAWS = 200
TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")


class Coded(NamedTuple):
    """A categorical column: int [N] codes (-1: missing) and the names they stand for."""

    codes: Array
    names: list[str]


@dataclass(frozen=True)
class ClientRows:
    """The rows of one client: sorted int64 indices into the packed file."""

    id: int
    site: str
    train: Array
    val: Array
    test: Array

    @property
    def num_rows(self) -> int:
        return len(self.train) + len(self.val) + len(self.test)

    def rows(self, split: str) -> Array:
        return {"train": self.train, "val": self.val, "test": self.test}[split]


@dataclass(frozen=True)
class _Patients:
    """The units that are dealt: one entry a patient."""

    of_row: Array  # int64 [N]: patient of each row
    split: Array  # int8 [P]
    size: Array  # int64 [P]: rows
    names: Array  # str [P]

    @property
    def count(self) -> int:
        return len(self.size)

    @property
    def train_rows(self) -> int:
        return int(self.size[self.split == 0].sum())


def partition(
    config: Partition,
    *,
    site: tuple[Array, list[str]],
    labels: Mapping[str, tuple[Array, list[str]]],
    patient: Array | None,
    split: Array,
    random_seed: int,
) -> list[ClientRows]:
    """Deal N rows to clients, whole patients at a time; every row goes to exactly one client.

    site, labels: (codes int [N], names); patient: str [N], or None where each row is its own; split: int8 [N], 0/1/2.
    Deterministic in random_seed. Raises ValueError for a patient in two splits (or, with ``column``, of two values),
    for an unknown column, for rows without a value, and where `min_examples` training rows cannot be reached.
    """
    patients = _group(patient, np.asarray(split))
    if isinstance(config, ColumnPartition):
        client, names = _by_column(config, site, labels, patients)
    elif isinstance(config, GroupsPartition):
        client, names = _in_groups(config, site, labels, patients, random_seed)
    else:
        if config.num_clients > patients.count:
            raise ValueError(f"partition.num_clients is {config.num_clients}, but there are only {patients.count} "
                             "patients, and patients are never cut: lower num_clients")  # fmt: skip
        if isinstance(config, IidPartition):
            client = _iid(patients, np.arange(patients.count), config.num_clients, _generator(random_seed, "iid"))
        else:
            client = _redrawn(config, patients, _dealer(config, labels, patients, random_seed))
        names = [f"client-{k}" for k in range(config.num_clients)]
    train_rows = _rows(client, patients, len(names), TRAIN)
    if int(train_rows.min()) < config.min_examples:
        raise ValueError(_too_few(config, train_rows, names))
    return _clients(client[patients.of_row], np.asarray(split), names)


def partition_file(
    config: Partition, packed: PackedFile, random_seed: int, rows: Array | None = None
) -> list[ClientRows]:
    """`partition` of a packed file, or of these of its `rows` (int64, sorted): the same clients on every rank.

    Row numbers in the result are the file's.
    """
    rows = np.arange(packed.num_rows) if rows is None else rows
    clients = partition(
        config,
        site=(packed.read("site")[rows], packed.site_names),
        labels={name: (packed.read(f"label/{name}")[rows], classes) for name, classes in packed.label_classes.items()},
        patient=packed.patients()[rows],
        split=packed.read("split")[rows],
        random_seed=random_seed,
    )
    return [replace(c, train=rows[c.train], val=rows[c.val], test=rows[c.test]) for c in clients]


# -------------------------------------------------------------------------------------------------------- patients
def _group(patient: Array | None, split: Array) -> _Patients:
    if len(split) == 0:
        raise ValueError("there are no rows to deal to clients")
    if patient is None:
        names, of_row = np.arange(len(split)).astype(str), np.arange(len(split))
    else:
        names, of_row = np.unique(np.asarray(patient, dtype=str), return_inverse=True)
    lowest = np.full(len(names), 127, np.int8)
    highest = np.full(len(names), -1, np.int8)
    np.minimum.at(lowest, of_row, split.astype(np.int8))
    np.maximum.at(highest, of_row, split.astype(np.int8))
    cut = np.flatnonzero(lowest != highest)
    if len(cut):
        raise ValueError(f"patient '{names[cut[0]]}' (and {len(cut) - 1} more) is in two splits: the file must be "
                         "split by patient; pack it again with --split")  # fmt: skip
    return _Patients(of_row, lowest, np.bincount(of_row, minlength=len(names)), names)


def _majority(codes: Array, num_classes: int, patients: _Patients) -> Array:
    """Most frequent class of each patient's rows (the lowest among equals); -1 where all are missing. int64 [P]."""
    known = codes >= 0
    keys, counts = np.unique(patients.of_row[known] * num_classes + codes[known], return_counts=True)
    owner, label = keys // num_classes, keys % num_classes
    order = np.lexsort((label, -counts, owner))
    first_owner, first = np.unique(owner[order], return_index=True)
    out = np.full(patients.count, -1, np.int64)
    out[first_owner] = label[order][first]
    return out


# --------------------------------------------------------------------------------------------------------- dealing
def _generator(random_seed: int, purpose: str, attempt: int = 0) -> np.random.Generator:
    key = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.default_rng((random_seed, key, attempt))


def _iid(patients: _Patients, members: Array, num_clients: int, random: np.random.Generator) -> Array:
    """Deal `members` round robin, split after split, from a random first client on: int64 [P], -1 for others."""
    client = np.full(patients.count, -1, np.int64)
    shuffled = random.permutation(members)
    ordered = shuffled[np.argsort(patients.split[shuffled], kind="stable")]
    client[ordered] = (np.arange(len(ordered)) + random.integers(num_clients)) % num_clients
    return client


def _cut(patients: _Patients, members: Array, shares: Array, client: Array, random: np.random.Generator) -> None:
    """Give each client its share of the members' rows, in each split alike: a patient goes where its middle row is."""
    edges = np.cumsum(shares)
    edges /= edges[-1]
    for code in range(len(SPLITS)):
        dealt = random.permutation(members[patients.split[members] == code])
        size = patients.size[dealt]
        middle = (np.cumsum(size) - size / 2) / max(1, int(size.sum()))
        client[dealt] = np.minimum(np.searchsorted(edges, middle, side="right"), len(shares) - 1)


def _shares(random: np.random.Generator, alpha: float, num_clients: int) -> Array:
    """One draw of Dirichlet(alpha). A tiny alpha can underflow to zeros: then one client gets all, its limit."""
    shares = random.dirichlet(np.full(num_clients, alpha))
    if not np.isfinite(shares).all() or shares.sum() <= 0:
        shares = np.zeros(num_clients)
        shares[random.integers(num_clients)] = 1.0
    return shares


def _dealer(
    config: DirichletPartition | QuantityPartition,
    labels: Mapping[str, tuple[Array, list[str]]],
    patients: _Patients,
    random_seed: int,
) -> Callable[[int], Array]:
    """attempt -> client of each patient."""
    if isinstance(config, DirichletPartition):
        codes, names = _column(labels, config.label, "partition.label")
        group = _majority(np.asarray(codes), len(names), patients)
    else:
        group = np.zeros(patients.count, np.int64)

    def deal(attempt: int) -> Array:
        random = _generator(random_seed, config.kind, attempt)
        client = np.full(patients.count, -1, np.int64)
        for value in np.unique(group[group >= 0]):
            shares = _shares(random, config.alpha, config.num_clients)
            _cut(patients, np.flatnonzero(group == value), shares, client, random)
        missing = np.flatnonzero(group < 0)
        return np.maximum(client, _iid(patients, missing, config.num_clients, random))

    return deal


def _redrawn(
    config: DirichletPartition | QuantityPartition, patients: _Patients, deal: Callable[[int], Array]
) -> Array:
    """The first draw that gives every client `min_examples` training and `min_test_examples` test rows."""
    if config.num_clients * config.min_examples > patients.train_rows:
        raise ValueError(f"partition.num_clients({config.num_clients}) * min_examples({config.min_examples}) = "
                         f"{config.num_clients * config.min_examples}, but there are {patients.train_rows} training "
                         "rows: lower num_clients or min_examples")  # fmt: skip
    best = (-1, -1)
    for attempt in range(_DRAWS):
        client = deal(attempt)
        train, test = (int(_rows(client, patients, config.num_clients, code).min()) for code in (TRAIN, TEST))
        if train >= config.min_examples and test >= config.min_test_examples:
            return client
        best = max(best, (train, test))
    raise ValueError(f"in {_DRAWS} draws with partition.alpha {config.alpha} the smallest of {config.num_clients} "
                     f"clients got at best {best[0]} training rows, min_examples is {config.min_examples} (and "
                     f"{best[1]} test rows, min_test_examples is {config.min_test_examples}): raise alpha, or lower "
                     "num_clients or the minimum")  # fmt: skip


def _by_column(
    config: ColumnPartition,
    site: tuple[Array, list[str]],
    labels: Mapping[str, tuple[Array, list[str]]],
    patients: _Patients,
) -> tuple[Array, list[str]]:
    is_site = config.column == "site"
    value, values = _value_of_patients(config.column, site, labels, patients)
    held, client = np.unique(value, return_inverse=True)
    names = [values[index] if is_site else f"client-{k}" for k, index in enumerate(held)]
    return client.astype(np.int64), names


def _in_groups(
    config: GroupsPartition,
    site: tuple[Array, list[str]],
    labels: Mapping[str, tuple[Array, list[str]]],
    patients: _Patients,
    random_seed: int,
) -> tuple[Array, list[str]]:
    """Whole units go, in random order, each to the group with the fewest training rows at that time."""
    unit, _ = _value_of_patients(config.column, site, labels, patients)
    pool, pools = np.zeros(patients.count, np.int64), ["group"]
    if config.within is not None:
        pool, pools = _value_of_patients(config.within, site, labels, patients, "partition.within")
    random = _generator(random_seed, config.kind)
    client = np.full(patients.count, -1, np.int64)
    names: list[str] = []
    rows = np.where(patients.split == TRAIN, patients.size, 0)
    for value in np.unique(pool):
        members = pool == value
        held = np.unique(unit[members])
        if len(held) < config.num_groups:
            raise ValueError(f"partition.num_groups is {config.num_groups}, but {pools[value]} has {len(held)} values "
                             f"of {config.column}, and these stay whole: lower num_groups")  # fmt: skip
        filled = np.zeros(config.num_groups, np.int64)
        for one in random.permutation(held):
            here = members & (unit == one)
            group = int(filled.argmin())
            client[here] = len(names) + group
            filled[group] += max(1, int(rows[here].sum()))
        names += [f"{pools[value]}-{k + 1}" for k in range(config.num_groups)]
    return client, names


def _value_of_patients(
    column: str,
    site: tuple[Array, list[str]],
    labels: Mapping[str, tuple[Array, list[str]]],
    patients: _Patients,
    key: str = "partition.column",
) -> tuple[Array, list[str]]:
    """int64 [P] codes of a column that no patient has two values of, and their names."""
    codes, values = site if column == "site" else _column(labels, column, key, extra=("site",))
    value = _majority(np.asarray(codes), len(values), patients)
    mixed = (codes >= 0) & (value[patients.of_row] != codes)
    if mixed.any():
        row = int(np.flatnonzero(mixed)[0])
        one = patients.of_row[row]
        cure = "choose another column, or kind: dirichlet with this label"
        if column == "site":
            cure = ("where numbers begin anew at each site these are two patients: put the site before the number "
                    f"({values[codes[row]]}-{patients.names[one]}) and pack again, or set kind: iid")  # fmt: skip
        raise ValueError(f"{key} {column!r}: patient '{patients.names[one]}' has rows of "
                         f"{values[value[one]]!r} and of {values[codes[row]]!r}, and patients are never cut between "
                         f"clients: {cure}")  # fmt: skip
    lacking = int(patients.size[value < 0].sum())
    if lacking:
        raise ValueError(f"{key} {column!r}: {lacking} rows have no value, and no row may be lost: "
                         "choose another column, or pack the set without these rows")  # fmt: skip
    return value, values


def _column(
    labels: Mapping[str, tuple[Array, list[str]]], name: str, key: str, extra: tuple[str, ...] = ()
) -> tuple[Array, list[str]]:
    if name not in labels:
        has = ", ".join([*extra, *sorted(labels)]) or "none"
        raise ValueError(f"{key} is {name!r}, which the file lacks: it has {has}")
    return labels[name]


# ----------------------------------------------------------------------------------------------------------- result
def _rows(client: Array, patients: _Patients, num_clients: int, split: int) -> Array:
    """Rows of each client in a split."""
    here = patients.split == split
    return np.bincount(client[here], weights=patients.size[here], minlength=num_clients).astype(np.int64)


def _too_few(config: Partition, train_rows: Array, names: list[str]) -> str:
    few = np.flatnonzero(train_rows < config.min_examples)
    listed = ", ".join(f"{names[k]} ({train_rows[k]})" for k in few[:8]) + (", ..." if len(few) > 8 else "")
    by_column = isinstance(config, ColumnPartition | GroupsPartition)
    cure = "choose another column or kind" if by_column else "lower partition.num_clients"
    return (f"{len(few)} of {len(names)} clients have fewer than partition.min_examples = {config.min_examples} "
            f"training rows: {listed}; {cure}, or lower min_examples")  # fmt: skip


def _clients(client_of_row: Array, split: Array, names: list[str]) -> list[ClientRows]:
    assert (client_of_row >= 0).all(), "a row was dealt to nobody"
    key = client_of_row * len(SPLITS) + split
    order = np.argsort(key, kind="stable").astype(np.int64)  # stable: rows stay sorted within client and split
    edges = np.searchsorted(key[order], np.arange(len(names) * len(SPLITS) + 1))
    parts = [order[a:b] for a, b in itertools.pairwise(edges)]
    return [ClientRows(k, name, *parts[k * 3 : k * 3 + 3]) for k, name in enumerate(names)]
