"""A study of configs/study/dgb_*: tunes the learning rate of every arm on validation rows, then runs paired seeds.

    python benchmarks/dgb/study.py tune configs/study/dgb_pbc OUT --arms cmfl=0.1,0.2 hgb=0.2,0.4 --seeds 100-101
    python benchmarks/dgb/study.py run configs/study/dgb_pbc OUT --seeds 1-20 [--arms cmfl dgb=dgb_pcw shuffled=dgb_pcw]
    python benchmarks/dgb/study.py run configs/study/dgb_pbc OUT_K5 --tuned OUT --set fit.steps=5 rounds=60 --seeds 1-5
    python benchmarks/dgb/study.py table configs/study/dgb_pbc OUT [--base hgb] [--metric auroc]
    python benchmarks/dgb/study.py export configs/study/dgb_pbc OUT > numbers.json

One process, one run after the other, finished ones are skipped: start it again to go on. `run` takes for each arm the
rate with the best mean over combinations of balanced accuracy in `tune` (arm=other: the rate of another arm; --tuned:
the folder that was tuned). "{seed}" in --set is the random seed. --by COLUMN also scores each class of a label column
apart, such as the cohorts of TCGA: groups.json in a run's folder.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

METRIC = "balanced_accuracy"
QUIET = ("report.plots=false", "report.tensorboard=false", "checkpoint.every=100000", "checkpoint.keep=1")
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
       2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "run", "table", "export"])
    parser.add_argument("configs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", default=[])
    parser.add_argument("--seeds", default="1-20")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the config")
    parser.add_argument("--base", default="cmfl")
    parser.add_argument("--tuned", type=Path, help="default: OUT")
    parser.add_argument("--by", help="a label column")
    parser.add_argument("--metric", default=METRIC, help="of `table`")
    given = parser.parse_args(argv)
    if given.what == "table":
        table(given.out, given.base, given.metric)
        if given.by:
            table_of_groups(given.out, given.base, given.metric)
        return
    if given.what == "export":
        print(json.dumps(exported(given.out), indent=1))
        return
    low, _, high = given.seeds.partition("-")
    for seed in range(int(low), int(high or low) + 1):
        overrides = [override.replace("{seed}", str(seed)) for override in given.set]
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
                        [*overrides, "evaluation.final_split=val"],
                    )
            else:
                rate = best_rate(given.tuned or given.out, value or name)
                folder = given.out / "run" / name / f"s{seed}"
                play(given.configs / f"{name}.yaml", folder, seed, rate, overrides, given.by)


def play(config: Path, folder: Path, seed: int, rate: float, overrides: Sequence[str], by: str | None = None) -> None:
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
        with scored_by(by, resolved.data.path, folder):
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


@contextmanager
def scored_by(column: str | None, data: Path | None, folder: Path) -> Iterator[None]:
    """In a run within: what is scored at its end is also scored for each class of a label column apart."""
    if column is None:
        yield
        return
    assert data is not None
    import fedhpc.examples
    from fedhpc.client.client import DataClient
    from fedhpc.data.hdf5 import PackedFile
    from fedhpc.federation.evaluate import ClassificationScorer, EvalReport, Split, _outputs
    from fedhpc.metrics.classification import classification_metrics

    groups: dict[str, dict[str, dict[str, float]]] = {}

    class Grouped(ClassificationScorer):
        def __call__(self, client: DataClient, split: Split) -> EvalReport:
            logits, rows = _outputs(client, split, ("logits",))
            with PackedFile(data) as packed:
                code, names = packed.read(f"label/{column}"), packed.label_classes[column]
            for number, name in enumerate(names):
                here = rows[code[rows] == number]
                if bool((self._label[here] >= 0).any()):
                    found = classification_metrics(logits[code[rows] == number], self._label[here])
                    groups.setdefault(client.site, {})[name] = found
            return super().__call__(client, split)

    fedhpc.examples.ClassificationScorer = Grouped  # type: ignore[misc]
    try:
        yield
    finally:
        fedhpc.examples.ClassificationScorer = ClassificationScorer  # type: ignore[misc]
    (folder / "groups.json").write_text(json.dumps(groups, indent=1) + "\n")


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


def table(out: Path, base: str, metric: str) -> None:
    """Markdown: metrics over seeds by arm, and the difference from `base` seed by seed (95 % t-interval)."""
    runs = {
        arm.name: {int(p.parent.name[1:]): json.loads(p.read_text()) for p in sorted(arm.glob("s*/results.json"))}
        for arm in sorted((out / "run").iterdir())
    }
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "mean over combinations": partial(score, metric=metric),
        "worst combination": partial(score, kind="worst", metric=metric),
        "all modalities": partial(full, metric=metric),
        "own rows": partial(own, metric=metric),
    }
    print("| arm | seeds |", " | ".join(columns), "|")
    print("|---" * (len(columns) + 2) + "|")
    arms = sorted(runs, key=lambda arm: (arm != base, arm))
    for arm in arms:
        cells = [spread([of(results) for results in runs[arm].values()]) for of in columns.values()]
        print(f"| {arm} | {len(runs[arm])} | {' | '.join(cells)} |")
    print(f"\n| minus {base} | pairs |", " | ".join(columns), "| pairs above, by the mean |")
    print("|---" * (len(columns) + 3) + "|")
    for arm in arms[1:]:
        shared = sorted(runs[arm].keys() & runs[base].keys())
        gaps = {name: [of(runs[arm][s]) - of(runs[base][s]) for s in shared] for name, of in columns.items()}
        above = sum(gap > 0 for gap in gaps["mean over combinations"])
        print(f"| {arm} | {len(shared)} | {' | '.join(map(interval, gaps.values()))} | {above} |")
    print("\n| arm |", " | ".join(combinations := list(next(iter(runs[base].values()))["combinations"]["of"])), "|")
    print("|---" * (len(combinations) + 1) + "|")
    for arm in arms:
        of = [results["combinations"]["of"] for results in runs[arm].values()]
        if all(of):
            print(
                f"| {arm} |", " | ".join(f"{statistics.mean(o[c][metric] for o in of):.3f}" for c in combinations), "|"
            )


def table_of_groups(out: Path, base: str, metric: str) -> None:
    """Markdown: the combination of most modalities on the test rows of each group, and its mean over groups."""

    def groups(path: Path) -> dict[str, float]:
        of = json.loads(path.read_text())
        scored = of[max(of, key=lambda name: name.count("+"))]
        values = {name: scored[name][metric] for name in sorted(scored)}
        return values | {"mean over groups": statistics.mean(values.values())}

    runs = {
        arm.name: {p.parent.name: groups(p) for p in sorted(arm.glob("s*/groups.json"))}
        for arm in sorted((out / "run").iterdir())
    }
    columns = list(next(iter(runs[base].values())))
    print("\n| arm |", " | ".join(columns), f"| mean over groups, minus {base} |")
    print("|---" * (len(columns) + 2) + "|")
    for arm, seeds in runs.items():
        gap = [seeds[s][columns[-1]] - runs[base][s][columns[-1]] for s in sorted(seeds.keys() & runs[base].keys())]
        cells = [spread([values[name] for values in seeds.values()]) for name in columns]
        print(f"| {arm} | {' | '.join(cells)} | {interval(gap) if arm != base else ''} |")


def exported(out: Path) -> dict[str, Any]:
    """Every run's balanced accuracies, on validation rows (tune: by arm, rate and seed) and test rows (run)."""

    def numbers(path: Path) -> dict[str, Any]:
        results = json.loads(path.read_text())
        if "diverged" in results:
            return {"diverged": True}
        combinations = {name: metrics[METRIC] for name, metrics in results["combinations"]["of"].items()}
        worst = score(results, "worst")
        found = {"mean": score(results), "worst": worst, "own": own(results), "combinations": combinations}
        groups = path.with_name("groups.json")
        return found | ({"groups": json.loads(groups.read_text())} if groups.exists() else {})

    return {
        part: {
            arm.name: {run.parent.name: numbers(run) for run in sorted(arm.glob("*/results.json"))}
            for arm in sorted((out / part).iterdir())
        }
        for part in ("tune", "run")
    }


def own(results: dict[str, Any], metric: str = METRIC) -> float:
    """Of the clients on their own test rows, each with its combination: mean."""
    kept = [c["metrics"][metric] for c in results["clients"] if not c["name"].startswith("all rows")]
    return statistics.mean(kept)


def full(results: dict[str, Any], metric: str = METRIC) -> float:
    """Of the combination with most modalities."""
    over = results["combinations"]["of"]
    return float(over[max(over, key=lambda name: name.count("+"))][metric]) if over else math.nan


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
