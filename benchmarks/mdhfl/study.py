"""configs/study/mdhfl_*: arms under label noise, in one process. Finished runs are skipped: start it again to go on.

    python benchmarks/mdhfl/study.py run OUT DATA [--study noise] [--rates 0.1 0.2 0.3 [--kind pair]] [--arms ...]
        [--seeds 11 12 13] [--set fit.epochs=2 ... --suffix _two]
    python benchmarks/mdhfl/study.py table OUT [--base mdhfl] [--json FILE]

OUT/<study>[_<kind>_<rate>]/<arm><suffix>_<seed> are run folders. --set changes all arms that are named with it,
--suffix tells their folders from the unchanged ones: what is chosen so is chosen by
evaluation.final_split=val, on random seeds that the table does not have. The table shows runs on test rows alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedhpc.report.compare import difference

CONFIGS = Path(__file__).parents[2] / "configs" / "study"
QUIET = ("checkpoint.every=100000", "checkpoint.keep=1")
Runs = dict[str, dict[int, list[float]]]  # arm -> random seed -> accuracy of each client, in the order of the networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--study", default="noise", choices=[p.name[6:] for p in sorted(CONFIGS.glob("mdhfl_*"))])
    parser.add_argument("--kind", default="symmetric", choices=["symmetric", "pair"])
    parser.add_argument("--rates", nargs="+", type=float, default=[], help="default: the noise of the configs")
    parser.add_argument("--arms", nargs="+", default=["mdhfl", "feddf", "fedmd", "fedproto", "local"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--suffix", default="")
    parser.add_argument("--base", default="mdhfl")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "table":
        for setting, runs in settings(given.out):
            print(f"{setting}\n\n{table(runs, given.base)}")
        if given.json is not None:
            given.json.write_text(json.dumps(document(given.out), indent=1))
        return
    if given.data is None:
        parser.error("run needs DATA, packed as configs/study/mdhfl_noise/mdhfl.yaml says")
    noises: dict[str, list[str]] = {given.study: []} if not given.rates else {}
    for rate in given.rates:
        told = f"noise={{kind: {given.kind}, rate: {rate}}}" if rate else "~noise"
        noises[f"{given.study}_{given.kind}_{rate:g}"] = [told]
    for seed in given.seeds:
        for setting, noise in noises.items():
            for arm in given.arms:
                folder = given.out / setting / f"{arm}{given.suffix}_{seed}"
                config = CONFIGS / f"mdhfl_{given.study}" / f"{arm}.yaml"
                play(config, folder, [f"random_seed={seed}", f"data.path={given.data}", *noise, *given.set])


def play(config: Path, folder: Path, overrides: list[str]) -> None:
    """One run, unless it is finished."""
    if (folder / "cpu.json").exists():
        return
    import torch

    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask

    resolved = load_config(config, [*overrides, *QUIET])
    torch.set_num_threads(resolved.runtime.threads_per_rank)
    cpu = time.process_time()
    RunTask(resolved, folder)()
    seconds = time.process_time() - cpu
    (folder / "cpu.json").write_text(json.dumps({"cpu_seconds": seconds}))
    print(folder, f"{seconds:.0f} CPU s", [round(a, 3) for a in accuracies(folder)], flush=True)


def accuracies(folder: Path) -> list[float]:
    found = json.loads((folder / "results.json").read_text())
    return [client["metrics"]["accuracy"] for client in found["clients"]]


# --------------------------------------------------------------------------------------------------------------- tables
def settings(out: Path) -> Iterator[tuple[str, Runs]]:
    """Each setting's runs on test rows."""
    for folder in sorted({path.parent.parent for path in out.glob("*/*/cpu.json")}):
        runs: Runs = {}
        for path in sorted(folder.glob("*/cpu.json")):
            if json.loads((path.parent / "results.json").read_text())["split"] == "test":
                arm, _, seed = path.parent.name.rpartition("_")
                runs.setdefault(arm, {})[int(seed)] = accuracies(path.parent)
        if runs:
            yield folder.name, runs


def table(runs: Runs, base: str) -> str:
    """Mean over clients with its spread over random seeds; each client's mean; the base less the arm, paired."""
    lines = [f"| arm | seeds | accuracy | by network | {base} less it |", "|---|---|---|---|---|"]
    means: dict[str, Mapping[int, float]] = {
        arm: {seed: statistics.fmean(found) for seed, found in by_seed.items()} for arm, by_seed in runs.items()
    }
    for arm, by_seed in runs.items():
        level = list(means[arm].values())
        spread = statistics.stdev(level) if len(level) > 1 else 0.0
        networks = ", ".join(f"{statistics.fmean(column):.3f}" for column in zip(*by_seed.values(), strict=True))
        less = "-" if arm == base else difference(means[arm], means.get(base, {}))
        lines.append(f"| {arm} | {len(level)} | {statistics.fmean(level):.3f} ± {spread:.3f} | {networks} | {less} |")
    return "\n".join([*lines, ""])


def document(out: Path) -> dict[str, Any]:
    """Every number, and the config of each arm."""
    configs: dict[str, str] = {}
    for path in sorted(out.glob("*/*/config.yaml")):
        configs.setdefault(f"{path.parts[-3]}/{path.parts[-2].rpartition('_')[0]}", path.read_text())
    return {"runs": dict(settings(out)), "configs": configs}


if __name__ == "__main__":
    main()
