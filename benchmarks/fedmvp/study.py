"""configs/study/fedmvp_pbc: settings, each with its arms, in one process. Finished runs are skipped: start it again to
go on.

    python benchmarks/fedmvp/study.py run OUT DATA FOUNDATION [--settings main ...] [--arms ...] [--seeds 1 2 3]
    python benchmarks/fedmvp/study.py tune OUT DATA FOUNDATION [--settings main] [--arms ...]    # on validation rows
    python benchmarks/fedmvp/study.py table OUT [--settings main ...] [--base fedavg_pairs] [--json FILE]

First the encoders that all arms freeze are trained, once, on FOUNDATION (rows of other hospitals), into OUT/encoders.
OUT/<setting>/<arm>_<seed> are run folders; weights.json in those of FedMVP has what no exchange shows, each client's
weight in every round. `run` takes the learning rates that `tune` found best (OUT/rates.json), where there are any.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhpc.report.compare import difference

CONFIGS = Path(__file__).parents[2] / "configs" / "study" / "fedmvp_pbc"
QUIET = ("report.plots=false", "report.tensorboard=false", "checkpoint.every=100000", "checkpoint.keep=1")
SHOWN = (
    "accuracy", "balanced_accuracy", "accuracy_image", "accuracy_text", "accuracy_image_zeros", "accuracy_text_zeros",
)  # fmt: skip
FEW = ("fedmvp", "fedavg_pairs", "zero_filling")
ALL = (
    *FEW, "fedprox_zeros", "creamfl", "local_zeros", "image_only", "text_only", "completed_fedavg",
    "without_completion", "without_label", "without_hiding", "without_mcm", "without_ram", "plain_averaging",
)  # fmt: skip
TUNED_ON = (101,)  # random seeds of `tune`
RATES = (1e-3, 2e-3, 4e-3)


@dataclass(frozen=True)
class Setting:
    """data: overrides of all arms; pictures: of those that read pictures. encoders: the configs that they come from."""

    arms: tuple[str, ...] = FEW
    data: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    encoders: Mapping[str, str] = field(default_factory=lambda: {"image": "pretrain", "text": "pretrain"})


VIT = "model.image.name=vit_tiny_patch16_224"
SETTINGS = {
    "main": Setting(ALL),
    "beta_0.3": Setting(data=("missing.ratio=0.3",)),
    "beta_0.5": Setting(data=("missing.ratio=0.5",)),
    "iid": Setting(data=("partition={kind: iid, num_clients: 10}",)),
    "dirichlet_0.1": Setting(data=("partition.alpha=0.1", "partition.min_examples=5")),
    "mnar": Setting(data=("missing.rule=label",)),
    # Other pairs of frozen encoders: a ViT with the BERT that it was trained with, and with one that it never met.
    "vit": Setting(pictures=(VIT,), encoders={"image": "pretrain_vit", "text": "pretrain_vit"}),
    "crossed": Setting(pictures=(VIT,), encoders={"image": "pretrain_vit", "text": "pretrain"}),
    # Client 0 has wrong labels: 0.8 over five classes says nothing.
    "broken_client": Setting(
        ("fedmvp", "fedmvp_sharp", "plain_averaging"),
        (f"noise={{kind: symmetric, rate: [0.8{', 0' * 9}]}}", "completion.same_label=false"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "tune", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="?")
    parser.add_argument("foundation", nargs="?")
    parser.add_argument("--settings", nargs="+", default=["main"], choices=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", help="default: those of the setting")
    parser.add_argument("--base", default="fedavg_pairs")
    parser.add_argument("--json", type=Path, help="of table: all numbers, rates and configs")
    given = parser.parse_args()
    if given.what != "table":
        if given.foundation is None:
            parser.error(f"{given.what} needs DATA and FOUNDATION, packed as {CONFIGS / 'fedmvp.yaml'} says")
        for kind in sorted({kind for name in given.settings for kind in SETTINGS[name].encoders.values()}):
            pretrain(kind, given.out, given.foundation)
    for name in given.settings:
        arms = given.arms or SETTINGS[name].arms
        if given.what == "run":
            rates = read(given.out / "rates.json")
            for seed in given.seeds:
                for arm in arms:
                    rate = [f"fit.optimizer.learning_rate={rates[arm]}"] if arm in rates else []
                    play(name, arm, seed, given.out, given.data, given.foundation, rate)
        elif given.what == "tune":
            tune(name, arms, given.out, given.data, given.foundation)
        else:
            print(f"{name}\n\n{table(collect(given.out / name), given.base)}")
    if given.what == "table" and given.json is not None:
        found = {name: collect(given.out / name) for name in given.settings}
        configs = {path.name: path.read_text() for path in sorted(CONFIGS.glob("*.yaml"))}
        rates = read(given.out / "rates.json")
        given.json.write_text(json.dumps({"runs": found, "rates": rates, "configs": configs}, indent=1))


# ----------------------------------------------------------------------------------------------------------------- runs
def play(
    setting: str, arm: str, seed: int, out: Path, data: str, foundation: str, more: Iterable[str], suffix: str = ""
) -> float:
    """One run; the mean accuracy."""
    from fedhpc.config.load import load_config

    config, folder = CONFIGS / f"{arm}.yaml", out / setting / f"{arm}_{seed}{suffix}"
    public = [] if load_config(config, []).public is None else [f"public.path={foundation}"]
    return one_run(config, folder, [*overrides(setting, arm, seed, out), *public, *more], data)


def overrides(setting: str, arm: str, seed: int, out: Path) -> list[str]:
    """Of an arm's config."""
    told, reads = SETTINGS[setting], {"image_only": ["image"], "text_only": ["text"]}.get(arm, ["image", "text"])
    frozen = [f"model.{m}.pretrained={(out / 'encoders' / told.encoders[m] / m).resolve()}" for m in reads]
    return [f"random_seed={seed}", *told.data, *(told.pictures if "image" in reads else ()), *frozen]


