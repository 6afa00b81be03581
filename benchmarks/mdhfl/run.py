"""What the alignment of MDH-FL adds to its own forward and backward passes, and what turning from one network to the
next and symmetric cross-entropy cost. In one process, everything interleaved.

    python benchmarks/mdhfl/run.py [--repetitions 5] [--output benchmarks/results] [key=value ...]

bare: the same networks on the same batches, a forward pass, a backward pass against fixed scores and a step of fused
Adam each; no client, no sum, no exchange. Writes mdhfl_<hardware>_<date>.md and .json. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from fedhpc.algorithms.mdhfl import Mdhfl
from fedhpc.algorithms.objectives import cross_entropy
from fedhpc.algorithms.own_models import objective_of
from fedhpc.build import build
from fedhpc.config.load import load_config
from fedhpc.data.hdf5 import PackedFile
from fedhpc.data.select import data_spec
from fedhpc.models.zoo import build_networks
from fedhpc.runtime import Runtime, settle
from fedhpc.task import data_path

FOLDER = Path(__file__).parent
CONFIG = FOLDER / "phase.yaml"


def seconds(what: Callable[[], Any]) -> float:
    start = perf_counter()
    what()
    return perf_counter() - start


def bare_phase(config: Any, spec: Any, public: Any) -> Callable[[], None]:
    """Batch by batch, network by network, as the alignment goes."""
    networks = [build_networks(config.model, spec, item) for item in range(len(config.model.networks))]
    networks = [network.to(memory_format=torch.channels_last).train() for network in networks]
    rate = config.fit.optimizer.learning_rate
    optimizers = [torch.optim.Adam(network.parameters(), lr=rate, fused=True) for network in networks]
    scores = [torch.rand(len(batch["row"]), spec.num_classes).softmax(1) for batch in public]

    def phase() -> None:
        for batch, target in zip(public, scores, strict=True):
            for network, optimizer in zip(networks, optimizers, strict=True):
                logits = network(batch)["logits"]
                F.kl_div(logits.log_softmax(1), target, reduction="batchmean").backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return phase


def measure(config: Any, repetitions: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each repetition, by what was measured."""
    with Runtime.start(config.runtime, config.mesh) as runtime, PackedFile(data_path(config)) as packed:
        run, _, close = build(config, packed, runtime, folder)
        fed, algorithm = run.fed, run.algorithm
        assert isinstance(algorithm, Mdhfl)
        algorithm.setup(fed)
        fed.begin(0)
        weights = fed.each(lambda client: 0.25)
        turns = 2 * len(fed.public)

        def turn() -> None:
            for _ in range(turns):
                fed.each(lambda client: client.resume())

        def local(loss: Any) -> Callable[[], Any]:
            return lambda: fed.each(lambda client: (client.resume(), client.fit(objective=objective_of(loss)))[1])

        contenders: dict[str, Callable[[], Any]] = {
            "bare": bare_phase(config, data_spec(packed, config), fed.public),
            "alignment": lambda: algorithm.align(fed, weights),
            "turning": turn,
            "local, cross-entropy": local(cross_entropy),
            "local, symmetric": local(algorithm.local_loss(0.0)),
        }
        settle()
        for contender in contenders.values():
            contender()  # warm
        found: dict[str, list[float]] = {name: [] for name in contenders}
        names = list(contenders)
        for repetition in range(repetitions):
            for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
                found[name].append(seconds(contenders[name]))
        close()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=FOLDER.parent / "results")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        config = load_config(CONFIG, [f"data.path={name}/phantom.h5", *arguments.overrides])
        found = measure(config, arguments.repetitions, Path(name))
    pairs = {
        "alignment / bare": ("alignment", "bare"),
        "turning / alignment": ("turning", "alignment"),
        "symmetric / plain cross-entropy": ("local, symmetric", "local, cross-entropy"),
    }
    ratios = {k: [a / b for a, b in zip(found[one], found[two], strict=True)] for k, (one, two) in pairs.items()}
    hardware = f"{os.cpu_count()}-cores"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=FOLDER).stdout.strip()
    lines = [
        f"# MDH-FL's alignment on {hardware}, {datetime.date.today()}",
        "",
        f"One rank, {arguments.repetitions} interleaved repetitions, commit {commit[:12]}, load before {load:.2f}, "
        f"after {os.getloadavg()[0]:.2f}. Ratios are taken within a repetition.",
        "",
        "| | median | repetitions |",
        "|---|---|---|",
        *(f"| {k}, s | {statistics.median(v):.3f} | {', '.join(f'{x:.3f}' for x in v)} |" for k, v in found.items()),
        *(f"| {k} | **{statistics.median(v):.3f}** | {', '.join(f'{x:.3f}' for x in v)} |" for k, v in ratios.items()),
        "",
        "```",
        " ".join(["python benchmarks/mdhfl/run.py", *arguments.overrides]),
        "```",
        "",
        "```yaml",
        CONFIG.read_text().rstrip(),
        "```",
        "",
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem = arguments.output / f"mdhfl_{hardware}_{datetime.date.today()}"
    stem.with_suffix(".md").write_text("\n".join(lines))
    stem.with_suffix(".json").write_text(json.dumps({"commit": commit, "seconds": found, "ratios": ratios}, indent=1))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
