"""What each part of FedDRA adds, on configs/study/feddra_a: all eight combinations of two stages, anchor and robust
weights, and FedAvg with as much work as FedDRA. Finished runs are skipped: start it again to go on.

    python benchmarks/feddra/ablation.py run OUT DATA [--seeds 11 12 ...]
    python benchmarks/feddra/ablation.py probe OUT [--arms ...] [--seeds ...]    # linear probes of the finished runs
    python benchmarks/feddra/ablation.py table OUT [--also RESULTS.json] [--base fedavg53] [--json FILE]

OUT/<arm>_<seed> are run folders; --also adds random seeds that were run before (what --json wrote). A part's effect is
taken over its four pairs of arms that differ in it alone, seed by seed: each run serves all three parts, so they are
told apart with a quarter of the runs that one arm a part would need. Settings are those of docs/results.md, "remedies":
46 full steps in every arm, mu 0.1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhpc.report.compare import interval

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "study" / "feddra_a"
TASK = ROOT / "configs" / "downstream" / "pbc_linear_probe.yaml"
ANCHOR = ("algorithm.mu=0.1", "algorithm.constraint=sum")
QUIET = ("checkpoint.every=100000", "checkpoint.keep=1")
MORE = "fedavg53"
ARMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "fedavg": ("fedavg.yaml", ()),
    "anchor": ("anchor.yaml", ANCHOR),
    "stages": ("stages.yaml", ("fit.steps=46",)),
    "dro": ("dro.yaml", ()),
    "stages+anchor": ("stages.yaml", ("fit.steps=46", *ANCHOR)),
    "anchor+dro": ("dro.yaml", ANCHOR),
    "stages+dro": ("feddra.yaml", ("fit.steps=46", "algorithm.mu=0", "~algorithm.constraint")),
    "stages+anchor+dro": ("feddra.yaml", ("fit.steps=46", "algorithm.mu=0.1")),
    MORE: ("fedavg.yaml", ("fit.steps=53",)),
}
PARTS = ("stages", "anchor", "dro")
METRICS = {
    "worst R@5": ("recall_at_5", "worst"),
    "worst macro R@1": ("macro_recall_at_1", "worst"),
    "mean R@5": ("recall_at_5", "mean"),
    "mean macro R@1": ("macro_recall_at_1", "mean"),
}
PROBES = {f"probe, {share} %": f"{share} % labels" for share in (1, 10, 100)}  # balanced accuracy, where it was taken
SHOWN = (*METRICS, *PROBES)
Runs = dict[str, dict[int, dict[str, float]]]  # arm -> random seed -> metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "probe", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(11, 19)))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--also", nargs="*", type=Path, default=[])
    parser.add_argument(
        "--base", default="fedavg", choices=list(ARMS), help="of table: what the arms are compared with"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "table":
        runs = read(given.out, given.also)
        print(arms_table(runs, given.base))
        print(parts_table(runs))
        if given.json is not None:
            given.json.write_text(json.dumps(document(given.out, runs), indent=1))
        return
    for seed in given.seeds:
        for arm in given.arms:
            folder = given.out / f"{arm}_{seed}"
            if given.what == "probe":
                probe(folder)
            else:
                play(folder, arm, [f"random_seed={seed}", f"data.path={given.data}"])


def play(folder: Path, arm: str, overrides: Sequence[str]) -> None:
    """One run, unless it is finished."""
    if (folder / "cpu.json").exists():
        return
    import torch

    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask

    file, own = ARMS[arm]
    resolved = load_config(CONFIGS / file, [*own, *overrides, *QUIET])
    torch.set_num_threads(resolved.runtime.threads_per_rank)
    cpu = time.process_time()
    RunTask(resolved, folder)()
    seconds = time.process_time() - cpu
    (folder / "cpu.json").write_text(json.dumps({"cpu_seconds": seconds}))
    print(folder.name, f"{seconds:.0f} CPU s", flush=True)


def probe(folder: Path) -> None:
    """Cell types from frozen features of a finished run, unless it is done."""
    if not (folder / "cpu.json").exists() or probes_of(folder):
        return
    import torch

    from fedhpc.config.downstream import load_task
    from fedhpc.downstream.run import evaluate, write_results

    torch.set_num_threads(1)
    write_results(folder, evaluate(folder, load_task(TASK, ["bootstrap=0"])))
    print(folder.name, probes_of(folder), flush=True)


# --------------------------------------------------------------------------------------------------------------- tables
def probes_of(folder: Path) -> dict[str, float]:
    path = folder / "downstream" / "linear_probe_cell_type.json"
    if not path.is_file():
        return {}
    found = {r["setting"]: r["metrics"] for r in json.loads(path.read_text())["results"] if r["scope"] == "all"}
    return {name: found[setting]["balanced_accuracy"]["value"] for name, setting in PROBES.items()}


def read(out: Path, also: Sequence[Path]) -> Runs:
    runs: Runs = {arm: {} for arm in ARMS}
    for file in also:
        for arm, by_seed in json.loads(file.read_text())["runs"].items():
            runs[arm] |= {int(seed): found for seed, found in by_seed.items()}
    for path in sorted(out.glob("*/cpu.json")):
        arm, _, seed = path.parent.name.rpartition("_")
        summary: dict[str, Any] = json.loads((path.parent / "results.json").read_text())["summary"]
        found = {name: summary[metric][kind] for name, (metric, kind) in METRICS.items()}
        runs[arm][int(seed)] = found | probes_of(path.parent)
    return runs


def effect(runs: Runs, part: str, metric: str) -> list[float]:
    """By seed, the mean change that `part` makes to arms that differ in it alone."""
    pairs = [(arm, with_part(arm, part)) for arm in ARMS if arm != MORE and part not in arm]
    seeds = sorted(set.intersection(*(set(runs[arm]) for arm in ARMS if arm != MORE)))
    return [statistics.fmean(runs[b][s][metric] - runs[a][s][metric] for a, b in pairs) for s in seeds]


def with_part(arm: str, part: str) -> str:
    present = {part, *(arm.split("+") if arm != "fedavg" else ())}
    return "+".join(p for p in PARTS if p in present)


def arms_table(runs: Runs, base: str) -> str:
    """Every arm, and its difference from `base` on the random seeds that both have."""
    lines = [f"| less {base} | seeds | " + " | ".join(SHOWN) + " |", "|---|---|" + "---|" * len(SHOWN)]
    for arm, found in runs.items():
        if not found:
            continue
        cells = []
        for metric in SHOWN:
            values = [run[metric] for run in found.values() if metric in run]
            if not values:
                cells.append("-")
                continue
            cell = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"
            shared = [(found[s], runs[base][s]) for s in sorted(found.keys() & runs[base].keys())]
            changes = [run[metric] - other[metric] for run, other in shared if metric in run and metric in other]
            if arm != base and len(changes) > 1:
                cell += f"<br>{told(changes)}"
            cells.append(cell)
        lines.append(f"| {arm} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def parts_table(runs: Runs) -> str:
    """What a part adds, over its four pairs of arms."""
    lines = ["| part | " + " | ".join(METRICS) + " |", "|---|" + "---|" * len(METRICS)]
    for part in PARTS:
        cells = [told(changes) if len(changes := effect(runs, part, m)) > 1 else "-" for m in METRICS]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def told(changes: Sequence[float]) -> str:
    mean, low, high = interval(changes)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}], {sum(c > 0 for c in changes)} of {len(changes)}"


def document(out: Path, runs: Runs) -> dict[str, Any]:
    """Every number, and the config of each arm that was run here."""
    configs = {arm: min(out.glob(f"{arm}_[0-9]*/config.yaml"), default=None) for arm in ARMS}
    return {"runs": runs, "configs": {arm: path.read_text() for arm, path in configs.items() if path is not None}}


if __name__ == "__main__":
    main()
