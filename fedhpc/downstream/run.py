"""``fedhpc evaluate``: a task on a run's model, its results as a file and as a table."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sklearn
import torch
from rich.console import Console, Group
from rich.table import Table

import fedhpc
from fedhpc.config.downstream import AnyTask, TrainedTask
from fedhpc.data.hdf5 import PackedFile
from fedhpc.downstream.fine_tune import run_fine_tune
from fedhpc.downstream.linear_probe import run_linear_probe
from fedhpc.downstream.loading import load_run
from fedhpc.downstream.retrieval import run_retrieval
from fedhpc.downstream.rows import Rows
from fedhpc.downstream.scoring import Outcome
from fedhpc.downstream.segmentation import run_segmentation
from fedhpc.downstream.zero_shot import run_zero_shot
from fedhpc.report.reporter import LOG_WIDTH

RUNNERS: Mapping[str, Callable[[Rows, Any], Outcome]] = {
    "retrieval": run_retrieval,
    "zero_shot": run_zero_shot,
    "linear_probe": run_linear_probe,
    "fine_tune": run_fine_tune,
    "segmentation": run_segmentation,
}
# Metrics of the table, and their headings; the file has all.
SHOWN = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "macro_recall_at_1": "macro R@1",
    "chance_recall_at_1": "chance R@1",
    "balanced_accuracy": "balanced acc.",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "dice": "Dice",
    "mean_mask_dice": "mean mask",
}


def evaluate(folder: Path, task: AnyTask) -> dict[str, Any]:
    """Play a task on the model of a run folder; results as in RUN/downstream/NAME.json.

    The same folder, task and machine give the same results, bit for bit, on a CPU.
    Raises ValueError or OSError for what the user can put right, FloatingPointError when training diverges.
    """
    run = load_run(folder, task.client, pick_device(task.device))
    with PackedFile(task.data.path or run.data_path) as packed:
        rows = Rows(run, task, packed)
        outcome = RUNNERS[task.kind](rows, task)
        notes = [*run.notes, *_seen(rows, task), *rows.notes, *outcome.notes]
        if packed.generated:
            notes.insert(0, f"{packed.name} is generated, not real data: the numbers say that the machine works")
        if note := packed.note:
            notes.append(f"the data's own note: {note}")
        data = {
            "path": str(packed.path),
            "name": packed.name,
            "licence": packed.licence,
            "checksum": packed.checksum,
            "generated": packed.generated,
            "is_run_data": rows.is_own,
        }
    return {
        "name": task.name,
        "kind": task.kind,
        "task": task.model_dump(mode="json"),
        "run": {
            "name": run.config.name,
            "algorithm": run.config.algorithm.name,
            "rounds_done": run.rounds_done,
            "checkpoint": run.checkpoint.name,
            "random_seed": run.config.random_seed,
            "weights": run.weights,
            "client": None if run.client is None else {"id": run.client, "name": run.names[run.client]},
        },
        "data": data,
        "rows": dict(outcome.counts),
        "left_out": rows.left_out,
        "results": [record.as_json() for record in outcome.records],
        "notes": notes,
        "detail": dict(outcome.detail),
        "versions": {"fedhpc": fedhpc.__version__, "torch": torch.__version__, "scikit-learn": sklearn.__version__},
        "device": run.device.type,
    }


def pick_device(name: str) -> torch.device:
    """Raises ValueError for cuda without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda, but torch sees no GPU; set device: auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _seen(rows: Rows, task: AnyTask) -> list[str]:
    """Whether the run's own training has seen the site that is held out here: then only the new layers have not."""
    if not isinstance(task, TrainedTask) or task.hold_out_site is None:
        return []
    site = task.hold_out_site
    if not rows.is_own:
        return [f"whether the run's clients had rows of {site} cannot be told: its own file is another one"]
    if site in rows.run.train_sites:
        return [
            f"the run's clients had training rows of {site}: its encoder has seen the site, the new layers have not"
        ]
    return [f"no client of the run had a training row of {site}: the site is new to the encoder too"]


def write_results(folder: Path, results: Mapping[str, Any]) -> Path:
    """RUN/downstream/NAME.json, or NAME@ID-CLIENT.json of a client's own model; all or nothing, over an earlier one."""
    client = results["run"]["client"]
    own = "" if client is None else f"@{client['id']}-{re.sub(r'[^A-Za-z0-9._-]', '_', client['name'])}"
    path = folder / "downstream" / f"{results['name']}{own}.json"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(_finite(results), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def show(results: Mapping[str, Any]) -> None:
    """The table, on standard output."""
    console = Console()
    if not console.is_terminal:  # a log file has no width: numbers are not to be cut
        console = Console(width=LOG_WIDTH)
    console.print(results_table(results), highlight=False)


def results_table(results: Mapping[str, Any]) -> Group:
    """A row for each scope and setting, metrics with their intervals; what to know of them below."""
    task, run = results["task"], results["run"]
    table = Table(title=f"{results['name']}: {results['kind']} on {results['data']['name']}, {run['name']} "
                        f"({run['algorithm']}, {run['weights']}, round {run['rounds_done']})")  # fmt: skip
    first = results["results"][0]
    settings = any(record["setting"] for record in results["results"])
    metrics = [name for name in SHOWN if name in first["metrics"]]
    for heading in ["site", *(["setting"] if settings else [])]:
        table.add_column(heading, no_wrap=True)
    for heading in ["rows", "patients", *(SHOWN[name] for name in metrics)]:
        table.add_column(heading, justify="right", no_wrap=True)
    scopes = {record["scope"] for record in results["results"]}
    skipped = "all" if len(scopes) == 2 else None  # one site is all there is: the same numbers
    last = ""
    for record in results["results"]:
        if record["scope"] == skipped:
            continue
        if record["setting"] != last or record["scope"] == "all":
            table.add_section()
        last = record["setting"]
        cells = [record["scope"], *([record["setting"]] if settings else [])]
        cells += [str(record["rows"]), str(record["patients"])]
        table.add_row(*cells, *(_cell(record["metrics"][name]) for name in metrics))
    lines = []
    if task["bootstrap"]:
        lines.append(f"[low, high]: {task['confidence']:.0%} percentile interval, {task['bootstrap']} resamples of "
                     "the test patients; it does not cover the randomness of the run itself")  # fmt: skip
    if any(len(one["seeds"]) > 1 for record in results["results"] for one in record["metrics"].values()):
        lines.append("±: standard deviation over seeds")
    return Group(table, *(line.replace("[", "\\[") for line in [*lines, *(f"note: {n}" for n in results["notes"])]))


def _cell(one: Mapping[str, Any]) -> str:
    if math.isnan(one["value"]):
        return "-"
    text = f"{one['value']:.3f}"
    if not math.isnan(one["sd"]):
        text += f" ± {one['sd']:.3f}"
    if not math.isnan(one["low"]):
        text += " " if math.isnan(one["sd"]) else "\n"
        text += f"\\[{one['low']:.3f}, {one['high']:.3f}]"
    return text


def _finite(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
