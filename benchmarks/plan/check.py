"""How far `fedhpc plan` is from measured runs on this machine.

    python benchmarks/plan/check.py configs/quickstart.yaml --ranks 1,2,4 --rounds 6 --repetitions 3 [--output FOLDER]

In every repetition the plan and the runs are made, in turns. Seconds of a round: the median over all rounds but the
first. Writes plan_<config>_<hardware>_<date>.md and .json. Run nothing else meanwhile.
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

from fedhpc.config.load import load_config
from fedhpc.planning.costs import to_json
from fedhpc.planning.plan import Asked, make_plan

ASKED = 0.25  # the error that plan may have


def measured(config: Path, overrides: list[str], ranks: int, rounds: int, folder: Path) -> float:
    """Median seconds of a round of a run, without its first."""
    run = folder / f"run_{ranks}"
    command = [sys.executable, "-m", "fedhpc.cli", "run", str(config), *overrides, f"rounds={rounds}"]
    command += [f"evaluation.every={rounds}", f"checkpoint.every={rounds}", "report.tensorboard=false"]
    command += ["report.plots=false", "--ranks", str(ranks), "--run-dir", str(run), "--fresh"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return statistics.median(json.loads(line)["seconds"] for line in lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="dotted.key=value")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder of the report; default: print only")
    arguments = parser.parse_args()
    counts = [int(part) for part in arguments.ranks.split(",")]
    config = load_config(arguments.config, arguments.overrides)
    asked = Asked(counts, ranks_per_node=max(counts))
    runs: dict[int, list[float]] = {ranks: [] for ranks in counts}
    plans: dict[int, list[float]] = {ranks: [] for ranks in counts}
    details = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        for repetition in range(arguments.repetitions):
            plan = make_plan(config, asked)
            details.append({"costs": to_json(plan.workload.measured), "machine": to_json(plan.machine)})
            for prediction in plan.predictions:
                plans[prediction.ranks].append(prediction.seconds)
            order = counts if repetition % 2 == 0 else counts[::-1]
            for ranks in order:
                runs[ranks].append(measured(arguments.config, arguments.overrides, ranks, arguments.rounds, Path(name)))
            shown = ", ".join(f"{p} ranks {plans[p][-1]:.3f} / {runs[p][-1]:.3f} s" for p in counts)
            print(f"repetition {repetition + 1}  predicted / measured: {shown}", flush=True)
    errors = {p: statistics.median(plans[p]) / statistics.median(runs[p]) - 1 for p in counts}
    root = Path(__file__).parents[2]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=root).stdout.strip()
    hardware = f"{os.cpu_count()}-cores"
    lines = [
        f"# fedhpc plan against runs of {arguments.config} on {hardware}, {datetime.date.today()}",
        "",
        f"{arguments.repetitions} repetitions of the plan and of runs of {arguments.rounds} rounds, commit "
        f"{commit[:12]}, load before {load:.2f}, after {os.getloadavg()[0]:.2f}. Medians; each repetition in brackets.",
        "",
        "| ranks | predicted s a round | measured s a round | error |",
        "|---|---|---|---|",
    ]
    for ranks in counts:
        cells = [
            f"{statistics.median(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})"
            for values in (plans[ranks], runs[ranks])
        ]
        lines.append(f"| {ranks} | {cells[0]} | {cells[1]} | **{errors[ranks]:+.0%}** |")
    worst = max(abs(error) for error in errors.values())
    lines += ["", f"Largest error {worst:.0%}; asked for: {ASKED:.0%}.", ""]
    lines += ["```", f"python benchmarks/plan/check.py {' '.join(sys.argv[1:])}", "```", ""]
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        stem = arguments.output / f"plan_{arguments.config.stem}_{hardware}_{datetime.date.today()}"
        stem.with_suffix(".md").write_text("\n".join(lines))
        numbers = {"python": platform.python_version(), "commit": commit, "config": arguments.config.read_text()}
        stem.with_suffix(".json").write_text(
            json.dumps({**numbers, "predicted": plans, "measured": runs, "errors": errors, "plans": details}, indent=1)
        )


if __name__ == "__main__":
    main()
