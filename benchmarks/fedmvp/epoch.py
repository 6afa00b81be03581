"""What a local epoch costs with cached features of frozen encoders, and with encoders that work anew at every step.

    python benchmarks/fedmvp/epoch.py benchmarks/fedmvp/epoch.yaml OUT [--repeats 3]

CPU seconds of a round: those of a run of 3 rounds less those of a run of 1, halved, so that start and final evaluation
drop out; the median over repeats, which alternate between both. Losses of the 3 rounds are compared too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

QUIET = ("report.plots=false", "report.tensorboard=false", "checkpoint.every=100000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    play(given, "true", 1)  # imports, generated data and the sidecar are there from here on
    seconds: dict[str, list[float]] = {"true": [], "false": []}
    losses: dict[str, list[float]] = {}
    for _ in range(given.repeats):
        for cache in seconds:
            short, _ = play(given, cache, 1)
            long, losses[cache] = play(given, cache, 3)
            seconds[cache].append((long - short) / 2)
    cached, anew = (statistics.median(seconds[cache]) for cache in ("true", "false"))
    difference = max(abs(a - b) for a, b in zip(losses["true"], losses["false"], strict=True))
    result: dict[str, Any] = {
        "cpu_seconds_a_round": {"cached": seconds["true"], "anew": seconds["false"]},
        "median": {"cached": cached, "anew": anew},
        "times_faster": anew / cached,
        "losses": {"cached": losses["true"], "anew": losses["false"]},
        "largest_difference_of_losses": difference,
    }
    (given.out / "epoch.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def play(given: argparse.Namespace, cache: str, rounds: int) -> tuple[float, list[float]]:
    """CPU seconds and losses of a run."""
    import torch

    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask

    keys = (f"model.cache={cache}", f"rounds={rounds}", f"data.path={given.out / 'phantom.h5'}", *QUIET)
    config = load_config(given.config, keys)
    torch.set_num_threads(config.runtime.threads_per_rank)
    folder = given.out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    start = time.process_time()
    RunTask(config, folder)()
    spent = time.process_time() - start
    return spent, [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
