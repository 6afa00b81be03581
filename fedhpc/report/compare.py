"""Several finished runs in one table: `fedhpc report RUN RUN ...`.

Runs that differ in nothing but random seeds are one arm: mean and standard deviation over seeds. Arms are compared with
the first one seed by seed, which takes out what a partition makes easy or hard for all of them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from fedhpc.config.fields import closest
from fedhpc.report.shown import SHOWN, UNSEEN

SEEDS = ("random_seed", "data.phantom.random_seed", "data.path")  # a generated set's path changes with its seed
NOT_THE_METHOD = (
    *SEEDS,
    *("name", "algorithm", "checkpoint", "report", "runtime"),
    *("evaluation.every", "evaluation.split"),
)


@dataclass
class Arm:
    """Runs of one config by random seed."""

    name: str
    algorithm: str
    config: Mapping[str, Any]
    runs: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # random seed -> results.json
    folders: list[Path] = field(default_factory=list)

    def values(self, metric: str, kind: str) -> dict[int, float]:
        """A metric's mean or worst over clients, by random seed; without those that have none."""
        found = {seed: run["summary"].get(metric, {}).get(kind) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def unseen(self) -> list[str]:
        """Sites that took no part in training, in the order of the clients."""
        clients = [client for run in self.runs.values() for client in run.get("clients", ())]
        return list(dict.fromkeys(client["name"] for client in clients if client["name"].endswith(UNSEEN)))

    def values_at(self, client: str, metric: str) -> dict[int, float]:
        """A client's own metric, by random seed; without those that have none."""
        found = {
            seed: one["metrics"].get(metric)
            for seed, run in self.runs.items()
            for one in run.get("clients", ())
            if one["name"] == client
        }
        return {seed: value for seed, value in found.items() if value is not None}


def read_arms(folders: Sequence[Path]) -> list[Arm]:
    """The finished runs in `folders`, in their order.

    Raises ValueError for a folder without results, and for two runs of one arm with the same random seed.
    """
    arms: list[Arm] = []
    for folder in folders:
        if not (folder / "results.json").is_file() or not (folder / "config.yaml").is_file():
            raise ValueError(f"{folder} holds no finished run (results.json, config.yaml); run it to its end first")
        results = json.loads((folder / "results.json").read_text())
        config = yaml.safe_load((folder / "config.yaml").read_text())
        key = _without(flat(config), SEEDS)
        data = results.get("data", {})
        if not data.get("generated"):  # a generated set may be another one for each seed
            key["data"] = data.get("checksum")
        arm = next((a for a in arms if a.config == key), None)
        if arm is None:
            arm = Arm(results["name"], results["algorithm"], key)
            arms.append(arm)
        seed = int(results["random_seed"])
        if seed in arm.runs:
            raise ValueError(f"{folder} is the second run of {arm.name} with random_seed {seed}; give one of them")
        arm.runs[seed] = results
        arm.folders.append(folder)
    names = [arm.name for arm in arms]
    for arm in arms:
        if names.count(arm.name) > 1:  # the same config file under different overrides
            arm.name = str(arm.folders[0])
    return arms


def differences(arms: Sequence[Arm]) -> list[str]:
    """Keys besides the algorithm's in which an arm differs from the first: what else a difference may come from."""
    lines = []
    for arm in arms[1:]:
        same = arm.algorithm == arms[0].algorithm  # then its keys are what tells the arms apart
        ignored = [key for key in NOT_THE_METHOD if not (same and key == "algorithm")]
        base, other = _without(arms[0].config, ignored), _without(arm.config, ignored)
        changed = [k for k in sorted({*base, *other}) if base.get(k) != other.get(k)]
        if changed:
            told = "; ".join(f"{k}: {base.get(k)} / {other.get(k)}" for k in changed)
            lines.append(f"{arm.name} also differs from {arms[0].name} in {told}")
        if arm.runs.keys() != arms[0].runs.keys():
            lines.append(
                f"{arm.name} has random seeds {sorted(arm.runs)}, {arms[0].name} {sorted(arms[0].runs)}: means are "
                "over each one's own, differences over those that both have (two at least)"
            )
    return lines


def comparison(arms: Sequence[Arm], metrics: Sequence[str] = ()) -> Table:
    """A row an arm: mean and worst over clients of each metric."""
    shown = _headings(arms, metrics)
    split = next(iter(arms[0].runs.values()))["split"]
    table = Table(title=f"{split} split, mean over clients / worst client")
    table.add_column("run")
    table.add_column("algorithm")
    table.add_column("seeds", justify="right")
    for heading in shown.values():
        table.add_column(heading, justify="right")
    for arm in arms:
        cells = [f"{_spread(arm.values(m, 'mean'))} / {_spread(arm.values(m, 'worst'))}" for m in shown]
        table.add_row(arm.name, arm.algorithm, str(len(arm.runs)), *cells)
    return table


def paired(arms: Sequence[Arm], metrics: Sequence[str] = ()) -> Table | None:
    """Differences from the first arm over the random seeds that both have, with a 95 % t-interval; None where no arm
    shares two seeds with the first."""
    shown = _headings(arms, metrics)
    table = Table(title=f"less {arms[0].name}, seed by seed: mean [95 % interval], relative, seeds above")
    table.add_column("run")
    for heading in shown.values():
        table.add_column(f"{heading} mean", justify="right")
        table.add_column(f"{heading} worst", justify="right")
    rows = 0
    for arm in arms[1:]:
        if len(arm.runs.keys() & arms[0].runs.keys()) < 2:
            continue
        rows += 1
        cells = [difference(arms[0].values(m, kind), arm.values(m, kind)) for m in shown for kind in ("mean", "worst")]
        table.add_row(arm.name, *cells)
    return table if rows else None


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval of 2 or more differences."""
    from scipy import stats

    mean = statistics.fmean(differences)
    half = statistics.stdev(differences) / math.sqrt(len(differences)) * float(stats.t.ppf(0.975, len(differences) - 1))
    return mean, mean - half, mean + half


def difference(base: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Of `other` from `base` over the random seeds of both: mean, 95 % t-interval, relative mean, seeds above; "-" for
    fewer than 2."""
    seeds = sorted(base.keys() & other.keys())
    if len(seeds) < 2:
        return "-"
    changes = [other[s] - base[s] for s in seeds]
    mean, low, high = interval(changes)
    level = statistics.fmean(base[s] for s in seeds)
    relative = f" {mean / level:+.0%}" if level else ""
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]{relative} {sum(c > 0 for c in changes)}/{len(seeds)}"


