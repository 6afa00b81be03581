"""Training rows that lose a modality, drawn once from the run's random seed; written down in the run folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedhpc.config.joint import JointConfig, MissingConfig
from fedhpc.config.schema import ClassifierConfig, DualEncoderConfig, FusionConfig, RunConfig
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.partition import ClientRows

Array = np.ndarray
FILE = "missing.csv"
BOTH = ("image", "text")
_PURPOSE = 0x3155  # keeps these draws apart from others of the same random seed


def lost_rows(
    missing: MissingConfig, clients: Sequence[ClientRows], random_seed: int, value: Array | None = None
) -> dict[str, Array]:
    """Which training rows lose "image" and which lose "text": int64, sorted, no row in both.

    Rows are drawn without replacement, exactly round(ratio n) of a client's n (with rule: site of all clients'), with
    odds e^(strength z): z from -1 to 1, evenly over the values in a random order, 0 for rule: random. The j-th row that
    is drawn loses what the j-th row loses at any other ratio, so larger ratios only add rows.

    value: integer [rows of the file], the label or site that the rule depends on; -1 where unknown.
    """
    lost: dict[str, list[Array]] = {name: [] for name in BOTH}
    pools = [(client.id, missing.ratio_of(client.id), client.train) for client in clients]
    if missing.rule == "site":
        pools = [(0, missing.ratio[0], np.sort(np.concatenate([client.train for client in clients])))]
    scores = _scores(missing, clients, random_seed, value)
    for key, ratio, rows in pools:
        random = np.random.default_rng([random_seed, _PURPOSE, key])
        luck = random.gumbel(size=len(rows))
        start = random.random()
        drawn = rows[np.argsort(-(luck + scores[rows] if scores is not None else luck), kind="stable")]
        # The j-th loses its picture where floor(start + (j + 1) share) > floor(start + j share): the share is exact
        # to within one row.
        steps = np.floor(start + missing.image_share * np.arange(len(rows) + 1))
        image = np.diff(steps) > 0
        count = round(ratio * len(rows))
        lost["image"].append(drawn[:count][image[:count]])
        lost["text"].append(drawn[:count][~image[:count]])
    return {name: np.sort(np.concatenate(parts)).astype(np.int64) for name, parts in lost.items()}


def _scores(
    missing: MissingConfig, clients: Sequence[ClientRows], random_seed: int, value: Array | None
) -> Array | None:
    if missing.rule == "random":
        return None
    assert value is not None, "label and site rules depend on a column"
    known = np.unique(np.concatenate([value[client.train] for client in clients]))
    known = known[known >= 0]
    order = np.random.default_rng([random_seed, _PURPOSE, 1, 1]).permutation(len(known))
    z = np.zeros(int(value.max(initial=0)) + 2)  # the last one is for -1
    z[known[order]] = np.linspace(-1, 1, len(known)) if len(known) > 1 else 0.0
    return np.asarray(missing.strength * z[value])


def draw_lost(config: RunConfig, packed: PackedFile, clients: Sequence[ClientRows]) -> dict[str, Array]:
    """`lost_rows` of a run: empty without config.missing. The same on every rank.

    Raises:
        ValueError: a label column that the file lacks.
    """
    missing = config.missing
    if missing is None:
        return {}
    value = None
    if missing.rule == "site":
        value = packed.read("site")
    elif missing.rule == "label":
        label = missing.label or config.data.label
        if label is None or label not in packed.label_classes:
            raise ValueError(
                f"missing.rule: label depends on missing.label: {label}, but the file's label columns are "
                f"{', '.join(packed.label_classes) or 'none'}; set missing.label to one of them"
            )
        value = packed.read(f"label/{label}")
    return lost_rows(missing, clients, config.random_seed, value)


def needed(config: RunConfig) -> tuple[str, ...]:
    """Of image and text, what a model reads that cannot do without it."""
    model = config.model
    if isinstance(model, DualEncoderConfig):
        return BOTH
    if isinstance(model, ClassifierConfig):
        return ("image",)
    if isinstance(model, FusionConfig):  # what it makes of pictures and texts counts too
        pictures = model.image is not None or any(one.thumbnail is not None for one in model.tabular.values())
        return (*(["image"] if pictures else []), *(["text"] if model.reads_text else []))
    return model.modalities


def without_lost(config: RunConfig, clients: Sequence[ClientRows], lost: Mapping[str, Array]) -> list[ClientRows]:
    """The clients without training rows that lost something that the model needs.

    Raises:
        ValueError: a client has no training row left.
    """
    gone = np.unique(np.concatenate([np.empty(0, np.int64), *(lost[m] for m in needed(config) if m in lost)]))
    left = [replace(c, train=np.setdiff1d(c.train, gone, assume_unique=True)) for c in clients]
    refuse_empty(config, clients, left)
    return left


def refuse_empty(config: RunConfig, before: Sequence[ClientRows], after: Sequence[ClientRows]) -> None:
    """Raises ValueError when a client that had training rows has none with all that the model needs."""
    for was, now in zip(before, after, strict=True):
        if len(was.train) and not len(now.train):
            ratio = "" if config.missing is None else f" at missing.ratio: {config.missing.ratio_of(was.id):g}"
            joint = isinstance(config.model, JointConfig) and len(config.model.modalities) > 1
            cure = "set model.missing: zeros, " if joint else "set model.kind: joint with missing: zeros, "
            raise ValueError(
                f"client {was.id} ({was.site}) has no training row with {' and '.join(needed(config))} left{ratio} (of "
                f"{len(was.train)}), and none to complete the others from; {cure}a smaller missing.ratio, or a "
                "partition of fewer clients"
            )


def write_missing(
    path: Path,
    clients: Sequence[ClientRows],
    lost: Mapping[str, Array],
    completed: Mapping[str, Array],
    used: Sequence[ClientRows],
) -> None:
    """A line for each training row that lacks a modality: client, row of the packed file, what it lacks, whether that
    was completed, whether the row is trained on.

    lost, completed: by modality, rows; clients: with all their rows; used: with those that are trained on.
    """
    temporary = path.with_name(path.name + ".partial")
    made = {name: set(rows.tolist()) for name, rows in completed.items()}
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["client", "row", "missing", "completed", "used"])
        for client, own in zip(clients, used, strict=True):
            trained = set(own.train.tolist())
            pairs = [(row, name) for name, rows in lost.items() for row in np.intersect1d(client.train, rows).tolist()]
            for row, name in sorted(pairs):
                writer.writerow([client.id, row, name, int(row in made.get(name, ())), int(row in trained)])
    temporary.replace(path)
