"""Few-shot fine-tuning: the whole image encoder and a linear layer, on a few rows of each class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedhpc.client.client import derived_seed
from fedhpc.config.downstream import FineTuneTask
from fedhpc.data.batches import batch_sizes
from fedhpc.downstream.loading import image_encoder
from fedhpc.downstream.rows import Rows
from fedhpc.downstream.sampling import shots_of_classes
from fedhpc.downstream.scoring import Outcome, classification_records, one_class_notes
from fedhpc.downstream.tuning import fit_with_patience, thawed_copy


class Head(nn.Module):
    """An image encoder and a linear layer: pictures [B,C,H,W] -> logits [B,num_classes]."""

    def __init__(self, encoder: Any, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(encoder.width, num_classes).to(next(encoder.parameters()).device)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.encoder.features(images))
        return logits


def run_fine_tune(rows: Rows, task: FineTuneTask) -> Outcome:
    """Classification metrics on test after tuning on `shots` rows of each class, augmented as in the run.

    The epoch is chosen by cross-entropy on the whole val split. Raises ValueError when the training rows are of one
    class.
    """
    codes, classes = rows.labels(task.label)
    need = f"a label in column {task.label}"
    train, val, test = (rows.select(split, codes >= 0, need) for split in ("train", "val", "test"))
    label = torch.from_numpy(codes)
    if len(label[train].unique()) < 2:
        raise ValueError(
            f"the training rows are all of one class of {task.label}: nothing to learn; take other sites or another "
            "label"
        )
    maker = rows.maker({"image": "image", "label": f"label/{task.label}"})
    few = [name for code, name in enumerate(classes) if 0 < int((label[train] == code).sum()) < task.shots]
    none = [name for code, name in enumerate(classes) if int((label[train] == code).sum()) == 0]
    notes = [f"fewer than {task.shots} training rows are of class {', '.join(few)}: all are taken"] if few else []
    notes += [f"no training row is of class {', '.join(none)}: it cannot be learned"] if none else []
    logits, trained = [], []
    for seed in range(task.num_seeds):
        random = np.random.default_rng(derived_seed(task.random_seed, "shots", seed))
        part = train[shots_of_classes(rows.patient[train].numpy(), codes[train.numpy()], task.shots, random)]
        torch.manual_seed(derived_seed(task.random_seed, "fine_tune", seed))
        model = Head(thawed_copy(image_encoder(rows.run.module), rows.run.config.fit), len(classes))
        generator = torch.Generator().manual_seed(derived_seed(task.random_seed, "batches", seed))
        steps = len(batch_sizes(len(part), task.fit.batch_size, drop_last=False))

        def losses(
            epoch: int, model: Head = model, part: Tensor = part, generator: torch.Generator = generator,
            steps: int = steps,
        ) -> Iterator[Tensor]:  # fmt: skip
            for batch in maker.training(part, task.fit.batch_size, steps, False, generator):
                yield F.cross_entropy(model(batch["image"]), batch["label"])

        def score(model: Head = model) -> float:
            return -float(F.cross_entropy(_logits(rows, model, val), label[val]))

        groups = [
            {"params": model.encoder.parameters(), "lr": task.fit.encoder_learning_rate},
            {"params": model.linear.parameters(), "lr": task.fit.learning_rate},
        ]
        epoch, best = fit_with_patience(model, groups, losses, score, task.fit)
        trained.append({"rows": len(part), "epoch": epoch, "val_loss": -best})
        logits.append(_logits(rows, model, test))
    records = classification_records(rows, test, logits, label[test], f"{task.shots} shots")
    notes += one_class_notes(rows, test, label[test], classes)
    counts = {"train": len(train), "val": len(val), "test": len(test)}
    return Outcome(records, counts, notes, {"classes": classes, "trained": trained})


@torch.no_grad()
def _logits(rows: Rows, model: Head, which: Tensor) -> Tensor:
    """float32 [N,K] on the CPU."""
    return torch.cat([model(b["image"]).float().cpu() for b in rows.pictures.ordered(which, rows.task.batch_size)])
