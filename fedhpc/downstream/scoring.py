"""From predictions to numbers with intervals, over all test rows and over every site's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedhpc.client.client import derived_seed
from fedhpc.config.downstream import Task
from fedhpc.downstream.rows import Rows
from fedhpc.metrics.bootstrap import Statistic, bootstrap_intervals
from fedhpc.metrics.classification import classification_metrics
from fedhpc.metrics.weighted import weighted_classification


@dataclass(frozen=True)
class Estimate:
    """A metric: its mean over seeds, the bootstrap interval of that mean, each seed's value and their spread.

    nan where not defined. low, high: nan without a bootstrap, and for what has no sampling error (chance).
    sd: standard deviation over seeds (n - 1); nan for a single one.
    """

    value: float
    low: float
    high: float
    sd: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Record:
    """What was found on one scope of the test rows, in one setting of the task."""

    scope: str  # "all", or a site
    setting: str  # "1 % labels"; "" where a task has one setting
    rows: int
    patients: int
    metrics: Mapping[str, Estimate]
    classes: int | None = None  # that occur in these rows, where classes are told apart

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "metrics": {name: asdict(one) for name, one in self.metrics.items()}}


@dataclass(frozen=True)
class Outcome:
    """What a kind of task hands back. `detail` is whatever else explains it, JSON values."""

    records: Sequence[Record]
    counts: Mapping[str, int]  # rows by split
    notes: Sequence[str]
    detail: Mapping[str, Any]


def estimate(
    task: Task, by_seed: Sequence[Mapping[str, float]], statistics: Sequence[Statistic], cluster: Tensor
) -> dict[str, Estimate]:
    """Metrics over seeds, with intervals for those that the statistics give.

    by_seed: metrics of each seed. statistics: the same under row weights, one a seed; the interval is that of their
    mean, as the same patients are drawn for all. cluster: integer [N], patient of each row.
    """
    intervals: dict[str, tuple[float, float]] = {}
    if task.bootstrap:

        def mean(weight: Tensor) -> dict[str, Tensor]:
            found = [statistic(weight) for statistic in statistics]
            return {name: torch.stack([one[name] for one in found]).mean(dim=0) for name in found[0]}

        seed = derived_seed(task.random_seed, "bootstrap")
        intervals = bootstrap_intervals(mean, cluster, task.bootstrap, task.confidence, seed)
    result = {}
    for name in by_seed[0]:
        values = tuple(float(one[name]) for one in by_seed)
        value = math.fsum(values) / len(values)
        sd = math.nan
        if len(values) > 1:
            sd = math.sqrt(math.fsum((x - value) ** 2 for x in values) / (len(values) - 1))
        low, high = intervals.get(name, (math.nan, math.nan))
        result[name] = Estimate(value, low, high, sd, values)
    return result


def classification_records(
    rows: Rows, places: Tensor, logits: Sequence[Tensor], label: Tensor, setting: str = ""
) -> list[Record]:
    """Of class scores for the test rows `places` (int64 [N]): one [N,K] a seed; label int64 [N], none missing."""
    records = []
    patient = rows.patient[places]
    for scope, part in rows.scopes(places).items():
        seeds = [one[part].float() for one in logits]
        truth = label[part]
        statistics: list[Statistic] = [_weighted(one, truth) for one in seeds]
        metrics = estimate(rows.task, [classification_metrics(one, truth) for one in seeds], statistics, patient[part])
        num_patients, num_classes = len(patient[part].unique()), len(truth.unique())
        records.append(Record(scope, setting, len(part), num_patients, metrics, num_classes))
    return records


def one_class_notes(rows: Rows, places: Tensor, label: Tensor, classes: Sequence[str]) -> list[str]:
    """Of scopes whose test rows `places` are all of one class: a constant answer can score 1 there."""
    found: dict[str, list[str]] = {}
    for scope, part in rows.scopes(places).items():
        names = [classes[code] for code in label[part].unique().tolist()]
        if len(names) == 1:
            found.setdefault(names[0], []).append(scope)
    return [
        f"{', '.join(scopes)}: all test rows are of class {name}, so balanced accuracy and macro F1 tell of that class "
        "alone (1.000 for always saying it), and there is no AUROC"
        for name, scopes in found.items()
    ]


def _weighted(logits: Tensor, label: Tensor) -> Statistic:
    return lambda weight: weighted_classification(logits, label, weight)
