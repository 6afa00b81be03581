"""Local steps of a sharded client beside bare DeepSpeed on as many ranks, and what its model takes of memory.

    python benchmarks/sharding/run.py --ranks 2 --width 256 --depth 4 --zero 3 [--out benchmarks/results/NAME]

Both arms train the same ViT and BERT with the same rows: the bare arm is `deepspeed.initialize`, a forward pass over
the rank's rows, torch's differentiable all_gather of the embeddings, the loss, backward and step. What fedhpc adds is
dealing the rows, its gather, learning rates and bookkeeping.

Each arm has processes of its own, as DeepSpeed keeps some of its state by process. All stand at the same time and take
turns of a few steps, who begins changing with every turn; the others wait for a message and use no processor. That as
often as --repetitions says, in new processes. Ratios are taken between neighbouring turns. Memory: peak of the resident
set less what was resident before the model. Bytes: axis "client" by the ledger, for an exchange of all blocks; axis
"shard" by counting what is handed to torch.distributed in a step.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from gauges import Counted, resident

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.allocations import largest_tensor, model_state_bytes

SPLIT = 4  # steps a turn of an arm


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


def rank_main(rank: int, args: argparse.Namespace, arm: str, port: int, pipe: Connection) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": args.device}
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    import torch.distributed as dist

    device = torch.device(args.device, rank) if args.device == "cuda" else torch.device("cpu")
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    made = Arm(args, device, arm)
    pipe.send("ready")
    while (asked := pipe.recv()) != "end":
        pipe.send(made.turn() if asked == "turn" else made.accounts())
    dist.barrier()


class Arm:
    """One of the two, on one rank."""

    def __init__(self, args: argparse.Namespace, device: torch.device, arm: str) -> None:
        from fedhpc.algorithms.objectives import build_loss
        from fedhpc.client.zero import ZeroEngine, start_deepspeed
        from fedhpc.client.zero_rows import Ranks
        from fedhpc.comm.mesh import build_mesh
        from fedhpc.interfaces import DataSpec
        from fedhpc.models.zoo import build_model
        from fedhpc.process import keep_heap
        from fedhpc.runtime import LARGEST_ON_HEAP

        keep_heap(LARGEST_ON_HEAP)  # for both
        config = config_of(args)
        spec = DataSpec(1, (64, 64), vocab_size=400, max_tokens=32)
        self.device = device
        self.mesh = build_mesh(args.ranks, device.type)
        # For both: DeepSpeed would compile something for minutes that serves inference.
        start_deepspeed(Ranks(self.mesh.shard_index, self.mesh.shard, self.mesh.shard_group), device)

        def build() -> Any:
            torch.manual_seed(0)
            return build_model(config.model, spec, config.objective)

        loss = build_loss(config)
        generator = torch.Generator().manual_seed(0)
        batches = [
            {
                "image": torch.randn(args.batch, 1, 64, 64, generator=generator).to(device),
                "tokens": torch.randint(1, 400, (args.batch, 32), generator=generator).to(device),
            }
            for _ in range(SPLIT)
        ]
        small = config.model.model_copy(update={"image": load_small().image, "text": load_small().text})
        build_model(small, spec, config.objective)  # libraries are imported
        self._before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        self._engine: Any = None
        if arm == "fedhpc":
            engine = self._engine = ZeroEngine(build, loss, config.fit, config.sharding, device, self.mesh)
            self._run: Callable[[], Any] = lambda: engine.fit(batches, lambda step: 1e-3)
        else:
            self._run = bare_turn(args, config, build, loss, batches, self.mesh)

    def turn(self) -> tuple[float, float]:
        """Seconds a step, on the clock and of this rank's processor."""
        import torch.distributed as dist

        dist.barrier()
        start, start_cpu = time.perf_counter(), time.process_time()
        self._run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        spent = time.process_time() - start_cpu
        dist.barrier()
        return (time.perf_counter() - start) / SPLIT, spent / SPLIT

    def accounts(self) -> dict[str, Any]:
        """Memory and bytes, after some turns."""
        result: dict[str, Any] = {"peak_mib": resident("VmHWM") - self._before}
        with Counted() as counted:
            self._run()
        result["shard_axis_bytes_a_step"] = {name: count / SPLIT for name, count in counted.bytes.items()}
        if self._engine is not None:
            result |= self._of_the_exchange()
        return result

    def _of_the_exchange(self) -> dict[str, Any]:
        from fedhpc.comm.collectives import Collectives
        from fedhpc.comm.ledger import Ledger
        from fedhpc.comm.sums import Sums
        from fedhpc.interfaces import Contribution

        engine = self._engine
        shared = dict(engine.weights.shared.items())
        ledger = Ledger()
        sums = Sums(Collectives(self.mesh, ledger, 1 << 28), "fixed_point", 32)
        mean = sums.weighted_mean(shared, (), 2, self.device, "reduce")
        mean.add(Contribution(engine.difference(shared), 1.0))
        mean.finish()
        del shared, sums, mean
        return {
            "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters()),
            "client_axis_bytes_an_exchange": ledger.entries[0].num_bytes,
            "model_state_bytes": model_state_bytes(engine),
            "largest_tensor_elements": largest_tensor(self._run),
        }


def load_small() -> Any:
    from fedhpc.config import load_config

    root = Path(__file__).resolve().parents[2]
    return load_config(root / "configs" / "smoke" / "sharded.yaml").model


