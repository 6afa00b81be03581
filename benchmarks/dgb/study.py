"""A study of configs/study/dgb_*: tunes the learning rate of every arm on validation rows, then runs paired seeds.

    python benchmarks/dgb/study.py tune configs/study/dgb_pbc OUT --arms cmfl=0.1,0.2 hgb=0.2,0.4 --seeds 100-101
    python benchmarks/dgb/study.py run configs/study/dgb_pbc OUT --seeds 1-20 [--arms cmfl dgb=dgb_pcw shuffled=dgb_pcw]
    python benchmarks/dgb/study.py table configs/study/dgb_pbc OUT [--base cmfl]

One process, one run after the other, finished ones are skipped: start it again to go on. `run` takes for each arm the
rate with the best mean over combinations of balanced accuracy in `tune` (arm=other: the rate of another arm).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

METRIC = "balanced_accuracy"
QUIET = ("report.plots=false", "report.tensorboard=false", "checkpoint.every=100000", "checkpoint.keep=1")
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
       2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "run", "table"])
    parser.add_argument("configs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", default=[])
    parser.add_argument("--seeds", default="1-20")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the config")
    parser.add_argument("--base", default="cmfl")
    given = parser.parse_args()
    if given.what == "table":
        table(given.out, given.base)
        return
    low, _, high = given.seeds.partition("-")
    for seed in range(int(low), int(high or low) + 1):
        for arm in given.arms or [path.name for path in sorted((given.out / "tune").iterdir())]:
            name, _, value = arm.partition("=")
            if given.what == "tune":
                for rate in value.split(","):
                    folder = given.out / "tune" / name / f"lr{float(rate):g}_s{seed}"
                    play(
                        given.configs / f"{name}.yaml",
                        folder,
                        seed,
                        float(rate),
                        [*given.set, "evaluation.final_split=val"],
                    )
            else:
                rate = best_rate(given.out, value or name)
                play(given.configs / f"{name}.yaml", given.out / "run" / name / f"s{seed}", seed, rate, given.set)


def play(config: Path, folder: Path, seed: int, rate: float, overrides: list[str]) -> None:
    """One run, unless it is finished."""
    if (folder / "results.json").exists():
        return
    import torch

    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask

    keys = [f"random_seed={seed}", f"fit.optimizer.learning_rate={rate}", *QUIET, *overrides]
    resolved = load_config(config, keys)
    torch.set_num_threads(resolved.runtime.threads_per_rank)
    cpu, start = time.process_time(), time.perf_counter()
    try:
        results = RunTask(resolved, folder)()
    except (FloatingPointError, ValueError) as error:  # a rate that diverges is a result of tuning
        if isinstance(error, ValueError) and "does not fit into the exact sum" not in str(error):
            raise
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps({"diverged": str(error)}))
        print(folder, "diverged", flush=True)
        return
    print(folder, f"{score(results):.4f}", f"cpu {time.process_time() - cpu:.0f} s",
          f"wall {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip


def score(results: dict[str, Any], kind: str = "mean", metric: str = METRIC) -> float:
    if "diverged" in results:
        return 0.0
    over = results["combinations"]["summary"] or results["summary"]
    value = over[metric][kind]
    return math.nan if value is None else float(value)


def best_rate(out: Path, arm: str) -> float:
    by_rate: dict[float, list[float]] = {}
    for path in sorted((out / "tune" / arm).glob("*/results.json")):
        rate = float(path.parent.name.split("_")[0].removeprefix("lr"))
        by_rate.setdefault(rate, []).append(score(json.loads(path.read_text())))
    if not by_rate:
        raise SystemExit(f"{arm} was not tuned: run `tune` with --arms {arm}=RATE,RATE first")
    return max(by_rate, key=lambda rate: statistics.mean(by_rate[rate]))


def table(out: Path, base: str) -> None:
    """Markdown: each arm's rate, metrics over seeds, and the difference from `base` seed by seed (95 % t-interval)."""
    runs = {
        arm.name: {int(p.parent.name[1:]): json.loads(p.read_text()) for p in sorted(arm.glob("s*/results.json"))}
        for arm in sorted((out / "run").iterdir())
    }
    print(
        "| arm | seeds | mean over combinations | worst combination | all modalities | minus", base, "| seeds above |"
    )
    print("|---|---|---|---|---|---|---|")
    for arm, by_seed in sorted(runs.items(), key=lambda item: (item[0] != base, item[0])):
        values = {seed: score(results) for seed, results in by_seed.items()}
        shared = sorted(values.keys() & runs[base].keys())
        gap = [values[seed] - score(runs[base][seed]) for seed in shared]
        cells = [spread(list(values.values())), spread([score(r, "worst") for r in by_seed.values()]),
                 spread([full(r) for r in by_seed.values()])]  # fmt: skip
        print(f"| {arm} | {len(values)} | {' | '.join(cells)} | {interval(gap) if arm != base else ''} | "
              f"{sum(x > 0 for x in gap)} of {len(gap)} |")  # fmt: skip


def full(results: dict[str, Any]) -> float:
    """Of the combination with most modalities."""
    over = results["combinations"]["of"]
    return float(over[max(over, key=lambda name: name.count("+"))][METRIC]) if over else math.nan


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else math.nan:.3f}"


def interval(gap: list[float]) -> str:
    if len(gap) < 2:
        return "-"
    half = T95[min(len(gap) - 2, len(T95) - 1)] * statistics.stdev(gap) / len(gap) ** 0.5
    mean = statistics.mean(gap)
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


if __name__ == "__main__":
    main()