def unseen(arms: Sequence[Arm], metrics: Sequence[str] = ()) -> Table | None:
    """A row for each arm and site that it left out of training (`partition.leave_out`), which no mean holds; behind the
    first arm that left the site out, with the difference from that arm. None where every site trains."""
    shown = _headings(arms, metrics)
    table = Table(title="sites left out of training: in no mean above; below, less the first run with that site")
    table.add_column("site")
    table.add_column("run")
    table.add_column("seeds", justify="right")
    for heading in shown.values():
        table.add_column(heading, justify="right")
    for site in dict.fromkeys(site for arm in arms for site in arm.unseen()):
        holders = [arm for arm in arms if site in arm.unseen()]
        for arm in holders:
            cells = []
            for metric in shown:
                base, own = holders[0].values_at(site, metric), arm.values_at(site, metric)
                paired = "" if arm is holders[0] or len(base.keys() & own.keys()) < 2 else f"\n{difference(base, own)}"
                cells.append((_spread(own) + paired).replace("[", "\\["))
            table.add_row(site, arm.name, str(len(arm.runs)), *cells)
        table.add_section()
    return table if table.row_count else None


def _headings(arms: Sequence[Arm], metrics: Sequence[str]) -> dict[str, str]:
    """Metric -> heading. `metrics`: as stored (recall_at_5) or as shown (R@5), in any case."""
    summary = next(iter(arms[0].runs.values()))["summary"]
    names = {name: heading for group in SHOWN.values() for name, heading in group.items()}
    known = {heading.lower(): name for name, heading in names.items() if name in summary}
    known |= {name.lower(): name for name in summary}
    chosen = []
    for metric in metrics:
        if metric.lower() not in known:
            meant = closest(metric, [*summary, *(names[name] for name in summary if name in names)])
            has = ", ".join(f"{name} ({names[name]})" if name in names else name for name in summary)
            hint = f"did you mean {meant}? " if meant else ""
            raise ValueError(f"--metric {metric}: {hint}The runs have {has}")
        chosen.append(known[metric.lower()])
    chosen = chosen or [name for name in names if name in summary and not name.startswith("chance")]
    return {name: names.get(name, name) for name in dict.fromkeys(chosen)}


def _spread(values: Mapping[int, float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values.values())
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f}±{statistics.stdev(values.values()):.3f}"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _without(flat: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {k: v for k, v in flat.items() if not any(k == key or k.startswith(f"{key}.") for key in keys)}
