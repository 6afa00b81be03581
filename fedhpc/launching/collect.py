"""Finished runs of a folder as one CSV file, a row each, and as a table of means and spreads over random seeds."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedhpc.report.compare import SEEDS, Arm, flat, read_arms
from fedhpc.run_folder import is_free

FIXED = ("run", "algorithm", "random_seed", "rounds", "ranks", "seconds", "split", "sha256")


def rows(folders: Sequence[Path], base: Path) -> list[dict[str, Any]]:
    """A row a finished run: where it lies, the keys in which the runs differ, results, and each metric's mean, worst
    and value at every client (`metric:mean`, `metric:worst`, `metric:CLIENT`)."""
    configs = {folder: flat(yaml.safe_load((folder / "config.yaml").read_text())) for folder in folders}
    varied = differing(list(configs.values()))
    found = []
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        row: dict[str, Any] = {"run": "." if folder == base else str(folder.relative_to(base))}
        row |= {key: configs[folder].get(key) for key in varied if key not in FIXED}
        row |= {key: results.get(key) for key in FIXED if key != "run"}
        for metric, summary in results["summary"].items():
            row |= {f"{metric}:{kind}": summary[kind] for kind in ("mean", "worst")}
            row |= {f"{metric}:{client['name']}": client["metrics"].get(metric) for client in results["clients"]}
        found.append(row)
    return found


def write_csv(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Columns in the order in which rows bring them; what a run lacks stays empty."""
    columns = dict.fromkeys(key for row in table for key in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in table:
            writer.writerow({key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in row.items()})


def arms(folders: Sequence[Path]) -> list[Arm]:
    """Runs that differ in nothing but random seeds as one arm, named by the keys in which the arms differ.

    Raises ValueError as `read_arms` does.
    """
    found = read_arms(folders)
    varied = [key for key in differing([arm.config for arm in found]) if not key.startswith(SEEDS)]
    for arm in found:
        parts = [f"{key}={arm.config[key]}" for key in varied if arm.config.get(key) is not None]
        if len(found) > 1 and parts:
            arm.name = " ".join(parts)
    return found


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys whose values differ and can change a result."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if not is_free(key) and any(c.get(key) != configs[0].get(key) for c in configs)]
