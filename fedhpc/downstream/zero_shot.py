"""Classes told by sentences (Radford et al., "Learning Transferable Visual Models", ICML 2021, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fedhpc.config.downstream import ZeroShotTask
from fedhpc.downstream.rows import Rows
from fedhpc.downstream.scoring import Outcome, classification_records, one_class_notes


def run_zero_shot(rows: Rows, task: ZeroShotTask) -> Outcome:
    """A class's score is the cosine of the picture with the mean of the class's sentence embeddings, divided by the
    model's temperature (which AUROC depends on: it ranks softmax probabilities).

    Raises ValueError when the prompts are not those of the label's classes.
    """
    _ = rows.tokenizer  # refuses a run without text
    label, classes = rows.labels(task.label)
    prompts = class_prompts(task, classes)
    chosen = rows.select(task.split, label >= 0, f"a label in column {task.label}")
    tokens, notes = rows.encode([sentence for name in classes for sentence in prompts[name]])
    embedded = rows.embed_tokens(tokens).split([len(prompts[name]) for name in classes])
    means = F.normalize(torch.stack([part.mean(dim=0) for part in embedded]), dim=-1)
    (image,) = rows.image_outputs(chosen, ["image"])
    temperature = float(rows.run.module.log_temperature.exp())  # type: ignore[operator]
    logits = image @ means.T / temperature
    records = classification_records(rows, chosen, [logits], torch.from_numpy(label)[chosen])
    notes += one_class_notes(rows, chosen, torch.from_numpy(label)[chosen], classes)
    detail = {"prompts": prompts, "temperature": temperature}
    return Outcome(records, {task.split: len(chosen)}, notes, detail)


def class_prompts(task: ZeroShotTask, classes: list[str]) -> dict[str, list[str]]:
    """Sentences for each class, in the classes' order."""
    if task.template is not None:
        return {name: [task.template.replace("{}", name.replace("_", " "))] for name in classes}
    assert task.prompts is not None, "the schema demands one of them"
    missing = [name for name in classes if name not in task.prompts]
    unknown = [name for name in task.prompts if name not in classes]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(unknown)}, which the label does not know"] if unknown else []
        raise ValueError(
            f"prompts {' and '.join(parts)}; give sentences for exactly the classes of label {task.label}: "
            f"{', '.join(classes)}"
        )
    return {name: task.prompts[name] for name in classes}