def pretrain(kind: str, out: Path, foundation: str) -> None:
    """The encoders that are frozen: trained on pairs of other hospitals, and exported."""
    from fedhpc.export import export_run

    folder = out / "encoders" / kind
    if not folder.is_dir():
        run = out / "encoders" / f"{kind}_run"
        one_run(CONFIGS / f"{kind}.yaml", run, [], foundation)
        export_run(run, folder)


def one_run(config: Path, folder: Path, overrides: list[str], data: str) -> float:
    """Unless it is finished; its mean accuracy (nan without one)."""
    if not (folder / "results.json").exists():
        import torch

        from fedhpc.config.load import load_config
        from fedhpc.task import RunTask

        resolved = load_config(config, [f"data.path={data}", *QUIET, *overrides])
        torch.set_num_threads(resolved.runtime.threads_per_rank)
        cpu, weights = time.process_time(), watched()
        RunTask(resolved, folder)()
        (folder / "cpu.json").write_text(json.dumps({"cpu_seconds": time.process_time() - cpu}))
        if weights:
            (folder / "weights.json").write_text(json.dumps(weights))
        print(folder, f"{time.process_time() - cpu:.0f} CPU s", means(folder), flush=True)
    return float(means(folder).get("accuracy", float("nan")))


def watched() -> list[dict[int, float]]:
    """FedMVP's weights of the runs from now on, a mapping from client to weight for each round (of one rank)."""
    from fedhpc.algorithms.fedmvp import FedMvp
    from fedhpc.algorithms.registry import ALGORITHMS

    rounds: list[dict[int, float]] = []

    class Watched(FedMvp):
        def round(self, fed: Any, index: int) -> Mapping[str, float]:
            rounds.append({})
            return super().round(fed, index)

        def weight(self, client: int, trained: Any, total: Any) -> float:
            rounds[-1][client] = found = super().weight(client, trained, total)
            return found

    ALGORITHMS["fedmvp"] = Watched  # type: ignore[index]
    return rounds


def means(folder: Path) -> dict[str, float]:
    summary = json.loads((folder / "results.json").read_text())["summary"]
    return {name: round(value["mean"], 4) for name, value in summary.items() if name in SHOWN}


def read(path: Path) -> dict[str, float]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


# --------------------------------------------------------------------------------------------------------------- tuning
def tune(setting: str, arms: Iterable[str], out: Path, data: str, foundation: str) -> None:
    """The learning rate of each arm with the highest mean accuracy on validation rows, into OUT/rates.json."""
    best = read(out / "rates.json")
    for arm in arms:
        scores = {}
        for rate in RATES:
            keys = (f"fit.optimizer.learning_rate={rate}", "evaluation.final_split=val")
            found = [play(setting, arm, seed, out, data, foundation, keys, f"_lr{rate:g}") for seed in TUNED_ON]
            scores[rate] = statistics.fmean(found)
        best[arm] = max(scores, key=lambda rate: scores[rate])
        print(arm, {rate: round(score, 4) for rate, score in scores.items()}, flush=True)
        (out / "rates.json").write_text(json.dumps(best))


# --------------------------------------------------------------------------------------------------------------- tables
Runs = dict[str, dict[int, dict[str, float]]]  # arm -> random seed -> metric


def collect(folder: Path) -> Runs:
    """Means over clients of a setting's runs; "weight_0" is how much client 0 weighs against the others' mean in the
    last round of FedMVP."""
    runs: Runs = {}
    for path in sorted(folder.glob("*/results.json")):
        arm, _, seed = path.parent.name.rpartition("_")
        if not seed.isdigit():
            continue  # of tune
        found = means(path.parent)
        if (path.parent / "weights.json").is_file():
            *_, last = json.loads((path.parent / "weights.json").read_text())
            found["weight_0"] = last["0"] / statistics.fmean(w for client, w in last.items() if client != "0")
        runs.setdefault(arm, {})[int(seed)] = found
    return runs


def table(runs: Runs, base: str) -> str:
    """Markdown: mean and range over random seeds, and the differences from `base`, paired, with 95 % intervals. An arm
    of one modality has its accuracy under it."""
    columns = (*SHOWN, "weight_0")
    lines = [
        f"| arm | seeds | {' | '.join(columns)} | accuracy - {base} |",
        f"|---|---|{'---|' * (len(columns) + 1)}",
    ]
    for arm, by_seed in runs.items():
        cells = [spread([run[name] for run in by_seed.values() if name in run]) for name in columns]
        own, bases = ({seed: run["accuracy"] for seed, run in runs.get(name, {}).items()} for name in (arm, base))
        paired = "-" if arm == base else difference(bases, own)
        lines.append(f"| {arm} | {len(by_seed)} | {' | '.join(cells)} | {paired} |")
    return "\n".join([*lines, ""])


def spread(values: list[float]) -> str:
    """Mean and range."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
