"""When the modalities of a study's runs converge: rounds until 95 % of the last balanced accuracy on validation rows.

python benchmarks/dgb/study.py run configs/study/dgb_pbc OUT --tuned TUNED --set evaluation.every=2 --seeds 1-3
python benchmarks/dgb/curves.py OUT
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

COMBINATION = "all rows, "
Curves = dict[str, dict[int, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    for arm in sorted((given.out / "run").iterdir()):
        runs = [curves(path) for path in sorted(arm.glob("s*/evaluation.jsonl"))]
        for name in runs[0]:
            rounds = sorted(runs[0][name])
            mean = {r: statistics.mean(run[name][r] for run in runs) for r in rounds}
            when = [str(settled(run[name])) for run in runs]
            cells = " ".join(f"{r}:{mean[r]:.3f}" for r in rounds)
            print(f"{arm.name:16s} {name:28s} settled {'/'.join(when):12s} {cells}")


def curves(path: Path) -> Curves:
    """Combination -> rounds trained -> balanced accuracy on the validation rows of all clients."""
    found: Curves = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["client"].startswith(COMBINATION) and row["split"] == "val":
            found.setdefault(row["client"].removeprefix(COMBINATION), {})[row["round"] + 1] = row["balanced_accuracy"]
    return found


def settled(curve: dict[int, float], share: float = 0.95) -> int:
    """The first round from which the curve stays above `share` of its last value."""
    last = curve[max(curve)]
    below = [r for r, value in curve.items() if value < share * last]
    return min((r for r in curve if r > max(below, default=-1)), default=max(curve))


if __name__ == "__main__":
    main()
