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
def workload(folder: Path) -> Path:
    """The workload of benchmarks/rounds (cnn, 10 of 100 clients, 2 ranks) as a packed file and a config."""
    sys.path.insert(0, str(ROUNDS))
    import fedhpc_run
    import yaml
    from workload import parse, parser

    argv, sys.argv = sys.argv, ["x", "--model", "cnn", "--ranks", "2", "--rounds", "1000"]
    arguments = parse(parser(""))
    sys.argv = argv
    fedhpc_run.pack(folder / "random.h5", arguments.num_clients, arguments.seed)
    config = fedhpc_run.config(arguments, folder / "random.h5") | {"aggregation": {"secure": True}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def rounds(collectives: Collectives, config: str, folder: str, repeats: int) -> list[dict[str, list[float]]]:
    """Wall and processor seconds of this rank for plain and masked rounds in turn: [{"plain": [wall, processor],
    "masked": ...}], without the first pair. One run whose masks are taken off and put on again."""
    from types import SimpleNamespace

    from fedhpc.config.load import load_config
    from fedhpc.data.hdf5 import PackedFile
    from fedhpc.task import build, data_path

    resolved = load_config(Path(config))
    runtime: Any = SimpleNamespace(
        device=torch.device("cpu"), mesh=collectives.mesh, is_first=False, where=[""], must_stop=lambda seconds: False
    )
    found = []
    with PackedFile(data_path(resolved)) as packed:
        run, _, close = build(resolved, packed, runtime, Path(folder))
        run.algorithm.setup(run.fed)
        masks = run.fed._sums.masks
        for pair in range(repeats + 1):
            taken = {}
            for kind in ("plain", "masked") if pair % 2 else ("masked", "plain"):
                run.fed._sums.masks = masks if kind == "masked" else None
                processor = time.process_time()

                def play(index: int = pair) -> None:  # the same clients in both
                    run.fed.begin(index)
                    run.algorithm.round(run.fed, index)
                    run.fed.end(False)

                wall = timed(play)
                taken[kind] = [wall, time.process_time() - processor]
            found.append(taken)
        close()
    return found[1:]


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
