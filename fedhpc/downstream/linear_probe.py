"""Linear probe: how well a linear classifier on frozen features does, with all labels and with few.

Protocol of MGCA (Wang et al., NeurIPS 2022): frozen encoder, 1, 10 and 100 % of the training labels, chosen on val. The
classifier is scikit-learn's logistic regression on standardised features, its penalty chosen on val.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedhpc.client.client import derived_seed
from fedhpc.config.downstream import LinearProbeTask
from fedhpc.config.schema import DualEncoderConfig
from fedhpc.downstream.rows import Rows
from fedhpc.downstream.sampling import share_of_patients
from fedhpc.downstream.scoring import Outcome, Record, classification_records, one_class_notes

UNSEEN = 30.0  # a class without training rows gets log-odds of -30: never predicted, all its rows tied
MAX_ITERATIONS = 2000


def run_linear_probe(rows: Rows, task: LinearProbeTask) -> Outcome:
    """Accuracy, balanced accuracy, macro F1 and AUROC on test, for each fraction of the training labels.

    Raises ValueError when the features are not there, or the training rows are of one class.
    """
    output = "image_features"
    if task.features == "embedding":
        if not isinstance(rows.run.config.model, DualEncoderConfig):
            raise ValueError("features: embedding is of dual encoders, the run has a classifier; set features: encoder")
        output = "image"
    codes, classes = rows.labels(task.label)
    need = f"a label in column {task.label}"
    train, val, test = (rows.select(split, codes >= 0, need) for split in ("train", "val", "test"))
    everything = torch.cat([train, val, test])
    (features,) = rows.image_outputs(everything, [output])
    x_train, x_val, x_test = (part.double().numpy() for part in features.split([len(train), len(val), len(test)]))
    y_train, y_val, y_test = (codes[part.numpy()] for part in (train, val, test))
    patients = rows.patient[train].numpy()
    records: list[Record] = []
    notes: list[str] = []
    chosen: dict[str, Any] = {}
    with threadpool_limits(rows.run.config.runtime.threads_per_rank):
        for fraction in task.fractions:
            setting = f"{100 * fraction:g} % labels"
            logits: list[Tensor] = []
            chosen[setting] = []
            for seed in range(task.num_seeds if fraction < 1 else 1):
                random = np.random.default_rng(derived_seed(task.random_seed, "share", seed))
                part = share_of_patients(patients, y_train, fraction, random)
                probe = Probe(x_train[part], y_train[part], x_val, y_val, task.strengths, len(classes))
                logits.append(torch.from_numpy(probe.logits(x_test)).float())
                chosen[setting].append({"rows": len(part), "strength": probe.strength, "val": probe.score})
                notes += [f"{setting}: {note}" for note in probe.notes]
            records += classification_records(rows, test, logits, torch.from_numpy(y_test), setting)
    unseen = sorted(set(y_test.tolist()) - set(y_train.tolist()))
    if unseen:
        names = ", ".join(classes[code] for code in unseen)
        notes.append(f"no training row is of class {names}: its test rows cannot be right")
    notes += one_class_notes(rows, test, torch.from_numpy(y_test), classes)
    counts = {"train": len(train), "val": len(val), "test": len(test)}
    detail = {"classes": classes, "features": output, "width": x_train.shape[1], "chosen": chosen}
    return Outcome(records, counts, list(dict.fromkeys(notes)), detail)


class Probe:
    """Logistic regression, its penalty chosen by balanced accuracy on val (the strongest among equals).

    x: float64 [N,D]; y: int64 [N] in 0..num_classes-1. `strength`, `score`: the choice and what it came to on val.
    Raises ValueError when y_train has one class alone.
    """

    def __init__(
        self,
        x_train: np.ndarray,
        y_train: np.ndarray,
        x_val: np.ndarray,
        y_val: np.ndarray,
        strengths: list[float],
        num_classes: int,
    ) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        if len(np.unique(y_train)) < 2:
            raise ValueError(
                f"the {len(y_train)} training rows are all of one class: nothing to learn; take another label, more "
                "sites, or a larger fraction"
            )
        self._mean, spread = x_train.mean(axis=0), x_train.std(axis=0)
        self._scale = np.where(spread > 1e-12, spread, 1.0)
        self._num_classes = num_classes
        self.notes: list[str] = []
        self.score = -1.0
        scaled, scaled_val = (x_train - self._mean) / self._scale, (x_val - self._mean) / self._scale
        for strength in sorted(strengths):
            model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, random_state=0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ConvergenceWarning)
                model.fit(scaled, y_train)
            score = balanced_accuracy(model.predict(scaled_val), y_val)
            if score > self.score:
                self.score, self.strength, self._model = score, strength, model
                late = any(issubclass(one.category, ConvergenceWarning) for one in caught)
                self.notes = [f"C = {strength:g} did not converge in {MAX_ITERATIONS} iterations"] if late else []

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Class scores float64 [N,num_classes], whose softmax is the model's probability."""
        scores = self._model.decision_function((x - self._mean) / self._scale)
        if scores.ndim == 1:
            scores = np.stack([-scores / 2, scores / 2], axis=1)
        seen = self._model.classes_.astype(np.int64)
        highest = scores.max(axis=1, keepdims=True)
        total = highest + np.log(np.exp(scores - highest).sum(axis=1, keepdims=True))
        out = np.repeat(total - UNSEEN, self._num_classes, axis=1)
        out[:, seen] = scores
        return out


def balanced_accuracy(predicted: np.ndarray, label: np.ndarray) -> float:
    """Mean recall over the classes in `label`."""
    return float(np.mean([np.mean(predicted[label == name] == name) for name in np.unique(label)]))
