"""Retrieval among all rows of a split, and among each site's own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedhpc.config.downstream import RetrievalTask
from fedhpc.data.select import match_groups
from fedhpc.downstream.rows import Rows
from fedhpc.downstream.scoring import Outcome, Record, estimate
from fedhpc.metrics.bootstrap import Statistic
from fedhpc.metrics.retrieval import chance_recall_at_k, retrieval_ranks
from fedhpc.metrics.weighted import weighted_group_mean, weighted_mean

KS = (1, 5, 10)
WAYS = ("image_to_text_", "text_to_image_", "")


def run_retrieval(rows: Rows, task: RetrievalTask) -> Outcome:
    """R@1, 5, 10 and macro R@1, both ways and their mean; the gallery is all rows of the scope.

    Intervals resample the queries' patients against a gallery that stays as it is.
    """
    _ = rows.tokenizer  # refuses a run without text
    if "text" not in rows.packed.modalities:
        raise ValueError(f"data.path: {rows.packed.path} has no text; pack it with --text-column")
    if missing := [c for c in task.match or [] if c not in rows.packed.label_classes]:
        raise ValueError(
            f"match: {', '.join(missing)} not in {rows.packed.path}; its label columns are "
            f"{', '.join(rows.packed.label_classes)}"
        )
    usable = rows.packed.read("present/text").astype(bool)
    group = match_groups(rows.packed, task.match)
    labeled = usable
    for column in task.match or []:  # a row without one of the labels would match all others without it
        labeled = labeled & (rows.packed.read(f"label/{column}") >= 0)
    chosen = rows.select(task.split, labeled, "text and the labels of match" if task.match else "text")
    tokens, notes = rows.tokens(chosen)
    (image,) = rows.image_outputs(chosen, ["image"])
    text = rows.embed_tokens(tokens)
    records = []
    for scope, part in rows.scopes(chosen).items():
        patient = rows.patient[chosen[part]]
        if len(part) < 2:
            notes.append(f"{scope} has a single row in split {task.split}: nothing to tell apart, left out")
            continue
        right = torch.from_numpy(np.ascontiguousarray(group[chosen[part].numpy()]))
        statistic = _statistic(image[part], text[part], right)
        once = {name: float(value) for name, value in statistic(torch.ones(1, len(part), dtype=torch.float64)).items()}
        metrics = estimate(task, [{**once, **chance_recall_at_k(right, KS)}], [statistic], patient)
        records.append(Record(scope, "", len(part), len(patient.unique()), metrics))
    if not records:
        raise ValueError(f"fewer than 2 rows in split {task.split}: retrieval has nothing to tell apart; add sites")
    detail = {"match": task.match or "identical text", "groups": len(np.unique(group[chosen.numpy()]))}
    return Outcome(records, {task.split: len(chosen)}, notes, detail)


def _statistic(image: Tensor, text: Tensor, group: Tensor) -> Statistic:
    """Recalls under weights of the queries."""
    forth, back = retrieval_ranks(image, text, group), retrieval_ranks(text, image, group)

    def recalls(weight: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for k in KS:
            hits = [(forth <= k).double(), (back <= k).double()]
            both = [*hits, (hits[0] + hits[1]) / 2]
            found |= {f"{w}recall_at_{k}": weighted_mean(h, weight) for w, h in zip(WAYS, both, strict=True)}
            if k == 1:
                found |= {
                    f"{w}macro_recall_at_{k}": weighted_group_mean(h, group, weight)
                    for w, h in zip(WAYS, both, strict=True)
                }
        return found

    return recalls
