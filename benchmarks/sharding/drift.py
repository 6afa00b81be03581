"""How far a sharded run's losses leave the unsharded ones, beside what rounding alone does to an unsharded run.

    python benchmarks/sharding/drift.py [--out benchmarks/results/NAME]

Three arms of configs/smoke/sharded.yaml, FedDRA, five rounds, in one process each (two for shards):
  whole      unsharded
  nudged     unsharded, but every initial weight times 1 + u, |u| <= 1.2e-7: one unit of float32's last place
  sharded    2 shards, ZeRO-3
each with AdamW under several eps, and with SGD. If shards did something wrong, `sharded` would leave `whole` by more
than `nudged` does. `wrong` is the check that this tells: shards whose Adam never resets, which is a real mistake.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.dist.runs import SMOKE, play  # noqa: E402
from tests.ranks import on_ranks  # noqa: E402

FEDDRA = "algorithm={name: feddra, stage1: {steps: 2}, constraint: sum, dro: {rho: 0.1, step_size: 1.0}}"
SEEDS = (1, 2, 3, 4)
OPTIMIZERS = {
    "adamw of the config": "fit.optimizer.name=adamw",
    "adamw, eps 1e-8": "fit.optimizer={name: adamw, learning_rate: 0.001}",
    "adamw, eps 1e-4": "fit.optimizer={name: adamw, learning_rate: 0.001, eps: 1.0e-4}",
    "sgd": "fit.optimizer={name: sgd, learning_rate: 0.05}",
}


def nudged(config: str, overrides: list[str], folder: str, seed: int) -> dict[str, Any]:
    """`play`, with initial weights moved by about one unit in the last place."""
    import torch

    from fedhpc import build as built

    build = built.build_model

    def build_nudged(*arguments: Any) -> Any:
        module = build(*arguments)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
                parameter.mul_(1 + 1.2e-7 * noise)
        return module

    built.build_model = build_nudged
    return play(config, overrides, folder)


def wrong(config: str, overrides: list[str], folder: str) -> dict[str, Any]:
    """`play`, with an optimizer that goes on from turn to turn."""
    from fedhpc.client.zero import ZeroEngine

    ZeroEngine._reset_optimizer = lambda self: None  # type: ignore[method-assign]
    return play(config, overrides, folder)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def measure(optimizer: str, folder: Path) -> dict[str, list[float]]:
    """Relative distance of each round's loss from the unsharded one, by arm."""
    common = [f"data.path={folder / 'phantom.h5'}", FEDDRA, optimizer, "report.tensorboard=false", "report.plots=false"]
    alone = [*common, "mesh.shard=1", "sharding=null"]
    config = str(SMOKE / "sharded.yaml")
    on_ranks(1, play, config, alone, str(folder / "whole"))
    for seed in SEEDS:
        on_ranks(1, nudged, config, alone, str(folder / f"nudged {seed}"), seed)
    on_ranks(2, play, config, common, str(folder / "sharded"))
    on_ranks(2, wrong, config, common, str(folder / "wrong"))
    expected = losses(folder / "whole")
    return {
        arm: [abs(a / b - 1) for a, b in zip(losses(folder / arm), expected, strict=True)]
        for arm in (*(f"nudged {seed}" for seed in SEEDS), "sharded", "wrong")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = {}
    for name, optimizer in OPTIMIZERS.items():
        with tempfile.TemporaryDirectory() as folder:
            result[name] = measure(optimizer, Path(folder))
        print(
            name, *(f"  {arm:9} {' '.join(f'{g:.1e}' for g in gaps)}" for arm, gaps in result[name].items()), sep="\n"
        )
    if args.out is not None:
        args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