def bare_turn(args: Any, config: Any, build: Any, loss: Any, batches: Any, mesh: Any) -> Any:
    """DeepSpeed as its documentation has it, with the same settings and the loss over the whole batch."""
    import deepspeed
    import torch.distributed as dist
    from torch.distributed.nn.functional import all_gather

    from fedhpc.client.engine import build_optimizer
    from fedhpc.client.zero_config import GroupOfSlot, deepspeed_config
    from fedhpc.client.zero_rows import Ranks

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

    def turn() -> None:
        for batch in batches:
            out = bare({"image": batch["image"][rows].to(dtype), "tokens": batch["tokens"][rows]})
            whole = {name: torch.cat(all_gather(out[name], group=mesh.shard_group)) for name in ("image", "text")}
            bare.backward(loss({**out, **whole}, batch))
            bare.step()

    warnings.filterwarnings("ignore", category=FutureWarning)  # torch has a newer gather
    return turn


class Group:
    """The processes of one arm."""

    def __init__(self, args: argparse.Namespace, arm: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        context = mp.get_context("spawn")
        self._pipes = []
        for rank in range(args.ranks):
            mine, theirs = context.Pipe()
            context.Process(target=rank_main, args=(rank, args, arm, port, theirs), daemon=True).start()
            theirs.close()
            self._pipes.append(mine)
        self._answers()

    def _answers(self) -> Any:
        first, *_ = [pipe.recv() for pipe in self._pipes]
        return first

    def ask(self, what: str) -> Any:
        """Rank 0's answer, when all have answered."""
        for pipe in self._pipes:
            pipe.send(what)
        return self._answers() if what != "end" else None


def play(args: argparse.Namespace) -> dict[str, Any]:
    """One repetition: both arms in turns, then their accounts."""
    groups = {arm: Group(args, arm) for arm in ("fedhpc", "bare")}
    seconds: dict[str, list[float]] = {arm: [] for arm in groups}
    cpu: dict[str, list[float]] = {arm: [] for arm in groups}
    for turn in range(args.turns + 1):
        for arm in list(groups) if turn % 2 else list(groups)[::-1]:
            clock, processor = groups[arm].ask("turn")
            if turn:  # the first warms up
                seconds[arm].append(clock)
                cpu[arm].append(processor)
    accounts = {arm: group.ask("accounts") for arm, group in groups.items()}
    for group in groups.values():
        group.ask("end")
    print(json.dumps({"seconds": seconds, "cpu": cpu}), file=sys.stderr, flush=True)
    return {"seconds": seconds, "cpu": cpu, "accounts": accounts}


def commit() -> str:
    here = Path(__file__).parent
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True).stdout.strip()


def versions() -> dict[str, str]:
    import platform

    import deepspeed

    import fedhpc

    return {
        "fedhpc": fedhpc.__version__,
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "python": platform.python_version(),
    }


def yaml_of(args: argparse.Namespace) -> str:
    from fedhpc.config.load import dump_config

    return dump_config(config_of(args))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "ranks": 2,
        "width": 256,
        "depth": 4,
        "zero": 3,
        "batch": 32,
        "turns": 10,
        "repetitions": 3,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()
    played = [play(args) for _ in range(args.repetitions)]
    repetitions, cpu = [one["seconds"] for one in played], [one["cpu"] for one in played]
    ratios = [[b / f for b, f in zip(r["bare"], r["fedhpc"], strict=True)] for r in repetitions]
    # Processor time of rank 0: what other work on the machine moves far less.
    cpu_ratios = [[b / f for b, f in zip(r["bare"], r["fedhpc"], strict=True)] for r in cpu]
    alone = played[0]["accounts"]
    parameters = alone["fedhpc"]["parameters"]
    sent = alone["fedhpc"]["client_axis_bytes_an_exchange"]
    states = alone["fedhpc"]["model_state_bytes"]
    share = 16 * parameters / (args.ranks if args.zero == 3 else 1)  # float32 weights, gradients, two moments
    result = {
        "command": " ".join(["python", "benchmarks/sharding/run.py", *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions(),
        "config": yaml_of(args),
        "parameters": parameters,
        "throughput_of_bare": statistics.median(ratio for ones in ratios for ratio in ones),
        "throughput_of_bare_by_repetition": [statistics.median(ones) for ones in ratios],
        "ratios": ratios,
        "cpu_time_of_bare_over_fedhpc": statistics.median(ratio for ones in cpu_ratios for ratio in ones),
        "cpu_ratios": cpu_ratios,
        "seconds_a_step": {
            arm: statistics.median(s for r in repetitions for s in r[arm]) for arm in ("fedhpc", "bare")
        },
        "peak_mib": {arm: seen["peak_mib"] for arm, seen in alone.items()},
        "weights_mib": 4 * parameters / (1 << 20),
        "model_state_bytes": states,
        "model_states_of_total_over_ranks": states / share if args.zero == 3 and args.precision == "float32" else None,
        "largest_tensor_elements": alone["fedhpc"]["largest_tensor_elements"],
        "client_axis_bytes_an_exchange": sent,
        "client_axis_elements_of_parameters": sent / 8 / parameters,
        "shard_axis_bytes_a_step": {arm: seen["shard_axis_bytes_a_step"] for arm, seen in alone.items()},
        "load_before_and_after": [load, os.getloadavg()],
    }
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
