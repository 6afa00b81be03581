"""What lies in a run folder, and whether a config may go on in it. Imports no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fedhpc.config.load import dump_config
from fedhpc.config.schema import RunConfig

NOISY_LABELS = "noisy_labels.csv"  # see data/noise.py
MISSING = "missing.csv"  # see data/missing.py
LAUNCHES = "launches.jsonl"  # what was submitted, started, ended and queued again: see launching/journal.py
RUN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "ledger.jsonl",
    "evaluation.jsonl",
    "results.json",
    NOISY_LABELS,
    MISSING,
    LAUNCHES,
)
RUN_FOLDERS = ("checkpoints", "tensorboard", "plots", "logs", "downstream", "slurm")
# May differ between a run and its resumption without changing any result.
FREE_KEYS = (
    "name",
    "runtime.timeout_s",
    "runtime.time_margin_s",
    "checkpoint.",
    "report.",
    "evaluation.every",
    "evaluation.split",
)


def is_free(dotted: str) -> bool:
    """Whether a key cannot change a result."""
    return any(dotted == free or (free.endswith(".") and dotted.startswith(free)) for free in FREE_KEYS)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new), for keys that could change the result of a resumed run."""
    changes: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        dotted = prefix + key
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changes |= changed_keys(a, b, dotted + ".")
        elif a != b and not is_free(dotted):
            changes[dotted] = (a, b)
    return changes


def _as_now(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored config with the keys that have been added since: their defaults leave runs as they were."""
    try:
        known: dict[str, Any] = yaml.safe_load(dump_config(RunConfig.model_validate(stored)))
    except ValueError:  # of a version whose keys had other names
        return stored
    return known


def refuse_other_config(folder: Path, config: RunConfig) -> None:
    """Raises ValueError when the folder holds checkpoints of a run whose result would have been another."""
    stored = folder / "config.yaml"
    if not stored.exists() or not (folder / "checkpoints").exists():
        return
    changes = changed_keys(_as_now(yaml.safe_load(stored.read_text())), yaml.safe_load(dump_config(config)))
    if changes:
        raise ValueError(
            f"{folder} holds a run with another config: "
            + "; ".join(f"{key} was {old}, is {new}" for key, (old, new) in changes.items())
            + ". Use another --run-dir, start anew with --fresh, or resume all the same with --accept-changes"
        )


def write_config(folder: Path, config: RunConfig) -> None:
    """config.yaml, resolved. At once: others read it while runs start."""
    temporary = folder / "config.yaml.partial"
    temporary.write_text(dump_config(config))
    os.replace(temporary, folder / "config.yaml")


def rounds_done(folder: Path) -> int:
    """Rounds in the newest complete checkpoint; 0 without one."""
    complete = (path.parent.name for path in (folder / "checkpoints").glob("round_*/loop.json"))
    return max(
        (int(name.removeprefix("round_")) for name in complete if name.removeprefix("round_").isdigit()), default=0
    )


def delete_run(folder: Path) -> None:
    """Delete what a run left in its folder; other files stay."""
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
