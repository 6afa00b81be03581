"""What run.py measures, each on ranks of its own. Numbers only; run.py repeats, compares and writes."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from fedhpc.comm.collectives import Collectives
from fedhpc.comm.keys import add_streams
from fedhpc.comm.ledger import Entry, Ledger
from fedhpc.comm.mesh import Mesh
from fedhpc.comm.secure import Contributors, Masks
from fedhpc.comm.sums import Sums
from fedhpc.interfaces import Block, Contribution, Layout, TensorSpec

ROUNDS = Path(__file__).resolve().parents[1] / "rounds"
BUCKET = 256 << 20


def on_ranks(world: int, fn: Callable[..., Any], *args: Any) -> Any:
    """fn(collectives, *args) on gloo ranks of this machine; what rank 0 returns."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (world, folder, fn, args), nprocs=world)
        return json.loads(Path(folder, "answer").read_text())


def _rank(rank: int, world: int, folder: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=300)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=patience)
    answer = fn(Collectives(Mesh(rank, world, 1, dist.group.WORLD), Ledger(), BUCKET), *args)
    if rank == 0:
        Path(folder, "answer").write_text(json.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()


def timed(fn: Callable[[], Any]) -> float:
    dist.barrier()
    start = time.perf_counter()
    fn()
    dist.barrier()
    return time.perf_counter() - start


# ---------------------------------------------------------------------------------------------------------- plain sums
def plain(collectives: Collectives, megabytes: int, repeats: int) -> dict[str, float]:
    """Seconds of a raw all_reduce of int64, of `Collectives.all_sum`, and of a whole weighted mean of 5 clients a rank
    (encoded, summed, decoded) on the same bytes; one after the other, `repeats` times."""
    numel = megabytes * 2**20 // 8
    tensor = torch.zeros(numel, dtype=torch.int64)
    layout = Layout((TensorSpec("w", (numel,), (1,), 0, True),), numel, numel)
    like = {"net": Block(torch.randn(numel), layout)}
    sums = Sums(collectives, "fixed_point", 32)

    def whole() -> None:
        mean = sums.weighted_mean(like, (), 10, torch.device("cpu"), "reduce")
        for _ in range(5):
            mean.add(Contribution(like, 1.0))
        mean.finish()

    kinds = {
        "raw": lambda: dist.all_reduce(tensor),
        "all_sum": lambda: collectives.all_sum(tensor),
        "whole": whole,
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeats + 1):
        for name, fn in kinds.items():
            seconds[name].append(timed(fn))
    return {name: median(values[1:]) for name, values in seconds.items()}


# --------------------------------------------------------------------------------------------------------- masked sums
def masked(collectives: Collectives, num_clients: int, numel: int, repeats: int) -> dict[str, float]:
    """One masked exchange of clients dealt evenly over the ranks: seconds of all of it and of the masks, processor
    seconds and what was handed over for keys and shares by this rank."""
    masks = Masks(collectives, 3, 0)
    world, rank = collectives.mesh.world, collectives.mesh.rank
    everyone = tuple(range(num_clients))
    who = Contributors(everyone, ("net",), {c: (True,) for c in everyone if c % world == rank})
    entries: list[Entry] = []
    seconds, processor = [], []
    for _ in range(repeats + 1):
        begun = time.process_time()
        total = torch.zeros(-(-numel // collectives.granule) * collectives.granule, dtype=torch.int64)
        entry = Entry("reduce", "net", total.nbytes, 0.0)
        seconds.append(timed(lambda total=total, entry=entry: list(masks.buckets(total, who, entry))))
        processor.append(time.process_time() - begun)
        assert not total.any()
        entries.append(entry)
    return {
        "seconds": median(seconds[1:]),
        "cpu_seconds": median(processor[1:]),
        "mask_seconds": median(e.mask_seconds for e in entries[1:]),
        "mask_bytes": entries[-1].mask_bytes,
    }


# -------------------------------------------------------------------------------------------------------------- rounds
def rounds(secure: bool, num_rounds: int) -> dict[str, float]:
    """Of the workload of benchmarks/rounds (cnn, 10 of 100 clients, 2 ranks): the median seconds of the rounds after
    the first, and processor seconds a round of the whole process tree, from the end of the first to that of the last
    but one."""
    sys.path.insert(0, str(ROUNDS))
    import fedhpc_run
    import yaml
    from processes import tree_cpu_seconds
    from workload import parse, parser

    argv, sys.argv = sys.argv, ["x", "--model", "cnn", "--ranks", "2", "--rounds", str(num_rounds)]
    arguments = parse(parser(""))
    sys.argv = argv
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fedhpc_run.pack(folder / "random.h5", arguments.num_clients, arguments.seed)
        config = fedhpc_run.config(arguments, folder / "random.h5") | {"aggregation": {"secure": secure}}
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        command = [
            sys.executable,
            "-m",
            "fedhpc.cli",
            "run",
            str(folder / "run.yaml"),
            "--run-dir",
            str(folder / "run"),
        ]
        metrics = folder / "run" / "metrics.jsonl"
        processor: dict[int, float] = {}  # rounds that had ended -> processor seconds
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([*command, "--ranks", "2"], stdout=log, stderr=log)
            while process.poll() is None:
                done = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
                if 0 < done < num_rounds and done not in processor:
                    processor[done] = tree_cpu_seconds(process.pid)
                time.sleep(0.02)
        if process.returncode:
            sys.exit(f"fedhpc run ended with {process.returncode}:\n{(folder / 'log').read_text()}")
        seconds = [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()][1:]
    first, last = min(processor), max(processor)
    return {"seconds": median(seconds), "cpu_seconds": (processor[last] - processor[first]) / (last - first)}


# ------------------------------------------------------------------------------------------------------------- streams
def streams(megabytes: int = 256) -> dict[str, float]:
    """GB a second: mask words made and added by one thread, and AES-128 in counter mode of `openssl speed`."""
    total = torch.zeros(megabytes * 2**20 // 8, dtype=torch.int64)
    add_streams(total, 0, [(bytes(32), 1)])
    start = time.process_time()  # openssl speed goes by the processor's time too
    add_streams(total, 0, [(bytes(32), 1)] * 4)
    made = 4 * total.nbytes / (time.process_time() - start) / 1e9
    command = ["openssl", "speed", "-seconds", "2", "-bytes", "262144", "-evp", "aes-128-ctr"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^AES-128-CTR\s+([\d.]+)k", out, re.MULTILINE)
    assert found, out
    return {"add_streams": made, "openssl": float(found[1]) * 1000 / 1e9}
