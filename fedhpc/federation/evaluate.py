"""Scores a client's present weights on its own rows: retrieval for dual encoders, classification for classifiers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fedhpc.client.client import DataClient
from fedhpc.interfaces import EvalReport, Split
from fedhpc.metrics.bootstrap import bootstrap_intervals
from fedhpc.metrics.classification import classification_metrics
from fedhpc.metrics.retrieval import chance_recall_at_k, in_batch_top_k, macro_recall_at_k, recall_at_k
from fedhpc.metrics.weighted import weighted_classification

KS = (1, 5, 10)
CLASS_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")


class RetrievalScorer:
    """Image-text retrieval within a client's own rows of a split.

    Args:
        group: int64 [rows of the file]; items of equal group are all correct answers to each other.
        batch_size: candidates of in-batch retrieval.
    """

    names: Sequence[str] = (
        *(f"in_batch_top_{k}" for k in KS[:2]),
        *(f"recall_at_{k}" for k in KS),
        "macro_recall_at_1",
        *(f"chance_recall_at_{k}" for k in KS),
        "examples",
    )

    def __init__(self, group: Tensor, batch_size: int) -> None:
        self._group = group
        self._batch_size = batch_size

    def __call__(self, client: DataClient, split: Split) -> EvalReport:
        image, text, rows = _outputs(client, split, ("image", "text"))
        if len(rows) < 2:
            return _nothing(self.names, len(rows))
        group = self._group[rows]
        # Rows stand in the file's order, often sorted by class: pools of neighbours would be harder than random ones.
        mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))
        metrics = {
            **in_batch_top_k(image[mixed], text[mixed], self._batch_size, KS[:2]),
            **recall_at_k(image, text, group, KS),
            **macro_recall_at_k(image, text, group, KS[:1]),
            **chance_recall_at_k(group, KS),
            "examples": float(len(rows)),
        }
        return EvalReport({name: metrics[name] for name in self.names}, len(rows))


class ClassificationScorer:
    """Accuracy and its kin on a client's own rows of a split.

    Args:
        label: integer [rows of the file].
        cluster: integer [rows of the file]: rows of one patient.
        num_resamples: of a bootstrap over clusters; "<metric>_low" and "<metric>_high" are then 95 % intervals.
    """

    def __init__(self, label: Tensor, cluster: Tensor | None = None, num_resamples: int = 0) -> None:
        self._label = label
        self._cluster = cluster
        self._num_resamples = num_resamples
        bounds = [f"{name}_{end}" for name in CLASS_METRICS for end in ("low", "high")] if num_resamples else []
        self.names: Sequence[str] = (*CLASS_METRICS, *bounds, "examples")

    def __call__(self, client: DataClient, split: Split) -> EvalReport:
        logits, rows = _outputs(client, split, ("logits",))
        labels = self._label[rows]
        known = labels >= 0
        if not bool(known.any()):
            return _nothing(self.names, 0)
        metrics = classification_metrics(logits, labels)
        if self._num_resamples:
            logits, labels, rows = logits[known], labels[known], rows[known]
            cluster = rows if self._cluster is None else self._cluster[rows]
            statistic = partial(weighted_classification, logits, labels)
            for name, bounds in bootstrap_intervals(statistic, cluster, self._num_resamples, 0.95, 0).items():
                metrics |= dict(zip((f"{name}_low", f"{name}_high"), bounds, strict=True))
        return EvalReport(metrics | {"examples": float(known.sum())}, int(known.sum()))


class JointScorer:
    """Accuracy and its kin of the joint representation, and the accuracy with one modality alone: by its own
    representation ("accuracy_image"), and by the joint one with zeros for the other ("accuracy_image_zeros").

    Args:
        label: integer [rows of the file].
        modalities: of the model; with one there is nothing else to score.
    """

    def __init__(self, label: Tensor, modalities: Sequence[str]) -> None:
        self._label = label
        self._singles = tuple(modalities) if len(modalities) > 1 else ()
        more = [f"accuracy_{name}{how}" for how in ("", "_zeros") for name in self._singles]
        self.names: Sequence[str] = (*CLASS_METRICS, *more, "examples")

    def __call__(self, client: DataClient, split: Split) -> EvalReport:
        logits, *singles, rows = _outputs(client, split, ("logits", *(f"logits/{name}" for name in self._singles)))
        labels = self._label[rows]
        known = labels >= 0
        if not bool(known.any()):
            return _nothing(self.names, 0)
        metrics = dict(classification_metrics(logits, labels))
        for name, single in zip(self._singles, singles, strict=True):
            metrics[f"accuracy_{name}"] = _accuracy(single, labels)
            lacks = f"has_{'text' if name == 'image' else 'image'}"
            alone, _ = _outputs(client, split, ("logits",), lacks)
            metrics[f"accuracy_{name}_zeros"] = _accuracy(alone, labels)
        return EvalReport(metrics | {"examples": float(known.sum())}, int(known.sum()))


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    known = labels >= 0
    return float((logits[known].argmax(dim=1) == labels[known]).double().mean())


def _nothing(names: Sequence[str], examples: int) -> EvalReport:
    """A client without rows in a split has no score: nan, left out of mean and worst."""
    return EvalReport(dict.fromkeys(names, math.nan) | {"examples": float(examples)}, examples)


def _outputs(client: DataClient, split: Split, names: Sequence[str], lacks: str = "") -> list[Tensor]:
    """Outputs over all rows of a split, float32 on the CPU, and the row numbers last. lacks: a column ("has_text") that
    is set to False."""
    parts: dict[str, list[Tensor]] = {name: [] for name in (*names, "row")}
    for batch in client.batches(split):
        outputs = client.outputs({**batch, lacks: torch.zeros_like(batch[lacks])} if lacks else batch)
        for name in names:
            parts[name].append(outputs[name].float().cpu())
        parts["row"].append(batch["row"].cpu())
    return [torch.cat(p) if p else torch.empty(0, dtype=torch.int64) for p in parts.values()]


def summarise(per_client: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean, worst (lowest) and best over clients, each client counting once; nan where nobody has a score."""
    summary = {}
    for name in names:
        values = [row[name] for row in per_client if not math.isnan(row[name])]
        mean = math.fsum(values) / len(values) if values else math.nan
        summary[name] = {
            "mean": mean,
            "worst": min(values, default=math.nan),
            "best": max(values, default=math.nan),
        }
    return summary
