"""Local steps of a sharded client beside bare DeepSpeed on the same ranks, and what its model takes of memory.

    python benchmarks/sharding/run.py --ranks 2 --width 256 --depth 4 --zero 3 [--out benchmarks/results/NAME]

Both arms train the same ViT and BERT with the same rows on the same ranks, turn about, in one process a rank: the bare
arm is `deepspeed.initialize`, a forward pass over the rank's rows, torch's differentiable all_gather of the embeddings,
the loss, backward and step. What fedhpc adds is dealing the rows, its gather, learning rates and bookkeeping.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

SPLIT = 8  # steps a turn of an arm


def config_of(args: argparse.Namespace) -> Any:
    from fedhpc.config import load_config

    image = f"{{embed_dim: {args.width}, depth: {args.depth}, num_heads: 4, patch_size: 8}}"
    text = (
        f"{{hidden_size: {args.width}, num_hidden_layers: {args.depth}, num_attention_heads: 4, "
        f"intermediate_size: {4 * args.width}, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}"
    )
    root = Path(__file__).resolve().parents[2]
    return load_config(
        root / "configs" / "smoke" / "sharded.yaml",
        [
            f"model.image.options={image}",
            f"model.text.options={text}",
            f"mesh.shard={args.ranks}",
            f"sharding.zero={args.zero}",
            f"fit.batch_size={args.batch}",
            f"fit.precision={args.precision}",
        ],
    )


def rank_main(rank: int, args: argparse.Namespace, port: int, out: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": args.device}
    torch.set_num_threads(1)
    import torch.distributed as dist

    device = torch.device(args.device, rank) if args.device == "cuda" else torch.device("cpu")
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    result = measure(args, device)
    if rank == 0:
        out.put(result)
    dist.barrier()


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    import deepspeed
    import torch.distributed as dist
    from torch.distributed.nn.functional import all_gather

    from fedhpc.algorithms.objectives import build_loss
    from fedhpc.client.engine import build_optimizer
    from fedhpc.client.zero import ZeroEngine
    from fedhpc.client.zero_config import GroupOfSlot, deepspeed_config
    from fedhpc.client.zero_rows import Ranks
    from fedhpc.comm.mesh import build_mesh
    from fedhpc.interfaces import DataSpec
    from fedhpc.models.zoo import build_model

    config = config_of(args)
    spec = DataSpec(1, (64, 64), vocab_size=400, max_tokens=32)
    mesh = build_mesh(args.ranks, device.type)

    def build() -> Any:
        torch.manual_seed(0)
        return build_model(config.model, spec, config.objective)

    loss = build_loss(config)
    engine = ZeroEngine(build, loss, config.fit, config.sharding, device, mesh)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "image": torch.randn(args.batch, 1, 64, 64, generator=generator).to(device),
            "tokens": torch.randint(1, 400, (args.batch, 32), generator=generator).to(device),
        }
        for _ in range(SPLIT)
    ]
    ranks = Ranks(mesh.shard_index, mesh.shard, mesh.shard_group)
    module = build()
    bare, *_ = deepspeed.initialize(
        model=module,
        optimizer=build_optimizer(
            config.fit.optimizer, [{"params": [p for p in module.parameters() if p.requires_grad]}]
        ),
        config=deepspeed_config(config.fit, config.sharding, module, args.ranks),
        mpu=GroupOfSlot(ranks),
        dist_init_required=False,
    )
    module.train()
    dtype = torch.bfloat16 if config.fit.precision == "bfloat16" else torch.float32
    each = args.batch // args.ranks
    rows = slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)

    def bare_turn() -> None:
        for batch in batches:
            out = bare({"image": batch["image"][rows].to(dtype), "tokens": batch["tokens"][rows]})
            whole = {name: torch.cat(all_gather(out[name], group=mesh.shard_group)) for name in ("image", "text")}
            bare.backward(loss({**out, **whole}, batch))
            bare.step()

    arms = {"fedhpc": lambda: engine.fit(batches, lambda step: 1e-3), "bare": bare_turn}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(args.turns + 1):
        for name, arm in arms.items():
            dist.barrier()
            start = time.perf_counter()
            arm()
            if turn:  # the first warms up
                seconds[name].append((time.perf_counter() - start) / SPLIT)
    ratios = [b / f for b, f in zip(seconds["bare"], seconds["fedhpc"], strict=True)]
    held = 4 * engine._shards.numel()
    return {
        "parameters": parameters,
        "seconds_a_step": {name: statistics.median(values) for name, values in seconds.items()},
        "throughput_of_bare": statistics.median(ratios),
        "ratios": ratios,
        "exchange_bytes_a_rank_float32": held,
        "exchange_bytes_a_rank_of_whole": held / (4 * parameters),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"ranks": 2, "width": 256, "depth": 4, "zero": 3, "batch": 32, "turns": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    out = mp.get_context("spawn").SimpleQueue()
    mp.start_processes(rank_main, args=(args, port, out), nprocs=args.ranks, start_method="spawn")
    result = {"settings": {k: str(v) for k, v in vars(args).items() if k != "out"}, **out.get()}
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
