"""Peak memory of building, loading and exporting a model, beside the size of its weights, with and without stowing.

    python benchmarks/sharding/memory.py --ranks 2 --width 768 --depth 8 [--out benchmarks/results/NAME]

Every arm is a process of its own a rank: the peak of its resident set (VmHWM) less what was resident before. Anonymous
memory is what counts; pages of mapped checkpoints belong to the kernel's cache and are told apart at the end of an arm.
  build whole, build       random weights, without and with `build_together`, to the end of ZeRO-3's partition
  load whole, load         the same from `pretrained:` folders
  export whole, export     of a run's shards: `load_run` alone, and all of `fedhpc export`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.ranks import on_ranks  # noqa: E402

MIB = 1 << 20


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


class Peak:
    """Growth of this process since it began."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before, self.files, self.anonymous = status("VmRSS"), status("RssFile"), status("RssAnon")
        self._most = self.anonymous
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """The kernel keeps no peak of anonymous memory: sampled, every 2 ms."""
        while True:
            self._most = max(self._most, status("RssAnon"))
            time.sleep(0.002)

    def result(self) -> dict[str, float]:
        return {
            "peak_mib": (status("VmHWM") - self.before) / MIB,
            "peak_anonymous_mib": (self._most - self.anonymous) / MIB,
            "mapped_files_at_end_mib": (status("RssFile") - self.files) / MIB,
        }


def options(width: int, depth: int) -> list[str]:
    image = f"{{embed_dim: {width}, depth: {depth}, num_heads: 8, patch_size: 8, class_token: false, global_pool: avg}}"
    text = (
        f"{{hidden_size: {width}, num_hidden_layers: {depth}, num_attention_heads: 8, intermediate_size: {4 * width}, "
        "hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
    )
    return [f"model.image.options={image}", f"model.text.options={text}", "model.align_heads=8"]


def config_of(overrides: list[str]) -> Any:
    from fedhpc.config import load_config

    return load_config(ROOT / "configs" / "smoke" / "sharded.yaml", overrides)


def build(overrides: list[str], together: bool) -> dict[str, float]:
    import torch
    import torch.distributed as dist

    os.environ["DS_ACCELERATOR"] = "cpu"
    dist.init_process_group("gloo")
    from fedhpc.client.zero import start_deepspeed
    from fedhpc.client.zero_build import SlotKeeper, partition
    from fedhpc.client.zero_config import GroupOfSlot, deepspeed_config
    from fedhpc.client.zero_rows import Ranks
    from fedhpc.interfaces import DataSpec
    from fedhpc.models.stowing import WINDOW, Stowing
    from fedhpc.models.zoo import build_model
    from fedhpc.process import keep_heap

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # as a sharded run sets it
    keep_heap(1 << 20)
    config, spec = config_of(overrides), DataSpec(1, (32, 32), vocab_size=278, max_tokens=16)
    build_model(config_of([]).model, spec, config.objective)  # libraries are imported
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    start_deepspeed(ranks, torch.device("cpu"))
    cpu = torch.device("cpu")
    peak = Peak()
    with Stowing(SlotKeeper(ranks, cpu), window=WINDOW if together else 1 << 50) as stowing:
        torch.manual_seed(0)
        module = build_model(config.model, spec, config.objective)
    built = peak.result()
    settings = deepspeed_config(config.fit, config.sharding, module, ranks.count)
    partition(module, stowing, settings, GroupOfSlot(ranks), torch.float32)
    size = sum(4 * p.ds_numel for p in module.parameters())
    return {"whole_mib": size / MIB, **peak.result(), "peak_before_partition_mib": built["peak_mib"]}


def play(overrides: list[str], folder: str) -> None:
    from fedhpc.task import RunTask

    RunTask(config_of(overrides), Path(folder))()


def export(folder: str, to: str, overrides: list[str]) -> dict[str, float]:
    import torch

    from fedhpc.downstream.loading import load_run
    from fedhpc.export import export_run
    from fedhpc.process import keep_heap

    keep_heap(1 << 20)
    torch.set_num_threads(1)
    export_run(Path(folder).with_name("small"), Path(folder).with_name(f"small_{bool(to)}"))  # imports libraries
    peak = Peak()
    if to:
        export_run(Path(folder), Path(to))
    else:
        load_run(Path(folder))
    return peak.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"ranks": 2, "width": 768, "depth": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(args).items() if k != "out"}}
    made = options(args.width, args.depth)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result["build whole"] = on_ranks(args.ranks, build, made, False)[0]
        result["build"] = on_ranks(args.ranks, build, made, True)[0]
        small = [
            f"data.path={folder / 'phantom.h5'}",
            "rounds=1",
            "fit.steps=1",
            "report.tensorboard=false",
            "report.plots=false",
        ]
        on_ranks(args.ranks, play, [*made, *small, f"mesh.shard={args.ranks}"], str(folder / "run"))
        on_ranks(1, play, [*small, "mesh.shard=1", "sharding=null"], str(folder / "small"))
        result["export whole"] = on_ranks(1, export, str(folder / "run"), "", made)[0]
        result["export"] = on_ranks(1, export, str(folder / "run"), str(folder / "out"), made)[0]
        result["exported_mib"] = sum(p.stat().st_size for p in (folder / "out").rglob("*.safetensors")) / MIB
        loaded = [
            *made,
            f"model.image.pretrained={folder / 'out' / 'image'}",
            f"model.text={{name: bert, pretrained: {folder / 'out' / 'text'}}}",
        ]
        loaded = [one for one in loaded if not one.startswith("model.text.options")]
        result["load whole"] = on_ranks(args.ranks, build, loaded, False)[0]
        result["load"] = on_ranks(args.ranks, build, loaded, True)[0]
    size = result["build"]["whole_mib"]
    for arm in ("build whole", "build", "load whole", "load", "export whole", "export"):
        result[arm]["peak_of_whole"] = result[arm]["peak_mib"] / size
        print(f"{arm:13}", *(f"{key} {value:.2f}" for key, value in result[arm].items()))
    if args.out is not None:
        args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
