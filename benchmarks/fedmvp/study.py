"""configs/study/fedmvp_pbc, arm after arm in one process; finished runs are skipped: start it again to go on.

    python benchmarks/fedmvp/study.py run OUT DATA --seeds 1 2 3 [--arms fedmvp fedavg_pairs zero_filling]
    python benchmarks/fedmvp/study.py table OUT [--base fedavg_pairs]

For each random seed first the encoders: pretrain.yaml, exported. OUT/<arm>_<seed> are run folders.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[2] / "configs" / "study" / "fedmvp_pbc"
QUIET = ("report.plots=false", "report.tensorboard=false", "checkpoint.every=100000", "checkpoint.keep=1")
ARMS = ("fedmvp", "fedavg_pairs", "zero_filling")
SHOWN = (
    "accuracy", "balanced_accuracy", "accuracy_image", "accuracy_text", "accuracy_image_zeros", "accuracy_text_zeros",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--base", default="fedavg_pairs")
    given = parser.parse_args()
    if given.what == "table":
        table(given.out, given.base)
        return
    for seed in given.seeds:
        encoders(given.out, given.data, seed)
        for arm in given.arms:
            keys = [] if arm == "text_only" else [encoder_key(given.out, seed, "image")]
            keys += [] if arm == "image_only" else [encoder_key(given.out, seed, "text")]
            play(CONFIGS / f"{arm}.yaml", given.out / f"{arm}_{seed}", [f"random_seed={seed}", *keys], given.data)


def encoder_key(out: Path, seed: int, name: str) -> str:
    return f"model.{name}.pretrained={(out / f'encoders_{seed}' / name).resolve()}"


def encoders(out: Path, data: str, seed: int) -> None:
    """Pre-trains and exports what the arms of a random seed freeze."""
    from fedhpc.export import export_run

    if not (out / f"encoders_{seed}").is_dir():
        play(CONFIGS / "pretrain.yaml", out / f"pretrain_{seed}", [f"random_seed={seed}"], data)
        export_run(out / f"pretrain_{seed}", out / f"encoders_{seed}")


def play(config: Path, folder: Path, overrides: list[str], data: str) -> None:
    """One run, unless it is finished."""
    if (folder / "results.json").exists():
        return
    import torch

    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask

    resolved = load_config(config, [f"data.path={data}", *QUIET, *overrides])
    torch.set_num_threads(resolved.runtime.threads_per_rank)
    cpu = time.process_time()
    results = RunTask(resolved, folder)()
    means = {name: round(value["mean"], 4) for name, value in results["summary"].items() if name in SHOWN}
    (folder / "cpu.json").write_text(json.dumps({"cpu_seconds": time.process_time() - cpu}))
    print(folder.name, f"{time.process_time() - cpu:.0f} CPU s", means, flush=True)


def table(out: Path, base: str) -> None:
    """Markdown: mean over clients by arm, mean and range over random seeds; and accuracy against `base`, paired."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(out.glob("*/results.json")):
        arm, _, seed = path.parent.name.rpartition("_")
        runs.setdefault(arm, {})[int(seed)] = json.loads(path.read_text())["summary"]
    runs.pop("pretrain", None)
    print("| arm | seeds |", " | ".join(SHOWN), f"| accuracy - {base} |")
    print("|---|---|" + "---|" * (len(SHOWN) + 1))
    for arm, by_seed in runs.items():
        cells = [spread([run[name]["mean"] for run in by_seed.values() if name in run]) for name in SHOWN]
        shared = [seed for seed in by_seed if seed in runs.get(base, {})]
        pairs = [by_seed[s]["accuracy"]["mean"] - runs[base][s]["accuracy"]["mean"] for s in shared]
        paired = ", ".join(f"{difference:+.3f}" for difference in pairs)
        print(f"| {arm} | {len(by_seed)} |", " | ".join(cells), f"| {paired} |")


def spread(values: list[float]) -> str:
    """Mean and range."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
