"""configs/study/byzantine_pbc.yaml under each rule, arm after arm in one process; finished runs are skipped: start it
again to go on.

    python benchmarks/byzantine/study.py run OUT DATA [--seeds 1 2 3] [--scales 5 1] [--rounds 60] [--iid]
    python benchmarks/byzantine/study.py table OUT [--json FILE]

Arms: no attack; and for each scale plain averaging and every rule, while 1 of 5 clients sends -scale times its
update. OUT/<arm>_<seed> are run folders.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[2] / "configs" / "study" / "byzantine_pbc.yaml"
RULES = {
    "mean": "null",
    "median": "{rule: median}",
    "trimmed_mean": "{rule: trimmed_mean, num_byzantine: 1}",
    "krum": "{rule: krum, num_byzantine: 1}",
    "multi_krum": "{rule: multi_krum, num_byzantine: 1}",
    "norm_filter": "{rule: norm_filter, num_byzantine: 1}",
    "centred_clipping": "{rule: centred_clipping}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--scales", nargs="+", type=int, default=[5, 1])
    parser.add_argument("--split", default="test")
    parser.add_argument("--rounds", type=int, help="default: the config's")
    parser.add_argument("--iid", action="store_true", help="deal rows at random, not by Dirichlet 1.0 of the cell type")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "table":
        table(given.out, given.json)
        return
    attacks = {"none": "null"} | {f"flip{s}": f"{{kind: sign_flip, scale: {s}, fraction: 0.2}}" for s in given.scales}
    for attack, how in attacks.items():
        for seed in given.seeds:
            for rule, section in RULES.items():
                if attack == "none" and rule != "mean":
                    continue
                keys = [f"attack={how}", f"aggregation.robust={section}", f"random_seed={seed}"]
                keys += [f"data.path={given.data}", f"evaluation.final_split={given.split}"]
                keys += [f"rounds={given.rounds}"] if given.rounds is not None else []
                keys += ["partition={kind: iid, num_clients: 5}"] if given.iid else []
                play(given.out / f"{attack}-{rule}_{seed}", keys)


def play(folder: Path, overrides: list[str]) -> None:
    """One run, unless it is finished or diverged before."""
    if (folder / "results.json").exists() or (folder / "diverged.json").exists():
        return
    import torch

    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask

    resolved = load_config(CONFIG, overrides)
    torch.set_num_threads(resolved.runtime.threads_per_rank)
    cpu = time.process_time()
    try:
        results = RunTask(resolved, folder)()
        means = {name: round(value["mean"], 4) for name, value in results["summary"].items()}
    except (FloatingPointError, ValueError) as error:
        if not any(sign in str(error) for sign in ("does not fit into the exact sum", "not finite", "the loss became")):
            raise
        # A loss that is not finite, or past the range of sums: the attack has won.
        (folder / "diverged.json").write_text(json.dumps(str(error)))
        means = {"diverged": 1.0}
    seconds = time.process_time() - cpu
    (folder / "cpu.json").write_text(json.dumps({"cpu_seconds": seconds}))
    print(folder.name, f"{seconds:.0f} CPU s", means, flush=True)


def table(out: Path, to: Path | None) -> None:
    """Markdown: test accuracy and balanced accuracy, mean over clients; mean and range over random seeds."""
    runs: dict[str, dict[int, dict[str, float] | None]] = {}
    for folder in sorted(path.parent for path in out.glob("*/cpu.json")):
        arm, _, seed = folder.name.rpartition("_")
        runs.setdefault(arm, {})[int(seed)] = scores(folder)
    metrics = ("accuracy", "balanced_accuracy")
    print("| attack | rule | seeds |", " | ".join(metrics), "|")
    print("|---|---|---|" + "---|" * len(metrics))
    for arm in sorted(runs, key=order):
        attack, _, rule = arm.partition("-")
        found = list(runs[arm].values())
        cells = [spread([one[m] for one in found if one is not None]) for m in metrics]
        lost = sum(one is None for one in found)
        print(f"| {attack} | {rule} | {len(found)}{f', {lost} diverged' if lost else ''} |", " | ".join(cells), "|")
    if to is not None:
        configs = {p.parent.name: p.read_text() for p in sorted(out.glob("*/config.yaml"))}
        to.write_text(json.dumps({"runs": runs, "configs": {k: configs[k] for k in sorted(configs)[:1]}}, indent=1))


def scores(folder: Path) -> dict[str, float] | None:
    if (folder / "diverged.json").exists():
        return None
    summary: dict[str, Any] = json.loads((folder / "results.json").read_text())["summary"]
    return {name: value["mean"] for name, value in summary.items()}


def order(arm: str) -> tuple[int, int]:
    attack, _, rule = arm.partition("-")
    return (0 if attack == "none" else -int(attack.removeprefix("flip")), list(RULES).index(rule))


def spread(values: list[float]) -> str:
    """Mean and range."""
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-"


if __name__ == "__main__":
    main()
