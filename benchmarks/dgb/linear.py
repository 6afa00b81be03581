"""Linear ceilings of configs/study/dgb_tcga: logistic regression on the pooled training rows of each cohort.

python benchmarks/dgb/linear.py data/tcga_1.h5 data/tcga_2.h5 ... [--labels stage_1_2 early_late tp53]

Features: mrna, mutation and clinical, scaled by training rows, clipped at 5 deviations, missing values at the mean. The
penalty is chosen by AUROC on validation rows. `all` is one model of all cohorts, scored on all: it may tell cohorts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from fedhpc.data.hdf5 import SPLITS, PackedFile
from fedhpc.metrics.classification import classification_metrics

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
MODALITIES = ("mrna", "mutation", "clinical")
Array = np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--labels", nargs="+", default=["stage_1_2", "early_late", "tp53"])
    given = parser.parse_args()
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for path in given.files:
        for label in given.labels:
            for cohort, metrics in ceilings(path, label).items():
                found.setdefault(label, {}).setdefault(cohort, []).append(metrics)
    for label, cohorts in found.items():
        for cohort, runs in cohorts.items():
            cells = [spread([run[name] for run in runs]) for name in ("balanced_accuracy", "auroc")]
            print(f"| {label} | {cohort} | {' | '.join(cells)} |")
    print(json.dumps(found))


def ceilings(path: Path, label: str) -> dict[str, dict[str, float]]:
    """Metrics on test rows by cohort, and over all."""
    with PackedFile(path) as packed:
        y, split, code = packed.read(f"label/{label}"), packed.read("split"), packed.read("label/cohort")
        names = packed.label_classes["cohort"]
        x = np.concatenate([packed.read(f"tabular/{m}").astype(np.float64) for m in MODALITIES], axis=1)
    masks = {name: code == number for number, name in enumerate(names)} | {"all": code >= 0}
    return {name: ceiling(x, y, split, here & (y >= 0)) for name, here in masks.items()}


def ceiling(x: Array, y: Array, split: Array, here: Array) -> dict[str, float]:
    train, val, test = (here & (split == SPLITS.index(name)) for name in ("train", "val", "test"))
    features = scaled(x, train)
    models = [
        LogisticRegression(C=c, class_weight="balanced", max_iter=500).fit(features[train], y[train]) for c in PENALTIES
    ]
    best = max(models, key=lambda model: measured(model, features[val], y[val])["auroc"])
    return measured(best, features[test], y[test])


def scaled(x: Array, train: Array) -> Array:
    with np.errstate(all="ignore"):
        mean, deviation = np.nanmean(x[train], axis=0), np.nanstd(x[train], axis=0)
        out = np.clip((x - mean) / np.where(deviation > 0, deviation, np.inf), -5, 5)
    return np.nan_to_num(out, nan=0.0)


def measured(model: LogisticRegression, x: Array, y: Array) -> dict[str, float]:
    logits = torch.from_numpy(model.predict_log_proba(x))
    return classification_metrics(logits, torch.from_numpy(y).long())


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else float('nan'):.3f}"


if __name__ == "__main__":
    main()
