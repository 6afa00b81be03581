"""What a FedDRA round costs against the bare local steps that it makes, in three interleaved repetitions.

    python benchmarks/feddra/run.py [--repetitions 3] [--output benchmarks/results]

Writes feddra_<hardware>_<date>.md and .json. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
CONFIG = FOLDER / "round.yaml"
ARMS = {
    "feddra": [],
    "feddra_without_anchor": ["algorithm={name: feddra, stage1: {steps: 20}, mu: 0}"],
    "feddra_stages_only": ["algorithm={name: feddra, stage1: {steps: 20}, mu: 0, dro: null}"],
}


def seconds(arm: str, data: Path, folder: Path) -> list[float]:
    """Seconds of each round."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if arm == "bare":
        command = [sys.executable, str(FOLDER / "bare.py"), str(CONFIG), str(data)]
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        return [json.loads(line)["seconds"] for line in out.splitlines()]
    run = folder / arm
    command = [sys.executable, "-m", "fedhpc.cli", "run", str(CONFIG), *ARMS[arm], f"data.path={data}"]
    subprocess.run([*command, "--run-dir", str(run), "--fresh"], env=environment, check=True, capture_output=True)
    return [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS), help="beside the bare steps")
    parser.add_argument("--output", type=Path, default=FOLDER.parent / "results")
    arguments = parser.parse_args()
    arms = arguments.arms.split(",")
    contenders = ["bare", *arms]
    measured: dict[str, list[list[float]]] = {name: [] for name in contenders}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "phantom.h5"
        seconds("feddra", data, folder)  # generates the set, and warms the file cache
        for repetition in range(arguments.repetitions):
            for contender in contenders[repetition % len(contenders) :] + contenders[: repetition % len(contenders)]:
                measured[contender].append(seconds(contender, data, folder))
                print(f"repetition {repetition + 1}  {contender}: {measured[contender][-1]}", flush=True)
    medians = {c: [statistics.median(rounds[1:]) for rounds in runs] for c, runs in measured.items()}
    ratios = {c: [a / b for a, b in zip(medians[c], medians["bare"], strict=True)] for c in arms}
    hardware = f"{os.cpu_count()}-cores"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=FOLDER).stdout.strip()
    lines = [
        f"# FedDRA rounds on {hardware}, {datetime.date.today()}",
        "",
        f"One rank, {arguments.repetitions} interleaved repetitions, commit {commit[:12]}, load before {load:.2f}, "
        f"after {os.getloadavg()[0]:.2f}. Median of the rounds after the first; ratios within a repetition.",
        "",
        "| | s/round (repetitions) | / bare, median | repetitions |",
        "|---|---|---|---|",
    ]
    for contender in contenders:
        each = ", ".join(f"{v:.2f}" for v in medians[contender])
        ratio = ratios.get(contender, [1.0])
        lines.append(
            f"| {contender} | {each} | **{statistics.median(ratio):.2f}** | {', '.join(f'{r:.2f}' for r in ratio)} |"
        )
    lines += [
        "",
        "```",
        "python benchmarks/feddra/run.py",
        "```",
        "",
        "```yaml",
        CONFIG.read_text().rstrip(),
        "```",
        "",
    ]
    stem = arguments.output / f"feddra_{hardware}_{datetime.date.today()}"
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text("\n".join(lines))
    config = {"python": platform.python_version(), "commit": commit, "config": CONFIG.read_text()}
    stem.with_suffix(".json").write_text(json.dumps({**config, "seconds": measured, "ratios": ratios}, indent=1))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
