"""Wrong training labels, drawn once for each client from the run's random seed; written down in the run folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedhpc.config.noise import ConfusionNoise, Noise, PairNoise
from fedhpc.data.partition import ClientRows

Array = np.ndarray
FILE = "noisy_labels.csv"
_PURPOSE = 0x4015E  # keeps these draws apart from others of the same random seed


def transition(noise: Noise, client: int, classes: Sequence[str]) -> Array:
    """T[i, j]: probability that a label of class i is given as class j; float64 [C, C], rows add up to 1.

    Raises ValueError for a class that `noise.matrix` names and the data do not have.
    """
    count = len(classes)
    if isinstance(noise, ConfusionNoise):
        matrix = np.zeros((count, count))
        if not noise.clients or client in noise.clients:
            for true, row in noise.matrix.items():
                for given, probability in row.items():
                    matrix[_place(classes, true), _place(classes, given)] += probability
        return matrix + np.diag(1 - matrix.sum(1))
    rate = noise.rate_of(client)
    if isinstance(noise, PairNoise):
        return (1 - rate) * np.eye(count) + rate * np.roll(np.eye(count), 1, axis=1)
    off = rate / (count - 1)
    return np.full((count, count), off) + (1 - rate - off) * np.eye(count)


def noisy_labels(
    noise: Noise, labels: Array, classes: Sequence[str], clients: Sequence[ClientRows], random_seed: int
) -> Array:
    """A copy of labels (integer [rows of the file]) with those of the clients' training rows drawn anew; -1 stays.

    Raises ValueError for a client or a class that is not there.
    """
    if isinstance(noise, ConfusionNoise) and (unknown := sorted(set(noise.clients) - {c.id for c in clients})):
        raise ValueError(f"noise.clients: there is no client {unknown[0]}; the run has 0 to {len(clients) - 1}")
    given = labels.copy()
    for client in clients:
        matrix = transition(noise, client.id, classes)
        rows = client.train[labels[client.train] >= 0]
        draw = np.random.default_rng([random_seed, _PURPOSE, client.id]).random(len(rows))
        # A row's own class comes last, so that what another rate changes is a subset or a superset.
        order = (np.arange(len(classes))[None] + 1 + np.arange(len(classes))[:, None]) % len(classes)
        edges = np.cumsum(np.take_along_axis(matrix, order, axis=1), axis=1)
        edges[:, -1] = 1.0
        place = (draw[:, None] >= edges[labels[rows]]).sum(1)
        given[rows] = order[labels[rows], place]
    return given


def write_noise(path: Path, labels: Array, given: Array, classes: Sequence[str], clients: Sequence[ClientRows]) -> None:
    """A line for each training row: client, row of the packed file, its label, the label that is trained on."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["client", "row", "label", "given"])
        for client in clients:
            for row in client.train[labels[client.train] >= 0].tolist():
                writer.writerow([client.id, row, classes[labels[row]], classes[given[row]]])
    temporary.replace(path)


def _place(classes: Sequence[str], name: str) -> int:
    if name not in classes:
        raise ValueError(f"noise.matrix: {name} is no class of data.label; these are {', '.join(classes)}")
    return list(classes).index(name)
